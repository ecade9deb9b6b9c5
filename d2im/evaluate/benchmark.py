"""A fixed list of shapes and views, and tables of how near methods come to them.

    d2im benchmark             # are the shapes still those of the list?
    d2im benchmark --write     # write the list, benchmark.json, from splits.json

Each shape's volume, area and bounds stand in the list, so that a changed generator is
noticed. Predictions that are missing or broken are scored as the worst, never dropped.
"""

from __future__ import annotations

import glob
import json
import time
import zlib
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import trimesh
from joblib import Parallel, delayed
from scipy.stats import wilcoxon

from ..camera import Camera
from ..data import dataset, shapes
from ..data.files import write_whole
from ..show import plots
from ..show.pages import escape, markdown_table
from ..surface.extract import extract_mesh
from ..use.reconstruction import predict
from .decomposition import decomposition_scores, disentanglement
from .metrics import evaluate, prediction_failure
from .protocols import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch import nn

    from ..data.shapes import Shape
    from ..use.pictures import ImageSource
    from ..use.reconstruction import CameraSource, Prediction

LIST = Path(__file__).with_name("benchmark.json")
SUFFIXES = (".obj", ".ply", ".glb", ".off", ".stl")
RESAMPLES = 5000
COLUMNS = """group method measure mean median low high shapes pictures failures left_out
protocol""".split()  # of `summarise`


def make_list(in_family: int = 10, unseen: int = 33) -> list[dict]:
    """The list: so many test seeds of each family of either set, cameras by the id.

    Returns: list of dicts: id, set ("test" or "unseen"), family, seed, cameras
        (azimuth, elevation, ratio), volume, area, bounds.
    """
    entries = []
    for name, count in (("test", in_family), ("unseen", unseen)):
        for family, seed in shapes.split_pairs(name, count):
            item = {"id": f"{family}-{seed:06d}", "set": name}
            item |= {"family": family, "seed": seed}
            rng = np.random.default_rng(zlib.crc32(item["id"].encode()))
            ranges = [-60, 0, 0.8], [60, 40, 1], (2, 3)  # as random_camera's, two views
            item["cameras"] = rng.uniform(*ranges).round(4).tolist()
            entries.append(item | _size(shapes.make_shape(family, seed)))
    return sorted(entries, key=lambda item: shapes.FAMILIES.index(item["family"]))


def _size(shape):
    mesh = shape.detailed
    bounds = mesh.bounds.round(6).tolist()
    return {"volume": mesh.volume, "area": mesh.area, "bounds": bounds}


def check_shape(entry: dict) -> Shape:
    """Make a listed shape.

    Raises: ValueError: its volume, area or bounds are not those of the list.
    """
    shape = shapes.make_shape(entry["family"], entry["seed"])
    for name, value in _size(shape).items():
        if not np.allclose(value, entry[name], rtol=1e-4, atol=1e-6):
            raise ValueError(
                f"{entry['id']} is not the benchmark's shape: its {name} is {value}, "
                f"not {entry[name]}; take the list's d2im.shapes, or --write a new list"
            )
    return shape


def read_list() -> list[dict]:
    """Read the list that --write has written."""
    if not LIST.is_file():
        raise FileNotFoundError(f"{LIST}: write it by d2im benchmark --write")
    return json.loads(LIST.read_text())


def prepare_list(
    entries: list[dict],
    folder: str | Path,
    size: int,
    workers: int = 1,
    count: int = 20_000,
) -> None:
    """Check the listed shapes and write their examples: pictures of `size` pixels."""
    folder = Path(folder)
    jobs = [delayed(_prepare_one)(e, folder, size, count) for e in entries]
    dataset.write_index(folder, Parallel(workers)(jobs))


def _prepare_one(entry, folder, size, count):
    shape, keys = check_shape(entry), ("id", "family", "seed")
    cameras = [Camera(*pose, size) for pose in entry["cameras"]]
    settings = {"count": count, "views": len(cameras), "size": size, "poses": cameras}
    rng = np.random.default_rng(zlib.crc32(entry["id"].encode()))
    example = dataset.make_example(shape.detailed, shape.coarse, rng, **settings)
    dataset.write_example(folder / f"{entry['id']}.npz", example)
    row = dict.fromkeys(dataset.INDEX_COLUMNS, "") | {"status": "ok"}
    return row | {k: entry[k] for k in keys} | {"split": entry["set"]}


