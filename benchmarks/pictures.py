"""Pictures a core second in training: presets, precision, memory format, parts.

    python benchmarks/pictures.py --threads 1
    python benchmarks/pictures.py --threads 1 --presets small base

Each line is the best of a few steps of `--batch` pictures by L_rel, the batch ready in
memory; core seconds, so that a busy machine shifts the lines together. `maps` and
`base` learn apart, which the preset `mobile` can.
"""

import tempfile
import time
from pathlib import Path

import common
import torch

from d2im.data.dataset import ShapeDataset, prepare
from d2im.data.shapes import split_pairs
from d2im.networks import PRESETS, D2IMNet
from d2im.training.depthwise import quicken
from d2im.training.loop import TrainingConfig, batch_losses, total_loss

RELIEF = {"relief_weight": 60.0, "patch_share": 0.5}


def speed(model, batch, config, steps, form):
    """Pictures a core second of the quickest of some steps; weights change."""
    model.train()
    if form != "plain":
        model.to(memory_format=torch.channels_last)
    if form == "quick depthwise, too":
        quicken(model)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    taken = []
    for _ in range(steps):
        begun = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, config.precision == "bf16"):
            terms = batch_losses(model, batch, config)
        optimizer.zero_grad()
        total_loss(terms, config).backward()
        optimizer.step()
        taken.append(time.process_time() - begun)
    return len(batch["image"]) / min(taken)


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--presets", nargs="+", default=["small", "base", "mobile"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    options = common.opening(parser)
    print(
        "| preset | learns | precision | memory, gradient | pictures a core s | ratio |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for preset in options.presets:
            size = PRESETS[preset]["image_size"]
            out = Path(folder) / str(size)
            prepare(
                split_pairs("train", 1),
                out,
                size=size,
                views=1,
                count=8000,
                progress=False,
            )
            shapes = ShapeDataset(out, points=options.points)
            items = [shapes[k % len(shapes)] for k in range(options.batch)]
            batch = torch.utils.data.default_collate(items)
            ways = [("all", "float32", "plain"), ("all", "bf16", "plain")]
            ways += [("all", "bf16", "channels last")]
            if PRESETS[preset].get("mobile_size"):
                parts = "maps", "base"
                ways += [(part, "bf16", "channels last") for part in parts]
                ways += [(part, "bf16", "quick depthwise, too") for part in parts]
            first = None
            for learn, precision, form in ways:
                torch.manual_seed(0)
                changes = RELIEF | {"learn": learn, "precision": precision}
                model = D2IMNet.preset(preset)
                config = TrainingConfig(**changes)
                found = speed(model, batch, config, options.steps, form)
                first = first or found
                shown = f"{found:.3g} | {found / first:.2f}"
                print(f"| `{preset}` | {learn} | {precision} | {form} | {shown} |")


if __name__ == "__main__":
    main()
