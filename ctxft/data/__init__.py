"""Documents, passages and rows: from text files to token ids and labels."""

from ctxft import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "documents": "read_documents",
        "passages": "cut",
        "rows": "IGNORE_INDEX build_row longest_prompt prompt_ids special_tokens text_budget",
    },
)
