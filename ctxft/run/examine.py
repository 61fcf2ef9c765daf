"""Names that moved to ``Run``."""


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    from ctxft.run import shims

    return getattr(shims, name)
