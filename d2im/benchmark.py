"""A fixed list of shapes and views, and tables of how near methods come to them.

    python -m d2im.benchmark --write       # data/benchmark.json, from data/splits.json
    python -m d2im.benchmark               # are the shapes still those of the list?

Each shape's volume, area and bounds stand in the list, so that a changed generator is
noticed. Predictions that are missing or broken are scored as the worst, never dropped.
"""

import argparse
import json
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import trimesh
from joblib import Parallel, delayed
from scipy.stats import wilcoxon

from . import dataset, metrics
from .camera import Camera
from .meshing import extract_mesh
from .reconstruction import predict

DATA = Path(__file__).resolve().parents[1] / "data"
LIST, SPLITS = DATA / "benchmark.json", DATA / "splits.json"
SUFFIXES = (".obj", ".ply", ".glb", ".off", ".stl")
RESAMPLES = 5000


def make_list(in_family=10, unseen=33, views=2):
    """The list: seen families' test seeds, unseen families' own, cameras by the id.

    Args:
        in_family, unseen: shapes of each family of either set.
        views: cameras of each shape.

    Returns:
        list of dicts: id, set ("test" or "unseen"), family, seed, cameras (azimuth,
        elevation, ratio), volume, area, bounds.
    """
    from .shapes import FAMILIES

    splits, entries = json.loads(SPLITS.read_text()), []
    for family in FAMILIES:
        new = family in splits["unseen_families"]
        name, count = ("unseen", unseen) if new else ("test", in_family)
        first = splits["seeds"][name][0]
        for seed in range(first, first + count):
            item = {"id": f"{family}-{seed:06d}", "set": name}
            rng = np.random.default_rng(zlib.crc32(item["id"].encode()))
            ranges = ([-60, 0, 0.8], [60, 40, 1], (views, 3))  # as random_camera's
            item |= {"family": family, "seed": seed}
            item["cameras"] = rng.uniform(*ranges).round(4).tolist()
            entries.append(item | _size(_shape(item)))
    return entries


def check_shape(entry):
    """Make a listed shape and compare its volume, area and bounds.

    Raises:
        ValueError: it is another shape than the list was written for.
    """
    shape = _shape(entry)
    for name, value in _size(shape).items():
        if not np.allclose(value, entry[name], rtol=1e-4, atol=1e-6):
            raise ValueError(
                f"{entry['id']} is not the benchmark's shape: its {name} is {value}, "
                f"not {entry[name]}; tables are comparable with the same d2im.shapes "
                "only (--write makes a new list)"
            )
    return shape


def _shape(entry):
    from .shapes import make_shape

    return make_shape(entry["family"], entry["seed"])


def _size(shape):
    mesh = shape.detailed
    bounds = mesh.bounds.round(6).tolist()
    return {"volume": mesh.volume, "area": mesh.area, "bounds": bounds}


def read_list():
    """Read the list of `make_list`.

    Raises:
        FileNotFoundError: it has not been written.
    """
    if not LIST.is_file():
        raise FileNotFoundError(f"{LIST}: write it by python -m d2im.benchmark --write")
    return json.loads(LIST.read_text())


def prepare_list(entries, folder, size, workers=1, count=20_000):
    """Check the listed shapes and write their example files, for `ShapeDataset`.

    Args:
        entries: of `read_list`. folder: of the examples.
        size: pixels of the pictures, those of the model. workers: processes.
        count: points of an example.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
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


def read_prediction(folder, name):
    """Read the mesh that another program made of a shape.

    Args:
        folder: with name.obj, .ply, .glb, .off or .stl, in the world frame. name: id.

    Returns:
        trimesh.Trimesh or None, and why there is none.
    """
    paths = [Path(folder) / f"{name}{suffix}" for suffix in SUFFIXES]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        return None, "missing file"
    try:
        mesh = trimesh.load_scene(path, process=False).to_mesh()
        if np.isfinite(mesh.vertices).all():
            mesh.merge_vertices(merge_tex=True, merge_norm=True)
        return mesh, ""
    except Exception as error:  # whatever a foreign file makes a reader say
        return None, " ".join(f"unreadable: {error}".split())


def true_meshes(row, example, folder=""):
    """The true mesh of an example, and its coarse one where that is known.

    Args:
        row: of the index. example: its arrays. folder: with meshes by id in the
            example's source frame, for data that hold none; its similarity is applied.

    Raises:
        FileNotFoundError: no such mesh.
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