def read_prediction(
    folder: str | Path, name: str
) -> tuple[trimesh.Trimesh | None, str]:
    """Read the mesh <name>.obj, .ply, ... of another program, in the world frame.

    Its faces are turned outward and taken once each, as `load_mesh` does; where that
    changed any, the mesh's `metadata["note"]` says so.

    Returns: trimesh.Trimesh or None, and why there is none.
    """
    from ..data.mesh import turned_outward  # libigl is absent on a training machine

    named = sorted(Path(folder).glob(f"{glob.escape(name)}.*"))
    named = {p.suffix.lower(): p for p in reversed(named) if p.stem == name}
    path = next((named[s] for s in SUFFIXES if s in named and named[s].is_file()), None)
    if path is None:
        return None, "missing file"
    try:
        mesh = trimesh.load_scene(path, process=False).to_mesh()
        if np.isfinite(mesh.vertices).all() and mesh.area > 0:
            mesh, done = turned_outward(mesh)
            told = [f"{n} of its faces {what}" for what, n in done.items() if n]
            mesh.metadata["note"] = ", ".join(told)
        return mesh, ""
    except Exception as error:  # whatever a foreign file makes a reader say
        return None, " ".join(f"unreadable: {error}".split())


def true_meshes(
    row: dict, example: dict[str, np.ndarray], folder: str | Path = ""
) -> tuple[trimesh.Trimesh, trimesh.Trimesh | None]:
    """The true and, where known, coarse mesh of a row of the index and its example.

    Data that hold none have them in `folder`, by id in the source's frame.
    """
    if not folder:
        return dataset.source_meshes(row)
    mesh, why = read_prediction(folder, row["id"])
    if mesh is None:
        raise FileNotFoundError(f"the truth of {row['id']} in {folder}: {why}")
    yaw, scale, *shift = example.get("similarity", (0, 1, 0, 0, 0))
    turn = trimesh.transformations.rotation_matrix(np.radians(yaw), [0, 1, 0])
    mesh.apply_transform(turn).apply_scale(scale).apply_translation(shift)
    return mesh, None


def predict_meshes(
    model: nn.Module, image: ImageSource, camera: CameraSource, resolution: int
) -> tuple[Prediction, dict]:
    """Predict from a picture and mesh what has a surface.

    Returns: Prediction, and {"base": ..., "final": ...} of (mesh or None, why there is
        none); only "final" for a model without displacement.
    """
    found, made = predict(model, image, camera), {}
    fields = {"base": found.base_sdf, "final": found.sdf}
    if found.base_sdf is found.sdf:
        del fields["base"]
    device = next(model.parameters()).device
    for name, field in fields.items():
        try:
            made[name] = extract_mesh(field, resolution, device=device), ""
        except ValueError as error:  # no surface, or NaN: a finding, not the end
            made[name] = None, str(error)
    return found, made


def field_scores(
    model: nn.Module,
    found: Prediction,
    example: dict[str, np.ndarray],
    view: int,
    truth: trimesh.Trimesh,
    coarse: trimesh.Trimesh | None,
) -> dict[str, float]:
    """Decomposition and, of a known coarse body, disentanglement, by the next view."""
    scores = decomposition_scores(found, example, view)
    if coarse is None:
        return scores
    other = (view + 1) % sum(name.startswith("camera_") for name in example)
    image = example[f"image_{other}"] / np.float32(255)
    again = predict(model, image, Camera.from_array(example[f"camera_{other}"]))
    return scores | disentanglement(found, truth, coarse, again)


@contextmanager
def cost(costs: list[dict], method: str) -> Iterator[None]:
    """Append {method, core_s, wall_s, peak_mb} of a block.

    The memory is its rise to the peak; NaN but on Linux.
    """
    status, before = Path("/proc/self/status"), np.nan
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _memory(status, "VmRSS")
    start = time.process_time(), time.perf_counter()
    yield
    spent = {"method": method, "core_s": time.process_time() - start[0]}
    spent["wall_s"] = time.perf_counter() - start[1]
    known = np.isfinite(before)
    spent["peak_mb"] = _memory(status, "VmHWM") - before if known else before
    costs.append(spent)


def _memory(status, name):
    return int(status.read_text().partition(name + ":")[2].split()[0]) / 1024


def pictures(
    image: np.ndarray, meshes: dict, camera: Camera, size: int = 224
) -> dict[str, np.ndarray]:
    """The picture, and each {method: (mesh, why)} shaded: {name: (3, H, W) uint8}."""
    drawn = {"picture": image}
    for name, (mesh, _) in meshes.items():
        if not prediction_failure(mesh):
            drawn[name] = plots.shade(mesh, camera.resized(size))
    return {k: np.round(255 * np.asarray(v)).astype("u1") for k, v in drawn.items()}


def score_all(jobs: Iterable[tuple], workers: int = 1, **options) -> list[dict]:
    """Score predictions in parallel; the rows do not depend on the workers.

    Args: jobs: iterable of info (dict: id, family, split, view, method), mesh or None,
            why there is none, truth, camera.
        workers: processes. options: of `metrics.evaluate`.
    Returns: list of dicts: info, status ("ok" or the reason), note (what was turned in
        another's mesh), and {measure: Result}.
    """
    return Parallel(workers)(delayed(_score)(*job, **options) for job in jobs)


