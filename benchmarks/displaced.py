"""How near a mesh comes that another program displaces by the exported height map.

    python benchmarks/displaced.py --shapes 3

As Blender's Displace modifier does with the words of displacement.json: the base's
vertices that face the camera move along their normals by (value - midlevel) * strength,
the value read where camera.json projects them. Nothing of d2im but files is used for
that. Printed is how far such vertices lie from the exported final mesh, in world units.
"""

import common

# ruff: isort: split
import json
import tempfile
from pathlib import Path

import numpy as np
import trimesh
from PIL import Image
from scipy.ndimage import map_coordinates

from d2im.camera import Camera
from d2im.data.rendering import render
from d2im.data.shapes import make_shape
from d2im.networks import D2IMNet
from d2im.sampling import signed_distance
from d2im.use.reconstruction import RELIEF_MODEL
from d2im.use.refinement import RefineOptions, mesh_field, refine

SQUARE = 0.7  # cosine to the view of the vertices that are counted apart


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default=str(RELIEF_MODEL), help="folder")
    parser.add_argument("--shapes", type=int, default=3)
    options = common.opening(parser)
    model = D2IMNet.from_pretrained(options.model).eval()
    camera = Camera(30, 20, 0.9, model.image_size)
    families = ("cabinet", "vase", "loudspeaker", "chair", "sofa")
    for k in range(options.shapes):
        shape = make_shape(families[k % len(families)], 10_101 + k)
        image = render(shape.detailed, camera, np.random.default_rng(k)).image
        body, settings = mesh_field(shape.coarse), RefineOptions(resolution=192)
        found = refine(model, body, image, camera, options=settings)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            for name in ("final", "base"):
                found.export(folder / f"{name}.glb", name, keep="all")
            found.export_maps(folder)
            off, moved, cosine = displaced(folder)
        for name, there in (("all", cosine > 0.2), ("square", cosine > SQUARE)):
            there &= moved > 1e-3
            print(
                f"{shape.family} {name}: {there.sum():,} vertices moved by "
                f"{moved[there].mean():.4f} lie {np.median(off[there]):.5f} off at the "
                f"median, {off[there].mean():.5f} on the average"
            )


def displaced(folder):
    """Distances from the final mesh, what was moved, cosines to the view, (N,) each."""
    about, camera = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("displacement", "camera")
    )
    base, final = (
        trimesh.load(folder / f"{name}.glb", force="mesh", process=False)
        for name in ("base", "final")
    )
    height = about["height"]
    values = np.asarray(Image.open(folder / height["image"])) / 65535
    points, normals = np.asarray(base.vertices), np.asarray(base.vertex_normals)
    seen = points @ np.transpose(camera["R"]) + camera["t"]
    pixels = seen @ np.transpose(camera["K"])
    at = (pixels[:, :2] / pixels[:, 2:] - 0.5)[:, ::-1].T
    value = map_coordinates(values, at, order=1, mode="nearest")
    outward = (value - height["midlevel"]) * height["strength"]
    view = -seen / np.linalg.norm(seen, axis=1, keepdims=True)
    cosine = (normals @ np.transpose(camera["R"]) * view).sum(1)
    outward = np.where(cosine > 0, outward, 0)
    moved = points + normals * outward[:, None]
    return np.abs(signed_distance(final, moved)[0]), np.abs(outward), cosine


if __name__ == "__main__":
    main()
