"""The campaign: data, training, scores and packed models, in one command.

    python benchmarks/campaign.py --out reports/campaign        # on two CPU cores
    python benchmarks/campaign.py --out reports/campaign --gpu --parts $OUT

Every stage goes on where it was stopped, so that the same command finishes a campaign
that was killed. `--gpu` takes more shapes, seeds and steps, and trains several models
at a time. `--parts` writes models and tables as pieces of 15 MiB with their checksums;
`--join FOLDER` puts them together again in `--out`. A machine that generates the data
needs the packages of pyproject.toml; training alone needs torch, accelerate,
huggingface_hub and safetensors.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from d2im import benchmark, losses
from d2im.dataset import ShapeDataset, prepare, read_example
from d2im.metrics import Result
from d2im.networks import DISN, CameraNet, D2IMNet, ImageModel, IMNet
from d2im.shapes import split_pairs
from d2im.training import TrainingConfig, train

PIECE = 15 * 2**20
# What is trained: class, settings that differ from TrainingConfig's, weighted draw, and
# the share of d2im's steps.
MODELS = {
    "d2im": (D2IMNet, {}, True, 1.0),
    "imnet": (IMNet, {}, True, 1.0),
    "disn": (DISN, {}, True, 1.0),
    "camera": (CameraNet, {}, True, 0.5),
    "d2im-no-laplacian": (D2IMNet, {"laplacian_weight": 0.0}, True, 1.0),
    "d2im-uniform": (D2IMNet, {}, False, 1.0),
}
IN_THE_BOX = {"d2im": "d2im-small", "imnet": "imnet-small", "disn": "disn-small"}
IN_THE_BOX |= {"camera": "camera-small"}
CPU = dict(shapes=150, views=8, count=30_000, steps=6000, batch=16, seeds=1, at_once=1)
CPU |= dict(models="d2im imnet disn camera", test=2, unseen=7, workers=2)
GPU = dict(shapes=500, views=12, count=40_000, steps=12_000, batch=64, seeds=3)
GPU |= dict(models=" ".join(MODELS), test=10, unseen=33, workers=16, at_once=6)


def make_data(options, out):
    """Train, validation and test examples; the test ones are the benchmark's list."""
    settings = {"count": options.count, "views": options.views, "size": options.size}
    settings["workers"] = options.workers
    prepare(split_pairs("train", options.shapes), out / "train", **settings)
    few = {**settings, "views": 2}
    prepare(split_pairs("val", 6), out / "val", split="val", **few)
    if not (out / "test" / "index.csv").is_file():
        benchmark.prepare_list(
            listed(options), out / "test", options.size, options.workers
        )


def listed(options):
    """The benchmark's list, or the first few shapes of each family."""
    kept, counts = [], {}
    for entry in benchmark.read_list():
        family = entry["family"]
        counts[family] = counts.get(family, 0) + 1
        limit = options.unseen if entry["set"] == "unseen" else options.test
        if counts[family] <= limit:
            kept.append(entry)
    return kept


