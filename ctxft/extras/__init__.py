"""What most users never need: hosted models, adaptive prompts, attribution, exercises, export."""

from ctxft import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "adaptive": "estimate_cost forbids message_for reject_reason",
        "attribution": "attribute family_table gradient_table prompt_changes prompt_figure",
    },
)
