"""Kill trainings while they save, and see that each goes on as if nothing had been.

A training of a tiny model saves after every step. It gets SIGKILL at a random one of
the calls by which a random checkpoint is written and takes its place (some microseconds
later, by another process), and is started anew. Then its weights, its optimiser's
tensors and its records have to be, bit for bit, those of a training that nobody killed,
and a user's folders beside and in its own those that they were. A kill that came when
the saving had ended is told apart and is not one of those asked for.

    python benchmarks/killed.py --kills 40
"""

import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import common
import numpy as np
import torch
import torch._dynamo  # by Adam's first step, else in every fork anew
import trimesh

from d2im.data.dataset import (
    INDEX_COLUMNS,
    ShapeDataset,
    make_example,
    write_example,
    write_index,
)
from d2im.networks import D2IMNet
from d2im.training import loop
from d2im.training.checkpoints import read_records

SIZES = {
    "image_size": 32,
    "encoder_widths": (4, 4, 8, 8, 8),
    "encoder_blocks": (1, 1, 1, 1),
    "hidden_size": 16,
    "code_size": 8,
    "decoder_widths": (32, 16, 16, 8),
    "displacement_channels": 4,
    "mixing": False,
}
STEPS = 3
# A high rate: the best model is not the last one, which has a file of its own then.
CONFIG = loop.TrainingConfig(
    steps=STEPS, batch_size=2, warmup_steps=0, learning_rate=0.3, checkpoint_every=1
)
CALLS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
DELAY = 2e-4  # seconds, at most
OUTSIDE = "between two savings"
USERS = ("run.old", "run.new", "run/.d2im-mine", "run/figures")


def prepare(folder):
    """Two balls, one view each."""
    rows = []
    for k, radius in enumerate((0.3, 0.5)):
        ball = trimesh.creation.icosphere(subdivisions=2, radius=radius)
        rng = np.random.default_rng(k)
        example = make_example(ball, ball, rng, count=1000, views=1, size=32)
        write_example(folder / f"ball-{k}.npz", example)
        row = dict.fromkeys(INDEX_COLUMNS, "") | {"id": f"ball-{k}", "split": "train"}
        rows.append(row | {"status": "ok"})
    write_index(folder, rows)


def in_a_fork(function, *given):
    """Start a function in a process of its own; its id."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        function(*given)
        status = 0
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def train(data, out, at=None, pipe=None):
    """Train; say in a pipe when call `at` of all those of saving comes."""
    saving, count, save = False, 0, loop.save_checkpoint

    def watched(*given):
        nonlocal saving
        saving = True
        save(*given)
        saving = False

    def hook(event, arguments):
        nonlocal count
        if saving and event in CALLS:
            if count == at:
                os.write(pipe, b"x")
            count += 1

    loop.save_checkpoint = watched
    sys.addaudithook(hook)
    torch.manual_seed(0)
    shapes = ShapeDataset(data, points=64)
    model = D2IMNet(**SIZES)
    for _ in loop.train(model, shapes, out, CONFIG, validation=shapes):
        pass
    if at is None and pipe is not None:
        os.write(pipe, str(count).encode())


def result(out):
    """What a training has come to."""
    names = ("model", "last", "optimizer")
    files = [(out / f"{name}.safetensors").read_bytes() for name in names]
    return files, [row | {"seconds": 0} for row in read_records(out)]


def moment(out):
    """What the killed one was doing, by what it left."""
    stages = [path for path in out.glob(".d2im-*") if (path / path.name).is_file()]
    if not stages:
        return OUTSIDE
    left = {path.name for stage in stages for path in stage.iterdir()}
    if "training.json" not in left:
        moved = "config.json" in left or len(left) == 1
        return "writing" if moved else "clearing up"
    return "moving the files" if len(left) < 7 else "valid, nothing moved"


def contents(folder):
    return {p: p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def kill_once(data, home, calls, rng):
    """Kill a training and let it go on; its folder, and the moment of the kill."""
    out = home / "run"
    for name in USERS:
        (home / name).mkdir(parents=True)
        (home / name / "thesis.txt").write_text(
            f"years of work in {name}", encoding="utf-8"
        )
    mine = {name: contents(home / name) for name in USERS}
    reading, writing = os.pipe()
    process = in_a_fork(train, data, out, int(rng.integers(calls)), writing)
    os.close(writing)
    if not os.read(reading, 1):
        raise RuntimeError("the training ended by itself")
    time.sleep(rng.uniform(0, DELAY))
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(reading)
    when = moment(out) if os.WIFSIGNALED(status) else OUTSIDE
    _, status = os.waitpid(in_a_fork(train, data, out), 0)
    untouched = all(contents(home / name) == mine[name] for name in USERS)
    return when, status == 0, untouched


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = common.opening(parser)
    torch.set_num_threads(1)  # a fork has no threads but its own
    rng, whens, same, kept = np.random.default_rng(options.seed), Counter(), 0, 0
    home = Path(tempfile.mkdtemp())
    try:
        prepare(home / "data")
        reading, writing = os.pipe()
        process = in_a_fork(train, home / "data", home / "whole", None, writing)
        os.waitpid(process, 0)
        calls, whole = int(os.read(reading, 9)), result(home / "whole")
        while whens.total() - whens[OUTSIDE] < options.kills:
            place = home / str(whens.total())
            when, ended, untouched = kill_once(home / "data", place, calls, rng)
            whens[when] += 1
            same += ended and result(place / "run") == whole
            kept += untouched
    finally:
        shutil.rmtree(home)
    kills = whens.total()
    print(f"{STEPS} checkpoints, {calls} calls; {kills} kills")
    for when, count in whens.most_common():
        print(f"  {count:3} {when}")
    print(f"{same} of {kills} went on bit for bit")
    print(f"{kept} of {kills} left the user's folders as they were")
    return same != kills or kept != kills


if __name__ == "__main__":
    sys.exit(main())
