"""ctxft: contextual fine-tuning of language models, from a prompt in front of a text to a tested difference."""

__version__ = "0.1.0"
