"""A training step against one written the released way, side by side in one run.

    python benchmarks/training_speed.py                    # `paper` preset, 224 px
    python benchmarks/training_speed.py --preset small --threads 1
    python benchmarks/training_speed.py --compile --steps 50    # on a GPU

The released way, written again from its description: float32, the code repeated for
every point and joined to it before each layer, maps brought to size before each 1 x 1
convolution, the nearest pixel looked up, pictures and normals as PNG files, points
drawn by `numpy.random.choice` in 8 loader processes. Both train the same sizes on the
same shapes, views, batch and count of points. `compute` is the step alone, its batch on
the device; `end to end` counts reading and drawing as well. d2im keeps its data on a
GPU and streams them on a CPU. The card's rate is that of a large product in bf16.
"""

import os
import tempfile
import time
from pathlib import Path

import common
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from d2im.camera import project
from d2im.data.dataset import ShapeDataset, prepare
from d2im.data.shapes import split_pairs
from d2im.losses import pixel_index
from d2im.networks import SDF_SCALE, D2IMNet
from d2im.training.loop import TrainingConfig, batch_losses, train

WORKERS = 8  # the released loader's processes


class ReleasedFiles(torch.utils.data.Dataset):
    """Examples read and drawn the released way: PNG pictures, points as arrays."""

    def __init__(self, folder, examples, points):
        self.folder, self.points, self.paths = folder, points, []
        for k, example in enumerate(examples):
            path = folder / f"{k:04d}"
            path.mkdir()
            names = ("points", "sdf", "gradients", "weights")
            np.savez(path / "points.npz", **{n: example[n] for n in names})
            views = sum(name.startswith("image_") for name in example)
            for v in range(views):
                mask = example[f"mask_{v}"][None] * np.uint8(255)
                rgba = np.concatenate([example[f"image_{v}"], mask]).transpose(1, 2, 0)
                Image.fromarray(rgba).save(path / f"image_{v}.png")
                n = np.round(127.5 * (example[f"normals_{v}"].astype("f4") + 1))
                n = n.astype("u1").transpose(1, 2, 0)
                Image.fromarray(n).save(path / f"normal_{v}.png")
            np.save(
                path / "cameras.npy", [example[f"camera_{v}"] for v in range(views)]
            )
            self.paths.append(path)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        data = dict(np.load(path / "points.npz"))
        cameras = np.load(path / "cameras.npy")
        view, chosen = np.random.randint(len(cameras)), []
        for side in (data["sdf"] < 0, data["sdf"] >= 0):
            places = np.flatnonzero(side)
            share = data["weights"][places].astype("f8")
            share /= share.sum()
            half = self.points // 2
            chosen.append(np.random.choice(places, half, replace=False, p=share))
        chosen = np.concatenate(chosen)
        image = np.asarray(Image.open(path / f"image_{view}.png"), "f4") / 255
        normals = np.asarray(Image.open(path / f"normal_{view}.png"), "f4") / 127.5 - 1
        item = {n: data[n][chosen].astype("f4") for n in ("points", "sdf", "gradients")}
        item["image"] = image[..., :3].transpose(2, 0, 1).copy()
        item["mask"] = image[..., 3] > 0
        item["normals"] = normals.transpose(2, 0, 1).copy()
        item["camera"] = cameras[view].astype("f4")
        return item


def released_loss(model, batch):
    """The three terms, in the released order of operations."""
    points, count = batch["points"], batch["points"].shape[1]
    code, features = model.encode(batch["image"])
    hidden = code[:, None].expand(-1, count, -1)  # (B, P, C)
    for layer in model.base_decoder.layers[:-1]:
        hidden = F.relu(layer(torch.cat([hidden, points], 2)))
    base = model.base_decoder.out(F.relu(model.base_decoder.layers[-1](hidden)))[..., 0]
    decoder = model.displacement_decoder
    *rest, x = (
        F.relu(conv(m)) for conv, m in zip(decoder.lateral, features, strict=True)
    )
    for conv, lateral in zip(reversed(decoder.up), reversed(rest), strict=True):
        x = conv(F.interpolate(x, scale_factor=2, mode="bilinear")) + lateral
    maps = decoder.out(F.relu(decoder.smooth(x)))  # (B, 2, H, W)
    height, width = maps.shape[2:]
    uv, _ = project(points, batch["camera"])
    index, _ = pixel_index(uv, height, width)
    front = (batch["gradients"] * batch["camera"][:, None, 6:9]).sum(-1) < 0

    def at(map_, right=0, down=0):  # the nearest pixel, or one beside it
        other = (index + right + down * width).clamp(0, height * width - 1)
        return map_.flatten(1).gather(1, other)

    value = torch.where(front, at(maps[:, 0]), at(maps[:, 1]))
    target = SDF_SCALE * batch["sdf"]
    curved = at(maps[:, 0], 1) + at(maps[:, 0], 0, 1) - 2 * at(maps[:, 0])
    normals = batch["normals"]
    wanted = at(normals[:, 0], 1) - at(normals[:, 0])
    wanted = wanted + at(normals[:, 1], 0, 1) - at(normals[:, 1])
    used = front & (batch["sdf"] < 0) & at(batch["mask"])
    laplacian = ((curved - wanted) ** 2 * used).sum() / used.sum().clamp(min=1)
    return F.mse_loss(base, target) + F.l1_loss(base + value, target) + laplacian


