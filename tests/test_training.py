import errno
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from d2im import losses
from d2im.camera import Camera
from d2im.data.dataset import ShapeDataset, read_example, write_example
from d2im.laplacian import laplacian_maps
from d2im.networks import DISN, SDF_SCALE, CameraNet, D2IMNet, ImageModel, IMNet
from d2im.training import loop as training
from d2im.training import objectives, replay
from d2im.training.checkpoints import on_host, read_records
from d2im.training.loop import (
    TrainingConfig,
    _problem,
    batch_losses,
    refresh_batch_norms,
    train,
    validation_loss,
)
from d2im.training.patches import paste_patches

from .conftest import TINY

ENCODER = {k: TINY[k] for k in ImageModel.SIZES}
WIDER = {"decoder_widths": (64, 64, 32)}
CONFIG = TrainingConfig(steps=6, batch_size=2, warmup_steps=2, checkpoint_every=3)


def new_model():
    torch.manual_seed(0)
    return D2IMNet(**TINY)


@pytest.fixture
def data(tiny_data):
    return ShapeDataset(tiny_data, points=128)


@pytest.mark.parametrize(
    "kind, settings, steps",
    [
        (D2IMNet, {**WIDER, "displacement_channels": 4}, 300),
        (IMNet, WIDER, 200),
        (DISN, {"point_widths": (32, 64), "head_widths": (64, 32)}, 400),
        (CameraNet, {"head_widths": (16,)}, 100),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_model_overfits_few_shapes(tiny_data, tmp_path, kind, settings, steps):
    torch.manual_seed(0)
    model = kind(**ENCODER, **settings)
    config = TrainingConfig(steps=steps, batch_size=9, learning_rate=1e-2)
    data = ShapeDataset(tiny_data, points=200)
    records = list(train(model, data, tmp_path / "run", config))
    for term in set(records[0]) - {"step", "learning_rate", "seconds"}:
        first = sum(r[term] for r in records[:10])
        assert sum(r[term] for r in records[-10:]) < 0.8 * first, term
    points = torch.rand(4000, 3) * 1.1 - 0.55
    for index, radius in enumerate((0.3, 0.4, 0.5)):
        image, camera = data[index]["image"], data[index]["camera"]
        if kind is CameraNet:
            found = torch.from_numpy(model.camera(image).to_array()[None]).float()
            errors = losses.camera_errors(found, camera[None], points[None])
            assert errors["rotation_degrees"] < 10 and errors["distance"] < 0.1
            continue
        with torch.no_grad():
            _, field, _ = model.fields(image[None], Camera.from_array(camera))
            found, true = field(points) < 0, points.norm(dim=1) < radius
        assert (found & true).sum() >= 0.95 * (found | true).sum()


def test_the_loss_is_the_weighted_sum_of_its_terms(data, tmp_path):
    config = TrainingConfig(steps=1, batch_size=2, laplacian_weight=0.3)
    (r,) = train(new_model(), data, tmp_path / "run", config)
    assert r["loss"] == pytest.approx(r["base"] + r["sdf"] + 0.3 * r["laplacian"])


def test_a_step_takes_no_longer_gradient_than_clip_norm(data, tmp_path):
    model = new_model()
    config = replace(CONFIG, steps=1, clip_norm=0.01)
    list(train(model, data, tmp_path / "run", config))
    taken = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    assert taken.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_resumed_run_goes_on_bit_for_bit(data, tmp_path):
    whole = new_model()
    records = list(train(whole, data, tmp_path / "whole", CONFIG))
    for _ in islice(train(new_model(), data, tmp_path / "run", CONFIG), 4):
        shutil.copytree(tmp_path / "run", tmp_path / "broken", dirs_exist_ok=True)
    torch.manual_seed(99)
    resumed = D2IMNet(**TINY)  # other weights: they come from the checkpoint of step 3
    rest = list(train(resumed, data, tmp_path / "broken", CONFIG))
    assert [r["step"] for r in rest] == [4, 5, 6]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    for a, b in zip(records[3:], rest, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert read_records(tmp_path / "broken")[3:] == rest
    assert [r["step"] for r in read_records(tmp_path / "broken")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("wrong", ["steps", "batch_size", "checkpoint_every"])
def test_settings_that_cannot_be_are_named(wrong):
    with pytest.raises(ValueError, match=f"{wrong} must be [01] or more, not -1"):
        replace(CONFIG, **{wrong: -1})


RARE = replace(CONFIG, checkpoint_every=100)  # none before the end


def same(model, other, records, others):
    """Whether two trainings came to the same, bit for bit."""
    weights = other.state_dict()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert [r | {"seconds": 0} for r in records] == [r | {"seconds": 0} for r in others]
    return True


def test_a_closed_run_is_saved_where_it_was(data, tmp_path):
    whole, resumed = new_model(), new_model()
    records = list(train(whole, data, tmp_path / "whole", RARE))
    list(islice(train(new_model(), data, tmp_path / "run", RARE), 4))
    assert [r["step"] for r in train(resumed, data, tmp_path / "run", RARE)] == [5, 6]
    assert same(whole, resumed, records, read_records(tmp_path / "run"))


def test_a_closed_run_leaves_the_model_of_a_checkpoint_at_its_step(data, tmp_path):
    for name, every in (("due", 4), ("closed", 100)):
        config = replace(CONFIG, checkpoint_every=every)
        list(islice(train(new_model(), data, tmp_path / name, config), 4))
    due, closed = (tmp_path / n / "model.safetensors" for n in ("due", "closed"))
    assert due.read_bytes() == closed.read_bytes()  # batch norms' statistics, too


def test_a_run_started_anew_adds_no_row_to_that_of_the_one_before(
    data, tmp_path, monkeypatch
):
    list(train(new_model(), data, tmp_path, CONFIG))
    before = (tmp_path / "metrics.csv").read_bytes()
    monkeypatch.setattr(training, "SHOW_SECONDS", 0.0)
    list(islice(train(new_model(), data, tmp_path, CONFIG, resume=False), 2))
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_an_empty_metrics_file_of_a_full_disk_ends_no_run(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SHOW_SECONDS", 0.0)
    for record in train(new_model(), data, tmp_path, CONFIG):
        if record["step"] == 1:
            (tmp_path / "metrics.csv").write_bytes(b"")
    assert len(read_records(tmp_path)) == 6


@pytest.fixture
def heeded():
    """Ctrl-C is, even where whatever started the tests ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_its_step_which_is_saved(data, tmp_path, heeded):
    whole, hit, resumed = new_model(), new_model(), new_model()
    records = list(train(whole, data, tmp_path / "whole", RARE))
    calls = itertools.count(1)

    def interrupt(*_):
        if next(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    hit.base_decoder.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(train(hit, data, tmp_path / "run", RARE))
    done = len(read_records(tmp_path / "run"))
    assert 1 <= done <= 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    rest = list(train(resumed, data, tmp_path / "run", RARE))
    assert len(rest) == 6 - done
    assert same(whole, resumed, records, read_records(tmp_path / "run"))


def test_a_second_ctrl_c_ends_a_step_that_hangs(data, tmp_path, monkeypatch, heeded):
    def hang(*_):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.02)
        pytest.fail("it is not heeded")

    monkeypatch.setattr(training, "PATIENCE", 0.01)
    model = new_model()
    model.base_decoder.register_forward_hook(hang)
    with pytest.raises(KeyboardInterrupt):
        next(train(model, data, tmp_path, CONFIG))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_long_run_is_saved_by_the_clock(data, tmp_path):
    whole, resumed = new_model(), new_model()
    records = list(train(whole, data, tmp_path / "whole", RARE))
    often = replace(RARE, save_minutes=1e-6)
    for _ in islice(train(new_model(), data, tmp_path / "run", often), 4):
        shutil.copytree(tmp_path / "run", tmp_path / "killed", dirs_exist_ok=True)
    rest = list(train(resumed, data, tmp_path / "killed", RARE))
    assert [r["step"] for r in rest] == [5, 6]
    assert same(whole, resumed, records, read_records(tmp_path / "killed"))


def test_metrics_grow_while_a_run_trains(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SHOW_SECONDS", 0.0)
    for record in train(new_model(), data, tmp_path / "run", CONFIG):
        assert read_records(tmp_path / "run")[-1] == record
        if record["step"] == 5:  # two rows after the checkpoint
            shutil.copytree(tmp_path / "run", tmp_path / "killed")
    with open(tmp_path / "killed/metrics.csv", "a") as file:
        file.write("6,0.1")  # a row cut short
    assert len(read_records(tmp_path / "killed")) == 5
    rest = list(train(new_model(), data, tmp_path / "killed", CONFIG))
    assert [r["step"] for r in rest] == [4, 5, 6]
    assert len(read_records(tmp_path / "killed")) == 6


def test_a_run_killed_before_its_first_checkpoint_starts_anew_and_keeps_its_rows(
    data, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "SHOW_SECONDS", 0.0)
    out = tmp_path / "run"
    run = train(new_model(), data, out, RARE)
    next(run), next(run)
    shutil.copytree(out, tmp_path / "killed")
    run.close()
    assert len(list(train(new_model(), data, tmp_path / "killed", RARE))) == 6
    kept = (tmp_path / "killed/metrics.killed.csv").read_text().splitlines()
    assert len(kept) == 3 and kept[0].startswith("step,loss,")


def test_another_programs_rows_are_not_set_aside(data, tmp_path):
    rows = "step,loss,accuracy\n1,0.5,0.1\n"
    (tmp_path / "metrics.csv").write_text(rows)
    with pytest.raises(ValueError, match="holds metrics.csv, which training would"):
        next(train(new_model(), data, tmp_path, RARE))
    assert (tmp_path / "metrics.csv").read_text() == rows


@pytest.mark.usefixtures("heeded")
def test_a_loaders_workers_end_with_an_error_that_is_kept(data, tmp_path, monkeypatch):
    whole = training.total_loss

    def interrupted(*given):
        os.kill(os.getpid(), signal.SIGINT)
        return whole(*given)

    monkeypatch.setattr(training, "total_loss", interrupted)
    others = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt) as kept:  # as a notebook keeps it
        list(train(new_model(), data, tmp_path / "run", RARE, workers=2))
    own = set(multiprocessing.active_children()) - others
    for worker in own:  # a busy machine takes a while to end it
        worker.join(20)
    assert kept.tb and not any(worker.is_alive() for worker in own)


def test_a_disk_that_is_full_for_a_while_costs_a_run_nothing(
    data, tmp_path, monkeypatch
):
    save, calls = training.save_checkpoint, itertools.count(1)

    def full(*parts):
        if next(calls) < 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*parts)

    whole, other = new_model(), new_model()
    records = list(train(whole, data, tmp_path / "whole", CONFIG))
    monkeypatch.setattr(training, "save_checkpoint", full)
    often = replace(CONFIG, checkpoint_every=2)
    with pytest.warns(UserWarning, match="No space left .* tries again"):
        list(train(other, data, tmp_path / "run", often))
    assert same(whole, other, records, read_records(tmp_path / "run"))


def test_a_run_goes_on_for_more_steps_than_before_but_not_for_fewer(data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    longer = replace(CONFIG, steps=8, warmup_steps=3)
    rest = list(train(new_model(), data, tmp_path / "run", longer))
    assert [r["step"] for r in rest] == [7, 8]
    with pytest.raises(ValueError, match="has 8 steps, not 6"):
        list(train(new_model(), data, tmp_path / "run", CONFIG))


def test_a_finished_run_yields_nothing_more(data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    assert list(train(new_model(), data, tmp_path / "run", CONFIG)) == []


def test_tensors_come_to_the_host_as_they_are():
    kinds = torch.rand(2, 3, 4, 4), torch.arange(6).view(2, 3), torch.tensor(7)
    tensors = dict(enumerate((*kinds, torch.rand(5), torch.tensor(0.5))))
    tensors[0] = tensors[0].to(memory_format=torch.channels_last)
    copies = on_host(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(copies[name], tensor) and copies[name].is_contiguous()
        assert copies[name].dtype == tensor.dtype
    tensors[3][0] = -1
    assert copies[3][0] != -1


def test_a_checkpoint_is_a_loadable_model_without_pickles(data, tmp_path):
    model = new_model()
    list(train(model, data, tmp_path / "run", CONFIG))
    loaded = D2IMNet.from_pretrained(tmp_path / "run")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    names = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"optimizer.safetensors", "training.json"} < names
    assert all(
        name.endswith((".json", ".safetensors", ".md", ".csv")) for name in names
    )
    settings = json.loads((tmp_path / "run" / "training.json").read_text())
    assert settings["settings"]["steps"] == 6 and settings["step"] == 6


def test_a_checkpoint_of_other_settings_is_refused(data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    other = TrainingConfig(steps=6, batch_size=3, warmup_steps=2)
    with pytest.raises(ValueError, match="other settings \\(batch_size\\)"):
        list(train(new_model(), data, tmp_path / "run", other))


def test_a_checkpoint_of_another_model_is_refused(data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    wider = D2IMNet(**{**TINY, "code_size": 16})
    with pytest.raises(ValueError, match="of another model"):
        list(train(wider, data, tmp_path / "run", CONFIG))


def test_a_truncated_checkpoint_is_named(data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    file = tmp_path / "run" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ValueError, match="run is damaged"):
        list(train(new_model(), data, tmp_path / "run", CONFIG))


def test_a_loss_that_is_not_finite_names_its_step(data, tmp_path):
    model = new_model()
    with torch.no_grad():
        model.base_decoder.out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="at step 1"):
        list(train(model, data, tmp_path / "run", CONFIG))


def test_a_loss_that_grows_for_long_stops_the_run():
    low = [{"loss": 1.0}] * 200
    assert _problem([*low, *[{"loss": 4.0}] * 100]) is None
    assert _problem([*low, *[{"loss": 6.0}] * 99]) is None
    assert "diverges (6 after 1)" in _problem([*low, *[{"loss": 6.0}] * 100])


def test_the_best_model_by_validation_is_kept_and_the_last_goes_on(data, tmp_path):
    model = new_model()
    config = replace(CONFIG, steps=9, checkpoint_every=1, learning_rate=1.0)
    records, weights = [], []
    for record in train(model, data, tmp_path / "run", config, validation=data):
        records.append(record)
        weights.append({k: v.clone() for k, v in model.state_dict().items()})
    scores = [record["validation"] for record in records]
    best = int(torch.tensor(scores).argmin())
    assert best < 8  # such a rate overshoots
    kept = D2IMNet.from_pretrained(tmp_path / "run")
    for name, tensor in kept.state_dict().items():
        assert torch.equal(tensor, weights[best][name])
    assert validation_loss(kept, data, config) == pytest.approx(scores[best])
    again = D2IMNet(**TINY)
    assert list(train(again, data, tmp_path / "run", config, validation=data)) == []
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, weights[-1][name])
    assert read_records(tmp_path / "run") == records


def a_batch(data):
    return torch.utils.data.default_collate([data[k] for k in range(3)])


def test_the_learning_rate_rises_evenly_to_its_peak_then_falls_to_a_hundredth():
    config = TrainingConfig(steps=1000, warmup_steps=50, learning_rate=2e-3)
    rates = [training._learning_rate(step, config) for step in range(1000)]
    assert rates[:50] == pytest.approx([4e-5 * (k + 1) for k in range(50)])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] == pytest.approx(2e-5, rel=1e-3)


def test_p_f_is_what_faces_the_camera(data):
    batch = a_batch(data)  # of balls about the origin
    toward = -(batch["points"] * batch["camera"][:, None, 6:9]).sum(-1)
    sure = toward.abs() > 0.01
    assert torch.equal(objectives._sight(batch).front[sure], toward[sure] > 0)


def test_l_lap_compares_maps_in_world_units(data):
    batch, model = a_batch(data), new_model()
    maps = 0.01 * torch.rand(3, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    model.displacement_decoder.forward = lambda features: SDF_SCALE * maps
    sight = objectives._sight(batch)
    compared = laplacian_maps(maps[:, 0], batch)
    expected = losses.laplacian_loss(*compared, sight.uv, sight.visible)
    found = batch_losses(model, batch, CONFIG)["laplacian"]
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_points_within_a_hundredth_weigh_four_times_in_disns_loss(data):
    model = DISN(**ENCODER, point_widths=(8, 16), head_widths=(16, 8))
    model.decode = lambda code, features, points, uv: 0 * points[..., 0]
    batch = a_batch(data)
    away = batch["sdf"].abs()
    expected = (SDF_SCALE * away * torch.where(away < 0.01, 4, 1)).mean()
    assert batch_losses(model, batch, CONFIG)["sdf"].item() == pytest.approx(
        expected.item()
    )


def test_l_vis_teaches_the_maps_alone(data):
    config, model = replace(CONFIG, visible_weight=1.0), new_model()
    loss = batch_losses(model, a_batch(data), config)["visible"]
    loss.backward()
    assert loss > 0
    assert model.displacement_decoder.out.weight.grad.abs().sum() > 0
    assert not model.base_decoder.out.weight.grad.any()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (IMNet, {}),
        (D2IMNet, {}),
        (D2IMNet, {"relief_weight": 1.0}),
        (D2IMNet, {"relief_weight": 1.0, "learn": "base"}),
    ],
)
def test_a_base_learns_the_quantile_that_is_asked_for(data, kind, changes):
    sizes = {name: TINY[name] for name in kind.SIZES if name in TINY}
    model, batch = kind(**sizes, mobile_size=32).eval(), a_batch(data)
    terms = [
        batch_losses(model, batch, replace(CONFIG, base_quantile=q, **changes))["base"]
        for q in (0.0, 0.3, 0.7)
    ]
    body = batch["base_sdf" if changes else "sdf"] * SDF_SCALE
    base = model.base_decoder(model.encode(batch["image"])[0], batch["points"])
    for quantile, term in zip((0.0, 0.3, 0.7), terms, strict=True):
        wanted = losses.base_loss(base, body, quantile)
        assert term.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert len({term.item() for term in terms}) == 3
    with pytest.raises(ValueError, match="base_quantile must be in"):
        replace(CONFIG, base_quantile=1.0)


@pytest.mark.parametrize("learn", ["base", "maps"])
def test_base_and_maps_of_two_encoders_learn_apart_what_they_learn_together(
    data, learn
):
    """The terms and the gradients are those of `all`; the other's have none."""
    torch.manual_seed(0)
    model, batch = D2IMNet(**TINY, mobile_size=32), a_batch(data)
    config = replace(CONFIG, relief_weight=1.0)
    batch_norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in batch_norms:
        norm.momentum = 0.0

    def learnt(config):
        model.zero_grad()
        terms = batch_losses(model, batch, config)
        training.total_loss(terms, config).backward()
        return terms, {n: p.grad for n, p in model.named_parameters()}

    whole, together = learnt(config)
    terms, apart = learnt(replace(config, learn=learn))
    own = {"base": {"base"}, "maps": {"relief", "laplacian"}}[learn]
    assert terms.keys() == own
    assert all(terms[name] == whole[name] for name in own)
    mine = ("code_encoder", "base_decoder")
    for name, grad in apart.items():
        if name.startswith(mine) == (learn == "base"):
            assert torch.allclose(grad, together[name], atol=1e-7), name
        else:
            assert grad is None, name


def test_where_the_coarse_body_is_not_known_the_base_alone_learns_the_whole(data):
    model, batch = new_model(), a_batch(data)
    config = replace(CONFIG, learn="base", relief_weight=1.0)
    known = batch_losses(model, batch, config)["base"]
    batch["base_sdf"] = batch["sdf"] - 0.01
    moved = batch_losses(model, batch, config)["base"]
    batch["base_sdf"] = torch.full_like(batch["sdf"], torch.nan)
    assert batch_losses(model, batch, config)["base"] == known != moved


def test_parts_that_cannot_be_learnt_alone_are_refused():
    with pytest.raises(ValueError, match="learn must be all, base or maps, not 'map'"):
        replace(CONFIG, learn="map")
    with pytest.raises(ValueError, match="maps alone need relief_weight"):
        replace(CONFIG, learn="maps")


@pytest.mark.parametrize("kind, size", [(D2IMNet, 0), (IMNet, 32)])
def test_parts_are_learnt_alone_where_they_share_no_encoder(data, tmp_path, kind, size):
    config = replace(CONFIG, learn="base")
    model = kind(**{name: TINY[name] for name in kind.SIZES}, mobile_size=size)
    with pytest.raises(ValueError, match="'mobile' and 'local'"):
        next(train(model, data, tmp_path / "run", config))


@pytest.mark.parametrize("local_channels", [0, 4])
@pytest.mark.parametrize("learn", ["base", "maps"])
def test_a_part_alone_goes_on_bit_for_bit_and_leaves_the_other_as_it_was(
    data, tmp_path, learn, local_channels
):
    config = replace(CONFIG, learn=learn, relief_weight=1.0)
    runs = {"whole": [6], "parts": [3, 6]}
    found = {}
    for name, ends in runs.items():
        for steps in ends:
            torch.manual_seed(0)
            own = {"mobile_size": 32, "local_channels": local_channels}
            model = D2IMNet(**TINY, **own)
            before = {k: v.clone() for k, v in model.state_dict().items()}
            now = replace(config, steps=steps)
            took = [r["step"] for r in train(model, data, tmp_path / name, now)]
            assert took[0] == (4 if ends[0] < steps else 1)
        found[name] = model.state_dict()
    mine = ("code_encoder", "base_decoder", "local_decoder")
    looked_up = [name for name in before if name.startswith(("local", mine[1] + ".lo"))]
    assert len(looked_up) == (13 if local_channels else 0)
    if learn == "base":
        assert not any(torch.equal(before[n], found["parts"][n]) for n in looked_up)
    for name, value in found["parts"].items():
        if name.startswith(mine) == (learn == "base"):
            assert torch.equal(value, found["whole"][name]), name
        else:
            assert torch.equal(value, before[name]), name
    with pytest.raises(ValueError, match="other settings .learn"):
        next(train(model, data, tmp_path / "parts", replace(config, learn="all")))


def test_a_run_of_before_parts_were_learnt_alone_goes_on(data, tmp_path):
    list(train(new_model(), data, tmp_path, CONFIG))
    path = tmp_path / "training.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    del state["settings"]["learn"]
    path.write_text(json.dumps(state), encoding="utf-8")
    config = replace(CONFIG, steps=7)
    assert len([*train(new_model(), data, tmp_path, config)]) == 1


def test_l_rel_teaches_the_known_decomposition(data):
    """A model that is the truth by its parts, but for an offset, has that as loss."""
    config, model = replace(CONFIG, relief_weight=1.0), new_model()
    batch = a_batch(data)
    batch["base_sdf"] = batch["sdf"] - 0.01  # everywhere a relief of 0.01
    model.base_decoder.forward = lambda code, points: batch["base_sdf"] * SDF_SCALE
    model.displacement_decoder.out.bias.data[:] = 0.03 * SDF_SCALE
    model.displacement_decoder.out.weight.data[:] = 0.0
    terms = batch_losses(model, batch, config)
    assert set(terms) == {"base", "sdf", "relief", "laplacian"}
    assert terms["base"] == terms["sdf"] == 0
    each = (0.02 * SDF_SCALE) ** 2  # of the front points, and of the back points
    assert terms["relief"].item() == pytest.approx(2 * each, rel=1e-3)
    terms["relief"].backward()
    taught = model.displacement_decoder.out.bias.grad
    assert (taught > 0).all()  # the back map, too
    del batch["base_sdf"]
    with pytest.raises(ValueError, match="coarse body"):
        batch_losses(new_model(), batch, config)


def test_shapes_without_a_coarse_body_learn_by_the_papers_losses_beside_others(data):
    config, model = replace(CONFIG, relief_weight=1.0), new_model()
    batch = a_batch(data)
    model.eval()  # batch norms would look at all pictures
    alone = {name: value[:1] for name, value in batch.items()}
    batch["base_sdf"][1:] = np.nan
    terms = batch_losses(model, batch, config)
    with_coarse = batch_losses(model, alone, config)["relief"]
    assert terms["relief"].item() == pytest.approx(with_coarse.item(), rel=1e-5)
    others = {name: value[1:] for name, value in batch.items()}
    paper = batch_losses(model, others, CONFIG)
    assert terms["sdf"].item() == pytest.approx(paper["sdf"].item(), rel=1e-5)
    base = batch_losses(model, batch | {"base_sdf": batch["sdf"]}, config)["base"]
    each = [
        batch_losses(model, part, c)["base"]
        for part, c in ((alone, config), (others, CONFIG))
    ]
    count = len(batch["sdf"])
    mean = (each[0] + (count - 1) * each[1]) / count
    assert terms["base"].item() == pytest.approx(mean.item(), rel=1e-5)
    assert base.isfinite() and sum(terms.values()).isfinite()


def test_folders_with_and_without_coarse_bodies_train_together(tiny_data, tmp_path):
    plain = Path(shutil.copytree(tiny_data, tmp_path / "plain"))
    known = Path(shutil.copytree(tiny_data, tmp_path / "known"))
    for file in (*plain.glob("*.npz"), *known.glob("*.npz")):
        example = read_example(file)
        del example["base_sdf"]
        if file.parent == known:
            example["base_sdf"] = example["sdf"] - np.float32(0.02)
        write_example(file, example)
    config = replace(CONFIG, relief_weight=1.0, steps=60, warmup_steps=5)
    both = ShapeDataset([known, plain], points=128)
    assert both[0]["base_sdf"].isfinite().all() and both[5]["base_sdf"].isnan().all()
    runs = {
        resident: list(
            train(
                new_model(), both, tmp_path / f"{resident}", config, resident=resident
            )
        )
        for resident in (True, False)
    }
    for records in runs.values():
        for term in ("sdf", "relief"):
            first, last = (
                [r[term] for r in some] for some in (records[:8], records[-8:])
            )
            assert sum(last) < sum(first)
    with pytest.raises(ValueError, match="L_rel needs the coarse body"):
        alone = ShapeDataset(plain, points=128)
        next(train(new_model(), alone, tmp_path / "none", config))


def test_patches_are_for_l_rel():
    with pytest.raises(ValueError, match="patch_share needs relief_weight"):
        TrainingConfig(patch_share=0.5)
    with pytest.raises(ValueError, match="precision must be 'float32' or 'bf16'"):
        TrainingConfig(precision="fp16")


def test_in_a_patch_l_rel_teaches_the_next_pictures_relief(tiny_data):
    """Maps of a picture's own relief, but of the next one's in its patch, are right."""
    data = ShapeDataset(tiny_data, points=2000)
    config = replace(CONFIG, relief_weight=1.0, patch_share=1.0)
    batch, model = a_batch(data), new_model()
    relief = torch.tensor([[0.01], [0.02], [0.03]])
    batch["base_sdf"] = batch["sdf"] - relief
    model.base_decoder.forward = lambda code, points: batch["base_sdf"] * SDF_SCALE
    seen = {}

    def paste(*args):
        pasted, seen["patches"] = paste_patches(*args)
        seen["image"] = pasted["image"]
        return pasted, seen["patches"]

    def maps(features):  # (B, 2, H, W)
        weight, scale = seen["patches"].weight, seen["patches"].scale
        brought = (scale * relief.roll(-1, 0))[..., None]
        front = torch.lerp(relief[..., None].expand_as(weight), brought, weight)
        return SDF_SCALE * torch.stack([front, relief[..., None] + 0 * front], 1)

    encode, shown = model.encode, []
    model.encode = lambda image, *of: shown.append(image) or encode(image, *of)
    model.displacement_decoder.forward = maps
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objectives, "paste_patches", paste)
        right = batch_losses(model, batch, config)["relief"]
    assert torch.equal(shown[0], seen["image"])
    assert not torch.equal(shown[0], batch["image"])
    seen["patches"] = seen["patches"]._replace(weight=seen["patches"].weight * 0)
    wrong = batch_losses(model, batch, config)["relief"]
    assert 0 <= right < 1e-6 * wrong


def test_batch_norms_are_asked_with_the_weights_of_now(data, tmp_path):
    model = new_model()
    batches = [
        torch.utils.data.default_collate([data[key] for key in keys])
        for keys in ([(0, 0), (1, 0)], [(2, 0), (1, 1)])
    ]
    refresh_batch_norms(model.eval(), batches)
    assert not model.training
    encoder = model.image_encoder
    seen = [
        encoder.conv1(batch["image"]).transpose(0, 1).flatten(1) for batch in batches
    ]
    mean, var = (
        torch.stack([getattr(x, f)(1) for x in seen]).mean(0) for f in ("mean", "var")
    )
    torch.testing.assert_close(encoder.bn1.running_mean, mean)
    torch.testing.assert_close(encoder.bn1.running_var, var)
    assert encoder.bn1.momentum == 0.1
    # so a run that is stopped at a high rate leaves a model that can be used
    config = replace(CONFIG, steps=30, checkpoint_every=30, learning_rate=0.02)
    *_, last = train(model, data, tmp_path / "run", config)
    kept, items = (
        ImageModel.from_pretrained(tmp_path / "run"),
        [data[k] for k in range(3)],
    )
    batch = torch.utils.data.default_collate(items)
    with torch.no_grad():
        asked = batch_losses(kept, batch, config)["base"]
        trained = batch_losses(kept.train(), batch, config)["base"]
    assert asked < 2 * trained


def test_data_on_the_device_teach_as_well(data, tmp_path):
    config = replace(CONFIG, steps=60, learning_rate=5e-3, checkpoint_every=60)
    run = train(new_model(), data, tmp_path / "run", config, resident=True)
    losses_ = [record["loss"] for record in run]
    assert sum(losses_[-10:]) < 0.6 * sum(losses_[:10])


def test_blocks_of_replayed_steps_are_the_same_steps(data, tmp_path, monkeypatch):
    """What a GPU replays, taken here by a stand-in for its graph and stream."""
    config = replace(CONFIG, steps=130, checkpoint_every=40)
    expected = list(train(new_model(), data, tmp_path / "a", config, resident=True))
    assert expected[0]["learning_rate"] < expected[1]["learning_rate"]
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    taken = []

    def record(step, stream):
        taken.append(len(taken))
        return SimpleNamespace(replay=step)

    monkeypatch.setattr(replay, "record", record)
    monkeypatch.setattr(training, "_single_steps", None)
    monkeypatch.setattr(training, "_can_replay", lambda shapes, device, count: True)
    often = replace(config, save_minutes=1e-9)
    run = train(new_model(), data, tmp_path / "b", often, resident=True)
    found = [next(run) for _ in range(60)]  # amid a block, of steps 41 to 80
    run.close()  # its other steps have been taken, and are saved
    rest = list(train(new_model(), data, tmp_path / "b", config, resident=True))
    assert len(taken) == 2 and len(rest) == 50
    found += read_records(tmp_path / "b")[60:80] + rest
    for mine, theirs in zip(found, expected, strict=True):
        assert mine | {"seconds": 0} == pytest.approx(theirs | {"seconds": 0})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", [D2IMNet, IMNet, DISN, CameraNet])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_replays_what_it_would_do_step_by_step(
    data, tmp_path, kind, precision, monkeypatch
):
    sizes = {"point_widths": (32, 64), "head_widths": (64, 32)}
    sizes |= {k: TINY[k] for k in ("decoder_widths", "displacement_channels")}
    config = replace(CONFIG, steps=30, precision=precision, learning_rate=1e-3)
    runs = []
    for name in "ab":
        torch.manual_seed(0)
        model = kind(**{k: sizes[k] if k in sizes else TINY[k] for k in kind.SIZES})
        runs.append(list(train(model, data, tmp_path / name, config, validation=data)))
        monkeypatch.setattr(training, "_can_replay", lambda *given: False)
    for one, other in zip(*runs, strict=True):
        for name in set(one) - {"seconds"}:
            assert one[name] == pytest.approx(other[name], rel=0.03), (name, one)


def test_bf16_gives_nearly_the_same_losses(data, tmp_path):
    config = replace(CONFIG, steps=3)
    exact = list(train(new_model(), data, tmp_path / "a", config))
    rough = list(
        train(new_model(), data, tmp_path / "b", replace(config, precision="bf16"))
    )
    for name in ("base", "sdf", "laplacian"):
        assert rough[0][name] != exact[0][name]
        assert rough[0][name] == pytest.approx(exact[0][name], rel=0.05)


def test_neighbours_are_not_subtracted_in_half_precision(data, tmp_path, monkeypatch):
    seen = []

    def watched(maps, *given):
        seen.append(maps.dtype)
        return laplacian_maps(maps, *given)

    monkeypatch.setattr(objectives, "laplacian_maps", watched)
    config = replace(CONFIG, steps=1, precision="bf16")
    list(train(new_model(), data, tmp_path, config))
    assert set(seen) == {torch.float32}


SCRIPT = f"""
import sys, torch
from d2im.data.dataset import ShapeDataset
from d2im.networks import D2IMNet
from d2im.training.loop import TrainingConfig, train
torch.manual_seed(0)
config = TrainingConfig(steps=12, batch_size=2, warmup_steps=2, checkpoint_every=1)
data = ShapeDataset(sys.argv[1], points=128)
for record in train(D2IMNet(**{TINY}), data, sys.argv[2], config):
    print(record["step"], flush=True)
"""


def test_a_killed_run_goes_on_as_if_nothing_had_been(tiny_data, tmp_path):
    def start(folder, **options):
        command = [sys.executable, "-c", SCRIPT, str(tiny_data), str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)

    with start(tmp_path / "killed") as run:
        while int(run.stdout.readline()) < 5:
            pass
        time.sleep(0.02)  # somewhere in a step, or in writing its checkpoint
        run.send_signal(signal.SIGKILL)
    for folder in ("killed", "whole"):
        with start(tmp_path / folder) as run:
            took = [int(step) for step in run.communicate()[0].split()]
        assert took[-1] == 12 and (took[0] > 5) == (folder == "killed")
    for file in ("model.safetensors", "optimizer.safetensors"):
        found = [(tmp_path / f / file).read_bytes() for f in ("killed", "whole")]
        assert found[0] == found[1], file


@pytest.mark.skipif(os.name == "nt", reason="no file size limit")
def test_a_disk_that_is_full_leaves_the_last_checkpoint(tiny_data, tmp_path):
    import resource

    list(
        islice(
            train(
                new_model(),
                ShapeDataset(tiny_data, points=128),
                tmp_path / "run",
                CONFIG,
            ),
            3,
        )
    )
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))"
    code = SCRIPT.replace("steps=12", "steps=6").replace("every=1", "every=3")
    code = code.replace("    print", f"    {limit}; print")  # not before the first step
    command = [sys.executable, "-c", code, str(tiny_data)]
    done = subprocess.run([*command, tmp_path / "run"], capture_output=True, text=True)
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    last = done.stderr.strip().splitlines()[-1]
    assert "cannot write the checkpoint of step 6" in last and "last good one" in last
    assert json.loads((tmp_path / "run" / "training.json").read_text())["step"] == 3
    D2IMNet.from_pretrained(tmp_path / "run")


def test_a_failed_write_keeps_the_last_checkpoint(data, tmp_path, monkeypatch):
    run = train(new_model(), data, tmp_path / "run", CONFIG)
    list(islice(run, 4))

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("d2im.training.checkpoints.save_file", full_disk)
    with pytest.raises(OSError, match="step 6.*No space.*last good one is in"):
        list(run)
    assert not list((tmp_path / "run").glob(".d2im-*/*"))
    state = json.loads((tmp_path / "run" / "training.json").read_text())
    assert state["step"] == 3
    D2IMNet.from_pretrained(tmp_path / "run")


def test_training_works_without_the_geometry_libraries(tiny_data, tmp_path):
    code = f"""
import sys
for name in ("igl", "embreex", "manifold3d", "k3d", "trimesh", "skimage", "papermill"):
    sys.modules[name] = None  # importing it raises
from d2im.data.dataset import ShapeDataset
from d2im.networks import D2IMNet
from d2im.training.loop import TrainingConfig, train
model = D2IMNet(**{TINY})
config = TrainingConfig(steps=1, batch_size=2)
(record,) = train(model, ShapeDataset({str(tiny_data)!r}), {str(tmp_path)!r}, config)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_of_other_data_is_refused(data, tiny_data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    other = ShapeDataset(tiny_data, points=64)
    with pytest.raises(ValueError, match=r"other settings \(data\)"):
        list(train(new_model(), other, tmp_path / "run", CONFIG))


def test_a_damaged_training_json_is_named(data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    (tmp_path / "run" / "training.json").write_text("{}")
    with pytest.raises(ValueError, match="run is damaged"):
        list(train(new_model(), data, tmp_path / "run", CONFIG))


def test_a_patchs_border_is_no_hole_in_the_silhouette(data, monkeypatch):
    """L_lap leaves it out; a base that looks it up sees the whole object."""
    torch.manual_seed(0)
    model = D2IMNet(**TINY, mobile_size=32, local_channels=4)
    batch, seen = a_batch(data), []
    encode = model.encode
    told = lambda *given: seen.append(given[2]) or encode(*given)  # noqa: E731
    monkeypatch.setattr(model, "encode", told)
    batch_losses(model, batch, replace(CONFIG, relief_weight=1.0, patch_share=1.0))
    assert torch.equal(seen[0], batch["mask"])
