"""How near a mesh comes that another program displaces by the exported height map.

    python benchmarks/displaced.py --shapes 3

As Blender's Displace modifier does with the words of displacement.json: the base's
vertices that the camera sees move along their normals by (value - midlevel) * strength,
the value read where camera.json projects them; or read again where they have come to,
as F is. Nothing of d2im but files is used for that. Printed is how far such vertices
lie from the exported final mesh, in world units.
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
from d2im.data.rendering import ray_scene, render
from d2im.data.shapes import make_shape
from d2im.networks import D2IMNet
from d2im.sampling import signed_distance
from d2im.use.reconstruction import MODEL
from d2im.use.refinement import RefineOptions, mesh_field, refine

SQUARE = 0.7  # cosine to the view of the vertices that are counted apart


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default=str(MODEL), help="folder")
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
            for reads in (1, 6):
                off, moved, cosine = displaced(folder, reads)
                for name, least in (("all", 0.2), ("square", SQUARE)):
                    there = (cosine > least) & (moved > 1e-3)
                    told = np.quantile(off[there], [0.5, 0.9])
                    about = f"{shape.family}, reads {reads}, {name}: {there.sum():,}"
                    about += (
                        f" moved by {moved[there].mean():.4f}, off by {told[0]:.5f}"
                    )
                    print(f"{about} at the median, 9 of 10 by less than {told[1]:.5f}")


def displaced(folder, reads):
    """Distances from the final mesh, what was moved, cosines to the view, (N,) each.

    Of vertices that the camera does not see the last are 0.
    """
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
    moved = points
    for _ in range(reads):
        seen = moved @ np.transpose(camera["R"]) + camera["t"]
        pixels = seen @ np.transpose(camera["K"])
        at = (pixels[:, :2] / pixels[:, 2:] - 0.5)[:, ::-1].T
        value = map_coordinates(values, at, order=1, mode="nearest")
        outward = (value - height["midlevel"]) * height["strength"]
        moved = points + normals * outward[:, None]
    view = -np.transpose(camera["R"]) @ camera["t"] - points
    distance = np.linalg.norm(view, axis=1)
    rays = view / distance[:, None]
    cosine = (normals * rays).sum(1)
    scene = ray_scene(np.asarray(base.triangles))
    starts = (points + 0.004 * rays).astype(np.float32)
    reach = distance.astype(np.float32)
    hit = scene.run(starts, rays.astype(np.float32), dists=reach, query="OCCLUDED")
    cosine = np.where(hit >= 0, 0, cosine)
    return np.abs(signed_distance(final, moved)[0]), np.abs(outward), cosine


if __name__ == "__main__":
    main()
