"""What a notebook's training does, in the terminal, while `run` waits for it.

The rows come from the newest metrics.csv below the notebook's folder, which grows while
a network trains.
"""

from __future__ import annotations

import csv
import shutil
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from .pages import duration

if TYPE_CHECKING:
    from collections.abc import Iterator

RENEWED, REPEATED = 1.0, 60.0  # seconds between lines: of a terminal, of a log
RECENT = 50  # steps that tell the rate


@contextmanager
def shown(name: str, folder: Path, steps: int = 0) -> Iterator[None]:
    """Say every few seconds how far the training in a folder is, as long as it lasts.

    Args: name: what a line begins with. folder: of the notebook's files.
        steps: how many each network will train; 0 where that is not known.
    """
    stop, begun = Event(), time.time()
    renews = sys.stdout.isatty()

    def watch():
        before = ""
        while not stop.wait(RENEWED if renews else REPEATED):
            with suppress(OSError, ValueError, LookupError):  # a row under way
                line = progress(folder, steps, begun)
                if line and line != before:
                    text = f"{name:24}{line}"
                    width = shutil.get_terminal_size().columns - 1  # a longer one wraps
                    text = f"\r{text:{width}.{width}}" if renews else f"\n{text}"
                    print(text, end="", flush=True)
                    before = line

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if renews:  # the line that follows stands where the progress stood
            print(f"\r{name:24}", end="", flush=True)


def progress(folder: Path, steps: int = 0, begun: float = 0.0) -> str:
    """One line on the newest training below a folder: step, loss, rate, time left.

    Args: begun: time of the clock before which a file is of an earlier run.
    Returns: "" where nothing trains.
    """
    times = {path: path.stat().st_mtime for path in folder.rglob("metrics.csv")}
    # Not of a checkpoint that is being written.
    new = [p for p in times if times[p] >= begun and p.parent.name[:1] != "."]
    if not new:
        return ""
    newest = max(new, key=times.get)
    with open(newest, encoding="utf-8") as file:
        names = next(csv.reader([file.readline()]))
    if "step" not in names or "seconds" not in names:
        return ""
    rows = [dict(zip(names, row, strict=False)) for row in csv.reader(_last(newest))]
    took = [float(row["seconds"]) for row in rows]
    if not took:
        return ""
    each = max(sum(took) / len(took), 1e-9)
    step = int(rows[-1]["step"])
    total = f" of {steps:,}" if steps else ""
    left = f", {duration((steps - step) * each)} left" if steps > step else ""
    rate = f"{1 / each:.3g} steps/s" if each < 1 else f"{each:.3g} s a step"
    loss = f"loss {float(rows[-1]['loss']):.4g}"
    return f"{newest.parent.name}: step {step:,}{total}, {loss}, {rate}{left}"


def _last(path):
    """The last whole lines of a file but its first."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 300 * RECENT))
        text = file.read().decode("utf-8")
    return text[: text.rfind("\n")].split("\n")[1:][-RECENT:]
