"""ctxft: contextual fine-tuning of language models, from a prompt in front of a text to a tested difference."""

__version__ = "0.1.0"

import os

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # before the hub's client is imported, which reads it once
