"""Reconstruct every view of a set; show the three best and three worst shapes.

    python -m d2im.run 02 --params notebooks/params/real.yaml -p meshes FOLDER ...
    python benchmarks/real_views.py --data SET --model FOLDER --out real.png

A view's error is the mean |F - SDF| over the example's points, most of which lie near
the surface.
"""

import time

import common
import numpy as np
import torch

from d2im import plots
from d2im.camera import Camera
from d2im.data.dataset import ShapeDataset
from d2im.evaluate.benchmark import true_meshes
from d2im.networks import ImageModel
from d2im.use.reconstruction import reconstruct


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--data", required=True, help="folder of examples")
    parser.add_argument("--model", required=True, help="folder")
    parser.add_argument("--out", default="real_views.png")
    parser.add_argument("--resolution", type=int, default=128)
    options = common.opening(parser)
    model = ImageModel.from_pretrained(options.model)
    shapes, views, seconds = ShapeDataset(options.data, None), [], []
    for index in range(len(shapes)):
        example = shapes.example(index)
        points, sdf = (torch.tensor(example[key]) for key in ("points", "sdf"))
        for view in range(shapes.view_count(index)):
            camera = shapes.camera(index, view)
            image = torch.tensor(example[f"image_{view}"]).float() / 255
            start = time.process_time()
            found = reconstruct(model, image, camera, options.resolution)
            seconds.append(time.process_time() - start)
            with torch.no_grad():
                error = (found.sdf(points) - sdf).abs().mean().item()
            views.append((error, index, view, found))
            name = shapes.rows[index]["id"]
            print(
                f"{name:28} view {view} error {error:.4f}, {len(found.mesh.faces):,} "
                f"faces, {found.mesh.body_count} components",
                flush=True,
            )
    views.sort(key=lambda entry: entry[0])
    rows, labels = [], []
    for error, index, view, found in (*_shapes(views, 3), *_shapes(views[::-1], 3)):
        row = shapes.rows[index]
        truth, _ = true_meshes(row, shapes.example(index))
        eye = found.camera.resized(224)
        side = Camera(*_turned(found.camera), 1, 224)
        meshes = (truth, eye), (found.base_mesh, eye), (found.mesh, eye)
        meshes += (truth, side), (found.mesh, side)
        rows.append([found.image, *(plots.shade(*pair) for pair in meshes)])
        labels.append(f"{row['id']}\nview {view}: {error:.3f}")
    names = "picture", "truth", "base", "base + relief", "truth, turned", "turned"
    plots.image_grid(rows, names, labels, 1.9).savefig(options.out, dpi=110)
    errors = [entry[0] for entry in views]
    print(
        f"{len(views)} views of {len(shapes)} shapes; mean |F - SDF| median "
        f"{np.median(errors):.4f}, least {errors[0]:.4f}, most {errors[-1]:.4f}; "
        f"{np.median(seconds):.2f} s core a view, most {max(seconds):.2f}"
    )


def _shapes(views, count):
    """The first views of different shapes."""
    first = {}
    for entry in views:
        first.setdefault(entry[1], entry)
    return list(first.values())[:count]


def _turned(camera):
    """Azimuth and elevation of a camera, a quarter turn farther."""
    x, y, z = camera.position / np.linalg.norm(camera.position)
    return np.degrees(np.arctan2(x, z)) + 90, np.degrees(np.arcsin(y))


if __name__ == "__main__":
    main()
