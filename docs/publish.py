"""Give the project its public address: badges, links and Colab's copies follow.

    make publish ADDRESS=https://github.com/OWNER/NAME

The address stands in one place, `[project.urls]` of pyproject.toml. From it come the
badges of README.md and, where the address is GitHub's, colab/: the notebooks, each with
a cell before it that installs the package from the repository. Without an argument the
address that is there is taken again, as after a change of a notebook.
"""

import re
import shutil
import sys
import tomllib
from pathlib import Path
from urllib.parse import quote

import nbformat

ROOT = Path(__file__).parents[1]
BADGES = re.compile(r"<!-- badges -->\n(.*?)<!-- /badges -->", re.S)
FIRST = "00_quickstart.ipynb"
SET_UP = """# Colab alone: the package, with its models and what the notebooks need.
%pip install -q "d2im[notebooks] @ git+{address}"
from google.colab import output

output.enable_custom_widget_manager()  # for sliders and scenes"""


def repository(root: Path = ROOT) -> str:
    """Return the public address that pyproject.toml names, "" where there is none."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)["project"].get("urls", {}).get("Repository", "")


def in_colab(address: str, name: str) -> str:
    """Return where Colab opens the copy of a notebook; "" where it cannot.

    Args: address: of the repository; Colab reads GitHub's alone. name: of the notebook.
    """
    found = re.fullmatch(r"https://github\.com/([^/]+/[^/]+)", address)
    place = "https://colab.research.google.com/github/{}/blob/HEAD/colab/{}"
    return place.format(found[1], name) if found else ""


def badges(address: str) -> str:
    """Return README's badges: Binder's, and Colab's where it can read it."""
    if not address:
        return ""
    host, _, path = address.removeprefix("https://").partition("/")
    source = f"gh/{path}" if host == "github.com" else f"git/{quote(address, safe='')}"
    place = f"https://mybinder.org/v2/{source}/HEAD?urlpath=lab/tree/notebooks/{FIRST}"
    lines = [f"[![Binder](https://mybinder.org/badge_logo.svg)]({place})"]
    if place := in_colab(address, FIRST):
        picture = "https://colab.research.google.com/assets/colab-badge.svg"
        lines.append(f"[![Open in Colab]({picture})]({place})")
    return "\n".join(lines) + "\n"


def colab(address: str, path: Path) -> str:
    """Return a notebook with a set-up cell, its links leading to the repository.

    Args: address: of the repository. path: of a notebook in notebooks/.
    """
    notebook = nbformat.read(path, as_version=4)

    def absolute(match):
        if place := in_colab(address, match[1]) * ("/" not in match[1]):
            return f"]({place})"
        return f"]({address}/blob/HEAD/{match[1].removeprefix('../')})"

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            link = r"\]\((?!https?:|#)([^)\s]+)\)"
            cell.source = re.sub(link, absolute, cell.source)
    cell = nbformat.v4.new_code_cell(SET_UP.format(address=address), id="set-up")
    notebook.cells.insert(0, cell)
    return nbformat.writes(notebook) + "\n"


def publish(address: str, root: Path = ROOT) -> None:
    """Write the address, the badges and Colab's copies.

    Args: address: https://HOST/..., without an end such as .git or /.
    Raises: ValueError: another kind of address.
    """
    if not re.fullmatch(r"https://[\w.-]+(/[\w.~-]+)+(?<!\.git)", address):
        raise ValueError(f"an address is https://HOST/OWNER/NAME, not {address!r}")
    project, readme = root / "pyproject.toml", root / "README.md"
    text = project.read_text(encoding="utf-8")
    text = re.sub(r"\[project\.urls\]\n.*?\n\n", "", text, flags=re.S)
    urls = f'[project.urls]\nRepository = "{address}"\n\n[project.scripts]'
    project.write_text(text.replace("[project.scripts]", urls), encoding="utf-8")
    block = f"<!-- badges -->\n{badges(address)}<!-- /badges -->"
    text = BADGES.sub(lambda _: block, readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")
    shutil.rmtree(root / "colab", ignore_errors=True)
    if in_colab(address, FIRST):
        (root / "colab").mkdir()
        for path in sorted((root / "notebooks").glob("*.ipynb")):
            copy = colab(address, path)
            (root / "colab" / path.name).write_text(copy, encoding="utf-8")


if __name__ == "__main__":
    try:
        publish(*sys.argv[1:] or [repository()])
    except ValueError as error:
        sys.exit(str(error))
    print(f"README.md, pyproject.toml and colab/ say {repository()}")
