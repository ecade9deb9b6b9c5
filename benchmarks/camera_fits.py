"""How near `fit_camera` comes to the camera of a picture of a known mesh.

    python benchmarks/camera_fits.py --procedural 12
    python benchmarks/camera_fits.py --meshes FOLDER --count 60 --bodies true blurred

FOLDER holds mesh files, or examples that were made of some. Each mesh is rendered from
a random camera of training's ranges. "true" is that mesh again, "blurred" its signed
distance smoothed, where two thirds of its volume outlast that. Masks are the
rendering's ("whole"), or "eroded" by two pixels at the outline of random blocks.
Mirrored is a best fit that is more than 30° off while another one is within 5°.
"""

import common

# ruff: isort: split
import numpy as np
from refining import blurred, mesh_shapes
from scipy.ndimage import binary_erosion

from d2im.camera import random_camera
from d2im.data.files import one_line
from d2im.data.rendering import Renderer
from d2im.data.shapes import FAMILIES, make_shape
from d2im.evaluate import benchmark
from d2im.use.cameras import fit_camera, turn_between

SIZE, BLOCK, SHARE = 224, 16, 0.3  # pixels, pixels of blocks, share that is eroded


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--procedural", type=int, default=0, metavar="COUNT")
    about = "of mesh files, or of examples made of some"
    parser.add_argument("--meshes", metavar="FOLDER", help=about)
    parser.add_argument("--count", type=int, help="of these, spread (all)")
    kinds = ["true", "blurred"]
    parser.add_argument("--bodies", nargs="+", default=kinds[:1], choices=kinds)
    kinds = ["whole", "eroded"]
    parser.add_argument("--masks", nargs="+", default=kinds[:1], choices=kinds)
    parser.add_argument("--focal", choices=["known", "free"], default="known")
    parser.add_argument("--seed", type=int, default=0)
    options = common.opening(parser)
    names = [(FAMILIES[k % 13], 30_000 + k) for k in range(options.procedural)]
    meshes = [
        ("procedural", f"{f}-{s}", lambda f=f, s=s: make_shape(f, s).detailed)
        for f, s in names
    ]
    if options.meshes:
        real = mesh_shapes(options.meshes, coarse=False)
        some = benchmark.spread(len(real), options.count or 0)
        real = [real[k] for k in some]
        meshes += [("real", name, lambda m=make: m()[0]) for name, make, _ in real]
    cases = [(body, mask) for body in options.bodies for mask in options.masks]
    found = {}
    for index, (source, name, make) in enumerate(meshes):
        rng = np.random.default_rng([options.seed, index])
        camera = random_camera(rng, SIZE)
        try:
            mesh = make()
            view = Renderer(mesh, True).view(camera, rng)
        except (ValueError, RuntimeError) as error:  # meshes of other people's
            print(f"{name:40} left out: {one_line(error)}", flush=True)
            continue
        bodies = {b: blurred(mesh) if b == "blurred" else mesh for b in options.bodies}
        for body, kind in cases:
            if bodies[body] is None:
                print(f"{name:40} {body}: too thin", flush=True)
                continue
            mask = view.mask if kind == "whole" else eroded(view.mask, rng)
            known = {"mask": mask, "focal": options.focal}
            try:
                fits, seconds = common.core_time(
                    lambda b=bodies[body], k=known, v=view: fit_camera(b, v.image, **k)
                )
            except ValueError as error:  # it counts as not found
                print(f"{name:40} {body} {kind}: {one_line(error)}", flush=True)
                found.setdefault((source, body, kind), []).append((180, 180, np.nan))
                continue
            turns = [turn_between(fit.camera, camera) for fit in fits]
            row = turns[0], min(turns), seconds
            found.setdefault((source, body, kind), []).append(row)
            told = f"{turns[0]:.1f}°, best of {len(turns)} {min(turns):.1f}°"
            print(f"{name:40} {body} {kind}: {told}, {seconds:.1f} s", flush=True)
    about = "meshes | body, mask | median | within 2° | within 5° | mirrored"
    print(f"| {about} | core seconds |")
    print("|---|---|---|---|---|---|---|")
    for (source, body, kind), rows in found.items():
        first, best, seconds = np.array(rows).T
        mirrored = ((first > 30) & (best < 5)).mean()
        shares = f"{(first < 2).mean():.0%} | {(first < 5).mean():.0%} | {mirrored:.0%}"
        numbers = f"{np.median(first):.2f}° | {shares} | {np.nanmedian(seconds):.1f}"
        print(f"| {len(rows)} {source} | {body}, {kind} | {numbers} |")


def eroded(mask, rng):
    """A mask that lacks two pixels of its rim in some blocks, as a cut-out may."""
    blocks = rng.random((-(-len(mask) // BLOCK),) * 2) < SHARE
    there = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[: len(mask), : len(mask)]
    return np.where(there, binary_erosion(mask, iterations=2), mask)


if __name__ == "__main__":
    main()
