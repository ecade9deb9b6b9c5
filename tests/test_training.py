import json
import subprocess
import sys
from itertools import islice

import pytest
import torch

from d2im import losses
from d2im.camera import Camera
from d2im.dataset import ShapeDataset
from d2im.networks import DISN, CameraNet, D2IMNet, ImageModel, IMNet
from d2im.training import TrainingConfig, read_records, train

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


def test_a_resumed_run_goes_on_bit_for_bit(data, tmp_path):
    whole = new_model()
    records = list(train(whole, data, tmp_path / "whole", CONFIG))
    broken = new_model()
    list(islice(train(broken, data, tmp_path / "broken", CONFIG), 4))  # saved at 3
    torch.manual_seed(99)
    resumed = D2IMNet(**TINY)  # other weights: they come from the checkpoint
    rest = list(train(resumed, data, tmp_path / "broken", CONFIG))
    assert [r["step"] for r in rest] == [4, 5, 6]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    for a, b in zip(records[3:], rest, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    assert read_records(tmp_path / "broken")[3:] == rest
    assert [r["step"] for r in read_records(tmp_path / "broken")] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_yields_nothing_more(data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    assert list(train(new_model(), data, tmp_path / "run", CONFIG)) == []


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
    assert settings["config"]["steps"] == 6 and settings["step"] == 6


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


def test_a_failed_write_keeps_the_last_checkpoint(data, tmp_path, monkeypatch):
    run = train(new_model(), data, tmp_path / "run", CONFIG)
    list(islice(run, 4))

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("d2im.training.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        list(run)
    state = json.loads((tmp_path / "run" / "training.json").read_text())
    assert state["step"] == 3
    D2IMNet.from_pretrained(tmp_path / "run")


def test_training_works_without_the_geometry_libraries(tiny_data, tmp_path):
    code = f"""
import sys
for name in ("igl", "embreex", "manifold3d", "k3d", "trimesh", "skimage", "papermill"):
    sys.modules[name] = None  # importing it raises
from d2im.dataset import ShapeDataset
from d2im.networks import DISN, CameraNet, D2IMNet, ImageModel, IMNet
from d2im.training import TrainingConfig, read_records, train
model = D2IMNet(**{TINY})
config = TrainingConfig(steps=1, batch_size=2)
(record,) = train(model, ShapeDataset({str(tiny_data)!r}), {str(tmp_path)!r}, config)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_of_something_else_is_not_replaced(data, tiny_data, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="no checkpoint"):
        list(train(new_model(), data, tmp_path, CONFIG))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_checkpoint_of_other_data_is_refused(data, tiny_data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    other = ShapeDataset(tiny_data, points=64)
    with pytest.raises(ValueError, match=r"other settings \(data\)"):
        list(train(new_model(), other, tmp_path / "run", CONFIG))


def test_a_run_killed_while_checkpoints_change_places_goes_on(data, tmp_path):
    list(islice(train(new_model(), data, tmp_path / "run", CONFIG), 4))
    (tmp_path / "run").rename(tmp_path / "run.old")
    rest = list(train(new_model(), data, tmp_path / "run", CONFIG))
    assert [r["step"] for r in rest] == [4, 5, 6]


def test_a_damaged_training_json_is_named(data, tmp_path):
    list(train(new_model(), data, tmp_path / "run", CONFIG))
    (tmp_path / "run" / "training.json").write_text("{}")
    with pytest.raises(ValueError, match="run is damaged"):
        list(train(new_model(), data, tmp_path / "run", CONFIG))
