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
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import trimesh
from joblib import Parallel, delayed

from ..camera import Camera
from ..data import dataset, shapes
from ..data.files import write_whole
from ..networks import ImageModel, model_folder
from ..sampling import signed_distance
from ..show import plots
from ..surface.extract import extract_mesh
from ..use.reconstruction import predict
from .decomposition import decomposition_scores, disentanglement
from .metrics import evaluate, prediction_failure
from .tables import (  # noqa: F401
    COLUMNS,
    compare,
    interval,
    markdown,
    paper_table,
    read_rows,
    summarise,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from ..data.shapes import Shape
    from ..use.pictures import ImageSource
    from ..use.reconstruction import CameraSource, Prediction

LIST = Path(__file__).with_name("benchmark.json")
SUFFIXES = (".obj", ".ply", ".glb", ".off", ".stl")
FITS = 0.02  # world units by which a true mesh may miss its example's distances


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
    return json.loads(LIST.read_text(encoding="utf-8"))


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


def spread(count: int, wanted: int = 0) -> list[int]:
    """The places of `wanted` of `count` things, evenly spaced; 0 stands for all."""
    some = np.linspace(0, count - 1, min(wanted or count, count))
    return some.round().astype(int).tolist()


def load_methods(
    model: str | Path, others: Iterable[str], root: str | Path = ""
) -> dict[str, ImageModel | Path]:
    """Load what one table compares: models, and folders of meshes named by shape id.

    Args: model: folder of the model whose base and final meshes are scored, or "".
        others: folders of other models, or of meshes. root: that all are relative to.
    Returns: {name: model, or Path of meshes}; `model` is "". A folder is called by its
        name, by its path where that stands for something else in the table, too.
    Raises: FileNotFoundError: no such folder. ValueError: a network without fields.
    """
    others, root = list(others), Path(root)
    load = ImageModel.from_pretrained  # of the class that its folder names
    methods = {"": load(model_folder(root / model))} if model else {}
    shared = Counter(["base", "final", "truth", *(Path(o).name for o in others)])
    for other in others:
        folder = model_folder(root / other)
        has_model = (folder / "config.json").is_file()
        if not has_model and not folder.is_dir():
            wrong = "no folder of a model or of meshes"
            raise FileNotFoundError(f"{folder}: {wrong}")
        name = folder.name if shared[folder.name] == 1 else f"{other}/"
        methods[name] = load(folder) if has_model else folder
    for name, method in methods.items():
        if not isinstance(method, Path) and not hasattr(method, "fields"):
            wrong = "holds a camera network, which has no fields"
            raise ValueError(f"{name or model} {wrong}")
    return methods


def read_prediction(
    folder: str | Path, name: str, source: dict | None = None
) -> tuple[trimesh.Trimesh | None, str]:
    """Read the mesh <name>.obj, .ply, ... of another program, in the world frame.

    Its faces are turned outward and taken once each, as `load_mesh` does; where that
    changed any, the mesh's `metadata["note"]` says so.

    Args: source: the shape's example, where the mesh is in the frame of its source.
    Returns: trimesh.Trimesh or None, and why there is none.
    """
    # Of the extra "data", which a machine that only trains lacks.
    from ..data.formats import read_surface
    from ..data.mesh import turned_outward

    named = sorted(Path(folder).glob(f"{glob.escape(name)}.*"))
    named = {p.suffix.lower(): p for p in reversed(named) if p.stem == name}
    path = next((named[s] for s in SUFFIXES if s in named and named[s].is_file()), None)
    if path is None:
        return None, "missing file"
    try:
        read = read_surface(path)
        mesh = trimesh.Trimesh(read.vertices, read.faces, process=False)
        if mesh.area > 0:
            mesh, done = turned_outward(mesh)
            told = [f"{n} of its faces {what}" for what, n in done.items() if n]
            mesh.metadata["note"] = ", ".join(told)
        return to_world(mesh, source) if source else mesh, ""
    except Exception as error:  # whatever a foreign file makes a reader say
        return None, " ".join(f"unreadable: {error}".split())


def true_meshes(
    row: dict, example: dict[str, np.ndarray], folder: str | Path = ""
) -> tuple[trimesh.Trimesh, trimesh.Trimesh | None]:
    """The true and, where known, coarse mesh of a row of the index and its example.

    Data that hold none have them in `folder`, by id in the source's frame.

    Raises: FileNotFoundError: none there. ValueError: it is not the example's shape.
    """
    if not folder:
        return dataset.source_meshes(row)
    mesh, why = read_prediction(folder, row["id"])
    if mesh is None:
        raise FileNotFoundError(f"the truth of {row['id']} in {folder}: {why}")
    mesh = to_world(mesh, example)
    if (error := misfit(mesh, example)) > FITS:
        raise ValueError(
            f"the truth of {row['id']} in {folder} lies {error:.3f} off the distances "
            "that its example holds: another frame, scale or shape? It belongs in the "
            "frame of the data's source, with its hollows filled where they are in the "
            "data (`interior` of load_mesh)"
        )
    return mesh, None


def to_world(mesh: trimesh.Trimesh, example: dict) -> trimesh.Trimesh:
    """A mesh of an example's source, in the world frame; it is moved."""
    yaw, scale, *shift = example.get("similarity", (0, 1, 0, 0, 0))
    turn = trimesh.transformations.rotation_matrix(np.radians(yaw), [0, 1, 0])
    return mesh.apply_transform(turn).apply_scale(scale).apply_translation(shift)


def misfit(mesh: trimesh.Trimesh | None, example: dict, count: int = 1000) -> float:
    """How far a mesh lies from an example's stored distances: mean | |d| - |sdf| |.

    NaN where there is no mesh to measure.
    """
    if mesh is None or len(mesh.faces) == 0 or not np.isfinite(mesh.vertices).all():
        return np.nan
    some = np.linspace(0, len(example["points"]) - 1, count).astype(int)
    points = np.asarray(example["points"][some], dtype=float)
    away = np.abs(signed_distance(mesh, points)[0])
    return float(np.abs(away - np.abs(example["sdf"][some])).mean())


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
    """Decomposition and, of a known coarse body, disentanglement, by the next view.

    The transfer's scores need another view than this.
    """
    scores = decomposition_scores(found, example, view)
    if coarse is None or coarse is truth:  # not known, or without relief
        return scores
    count = sum(name.startswith("camera_") for name in example)
    if count == 1:
        return scores | disentanglement(found, truth, coarse)
    other = (view + 1) % count
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
        Path("/proc/self/clear_refs").write_bytes(b"5")  # the peak starts anew
        before = _memory(status, "VmRSS")
    start = time.process_time(), time.perf_counter()
    yield
    spent = {"method": method, "core_s": time.process_time() - start[0]}
    spent["wall_s"] = time.perf_counter() - start[1]
    known = np.isfinite(before)
    spent["peak_mb"] = _memory(status, "VmHWM") - before if known else before
    costs.append(spent)


def _memory(status, name):
    return int(status.read_text("utf-8").partition(name + ":")[2].split()[0]) / 1024


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
    stream = zlib.crc32(info["id"].encode())  # each shape's samples are its own
    results, failure = evaluate(mesh, truth, camera=camera, stream=stream, **options)
    note = "" if mesh is None else mesh.metadata.get("note", "")
    return info | {"status": why or failure or "ok", "note": note} | results


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
