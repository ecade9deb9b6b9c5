"""Each model overfitted on one batch: the fall of its losses, and its IoU.

    python benchmarks/overfit.py

One picture each of some procedural shapes is the whole batch; the points are drawn anew
at each step, by density, from 100,000 stored ones. IoU is by the signs of the field
and of the true distance at 100,000 points, uniform in the box of the extraction.
"""

import tempfile
import time
from pathlib import Path

import common
import numpy as np
import torch

from d2im import networks
from d2im.data.dataset import ShapeDataset, prepare, source_meshes
from d2im.sampling import HALF_BOX, signed_distance
from d2im.training.loop import TrainingConfig, train


@torch.no_grad()
def iou(model, data, index, points, inside):
    """IoU of a model's field with the truth, whose signs at the points are known."""
    image, camera = data[index]["image"][None], data.camera(index, 0)
    found = model.fields(image, camera)[1](points).numpy() < 0
    return (found & inside).sum() / (found | inside).sum()


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=5e-3)
    parser.add_argument("--families", nargs="+", default=["cabinet", "table"])
    parser.add_argument("--models", nargs="+", default=["D2IMNet", "IMNet", "DISN"])
    options = common.opening(parser)
    config = TrainingConfig(
        steps=options.steps,
        batch_size=len(options.families),
        warmup_steps=100,
        learning_rate=options.rate,
        checkpoint_every=options.steps,
    )
    points = np.random.default_rng(1).uniform(-HALF_BOX, HALF_BOX, (100_000, 3))
    with tempfile.TemporaryDirectory() as folder:
        source = [(family, 7) for family in options.families]
        prepare(source, Path(folder, "data"), views=1, size=112, progress=False)
        data = ShapeDataset(Path(folder, "data"), view=0)
        truth = [signed_distance(source_meshes(r)[0], points)[0] < 0 for r in data.rows]
        points = torch.from_numpy(points).float()
        for name in options.models:
            torch.manual_seed(0)
            model, begun = getattr(networks, name).preset("small"), time.process_time()
            records = list(train(model, data, Path(folder, name), config))
            spent = time.process_time() - begun
            print(f"{name}: {options.steps} steps, {spent:.0f} core s")
            for term in ("base", "sdf", "laplacian"):
                if values := [record[term] for record in records if term in record]:
                    first, last = np.mean(values[:10]), np.mean(values[-50:])
                    print(f"  L_{term:9} {first:.4f} -> {last:.4f}")
            for k, inside in enumerate(truth):
                score = iou(model, data, k, points, inside)
                print(
                    f"  IoU {score:.3f} {data.rows[k]['id']}, {inside.mean():.1%} full"
                )


if __name__ == "__main__":
    main()
