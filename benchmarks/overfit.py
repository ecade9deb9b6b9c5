"""Each model overfitted on one batch: the fall of its losses, and its IoU.

    python benchmarks/overfit.py

Four procedural shapes, one picture of each, are the whole batch; the points are drawn
anew at each step from the 100,000 stored ones. IoU is by the signs of the field and of
the true distance at 100,000 points, uniform in the box that meshes are extracted from.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from d2im.dataset import ShapeDataset, prepare, source_meshes
from d2im.networks import DISN, D2IMNet, IMNet
from d2im.sampling import HALF_BOX, signed_distance
from d2im.training import TrainingConfig, train

CONFIG = TrainingConfig(batch_size=4, warmup_steps=100)


def overfit(kind, preset, data, folder, config):
    """Train one model on all shapes of a data set; its records and core seconds."""
    torch.manual_seed(0)
    model = kind.preset(preset)
    begun = time.process_time()
    records = list(train(model, data, folder / kind.__name__, config))
    return model, records, time.process_time() - begun


@torch.no_grad()
def iou(model, data, index, points, inside):
    """IoU of a model's field with the truth, whose signs at the points are known."""
    image = data[index]["image"][None]
    found = model.fields(image, data.camera(index, 0))[1](points).numpy() < 0
    return (found & inside).sum() / (found | inside).sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--points", type=int, default=2048, help="a shape and step")
    parser.add_argument("--weighted", action="store_true", help="draw by density")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--families", default="chair table cabinet sofa")
    parser.add_argument("--models", default="D2IMNet IMNet DISN")
    options = parser.parse_args()
    config = replace(
        CONFIG,
        steps=options.steps,
        learning_rate=options.rate,
        precision=options.precision,
        checkpoint_every=options.steps,
    )
    uniform = np.random.default_rng(1).uniform(-HALF_BOX, HALF_BOX, (100_000, 3))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        source = [(family, 7) for family in options.families.split()]
        size = {"small": 112, "paper": 224}[options.preset]
        prepare(source, folder / "data", views=1, size=size, progress=False)
        data = ShapeDataset(
            folder / "data", points=options.points, view=0, weighted=options.weighted
        )
        truth = [source_meshes(row)[0] for row in data.rows]
        signs = [signed_distance(mesh, uniform)[0] < 0 for mesh in truth]
        for row, inside in zip(data.rows, signs, strict=True):
            print(f"{row['id']}: {inside.mean():.1%} of the box is inside", flush=True)
        for kind in (D2IMNet, IMNet, DISN):
            if kind.__name__ not in options.models.split():
                continue
            model, records, seconds = overfit(
                kind, options.preset, data, folder, config
            )
            terms = [t for t in ("base", "sdf", "laplacian") if t in records[0]]
            falls = [
                [float(np.mean([r[term] for r in part])) for term in terms]
                for part in (records[:10], records[-50:])
            ]
            scores = [
                iou(model, data, k, torch.from_numpy(uniform).float(), inside)
                for k, inside in enumerate(signs)
            ]
            print(f"{kind.__name__}: {seconds:.0f} core s for {options.steps} steps")
            for term, first, last in zip(terms, *falls, strict=True):
                print(f"  L_{term:9} {first:.4f} -> {last:.4f}")
            print("  IoU", *(f"{score:.3f}" for score in scores), flush=True)


if __name__ == "__main__":
    main()
