"""One shape = one example file; `prepare` writes them, `ShapeDataset` reads them.

An example is an uncompressed npz, whose members load one by one:

    points (P, 3) f4, sdf (P,) f4, gradients (P, 3) f2, weights (P,) f4,
    base_sdf (P,) f4 where the coarse body is known or was made,
    and per view k: image_k (3, H, W) u1, mask_k (H, W) u1, normals_k (3, H, W) f2,
    depth_k (H, W) f2, camera_k (16,) f8; and row, its row of the index as JSON.

An example that came from elsewhere (`readers`) also holds similarity (5,) f8, which
brought it into the world, estimated, the names of members that its source lacks, and
left_out, where views did not fit.
Beside the examples stands `index.csv`, one row a shape, also for those that failed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import math
import os
import re
import shutil
import struct
import sys
import time
import unicodedata
import zipfile
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from ..camera import Camera, random_camera
from ..sampling import sample_sdf, weighted_draw
from .files import write_whole
from .isolation import close_idle, end_if_orphaned, fair_memory_gb, run_isolated
from .locks import hold

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    import trimesh
    from torch import Tensor

# What every index has, and what tells whether a mesh file has changed since: its size,
# its time in ns and a hash of its content. Indexes of before have no such columns.
NEEDED_COLUMNS = (
    "id split family seed source up yaw faces seconds status reason".split()
)
STATE_COLUMNS = ["source_bytes", "source_time", "source_hash"]
INDEX_COLUMNS = [*NEEDED_COLUMNS, *STATE_COLUMNS]
# Of mesh files alone: how openings and hollows were taken, what was done, and how the
# coarse body was made.
REPAIR_COLUMNS = ["caps", "interior", "repair", "coarse"]
COARSE = "none", "levels"
CREDIT_COLUMNS = ["title", "creator", "licence", "library"]  # of a furniture library
REPAIRS = {"caps": ("auto", "close", "keep"), "interior": ("fill", "keep")}
BEFORE = {"caps": "close", "interior": "keep"}  # where these columns are missing
LONGEST_ID = 180  # bytes; a file's name may have 255, a temporary one's ends among them
# Not in an id: controls, what is no UTF-8, what file systems refuse; at the start what
# hides a file, is taken for an option or makes a spreadsheet compute; Windows' devices.
BAD_IN_ID = re.compile(
    r"""[\0-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029<>:"/\\|?*]|^[-.=+@]"""
    r"""|^(?=(con|prn|aux|nul|(com|lpt)[0-9¹²³])(\.|$))""",
    re.IGNORECASE,
)
# A view's members and the type they are stored in. Facet normals or 8 bits would drown
# the Laplacian target, hence half precision for the normals.
VIEW_TYPES = {"image": "u1", "mask": "u1", "normals": "f2", "depth": "f2"}
RECOLOR = 1.6  # gamma of a channel, at most
DRAWN = "points", "sdf", "gradients", "base_sdf", "weights"  # members by point


@dataclass(frozen=True)
class ExampleConfig:
    """Settings of examples; the shapes apart."""

    count: int = 100_000  # points
    views: int = 12  # pictures
    size: int = 224  # of a picture's side, pixels
    # Keyword ranges of `camera.random_camera`, or a list of Cameras.
    poses: dict | list | None = None
    backgrounds: bool = False  # draw one behind each picture; the rest stays the same
    textures: bool = False  # of mesh files; else a face has its texture's mean colour
    # Leave the relief out: the coarse body is the shape, its true map is 0.
    plain: bool = False
    seed: int = 0  # of points, views and lights; with the id it fixes a new example
    up: str = "y"  # of mesh files, see `load_mesh`
    yaw: float = 0.0  # degrees, likewise
    caps: str = "auto"  # likewise
    interior: str = "fill"  # likewise; what cannot be seen is inside
    coarse: str = "none"  # of mesh files: "levels" takes their relief, see `coarse`

    def __post_init__(self):
        check_repair(self.caps, self.interior)
        if self.coarse not in COARSE:
            known = ", ".join(COARSE)
            raise ValueError(f"coarse must be one of {known}, not {self.coarse!r}")
        if min(self.count, self.views, self.size) < 1:
            wrong = f"got {self.count}, {self.views} and {self.size}"
            raise ValueError(f"count, views and size must be 1 or more, {wrong}")

    def stored(self) -> dict:
        """The settings as a data folder's settings.json holds them."""
        about = {"count": self.count, "views": self.views, "size": self.size}
        about |= {"poses": self.poses, "backgrounds": bool(self.backgrounds)}
        if isinstance(self.poses, list):
            about["poses"] = [camera.to_array().tolist() for camera in self.poses]
        # older folders do not name these
        about |= {"plain": True} if self.plain else {}
        about |= {"textures": True} if self.textures else {}
        return about | self.of_meshes()

    def of_meshes(self) -> dict:
        """What the rows of mesh files say of these settings, but for the turn."""
        repair = {"caps": self.caps, "interior": self.interior}
        repair = repair if repair != BEFORE else {}
        return repair | ({"coarse": self.coarse} if self.coarse != "none" else {})


@dataclass(frozen=True)
class Effort:
    """How examples are made side by side; what they hold does not depend on it."""

    workers: int = 1  # processes
    progress: bool = True  # show a bar
    # Seconds that a shape may take; None works in this process, without protection.
    timeout: float | None = 600.0
    memory_gb: float | None = None  # that it may use (Linux); None: a share of all

    def __post_init__(self):
        for name in ("timeout", "memory_gb"):
            if (limit := getattr(self, name)) is not None and not limit > 0:
                raise ValueError(f"{name} must be above 0, got {limit}")


