"""What idle OpenMP threads cost, on a quiet and on a busy machine.

A training step of the `small` preset in processes of their own, with threads that spin
(libgomp's default), that spin for a moment (GOMP_SPINCOUNT) or that wait
(OMP_WAIT_POLICY=PASSIVE, which `import d2im` sets), alone and beside as many busy
processes as there are cores.

    python benchmarks/busy.py
"""

import json
import os
import subprocess
import sys

import common
import numpy as np

STEP = """
import json, time
import torch
from d2im.camera import Camera
from d2im.networks import D2IMNet
from d2im.training.loop import TrainingConfig, batch_losses, total_loss
torch.manual_seed(0)
B, P, S = 16, 1536, 112
camera = torch.tensor(Camera(30, 20, 0.9, S).to_array()).float().expand(B, 16)
points = torch.rand(B, P, 3) - 0.5
normals = torch.nn.functional.normalize(torch.randn(B, 3, S, S), dim=1)
batch = {"image": torch.rand(B, 3, S, S), "mask": torch.ones(B, S, S) > 0}
batch |= {"depth": torch.full((B, S, S), 1.5), "normals": normals, "camera": camera}
batch |= {"points": points, "sdf": points.norm(dim=-1) - 0.4, "gradients": points}
model, config = D2IMNet.preset("small"), TrainingConfig()
optimizer = torch.optim.Adam(model.parameters(), 1e-4)
spent = []
for _ in range(STEPS + 1):
    start = time.perf_counter(), time.process_time()
    loss = total_loss(batch_losses(model, batch, config), config)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    spent.append([time.perf_counter() - start[0], time.process_time() - start[1]])
print(json.dumps(spent[1:]))
"""
WAYS = {  # of waiting; the step imports torch first, so that d2im sets nothing
    "spin (default)": {},
    "spin 1,000 turns": {"GOMP_SPINCOUNT": "1000"},
    "spin 10,000 turns": {"GOMP_SPINCOUNT": "10000"},
    "wait (PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
}


def measure(ways, steps):
    """The median wall and core seconds of a step, of two takes in turn."""
    spent = {way: [] for way in ways}
    plain = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for _ in range(2):
        for way, variables in ways.items():
            command = [sys.executable, "-c", STEP.replace("STEPS", str(steps))]
            given = {"env": plain | variables, "check": True}
            done = subprocess.run(command, capture_output=True, **given)
            spent[way] += json.loads(done.stdout)
    return {way: np.median(times, axis=0) for way, times in spent.items()}


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--steps", type=int, default=6, help="a process (6)")
    options = common.opening(parser)
    busy = [sys.executable, "-c", "while True: pass"]
    quiet = measure(WAYS, options.steps)
    others = [subprocess.Popen(busy) for _ in range(os.cpu_count())]
    try:
        loaded = measure(WAYS, options.steps)
    finally:
        for other in others:
            other.kill()
            other.wait()
    print("a step's wall and core seconds: quiet, beside busy processes")
    for way in WAYS:
        figures = " ".join(f"{t:7.2f}" for t in (*quiet[way], *loaded[way]))
        print(f"{way:20}{figures}")


if __name__ == "__main__":
    main()
