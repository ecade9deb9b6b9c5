"""The reference of d2im, made from its docstrings: reports/api/index.html.

    python docs/reference.py            # or `make docs`

pdoc does it, in one process and without a configuration: the docstrings are all that
there is to show. The method comes first, then the wings.
"""

import argparse
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import d2im

ROOT = Path(__file__).parents[1]
WINGS = "data training surface use show evaluate".split()  # as in architecture.md
SECTION = re.compile(r"(?:^|(?<=\. ))(Args|Attributes|Returns|Raises):\s", re.M)
ITEM = re.compile(r"(?:^|(?<=\. ))(?=[\w*]+(?:(?:, | and )[\w*]+)*: )")


def pages():
    """What each package's page leads to, in this order: {package: names}."""
    found = {"d2im": [*d2im.METHOD, *WINGS]}
    for wing in WINGS:
        folder = import_module(f"d2im.{wing}").__path__
        found[f"d2im.{wing}"] = [room.name for room in pkgutil.iter_modules(folder)]
    return found


def spread(docstring):
    """Lay a docstring's sections out as pdoc reads them: a line a section and item.

    Ours hold several in a line where they are short.
    """
    text, *parts = SECTION.split(docstring)
    for name, part in zip(parts[::2], parts[1::2], strict=True):
        part, gap, rest = part.partition("\n\n")  # an empty line ends a section
        part = " ".join(part.split())
        items = [part] if name == "Returns" else ITEM.split(part)
        lines = "".join(f"    {item.strip()}\n" for item in items if item)
        text = f"{text.rstrip()}\n\n{name}:\n{lines}{gap}{rest}"
    return text


def introduction():
    """The package's docstring, and where its names are."""
    homes = (f"`d2im.{home}.{name}`" for name, home in sorted(d2im._HOME.items()))
    return f"{d2im.__doc__}\nNames that the package gives itself: {', '.join(homes)}.\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "reports" / "api")
    options = parser.parse_args()
    import pdoc

    google = pdoc.docstrings.google
    pdoc.docstrings.google = lambda docstring: google(spread(docstring))
    pdoc.render.configure(docformat="google", footer_text=f"d2im {d2im.__version__}")
    d2im.__doc__ = introduction()
    for package, names in pages().items():  # pdoc walks them along these
        import_module(package).__all__ = names
    pdoc.pdoc("d2im", output_directory=options.out)
    print(f"{options.out / 'index.html'}: the reference")


if __name__ == "__main__":
    main()