def check_repair(caps: str, interior: str) -> None:
    """Refuse what is no way to take a mesh's openings and hollows.

    Raises: ValueError: it says which there are.
    """
    for name, given in {"caps": caps, "interior": interior}.items():
        if given not in REPAIRS[name]:
            known = ", ".join(REPAIRS[name])
            raise ValueError(f"{name} must be one of {known}, not {given!r}")


def make_example(
    detailed: trimesh.Trimesh,
    coarse: trimesh.Trimesh | None,
    rng: np.random.Generator,
    config: ExampleConfig | None = None,
    **changes,
) -> dict[str, np.ndarray]:
    """Sample and render one shape.

    Args: detailed: world frame. rng: of points, views and lights.
        coarse: the same shape without relief, or None where it is not known; where
            it has none, `detailed` itself.
        config, changes: ExampleConfig, by default the usual one, but for `changes`.
    Returns: dict of arrays, see the module's docstring.
    Raises: ValueError: plain, of a shape whose coarse body is not known.
    """
    from .rendering import Renderer, random_background  # absent where one only trains

    config = replace(config or ExampleConfig(), **changes)
    if config.plain:
        if coarse is None:
            wrong = "the body without relief is known of our shapes alone"
            raise ValueError(f"{wrong}; of mesh files, coarse='levels' makes one")
        detailed = coarse
    example = sample_sdf(detailed, config.count, rng)._asdict()
    example["gradients"] = example["gradients"].astype("f2")
    if coarse is detailed:
        example["base_sdf"] = example["sdf"]
    elif coarse is not None:
        from .coarse import coarse_distance

        base_sdf = coarse_distance(coarse, example["points"], example["sdf"])
        example["base_sdf"] = base_sdf.astype("f4")
    renderer = Renderer(detailed, config.textures)
    for k, own in enumerate(rng.spawn(config.views)):
        if isinstance(config.poses, list):
            camera = config.poses[k % len(config.poses)]
        else:
            camera = random_camera(rng, config.size, **(config.poses or {}))
        behind = random_background(camera.size, own) if config.backgrounds else None
        view = renderer.view(camera, rng, behind)._asdict()
        view["image"] = np.round(view["image"] * 255)
        for name, kind in VIEW_TYPES.items():
            example[f"{name}_{k}"] = view[name].astype(kind)
        example[f"camera_{k}"] = camera.to_array()
    return example


def write_example(path: str | Path, example: dict[str, np.ndarray]) -> None:
    """Write an example whole or not at all; not in a worker whose run was killed.

    Raises: ValueError: a number in it is not finite. OSError: it cannot be written.
    """
    _demand_finite(path, example)
    end_if_orphaned()
    write_whole(Path(path), lambda file: np.savez(file, **example))


def read_example(
    path: str | Path,
    names: Iterable[str] | None = None,
    known: Iterable[str] = (),
) -> dict[str, np.ndarray]:
    """Read an example, or some of its members.

    Args: path of an npz file, names of members (None: all); known: those that were
        read before and are not looked at for damage again. Returns: dict of arrays.
    Raises: FileNotFoundError; ValueError for a damaged file, a missing member, or a
        number that is not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no example {path}")
    names = names and list(names)
    with open(path, "rb") as file:  # one: another may take its place meanwhile
        try:
            # Of a few members the disk reads no others.
            data = np.memmap(file, mode="c") if names else np.fromfile(file, np.uint8)
            with zipfile.ZipFile(file) as archive:
                infos = {info.filename[:-4]: info for info in archive.infolist()}
            example = {
                name: _member(data, infos[name], name in known)
                for name in names or infos
            }
        except KeyError as error:
            raise ValueError(f"{path} lacks a member of an example: {error}") from error
        except Exception as error:  # of damage zipfile and numpy raise anything
            wrong = f"{path} is damaged, delete it and prepare again"
            raise ValueError(wrong) from error
    new = {name: array for name, array in example.items() if name not in known}
    _demand_finite(path, new, ": delete it and prepare again")
    return example


def member_names(path: str | Path) -> list[str]:
    """The names of an example's members, from the end of its file alone.

    Raises: FileNotFoundError; ValueError for a damaged file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [info.filename[:-4] for info in archive.infolist()]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no example {path}") from error
    except Exception as error:  # of damage zipfile raises anything
        wrong = f"{path} is damaged, delete it and prepare again"
        raise ValueError(wrong) from error


def _view_count(names):
    """How many views an example of such members has; names may have gaps."""
    numbers = {name.rpartition("_")[2] for name in names}
    return max(1, sum(number.isdigit() for number in numbers))


def _demand_parts(path, example, view, alone=False):
    """Refuse an example that lacks a part, or whose parts do not fit each other.

    alone: only this view has been read.
    """
    count = max(1, len(np.atleast_1d(example.get("sdf", 0))))
    wanted = {"sdf": (count,), "points": (count, 3), "gradients": (count, 3)}
    wanted["weights"] = (count,)
    if "base_sdf" in example:
        wanted["base_sdf"] = (count,)
    views = _view_count(example)
    if view is not None and not alone and not 0 <= view < views:
        raise ValueError(f"{path} has {views} views, and no view {view}")
    for k in [view] if alone else range(views):
        size = np.shape(example.get(f"mask_{k}", ()))[:1] * 2
        own = zip(VIEW_TYPES, ((3, *size), size, (3, *size), size), strict=True)
        wanted |= {f"{name}_{k}": shape for name, shape in own} | {f"camera_{k}": (16,)}
    for name, shape in wanted.items():
        if name not in example:
            raise ValueError(f"{path} lacks a member of an example: {name!r}")
        array = example[name]
        if array.shape != shape or array.dtype.kind not in "buif":
            wrong = f"{name} is {array.dtype} {array.shape}, not numbers {shape}"
            raise ValueError(f"{path} is no example ({wrong}): prepare it again")


