import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from d2im.camera import random_camera
from d2im.networks import PRESETS, SDF_SCALE, D2IMNet

from .conftest import TINY


def test_the_small_preset_has_under_a_million_and_a_half_weights():
    count = sum(p.numel() for p in D2IMNet.preset("small").parameters())
    assert 200_000 < count < 1_500_000


def test_the_paper_preset_has_the_released_sizes():
    shapes = {
        k: tuple(v.shape) for k, v in D2IMNet.preset("paper").state_dict().items()
    }
    assert shapes["image_encoder.conv1.weight"] == (64, 3, 7, 7)
    assert shapes["image_encoder.layer4.1.conv2.weight"] == (512, 512, 3, 3)
    assert shapes["image_encoder.fc.weight"] == (1000, 512)
    assert shapes["image_encoder.fc1.weight"] == (128, 1000)
    inputs = [131, 515, 259, 131, 67, 32]
    outputs = [512, 256, 128, 64, 32, 32]
    for k, size in enumerate(zip(outputs, inputs, strict=True)):
        assert shapes[f"base_decoder.layers.{k}.weight"] == size
    assert shapes["displacement_decoder.lateral.4.weight"] == (64, 512, 1, 1)
    assert shapes["displacement_decoder.smooth.weight"] == (64, 64, 3, 3)


@pytest.mark.parametrize("name", PRESETS)
def test_maps_have_the_size_of_the_image(name):
    model = D2IMNet.preset(name).eval()
    side = model.image_size
    with torch.no_grad():
        code, features = model.encode(torch.rand(1, 3, side, side))
        displacement = model.displacement_decoder(features)
    assert code.shape == (1, 128)
    assert [f.shape[-1] for f in features] == [side // 2**k for k in range(5)]
    assert displacement.shape == (1, 2, side, side)


def test_base_decoder_agrees_with_a_naive_im_net(tiny_model, rng):
    code = torch.tensor(rng.normal(size=(2, 8)), dtype=torch.float32)
    points = torch.tensor(rng.uniform(-0.5, 0.5, (2, 50, 3)), dtype=torch.float32)
    decoder = tiny_model.base_decoder
    hidden = code[:, None].repeat(1, 50, 1)
    for layer in decoder.layers[:-1]:
        hidden = F.relu(layer(torch.cat([hidden, points], -1)))
    expected = decoder.out(F.relu(decoder.layers[-1](hidden)))[..., 0]
    assert torch.allclose(decoder(code, points), expected, atol=1e-6)


def test_displacement_decoder_agrees_with_upsampling_first(tiny_model):
    decoder = tiny_model.displacement_decoder
    _, features = tiny_model.encode(torch.rand(2, 3, 32, 32))
    x = F.relu(decoder.lateral[4](features[4]))
    for k in (3, 2, 1, 0):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        x = decoder.up[k](x) + F.relu(decoder.lateral[k](features[k]))
    expected = decoder.out(F.relu(decoder.smooth(x)))
    assert torch.allclose(decoder(features), expected, atol=1e-6)


def test_forward_is_base_plus_displacement_in_world_units(tiny_model, rng):
    tiny_model.eval()
    image, points = torch.rand(2, 3, 32, 32), torch.rand(2, 40, 3) - 0.5
    cameras = [random_camera(rng, 32) for _ in range(2)]
    arrays = torch.tensor(np.stack([c.to_array() for c in cameras])).float()
    front = torch.rand(2, 40) < 0.5
    with torch.no_grad():
        code, features = tiny_model.encode(image)
        base = tiny_model.base_decoder(code, points) / SDF_SCALE
        maps = tiny_model.displacement_decoder(features) / SDF_SCALE
        found = tiny_model(image, points, arrays, front)
    for b, camera in enumerate(cameras):
        uv, _ = camera.project(points[b])
        d = F.grid_sample(
            maps[b : b + 1], uv[None, None], padding_mode="border", align_corners=False
        )[0, :, 0]
        expected = base[b] + torch.where(front[b], d[0], d[1])
        assert torch.allclose(found[b], expected, atol=1e-5)


def test_every_parameter_gets_a_gradient(tiny_model, rng):
    arrays = torch.tensor(np.stack([random_camera(rng, 32).to_array()] * 2)).float()
    front = torch.rand(2, 400) < 0.5
    points = torch.rand(2, 400, 3) - 0.5
    tiny_model(
        torch.rand(2, 3, 32, 32), points, arrays, front
    ).square().sum().backward()
    for name, parameter in tiny_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_a_saved_model_comes_back_with_the_same_answers(tiny_model, tmp_path):
    tiny_model.eval().save_pretrained(tmp_path / "model")
    again = D2IMNet.from_pretrained(tmp_path / "model")
    image = torch.rand(1, 3, 32, 32)
    assert not again.training
    assert torch.equal(again.encode(image)[0], tiny_model.encode(image)[0])
    assert {f.name for f in (tmp_path / "model").iterdir()} >= {
        "config.json",
        "model.safetensors",
    }


def test_a_missing_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model folder .*nowhere"):
        D2IMNet.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no config.json"):
        D2IMNet.from_pretrained(tmp_path)


def test_a_missing_folder_of_two_parts_is_not_sought_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    with pytest.raises(FileNotFoundError, match="no model folder reports"):
        D2IMNet.from_pretrained("reports/nowhere")


@pytest.mark.parametrize("config", ["{}", "[]"])
def test_a_config_without_settings_is_named(tiny_model, tmp_path, config):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="lacks settings of a D2IMNet"):
        D2IMNet.from_pretrained(tmp_path)


def test_weights_of_another_preset_are_refused_in_one_line(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    config = {**TINY, "code_size": 16}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="another preset") as error:
        D2IMNet.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_a_setting_that_no_model_knows_is_refused(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "heads": 3}))
    with pytest.raises(ValueError, match=r"does not know \(heads\)"):
        D2IMNet.from_pretrained(tmp_path)


def test_a_truncated_checkpoint_is_named(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged or truncated"):
        D2IMNet.from_pretrained(tmp_path)


def test_a_config_that_is_not_json_is_named(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        D2IMNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.encode(torch.rand(1, 3, 64, 64)), r"\(B, 3, 32, 32\)"),
        (lambda m: m.encode(torch.rand(3, 32, 32)), r"\(B, 3, 32, 32\)"),
        (lambda m: m.base_decoder(torch.rand(1, 8), torch.rand(5, 3)), r"\(B, P, 3\)"),
        (lambda m: D2IMNet.preset("large"), "paper, small"),
        (lambda m: D2IMNet(**{**TINY, "image_size": 30}), "multiple of 16"),
    ],
)
def test_wrong_shapes_and_names_are_refused(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)
