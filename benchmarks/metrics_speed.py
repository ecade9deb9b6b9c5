"""Core time of the measures, over predicted meshes of about 50,000 faces.

    OMP_NUM_THREADS=1 python benchmarks/metrics_speed.py

Each prediction is a procedural shape's distance field, swollen by 0.004 and dented by
waves of 0.003, meshed as a network's field would be. Core time is the processor's time
in this process over all its threads. Whole and visible surface are both measured.
"""

import time

import common
import numpy as np
import torch

from d2im.camera import random_camera
from d2im.data.shapes import FAMILIES, make_shape
from d2im.evaluate.metrics import PROTOCOLS, evaluate
from d2im.sampling import signed_distance
from d2im.surface.extract import extract_mesh

FACES = 50_000
ALL = list(PROTOCOLS["d2im"])


def predict(truth):
    """A mesh of about FACES faces near a true one."""

    def field(points):
        waves = 0.003 * torch.sin(40 * points).sum(1)
        found = signed_distance(truth, points.numpy())[0]
        return torch.from_numpy(found).float() - 0.004 + waves

    resolution = 96
    for _ in range(2):  # the number of faces grows with the resolution's square
        mesh = extract_mesh(field, resolution)
        resolution = round(resolution * (FACES / len(mesh.faces)) ** 0.5)
    return extract_mesh(field, resolution)


def core_time(**options):
    """The less of two runs: other work on the machine only adds."""
    times = []
    for _ in range(2):
        start = time.process_time()
        evaluate(**options)
        times.append(time.process_time() - start)
    return min(times)


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--shapes", type=int, default=100)
    table = []
    for k in range(common.opening(parser).shapes):
        truth = make_shape(FAMILIES[k % len(FAMILIES)], k).detailed
        mesh = predict(truth)
        camera = random_camera(np.random.default_rng(k), 112)
        pair = {"prediction": mesh, "truth": truth, "camera": camera}
        emd = {"skip": [n for n in ALL if n != "emd"]}
        if k == 0:  # first calls cost imports
            core_time(**pair)
        all_but = core_time(**pair, skip=["emd"])
        table.append((len(mesh.faces), all_but, core_time(**pair, **emd)))
        print(f"{k:4} {table[-1][0]:7,} faces {all_but:.2f} {table[-1][2]:.2f}")
    for name, column in zip(
        ("faces", "all but EMD", "EMD"), np.transpose(table), strict=True
    ):
        low, middle, high = np.percentile(column, [0, 50, 100])
        print(f"{name:12} {low:10.2f} {middle:10.2f} {high:10.2f}  (least to most)")


if __name__ == "__main__":
    main()