def _demand_finite(path, example, advice=""):
    for name, array in example.items():
        if array.dtype == np.float16:  # by its bits: 20 times as fast
            finite = (array.view("u2") & 0x7FFF).max(initial=0) < 0x7C00
        else:
            finite = array.dtype.kind != "f" or np.isfinite(array).all()
        if not finite:
            raise ValueError(f"{path}: {name} holds NaN or infinite numbers{advice}")


def _member(data, info, is_known):
    """A member of an uncompressed npz as a view of the file's bytes.

    numpy reads each one through several layers, and its header as Python source: for an
    example's fifty members that takes longer than reading, which training waits for.
    """
    name, extra = struct.unpack_from("<HH", data, info.header_offset + 26)
    start = info.header_offset + 30 + name + extra
    body = memoryview(data)[start : start + info.file_size]
    if info.compress_type or not (is_known or zlib.crc32(body) == info.CRC):
        raise zipfile.BadZipFile(info.filename)
    return npy_array(body)


def npy_array(body: bytes | memoryview) -> np.ndarray:
    """The array that a member of an npz holds, in npy's format; a view, read-only.

    Raises: errors of any kind where it is none, before memory is taken.
    """
    end = 10 + struct.unpack_from("<H", body, 8)[0]
    shape, fortran, kind = _npy_header(bytes(body[:end]))
    return np.frombuffer(body[end:], kind).reshape(shape, order="CF"[fortran])


@lru_cache(1000)
def _npy_header(raw):
    """(shape, Fortran order, type) of an array in npy's format, version 1."""
    file = io.BytesIO(raw)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("a later version of npy")
    return np.lib.format.read_array_header_1_0(file)


def prepare(
    source: str | Path | Iterable | Callable,
    out: str | Path,
    config: ExampleConfig | None = None,
    *,
    split: str = "train",
    workers: int = 1,
    progress: bool = True,
    timeout: float | None = 600.0,
    memory_gb: float | None = None,
    **changes,
) -> list[dict]:
    """Turn shapes into example files.

    A shape that fails, crashes, hangs or eats memory does not stop the others: its row
    in `index.csv` says why. Finished examples are kept, so that a call that was stopped
    or killed goes on; one whose mesh file has changed since, or is turned otherwise
    now, is made again. A mesh file keeps the id that it was given first. What the
    folder holds of no shape any more is named at the end, never deleted.
    `joblib.parallel_config(backend="dask")` around it: a cluster.

    Args: source: (family, seed) pairs, or a folder of meshes, or a list of mesh paths,
            or of dicts that rows begin with, see `sweethome.listed_items`, or a
            function that gives these, called once `out` is known to take them.
        out: folder for the examples and `index.csv`.
        split: recorded in the index: "train", "val", "test" or "unseen".
        config, changes: ExampleConfig, by default the usual one, but for `changes`
            (`prepare(..., views=4)`); `coarse="levels"` makes the coarse bodies of
            mesh files, which L_rel needs. A folder made before there were `caps` and
            `interior` goes on as it is, unless `changes` name them or `config` has
            others than the usual ones, which are refused there.
        workers: processes. progress: show a bar.
        timeout: seconds that a shape may take; None works in this process, without
            protection. memory_gb: that it may use (Linux); None: a share of the
            machine's, see `fair_memory_gb`; math.inf: no limit.
    Returns: the rows of the index that belong to `source`, as dicts.
    Raises: FileNotFoundError: no such folder. ValueError: it has no mesh, `out` holds
        examples made with other settings or a damaged index, another call writes to
        it, count, views or size is below 1, timeout or memory_gb is not above 0.
        OSError: `out` cannot be written, or its disk is full.
    """
    config, out = replace(config or ExampleConfig(), **changes), Path(out)
    effort = Effort(workers, progress, timeout, memory_gb)
    with hold(out, "preparation") as alone:
        usual = all(getattr(config, n) == getattr(ExampleConfig, n) for n in REPAIRS)
        if usual and not REPAIRS.keys() & changes.keys():
            config = _as_before(config, out)
        return _prepare(source, out, config, split, effort, alone)


def _prepare(source, out, config, split, effort, alone):
    """`prepare` in a folder that is held; `alone`: for certain."""
    known = {row["id"]: row for row in read_index(out)}
    stored = unlisted_rows(out, known)
    rows = [*stored.values(), *known.values()]
    settings = out / "settings.json", config.stored(), config.poses
    if callable(source):  # it writes: only into a folder that takes these examples
        keep_settings(*settings)
        source = source()
    items = _items(source, config.up, config.yaw, rows, config.of_meshes())
    keep_settings(*settings)
    jobs = {}
    for item in items:
        name, path = item["id"], out / f"{item['id']}.npz"
        if name not in known and name in stored:
            known[name] = {**stored[name], "split": item.get("split", split)}
        if not _is_made(item, known.get(name), path):
            jobs[name] = item, path, config
    if alone:
        drop_stale(out)
    need = 30 * config.count + 12 * config.views * config.size**2  # bytes
    work_through(out, known, jobs.values(), _make_one, split, need, effort)
    if left := _leftovers(out, known):
        print(left, file=sys.stderr)
    made = [known[item["id"]] for item in items]
    asked = [item.get("split") or split for item in items]
    if other := [r for r, s in zip(made, asked, strict=True) if r["split"] != s]:
        there = f"{other[0]['id']} in {other[0]['split']}"
        kept = f"{out}: {len(other)} made before keep their split ({there}"
        print(f"{kept}{', ...' * (len(other) > 1)})", file=sys.stderr)
    return made


