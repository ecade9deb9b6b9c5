"""ShapeNet, of many categories and in parallel, by the readers; docs/shapenet.md."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from . import readers
from .dataset import (
    INDEX_COLUMNS,
    Effort,
    drop_stale,
    keep_settings,
    read_index,
    safe_id,
    unlisted_rows,
    work_through,
)
from .locks import hold

if TYPE_CHECKING:
    from collections.abc import Sequence

# The thirteen of Choy et al. (3D-R2N2), which DISN and Occupancy Networks have, too.
CATEGORIES = {
    "airplane": "02691156",
    "bench": "02828884",
    "cabinet": "02933112",
    "car": "02958343",
    "chair": "03001627",
    "display": "03211117",
    "lamp": "03636649",
    "speaker": "03691459",
    "rifle": "04090263",
    "sofa": "04256520",
    "table": "04379243",
    "phone": "04401088",
    "watercraft": "04530566",
}
VIEWS = {"disn": 36, "occnet": 24}
MOST_POINTS = 100_000  # of an example; DISN's have 32,768


def prepare_shapenet(
    root: str | Path,
    out: str | Path,
    *,
    layout: str,
    split: str,
    categories: str | Sequence[str] = "all",
    size: int = 224,
    effort: Effort | None = None,
    **options,
) -> list[dict]:
    """Turn ShapeNet, as others published it, into example files.

    As `prepare`: shapes are read side by side, each in a process of its own; one that
    is missing, damaged or fits none of its views has a row that says why. A call that
    was stopped goes on where it was; what failed is tried again.

    Args: root: folder of the layout, "disn" or "occnet", see `readers.read_disn` and
            `readers.read_occnet`. out: folder for the examples and `index.csv`.
        split: whose lists are read, and the one in the index.
        categories: names or numbers of `CATEGORIES`; "all": those that have a list.
        size: pixels that pictures are brought to.
        effort: workers, time and memory. options: of the reader: views, yaw, misfit;
            variant and iso of "disn", choy of "occnet".
    Returns: The rows of the index that belong to the lists.
    Raises: ImportError: no h5py for "disn". FileNotFoundError: a list is missing.
        ValueError: an unknown layout, category or option, or `out` holds examples
        made otherwise. OSError: `out` cannot be written, or its disk is full.
    """
    if layout not in VIEWS:
        raise ValueError(f"layout must be one of {', '.join(VIEWS)}, not {layout!r}")
    own = {"disn": {"variant", "iso"}, "occnet": {"choy"}}[layout]
    options = {name: value for name, value in options.items() if value is not None}
    if wrong := options.keys() - {"views", "yaw", "misfit"} - own:
        raise ValueError(f"layout {layout} has no option {', '.join(sorted(wrong))}")
    if layout == "disn":
        readers.demand_h5py()
    root, out, effort = Path(root), Path(out), effort or Effort()
    lists = _lists(root, layout, split, categories)
    options = {"views": VIEWS[layout], "yaw": readers.YAW, "size": size} | options
    if min(options["views"], size) < 1:
        wrong = f"got {options['views']} and {size}"
        raise ValueError(f"views and size must be 1 or more, {wrong}")
    names = {
        safe_id(f"{number}_{name}"): (family, number, name)
        for family, (number, path) in lists.items()
        for name in readers.read_list(path)
    }
    with hold(out, "preparation") as alone:
        keep_settings(out / "settings.json", _settings(layout, options))
        if alone:
            drop_stale(out)
        known = {row["id"]: row for row in read_index(out)}
        known |= unlisted_rows(out, known)
        jobs = []
        for name, (family, *place) in names.items():
            row, path = known.get(name, {}), out / f"{name}.npz"
            done = row.get("status") == "ok" and row["split"] == split
            if not done or not path.is_file():
                item = dict.fromkeys(INDEX_COLUMNS, "")
                item |= {"id": name, "family": family, "split": split}
                jobs.append((item, path, layout, root, place, options))
        need = 30 * MOST_POINTS + 12 * options["views"] * size**2  # bytes
        work_through(out, known, jobs, _make, split, need, effort)
    return [known[name] for name in names]


def _settings(layout, options):
    """What settings.json says: as `write_set`'s, so that a folder of those goes on."""
    made = {name: options[name] for name in ("views", "size", "yaw")}
    made["poses"] = "as stored"
    usual = {"layout": "disn", "variant": "easy", "iso": 0, "misfit": readers.MISFIT}
    for name, value in ({"layout": layout} | options).items():
        if name not in made and value != usual.get(name):
            made[name] = name == "choy" or value  # of a folder, that there is one
    return made


def _make(row, path, layout, root, place, options):
    """Read one shape and write its example; return its row."""
    read = {"disn": readers.read_disn, "occnet": readers.read_occnet}[layout]
    category, name = place
    only = {f"{category}_{name}"}
    ((_, example),) = read(root, category, row["split"], only=only, **options)
    if isinstance(example, Exception):
        raise example
    return readers.write_reading(path, row | {"status": "ok"}, example)


def _lists(root, layout, split, categories):
    """The number and the list's path of each category, by name."""
    given = [categories] if isinstance(categories, str) else list(categories)
    numbers = {number: name for name, number in CATEGORIES.items()}
    chosen = [numbers.get(name, name) for name in given]
    if given == ["all"]:
        chosen = list(CATEGORIES)
    if unknown := [name for name in chosen if name not in CATEGORIES]:
        known = ", ".join(CATEGORIES)
        raise ValueError(f"no category {', '.join(unknown)}: all, or of {known}")
    lists = {}
    for name in chosen:
        number = CATEGORIES[name]
        if layout == "disn":
            lists[name] = number, root / "lists" / f"{number}_{split}.lst"
        else:
            lists[name] = number, root / number / f"{split}.lst"
    there = {name: own for name, own in lists.items() if own[1].is_file()}
    if not there or (given != ["all"] and len(there) < len(lists)):
        missing = next(path for name, (_, path) in lists.items() if name not in there)
        raise FileNotFoundError(f"{missing} is missing: --root and --split name it")
    return there


def summary(rows: Sequence[dict]) -> str:
    """A line a category: how many examples, failures and shapes with fewer views."""
    lines = []
    for family in dict.fromkeys(row["family"] for row in rows):
        own = [row for row in rows if row["family"] == family]
        count = Counter(row["status"] for row in own)
        fewer = sum(row["status"] == "ok" and row["reason"] != "" for row in own)
        line = f"{family:10} {count['ok']:6,} examples"
        failed = [row["id"] for row in own if row["status"] != "ok"]
        if fewer:
            line += f", {fewer:,} of them with views left out"
        if failed:
            more = ", ..." if len(failed) > 3 else ""
            line += f", {len(failed):,} failed ({', '.join(failed[:3])}{more})"
        lines.append(line)
    if absent := [
        name for name in CATEGORIES if name not in {r["family"] for r in rows}
    ]:
        lines.append(f"not among them: {', '.join(absent)}")
    return "\n".join(lines)
