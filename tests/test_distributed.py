"""Two processes train as one with their batches: gradients, batch norms, files."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from torch import nn

from d2im.data.dataset import ShapeDataset
from d2im.networks import D2IMNet
from d2im.training.checkpoints import checkpoint_folder, read_records
from d2im.training.distributed import share_batch_norms
from d2im.training.loop import TrainingConfig, train

from .conftest import TINY

SETTINGS = dict(steps=4, batch_size=4, warmup_steps=2, checkpoint_every=2)
SCRIPT = f"""
import sys, torch
from d2im.data.dataset import ShapeDataset
from d2im.networks import D2IMNet
from d2im.training.loop import TrainingConfig, train
torch.manual_seed(0)
model = D2IMNet(**{TINY})
data = ShapeDataset(sys.argv[1], points=128)
config = TrainingConfig(**{SETTINGS}, precision=sys.argv[3])
list(train(model, data, sys.argv[2], config, validation=data))
"""


def launch(folder, script, *arguments):
    """Run a script in two processes."""
    (folder / "script.py").write_text(script)
    launch = "-m torch.distributed.run --nproc-per-node 2 --master-addr 127.0.0.1"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [*launch.split(), "--master-port", port, folder / "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    return subprocess.run(
        [sys.executable, *command, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module", params=["float32", "bf16"])
def two(request, tiny_data, tmp_path_factory):
    """The folder of a run of two processes, and its precision."""
    folder = tmp_path_factory.mktemp("two")
    for attempt in ("first", "second"):  # gloo's threads may abort a process
        given = SCRIPT, tiny_data, folder / attempt, request.param
        done = launch(folder, *given)
        if "terminate called without an active exception" not in done.stderr:
            break
    (folder / attempt).rename(folder / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", request.param


def test_two_processes_equal_one_with_their_batches(two, tiny_data, tmp_path):
    torch.manual_seed(0)
    model, data = D2IMNet(**TINY), ShapeDataset(tiny_data, points=128)
    folder, precision = two
    config = TrainingConfig(**SETTINGS, precision=precision)
    records = list(train(model, data, tmp_path / "one", config, validation=data))
    close = 1e-4 if precision == "float32" else 2e-2  # bf16 has three digits
    for a, b in zip(records, read_records(folder), strict=True):
        for name in set(a) - {"seconds"}:
            assert a[name] == pytest.approx(b[name], rel=close), name
    if precision == "bf16":  # Adam takes whole steps by the sign of its rounding
        return
    one = D2IMNet.from_pretrained(tmp_path / "one").state_dict()
    for name, tensor in D2IMNet.from_pretrained(folder).state_dict().items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-3, atol=2e-4)


# Each process lives on: nobody ends the others from outside.
REFUSED = (
    SCRIPT.replace("list(train(", "training = (train(")
    + """
import os
from pathlib import Path
import d2im.training.loop
def full(*given):
    raise OSError(28, "No space left on device")
for stop in "lock", "disk":
    if stop == "disk":
        training = train(model, data, sys.argv[2] + "/free", config)
        d2im.training.loop.save_checkpoint = full
    try:
        list(training)
    except (ValueError, OSError) as error:
        rank = os.environ["RANK"]
        Path(sys.argv[2], f"{stop}-{rank}").write_text(str(error))
"""
)


def test_what_stops_the_main_process_stops_all(tiny_data, tmp_path):
    held = tmp_path / "run"
    with checkpoint_folder(held):
        done = launch(tmp_path, REFUSED, tiny_data, held, "float32")
    assert done.returncode == 0, done.stderr[-3000:]
    for stop, says in ("lock", "another training"), ("disk", "No space left"):
        for rank in range(2):
            assert says in (held / f"{stop}-{rank}").read_text()


def test_alone_a_shared_batch_norm_is_torchs():
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    plain, shared = nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm2d(3))
    share_batch_norms(shared)
    assert torch.equal(plain(x), shared(x))
    assert torch.equal(plain.running_var, shared[0].running_var)


def test_a_batch_without_equal_shares_is_refused(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setattr("d2im.training.loop.PartialState", lambda cpu: _State())
    config = TrainingConfig(batch_size=4)
    with pytest.raises(ValueError, match="no equal shares for 3"):
        next(train(D2IMNet(**TINY), ShapeDataset(tiny_data), tmp_path / "x", config))


class _State:
    device, num_processes = torch.device("cpu"), 3