def drop_stale(out: Path) -> None:
    """Delete what a killed run left half written in a folder that is held."""
    for pattern in (".*.npz", ".index.csv", ".settings.json"):
        for stale in out.glob(f"{pattern}.[0-9]*.tmp"):
            stale.unlink(missing_ok=True)


def unlisted_rows(out: Path, known: dict[str, dict]) -> dict[str, dict]:
    """The rows, by id, of the examples that a folder's index does not list."""
    files = {path.stem: path for path in out.glob("*.npz")}
    return {name: _stored_row(files[name]) for name in files.keys() - known.keys()}


def work_through(
    out: Path,
    known: dict[str, dict],
    jobs: Collection[tuple],
    make: Callable,
    split: str,
    need: float,
    effort: Effort,
) -> None:
    """Make examples side by side, and add their rows to `known` and the index.

    Args: out: folder, held. known: its rows by id.
        jobs: a tuple an example: what is known of its row, and more arguments.
        make: function of a module, of a row of the index and those arguments, that
            writes an example and returns its row.
        split: for the index. need: bytes that an example takes.
    Raises: OSError: the disk is full.
    """
    from joblib import Parallel, delayed, effective_n_jobs  # absent where one trains

    timeout, memory_gb = effort.timeout, effort.memory_gb
    if memory_gb is None:
        memory_gb = fair_memory_gb(effective_n_jobs(effort.workers))
    if jobs:
        _demand_room(out, need)
    # Threads: the work is done in processes of their own, see `isolation`.
    parallel = {"return_as": "generator_unordered", "prefer": "threads"}
    results = Parallel(effort.workers, **parallel)(
        delayed(_prepare_one)(make, *job, timeout=timeout, memory_gb=memory_gb)
        for job in jobs
    )
    hide = not effort.progress
    bar = tqdm(results, total=len(jobs), desc="prepare", disable=hide)

    def finished():
        for row in bar:
            yield {**row, "split": row["split"] or split}
            if row["status"] != "ok":
                _demand_room(out, need)

    try:
        record(out, known, finished())
    finally:
        close_idle()


def _as_before(config, out):
    """The settings, hollows and openings as in a folder that does not name these."""
    if not any(out.glob("*.npz")):  # of no example
        return config
    try:
        there = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    except FileNotFoundError:  # deleted, or none yet: its rows tell
        made = [row for row in read_index(out) if row["source"]]
        there = {} if any(not row.get("interior") for row in made) else None
    except (OSError, ValueError, RecursionError):  # `keep_settings` says it
        return config
    made_before = isinstance(there, dict) and "interior" not in there
    return replace(config, **BEFORE) if made_before else config


def _demand_room(out, need):
    """Refuse to go on where an example finds no room: all others would fail as well."""
    if (free := shutil.disk_usage(out).free) < need:
        full = f"{out}: {free / 1e6:.1f} MB free, an example takes {need / 1e6:.1f} MB"
        raise OSError(f"{full}; make room and prepare again: what is made is kept")


def _leftovers(out, rows):
    """A line that names what a data folder holds of no shape any more, or nothing."""
    files = {path.stem for path in out.glob("*.npz")}
    made = {name for name, row in rows.items() if row["status"] == "ok"}
    sources = {name: rows[name]["source"] for name in made}
    gone = {name for name, path in sources.items() if path and not os.path.exists(path)}
    kinds = {
        "example files that index.csv does not list": files - rows.keys(),
        "rows without their example file": made - files,
        "examples whose mesh file is gone": gone & files,
    }
    told = []
    for kind, names in kinds.items():
        if names:
            some = ", ".join(sorted(map(_printable, names))[:3])
            more = ", ..." if len(names) > 3 else ""
            told.append(f"{len(names)} {kind} ({some}{more})")
    return f"{out} also holds, and keeps, " + "; ".join(told) if told else ""


def smoke_set(folder: str | Path, size: int = 112, seed: int = 0) -> Path:
    """Prepare four small shapes, for a notebook that was given no data.

    Args: folder for the examples, size in pixels of their views, seed of the shapes
    (from 10,100 on no training set has them). Returns: the folder.
    """
    pairs = [(family, seed) for family in ("chair", "table", "cabinet", "sofa")]
    quick = {"count": 20_000, "views": 2, "timeout": None, "progress": False}
    prepare(pairs, folder, size=size, **quick)
    return Path(folder)


def read_index(folder: str | Path) -> list[dict]:
    """The rows of a data folder's index.csv as dicts; none where it is missing.

    Raises: ValueError: it is damaged, lacks a column, or an id leads elsewhere.
    """
    path = Path(folder) / "index.csv"
    if not path.is_file():
        return []
    advice = "mend it, or delete it and prepare again: examples that are made are kept"
    try:
        # -sig: spreadsheets put a mark of the encoding first
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            rows, columns = list(reader), reader.fieldnames or []
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no table ({error}): {advice}") from error
    if lacking := [name for name in NEEDED_COLUMNS if name not in columns]:
        wrong = f"{path} lacks the columns {', '.join(lacking)} between commas"
        raise ValueError(f"{wrong}: {advice}")
    for number, row in enumerate(rows, 1):
        if None in row or None in row.values():
            wrong = f"{path}: row {number} has not {len(columns)} columns"
            raise ValueError(f"{wrong}, as if cut short: {advice}")
        if Path(name := row["id"]).name != name or "\0" in name:
            wrong = f"{path}: row {number} has an id that names no file here"
            raise ValueError(f"{wrong}: {name[:40]!r}; {advice}")
    return rows