def predict_meshes(model, image, camera, resolution):
    """Predict from a picture and mesh what has a surface.

    Returns:
        Prediction, and {"base": ..., "final": ...} of (mesh or None, why there is
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


def field_scores(model, found, example, view, truth, coarse):
    """Decomposition and, where the coarse body is known, disentanglement scores.

    Args:
        model, found: and its Prediction of the picture `view` of an example.
        truth, coarse: of `true_meshes`. The next view is that of the transfer.
    """
    scores = metrics.decomposition_scores(found, example, view)
    if coarse is None:
        return scores
    other = (view + 1) % sum(name.startswith("camera_") for name in example)
    image = example[f"image_{other}"].astype("f4") / 255
    again = predict(model, image, Camera.from_array(example[f"camera_{other}"]))
    return scores | metrics.disentanglement(found, truth, coarse, again)


@contextmanager
def cost(costs, method):
    """Append core and wall seconds and, on Linux, the rise of memory to its peak (MB).

    Args:
        costs: list that gets {method, core_s, wall_s, peak_mb (NaN where not told)}.
        method: name.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # the peak starts anew
        before = _memory(status, "VmRSS")
    except OSError:
        before = float("nan")
    start = time.process_time(), time.perf_counter()
    yield
    spent = {"method": method, "core_s": time.process_time() - start[0]}
    spent["wall_s"] = time.perf_counter() - start[1]
    known = before == before
    spent["peak_mb"] = _memory(status, "VmHWM") - before if known else before
    costs.append(spent)


def _memory(status, name):
    return int(status.read_text().partition(name + ":")[2].split()[0]) / 1024


def pictures(image, meshes, camera, size=224):
    """What the figures show of a case: the picture, and each method's shaded mesh.

    Args:
        image: (3, H, W). meshes: {method: (mesh or None, why)}. camera: Camera.

    Returns:
        {"picture" or method: (3, H, W) uint8}, without what cannot be drawn.
    """
    from .plots import shade

    drawn = {"picture": image}
    for name, (mesh, _) in meshes.items():
        if not metrics.prediction_failure(mesh):
            drawn[name] = shade(mesh, camera.resized(size))
    return {k: np.round(255 * np.asarray(v)).astype("u1") for k, v in drawn.items()}


def score(info, mesh, why, truth, camera, **options):
    """Score one prediction as a row of the table.

    Args:
        info: dict that tells the row: id, family, split, view, method.
        mesh: trimesh.Trimesh, world, or None. why: there is none.
        truth: trimesh.Trimesh, world. camera, options: of `metrics.evaluate`.

    Returns:
        dict: info, status ("ok" or the reason), and {measure: Result}.
    """
    results, failure = metrics.evaluate(mesh, truth, camera=camera, **options)
    return info | {"status": why or failure or "ok"} | results


def score_all(jobs, workers=1, **options):
    """Score predictions in parallel; the rows do not depend on the workers.

    Args:
        jobs: iterable of the first five arguments of `score`. workers: processes.
    """
    return Parallel(workers)(delayed(score)(*job, **options) for job in jobs)


def interval(values, seed=0):
    """95 % bootstrap interval of a mean over shapes: (low, high)."""
    rng, values = np.random.default_rng(seed), np.asarray(values, dtype=float)
    if len(values) == 0:
        return np.nan, np.nan
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    return tuple(np.percentile(means, [2.5, 97.5]))


