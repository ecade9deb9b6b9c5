"""The campaign: data, training, scores and packed models, in one command.

    python benchmarks/campaign.py --out reports/campaign        # on two CPU cores
    python benchmarks/campaign.py --out reports/campaign --gpu --parts $OUT

Every stage goes on where it was stopped, so that the same command finishes a campaign
that was killed. `--gpu` takes more shapes, seeds and steps, and trains several models
at a time; `--minutes 20` chooses the steps so that data and training end in that time.
`--parts` writes models and tables as pieces of 15 MiB with their checksums;
`--join FOLDER` puts them together again in `--out`. `--stages` names those to go
through, so that one machine can train and another score. `--libraries FILES.sh3f` adds
real furniture (docs/sweethome3d.md) to the data and to the scores; with `--preset
mobile` the code starts from ImageNet's weights, and `--first` takes what fits of
another model. A machine that generates the data needs the packages of pyproject.toml;
training alone needs torch, accelerate, huggingface_hub, joblib and safetensors.
"""

import argparse
import hashlib
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from d2im import benchmark, losses
from d2im.data.coarse import coarse_distance
from d2im.data.dataset import ShapeDataset, prepare, read_index
from d2im.data.files import write_whole
from d2im.data.shapes import split_pairs
from d2im.data.sweethome import prepare_sweethome
from d2im.evaluate.protocols import Result
from d2im.laplacian import laplacian_maps
from d2im.networks import DISN, PRESETS, CameraNet, D2IMNet, ImageModel, IMNet
from d2im.show.pages import csv_table, markdown_table
from d2im.show.plots import draw_map, image_grid, zoom
from d2im.training.checkpoints import read_records
from d2im.training.loop import TrainingConfig, train
from d2im.training.resident import ResidentShapes
from d2im.use.reconstruction import predict
from d2im.use.released import load_mobile_weights

PIECE = 15 * 2**20
REHEARSAL = 200  # steps, to see what one takes
BEGUN = time.perf_counter()
FRONT = {"visible_weight": 2.0}  # of L_vis, see TrainingConfig
RELIEF = {"relief_weight": 60.0, "patch_share": 0.5}  # L_rel, and pasted patches
# What is trained: class, settings that differ from TrainingConfig's, weighted draw, and
# the share of d2im's steps.
MODELS = {
    "d2im": (D2IMNet, FRONT, True, 1.0),
    "imnet": (IMNet, {}, True, 1.0),
    "disn": (DISN, {}, True, 1.0),
    "camera": (CameraNet, {}, True, 0.75),
    "d2im-no-laplacian": (D2IMNet, FRONT | {"laplacian_weight": 0.0}, True, 1.0),
    "d2im-uniform": (D2IMNet, FRONT, False, 1.0),
    "d2im-relief": (D2IMNet, RELIEF, True, 1.0),
}
ONE_SEED = "camera", "d2im-uniform", "d2im-relief"
# Of real furniture: a little wider than the pictures people have.
POSES = {"azimuth": (-75, 75), "elevation": (-5, 45), "ratio": (0.8, 1.1)}
PACKAGED = {"d2im": "d2im", "imnet": "imnet", "disn": "disn", "camera": "camera"}
PACKAGED |= {"d2im-relief": "relief"}  # the first part of their folders' names
# `shapes` of each training family; `plain`: more of each, without their relief, for
# d2im-relief; `test`, `unseen`: of each family on the list.
CPU = dict(shapes=500, views=8, count=20_000, steps=7000, batch=16, seeds=1, at_once=2)
CPU |= dict(models=" ".join(MODELS), test=3, unseen=10, workers=2, plain=60)
GPU = CPU | dict(views=12, steps=15_000, batch=64, seeds=3, at_once=18, workers=16)
seeding = threading.Lock()  # torch's random numbers belong to all threads