def write_index(folder: str | Path, rows: Iterable[dict]) -> None:
    """Write index.csv whole, sorted by id; columns that others have added stay."""
    rows = sorted(rows, key=lambda row: row["id"])
    columns = dict.fromkeys(itertools.chain(INDEX_COLUMNS, *rows))
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, columns)
    writer.writeheader()
    writer.writerows(rows)
    data = table.getvalue().encode(errors="backslashreplace")
    write_whole(Path(folder) / "index.csv", lambda file: file.write(data))


def record(folder: str | Path, known: dict[str, dict], rows: Iterable[dict]) -> None:
    """Add rows to the index as they come: to the dict `known` by id, and on disk."""
    due = time.monotonic() + 1
    try:
        for row in rows:
            known[row["id"]] = row
            if (start := time.monotonic()) > due:
                write_index(folder, known.values())
                # A long index takes time to write: a twentieth of the whole at most.
                due = 21 * time.monotonic() - 20 * start + 1
    finally:
        write_index(folder, known.values())


def keep_settings(
    path: str | Path, settings: dict, poses: dict | list | None = None
) -> None:
    """Write the settings of a folder's examples, or refuse to mix in other ones.

    Args: poses: as older folders have them in words, by their repr.
    """
    if path.is_file() and any(path.parent.glob("*.npz")):
        try:
            there = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            wrong = f"{path} is damaged ({error})"
            remedy = "if its examples are made with the settings given now, delete it"
            raise ValueError(f"{wrong}: {remedy}") from error
        given = json.loads(json.dumps(settings, default=_plain))
        if there not in (given, given | {"poses": repr(poses)}):
            made = f"{path.parent} holds examples made with {there!s:.500}, not {given}"
            raise ValueError(f"{made}: choose another folder, or delete this one")
        return  # as it is: a training that goes on compares it
    text = json.dumps(settings, indent=1, default=_plain).encode()
    write_whole(path, lambda file: file.write(text))


def _plain(number):
    """A scalar of numpy's as JSON takes it."""
    if not isinstance(number, np.generic):
        raise TypeError(f"{number!r} is not JSON")
    return number.item()


def _stored_row(path):
    """The row that an example carries; an example that cannot be read has failed."""
    row = dict.fromkeys(INDEX_COLUMNS, "")
    try:
        with zipfile.ZipFile(path) as archive:  # of a thousand files, not all bytes
            info = archive.getinfo("row.npy")
            if info.compress_type or info.file_size > 1e6:
                raise ValueError("no row")
            found = np.lib.format.read_array(io.BytesIO(archive.read(info)))
        found = json.loads(str(found))
        known = (*row, *REPAIR_COLUMNS, "stretch", *CREDIT_COLUMNS)
        row |= {key: str(found[key]) for key in known if key in found}
        if not row["status"]:
            raise ValueError("no status")
    except Exception:  # of any kind; what became of the shape stands in its row
        row |= {"status": "failed", "reason": f"{path} is damaged or no example"}
    return row | {"id": path.stem}


def _is_made(item, row, path):
    """Whether an example stands for an item as it is now; note its file's new time."""
    if row is None or row["status"] != "ok" or not path.is_file():
        return False
    # A column that an older index lacks is as the folder's settings have it.
    if any(str(value) != row.get(key, str(value)) for key, value in item.items()):
        return False
    source = item.get("source", "")
    if not os.path.isfile(source):
        return True
    stat = os.stat(source)
    if not row.get("source_hash"):  # made before that was recorded
        return stat.st_mtime <= path.stat().st_mtime
    if str(stat.st_size) == row["source_bytes"]:
        if str(stat.st_mtime_ns) == row["source_time"]:
            return True
        if _content_hash(source) == row["source_hash"]:
            row["source_time"] = str(stat.st_mtime_ns)
            return True
    return False


def _source_state(path):
    """The columns that tell whether a mesh file has changed since."""
    stat = os.stat(path)
    state = stat.st_size, stat.st_mtime_ns, _content_hash(path)
    return dict(zip(STATE_COLUMNS, state, strict=True))


def _content_hash(path):
    """A hash of a file; of one that cannot be read an empty one, equal to none."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").hexdigest()[:32]
    except OSError:
        return ""


def _printable(text):
    """A text with what UTF-8 cannot say, such as a byte of a file's name, spelled."""
    return text.encode(errors="backslashreplace").decode()


def safe_id(name: str) -> str:
    """Turn a name into an id, which names a file on every system.

    Args: name: of any characters and length. Returns: itself where it is plain, else a
        cleaned and shortened one with a number of the whole.
    """
    clean = BAD_IN_ID.sub("_", name) or "_"
    if clean == name and len(name.encode()) <= LONGEST_ID:
        return name
    number = zlib.crc32(name.encode(errors="surrogatepass"))
    short = clean.encode()[: LONGEST_ID - 9].decode(errors="ignore")
    return f"{short}-{number:08x}"


def _settle_ids(items, rows):
    """Give each item the id of its row, or one that no other item and row has."""

    def key(name):  # Chair and chair, or two spellings of an accent, may be one file
        return unicodedata.normalize("NFC", name).casefold()

    def shape(row):
        source = _printable(row.get("source", ""))
        return source or (str(row.get("family")), str(row.get("seed")))

    held = {key(row["id"]): row for row in rows}
    plain = (row for row in rows if Path(row["id"]).name == row["id"])
    known = {shape(row): row["id"] for row in plain}
    for item in items:
        own = shape(item)
        if own not in known:
            for name in _names(item):
                if (row := held.get(key(name), item)) is item:
                    break
                if row and _takes_over(item, row):
                    name = row["id"]
                    break
            known[own], held[key(name)] = name, None
        item["id"] = known[own]


