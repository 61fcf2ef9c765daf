"""Adaptive prompts: a language model reads a passage and a way of learning, and writes the prompt before that very passage."""

from ctxft.config import INSTRUCTION, WriterConfig
from ctxft.extras.writer.checks import clean, forbids, reject_reason
from ctxft.extras.writer.store import Store, store_path
from ctxft.extras.writer.write import WriterRecord, estimate_cost, write_prompts

# fmt: off
__all__ = [
    "INSTRUCTION", "Store", "WriterConfig", "WriterRecord", "clean", "estimate_cost", "forbids", "reject_reason",
    "store_path", "write_prompts",
]
