"""Numbers with units. The measures are this package's names, too."""

from importlib import import_module


def __getattr__(name):
    if not name.startswith("__"):  # the import system asks for such
        for part in ("protocols", "metrics", "decomposition"):
            if hasattr(module := import_module(f".{part}", __name__), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
