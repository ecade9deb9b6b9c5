"""What a picture's relief does to known bodies: true, blurred, decimated, off.

    python benchmarks/refining.py --shapes 12
    python benchmarks/refining.py --surfaces            # all of the list, with meshes
    python benchmarks/refining.py --meshes FOLDER --shapes 60

Each shape of the benchmark's list is seen by its first camera, each mesh of FOLDER by
one of training's, drawn for its name. The truth is the detailed shape, hollows filled,
the body its coarse one, of a mesh that of `data.coarse`. The error is the mean |F| at
the points of the truth that the picture shows, in world units (F is 0 there); visible
relief is |F_coarse| there, its mean or its 95th percentile. Of a mesh the true body's
distance is free of the grid that it is cut from (`coarse_distance`), the other bodies'
is not; a blurred one that lost a third of its volume is left out.

Against the model's map stand none, one of shading alone (the picture's brightness less
its mean around, as high as the model's map is on the average), and the model's map of
another shape's picture. Intervals are of the differences to none, shape by shape.
"""

import zlib

import common

# ruff: isort: split
from contextlib import suppress
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from d2im.camera import Camera, random_camera
from d2im.data.coarse import MOST_RELIEF, coarse_distance
from d2im.data.dataset import read_index, source_meshes
from d2im.data.files import one_line
from d2im.data.mesh import find_meshes
from d2im.data.rendering import Renderer
from d2im.evaluate import benchmark
from d2im.evaluate.metrics import evaluate
from d2im.evaluate.tables import interval
from d2im.networks import D2IMNet
from d2im.sampling import HALF_BOX, signed_distance
from d2im.surface.extract import NoSurface, extract_mesh
from d2im.use.export import simplified
from d2im.use.reconstruction import MODEL, predict, triangulate
from d2im.use.refinement import FAINT, on_body

REST = 2 / 3  # of a volume: less is left of a thin thing than a body
BODIES = ("true", "blurred", "decimated", "off 2", "off 5")
MAPS = ("none", "model", "shading", "wrong picture")
MEASURES = ("chamfer_l1", "normal_consistency", "ecd")  # of the visible side
GRID, BLUR = 80, 0.012  # samples a side of a blurred body, world units of its Gaussian
RELIEF, LIMIT = 0.005, 0.0003  # world units: visible relief, and what none may cost
NONE = 0.0005  # world units: less visible relief is none
SHARE = 0.7  # of the shapes with relief, which are to be better
EVERY = 5  # of the picture's pixels one is a point


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--model", default=str(MODEL), help="folder")
    about = "folder of mesh files, or of examples made of some, instead of the list"
    parser.add_argument("--meshes", metavar="FOLDER", help=about)
    parser.add_argument("--shapes", type=int, help="of these, spread (all)")
    parser.add_argument("--bodies", nargs="+", default=BODIES, choices=BODIES)
    parser.add_argument("--surfaces", action="store_true", help="mesh and measure, too")
    parser.add_argument("--resolution", type=int, default=128)
    options = common.opening(parser)
    model = D2IMNet.from_pretrained(options.model).eval()
    shapes = mesh_shapes(options.meshes) if options.meshes else listed_shapes()
    shapes = [shapes[k] for k in benchmark.spread(len(shapes), options.shapes or 0)]
    results, other, seconds = [], None, [0.0]
    for shape in reversed(shapes):  # the first's wrong picture is the last that can be
        with suppress(ValueError, RuntimeError):
            other = Scene(*shape, model)
            break
    for shape in shapes:
        try:
            scene, took = common.core_time(lambda s=shape: Scene(*s, model))
            found, more = common.core_time(lambda s=scene, o=other: rows(s, o, options))
        except (ValueError, RuntimeError) as error:  # meshes of other people's
            print(f"{shape[0]:40} left out: {one_line(error)}", flush=True)
            continue
        results += found
        seconds.append(took + more)
        told = (f"{r[2]} {1e4 * r[3]:.1f}" for r in found[: len(MAPS)])
        mean, high = 1e4 * np.array(scene.relief)
        about = f"{scene.id:40} relief {mean:.1f}, {high:.1f};"
        print(about, *told, flush=True)
        other = scene
    told = f"{np.sum(seconds) / max(len(seconds) - 1, 1):.1f} core seconds a shape"
    print(f"{told}, with making it; errors and relief times 10,000")
    for body in options.bodies:
        if found := [r for r in results if r[1] == body]:
            table(body, found, options.surfaces)


