"""What a picture's relief does to known bodies: true, blurred, decimated, off.

    python benchmarks/refining.py --shapes 12
    python benchmarks/refining.py --surfaces            # all of the list, with meshes

Each shape of the benchmark's list is seen by its first camera. The body is its coarse
one, the truth the detailed one; the error is the mean |F| at the points of the truth
that the picture shows, in world units (F is 0 there). Against the model's map stand
none, one of shading alone (the picture's brightness less its mean around, as high as
the model's map is on the average), and the model's map of another shape's picture.
"""

import zlib

import common

# ruff: isort: split
from dataclasses import replace

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from d2im.camera import Camera
from d2im.data.rendering import Renderer
from d2im.evaluate import benchmark
from d2im.evaluate.metrics import evaluate
from d2im.evaluate.tables import interval
from d2im.networks import D2IMNet
from d2im.sampling import HALF_BOX, signed_distance
from d2im.surface.extract import extract_mesh
from d2im.use.export import simplified
from d2im.use.reconstruction import MODEL, predict, triangulate
from d2im.use.refinement import FAINT, mesh_field, on_body

BODIES = ("true", "blurred", "decimated", "off 2", "off 5")
MAPS = ("none", "model", "shading", "wrong picture")
MEASURES = ("chamfer_l1", "normal_consistency", "ecd")  # of the visible side
GRID, BLUR = 80, 0.012  # samples a side of a blurred body, world units of its Gaussian
RELIEF, LIMIT = 0.005, 0.0003  # world units: visible relief, and what none may cost
EVERY = 5  # of the picture's pixels one is a point


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default=str(MODEL), help="folder")
    parser.add_argument("--shapes", type=int, help="of the list, spread (all)")
    parser.add_argument("--bodies", nargs="+", default=BODIES, choices=BODIES)
    parser.add_argument("--surfaces", action="store_true", help="mesh and measure, too")
    parser.add_argument("--resolution", type=int, default=128)
    options = common.opening(parser)
    model = D2IMNet.from_pretrained(options.model).eval()
    entries = benchmark.read_list()
    step = max(1, len(entries) // (options.shapes or len(entries)))
    entries = entries[::step][: options.shapes]
    results, other, seconds = [], None, 0.0
    for entry in [entries[-1], *entries]:  # the first one's wrong picture is the last
        scene = Scene(entry, model)
        if other is not None:
            found, took = common.core_time(lambda s=scene, o=other: rows(s, o, options))
            results += found
            seconds += took
            print(f"{entry['id']:22}", *(f"{r[2]} {1e4 * r[3]:.1f}" for r in found[:4]))
        other = scene
    print(f"{seconds / len(entries):.1f} core seconds a shape; errors times 10,000")
    for body in options.bodies:
        table(body, [r for r in results if r[1] == body], options.surfaces)


class Scene:
    """A listed shape, its picture, the points that it shows, and the model's map."""

    def __init__(self, entry, model):
        self.shape, self.id = benchmark.check_shape(entry), entry["id"]
        self.pose, size = entry["cameras"][0], model.image_size
        rng = np.random.default_rng(zlib.crc32(entry["id"].encode()))
        renderer, camera = Renderer(self.shape.detailed), Camera(*self.pose, size)
        view = renderer.view(camera, rng)
        origins, rays = (a.reshape(-1, 3)[::EVERY] for a in camera.rays())
        asked = np.ascontiguousarray(origins), np.ascontiguousarray(rays)
        depth = renderer.scene.run(*asked, query="DISTANCE")
        hit = depth < 1e6
        points = origins[hit] + depth[hit, None] * rays[hit]
        self.points = torch.from_numpy(points.astype(np.float32))
        found = predict(model, view.image, camera)
        self.found = replace(found, mask=torch.from_numpy(view.mask))
        self.front = torch.nn.functional.softshrink(found.displacement[0], FAINT)

    def shading(self):
        """A front map of the picture's brightness: what is brighter lies outward."""
        mask = self.found.mask.numpy()
        grey = self.found.image.mean(0).numpy() * mask
        width = len(mask) / 28
        around = gaussian_filter(grey, width) / gaussian_filter(mask * 1.0, width).clip(
            1e-3
        )
        height = (grey - around) * mask
        scale = self.front[self.found.mask].square().mean().sqrt().item()
        return torch.from_numpy(-height * scale / max(height[mask].std(), 1e-9)).float()


def bodies(scene, names):
    """(name, mesh, degrees that the camera is off) of each."""
    coarse = scene.shape.coarse
    for name in names:
        mesh = coarse
        if name == "blurred":
            mesh = blurred(coarse)
        elif name == "decimated":
            mesh = simplified(coarse, max(len(coarse.faces) // 3, 40))
        yield name, mesh, float(name[4:]) if name.startswith("off") else 0.0


def blurred(mesh):
    """A mesh whose signed distance is smoothed."""
    axis = np.linspace(-HALF_BOX, HALF_BOX, GRID)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values = signed_distance(mesh, points)[0].reshape(GRID, GRID, GRID)
    smooth = gaussian_filter(values, BLUR / (axis[1] - axis[0]), mode="nearest")
    values = torch.from_numpy(smooth).float()[None, None]

    def field(points):
        grid = points.flip(-1)[None, :, None, None] / HALF_BOX
        found = torch.nn.functional.grid_sample(values, grid, align_corners=True)
        return found.reshape(-1)

    return extract_mesh(field, GRID)


def rows(scene, other, options):
    """(shape, body, map, error, visible measures) of all bodies and maps."""
    made = []
    fronts = {"none": 0 * scene.front, "model": scene.front}
    fronts |= {"shading": scene.shading(), "wrong picture": other.front}
    for name, mesh, degrees in bodies(scene, options.bodies):
        azimuth, elevation, ratio = scene.pose
        turned = azimuth + degrees * 0.8, elevation + degrees * 0.6, ratio
        camera = Camera(*turned, len(scene.front))
        for kind, front in fronts.items():
            maps = torch.stack([front, torch.zeros_like(front)])
            found = replace(scene.found, displacement=maps, camera=camera)
            found = on_body(found, mesh_field(mesh), mesh)
            error = found.sdf(scene.points).abs().mean().item()
            measured = {}
            if options.surfaces:
                final = triangulate(found, options.resolution, base_mesh=False).mesh
                seen = {"camera": scene.found.camera, "skip": ("emd", "iou")}
                scores, _ = evaluate(final, scene.shape.detailed, **seen)
                measured = {m: scores[f"{m}_visible"].value for m in MEASURES}
            made.append((scene.id, name, kind, error, measured))
    return made


def table(body, found, surfaces):
    """Print a body's table: means, and what each map changes, with 95 % intervals."""
    errors = {k: np.array([r[3] for r in found if r[2] == k]) for k in MAPS}
    none = errors["none"]
    print(f"\nbody {body}: {len(none)} shapes")
    print("| map | error | less than none | better |\n|---|---|---|---|")
    for kind, values in errors.items():
        gain = 1e4 * (none - values)
        low, high = interval(gain)
        share = f"{(values < none).mean():.0%}"
        change = f"{gain.mean():.2f} [{low:.2f}, {high:.2f}]"
        print(f"| {kind} | {1e4 * values.mean():.1f} | {change} | {share} |")
        for measure in MEASURES if surfaces else ():
            own = np.array([r[4][measure] for r in found if r[2] == kind])
            print(f"|   {measure} | {own[np.isfinite(own)].mean():.4f} | | |")
    large = none > RELIEF
    better = (errors["model"] < none)[large].mean() if large.any() else np.nan
    added = (errors["model"] - none)[~large].max() if (~large).any() else np.nan
    print(
        f"relief above {RELIEF}: {large.sum()} shapes, the model's map is better on "
        f"{better:.0%}; of the others it adds at most {added:.4f} (wanted: {LIMIT} at "
        "most where there is no relief)"
    )


if __name__ == "__main__":
    main()