def _names(item):
    """An item's ids, best first."""
    name, source = item["id"], item.get("source", "")
    yield name
    for text in itertools.chain([Path(source).name, source], itertools.count()):
        yield f"{name}-{zlib.crc32(str(text).encode(errors='replace')):08x}"


def _takes_over(item, row):
    """Whether a row of this id is of the item's mesh file, which has another path now.

    A row of before, which cannot tell, yields where its file is gone; nobody's, too.
    """
    there, here = row["source"], item.get("source")
    if not there or not here:
        return not (there or row["family"])
    if not os.path.exists(there) and not row.get("source_hash"):
        return True
    if not os.path.isfile(here):
        return False
    if os.path.exists(there):
        same = os.path.samefile(there, here) or _is_unchanged(row, here)
        item["source"] = there if same else here
    elif same := _is_unchanged(row, here):
        row["source"] = here
    return same


def _is_unchanged(row, source):
    """Whether a mesh file holds what the row was made from."""
    if str(os.path.getsize(source)) != row.get("source_bytes"):
        return False
    return _content_hash(source) == row["source_hash"]


def _follow_moved(items, rows):
    """Write into rows where their mesh files lie now, of items that have their ids."""
    held = {row["id"]: row for row in rows}
    for item in items:
        row, here = held.get(item["id"]), item["source"]
        if row and os.path.isfile(here) and _is_unchanged(row, here):
            row["source"] = here


def _place(items, rows):
    """Give items' mesh files the paths that rows have, or such as hold anywhere.

    A row of before has its path as it was given, from the folder one worked in.
    """
    known = {os.path.abspath(r["source"]): r["source"] for r in rows if r.get("source")}
    for item in items:
        if item["source"]:
            whole = os.path.abspath(item["source"])
            item["source"] = known.get(whole, whole)


def _items(source, up, yaw, rows=(), repair=None):
    """What to prepare, as dicts with an id, from pairs, a folder or mesh paths.

    Args: source, up, yaw: see `prepare`. rows: of the folder, whose ids are kept.
        repair: caps, interior and coarse of mesh files, as their rows have them.
    """
    if isinstance(source, str | os.PathLike):
        from .mesh import find_meshes

        paths = find_meshes(source)
        inner = (path.relative_to(source).with_suffix("") for path in paths)
        names = ["__".join(path.parts) for path in inner]
    else:
        source = list(source)
        if source and isinstance(source[0], dict):
            items = [{**(repair or {}), **item} for item in source]
            _place(items, rows)
            _follow_moved(items, rows)
            return items
        if source and not isinstance(source[0], str | os.PathLike):
            items = [
                {"id": safe_id(f"{f}-{seed:06d}"), "family": f, "seed": seed}
                for f, seed in source
            ]
            _settle_ids(items, rows)
            return items
        paths = [Path(path) for path in source]
        names = [path.stem for path in paths]
    # Two files may share a stem (chair.obj beside chair.glb): the suffix tells them,
    # and where that is not enough (a/chair.obj, b/chair.obj) a number.
    shared = Counter(names)
    names = [
        name if shared[name] == 1 else f"{name}_{path.suffix[1:]}"
        for name, path in zip(names, paths, strict=True)
    ]
    shared, numbers = Counter(names), defaultdict(itertools.count)
    names = [f"{n}_{next(numbers[n]) + 1}" if shared[n] > 1 else n for n in names]
    items = [
        {
            "id": safe_id(name),
            "source": str(path),
            "up": up,
            "yaw": yaw,
            **(repair or {}),
        }
        for name, path in zip(names, paths, strict=True)
    ]
    _place(items, rows)
    _settle_ids(items, rows)
    return items


def stretched(
    items: Iterable[dict], copies: int, most: float = 1.3, seed: int = 0
) -> list[dict]:
    """Copies of mesh files that are stretched along the axes, for training.

    Few shapes are learned by heart; a wider or lower one of the same parts is another.

    Args: items: dicts that rows begin with, see `sweethome.listed_items`.
        copies: of each. most: factors are log-uniform in [1 / most, most].
        seed: with the id it fixes the factors.
    Returns: the copies, whose ids end in "~1", "~2", ...
    Raises: ValueError: most is below 1, or copies below 0.
    """
    if not (copies >= 0 and 1 <= most < math.inf):
        raise ValueError(f"got {copies} copies, stretched by at most {most}")
    more = []
    for item in items:
        rng = np.random.default_rng([seed, zlib.crc32(item["id"].encode())])
        for k in range(1, copies + 1):
            factors = most ** rng.uniform(-1, 1, 3)
            words = " ".join(f"{factor:.4f}" for factor in factors)
            more.append(item | {"id": f"{item['id']}~{k}", "stretch": words})
    return more


def source_meshes(row: dict) -> tuple[trimesh.Trimesh, trimesh.Trimesh | None]:
    """Make or read the meshes that a row of the index stands for.

    Args: row with family and seed, or with source (a mesh file), up, yaw and, where it
        was made so, caps, interior, coarse and stretch.
    Returns: detailed and coarse trimesh.Trimesh, world frame; None where unknown, and
        twice the same where nothing was found to take away.
    """
    if row.get("source"):
        from .mesh import load_mesh

        turn = {"up": row["up"], "yaw": float(row["yaw"])}
        repair = {name: row.get(name) or before for name, before in BEFORE.items()}
        if row.get("stretch"):
            turn["stretch"] = tuple(map(float, row["stretch"].split()))
        mesh = load_mesh(row["source"], **turn, **repair)
        if row.get("coarse") != "levels":
            return mesh, None
        from .coarse import coarse_body

        return mesh, coarse_body(mesh)
    from .shapes import make_shape

    shape = make_shape(row["family"], int(row["seed"]))
    return shape.detailed, shape.coarse


