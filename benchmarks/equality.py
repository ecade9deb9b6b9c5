"""Whether the mesh found coarse to fine is the dense grid's, on many shapes.

    python benchmarks/equality.py                   # true fields with relief
    python benchmarks/equality.py --model FOLDER    # a model's, of their pictures

True fields: the signed distance of a procedural shape's plain body on a grid whose
knots fall between the samples, trilinear between them, and a front map from the
detailed body, repeated on the back. Legs, slats and spokes are 2 to 5 cells thick at
128^3, some knobs less than one.

The dense grid evaluates every sample, and takes frontness everywhere from the exact
derivative. Equal are two meshes with the same numbers of faces and components, the same
Euler number, and vertices (jumps included) within 1e-4 of each other, both ways.
"""

import math
import time

import common
import numpy as np
import torch
from scipy.spatial import cKDTree

from d2im import meshing
from d2im.camera import random_camera
from d2im.data.rendering import render
from d2im.data.shapes import FAMILIES, make_shape
from d2im.networks import D2IMNet
from d2im.sampling import HALF_BOX, signed_distance

CORNERS = torch.tensor([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)])
WITHIN = 1e-4  # world units


def trilinear(mesh, knots):
    """A mesh's signed distance, between the knots of a grid, as a field."""
    axis = np.linspace(-HALF_BOX, HALF_BOX, knots, dtype="f4")
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1)
    grid = torch.tensor(signed_distance(mesh, points.reshape(-1, 3))[0]).float()
    pace = torch.tensor([knots**2, knots, 1])

    def look_up(points):
        place = (points + HALF_BOX) * ((knots - 1) / (2 * HALF_BOX))
        low = place.long().clamp(0, knots - 2)
        values = grid[((low[:, None] + CORNERS) * pace).sum(-1)]  # (P, 8)
        inside = (place - low)[:, None]
        weights = torch.where(CORNERS == 1, inside, 1 - inside)  # (P, 8, 3)
        return values, weights

    def field(points):
        values, weights = look_up(points)
        return (values * weights.prod(-1)).sum(-1)

    def along(points, direction):
        values, weights = look_up(points)
        signs = (CORNERS * 2 - 1) * direction * ((knots - 1) / (2 * HALF_BOX))
        other = torch.stack([weights.roll(-k, -1)[..., :2].prod(-1) for k in (1, 2, 3)])
        slope = (values * (signs * other.permute(1, 2, 0)).sum(-1)).sum(-1)
        return (values * weights.prod(-1)).sum(-1), slope

    field.along = along
    return field


def true_fields(family, seed, knots):
    """A base field and the relief of its detailed body."""
    shape, rng = make_shape(family, seed), np.random.default_rng(seed)
    camera = random_camera(rng, 224)
    view = render(shape.detailed, camera, rng)
    origins, rays = camera.rays()
    seen = (origins + view.depth[..., None] * rays)[view.mask]
    maps = torch.zeros(2, 224, 224)
    relief = -signed_distance(shape.coarse, seen.astype("f4"))[0]
    maps[:, torch.tensor(view.mask)] = torch.tensor(relief).float()
    return trilinear(shape.coarse, knots), (maps, camera, "gradient")


def model_fields(model, family, seed):
    """A model's fields of a picture of a shape."""
    rng = np.random.default_rng(seed)
    camera = random_camera(rng, model.image_size)
    image = render(make_shape(family, seed).detailed, camera, rng).image
    with torch.no_grad():
        base, _, maps = model.fields(torch.tensor(image)[None], camera)
    return base, (maps, camera, "gradient")


def apart(mesh, dense):
    """The largest distance of a vertex of one to the other's, or why there is none."""
    for name in ("faces", "body_count", "euler_number"):
        counts = [getattr(m, name) for m in (mesh, dense)]
        counts = [len(c) if name == "faces" else c for c in counts]
        if counts[0] != counts[1]:
            return f"{name} {counts[0]} against {counts[1]}"
    pairs = (mesh, dense), (dense, mesh)
    return max(cKDTree(a.vertices).query(b.vertices)[0].max() for a, b in pairs)


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--shapes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=10_200, help="of the first shapes")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--knots", type=int, default=75, help="of the true fields")
    parser.add_argument("--model", help="folder")
    options = common.opening(parser)
    model = D2IMNet.from_pretrained(options.model) if options.model else None
    steep, equal, jumps, shares, start = meshing.STEEP, 0, 0, [], time.process_time()
    for k in range(options.shapes):
        family = FAMILIES[k % len(FAMILIES)]
        seed = options.seed + k // len(FAMILIES)
        if model:
            field, relief = model_fields(model, family, seed)
        else:
            field, relief = true_fields(family, seed, options.knots)
        meshes = []
        for coarse, steepness in ((16, steep), (options.resolution, math.inf)):
            meshing.STEEP = steepness
            args = {"relief": relief, "both": True, "coarse": coarse}
            meshes.append(meshing.extract_mesh(field, options.resolution, **args))
        found = [apart(*pair) for pair in zip(*meshes, strict=True)]
        good = all(not isinstance(f, str) and f < WITHIN for f in found)
        equal += good
        _, mesh = meshes[0]
        jumps += mesh.metadata["jumps"]
        shares.append(mesh.metadata["evaluations"] / options.resolution**3)
        print(
            f"{family}:{seed}  {mesh.body_count} components, Euler number "
            f"{mesh.euler_number}, {mesh.metadata['jumps']} jumps, {shares[-1]:.1%} "
            f"evaluated; base {found[0]}, final {found[1]}",
            flush=True,
        )
    print(
        f"{equal} of {options.shapes} equal (base and final mesh); {jumps} jumps, "
        f"{np.median(shares):.1%} of the grid evaluated; "
        f"{time.process_time() - start:.0f} s core"
    )


if __name__ == "__main__":
    main()
