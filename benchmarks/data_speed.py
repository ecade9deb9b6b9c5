"""Core time that one example costs, stage by stage, over procedural shapes.

    python benchmarks/data_speed.py

Core time is the processor's time in this process over all its threads, so that a
busy machine changes it little; each figure is the median over the shapes. One shape
costs the last line; `prepare(workers=n)` makes n at once.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from d2im.camera import random_camera
from d2im.dataset import make_example, write_example
from d2im.rendering import Renderer
from d2im.sampling import density_weights, sample_points, signed_distance
from d2im.shapes import FAMILIES, make_shape


def core_time(work):
    """Run `work()`; return what it returned and its core time in seconds."""
    start = time.process_time()
    result = work()
    return result, time.process_time() - start


def measure(family, seed, folder, count, views, size):
    """Make one example in steps, then whole; return {stage: core seconds}."""
    rng, seconds = np.random.default_rng(seed), {}

    def timed(stage, work):
        result, seconds[stage] = core_time(work)
        return result

    shape = timed("make_shape", lambda: make_shape(family, seed))
    draw = timed("draw points", lambda: sample_points(shape.detailed, count, rng))
    points = draw.astype(np.float32)
    sdf, _ = timed("distance", lambda: signed_distance(shape.detailed, points))
    timed("weights", lambda: density_weights(points, sdf < 0))
    timed("coarse distance", lambda: signed_distance(shape.coarse, points))
    renderer = timed("ready to render", lambda: Renderer(shape.detailed))
    cameras = [random_camera(rng, size) for _ in range(views)]
    timed(f"{views} views", lambda: [renderer.view(c, rng) for c in cameras])

    settings = {"count": count, "views": views, "size": size}
    example, whole = core_time(
        lambda: make_example(shape.detailed, shape.coarse, rng, **settings)
    )
    timed("write", lambda: write_example(folder / "example.npz", example))
    seconds["all, as prepare does it"] = (
        seconds["make_shape"] + whole + seconds["write"]
    )
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="points a shape")
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--size", type=int, default=224, help="pixels of a view's side")
    parser.add_argument("--seeds", type=int, default=3, help="shapes of each family")
    options = parser.parse_args()
    settings = options.count, options.views, options.size
    table = []
    with tempfile.TemporaryDirectory() as folder:
        measure("chair", 99, Path(folder), 1000, 1, 32)  # first calls cost imports
        for family in FAMILIES:
            rows = [
                measure(family, seed, Path(folder), *settings)
                for seed in range(options.seeds)
            ]
            table.append(rows)
    print(
        "core seconds an example".ljust(26), *(f"{f:>8}" for f in FAMILIES), "    all"
    )
    for stage in table[0][0]:
        values = np.array([[row[stage] for row in rows] for rows in table])
        figures = [*np.median(values, axis=1), np.median(values)]
        print(stage.ljust(26), *(f"{figure:8.3f}" for figure in figures))


if __name__ == "__main__":
    main()
