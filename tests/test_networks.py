import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy.ndimage import distance_transform_edt
from torch.utils.flop_counter import FlopCounterMode

from d2im import networks
from d2im.camera import Camera, project, random_camera
from d2im.fields import front_mask
from d2im.networks import (
    DISN,
    MODELS,
    PRESETS,
    SDF_SCALE,
    BaseDecoder,
    CameraNet,
    D2IMNet,
    DisplacementDecoder,
    ImageModel,
    IMNet,
    InvertedResidual,
    MobileEncoder,
)

from .conftest import TINY

ENCODER = {k: TINY[k] for k in ImageModel.SIZES}
SIZES = {
    D2IMNet: TINY,
    IMNet: {**ENCODER, "decoder_widths": (32, 16, 8)},
    DISN: {**ENCODER, "point_widths": (8, 16), "head_widths": (16, 8)},
    CameraNet: {**ENCODER, "head_widths": (16,)},
}
FIELDS = (D2IMNet, IMNet, DISN)
CAMERA = Camera(20, 10, 1, 32)


def tiny(kind, **changes):
    torch.manual_seed(0)
    return kind(**SIZES[kind] | changes)


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
    code, *looked_up = code if isinstance(code, tuple) else (code,)
    assert code.shape == (1, PRESETS[name]["code_size"])
    assert [maps.shape for maps in looked_up] == [(1, 34, 64, 64)] * (name == "local")
    assert [f.shape[-1] for f in features] == [side // 2**k for k in range(5)]
    assert displacement.shape == (1, 2, side, side)


@torch.no_grad()
def test_the_first_convolutions_maps_are_pooled_by_maxima_as_in_resnet(tiny_model):
    encoder = tiny_model.eval().image_encoder
    first, second, *_ = encoder(torch.rand(1, 3, 32, 32))[1]
    windows = F.unfold(first, 3, padding=1, stride=2).view(1, 4, 9, 16, 16)
    assert torch.equal(second, encoder.layer1(windows.amax(2)))  # none is below 0


def test_base_decoder_agrees_with_a_naive_im_net(tiny_model, rng):
    code = torch.tensor(rng.normal(size=(2, 8)), dtype=torch.float32)
    points = torch.tensor(rng.uniform(-0.5, 0.5, (2, 50, 3)), dtype=torch.float32)
    decoder = tiny_model.base_decoder
    hidden = code[:, None].repeat(1, 50, 1)
    for layer in decoder.layers[:-1]:
        hidden = F.relu(layer(torch.cat([hidden, points], -1)))
    expected = decoder.out(F.relu(decoder.layers[-1](hidden)))[..., 0]
    assert torch.allclose(decoder(code, points), expected, atol=1e-6)


@torch.no_grad()
def test_an_untrained_base_is_on_the_average_a_ball_of_radius_0_3():
    torch.manual_seed(0)
    points = F.normalize(torch.randn(500, 3), dim=-1)[None] * 0.3
    found = []
    for seed in range(10):
        torch.manual_seed(seed)
        decoder = BaseDecoder(8, (512, 512, 512))
        found.append(decoder(torch.zeros(1, 8), points).mean() / SDF_SCALE)
    # One such decoder is off by about 0.02, so their mean by less than 0.01.
    assert torch.stack(found).mean().abs() < 0.03


@torch.no_grad()
def test_an_untrained_base_hardly_depends_on_the_code():
    torch.manual_seed(0)
    decoder = D2IMNet.preset("small").base_decoder
    codes = 0.05 * torch.randn(8, 128)  # as large as an untrained encoder's
    base = decoder(codes, (torch.rand(1, 500, 3) - 0.5).expand(8, -1, -1)) / SDF_SCALE
    assert base.std(0).mean() < 0.2 * base.std(1).mean()  # by code, by place


@pytest.mark.parametrize("kind", ["small", "base"])
@torch.no_grad()
def test_maps_start_far_below_a_voxel(kind):
    torch.manual_seed(0)
    model = D2IMNet.preset(kind)
    side = model.image_size
    maps = model.fields(torch.rand(1, 3, side, side), CAMERA)[2]
    assert maps.any() and maps.abs().max() < 0.1 * 1.1 / 128  # world units


@pytest.mark.parametrize("mixing", [False, True])
def test_displacement_decoder_agrees_with_upsampling_first(mixing):
    model = tiny(D2IMNet, mixing=mixing)
    decoder = model.displacement_decoder
    decoder.out.weight.data *= 100  # the maps start at almost nothing
    _, features = model.encode(torch.rand(2, 3, 32, 32))
    x = F.relu(decoder.lateral[4](features[4]))
    for k in (3, 2, 1, 0):
        x = F.relu(decoder.mix[k](x)) if mixing else x
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


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_the_base_decoders_derivative_is_that_of_forward_mode(tiny_model):
    decoder, points = tiny_model.base_decoder, torch.rand(1, 200, 3) - 0.5
    code, direction = torch.randn(1, decoder.layers[0].in_features - 3), torch.randn(3)
    with torch.no_grad():
        value, derivative = decoder.along(code, points, direction)
        expected = torch.func.jvp(
            lambda p: decoder(code, p), (points,), (direction.expand_as(points),)
        )
    assert torch.allclose(value, expected[0], atol=1e-6)
    assert torch.allclose(derivative, expected[1], atol=1e-5)
    assert derivative.std() > 0.1


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(kind, rng):
    model = tiny(kind)
    cameras = np.stack([random_camera(rng, 32).to_array() for _ in range(2)])
    cameras = torch.tensor(cameras).float()
    image, points = torch.rand(2, 3, 32, 32), torch.rand(2, 400, 3) - 0.5
    if kind is CameraNet:
        found = model(image)
    elif kind is D2IMNet:
        found = model(image, points, cameras, torch.rand(2, 400) < 0.5)
    elif kind is DISN:
        found = model.decode(*model.encode(image), points, project(points, cameras)[0])
    else:
        found = model.base_decoder(model.encode(image)[0], points)
    found.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_fields_of_a_picture_have_one_form_for_all_networks(kind):
    model = tiny(kind).eval()
    points = torch.rand(50, 3) - 0.5
    with torch.no_grad():
        base, sdf, displacement = model.fields(torch.rand(1, 3, 32, 32), CAMERA)
        assert base(points).shape == sdf(points).shape == (50,)
        assert sdf(points.double()).dtype == torch.float64
    assert displacement.shape == (2, 32, 32)
    if kind is not D2IMNet:
        assert base is sdf and not displacement.any()


@torch.no_grad()
def test_fields_and_forward_of_d2im_net_agree(tiny_model):
    tiny_model.eval()
    image, points = torch.rand(1, 3, 32, 32), torch.rand(1, 60, 3) - 0.5
    base, sdf, _ = tiny_model.fields(image, CAMERA)
    front = front_mask(base, points[0], CAMERA.rotation[2])
    cameras = torch.tensor(CAMERA.to_array()).float()[None]
    whole = tiny_model(image, points, cameras, front[None])
    assert torch.allclose(whole[0], sdf(points[0]), atol=1e-6)


@torch.no_grad()
def test_disn_is_the_sum_of_two_naive_streams_at_the_projection():
    model = tiny(DISN).eval()
    image, points = torch.rand(1, 3, 32, 32), torch.rand(1, 30, 3) - 0.5
    code, maps = model.encode(image)
    uv, _ = CAMERA.project(points[0])
    local = [
        F.grid_sample(m, uv[None, None], padding_mode="border", align_corners=False)
        for m in maps
    ]
    expected = 0
    for stream, features in (
        (model.global_stream, code.expand(30, -1)),
        (model.local_stream, torch.cat(local, 1)[0, :, 0].T),
    ):
        both = torch.cat([stream.points(points[0]), features], 1)
        weight = torch.cat([stream.join_points.weight, stream.join_features.weight], 1)
        hidden = F.relu(F.linear(both, weight, stream.join_points.bias))
        expected = expected + stream.head(hidden)[:, 0]
    found = model.fields(image, CAMERA)[1](points[0])
    assert torch.allclose(found * SDF_SCALE, expected, atol=1e-5)


@pytest.mark.parametrize("maps", [0, 1, 2])
def test_maps_that_are_not_used_are_zero_and_get_no_gradient(maps):
    model = tiny(D2IMNet, maps=maps)
    found = model.displacement_decoder(model.encode(torch.rand(1, 3, 32, 32))[1])
    found.square().sum().backward()
    used = [bool(found[0, k].any()) for k in (0, 1)]
    learns = [bool(row.any()) for row in model.displacement_decoder.out.weight.grad]
    assert used == learns == [maps > 0, maps > 1]


def test_a_camera_network_gives_cameras(rng):
    model = tiny(CameraNet).eval()
    model.rotation[1].weight.data *= 30
    image = torch.rand(1, 3, 32, 32)
    rotation = model(image)[0, :9].reshape(3, 3)
    assert torch.allclose(rotation @ rotation.T, torch.eye(3), atol=1e-5)
    assert torch.linalg.det(rotation).item() == pytest.approx(1, abs=1e-5)
    camera, front = model.camera(image[0]), Camera(0, 0, 1, 32)
    points = rng.uniform(-0.4, 0.4, (20, 3))
    uv, depth = project(torch.tensor(points)[None].float(), model(image))
    assert np.allclose(camera.project(points)[0], uv[0].detach(), atol=1e-5)
    assert np.allclose(camera.project(points)[1], depth[0, :, 2].detach(), atol=1e-5)
    assert (camera.focal, camera.size) == (front.focal, front.size)
    for head in (model.rotation, model.distance):
        head[1].weight.data.zero_()
    assert np.allclose(model.camera(image[0]).to_array(), front.to_array(), atol=1e-6)


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", PRESETS)
def test_every_network_has_the_presets_and_comes_back_from_its_folder(
    kind, name, tmp_path, capfd
):
    model = kind.preset(name) if name == "small" else tiny(kind)
    assert kind.preset(name, frame="shapenet").frame == "shapenet"
    model.save_pretrained(tmp_path)
    capfd.readouterr()
    again = ImageModel.from_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")  # the hub's library is fond of talking
    assert type(again) is kind and not again.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor)