def _prepare_one(make, item, *arguments, timeout, memory_gb):
    """Make one example; return its index row, with a failure's reason."""
    row = {**dict.fromkeys(INDEX_COLUMNS, ""), **item}
    row["source"] = _printable(row["source"])
    start = time.perf_counter()
    try:
        if row["source"] != item.get("source", ""):
            raise ValueError(f"{row['source']}: its name is not UTF-8; rename the file")
        if row["reason"]:  # known beforehand
            raise ValueError(row["reason"])
        if timeout is None:
            row = make(row, *arguments)
        else:
            limits = {"timeout": timeout, "memory_gb": memory_gb}
            row = run_isolated(make, row, *arguments, **limits)
    except Exception as error:  # one bad shape must not end the run: it is recorded
        reason = " ".join((str(error) or repr(error)).split())[:1000]
        row |= {"status": "failed", "reason": _printable(reason)}
    return {**row, "seconds": f"{time.perf_counter() - start:.2f}"}


def _make_one(row, path, config):
    rng = np.random.default_rng([config.seed, zlib.crc32(row["id"].encode())])
    state = _source_state(row["source"]) if os.path.isfile(row["source"]) else {}
    detailed, coarse = source_meshes(row)
    example = make_example(detailed, coarse, rng, config)
    row |= state | {"status": "ok", "faces": len(detailed.faces)}
    if "report" in detailed.metadata:
        row["repair"] = str(detailed.metadata["report"])
    # The file carries its row, so that a killed run finds it again without its index.
    write_example(path, {**example, "row": np.array(json.dumps(row, default=_plain))})
    return row


