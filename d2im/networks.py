"""D²IM-Net (Li and Zhang, CVPR 2021), its rivals IM-NET and DISN, and a camera network.

One image is encoded into a global code and a feature pyramid. The code drives an IM-NET
decoder (Chen and Zhang, CVPR 2019) that gives the smooth base field; the pyramid drives
a decoder that gives a front and a back displacement map at the image's size. In the
preset `local` the base looks the picture up where a point falls, too. All field
networks have `encode` and `fields`: one loop trains them, one extractor meshes them.

Shapes: B batch, P points, C channels, H x W map. Decoders return SDF_SCALE times world
units, the scale that the losses compare; `forward` and `fields` return world units.
"""

from __future__ import annotations

import json
import math
import zlib
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from safetensors.torch import load, save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from .camera import DISTANCE, LENS_MM, SENSOR_MM, Camera, project
from .fields import base_field, displaced_field, displaced_sdf, sample_maps

if TYPE_CHECKING:
    from typing import Self

    from torch import Tensor

    from .fields import Field

MODELS = Path(__file__).parent / "models"  # that come along with the package
# Weights that we write carry the CRC-32 of their file as metadata; such a file begins
# with 8 bytes, SEAL and its eight digits.
UNSEALED = {"crc32": "00000000"}
SEAL = b'{"__metadata__":{"crc32":"'
SEALED = 8 + len(SEAL)
START_RADIUS = 0.3  # world units, of the ball that an untrained base field is
UNLIKE = 0.02  # of 1: what differs more from a background is the object
SDF_SCALE = 10.0  # the released data's factor: distances of ~0.1 become of order 1