def test_a_folder_of_another_network_is_refused(tmp_path):
    tiny(DISN).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of a D2IMNet: it is of a DISN"):
        D2IMNet.from_pretrained(tmp_path)


def conv_flops(size_in, size, kernel, side):
    return 2 * size_in * size * kernel**2 * side**2  # a product and a sum a weight


@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
def test_operations_are_as_many_as_counted_by_hand(kind):
    """As 03 counts them for its table: of a picture, and of a point of its field."""
    model = kind.preset("small").eval()
    empty, points = torch.zeros(1, 3, 112, 112), 1000
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        _, field, _ = model.fields(empty, Camera(0, 0, 1, 112), "finite_difference")
        picture = counter.get_total_flops()
        field(torch.zeros(points, 3))
    wanted = conv_flops(3, 16, 7, 112) + 2 * conv_flops(16, 16, 3, 56)
    for width, side in ((32, 28), (64, 14), (128, 7)):
        wanted += conv_flops(width // 2, width, 3, side)
        wanted += conv_flops(width, width, 3, side)
        wanted += conv_flops(width // 2, width, 1, side)
    wanted += 2 * (128 * 256 + 256 * 128)
    if kind is D2IMNet:
        for k, width in enumerate((16, 16, 32, 64, 128)):
            wanted += conv_flops(width, 16, 1, 112 >> k)
            wanted += conv_flops(16, 16, 1, 112 >> k) if k else 0  # before upsampling
        wanted += conv_flops(16, 16, 3, 112) + conv_flops(16, 2, 1, 112)
    assert picture == wanted
    code = 128 * 128  # its share, once a call
    if kind is DISN:
        stream = 3 * 32 + 32 * 64 + 64 * 128 + 128 * 128 + 128 * 64 + 64
        each = 2 * stream + sum((16, 16, 32, 64, 128)) * 128
    else:
        each = 3 * 128 + 131 * 128 + 131 * 64 + 67 * 32 + 32 * 32 + 32
    if kind is D2IMNet:  # the base twice: a step tells front from back
        each, code = 2 * each, 2 * code
    assert counter.get_total_flops() - picture == 2 * (points * each + code)


@torch.no_grad()
def test_bfloat16_moves_the_field_by_less_than_two_hundredths(tiny_model):
    tiny_model.eval()
    image, points = torch.rand(1, 3, 32, 32), torch.rand(500, 3) - 0.5
    exact = tiny_model.fields(image, CAMERA)[1](points)
    with torch.autocast("cpu", torch.bfloat16):
        rough = tiny_model.fields(image, CAMERA)[1](points)
    assert 0 < (rough - exact).abs().max() < 0.02


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")
@pytest.mark.parametrize("kind", FIELDS, ids=lambda kind: kind.__name__)
@torch.no_grad()
def test_cpu_and_cuda_agree(kind):
    model, points = tiny(kind).eval(), torch.rand(500, 3) - 0.5
    if kind is D2IMNet:
        model.displacement_decoder.out.weight.data *= 100  # maps of 0.1, not 0.001
    image = torch.rand(1, 3, 32, 32)
    here = model.fields(image, CAMERA)
    here = [*(field(points) for field in here[:2]), here[2]]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        there = model.cuda().fields(image.cuda(), CAMERA)
        there = [*(field(points.cuda()) for field in there[:2]), there[2]]
    for a, b in zip(here, there, strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-4)


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


def test_a_model_that_the_hub_does_not_give_is_named_in_one_line(monkeypatch):
    def offline(name):
        raise OSError("no connection\nmore of it")

    monkeypatch.setattr("d2im.networks.snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match="folder a/b, .* hub: no connection$"):
        D2IMNet.from_pretrained("a/b")


@pytest.mark.parametrize("config", ["{}", "[]", '{"encoder_blocks": [1]}', "size 0"])
def test_a_config_without_settings_is_named(tiny_model, tmp_path, config):
    tiny_model.save_pretrained(tmp_path)
    changes = {"image_size": 0} if config == "size 0" else json.loads(config)
    if changes:
        config = json.dumps(TINY | changes)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match="does not hold the settings of a D2IMNet"):
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
    with pytest.raises(ValueError, match="unexpected keyword argument 'heads'"):
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
    with pytest.raises(ValueError, match="does not hold the settings"):
        D2IMNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: m.encode(torch.rand(1, 3, 64, 64)), r"\(B, 3, 32, 32\)"),
        (lambda m: m.encode(torch.rand(3, 32, 32)), r"\(B, 3, 32, 32\)"),
        (lambda m: m.base_decoder(torch.rand(1, 8), torch.rand(5, 3)), r"\(B, P, 3\)"),
        (lambda m: D2IMNet.preset("large"), "paper, base, small"),
        (lambda m: D2IMNet(**{**TINY, "image_size": 30}), "multiple of 16"),
    ],
)
def test_wrong_shapes_and_names_are_refused(tiny_model, call, message):
    with pytest.raises(ValueError, match=message):
        call(tiny_model)