def summarise(rows, seed=0):
    """Sum rows up: per family, per split and over all, each method and measure.

    Returns:
        list of dicts: group, method, measure, mean, median, low, high, shapes,
        pictures, failures (scored as the worst), left_out (the truth has nothing to
        measure), protocol. The pictures of a shape count as one, their mean.
    """
    splits = dict.fromkeys(row["split"] for row in rows)
    groups = {"all": rows}
    for key in ("split", "family") if len(splits) > 1 else ("family",):
        for name in dict.fromkeys(row[key] for row in rows if row[key]):
            groups[f"{key} {name}"] = [row for row in rows if row[key] == name]
    table = []
    for group, inside in groups.items():
        for method in dict.fromkeys(row["method"] for row in inside):
            mine = [row for row in inside if row["method"] == method]
            failures = sum(row["status"] != "ok" for row in mine)
            for measure, first in mine[0].items():
                if not isinstance(first, metrics.Result):
                    continue
                by_shape = {row["id"]: [] for row in mine}
                for row in mine:
                    by_shape[row["id"]].append(row[measure].value)
                values = np.array([np.mean(v) for v in by_shape.values()])
                kept = values[~np.isnan(values)]
                line = {"group": group, "method": method, "measure": measure}
                line["mean"] = kept.mean() if len(kept) else np.nan
                line["median"] = np.median(kept) if len(kept) else np.nan
                line["low"], line["high"] = interval(kept, seed)
                line |= {"shapes": len(values), "pictures": len(mine)}
                line |= {"failures": failures, "left_out": len(values) - len(kept)}
                table.append(line | {"protocol": str(first.protocol)})
    return table


def markdown(summary):
    """The summary as Markdown: a table a group, then each measure's protocol."""
    text, protocols = [], {}
    for group in dict.fromkeys(line["group"] for line in summary):
        lines = [line for line in summary if line["group"] == group]
        methods = list(dict.fromkeys(line["method"] for line in lines))
        text.append(f"### {group}\n\n| measure | {' | '.join(methods)} |")
        text.append("|---" * (1 + len(methods)) + "|")
        one = {line["method"]: line for line in lines}
        cells = [f"{one[m]['failures']} of {one[m]['pictures']}" for m in methods]
        text.append(f"| failed, scored as the worst | {' | '.join(cells)} |")
        for measure in dict.fromkeys(line["measure"] for line in lines):
            of = {line["method"]: line for line in lines if line["measure"] == measure}
            cells = [
                "{mean:.4g} [{low:.4g}, {high:.4g}], {median:.4g}".format(**of[m])
                + (f" ({of[m]['left_out']} left out)" if of[m]["left_out"] else "")
                for m in methods
            ]
            text.append(f"| {measure} | {' | '.join(cells)} |")
            protocols[measure] = of[methods[0]]["protocol"]
        text.append("")
    text.append("Mean, 95 % bootstrap interval of the mean over shapes, median.\n")
    text += [f"- {measure}: {protocol}" for measure, protocol in protocols.items()]
    return "\n".join(text) + "\n"


def compare(rows, one, other, measure, seed=0):
    """Paired test of two methods on the same shapes.

    Returns:
        dict: difference (mean of one less other), low and high (its paired bootstrap
        interval), p (Wilcoxon signed rank, two sided; 1 without a difference), pairs.
    """
    values = [
        {(r["id"], r["view"]): r[measure].value for r in rows if r["method"] == method}
        for method in (one, other)
    ]
    both = [key for key in values[0] if key in values[1]]
    gap = np.array([values[0][key] - values[1][key] for key in both])
    gap = gap[~np.isnan(gap)]
    low, high = interval(gap, seed)
    p = float(wilcoxon(gap).pvalue) if np.any(gap) else 1.0
    mean = gap.mean() if len(gap) else np.nan
    return {"difference": mean, "low": low, "high": high, "p": p, "pairs": len(gap)}


def main(arguments=None):
    parser = argparse.ArgumentParser("python -m d2im.benchmark")
    parser.add_argument("--write", action="store_true", help=f"write {LIST.name}")
    if parser.parse_args(arguments).write:
        lines = ",\n".join(json.dumps(entry) for entry in make_list())
        dataset._write_text(LIST, f"[\n{lines}\n]\n")
    entries = read_list()
    for entry in entries:
        check_shape(entry)
    print(f"{len(entries)} shapes are those of {LIST.name}")


if __name__ == "__main__":
    main()