def _score(info, mesh, why, truth, camera, **options):
    results, failure = evaluate(mesh, truth, camera=camera, **options)
    note = "" if mesh is None else mesh.metadata.get("note", "")
    return info | {"status": why or failure or "ok", "note": note} | results


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of a mean over shapes: (low, high)."""
    rng, values = np.random.default_rng(seed), np.asarray(values, dtype=float)
    if len(values) == 0:
        return np.nan, np.nan
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    return tuple(np.percentile(means, [2.5, 97.5]))


def summarise(rows: list[dict], seed: int = 0) -> list[dict]:
    """Sum rows up: per family, per split and over all, each method and measure.

    Returns: list of dicts: group, method, measure, mean, median, low, high, shapes,
        pictures, failures (scored as the worst), left_out (the truth has nothing to
        measure), protocol. The pictures of a shape count as one, their mean.
    """
    groups = {"all": rows}
    for key in ("split", "family"):
        names = dict.fromkeys(row[key] for row in rows if row[key])
        if key == "family" or len(names) > 1:
            groups |= {f"{key} {n}": [r for r in rows if r[key] == n] for n in names}
    table = []
    for group, method in product(groups, dict.fromkeys(row["method"] for row in rows)):
        mine = [row for row in groups[group] if row["method"] == method]
        failures = sum(row["status"] != "ok" for row in mine)
        known = mine[0] if mine else {}
        for measure in (n for n, v in known.items() if isinstance(v, Result)):
            values = np.array([*_by_shape(mine, method, measure).values()])
            kept = values[~np.isnan(values)]
            middle = (kept.mean(), np.median(kept)) if len(kept) else (np.nan, np.nan)
            numbers = group, method, measure, *middle, *interval(kept, seed)
            rest = len(values), len(mine), failures, len(values) - len(kept)
            protocol = str(known[measure].protocol)
            table.append(dict(zip(COLUMNS, (*numbers, *rest, protocol), strict=True)))
    return table


def _by_shape(rows, method, measure):
    """The mean of a method over the pictures of each shape, by its id."""
    found = {}
    for row in (row for row in rows if row["method"] == method):
        found.setdefault(row["id"], []).append(row[measure].value)
    return {name: np.mean(values) for name, values in found.items()}


def markdown(summary: list[dict]) -> str:
    """The summary as Markdown: a table a group, then each measure's protocol."""
    text, protocols = [], {line["measure"]: line["protocol"] for line in summary}
    for group in dict.fromkeys(line["group"] for line in summary):
        lines = [line for line in summary if line["group"] == group]
        cells = {(line["measure"], line["method"]): line for line in lines}
        failed = {x["method"]: f"{x['failures']} of {x['pictures']}" for x in lines}
        rows, methods = [["failed, scored as the worst", *failed.values()]], [*failed]
        for measure in dict.fromkeys(line["measure"] for line in lines):
            rows.append([measure])
            for of in (cells[measure, method] for method in methods):
                cell = "{mean:.4g} [{low:.4g}, {high:.4g}], {median:.4g}".format(**of)
                left = f" ({of['left_out']} left out)" if of["left_out"] else ""
                rows[-1].append(cell + left)
        table = markdown_table(["measure", *methods], rows)
        text.append(f"### {escape(group)}\n\n{table}")
    text.append("Mean, 95 % bootstrap interval of the mean over shapes, median.\n")
    text.append("".join(f"- {name}: {said}\n" for name, said in protocols.items()))
    return "\n".join(text)


def compare(
    rows: list[dict], one: str, other: str, measure: str, seed: int = 0
) -> dict[str, float]:
    """Paired test of two methods on the same shapes.

    Returns: dict: difference (mean of one less other), low and high (its paired
        bootstrap interval), p (Wilcoxon signed rank, two sided; 1 without a
        difference), pairs.
    Raises: ValueError: no rows of a method, or of other shapes than the other's.
    """
    ours, theirs = (_by_shape(rows, method, measure) for method in (one, other))
    if not ours or ours.keys() != theirs.keys():
        raise ValueError(f"{one!r} and {other!r} have not the same shapes, or none")
    gap = np.array([ours[name] - theirs[name] for name in ours])
    gap = gap[~np.isnan(gap)]
    low, high = interval(gap, seed)
    p = float(wilcoxon(gap).pvalue) if np.any(gap) else 1.0
    mean = gap.mean() if len(gap) else np.nan
    return {"difference": mean, "low": low, "high": high, "p": p, "pairs": len(gap)}


def check_list(write: bool = False) -> int:
    """Check that all listed shapes are made as they were; the number of them.

    Args: write: first write the list anew.
    Raises: ValueError: as `check_shape`.
    """
    if write:
        lines = ",\n".join(json.dumps(entry) for entry in make_list())
        write_whole(LIST, lambda file: file.write(f"[\n{lines}\n]\n".encode()))
    entries = read_list()
    for entry in entries:
        check_shape(entry)
    return len(entries)