def test_a_mixing_decoder_decides_at_every_level_but_the_finest():
    torch.manual_seed(0)
    decoder = DisplacementDecoder((4, 4, 8), 4, mixing=True)
    torch.nn.init.normal_(decoder.out.weight)
    maps = [torch.rand(1, w, 32 // 2**k, 32 // 2**k) for k, w in enumerate((4, 4, 8))]
    decoder(maps).square().sum().backward()
    assert [conv.kernel_size for conv in decoder.mix] == [(3, 3)] * 2
    assert all(conv.weight.grad.abs().sum() > 0 for conv in decoder.mix)
    assert not DisplacementDecoder((4, 4, 8), 4).mix  # the released one's parts


def test_a_camera_network_takes_another_models_picture():
    torch.manual_seed(0)
    model = tiny(CameraNet).eval()
    model.rotation[1].weight.data *= 30
    side = model.image_size
    large = torch.rand(3, side, side).repeat_interleave(2, 1).repeat_interleave(2, 2)
    small = torch.nn.functional.interpolate(
        large[None], (side, side), mode="bilinear", antialias=True
    )[0]
    found = model.camera(large)
    assert found.size == side
    np.testing.assert_allclose(found.to_array(), model.camera(small).to_array())
    other = model.camera(torch.rand(3, side, side)).to_array()
    assert np.abs(found.to_array() - other).max() > 1e-3  # pictures do tell


WRONG = [
    {"code_size": float("nan")},
    {"code_size": -3},
    {"code_size": True},
    {"code_size": {"a": [1]}},
    {"image_size": 10**9},
    {"image_size": 32.0},
    {"maps": 7},
    {"mixing": 1},
    {"frame": None},
    {"background": "grey"},
    {"encoder_blocks": [1, 1]},
    {"decoder_widths": []},
    {"decoder_widths": [16] * 1_000_000},
    "[" * 100_000,
    "[[1, 2]]",
    "null",
    "\ufeff{}",
]


@pytest.mark.parametrize("change", WRONG, ids=lambda change: str(change)[:30])
def test_settings_that_are_none_are_one_line_that_names_the_file(
    tiny_model, tmp_path, change
):
    tiny_model.save_pretrained(tmp_path)
    text = change if isinstance(change, str) else json.dumps({**TINY, **change})
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="config.json does not hold") as error:
        D2IMNet.from_pretrained(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize(
    "change",
    [
        {"encoder_blocks": (10**9, 1, 1, 1)},
        {"encoder_widths": (4, 4, 8, 8, 10**6)},
        {"hidden_size": 10**400},
        {"code_size": 100, "hidden_size": 100, "decoder_widths": (100,) * 40},
    ],
    ids=str,
)
def test_a_network_larger_than_its_weights_is_refused_before_it_is_built(
    tiny_model, tmp_path, change, monkeypatch
):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**TINY, **change}))
    real = torch.nn.Linear.__init__

    def counted(self, *arguments, **options):
        real(self, *arguments, **options)
        assert self.weight.is_meta  # no memory

    monkeypatch.setattr(torch.nn.Linear, "__init__", counted)
    with pytest.raises(ValueError, match="not of the sizes in config.json"):
        D2IMNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", SIZES, ids=lambda kind: kind.__name__)