def released_training(model, files, batch, steps, device):
    """Train the released way; seconds a step: with the data, and the step alone."""
    optimizer = torch.optim.Adam(model.parameters(), 5e-5, weight_decay=1e-5)
    draw = torch.utils.data.RandomSampler(files, True, num_samples=batch * steps)
    loader = torch.utils.data.DataLoader(
        files, batch, sampler=draw, num_workers=WORKERS
    )
    alone, whole, last = [], [], time.perf_counter()
    for items in loader:
        items = {name: value.to(device) for name, value in items.items()}
        begun = time.perf_counter()
        loss = released_loss(model, items)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        now = time.perf_counter()
        alone.append(now - begun)
        whole.append(now - last)
        last = now
    return whole, alone


def our_training(model, dataset, options, steps, folder):
    """Train by d2im's loop; seconds a step: with the data, and the step alone."""
    settings = {"batch_size": options.batch, "checkpoint_every": steps + 1}
    settings |= {"precision": "bf16", "compile": options.compile}
    config = TrainingConfig(steps=steps, warmup_steps=1, **settings)
    alone, whole, last = [], [], time.perf_counter()
    for record in train(model, dataset, folder, config, resume=False):
        now = time.perf_counter()
        alone.append(record["seconds"])
        whole.append(now - last)
        last = now
    return whole, alone


def matrix_rate(device):
    """Multiply-adds times two a second of a large bf16 product."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16)
    seconds = []
    for _ in range(10):
        begun = time.perf_counter()
        (a @ a).float().sum().item()
        seconds.append(time.perf_counter() - begun)
    return 2 * size**3 / np.median(seconds)


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--shapes", type=int, default=26)
    parser.add_argument("--steps", type=int, default=8, help="a way; half are warm-up")
    parser.add_argument("--compile", action="store_true")
    options = common.opening(parser)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = D2IMNet.preset(options.preset).image_size
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        pairs = split_pairs("train")[: options.shapes]
        made = {"count": 32_768, "views": 12, "size": size, "progress": False}
        made["workers"] = os.cpu_count()
        prepare(pairs, scratch / "data", **made)
        dataset = ShapeDataset(scratch / "data", points=options.points)
        examples = [dataset.example(k) for k in range(len(dataset))]
        (scratch / "files").mkdir()
        files = ReleasedFiles(scratch / "files", examples, options.points)
        results, half = {"released": [], "d2im": []}, options.steps // 2
        for _ in range(2):  # in turn, so that a machine's drift meets both
            model = D2IMNet.preset(options.preset).to(device)
            times = released_training(
                model, files, options.batch, options.steps, device
            )
            results["released"].append(np.array(times)[:, half:])
            model = D2IMNet.preset(options.preset)
            times = our_training(
                model, dataset, options, options.steps, scratch / "run"
            )
            results["d2im"].append(np.array(times)[:, half:])
        speed = {
            name: options.batch / np.median(np.concatenate(both, 1), 1)
            for name, both in results.items()
        }
        print(f"{options.preset}, batch {options.batch}, {device}, pictures a second")
        for k, what in enumerate(("end to end", "compute")):
            ours, theirs = speed["d2im"][k], speed["released"][k]
            ratio = ours / theirs
            print(f"{what:10} d2im {ours:.2f} released {theirs:.2f} ratio {ratio:.2f}")
        report_limits(model, dataset, options, device, options.batch / speed["d2im"][1])


def report_limits(model, dataset, options, device, seconds):
    """Print the share of the matrix rate, and which operations take the time."""
    config, rate = TrainingConfig(precision="bf16"), matrix_rate(device)
    keys = [(k % len(dataset), k) for k in range(options.batch)]
    batch = torch.utils.data.default_collate([dataset[key] for key in keys])
    batch = {name: value.to(device) for name, value in batch.items()}

    def step():
        with torch.autocast(device.type, torch.bfloat16):
            terms = batch_losses(model, batch, config)
        sum(terms.values()).backward()

    with FlopCounterMode(display=False) as counter:
        step()
    done = counter.get_total_flops() / seconds
    print(f"{done / 1e12:.3g} TFLOP/s of {rate / 1e12:.3g} in a bf16 product:", end=" ")
    print(f"{100 * done / rate:.0f} %")
    kinds = [ProfilerActivity.CPU]
    kinds += [ProfilerActivity.CUDA] if device.type == "cuda" else []
    with profile(activities=kinds) as found:
        step()
    order = f"self_{device.type}_time_total"
    print(found.key_averages().table(sort_by=order, row_limit=10))


if __name__ == "__main__":
    main()