class ResidualBlock(nn.Module):
    """ResNet's basic block, with torchvision's parameter names."""

    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = nn.Sequential()  # empty where the sizes stay
        if stride != 1 or width_in != width:
            conv = nn.Conv2d(width_in, width, 1, stride, bias=False)
            self.downsample.extend([conv, nn.BatchNorm2d(width)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        hidden = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.downsample(x))


class ImageEncoder(nn.Module):
    """A ResNet whose first convolution keeps the full resolution.

    Args: encoder_widths: channels of the first convolution and of the four stages.
        encoder_blocks: residual blocks of the four stages. code_size: C of the code.
        hidden_size: width of the linear layer before the code (ImageNet's 1000); 0
            leaves the code to another network.
    """

    def __init__(self, encoder_widths, encoder_blocks, hidden_size, code_size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, encoder_widths[0], 7, 1, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(encoder_widths[0])
        for stage, (width_in, width) in enumerate(pairwise(encoder_widths)):
            blocks = [ResidualBlock(width_in, width, 2 if stage else 1)]
            for _ in range(encoder_blocks[stage] - 1):
                blocks.append(ResidualBlock(width, width, 1))
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.has_code = hidden_size > 0
        if self.has_code:
            self.fc = nn.Linear(encoder_widths[-1], hidden_size)
            self.fc1 = nn.Linear(hidden_size, code_size)

    def forward(self, image: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """(B, 3, H, W) -> code (B, C) and maps of side H, H/2, H/4, H/8, H/16."""
        x = F.relu(self.bn1(self.conv1(image)))
        features = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            features.append(x := stage(x))
        code = self.fc1(self.fc(x.mean((2, 3)))) if self.has_code else None
        return code, features


class InvertedResidual(nn.Module):
    """MobileNetV2's block: widen, filter each channel alone, narrow (Sandler et al.,
    CVPR 2018)."""

    def __init__(self, width_in, width, kernel, stride, growth):
        super().__init__()
        hidden = growth * width_in
        layers = [_conv_norm(width_in, hidden, 1), nn.ReLU6()] if growth > 1 else []
        layers += [_conv_norm(hidden, hidden, kernel, stride, hidden), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, _conv_norm(hidden, width, 1))
        self.is_residual = stride == 1 and width_in == width

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        found = self.layers(x)
        return x + found if self.is_residual else found


def _conv_norm(width_in, width, kernel, stride=1, groups=1):
    """A convolution with its batch norm; sides are even where it takes every second."""
    most = kernel - stride  # pixels of padding, the odd one right and below
    pad = nn.ZeroPad2d((most // 2, most - most // 2) * 2)
    conv = nn.Conv2d(width_in, width, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(pad, conv, nn.BatchNorm2d(width, eps=1e-3))


class MobileEncoder(nn.Module):
    """EfficientNet-Lite0 on a small picture, for the code (Tan and Le, ICML 2019).

    Sizes are those of its weights of ImageNet, see `use.released.load_mobile_weights`.

    Args: side: of the picture, pixels, a multiple of 32. code_size: C of the code.
    """

    # Channels, blocks, kernel, stride and growth of each stage.
    STAGES = (
        (16, 1, 3, 1, 1),
        (24, 2, 3, 2, 6),
        (40, 2, 5, 2, 6),
        (80, 3, 3, 2, 6),
        (112, 3, 5, 1, 6),
        (192, 4, 5, 2, 6),
        (320, 1, 3, 1, 6),
    )
    FEATURES = 1280

    def __init__(self, side, code_size):
        super().__init__()
        self.side = side
        self.stem = nn.Sequential(_conv_norm(3, 32, 3, 2), nn.ReLU6())
        blocks, width_in = [], 32
        for width, count, kernel, stride, growth in self.STAGES:
            for k in range(count):
                step = 1 if k else stride
                blocks.append(InvertedResidual(width_in, width, kernel, step, growth))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(_conv_norm(width_in, self.FEATURES, 1), nn.ReLU6())
        self.fc = nn.Linear(self.FEATURES, code_size)

    def stages(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W), RGB in [0, 1] -> what each of the STAGES makes."""
        if image.shape[-1] != self.side:
            size = (self.side, self.side)
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        x, found = self.stem((image - 127 / 255) * (255 / 128)), []
        blocks = iter(self.blocks)
        for _, count, *_ in self.STAGES:
            for block in islice(blocks, count):
                x = block(x)
            found.append(x)
        return found

    def code(self, last: Tensor) -> Tensor:
        """The last stage's maps -> code (B, C)."""
        return self.fc(self.head(last).mean((2, 3)))

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> code (B, C)."""
        return self.code(self.stages(image)[-1])


def silhouette_distance(mask: Tensor) -> Tensor:
    """The signed distance of each pixel from the rim of a mask, negative inside.

    Exact between pixels' centres: the nearest one, first along the columns, then along
    the rows (Felzenszwalb and Huttenlocher, Theory of Computing 2012, equation 1).

    Args: mask: (B, H, W) bool, square. Returns: (B, H, W), pixels; of a mask that is
        all one, at most twice its side.
    """
    side = mask.shape[-1]
    at = torch.arange(side, device=mask.device)
    gaps = (at[:, None] - at).square().float()[..., None]  # (row, row, 1)

    def nearest(held):  # of squares that are `held`, (B, H, W) bool
        cost = torch.where(held, 0.0, 4.0 * side**2)
        for _ in range(2):
            found = cost[:, :1] + gaps[0]
            for k in range(1, side):
                torch.minimum(found, cost[:, k : k + 1] + gaps[k], out=found)
            cost = found.mT.contiguous()
        return cost.clamp(max=4.0 * side**2).sqrt()

    return torch.where(mask, 0.5 - nearest(~mask), nearest(mask) - 0.5)


class LocalDecoder(nn.Module):
    """What the base may look up at a point's projection, beside the global code.

    Channels of the picture, as DISN's local stream takes them (Xu et al., NeurIPS
    2019), and the silhouette: how much of a pixel it covers, and how far off it is
    (uv units, 2 / S a pixel; negative inside).

    Args: channels: of the picture.
    """

    TAKEN = 1, 2, 4, 6  # of MobileEncoder.STAGES: a 4th to a 32nd of its picture's side
    SILHOUETTE = 2  # channels

    def __init__(self, channels):
        super().__init__()
        widths = [MobileEncoder.STAGES[k][0] for k in self.TAKEN]
        self.lateral = nn.ModuleList(nn.Conv2d(w, channels, 1) for w in widths)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, stages: list[Tensor], mask: Tensor) -> Tensor:
        """MobileEncoder's stages and (B, H, W) bool -> (B, 2 + channels, S, S).

        S is half the side of the encoder's picture.
        """
        taken = [stages[k] for k in self.TAKEN]
        *rest, x = (conv(x) for conv, x in zip(self.lateral, taken, strict=True))
        grow = partial(F.interpolate, scale_factor=2, mode="bilinear")
        for maps in reversed(rest):
            x = grow(x) + maps
        x = grow(F.relu(self.smooth(F.relu(x))))
        cover = F.interpolate(mask.float()[:, None], x.shape[2:], mode="area")
        off = silhouette_distance(cover[:, 0] > 0.5)[:, None] * (2 / x.shape[-1])
        return torch.cat([cover, off, x.to(cover)], 1)


class BaseDecoder(nn.Module):
    """The IM-NET decoder: the base field f_B of a code, times SDF_SCALE.

    The point is appended to the input of every layer but the last two. It starts as a
    ball of START_RADIUS rather than on the plateau of a constant field: with hidden
    weights from N(0, 2/width) a ReLU network is |p| on the average (Atzmon and Lipman,
    SAL, CVPR 2020, theorem 1). The code enters softly, later xyz inputs begin at 0.

    Args: code_size: C of the code. widths: of the hidden layers. local_size: K numbers
        of the picture that come with each point; they begin at 0.
    """

    def __init__(self, code_size, widths, local_size=0):
        super().__init__()
        self.layers = nn.ModuleList()
        own = widths[:-1] if local_size else ()
        self.local = nn.ModuleList(nn.Linear(local_size, w, bias=False) for w in own)
        for layer in self.local:
            nn.init.zeros_(layer.weight)
        for k, (hidden, width) in enumerate(pairwise([code_size, *widths])):
            last = k == len(widths) - 1
            layer = nn.Linear(hidden if last else hidden + 3, width)
            with torch.no_grad():
                from_hidden, from_xyz = layer.weight.tensor_split([hidden], 1)
                std = (2 / width) ** 0.5
                from_hidden.normal_(std=std if k else 0.01)
                from_xyz.normal_(std=0.0 if k else std)
                layer.bias.zero_()
            self.layers.append(layer)
        self.out = nn.Linear(widths[-1], 1)
        mean = SDF_SCALE * (math.pi / widths[-1]) ** 0.5
        nn.init.normal_(self.out.weight, mean, 1e-3 * SDF_SCALE)
        nn.init.constant_(self.out.bias, -START_RADIUS * SDF_SCALE)

    def forward(
        self, code: Tensor, points: Tensor, local: Tensor | None = None
    ) -> Tensor:
        """Codes (B, C), points (B, P, 3) and local (B, P, K) -> (B, P), scaled."""
        if points.ndim != 3 or points.shape[-1] != 3:
            raise ValueError(f"points must be (B, P, 3), got {tuple(points.shape)}")
        if (local is None) == bool(self.local):
            raise ValueError("local must be given to a decoder of local_size, alone")
        hidden = code[:, None]  # (B, 1, C): the code's part of layer 1 is done once
        for k in range(len(self.layers) - 1):
            hidden = self._join(k, hidden, points, local)
        return self.out(self.layers[-1](hidden).relu_())[..., 0]

    def along(
        self,
        code: Tensor,
        points: Tensor,
        direction: Tensor,
        local: tuple | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The field and its derivative along a direction (3,): (B, P) each, scaled.

        Forward mode by hand, with two products of matrices a layer where torch's takes
        three. Of `local`, the numbers and their derivative are wanted.
        """
        hidden = code[:, None]  # (B, 1, C)
        slope = torch.zeros_like(hidden)
        local, rising = local or (None, None)
        for k, layer in enumerate(self.layers[:-1]):
            of_hidden, of_xyz = layer.weight.tensor_split([hidden.shape[-1]], 1)
            slope = F.linear(slope, of_hidden, of_xyz @ direction)
            if self.local:
                slope = slope + self.local[k](rising)
            hidden = self._join(k, hidden, points, local)
            slope = slope * hidden.sign()  # ReLU's: 1 where it let through, else 0
        hidden = self.layers[-1](hidden).relu_()
        slope = F.linear(slope, self.layers[-1].weight) * hidden.sign()
        return self.out(hidden)[..., 0], F.linear(slope, self.out.weight)[..., 0]

    def _join(self, k, hidden, points, local):
        """ReLU of W [h, p, l] + b = W_h h + W_p p + W_l l + b, without building it."""
        layer = self.layers[k]
        of_hidden, of_xyz = layer.weight.tensor_split([hidden.shape[-1]], 1)
        found = F.linear(points, of_xyz, layer.bias)
        if self.local:
            found = found.add_(self.local[k](local))
        return found.add_(F.linear(hidden, of_hidden)).relu_()


class DisplacementDecoder(nn.Module):
    """Top-down pyramid decoder: front and back displacement maps, times SDF_SCALE.

    Args: widths: channels of the encoder's five maps, finest first. channels: own.
        maps: how many are used: 2, 1 (front only) or 0; the others are 0.
        mixing: a 3x3 convolution at each level but the finest, which has one anyhow.
            The released decoder has none: between its levels nothing is decided.
    """

    def __init__(self, widths, channels, maps=2, mixing=False):
        super().__init__()
        self.maps = maps
        conv = partial(nn.Conv2d, channels, channels, 3, padding=1)
        self.mix = nn.ModuleList(conv() for _ in widths[1:] if mixing)
        self.lateral = nn.ModuleList(nn.Conv2d(w, channels, 1) for w in widths)
        self.up = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in widths[1:])
        self.smooth = conv()
        self.out = nn.Conv2d(channels, 2, 1)
        # Maps start at almost nothing, so that the base is not taught to undo noise.
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: list[Tensor]) -> Tensor:
        """Five maps, finest first -> (B, 2, H, W): 0 front, 1 back."""
        pairs = zip(self.lateral, features, strict=True)
        *rest, x = (F.relu(conv(maps)) for conv, maps in pairs)
        for level in reversed(range(len(self.up))):
            if self.mix:
                x = F.relu(self.mix[level](x))
            # A 1x1 convolution and bilinear upsampling commute; the first is cheaper
            # on the smaller map.
            x = F.interpolate(self.up[level](x), scale_factor=2, mode="bilinear")
            x = x + rest[level]
        maps = self.out(F.relu(self.smooth(x)))
        used = torch.arange(2, device=maps.device) < self.maps
        return torch.where(used[:, None, None], maps, 0.0)


def _mlp(sizes):
    """Linear layers, each with a ReLU behind it."""
    layers = (m for i, o in pairwise(sizes) for m in (nn.Linear(i, o), nn.ReLU()))
    return nn.Sequential(*layers)


class Stream(nn.Module):
    """One of DISN's two streams: features of the point, joined by the picture's."""

    def __init__(self, feature_size, point_widths, head_widths):
        super().__init__()
        self.points = _mlp([3, *point_widths])
        self.join_points = nn.Linear(point_widths[-1], head_widths[0])
        self.join_features = nn.Linear(feature_size, head_widths[0], bias=False)
        self.head = nn.Sequential(_mlp(head_widths), nn.Linear(head_widths[-1], 1))

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        """(B, P, 3) and (B, P or 1, C) -> (B, P), scaled."""
        joined = self.join_points(self.points(points)) + self.join_features(features)
        return self.head(F.relu(joined))[..., 0]


PRESETS = {
    "paper": {  # the released model's sizes; the rivals' published ones
        "image_size": 224,
        "encoder_widths": (64, 64, 128, 256, 512),
        "encoder_blocks": (2, 2, 2, 2),
        "hidden_size": 1000,
        "code_size": 128,
        "decoder_widths": (512, 256, 128, 64, 32, 32),
        "displacement_channels": 64,
        "mixing": False,
        "point_widths": (64, 256, 512),
        "head_widths": (512, 256),
    },
    "base": {  # a GPU trains it, a CPU still runs it in about a second
        "image_size": 224,
        "encoder_widths": (32, 32, 64, 128, 256),
        "encoder_blocks": (1, 2, 2, 2),
        "hidden_size": 512,
        "code_size": 256,
        "decoder_widths": (256, 256, 128, 64, 32),
        "displacement_channels": 32,
        "mixing": True,
        "point_widths": (64, 128, 256),
        "head_widths": (256, 128),
    },
    "small": {  # a CPU trains it in minutes
        "image_size": 112,
        "encoder_widths": (16, 16, 32, 64, 128),
        "encoder_blocks": (1, 1, 1, 1),
        "hidden_size": 256,
        "code_size": 128,
        "decoder_widths": (128, 128, 64, 32, 32),
        "displacement_channels": 16,
        "mixing": False,
        "point_widths": (32, 64, 128),
        "head_widths": (128, 64),
    },
}


# The code from ImageNet's weights: a network of its own, trained apart from the maps.
PRESETS["mobile"] = PRESETS["base"] | {"mobile_size": 128}
# And a base that looks at the picture and its silhouette where the point falls.
PRESETS["local"] = PRESETS["mobile"] | {"local_channels": 32}

# Of each setting a usual value, whose type the ones in a model folder must have.
SETTINGS = PRESETS["local"] | {"maps": 2, "frame": "world", "background": "white"}
LARGEST_IMAGE = 4096  # pixels; no weight tells the size


def _check_settings(config):
    """Refuse settings of a wrong type, and numbers that are no size.

    Raises: ValueError: it names the setting.
    """
    for name, value in config.items():
        usual = SETTINGS.get(name, value)  # of an unknown one the class will say so
        several = isinstance(usual, tuple)
        right = type(value) is (list if several else type(usual))
        if several and right and name.startswith("encoder"):  # a network of four stages
            right = len(value) == len(usual)
        if right and (several or type(usual) is int):
            numbers = value if several else [value]
            most = {"maps": 2, "image_size": LARGEST_IMAGE}.get(name, math.inf)
            right = len(numbers) <= 100 and all(
                type(n) is int and 0 <= n <= most for n in numbers
            )
            may = "maps", "mobile_size", "local_channels"  # be 0
            right &= name in may or 0 not in (numbers or [0])
        right &= name != "background" or value in ("white", "black")
        if not right:
            got, like = json.dumps(value)[:40], json.dumps(usual)
            raise ValueError(f"{name} is {got}, where such as {like} is right")


class _NoDraws(TorchFunctionMode):
    """Leaves out normal draws, for which the meta device first loads 2 s of torch."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = named or {}
        if function in (torch.Tensor.normal_, nn.init.normal_):
            return arguments[0] if arguments else named["tensor"]
        return function(*arguments, **named)


def _compare_sizes(kind, config, tensors):
    """Refuse settings whose network has other tensors than these; allocate nothing.

    Raises: RuntimeError: it names the first that differs.
    """
    # Also without memory a network of a billion layers would take for ever.
    largest = max([len(tensors), *(n for t in tensors.values() for n in t.shape)])
    for name in set(kind.SIZES[1:]) & config.keys():
        asked = max(config[name]) if type(config[name]) is list else config[name]
        if asked > largest:
            raise RuntimeError(f"{name} goes to {asked}, the weights to {largest}")
    with torch.device("meta"), _NoDraws():
        wanted = kind(**config).state_dict()
    for name in sorted(wanted.keys() | tensors.keys()):
        here, there = (
            tuple(states[name].shape) if name in states else "missing"
            for states in (tensors, wanted)
        )
        if here != there:
            raise RuntimeError(f"{name} is {here}, by config.json {there}")


def _model_class(config):
    """The class that settings are of, which are then a network's alone."""
    kinds = {kind.__name__: kind for kind in (D2IMNet, DISN, CameraNet, IMNet)}
    name = config.pop("model", None)
    if name is None:  # settings of before do not say it
        of = {"displacement_channels": D2IMNet, "point_widths": DISN}
        of |= {"head_widths": CameraNet, "decoder_widths": IMNet}
        return next((of[key] for key in of if key in config), ImageModel)
    if name not in kinds:
        raise ValueError(f"model is {name!r}, where {', '.join(kinds)} are known")
    return kinds[name]


def model_folder(path: str | Path) -> Path:
    """A model's folder; `data/models/NAME` is the package's own where there is none."""
    path = Path(path)
    own = MODELS / path.name
    named = path.parts[-3:-1] == ("data", "models")
    return own if named and own.is_dir() and not path.is_dir() else path


def seal_weights(path: str | Path) -> None:
    """Put a checksum of all bytes into weights that were saved as `UNSEALED`."""
    with open(path, "r+b") as file:
        if file.read(SEALED)[8:] == SEAL:
            file.seek(0)
            digits = _checksum(file.read())
            file.seek(SEALED)
            file.write(digits)


def _checksum(data):
    """The CRC-32 of a file of weights, whose own place is taken for zeros."""
    data, check = memoryview(data), 0
    for part in (data[:SEALED], UNSEALED["crc32"].encode(), data[SEALED + 8 :]):
        check = zlib.crc32(part, check)
    return b"%08x" % check


def _load_weights(path):
    """The tensors of a file of weights by name.

    Raises: ValueError: it is damaged, or holds a number that is not finite.
    """
    data = path.read_bytes()  # not mapped: that cannot be replaced on Windows
    try:
        tensors = load(data)
        bad = [n for n, t in tensors.items() if t.is_floating_point()]
        bad = [name for name in bad if not tensors[name].isfinite().all()]
    except Exception as error:  # of kinds of numbers that torch has not, any
        raise ValueError(f"{path} is damaged or truncated: {error}") from error
    if data[8:SEALED] == SEAL and data[SEALED:][:8] != _checksum(data):
        wrong = "its content is another one than was written"
        raise ValueError(f"{path} is damaged: {wrong}; get it again")
    if bad:
        raise ValueError(f"{path}: {bad[0]} holds NaN or infinite numbers; train anew")
    return tensors


class ImageModel(nn.Module, PyTorchModelHubMixin):
    """What the models share: an image encoder, presets and model folders.

    Args: image_size: side of the images and maps, a multiple of 16.
        mobile_size: side of the smaller image that a MobileEncoder makes the code of;
            0 takes the code from the ImageEncoder.
        frame: that points and cameras are given in; "world" is the library's own.
        background: that the object stands on in the images, "white" or "black".
        encoder: the settings of an ImageEncoder.
    """

    SIZES = "image_size", "encoder_widths", "encoder_blocks", "hidden_size", "code_size"
    CHOICES = ("mobile_size",)  # that a preset may leave out
    uses_maps = True  # of the ImageEncoder, beside the code

    def __init__(
        self, image_size, mobile_size=0, frame="world", background="white", **encoder
    ):
        super().__init__()
        if image_size < 16 or image_size % 16:
            raise ValueError(f"image_size must be a multiple of 16, got {image_size}")
        if mobile_size % 32:
            raise ValueError(f"mobile_size must be a multiple of 32, got {mobile_size}")
        self.image_size, self.frame, self.background = image_size, frame, background
        about = {"image_size": image_size, "frame": frame, "background": background}
        about |= {"mobile_size": mobile_size} if mobile_size else {}
        self.settings = {"model": type(self).__name__, **about, **encoder}
        self.code_encoder = None
        if mobile_size:
            self.code_encoder = MobileEncoder(mobile_size, encoder["code_size"])
            encoder["hidden_size"] = 0
        if self.uses_maps or not mobile_size:
            self.image_encoder = ImageEncoder(**encoder)

    @classmethod
    def preset(cls, name: str, **changes) -> Self:
        """A new model of a preset, see PRESETS, but for `changes`."""
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
        names = (*cls.SIZES, *cls.CHOICES)
        return cls(
            **{n: PRESETS[name][n] for n in names if n in PRESETS[name]} | changes
        )

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> ImageModel:
        """Load a model folder: config.json, which names the class, and the weights.

        Args: folder: path of one that `save_pretrained` wrote, see `model_folder`, or a
            hub name.
        Returns: the model, a `cls`, in evaluation mode.
        Raises: FileNotFoundError: a local folder without one of the two files.
            ValueError: a damaged file, or one of another class or configuration.
        """
        path = model_folder(folder)
        if not path.is_dir():
            if path.is_absolute() or len(path.parts) != 2 or path.parent.is_dir():
                raise FileNotFoundError(f"no model folder {path}")
            try:
                path = Path(snapshot_download(str(folder)))
            except OSError as error:
                wrong = f"no model folder {path}, and none from the hub"
                raise FileNotFoundError(f"{wrong}: {error}".split("\n")[0]) from error
        settings, weights = path / "config.json", path / "model.safetensors"
        for file in (settings, weights):
            if not file.is_file():
                raise FileNotFoundError(f"no {file.name} in the model folder {path}")
        tensors = _load_weights(weights)
        try:
            config = dict(json.loads(settings.read_text(encoding="utf-8")))
            kind = _model_class(config)
            if not issubclass(kind, cls):
                raise TypeError(f"it is of a {kind.__name__}")
            _check_settings(config)
            _compare_sizes(kind, config, tensors)
            model = kind(**config)
        except (TypeError, LookupError, ValueError, RecursionError) as error:
            wrong = f"{settings} does not hold the settings of a {cls.__name__}"
            raise ValueError(f"{wrong}: {error}") from error
        except RuntimeError as error:  # of other sizes
            wrong = f"{weights} is not of the sizes in config.json (another preset?)"
            raise ValueError(f"{wrong}: {error}") from error
        model.load_state_dict(tensors)
        return model.eval()

    def save_pretrained(
        self, save_directory: str | Path, *, config: dict | None = None, **options
    ) -> str | None:
        """Write a model folder: config.json and model.safetensors."""
        config = config or self.settings
        return super().save_pretrained(save_directory, config=config, **options)

    def _save_pretrained(self, save_directory):
        path = Path(save_directory) / "model.safetensors"
        tensors = {name: t.contiguous() for name, t in self.state_dict().items()}
        save_file(tensors, path, UNSEALED)
        seal_weights(path)

    def encode(
        self, image: Tensor, learn: str = "all", mask: Tensor | None = None
    ) -> tuple[Tensor | tuple[Tensor, Tensor] | None, list[Tensor]]:
        """Images (B, 3, H, W), RGB in [0, 1], -> code (B, C), maps, finest first.

        Args: learn: "base" leaves the maps out and "maps" the code, where another
            network makes them. mask: (B, H, W) bool, of the object; without it, what
            differs from the background by more than UNLIKE.
        Returns: The code is two, its numbers and what the base looks up, in a model
            with `local_channels`.
        """
        size, side = tuple(image.shape), self.image_size
        if len(size) != 4 or size[1:] != (3, side, side):
            raise ValueError(f"image must be (B, 3, {side}, {side}), got {size}")
        if self.code_encoder is None:
            return self.image_encoder(image)
        maps = self.uses_maps and learn != "base"
        features = self.image_encoder(image)[1] if maps else []
        return self._code(image, mask) if learn != "maps" else None, features

    def _code(self, image, mask):
        return self.code_encoder(image)


class IMNet(ImageModel):
    """IM-NET on the common encoder: the global code and its decoder alone, F = f_B.

    Args: decoder_widths: see BaseDecoder. settings: see ImageModel.
    """

    SIZES = (*ImageModel.SIZES, "decoder_widths")
    uses_maps = False

    def __init__(self, decoder_widths, **settings):
        super().__init__(**settings)
        self.settings |= {"decoder_widths": decoder_widths}
        self.base_decoder = BaseDecoder(settings["code_size"], decoder_widths)

    def fields(
        self,
        image: Tensor,
        camera: Camera | None = None,
        way: str = "",
        mask: Tensor | None = None,
    ) -> tuple[Field, Field, Tensor]:
        """The field of one picture twice, and empty maps: see `D2IMNet.fields`."""
        base = base_field(self.base_decoder, self.encode(image)[0], SDF_SCALE)
        return base, base, torch.zeros_like(image[0, :2])


class D2IMNet(IMNet):
    """Image encoder, base decoder and displacement decoder.

    Args: displacement_channels, maps, mixing: see DisplacementDecoder.
        local_channels: of a LocalDecoder; 0 leaves the base to the global code, as the
            paper does. settings: see IMNet.
    """

    SIZES = (*IMNet.SIZES, "displacement_channels", "mixing")
    CHOICES = "mobile_size", "local_channels"
    uses_maps = True

    def __init__(
        self, displacement_channels, maps=2, mixing=False, local_channels=0, **settings
    ):
        super().__init__(**settings)
        self.local_decoder = None
        if local_channels:
            if self.code_encoder is None:
                raise ValueError("local_channels needs a mobile_size")
            self.settings |= {"local_channels": local_channels}
            self.local_decoder = LocalDecoder(local_channels)
            sizes = settings["code_size"], settings["decoder_widths"]
            local_size = LocalDecoder.SILHOUETTE + local_channels
            self.base_decoder = BaseDecoder(*sizes, local_size)
        own = {"displacement_channels": displacement_channels, "maps": maps}
        self.settings |= own | {"mixing": mixing}
        self.displacement_decoder = DisplacementDecoder(
            settings["encoder_widths"], displacement_channels, maps, mixing
        )

    def forward(
        self,
        image: Tensor,
        points: Tensor,
        cameras: Tensor,
        front: Tensor,
        mask: Tensor | None = None,
    ) -> Tensor:
        """F(p) = f_B(p) + f_D(u(p)), (B, P) in world units.

        Args: image: (B, 3, H, W). points: (B, P, 3) world. cameras: (B, 16), rows of
            `Camera.to_array`. front: (B, P) bool, True where p is front-facing.
            mask: see `encode`.
        """
        code, features = self.encode(image, mask=mask)
        displacement = self.displacement_decoder(features)
        uv, _ = project(points, cameras)
        base = self.base(code, points, uv)
        return displaced_sdf(base, displacement, uv, front) / SDF_SCALE

    def base(
        self, code: Tensor | tuple[Tensor, Tensor], points: Tensor, uv: Tensor
    ) -> Tensor:
        """f_B of a code: points (B, P, 3), uv (B, P, 2) -> (B, P), scaled."""
        if self.local_decoder is None:
            return self.base_decoder(code, points)
        code, maps = code
        local = sample_maps(maps, uv.to(maps)).mT.to(points)
        return self.base_decoder(code, points, local)

    def _code(self, image, mask):
        if self.local_decoder is None:
            return self.code_encoder(image)
        if mask is None:
            unlike = (image - float(self.background == "white")).abs()
            mask = unlike.amax(1) > UNLIKE
        stages = self.code_encoder.stages(image)
        return self.code_encoder.code(stages[-1]), self.local_decoder(stages, mask)

    def fields(
        self,
        image: Tensor,
        camera: Camera,
        way: str = "gradient",
        mask: Tensor | None = None,
    ) -> tuple[Field, Field, Tensor]:
        """The fields of one picture, which is encoded once.

        Args: image: (1, 3, H, W). camera: Camera of it. way: see `fields.front_mask`.
            mask: (1, H, W) bool, see `encode`.
        Returns: f_B and F, fields in world units, and the displacement (2, H, W).
        """
        code, features = self.encode(image, mask=mask)
        local = None
        if self.local_decoder is not None:
            code, maps = code

            def local(points):
                uv = camera.project(points)[0][None].to(maps)
                return sample_maps(maps, uv).mT

        base = base_field(self.base_decoder, code, SDF_SCALE, local)
        displacement = self.displacement_decoder(features)[0] / SDF_SCALE
        return base, displaced_field(base, displacement, camera, way), displacement


class DISN(ImageModel):
    """DISN (Xu et al., NeurIPS 2019) on the common encoder: the sum of two streams,
    one of the global code, one of the five feature maps at the point's projection.

    Args: point_widths, head_widths: see Stream. settings: see ImageModel.
    """

    SIZES = (*ImageModel.SIZES, "point_widths", "head_widths")

    def __init__(self, point_widths, head_widths, **settings):
        super().__init__(**settings)
        self.settings |= {"point_widths": point_widths, "head_widths": head_widths}
        local_size = sum(settings["encoder_widths"])
        self.global_stream = Stream(settings["code_size"], point_widths, head_widths)
        self.local_stream = Stream(local_size, point_widths, head_widths)

    def decode(
        self, code: Tensor, features: list[Tensor], points: Tensor, uv: Tensor
    ) -> Tensor:
        """Both streams: points (B, P, 3) and uv (B, P, 2) -> (B, P), scaled."""
        local = torch.cat([sample_maps(maps, uv) for maps in features], 1).mT
        overall = self.global_stream(points, code[:, None])
        return overall + self.local_stream(points, local)

    def fields(
        self, image: Tensor, camera: Camera, way: str = "", mask: Tensor | None = None
    ) -> tuple[Field, Field, Tensor]:
        """The field of one picture twice, and empty maps: see `D2IMNet.fields`."""
        code, features = self.encode(image)

        def field(points):
            uv, _ = camera.project(points)
            inputs = points[None].to(code), uv[None].to(code)
            return (self.decode(code, features, *inputs)[0] / SDF_SCALE).to(points)

        return field, field, torch.zeros_like(image[0, :2])


class CameraNet(ImageModel):
    """The camera of a picture: its distance, and its rotation by six numbers.

    The six are two vectors, which Gram-Schmidt makes the rotation's first two rows
    (Zhou et al., CVPR 2019). The camera looks at the origin through the library's lens.

    Args: head_widths: hidden layers of the two heads. settings: see ImageModel.
    """

    SIZES = (*ImageModel.SIZES, "head_widths")
    uses_maps = False

    def __init__(self, head_widths, **settings):
        super().__init__(**settings)
        self.settings |= {"head_widths": head_widths}
        sizes = [settings["code_size"], *head_widths]
        self.distance = nn.Sequential(_mlp(sizes), nn.Linear(sizes[-1], 1))
        self.rotation = nn.Sequential(_mlp(sizes), nn.Linear(sizes[-1], 6))
        # Both start at the camera in front of the object, at ratio 1.
        self.distance[1].bias.data[:] = 1.0
        self.rotation[1].bias.data[:] = torch.tensor([1.0, 0, 0, 0, -1, 0])
        lens = [n * self.image_size for n in (LENS_MM / SENSOR_MM, 0.5, 0.5, 1.0)]
        self.register_buffer("lens", torch.tensor(lens), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 16), rows of `Camera.to_array`."""
        code, _ = self.encode(image)
        right, down = self.rotation(code).float().split(3, -1)
        right = F.normalize(right, dim=-1)
        forward = F.normalize(torch.linalg.cross(right, down), dim=-1)
        down = torch.linalg.cross(forward, right)
        translation = F.pad(DISTANCE * self.distance(code).float(), (2, 0))
        lens = self.lens.float().expand(len(image), 4)
        return torch.cat([right, down, forward, translation, lens], -1)

    @torch.no_grad()
    def camera(self, image: Tensor) -> Camera:
        """The Camera of one square picture, (3, H, W), which is scaled to the network's
        size; for a model in evaluation mode."""
        image = image[None].to(self.rotation[1].weight)
        if image.shape[-1] != self.image_size:  # another model's picture
            size = (self.image_size, self.image_size)
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        row = self(image)[0]
        return Camera.from_array(row.double().cpu())