def test_comparing_a_folder_with_its_settings_loads_no_compiler(kind, tmp_path):
    tiny(kind).save_pretrained(tmp_path)
    code = f"""if True:
        import sys
        from d2im.networks import ImageModel
        ImageModel.from_pretrained({str(tmp_path)!r})
        sys.exit("torch._dynamo" in sys.modules)  # 2 s and more
    """
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_every_flipped_bit_of_weights_is_noticed(tiny_model, tmp_path, rng):
    tiny_model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for place in [*range(8, 80), *rng.integers(len(whole), size=200)]:
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            found = D2IMNet.from_pretrained(tmp_path).state_dict()
        except ValueError as error:
            assert f"{path} is" in str(error)
        else:  # in the checksum's name
            assert place < 8 + len(networks.SEAL)
            for name, tensor in tiny_model.state_dict().items():
                assert torch.equal(found[name], tensor)


def test_weights_without_a_checksum_are_read_as_before(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path)
    assert b"crc32" not in path.read_bytes()
    D2IMNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(tiny_model, tmp_path, number):
    tiny_model.base_decoder.out.bias.data[:] = number
    tiny_model.save_pretrained(tmp_path)
    wrong = "model.safetensors: base_decoder.out.bias holds NaN or infinite"
    with pytest.raises(ValueError, match=wrong):
        D2IMNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("path", [*MODELS.glob("*/model.safetensors")], ids=str)