class ShapeDataset:
    """Examples for torch's DataLoader: one view and a draw of points per item.

    Item `index`, or `(index, draw)` for another view and other points of the shape, is
    a function of (seed, index, draw) alone: a run can be resumed as if unbroken.

    Args: folder: made by `prepare`, or a list of such folders; one that is named n
            times is drawn from n times as often.
        split: rows of the index to use; None for all.
        points: drawn per item, half inside. view: a fixed one; None draws one.
        weighted: draw by density weight, not uniformly. seed: of views and draws.
        mirror: half of the items are of the shape's mirror image, see `mirrored`.
        recolor: the pictures' colours are changed, see `recolored`.
    Raises: FileNotFoundError: no index. ValueError: no usable example of that split.
    """

    # Bytes of examples to keep, of all workers of a loader together; of the others an
    # item reads what it needs.
    memory = 4e9

    def __init__(
        self,
        folder,
        split="train",
        *,
        points=2048,
        view=None,
        weighted=True,
        seed=0,
        mirror=False,
        recolor=False,
    ):
        folders = [folder] if isinstance(folder, str | os.PathLike) else folder
        self.folders = [Path(folder) for folder in folders]
        self.rows = []
        for folder in self.folders:
            if not (rows := read_index(folder)):
                raise FileNotFoundError(f"no index.csv in {folder}: run prepare first")
            for row in rows:
                if row["status"] == "ok" and split in (None, row["split"]):
                    self.rows.append({**row, "folder": str(folder)})
        if not self.rows:
            rows = itertools.chain.from_iterable(map(read_index, self.folders))
            there = Counter(row["split"] for row in rows if row["status"] == "ok")
            known = ", ".join(f"{k} ({n})" for k, n in there.items()) or "none at all"
            where = ", ".join(map(str, self.folders))
            wrong = f"no usable example of split {split!r} in {where}"
            raise ValueError(f"{wrong}; there are: {known}")
        self.points, self.view, self.weighted, self.seed = points, view, weighted, seed
        self.mirror, self.recolor = mirror, recolor
        self._kept, self._held, self._is_full, self._members = {}, 0, False, {}
        self._sound = {}  # members that were read once, by shape
        self._sharers = 1  # of the memory
        # The first of the rows that are the same file, by a folder named twice.
        first = {}
        count = range(len(self.rows))
        self.first = [first.setdefault(self._path(k), k) for k in count]

    def __len__(self):
        return len(self.rows)

    def example(self, index: int) -> dict[str, np.ndarray]:
        """All arrays of a shape; kept in memory while there is room for them.

        Raises: IndexError: there is no such shape.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"no shape {index}: there are {len(self)}, from 0 on")
        index = self.first[index]
        if index in self._kept:
            return self._kept[index]
        path = self._path(index)
        example = read_example(path)
        _demand_parts(path, example, self.view)
        size = sum(array.nbytes for array in example.values())
        if self._held + size <= self.memory / self._sharers:
            self._kept[index], self._held = example, self._held + size
        else:
            self._is_full = True
        return example

    def _path(self, index):
        row = self.rows[index]
        return Path(row["folder"]) / f"{row['id']}.npz"

    def _names(self, index):
        """The members of a shape's example; kept, for they are few bytes."""
        index = self.first[index]
        if index not in self._members:
            kept = self._kept.get(index)
            names = member_names(self._path(index)) if kept is None else kept
            self._members[index] = tuple(map(sys.intern, names))
        return self._members[index]

    def _parts(self, index, view):
        """What an item of one view needs, of a shape that is not kept."""
        names = [name for name in DRAWN if name in self._names(index)]
        names += [f"{name}_{view}" for name in (*VIEW_TYPES, "camera")]
        sound = self._sound.setdefault(index, set())
        example = read_example(self._path(index), names, sound)
        _demand_parts(self._path(index), example, view, alone=True)
        sound.update(map(sys.intern, names))
        return example

    def knows_coarse(self) -> bool:
        """Whether the coarse body of any shape is known, as L_rel needs it."""
        return any("base_sdf" in self._names(k) for k in range(len(self)))

    def fingerprint(self) -> int:
        """A number that tells these shapes and this way of drawing from others."""
        # Of the columns that say what a shape is; the others may change without it.
        columns = [name for name in NEEDED_COLUMNS if name != "seconds"]
        shapes = [
            [*(row[name] for name in columns), *filter(None, [row.get("stretch")])]
            for row in self.rows
        ]
        draws = [self.points, self.view, self.weighted, self.seed]
        # earlier runs do not know of these
        draws += [name for name in ("mirror", "recolor") if getattr(self, name)]
        settings = (folder / "settings.json" for folder in self.folders)
        text = {"encoding": "utf-8", "errors": "replace"}
        made = "".join(path.read_text(**text) for path in settings if path.is_file())
        return zlib.crc32(json.dumps([shapes, draws, made]).encode())

    def view_count(self, index: int) -> int:
        """How many views the shape has."""
        return sum(name.startswith("camera_") for name in self._names(index))

    def view_numbers(self, index: int) -> list[int]:
        """The numbers that a shape's views bear in the source, in their order here.

        0, 1, 2, ... but where a reader has left out views that do not fit.
        """
        left = []
        if "left_out" in self._names(index):
            left = read_example(self._path(index), ["left_out"])["left_out"]
        gone = {int(number) for number, *_ in left}
        there = range(self.view_count(index) + len(gone))
        return [number for number in there if number not in gone]

    def camera(self, index: int, view: int) -> Camera:
        """The Camera of one view. Raises: IndexError: there is no such view."""
        if (name := f"camera_{view}") not in (example := self.example(index)):
            count, shape = self.view_count(index), self.rows[index]["id"]
            raise IndexError(
                f"{shape} has no view {view}: there are {count}, from 0 on"
            )
        return Camera.from_array(example[name])

    def __getitem__(self, key):
        """One view and a draw of points.

        Returns: dict of tensors, image (3, H, W) f4, mask (H, W) bool, depth (H, W),
            normals (3, H, W), camera (16,), points (P, 3), sdf (P,), gradients (P, 3),
            and base_sdf (P,), NaN where the coarse body is not known.
        """
        import torch  # not needed to prepare, and a worker starts 2 s sooner without

        if worker := torch.utils.data.get_worker_info():
            self._sharers = worker.num_workers
        index, draw = key if isinstance(key, tuple) else (key, 0)
        rng = np.random.default_rng([self.seed, index, draw])
        if not self._is_full:
            self.example(index)
        view = rng.integers(self.view_count(index)) if self.view is None else self.view
        first = self.first[index]
        example = self._kept.get(first) or self._parts(first, view)
        weights = example["weights"] if self.weighted else None
        chosen = weighted_draw(example["sdf"], weights, self.points, rng)
        item = {name: example[name][chosen] for name in DRAWN if name in example}
        item.pop("weights", None)
        item.setdefault("base_sdf", np.full(len(chosen), np.nan, np.float32))
        for name in (*VIEW_TYPES, "camera"):
            item[name] = example[f"{name}_{view}"]
        item = {name: torch.from_numpy(value).float() for name, value in item.items()}
        item |= {"image": item["image"] / 255, "mask": item["mask"] > 0}
        if self.mirror:
            item = mirrored(item, torch.tensor(rng.random() < 0.5))
        if self.recolor:
            chance = torch.from_numpy(rng.random(6, dtype=np.float32))
            item["image"] = recolored(item["image"], chance)
        return item


def recolored(image: Tensor, chance: Tensor) -> Tensor:
    """Pictures in other colours: the channels in another order, each with a gamma.

    Black and white stay. For a code that tells shapes apart, not their paints.

    Args: image: (..., 3, H, W) in [0, 1]. chance: (..., 6), uniform in [0, 1): gammas,
        log-uniform in [1 / RECOLOR, RECOLOR], and the order.
    Returns: such pictures.
    """
    gamma = RECOLOR ** (2 * chance[..., :3] - 1)
    order = chance[..., 3:].argsort(-1)[..., None, None].expand(image.shape)
    return image.gather(-3, order) ** gamma[..., None, None]


def mirrored(item: dict[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    """The item of the shape mirrored at x = 0, in a mirrored picture, where chosen.

    Args: item: of ShapeDataset, or a batch of them. chosen: bool, () or (B,).
    """
    import torch

    sign = item["points"].new_tensor([-1.0, 1.0, 1.0])
    other = {name: item[name].flip(-1) for name in VIEW_TYPES}
    other["normals"] = other["normals"] * sign[:, None, None]
    other |= {name: item[name] * sign for name in ("points", "gradients")}
    # With M = diag(-1, 1, 1) the rotation is M R M, the translation M t; cx turns, too.
    other["camera"] = row = item["camera"].clone()
    row[..., [1, 2, 3, 6, 9]] *= -1
    row[..., 13] = row[..., 15] - row[..., 13]
    for name, value in other.items():
        where = chosen.reshape(*chosen.shape, *[1] * (value.ndim - chosen.ndim))
        other[name] = torch.where(where, value, item[name])
    return item | other