def make_data(options, out):
    """Train, validation and test examples; the test ones are the benchmark's list."""
    settings = {"count": options.count, "views": options.views, "size": options.size}
    settings["workers"] = options.workers
    prepare(split_pairs("train", options.shapes), out / "train", **settings)
    if "d2im-relief" in options.models.split() and options.plain:
        both = split_pairs("train", options.shapes + options.plain)
        first = len(both) * options.shapes // (options.shapes + options.plain)
        prepare(both[first:], out / "plain", plain=True, **settings)
    few = {**settings, "views": 2}
    own = {"coarse": "levels", "textures": True}
    for split in ("train", "val", "test") if options.libraries else ():
        views = few
        if split == "train":
            views = settings | {"poses": POSES, "copies": options.copies}
        folder = out / f"furniture-{split}"
        prepare_sweethome(options.libraries, folder, split=split, **views, **own)
    prepare(split_pairs("val", 6), out / "val", split="val", **few)
    if not (out / "test" / "index.csv").is_file():
        benchmark.prepare_list(
            listed(options), out / "test", options.size, options.workers
        )
    if options.real:
        prepare(options.real, out / "real", split="real", **{**settings, "views": 4})


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


def train_one(options, out, name, seed, resident=None):
    """Train one model with one seed, or go on with it."""
    kind, changes, weighted, share = MODELS[name]
    data = {"points": options.points, "weighted": weighted, "seed": seed}
    folders, held_out = train_folders(options, out), [out / "val"]
    if name == "d2im-relief" and read_index(out / "plain"):
        # The others share their data on a GPU; this one has its own copy there.
        folders, resident = [*folders, out / "plain"], None
    if options.libraries:
        held_out.append(out / "furniture-val")
        data["mirror"] = True
    data["recolor"] = options.recolor
    if name in ("d2im-relief", "imnet"):
        changes = changes | {"base_quantile": options.quantile}
    if name == "d2im-relief":
        changes = changes | {"learn": options.learn}
    shapes = ShapeDataset(folders, **data)
    held_out = ShapeDataset(held_out, "val", points=options.points)
    first, *_ = started(options, f"{name}-{seed}")
    steps = max(1, round(share * options.steps))
    config = TrainingConfig(
        steps=steps,
        batch_size=options.batch,
        learning_rate=options.rate,
        warmup_steps=min(200, steps // 10),
        precision=options.precision,
        compile=options.compile,
        seed=seed,
        checkpoint_every=max(1, steps // 10),
        **changes,
    )
    with seeding:
        torch.manual_seed(seed)
        model = kind.preset(options.preset)
    if model.code_encoder is not None:
        load_mobile_weights(model)
    if options.first:
        take_what_fits(model, options.first)
    if first:
        last = [first / f"{kind}.safetensors" for kind in ("last", "model")]
        model.load_state_dict(load_file(next(path for path in last if path.is_file())))
    if options.keep:  # a step takes two thirds of the time with three of them
        keep_stages(model.code_encoder, options.keep)
    begun = time.perf_counter()
    folder = out / options.folder / f"{name}-{seed}"
    given = {"validation": held_out, "resident": resident}
    for record in train(model, shapes, folder, config, **given):
        if "validation" in record:
            left = (time.perf_counter() - begun) / record["step"]
            left *= steps - record["step"]
            shown = {k: v for k, v in record.items() if k not in ("step", "seconds")}
            said = ", ".join(f"{k} {v:.4g}" for k, v in shown.items())
            step = f"step {record['step']} of {steps}, {left / 60:.0f} min left"
            print(f"{name}-{seed} {step}: {said}", flush=True)


def train_folders(options, out):
    """The folders that all models train on, one as often as it is drawn from."""
    furniture = [out / "furniture-train"] * options.often if options.libraries else []
    return [out / "train", *furniture]


def take_what_fits(model, folder):
    """Another model's tensors, of those that have the same name and size here."""
    own = model.state_dict()
    there = ImageModel.from_pretrained(folder).state_dict()
    fits = {k: v for k, v in there.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(own | fits)
    print(f"{len(fits)} of {len(own)} tensors are {folder}'s", flush=True)


def keep_stages(encoder, stages):
    """Do not teach the weights of a MobileEncoder's stem and first stages.

    Their batch norms' statistics are taken anew with all the others.
    """
    count = sum(blocks for _, blocks, *_ in encoder.STAGES[:stages])
    for part in (encoder.stem, encoder.blocks[:count]):
        part.requires_grad_(False)


def started(options, run):
    """The run that one goes on from: folder, steps, their batch; or None, 0, 0."""
    if not options.start:
        return None, 0, 0
    state = json.loads((options.start / run / "training.json").read_text("utf-8"))
    return options.start / run, state["step"], state["settings"]["batch_size"]


def train_all(options, out):
    """Train every model and seed: on a GPU side by side over the same data there, on
    CPUs each in a process of its own."""
    names = options.models.split()
    jobs = [
        (name, seed)
        for seed in range(options.seeds)
        for name in names
        if not seed or name not in ONE_SEED
    ]
    shared = None
    if torch.cuda.is_available():
        shared = ResidentShapes(ShapeDataset(train_folders(options, out)), "cuda")
    if options.minutes:  # chosen once: a run goes on with its schedule or not at all
        if not (chosen := out / "steps.txt").is_file():
            chosen.write_text(
                str(affordable_steps(options, out, jobs, shared)), encoding="utf-8"
            )
        options.steps = int(chosen.read_text(encoding="utf-8"))
        print(f"time for {options.steps} steps", flush=True)
    train_jobs(options, out, jobs, shared)


def train_jobs(options, out, jobs, shared):
    """Train (model, seed) pairs, `at_once` at a time."""
    if shared is None:
        given = "--folder", options.folder, "--steps", str(options.steps)
        work = [(*given, "--only", name, str(seed)) for name, seed in jobs]
        run_apart(options, work)
        return
    with ThreadPoolExecutor(options.at_once) as pool:
        work = [pool.submit(train_one, options, out, *job, shared) for job in jobs]
    for done in work:
        done.result()


def affordable_steps(options, out, jobs, shared):
    """How many steps fit into the minutes that are left: all models rehearse a few."""
    few = argparse.Namespace(**vars(options) | {"steps": REHEARSAL})
    few.folder, begun = "rehearsal", time.perf_counter()
    shutil.rmtree(out / few.folder, ignore_errors=True)
    train_jobs(few, out, jobs, shared)
    now, step = time.perf_counter(), 0.0
    for name, seed in jobs:
        records = read_records(out / few.folder / f"{name}-{seed}")
        last = np.median([r["seconds"] for r in records[len(records) // 2 :]])
        step += MODELS[name][-1] * last / min(options.at_once, len(jobs))
    rest = now - begun - REHEARSAL * step  # loading, recording, a checkpoint
    left = BEGUN + 60 * options.minutes - now - 2 * rest
    return max(REHEARSAL, int(0.9 * left / step))


def score_all(options, out):
    """Score every trained model in a process of its own; write the tables."""
    folders = sorted(path.name for path in (out / "runs").iterdir())
    folders = [
        name for name in folders if not (out / "scores" / f"{name}.json").is_file()
    ]
    run_apart(options, [("--score", name) for name in folders])
    write_tables(out)
    draw_maps(out)


def run_apart(options, jobs):
    """Run this script once a job, with more arguments, `at_once` at a time."""

    share = max(1, (os.cpu_count() or 1) // options.at_once)
    environment = {"OMP_NUM_THREADS": str(share), **os.environ}

    def run(job):
        words = [sys.executable, __file__, *sys.argv[1:], *job]
        subprocess.run(words, check=True, env=environment)

    with ThreadPoolExecutor(options.at_once) as pool:
        list(pool.map(run, jobs))


def score_one(options, out, name):
    """Score a trained model on the listed shapes and the real ones."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = ImageModel.from_pretrained(out / "runs" / name).to(device)
    known = {entry["id"] for entry in listed(options)}
    jobs, fields, cameras = [], [], []
    for folder in (out / "test", out / "real", out / "furniture-test"):
        shapes = ShapeDataset(folder, None) if folder.is_dir() else ()
        for index in range(len(shapes)):
            row, example = shapes.rows[index], shapes.example(index)
            if folder.name == "test" and row["id"] not in known:
                continue
            truth, coarse = benchmark.true_meshes(row, example)
            for view in range(shapes.view_count(index)):
                info = {key: row[key] for key in ("id", "family", "split")}
                if folder.name == "furniture-test":  # not of the benchmark's list
                    info["split"] = "furniture"
                info |= {"view": view, "method": name}
                camera, image = (
                    shapes.camera(index, view),
                    example[f"image_{view}"] / 255,
                )
                if isinstance(model, CameraNet):
                    errors = camera_errors(model, image, camera, example["points"])
                    cameras.append(info | {"status": "ok"} | results(errors))
                    continue
                found, made = benchmark.predict_meshes(
                    model, image, camera, options.resolution
                )
                given = model, found, example, view, truth, coarse
                scores = results(benchmark.field_scores(*given))
                fields.append(info | {"status": "ok"} | scores)
                for part, (mesh, why) in made.items():
                    method = name + (" base" if part == "base" else "")
                    jobs.append((info | {"method": method}, mesh, why, truth, camera))
    # What needs the coarse body is not known of real shapes.
    blank = dict.fromkeys((key for row in fields for key in row), Result(math.nan, ""))
    fields = [blank | row for row in fields]
    workers = max(1, options.workers // options.at_once)
    rows = benchmark.score_all(jobs, workers, skip=("emd",))
    (out / "scores").mkdir(exist_ok=True)
    text = json.dumps(
        {"meshes": rows, "fields": fields, "cameras": cameras}, default=str
    )
    write_whole(out / "scores" / f"{name}.json", lambda f: f.write(text.encode()))
    print(f"scored {name}", flush=True)


def results(scores):
    """Numbers as the table wants them."""
    return {key: Result(float(value), "") for key, value in scores.items()}


def camera_errors(model, image, camera, points):
    """Errors of a CameraNet on one picture, see `losses.camera_errors`."""
    device = next(model.parameters()).device
    image = torch.from_numpy(np.asarray(image, "f4"))
    found = model.camera(image.to(device)).to_array()
    rows = (torch.from_numpy(c)[None] for c in (found, camera.to_array()))
    points = torch.from_numpy(points[None, :2000]).double()
    return {k: v.item() for k, v in losses.camera_errors(*rows, points).items()}


def read_scores(out):
    """All models' rows as `benchmark.summarise` takes them: {kind: rows}."""
    scores = {"meshes": [], "fields": [], "cameras": []}
    for path in sorted((out / "scores").glob("*.json")):
        for kind, rows in json.loads(path.read_text(encoding="utf-8")).items():
            for row in rows:  # a Result is stored as a list
                row |= {k: Result(*v) for k, v in row.items() if isinstance(v, list)}
            scores[kind] += rows
    return scores


def write_tables(out):
    """Sum the scores up: all in CSV and Markdown, what tells most in a short table."""
    (out / "results").mkdir(exist_ok=True)
    text, told = [], []
    for kind, rows in read_scores(out).items():
        if rows:
            summary = benchmark.summarise(rows)
            lines = [list(line.values()) for line in summary]
            table = csv_table(list(summary[0]), lines)
            (out / "results" / f"{kind}.csv").write_text(table, encoding="utf-8")
            text.append(f"## {kind.capitalize()}\n\n{benchmark.markdown(summary)}")
            told += [line for line in summary if line["measure"] in IN_THE_CARD]
    (out / "results" / "all.md").write_text("\n".join(text), encoding="utf-8")
    text = []
    eyes = [line for line in told if line["method"].startswith("camera")]
    for split in ("split test", "split unseen", "split real", "split furniture"):
        mine = [x for x in told if x["group"] == split and x not in eyes]
        if mine or split != "split furniture":
            text.append(f"## {split.capitalize()}\n\n{short_table(mine, 'method')}")
    eyes = [line for line in eyes if line["group"].startswith("split")]
    text.append(f"## The camera\n\n{short_table(eyes, 'group')}")
    (out / "results" / "results.md").write_text("\n".join(text), encoding="utf-8")


def short_table(summary, across):
    """Means and intervals as Markdown: measures down, methods or groups across."""
    cells, columns = {}, dict.fromkeys(line[across] for line in summary)
    for line in summary:
        name = line["measure"]
        if across == "group" and line["method"].endswith(" base"):
            name = f"base, {name}"
        cell = "{mean:.3g} [{low:.3g}, {high:.3g}]".format(**line)
        cells.setdefault(name, {})[line[across]] = cell
    unknown = {"nan [nan, nan]", "0 [0, 0]", "–"}  # without displacement, say
    lines = [[key, *(row.get(c, "–") for c in columns)] for key, row in cells.items()]
    lines = [["–" if cell in unknown else cell for cell in line] for line in lines]
    lines = [line for line in lines if not unknown.issuperset(line[1:])]
    return markdown_table(["mean, 95 % interval over shapes", *columns], lines)


def draw_maps(out):
    """Draw a front map of each family in `test`: true, predicted, their Laplacians."""
    runs = [out / "runs" / name for name in ("d2im-0", "d2im-relief-0")]
    if not (runs := [run for run in runs if run.is_dir()]):
        return
    models = [D2IMNet.from_pretrained(run) for run in runs]
    shapes, first = ShapeDataset(out / "test", "test"), {}
    for index, row in enumerate(shapes.rows):
        first.setdefault(row["family"], index)
    labels, grid = ["picture", "target Laplacian", "true map"], []
    labels += [f"{r.name[:-2]}: {of}" for r in runs for of in ("Laplacian", "map")]
    for index in first.values():
        example, camera = shapes.example(index), shapes.camera(index, 0)
        image, mask = example["image_0"] / np.float32(255), example["mask_0"] > 0
        _, coarse = benchmark.true_meshes(shapes.rows[index], example)
        origins, rays = camera.rays()
        seen = (origins + example["depth_0"][..., None].astype(float) * rays)[mask]
        true = np.zeros(mask.shape)
        true[mask] = -coarse_distance(coarse, seen, 0.0)
        names = "normals", "depth", "mask", "camera"
        views = {n: torch.from_numpy(example[f"{n}_0"])[None].float() for n in names}
        views["mask"] = views["mask"] > 0
        maps = []
        for model in models:
            front = predict(model, image, camera, framed=True).displacement[:1]
            lap, target, valid = (x[0] for x in laplacian_maps(front, views))
            maps += [(lap, valid, 0.5), (front[0], mask, 0.02)]
        grid.append([image, (target, valid, 0.5), (true, mask, 0.02), *maps])
    blank = [[column[0] for column in grid]] + [[None] * len(grid)] * (len(maps) + 2)
    figure = image_grid(blank, list(first), labels, size=1.2)
    for k, ax in enumerate(figure.axes[len(grid) :]):
        draw_map(ax, *grid[k % len(grid)][1 + k // len(grid)])
    zoom(figure.axes)
    figure.savefig(out / "results" / "maps.png", dpi=100)


IN_THE_CARD = """base_error final_error laplacian_correlation displacement_correlation
displacement_correlation_highpass chamfer_l1 iou chamfer_l1_visible
normal_consistency_visible ecd_visible rotation_degrees distance
reprojection_px""".split()
CARD = """# {title}

{kind}, preset `{preset}` ({pixels} px, {parameters:,} parameters), in half precision;
`d2im.networks.{kind}.from_pretrained` loads it.

- Data: {shapes:,} procedural shapes{plain} of the ten training families x {views}
  views, seeds from 0 of the package's `splits.json`'s training range; bench,
  bookshelf and vase never seen{furniture}; nothing from ShapeNet, {weights}.
- Budget: {before}{steps} steps of {batch} pictures x {points} points,
  Adam, peak rate {rate}, {precision}, seed {seed}, on {machine}{loss}; the best
  checkpoint by validation.
- Made by `python benchmarks/campaign.py {command}`.

{figures}

Limits: {seen} on white is all that it has seen. The picture's camera must
be known or found by `camera-small`. It says nothing about a side that no picture shows
beyond its families' habits.
"""


def pack(options, out):
    """Write the package's models in half precision with their cards, the first seed."""
    scores = read_scores(out)
    for name, stem in PACKAGED.items():
        source, title = out / "runs" / f"{name}-0", f"{stem}-{options.preset}"
        if not source.is_dir():
            continue
        target = out / "models" / title
        target.mkdir(parents=True, exist_ok=True)
        tensors = load_file(source / "model.safetensors")
        half = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
        save_file(half, target / "model.safetensors")
        (target / "config.json").write_bytes((source / "config.json").read_bytes())
        trained = json.loads((source / "training.json").read_text("utf-8"))["settings"]
        ours = {"L_vis": "visible_weight", "L_rel": "relief_weight"}
        ours = {term: trained.get(key, 0) for term, key in ours.items()}
        ours = [f"; {term} with weight {w:g}" for term, w in ours.items() if w]
        if share := trained.get("patch_share"):
            ours.append(f"; a patch of another in {share:.0%} of the pictures")
        if quantile := trained.get("base_quantile"):
            ours.append(f"; L_B at the quantile {quantile:g}")
        ours.append("; their colours changed" * options.recolor)
        learned = trained.get("learn", "all")
        ours.append(f"; in this run its {learned} alone taught" * (learned != "all"))
        plain = len(read_index(out / "plain")) if name == "d2im-relief" else 0
        real = read_index(out / "furniture-train") if options.libraries else []
        copies = sum(bool(row.get("stretch")) for row in real)
        real = len(real) - copies
        first, taken, batch = started(options, source.name)
        records = read_records(first) if first else []
        records += [r | {"step": r["step"] + taken} for r in read_records(source)]
        kept = [r for r in records if r["step"] % 20 == 0 or "validation" in r]
        names = list(dict.fromkeys(key for record in kept for key in record))
        lines = [[format(r[n], ".5g") if n in r else "" for n in names] for r in kept]
        (target / "metrics.csv").write_text(csv_table(names, lines), encoding="utf-8")
        mine, methods = [], (f"{name}-0", f"{name}-0 base")
        for rows in scores.values():
            mine += benchmark.summarise([r for r in rows if r["method"] in methods])
        mine = [line for line in mine if line["measure"] in IN_THE_CARD]
        mine = [line for line in mine if line["group"].startswith("split")]
        figures = short_table(mine, "group")
        model = ImageModel.from_pretrained(source)
        card = CARD.format(
            title=title,
            kind=MODELS[name][0].__name__,
            preset=options.preset,
            pixels=options.size,
            parameters=sum(p.numel() for p in model.parameters()),
            shapes=len(ShapeDataset(out / "train")),
            plain=f" and {plain:,} bodies without relief" * bool(plain),
            views=options.views,
            furniture=f"; {real:,} pieces of Sweet Home 3D's" * bool(real)
            + f", {copies:,} stretched copies" * bool(copies),
            weights=given_weights(options, model),
            seen="furniture" if real else "procedural furniture",
            before=f"{taken} steps of {batch} on a GPU, then " * bool(first),
            loss="".join(ours),
            steps=trained["steps"],
            batch=trained["batch_size"],
            points=options.points,
            rate=trained["learning_rate"],
            precision=trained["precision"],
            seed=trained["seed"],
            machine=machine(),
            command=command(),
            figures=figures,
        )
        (target / "README.md").write_text(card, encoding="utf-8")


def given_weights(options, model):
    """Whose weights a model began with, in words."""
    given = ["another model's weights"] if options.first else []
    if model.code_encoder is not None:
        given.insert(0, "ImageNet's weights in the code's encoder")
    return " and ".join(given) or "no pretrained weights"


def command():
    """The arguments that made the models, without those that name a person's disk."""
    words = sys.argv[1:]
    for name in ("--real", "--parts"):
        if name in words:
            at = words.index(name)
            words = words[:at] + words[at + 2 :]
    named = {"--start": "RUNS", "--first": "MODEL", "--libraries": "FILES.sh3f"}
    for name in named.keys() & set(words):
        at = end = words.index(name) + 1
        while end < len(words) and not words[end].startswith("--"):
            end += 1
        words[at:end] = [named[name]]
    return " ".join(words)


def machine():
    """What trains here, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "a CPU"


def write_parts(out, parts):
    """Models, results and records as one archive in pieces with their checksums."""
    parts.mkdir(parents=True, exist_ok=True)
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for folder in ("runs", "models", "results", "scores"):
            if (out / folder).is_dir():
                tar.add(out / folder, folder, filter=what_is_carried)
    data = archive.getvalue()
    for k in range(0, len(data), PIECE):
        (parts / f"campaign.{k // PIECE}").write_bytes(data[k : k + PIECE])
    (parts / "campaign.sha256").write_text(
        hashlib.sha256(data).hexdigest(), encoding="utf-8"
    )


def what_is_carried(entry):
    """All but what only training on needs."""
    left = ("optimizer.safetensors", "last.safetensors")
    return None if entry.name.endswith(left) else entry


def join_parts(parts, out):
    """Put the pieces together again and check them."""
    count = len(list(parts.glob("campaign.[0-9]*")))
    data = b"".join((parts / f"campaign.{k}").read_bytes() for k in range(count))
    known = (parts / "campaign.sha256").read_text("utf-8")
    if hashlib.sha256(data).hexdigest() != known:
        raise ValueError(f"the pieces in {parts} are damaged or not all there")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(out, filter="data")


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gpu", action="store_true", help="a large GPU's defaults")
    parser.add_argument("--parts", type=Path, help="folder for the pieces")
    parser.add_argument("--join", type=Path, help="folder of pieces to join in --out")
    parser.add_argument("--only", nargs=2, metavar=("MODEL", "SEED"))
    parser.add_argument("--score", metavar="RUN")
    parser.add_argument(
        "--start",
        type=Path,
        help="runs/ of a campaign cut short: take --steps from its last weights",
    )
    parser.add_argument("--real", help="folder of meshes to score too, at four views")
    parser.add_argument("--minutes", type=float, help="for data and training")
    about = "Sweet Home 3D's, to train on and to score"
    parser.add_argument("--libraries", nargs="+", metavar="FILE.sh3f", help=about)
    parser.add_argument("--first", metavar="MODEL", help="whose tensors to start from")
    about = "of models with L_rel: base or maps apart"
    ways = ["all", "base", "maps"]
    parser.add_argument("--learn", default="all", choices=ways, help=about)
    about = "of their base's and IM-NET's loss, see losses.base_loss (0: squares)"
    parser.add_argument("--quantile", type=float, default=0.0, help=about)
    about = "change the colours of what is trained on"
    parser.add_argument("--recolor", action="store_true", help=about)
    about = "of each piece of the libraries, stretched"
    parser.add_argument("--copies", type=int, default=0, help=about)
    about = "draws of a piece or copy for each procedural shape's"
    parser.add_argument("--often", type=int, default=4, help=about)
    parser.add_argument(
        "--keep",
        type=int,
        default=0,
        choices=range(8),
        metavar="STAGES",
        help="of a mobile encoder that are not taught",
    )
    parser.add_argument("--folder", default="runs", help=argparse.SUPPRESS)
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
    stages = {"data": make_data, "train": train_all, "score": score_all, "pack": pack}
    parser.add_argument("--stages", nargs="+", choices=stages, default=list(stages))
    options = common.opening(parser)
    if options.keep and not PRESETS[options.preset].get("mobile_size"):
        parser.error("--keep needs a preset with a mobile encoder: mobile or local")
    out = options.out
    if options.join:
        join_parts(options.join, out)
        return
    if options.only:
        train_one(options, out, options.only[0], int(options.only[1]))
        return
    if options.score:
        score_one(options, out, options.score)
        return
    for stage in options.stages:
        begun = time.perf_counter()
        stages[stage](options, out)
        print(f"{stage}: {time.perf_counter() - begun:.0f} s", flush=True)
    if options.parts:
        write_parts(out, options.parts)


if __name__ == "__main__":
    main()
