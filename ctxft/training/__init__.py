"""Training: one arm of an experiment, fine-tuned with the transformers Trainer."""

from ctxft import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {"loss": "patch_loss_forward", "packing": "micro_batches set_attention", "schedule": "learning_rate passage_order"},
)