def listed_shapes():
    """(name, function that makes detailed and coarse mesh, pose) of the list's."""

    def make(entry):
        shape = benchmark.check_shape(entry)
        return shape.detailed, shape.coarse

    entries = benchmark.read_list()
    return [(e["id"], partial(make, e), e["cameras"][0]) for e in entries]


def mesh_shapes(folder, coarse=True):
    """The same of mesh files, or of the examples that were made of some; no pose."""
    rows = [row for row in read_index(folder) if row["status"] == "ok"]
    if not rows:
        turn = {"up": "y", "yaw": 0, "caps": "auto", "interior": "fill"}
        paths = find_meshes(folder)
        rows = [turn | {"id": path.stem, "source": str(path)} for path in paths]
    rows = [row | {"coarse": "levels" if coarse else "none"} for row in rows]
    return [(row["id"], partial(source_meshes, row), None) for row in rows]


class Scene:
    """A shape, its picture, the points that it shows, and the model's map.

    Attributes: relief: how far these points are from the coarse body, the mean and the
        95th percentile.
    """

    def __init__(self, name, make, pose, model):
        (self.detailed, self.coarse), self.id = make(), name
        size, rng = model.image_size, np.random.default_rng(zlib.crc32(name.encode()))
        self.pose = pose or random_camera(rng, size).pose
        renderer, camera = Renderer(self.detailed, True), Camera(*self.pose, size)
        view = renderer.view(camera, rng)
        origins, rays = (a.reshape(-1, 3)[::EVERY] for a in camera.rays())
        asked = np.ascontiguousarray(origins), np.ascontiguousarray(rays)
        depth = renderer.scene.run(*asked, query="DISTANCE")
        hit = depth < 1e6
        points = origins[hit] + depth[hit, None] * rays[hit]
        self.points = torch.from_numpy(points.astype(np.float32))
        away = np.abs(coarse_distance(self.coarse, points, 0.0))
        self.relief = away.mean(), np.quantile(away, 0.95)
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
    """(name, mesh, its field, degrees that the camera is off) of each."""
    coarse = scene.coarse
    known = remembered(coarse)
    if "whole" in coarse.metadata:
        known = levelled_field(coarse, scene.detailed)
    for name in names:
        mesh = coarse
        if name == "blurred":
            if (mesh := blurred(coarse)) is None:
                continue
        elif name == "decimated":
            mesh = simplified(coarse, max(len(coarse.faces) // 3, 40))
        field = remembered(mesh) if mesh is not coarse else known
        yield name, mesh, field, float(name[4:]) if name.startswith("off") else 0.0


def remembered(mesh):
    """`mesh_field`, but a point is measured once: all maps ask nearly the same ones."""
    known = {}  # of a point's bytes: distance and gradient

    def along(points, direction):
        asked = np.ascontiguousarray(points.double().cpu().numpy())
        keys = asked.view("V24").ravel().tolist()
        new = [k for k, key in enumerate(keys) if key not in known]
        if new:
            rows = np.column_stack(signed_distance(mesh, asked[new]))
            known.update(zip((keys[k] for k in new), rows, strict=True))
        found = np.array([known[key] for key in keys]).reshape(-1, 4)
        slope = found[:, 1:] @ direction.double().cpu().numpy()
        return [torch.from_numpy(a).to(points) for a in (found[:, 0], slope)]

    def field(points):
        return along(points, points.new_zeros(3))[0]

    field.along = along
    return field


def levelled_field(coarse, detailed):
    """A mesh's distance without its relief, with its derivative; `coarse_distance`."""
    parts = [remembered(m) for m in (detailed, coarse.metadata["whole"], coarse)]

    def along(points, direction):
        values, slopes = zip(*(f.along(points, direction) for f in parts), strict=True)
        relief, slope = values[1] - values[2], slopes[1] - slopes[2]
        kept = relief.clamp(-MOST_RELIEF, MOST_RELIEF)
        return [values[0] - kept, slopes[0] - slope * (kept == relief)]

    def field(points):
        return along(points, points.new_zeros(3))[0]

    field.along = along
    return field


def blurred(mesh):
    """A mesh whose signed distance is smoothed; None of one too thin for that."""
    axis = np.linspace(-HALF_BOX, HALF_BOX, GRID)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)
    values = signed_distance(mesh, points)[0].reshape(GRID, GRID, GRID)
    smooth = gaussian_filter(values, BLUR / (axis[1] - axis[0]), mode="nearest")
    values = torch.from_numpy(smooth).float()[None, None]

    def field(points):
        grid = points.flip(-1)[None, :, None, None] / HALF_BOX
        found = torch.nn.functional.grid_sample(values, grid, align_corners=True)
        return found.reshape(-1)

    try:
        found = extract_mesh(field, GRID)
    except NoSurface:
        return None
    return found if found.volume > REST * mesh.volume else None


def rows(scene, other, options):
    """(relief, body, map, error, visible measures) of all bodies and maps."""
    made, bare = [], None
    fronts = {"none": 0 * scene.front, "model": scene.front}
    fronts |= {"shading": scene.shading(), "wrong picture": other.front}
    for name, mesh, field, degrees in bodies(scene, options.bodies):
        azimuth, elevation, ratio = scene.pose
        turned = azimuth + degrees * 0.8, elevation + degrees * 0.6, ratio
        camera = Camera(*turned, len(scene.front))
        for kind, front in fronts.items():
            maps = torch.stack([front, torch.zeros_like(front)])
            found = replace(scene.found, displacement=maps, camera=camera)
            found = on_body(found, field, mesh)
            alone = kind == "none" and mesh is scene.coarse  # for any camera the same
            values = (alone and bare) or scores(scene, found, options)
            bare = values if alone else bare
            made.append((scene.relief, name, kind, *values))
    return made


def scores(scene, found, options):
    """A result's error at the points that are seen, and its visible measures."""
    error, measured = found.sdf(scene.points).abs().mean().item(), {}
    if options.surfaces:
        final = triangulate(found, options.resolution, base_mesh=False).mesh
        seen = {"camera": scene.found.camera, "skip": ("emd", "iou")}
        values, _ = evaluate(final, scene.detailed, **seen)
        measured = {m: values[f"{m}_visible"].value for m in MEASURES}
    return error, measured


def table(body, found, surfaces):
    """Print a body's table: means, and what each map changes, with 95 % intervals."""
    relief = np.array([r[0] for r in found if r[2] == "none"])
    columns = {"error": {k: [1e4 * r[3] for r in found if r[2] == k] for k in MAPS}}
    for measure in MEASURES if surfaces else ():
        columns[measure] = {
            k: [r[4][measure] for r in found if r[2] == k] for k in MAPS
        }
    print(f"\nbody {body}: {len(relief)} shapes")
    print("| measure | map | mean | less than none [95 %] | better |")
    print("|---|---|---|---|---|")
    for measure, kinds in columns.items():
        for kind, values in kinds.items():
            values, none = np.array(values), np.array(kinds["none"])
            known = np.isfinite(values) & np.isfinite(none)
            gain = (none - values)[known]
            better = gain < 0 if measure == "normal_consistency" else gain > 0
            low, high = interval(gain)
            change = f"{gain.mean():.4g} [{low:.4g}, {high:.4g}] | {better.mean():.0%}"
            mean = f"{values[known].mean():.4g}"
            print(f"| {measure} | {kind} | {mean} | {change} |")
    gains = {
        k: 1e-4 * np.subtract(columns["error"]["none"], columns["error"][k])
        for k in MAPS
    }
    for name, values in zip(("mean", "95th percentile"), relief.T, strict=True):
        print(f"by the {name} of visible relief:")
        criteria(values, gains)


def criteria(relief, gains):
    """Print what is wanted of the model's map, and what there is.

    Args: relief: (N,) visible, world units. gains: by map, (N,) world units.
    """
    large, none = relief > RELIEF, relief < NONE
    for name, chosen in (("above", large), ("between", ~large & ~none), ("none", none)):
        if not chosen.any():
            print(f"relief {name}: no shape")
            continue
        own = gains["model"][chosen]
        low, high = 1e4 * np.array(interval(own))
        told = f"mean gain {1e4 * own.mean():.2f} [{low:.2f}, {high:.2f}] times 10,000"
        told += (
            f", better on {(own > 0).mean():.0%}, most lost {max(0, -own.min()):.4f}"
        )
        print(f"relief {name}: {chosen.sum()} shapes, {told}")
    wanted = [f"better on {SHARE:.0%} where relief is above {RELIEF}"]
    wanted.append(f"no more than {LIMIT} lost where it is below {NONE}")
    wanted.append("nothing gained by the wrong picture")
    kept = [
        (gains["model"][large] > 0).mean() >= SHARE if large.any() else None,
        gains["model"][none].min() >= -LIMIT if none.any() else None,
        interval(gains["wrong picture"])[0] <= 0,
    ]
    words = {None: "no such shape", True: "yes", False: "no"}
    for said, holds in zip(wanted, kept, strict=True):
        print(f"- {said}: {words[holds and bool(holds)]}")


if __name__ == "__main__":
    main()
