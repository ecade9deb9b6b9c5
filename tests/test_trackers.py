"""Records reach a tracker, and the training does not notice."""

import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from d2im.data.dataset import ShapeDataset
from d2im.networks import SDF_SCALE, D2IMNet
from d2im.training.loop import TrainingConfig, train
from d2im.training.trackers import front_maps, logged

from .conftest import TINY

CONFIG = TrainingConfig(steps=4, batch_size=2, warmup_steps=2, checkpoint_every=2)


def test_tensorboard_gets_curves_and_maps_and_the_training_is_the_same(
    tiny_data, tmp_path
):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    data = ShapeDataset(tiny_data, points=64)
    records = {}
    for kind in ("", "tensorboard"):
        torch.manual_seed(0)
        model, out = D2IMNet(**TINY), tmp_path / (kind or "plain")
        loop = train(model, data, out, CONFIG, validation=data)
        found = logged(loop, model, data, out / "logs", kind)
        records[kind] = [record | {"seconds": 0} for record in found]
    assert records[""] == records["tensorboard"]
    (file,) = (tmp_path / "tensorboard/logs").rglob("events.*")
    log = EventAccumulator(str(file.parent)).Reload()
    losses = [(e.step, e.value) for e in log.Scalars("loss")]
    assert losses == [
        (r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in records[""]
    ]
    assert [image.step for image in log.Images("front map")] == [2, 4]


def test_wandb_is_given_what_it_takes(tiny_data, tmp_path, monkeypatch):
    logged_, places = [], []

    class Run:
        def log(self, values, step=None, **_):
            logged_.append((step, *values))

        def finish(self):
            places.append("finished")

    def init(project=None, *, dir=None, config=None):  # as wandb's, no other keyword
        assert Path(dir).is_dir()
        places.append((project, dir))
        return Run()

    fake = ModuleType("wandb")
    fake.init, fake.__spec__ = init, ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    data = ShapeDataset(tiny_data, points=64)
    model, folder = D2IMNet(**TINY), tmp_path / "run/logs"
    loop = train(model, data, tmp_path / "run", CONFIG)
    list(logged(loop, model, data, folder, "wandb"))
    assert places == [("run", str(folder)), "finished"]
    assert [step for step, *names in logged_ if "loss" in names] == [1, 2, 3, 4]


def test_a_strip_shows_each_picture_over_its_map_red_outward(tiny_data):
    data = ShapeDataset(tiny_data, points=64)
    model = D2IMNet(**TINY).train()
    for parameter in model.displacement_decoder.parameters():
        torch.nn.init.zeros_(parameter)
    strip = front_maps(model, data)
    size = data[0]["image"].shape[-1]
    count = min(4, len(data))
    assert strip.shape == (2 * size, count * size, 3) and model.training
    pictures = [data[k]["image"].permute(1, 2, 0).numpy() for k in range(count)]
    assert np.allclose(strip[:size], np.concatenate(pictures, 1))
    assert np.ptp(strip[size:].reshape(-1, 3), axis=0).max() == 0  # a map of 0 is grey
    model.displacement_decoder.out.bias.data[0] = -0.01 * SDF_SCALE  # outward
    red, _, blue = front_maps(model, data)[size:].reshape(-1, 3).T
    assert (red > blue + 0.3).all()
    front_maps(model.eval(), data)
    assert not model.training


def test_an_unknown_tracker_is_named_before_a_step(tiny_data, tmp_path):
    data = ShapeDataset(tiny_data, points=64)
    model = D2IMNet(**TINY)
    loop = train(model, data, tmp_path / "run", replace(CONFIG, steps=1))
    with pytest.raises(ValueError, match="log is tensorboard or wandb, not 'tb'"):
        next(logged(loop, model, data, tmp_path / "logs", "tb"))
    assert not (tmp_path / "run").exists()
