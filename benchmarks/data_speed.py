"""Core time that one example costs, stage by stage.

    python benchmarks/data_speed.py --views 24
    python benchmarks/data_speed.py --views 24 --meshes FOLDER
    python benchmarks/data_speed.py --waits 0.2

Procedural shapes, some seeds of each family; or the mesh files of a folder.

Core time is the processor's time in this process over all its threads, so that a
busy machine changes it little; each figure is the median over the shapes. One shape
costs the last line; `prepare(workers=n)` makes n at once. `--waits` instead tells how
long a training step of so many seconds waits for its batch of 16, from a set of which
nothing is kept in memory, against one that is kept whole.
"""

import tempfile
import time
from pathlib import Path

import common
import numpy as np

from d2im.camera import random_camera
from d2im.data.dataset import (
    ShapeDataset,
    make_example,
    prepare,
    source_meshes,
    write_example,
)
from d2im.data.mesh import find_meshes
from d2im.data.rendering import Renderer
from d2im.data.shapes import FAMILIES
from d2im.sampling import density_weights, sample_points, signed_distance
from d2im.training.loop import _batches

BATCH, STEPS = 16, 20


def measure(row, folder, count, views, size):
    """Make one example in steps, then whole; return {stage: core seconds}."""
    rng, seconds = np.random.default_rng(0), {}

    def timed(stage, work):
        result, seconds[stage] = common.core_time(work)
        return result

    detailed, coarse = timed("make or read mesh", lambda: source_meshes(row))
    draw = timed("draw points", lambda: sample_points(detailed, count, rng))
    points = draw.astype(np.float32)
    sdf, _ = timed("distance", lambda: signed_distance(detailed, points))
    timed("weights", lambda: density_weights(points, sdf < 0))
    if coarse is not None:
        timed("coarse distance", lambda: signed_distance(coarse, points))
    renderer = timed("ready to render", lambda: Renderer(detailed))
    cameras = [random_camera(rng, size) for _ in range(views)]
    timed(f"{views} views", lambda: [renderer.view(c, rng) for c in cameras])

    settings = {"count": count, "views": views, "size": size}
    example, whole = common.core_time(
        lambda: make_example(detailed, coarse, rng, **settings)
    )
    path = folder / "example.npz"
    timed("write", lambda: write_example(path, example))
    made = seconds["make or read mesh"] + whole + seconds["write"]
    seconds["all, as prepare does it"] = made
    return seconds, len(detailed.faces), path.stat().st_size


def wait(data, workers, step):
    """Median wall seconds that a step waits, but for the batches made ahead."""
    keys = [(k % len(data), k) for k in range(BATCH * STEPS)]
    batches = [keys[k : k + BATCH] for k in range(0, len(keys), BATCH)]
    waited, begun = [], time.perf_counter()
    for _ in _batches(data, batches, "cpu", workers):
        waited.append(time.perf_counter() - begun)
        until = time.process_time() + step
        while time.process_time() < until:
            pass
        begun = time.perf_counter()
    return np.median(waited[max(1, 2 * workers) :])


def waits(folder, settings, step):
    """Print a step's wait by what is kept, and by the processes that read."""
    pairs = [(family, 0) for family in FAMILIES]
    names = dict(zip(("count", "views", "size"), settings, strict=True))
    prepare(pairs, folder, timeout=None, **names)
    for room, kept in ((ShapeDataset.memory, "all kept"), (0, "none kept")):
        data = ShapeDataset(folder)
        data.memory = room
        for index in range(len(data)):  # each is looked at for damage once
            data[index]
        for workers in (0, 1, 2):
            found = wait(data, workers, step)
            print(f"{kept}, {workers} workers: {found:.3f} s, {found / step:.2f} steps")


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="points a shape")
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--size", type=int, default=224, help="pixels of a view's side")
    parser.add_argument("--meshes", help="folder of mesh files to measure instead")
    parser.add_argument("--seeds", type=int, default=3, help="shapes of each family")
    about = "core seconds of a training step that waits for data"
    parser.add_argument("--waits", type=float, metavar="S", help=about)
    options = common.opening(parser)
    settings = options.count, options.views, options.size
    if options.waits:
        with tempfile.TemporaryDirectory() as folder:
            return waits(Path(folder), settings, options.waits)
    if options.meshes:
        groups = {
            path.stem: [{"source": path, "up": "y", "yaw": 0}]
            for path in find_meshes(options.meshes)
        }
    else:
        seeds = range(options.seeds)
        groups = {f: [{"family": f, "seed": seed} for seed in seeds] for f in FAMILIES}
    table = []
    with tempfile.TemporaryDirectory() as folder:
        # First calls cost imports.
        measure({"family": "chair", "seed": 99}, Path(folder), 1000, 1, 32)
        for name, rows in groups.items():
            figures = [measure(row, Path(folder), *settings) for row in rows]
            table += figures
            whole = [seconds["all, as prepare does it"] for seconds, *_ in figures]
            faces = np.median([faces for _, faces, _ in figures])
            print(f"{name:26} {faces:7.0f} faces {np.median(whole):8.2f} s", flush=True)
    print("median core seconds of an example")
    for stage in table[0][0]:
        figure = np.median([seconds[stage] for seconds, *_ in table])
        print(f"{stage:26} {figure:8.3f}")
    print(
        f"mean of all {np.mean([s['all, as prepare does it'] for s, *_ in table]):.2f}"
    )
    print(f"bytes of a file {np.mean([size for *_, size in table]):,.0f}")


if __name__ == "__main__":
    main()
