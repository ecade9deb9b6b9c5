"""Where files lie, how they are written (whole or not at all), how names are said."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

PACKAGE = Path(__file__).parents[1]  # models, lists and notebooks come along in it


def working_folder() -> Path:
    """The folder that data and reports go to.

    $D2IM_HOME; else the nearest one, from the current folder upward, that has the
    notebooks (Jupyter works in theirs); else the current one.
    """
    here = Path(os.environ.get("D2IM_HOME") or ".").resolve()
    if not os.environ.get("D2IM_HOME"):
        for folder in (here, *here.parents):
            if (folder / "notebooks" / "00_quickstart.ipynb").is_file():
                return folder
    return here


def write_whole(path: Path, fill: Callable[[BinaryIO], object]) -> None:
    """Let `fill` write a binary file, whole or not at all; make its folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            fill(file)
        os.replace(temporary, path)
    except OSError as error:  # of a full disk it names no file
        raise type(error)(f"{path} was not written: {error}") from error
    finally:
        if temporary.is_file():  # it is not where the folder itself is none
            temporary.unlink()


def check_writable(path: Path) -> None:
    """Tell before any work that a file cannot be written.

    Raises: OSError: its name is a folder's, or its folder cannot be made or is locked.
    """
    folder = next(place for place in path.absolute().parents if place.exists())
    if path.is_dir():
        wrong = "it is a folder"
    elif not folder.is_dir():
        wrong = f"{folder} is no folder"
    elif not os.access(folder, os.W_OK | os.X_OK):
        wrong = f"{folder} may not be written to"
    else:
        return
    raise OSError(f"{path} cannot be written: {wrong}")


def one_line(text: object) -> str:
    """Return text on one line, without what moves a cursor or turns a direction."""
    text = str(text).encode("utf-8", "backslashreplace").decode()  # names in bytes
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