def train_one(options, out, name, seed):
    """Train one model with one seed, or go on with it."""
    kind, changes, weighted, share = MODELS[name]
    data = {"points": options.points, "weighted": weighted, "seed": seed}
    shapes = ShapeDataset(out / "train", **data)
    held_out = ShapeDataset(out / "val", "val", points=options.points)
    steps = max(1, round(share * options.steps))
    config = TrainingConfig(
        steps=steps,
        batch_size=options.batch,
        learning_rate=options.rate,
        warmup_steps=min(200, steps // 10),
        precision=options.precision,
        compile=options.compile,
        seed=seed,
        checkpoint_every=max(1, min(500, steps // 4)),
        **changes,
    )
    torch.manual_seed(seed)
    model = kind.preset(options.preset)
    started = time.perf_counter()
    folder = out / "runs" / f"{name}-{seed}"
    for record in train(model, shapes, folder, config, validation=held_out):
        if "validation" in record:
            left = (time.perf_counter() - started) / record["step"]
            left *= steps - record["step"]
            shown = {k: v for k, v in record.items() if k not in ("step", "seconds")}
            said = ", ".join(f"{k} {v:.4g}" for k, v in shown.items())
            step = f"step {record['step']} of {steps}, {left / 60:.0f} min left"
            print(f"{name}-{seed} {step}: {said}", flush=True)


def train_all(options, out):
    """Train every model and seed, each in a process of its own."""

    def run(job):
        name, seed = job
        command = [sys.executable, __file__, *sys.argv[1:], "--only", name, str(seed)]
        subprocess.run(command, check=True, env=os.environ)

    names = options.models.split()
    jobs = [(name, seed) for seed in range(options.seeds) for name in names]
    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(run, jobs))


def score_all(options, out):
    """Score every trained model on the listed shapes; write table and Markdown."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    entries, rows, cameras = listed(options), [], {}
    for folder in sorted((out / "runs").iterdir()):
        model = ImageModel.from_pretrained(folder).to(device)
        if isinstance(model, CameraNet):
            cameras[folder.name] = camera_errors(model, out / "test", entries)
            continue
        jobs = []
        for entry in entries:
            example = read_example(out / "test" / f"{entry['id']}.npz")
            shape = benchmark.check_shape(entry)
            for view, pose in enumerate(entry["cameras"]):
                camera = benchmark.Camera(*pose, options.size)
                image = example[f"image_{view}"].astype("f4") / 255
                found, made = benchmark.predict_meshes(
                    model, image, camera, options.resolution
                )
                known = benchmark.field_scores(
                    model, found, example, view, shape.detailed, shape.coarse
                )
                for part, (mesh, why) in made.items():
                    method = folder.name + (" base" if part == "base" else "")
                    info = {"id": entry["id"], "family": entry["family"]}
                    info |= {"split": entry["set"], "view": view, "method": method}
                    info |= known if part == "final" else {}
                    jobs.append((info, mesh, why, shape.detailed, camera))
        rows += benchmark.score_all(jobs, options.workers, skip=("emd",))
        print(f"scored {folder.name}", flush=True)
    summary = benchmark.summarise(rows)
    table = out / "results"
    table.mkdir(exist_ok=True)
    (table / "results.md").write_text(benchmark.markdown(summary))
    (table / "cameras.json").write_text(json.dumps(cameras, indent=1))
    plain = [
        {k: v.value if isinstance(v, Result) else v for k, v in row.items()}
        for row in rows
    ]
    text = io.StringIO()
    names = dict.fromkeys(name for row in plain for name in row)
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    (table / "results.csv").write_text(text.getvalue())


def camera_errors(model, folder, entries):
    """Median errors of a CameraNet over the listed pictures."""
    found, true, points = [], [], []
    device = next(model.parameters()).device
    for entry in entries:
        example = read_example(folder / f"{entry['id']}.npz")
        for view in range(len(entry["cameras"])):
            image = torch.from_numpy(example[f"image_{view}"]).float() / 255
            with torch.no_grad():
                found.append(model(image[None].to(device)).cpu()[0])
            true.append(torch.from_numpy(example[f"camera_{view}"]).float())
            points.append(torch.from_numpy(example["points"][:2000]))
    errors = losses.camera_errors(*map(torch.stack, (found, true, points)))
    return {name: float(values.median()) for name, values in errors.items()}


def pack(options, out):
    """Write the box's models in half precision, the first seed of each."""
    for name, title in IN_THE_BOX.items():
        source = out / "runs" / f"{name}-0"
        if not source.is_dir():
            continue
        target = out / "models" / title
        target.mkdir(parents=True, exist_ok=True)
        tensors = load_file(source / "model.safetensors")
        half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
        save_file(half, target / "model.safetensors")
        (target / "config.json").write_bytes((source / "config.json").read_bytes())
        (target / "metrics.csv").write_bytes((source / "metrics.csv").read_bytes())


def write_parts(out, parts):
    """Models, results and records as one archive in pieces with their checksums."""
    parts.mkdir(parents=True, exist_ok=True)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for folder in ("models", "results"):
            tar.add(out / folder, folder)
    data = archive.getvalue()
    for k in range(0, len(data), PIECE):
        (parts / f"campaign.{k // PIECE}").write_bytes(data[k : k + PIECE])
    (parts / "campaign.sha256").write_text(hashlib.sha256(data).hexdigest())


def join_parts(parts, out):
    """Put the pieces together again and check them."""
    count = len(list(parts.glob("campaign.[0-9]*")))
    data = b"".join((parts / f"campaign.{k}").read_bytes() for k in range(count))
    if hashlib.sha256(data).hexdigest() != (parts / "campaign.sha256").read_text():
        raise ValueError(f"the pieces in {parts} are damaged or not all there")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(out, filter="data")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpu", action="store_true", help="a large GPU's defaults")
    parser.add_argument("--parts", type=Path, help="folder for the pieces")
    parser.add_argument("--join", type=Path, help="folder of pieces to join in --out")
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "SEED"))
    defaults = GPU if "--gpu" in sys.argv else CPU
    for name, value in defaults.items():
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, type=type(value), default=value)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--size", type=int, default=112, help="pixels of the pictures")
    parser.add_argument("--points", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args()
    out = options.out
    if options.join:
        join_parts(options.join, out)
        return
    if options.only:
        train_one(options, out, options.only[0], int(options.only[1]))
        return
    for stage in (make_data, train_all, score_all, pack):
        started = time.perf_counter()
        stage(options, out)
        print(f"{stage.__name__}: {time.perf_counter() - started:.0f} s", flush=True)
    if options.parts:
        write_parts(out, options.parts)


if __name__ == "__main__":
    main()
