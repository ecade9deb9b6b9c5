"""metrics.csv: a row a step. It grows while a run trains, and is read beside it."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = "metrics.csv"
# Our header begins and ends so, the loss's terms in between.
FIRST, LAST = ["step", "loss"], ["learning_rate", "seconds"]


def write_records(path: Path, records: list[dict]) -> None:
    """Write a file of all records, with a column for whatever one of them has."""
    names = list(dict.fromkeys(name for record in records for name in record))
    _write(path, names, records, "w")


def append_records(out: Path, records: Iterable[dict]) -> None:
    """Add rows to a folder's metrics.csv, which begins with them where there is none.

    What its header does not name waits for the next checkpoint, which writes all anew.
    """
    path, names, records = Path(out) / FILE, [], list(records)
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            names = next(csv.reader(file), [])
    if not names:  # or a full disk has taken none
        return write_records(path, records)
    _write(path, names, records, "a")


def read_records(out: str | Path) -> list[dict]:
    """The records of a run, as dicts of numbers; of one that trains those so far.

    Raises: FileNotFoundError: there are none. ValueError: the file is damaged.
    """
    path = Path(out) / FILE
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]  # a row may be under way
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(whole.splitlines())
        ]
        return [{**row, "step": int(row["step"])} for row in rows]
    except (csv.Error, ValueError, LookupError, TypeError, OverflowError) as error:
        wrong = f"{path} is damaged: {type(error).__name__} {error}"
        raise ValueError(wrong) from error


def set_aside(out: Path) -> None:
    """Rename the rows of a run that was killed before it had a checkpoint."""
    path = out / FILE
    if path.is_file() and not (out / "training.json").exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            names = file.readline().strip().split(",")
        if names[:2] == FIRST and names[-2:] == LAST:
            os.replace(path, path.with_suffix(".killed.csv"))


def _write(path, names, records, mode):
    with open(path, mode, newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        if mode == "w":
            writer.writeheader()
        writer.writerows(records)
