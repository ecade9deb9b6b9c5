"""What models make of prepared shapes, without a mesh: IoU, errors, the maps' share.

    python benchmarks/field_scores.py --models data/models/d2im-small \\
        data/models/d2im-base --data data/objects-test data/real
    python benchmarks/field_scores.py --data benchmark --shapes 40

IoU is of the signs of f_B and F at `--points` uniform points of the box against the
true mesh, filled as its data are; the other measures are 05's (`field_scores`), where
the data have the pictures of the model's size. A mean over `--views` pictures is a
shape's. Of two models the table gives the second's gain with its paired interval.
`--out` takes a row a shape and model.
"""

import zlib
from collections import Counter
from pathlib import Path

import common

# ruff: isort: split
import numpy as np
import torch

from d2im import benchmark
from d2im.camera import Camera
from d2im.data.dataset import ShapeDataset
from d2im.evaluate.metrics import inside, iou
from d2im.evaluate.tables import interval
from d2im.networks import ImageModel, model_folder
from d2im.sampling import HALF_BOX
from d2im.show.pages import csv_table, markdown_table, write_text
from d2im.use.reconstruction import MODEL, predict

SHOWN = (
    "iou base_iou base_error final_error laplacian_correlation "
    "displacement_correlation displacement_correlation_highpass "
    "laplacian_energy coarse_energy"
).split()


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--models", nargs="+", default=[str(MODEL)], help="folders")
    parser.add_argument("--data", nargs="+", required=True, help="folders, benchmark")
    parser.add_argument("--shapes", type=int, help="of each folder, spread (all)")
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--points", type=int, default=8000)
    parser.add_argument("--no-maps", action="store_true", help="IoU and errors alone")
    parser.add_argument("--out", type=Path, default=Path("reports/field_scores"))
    options = common.opening(parser)
    options.out.mkdir(parents=True, exist_ok=True)
    models = [model_folder(name) for name in options.models]
    shared = Counter(folder.name for folder in models)  # runs call theirs alike
    networks = {
        folder.name if shared[folder.name] == 1 else name: ImageModel.from_pretrained(
            folder
        )
        for name, folder in zip(options.models, models, strict=True)
    }
    for data in options.data:
        rows = scored(data, networks, options)
        for part in dict.fromkeys(row["set"] for row in rows):
            print(f"\n{data}, {part}")
            print(table([row for row in rows if row["set"] == part], list(networks)))


def scored(data, networks, options):
    """A dict a shape and model of one folder, which are written to `--out`, too."""
    folder = Path(data)
    if data == "benchmark":
        size = max(network.image_size for network in networks.values())
        folder = options.out / f"benchmark-{size}"
        if not (folder / "index.csv").is_file():
            entries = benchmark.read_list()
            benchmark.prepare_list(entries, folder, size)
    shapes = ShapeDataset(folder, None)
    some = benchmark.spread(len(shapes), options.shapes or 0)
    rows = []
    for k, index in enumerate(some):
        rows += score(shapes, index, networks, options)
        if k % 20 == 19:
            print(f"{folder}: {k + 1} of {len(some)}", flush=True)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[row.get(name) for name in columns] for row in rows]
    write_text(options.out / f"{folder.name}.csv", csv_table(columns, cells))
    return rows


def score(shapes, index, networks, options):
    row, example = shapes.rows[index], shapes.example(index)
    truth, coarse = benchmark.true_meshes(row, example)
    rng = np.random.default_rng(zlib.crc32(row["id"].encode()))
    points = rng.uniform(-HALF_BOX, HALF_BOX, (options.points, 3)).astype(np.float32)
    held, asked, found = inside(truth, points.astype(float)), torch.tensor(points), []
    for name, network in networks.items():
        views = []
        for view in range(min(options.views, shapes.view_count(index))):
            image = example[f"image_{view}"] / np.float32(255)
            camera = Camera.from_array(example[f"camera_{view}"])
            scores, size = {}, network.image_size
            if not (fits := image.shape[-1] == size):
                image = torch.nn.functional.interpolate(
                    torch.tensor(image)[None], (size, size), mode="area"
                )[0].numpy()
                camera = camera.resized(size)
            made = predict(network, image, camera, framed=True)
            with torch.no_grad():
                for key, field in (("base_iou", made.base_sdf), ("iou", made.sdf)):
                    scores[key] = iou(field(asked).numpy() < 0, held)
            if fits:
                body = None if options.no_maps else coarse
                scores |= benchmark.field_scores(
                    network, made, example, view, truth, body
                )
            views.append(scores)
        keys = dict.fromkeys(key for scores in views for key in scores)
        means = {key: mean([s.get(key, np.nan) for s in views]) for key in keys}
        about = {"id": row["id"], "family": row["family"], "set": row["split"]}
        found.append(about | {"model": name} | means)
    return found


def mean(values):
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else float("nan")


def table(rows, names):
    """Means with intervals over shapes, and the last model's gain on the first."""
    lines = []
    for key in SHOWN:
        of = {
            n: {r["id"]: r[key] for r in rows if r["model"] == n and key in r}
            for n in names
        }
        cells = [key]
        for name in names:
            values = np.array([v for v in of[name].values() if np.isfinite(v)])
            low, high = interval(values)
            cells.append(f"{mean(values):.4f} [{low:.4f}, {high:.4f}] ({len(values)})")
        if len(names) > 1:
            one, other = of[names[0]], of[names[-1]]
            gain = np.array([other[i] - one[i] for i in other if i in one])
            gain = gain[np.isfinite(gain)]
            low, high = interval(gain)
            cells.append(f"{mean(gain):+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append(cells)
    heads = ["measure", *names] + ["gain"] * (len(names) > 1)
    return markdown_table(heads, lines)


if __name__ == "__main__":
    main()