def test_the_packages_models_carry_their_checksum(path):
    data = path.read_bytes()
    digits = data[networks.SEALED :][:8]
    zeros = data.replace(networks.SEAL + digits, networks.SEAL + b"0" * 8)
    assert digits == b"%08x" % zlib.crc32(zeros)
    ImageModel.from_pretrained(path.parent)


def test_a_mobile_encoder_has_the_published_size():
    encoder = MobileEncoder(224, 1000)
    assert sum(p.numel() for p in encoder.parameters()) == 4_652_008  # Lite0's 4.7 M
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(torch.rand(1, 3, 224, 224))
    assert counter.get_total_flops() / 2e6 == pytest.approx(407, rel=0.06)  # MAdds


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_an_inverted_residual_pads_as_its_weights_were_trained(kernel, stride):
    """Where it takes every second pixel the odd one of padding is right and below."""
    torch.manual_seed(0)
    block = InvertedResidual(4, 4, kernel, stride, 6).eval()
    x = torch.rand(2, 4, 16, 16)
    convs = [m for m in block.modules() if isinstance(m, torch.nn.Conv2d)]
    total = (16 // stride - 1) * stride + kernel - 16  # TensorFlow's "same"
    before = total // 2
    scale = (1 + 1e-3) ** -0.5  # of a new batch norm
    hidden = (F.conv2d(x, convs[0].weight) * scale).clamp(0, 6)
    hidden = F.pad(hidden, (before, total - before) * 2)
    hidden = F.conv2d(hidden, convs[1].weight, stride=stride, groups=24) * scale
    wanted = F.conv2d(hidden.clamp(0, 6), convs[2].weight) * scale
    wanted = wanted + x if stride == 1 else wanted
    assert torch.allclose(block(x), wanted, atol=1e-5)


@pytest.mark.parametrize("kind", [D2IMNet, IMNet, DISN, CameraNet])
def test_the_code_may_come_from_a_network_of_its_own(kind, tmp_path):
    model = tiny(kind, mobile_size=32).eval()
    image = torch.rand(2, 3, 32, 32)
    code, maps = model.encode(image)
    assert code.shape == (2, 8)
    assert torch.equal(code, model.code_encoder(image))
    assert len(maps) == (5 if kind.uses_maps else 0)
    assert hasattr(model, "image_encoder") == kind.uses_maps
    model.save_pretrained(tmp_path)
    again = ImageModel.from_pretrained(tmp_path)
    assert type(again) is kind and torch.equal(again.encode(image)[0], code)
    code, maps = model.encode(image, "base")
    assert code is not None and not maps
    code, maps = model.encode(image, "maps")
    assert code is None and len(maps) == (5 if kind.uses_maps else 0)


def test_the_distance_from_a_silhouette_is_that_of_scipy():
    rng = np.random.default_rng(0)
    mask = rng.random((4, 24, 24)) < np.array([0.03, 0.5, 0.97, 2])[:, None, None]
    found = networks.silhouette_distance(torch.tensor(mask)).numpy()
    for held, distance in zip(mask[:3], found, strict=False):
        outside, inside = (distance_transform_edt(m) for m in (~held, held))
        wanted = np.where(held, 0.5 - inside, outside - 0.5)
        np.testing.assert_allclose(distance, wanted, atol=1e-5)
    assert (found[3] == 0.5 - 2 * 24).all()  # no rim anywhere


def looking(**changes):
    """A model whose base looks its picture up, with weights that show it."""
    model = tiny(D2IMNet, mobile_size=32, local_channels=4, **changes).eval()
    for layer in model.base_decoder.local:
        torch.nn.init.normal_(layer.weight, std=0.3)
    return model


def a_mask():
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[:, 8:26, 10:20] = True
    return mask


@torch.no_grad()
def test_a_base_that_looks_the_picture_up_begins_as_one_that_does_not():
    plain = tiny(D2IMNet, mobile_size=32).eval()
    model = tiny(D2IMNet, mobile_size=32, local_channels=4).eval()
    own = model.state_dict()
    assert own.keys() > plain.state_dict().keys()
    model.load_state_dict(own | plain.state_dict())
    image, points = torch.rand(1, 3, 32, 32), torch.rand(200, 3) - 0.5
    before, now = plain.fields(image, CAMERA), model.fields(image, CAMERA)
    for k in range(2):  # f_B and F
        assert torch.equal(before[k](points), now[k](points))


@torch.no_grad()
def test_a_base_looks_up_the_silhouette_and_the_channels_where_a_point_falls():
    """All that a point gets of the picture it gets at its projection."""
    model, image, mask = looking(), torch.rand(1, 3, 32, 32), a_mask()
    code, maps = model.encode(image, mask=mask)[0]
    assert maps.shape == (1, 6, 16, 16)
    cover = mask.float().reshape(16, 2, 16, 2).mean((1, 3))
    assert torch.allclose(maps[0, 0], cover)
    off = networks.silhouette_distance(cover[None] > 0.5)[0] / 8  # of a half side
    assert torch.allclose(maps[0, 1], off)
    points = torch.rand(1, 300, 3) - 0.5
    uv, _ = project(points, torch.tensor(CAMERA.to_array())[None].float())
    grid = maps.movedim(1, -1)[0]  # by hand: four pixels' shares
    at = ((uv[0] + 1) * 8 - 0.5).clamp(0, 15)
    low = at.floor().long().clamp(max=14)
    share = at - low
    local = sum(
        grid[low[:, 1] + j, low[:, 0] + i]
        * (share[:, :1] if i else 1 - share[:, :1])
        * (share[:, 1:] if j else 1 - share[:, 1:])
        for i in (0, 1)
        for j in (0, 1)
    )
    hidden = code.expand(300, -1)
    *layers, last = model.base_decoder.layers
    for layer, own in zip(layers, model.base_decoder.local, strict=True):
        joined = torch.cat([hidden, points[0], local], 1)
        weight = torch.cat([layer.weight, own.weight], 1)
        hidden = F.relu(F.linear(joined, weight, layer.bias))
    hidden = F.relu(last(hidden))
    wanted = model.base_decoder.out(hidden)[:, 0] / SDF_SCALE
    base, total, _ = model.fields(image, CAMERA, mask=mask)
    assert torch.allclose(base(points[0]), wanted, atol=1e-5)
    front = front_mask(base, points[0], CAMERA.rotation[2])
    cameras = torch.tensor(CAMERA.to_array())[None].float()
    found = model(image, points, cameras, front[None], mask)
    assert torch.allclose(found[0], total(points[0]), atol=1e-5)
    for background in ("white", "black"):  # without a mask, what differs from it
        model.background = background
        shown = torch.where(mask, 0.5 * image + 0.25, float(background == "white"))
        shown[0, :, 0, 0] += 0.01 if background == "black" else -0.01  # nearly that
        told, untold = (model.fields(shown, CAMERA, mask=m)[0] for m in (mask, None))
        assert torch.equal(told(points[0]), untold(points[0]))


@torch.no_grad()
def test_the_slope_of_a_base_that_looks_the_picture_up_is_that_of_its_values():
    model = looking()
    base, *_ = model.fields(torch.rand(1, 3, 32, 32), CAMERA, mask=a_mask())
    points, step = torch.rand(500, 3) - 0.5, torch.tensor(CAMERA.rotation[2]).float()
    value, slope = base.along(points, step)
    assert torch.equal(value, base(points))
    difference = (base(points + 1e-3 * step) - value) / 1e-3
    off = (slope - difference).abs() / difference.abs().mean()
    assert off.quantile(0.9) < 0.1  # but where a ReLU or a pixel's edge lies between


def test_a_model_whose_base_looks_the_picture_up_comes_back(tmp_path):
    model, image = looking(), torch.rand(1, 3, 32, 32)
    model.save_pretrained(tmp_path)
    again = ImageModel.from_pretrained(tmp_path)
    assert again.settings["local_channels"] == 4
    points = torch.rand(50, 3) - 0.5
    with torch.no_grad():
        here, there = (m.fields(image, CAMERA)[0](points) for m in (model, again))
    assert torch.equal(here, there)
    with pytest.raises(ValueError, match="local_channels needs a mobile_size"):
        tiny(D2IMNet, local_channels=4)
    code, points = torch.rand(1, 8), points[None]
    with pytest.raises(ValueError, match="local must be given"):
        model.base_decoder(code, points)
    with pytest.raises(ValueError, match="local must be given"):
        tiny(D2IMNet).base_decoder(code, points, torch.rand(1, 50, 6))


@torch.no_grad()
def test_a_base_that_looks_the_picture_up_is_there_in_half_precision():
    """The projection and the difference stay exact, which decide front or back."""
    model, image, points = looking(), torch.rand(1, 3, 32, 32), torch.rand(500, 3) - 0.5
    step = torch.tensor(CAMERA.rotation[2]).float()
    value, slope = model.fields(image, CAMERA)[0].along(points, step)
    fields = {"half": (model.half().fields(image.half(), CAMERA), False)}
    model = looking()
    with torch.autocast("cpu", torch.bfloat16):
        fields["bf16"] = model.fields(image, CAMERA), True
    for (base, *_), autocast in fields.values():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            rough, rising = base.along(points, step)
        assert (rough - value).abs().mean() < 0.03 * value.abs().mean()
        assert ((rising < 0) == (slope < 0)).float().mean() > 0.97


@torch.no_grad()
def test_a_base_that_looks_the_picture_up_is_there_in_double_precision():
    model, image, points = (
        looking(),
        torch.rand(1, 3, 32, 32),
        torch.rand(1, 50, 3) - 0.5,
    )
    camera, front = torch.from_numpy(CAMERA.to_array())[None], torch.rand(1, 50) > 0.5
    single = model(image, points, camera.float(), front)
    double = model.double()(image.double(), points.double(), camera, front)
    assert double.dtype == torch.float64
    assert torch.allclose(double.float(), single, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_camera_net_in_half_precision_finds_nearly_the_same_camera(kind):
    model, image = tiny(CameraNet, head_widths=(8,)).eval(), torch.rand(3, 32, 32)
    exact = model.camera(image)
    rough = model.to(kind).camera(image)
    assert np.abs(rough.rotation - exact.rotation).max() < 0.05
    assert rough.focal == exact.focal


def test_a_small_picture_for_the_code_has_sides_that_halve_five_times():
    with pytest.raises(ValueError, match="mobile_size must be a multiple of 32"):
        tiny(D2IMNet, mobile_size=112)
