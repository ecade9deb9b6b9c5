"""How a model learns. The loop's own names are this package's, too."""

from importlib import import_module


def __getattr__(name):
    if name.startswith("__"):  # the import system asks for such
        raise AttributeError(name)
    return getattr(import_module(".loop", __name__), name)
