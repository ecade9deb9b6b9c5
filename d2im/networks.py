"""The networks of D²IM-Net (Li and Zhang, CVPR 2021).

One image is encoded into a global code and a feature pyramid. The code drives an IM-NET
decoder (Chen and Zhang, CVPR 2019) that gives the smooth base field; the pyramid drives
a decoder that gives a front and a back displacement map at the image's size.

Shapes: B batch, P points, C channels, H x W map. Decoders return SDF_SCALE times world
units, the scale that the losses compare; `D2IMNet.forward` returns world units.
"""

import json
import math
from inspect import signature
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from safetensors import SafetensorError
from torch import nn

from .camera import project
from .fields import displaced_sdf

START_RADIUS = 0.3  # world units, of the ball that an untrained base field is
SDF_SCALE = 10.0  # the released data's factor: distances of ~0.1 become of order 1


class ResidualBlock(nn.Module):
    """ResNet's basic block, with torchvision's parameter names."""

    def __init__(self, width_in, width, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False),
                nn.BatchNorm2d(width),
            )

    def forward(self, x):
        """(B, C_in, H, W) -> (B, C, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class ImageEncoder(nn.Module):
    """A ResNet whose first convolution keeps the full resolution.

    Args:
        widths: channels of the first convolution and of the four stages.
        blocks: residual blocks of the four stages.
        hidden_size: width of the linear layer before the code (ImageNet's 1000).
        code_size: C of the global code.
    """

    def __init__(self, widths, blocks, hidden_size, code_size):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 1, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        for stage, (width_in, width) in enumerate(pairwise(widths)):
            layers = [ResidualBlock(width_in, width, 1 if stage == 0 else 2)]
            layers += [ResidualBlock(width, width, 1) for _ in range(blocks[stage] - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(widths[-1], hidden_size)
        self.fc1 = nn.Linear(hidden_size, code_size)

    def forward(self, image):
        """Encode images.

        Args:
            image: (B, 3, H, W) RGB in [0, 1].

        Returns:
            code (B, C) and the pyramid: five maps of side H, H/2, H/4, H/8, H/16.
        """
        x = F.relu(self.bn1(self.conv1(image)))
        features = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        code = self.fc1(self.fc(x.mean((2, 3))))
        return code, features


class BaseDecoder(nn.Module):
    """The IM-NET decoder: the base field f_B of a code, times SDF_SCALE.

    The point is appended to the input of every layer but the last two.

    Args:
        code_size: C of the code.
        widths: of the hidden layers.
    """

    def __init__(self, code_size, widths):
        super().__init__()
        inputs = [code_size, *widths[:-1]]
        xyz = [3] * (len(widths) - 1) + [0]
        self.layers = nn.ModuleList(
            nn.Linear(i + p, o) for i, p, o in zip(inputs, xyz, widths, strict=True)
        )
        self.out = nn.Linear(widths[-1], 1)
        self._start_as_a_ball(code_size)

    @torch.no_grad()
    def _start_as_a_ball(self, code_size):
        """Geometric initialisation (Atzmon and Lipman, SAL, CVPR 2020, theorem 1).

        With hidden weights from N(0, 2/width) a ReLU network is |p| on the average, so
        that training starts at a ball of radius START_RADIUS rather than on the plateau
        of a constant field. The code enters softly, later xyz inputs begin at 0.
        """
        for k, layer in enumerate(self.layers):
            hidden, xyz = layer.weight.tensor_split(
                [code_size if k == 0 else self.layers[k - 1].out_features], 1
            )
            started = xyz if k == 0 else hidden
            nn.init.normal_(started, std=(2 / layer.out_features) ** 0.5)
            nn.init.zeros_(layer.bias)
            if k:
                nn.init.zeros_(xyz)
            else:
                nn.init.normal_(hidden, std=0.01)
        width = self.out.in_features
        nn.init.normal_(self.out.weight, (math.pi / width) ** 0.5, 1e-3)
        self.out.weight *= SDF_SCALE
        nn.init.constant_(self.out.bias, -START_RADIUS * SDF_SCALE)

    def forward(self, code, points):
        """Evaluate the base field.

        Args:
            code: (B, C).
            points: (B, P, 3) world.

        Returns:
            (B, P), SDF_SCALE times the signed distance in world units.
        """
        if points.ndim != 3 or points.shape[-1] != 3:
            raise ValueError(f"points must be (B, P, 3), got {tuple(points.shape)}")
        hidden = code[:, None]  # (B, 1, C): the code's part of layer 1 is done once
        for layer in self.layers[:-1]:
            # W [h, p] = W_h h + W_p p, without building [h, p]
            weight_hidden, weight_xyz = layer.weight.tensor_split([hidden.shape[-1]], 1)
            from_points = F.linear(points, weight_xyz, layer.bias)
            hidden = F.relu(F.linear(hidden, weight_hidden) + from_points)  # (B, P, C)
        hidden = F.relu(self.layers[-1](hidden))
        return self.out(hidden)[..., 0]


class DisplacementDecoder(nn.Module):
    """Top-down pyramid decoder: front and back displacement maps, times SDF_SCALE.

    Args:
        widths: channels of the encoder's five maps, finest first.
        channels: of the decoder.
    """

    def __init__(self, widths, channels):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(w, channels, 1) for w in widths)
        self.up = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in widths[1:])
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, 2, 1)
        # Maps start at almost nothing, so that the base is not taught to undo noise.
        nn.init.normal_(self.out.weight, std=1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, features):
        """Decode a pyramid.

        Args:
            features: maps of the encoder, finest first.

        Returns:
            (B, 2, H, W): 0 front, 1 back.
        """
        laterals = [
            F.relu(conv(f)) for conv, f in zip(self.lateral, features, strict=True)
        ]
        x = laterals.pop()
        for conv, lateral in zip(reversed(self.up), reversed(laterals), strict=True):
            # A 1x1 convolution and bilinear upsampling commute; the first is cheaper
            # on the smaller map.
            x = F.interpolate(conv(x), scale_factor=2, mode="bilinear") + lateral
        return self.out(F.relu(self.smooth(x)))


PRESETS = {
    # the released model's sizes
    "paper": {
        "image_size": 224,
        "encoder_widths": (64, 64, 128, 256, 512),
        "encoder_blocks": (2, 2, 2, 2),
        "hidden_size": 1000,
        "code_size": 128,
        "decoder_widths": (512, 256, 128, 64, 32, 32),
        "displacement_channels": 64,
    },
    # a CPU trains it in minutes
    "small": {
        "image_size": 112,
        "encoder_widths": (16, 16, 32, 64, 128),
        "encoder_blocks": (1, 1, 1, 1),
        "hidden_size": 256,
        "code_size": 128,
        "decoder_widths": (128, 128, 64, 32, 32),
        "displacement_channels": 24,
    },
}


class D2IMNet(nn.Module, PyTorchModelHubMixin):
    """Image encoder, base decoder and displacement decoder.

    Args:
        image_size: side of the images and maps, a multiple of 16.
        encoder_widths, encoder_blocks, hidden_size, code_size: see ImageEncoder.
        decoder_widths: see BaseDecoder.
        displacement_channels: see DisplacementDecoder.
        frame: the frame that points are given in; "world" is the library's own.
    """

    def __init__(
        self,
        image_size,
        encoder_widths,
        encoder_blocks,
        hidden_size,
        code_size,
        decoder_widths,
        displacement_channels,
        frame="world",
    ):
        super().__init__()
        if image_size % 16:
            raise ValueError(f"image_size must be a multiple of 16, got {image_size}")
        self.image_size, self.frame = image_size, frame
        self.image_encoder = ImageEncoder(
            encoder_widths, encoder_blocks, hidden_size, code_size
        )
        self.base_decoder = BaseDecoder(code_size, decoder_widths)
        self.displacement_decoder = DisplacementDecoder(
            encoder_widths, displacement_channels
        )

    @classmethod
    def preset(cls, name):
        """A new model of a named size: "paper" (224 px) or "small" (112 px).

        Raises:
            ValueError: another name.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
        return cls(**PRESETS[name])

    @classmethod
    def from_pretrained(cls, folder, **kwargs):
        """Load a model folder: config.json and model.safetensors.

        Args:
            folder: path of a folder written by `save_pretrained`, or a hub name.

        Returns:
            D2IMNet in evaluation mode.

        Raises:
            FileNotFoundError: a local folder without one of the two files.
            ValueError: a damaged file, or weights of another configuration.
        """
        path = Path(folder)
        if path.is_dir():
            _check_model_folder(path)
        elif path.is_absolute() or len(path.parts) != 2 or path.parent.is_dir():
            raise FileNotFoundError(f"no model folder {path}")
        try:
            return super().from_pretrained(folder, strict=True, **kwargs)
        except SafetensorError as error:
            raise ValueError(
                f"{path / 'model.safetensors'} is damaged or truncated: {error}"
            ) from error
        except RuntimeError as error:  # load_state_dict: names or sizes differ
            problem = str(error).strip().splitlines()[-1].strip()
            raise ValueError(
                f"the weights in {folder} are not of the sizes in its config.json "
                f"(another preset?): {problem}"
            ) from error

    def encode(self, image):
        """Encode images.

        Args:
            image: (B, 3, image_size, image_size) RGB in [0, 1], on white.

        Returns:
            code (B, C) and features, five maps, finest first.

        Raises:
            ValueError: another shape.
        """
        side = self.image_size
        if image.ndim != 4 or image.shape[1:] != (3, side, side):
            raise ValueError(
                f"image must be (B, 3, {side}, {side}), got {tuple(image.shape)}"
            )
        return self.image_encoder(image)

    def forward(self, image, points, cameras, front):
        """F(p) = f_B(p) + f_D(u(p)), in world units.

        Args:
            image: (B, 3, H, W).
            points: (B, P, 3) world.
            cameras: (B, 16), rows of `Camera.to_array`.
            front: (B, P) bool, True where p is front-facing.

        Returns:
            (B, P), world units.
        """
        code, features = self.encode(image)
        uv, _ = project(points, cameras)
        base = self.base_decoder(code, points)
        return displaced_sdf(base, self.displacement_decoder(features), uv, front) / (
            SDF_SCALE
        )


def _check_model_folder(path):
    for name in ("config.json", "model.safetensors"):
        if not (path / name).is_file():
            raise FileNotFoundError(f"no {name} in the model folder {path}")
    try:
        config = json.loads((path / "config.json").read_text())
    except ValueError as error:
        raise ValueError(f"{path / 'config.json'} is not JSON: {error}") from error
    known = signature(D2IMNet).parameters.values()
    needed = {p.name for p in known if p.default is p.empty}
    if not isinstance(config, dict) or not needed <= set(config):
        raise ValueError(
            f"{path / 'config.json'} lacks settings of a D2IMNet "
            f"({', '.join(sorted(needed - set(config)))})"
        )
    if unknown := sorted(set(config) - {p.name for p in known}):
        raise ValueError(
            f"{path / 'config.json'} has settings that a D2IMNet does not know "
            f"({', '.join(unknown)}): it is of another model or version"
        )
