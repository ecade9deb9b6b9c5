"""One picture in, an object out: base and final mesh, displacement maps, fields."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image, UnidentifiedImageError

from .camera import Camera
from .fields import base_field, displaced_field
from .meshing import extract_mesh
from .networks import SDF_SCALE

SMALLEST_IMAGE = 16  # pixels a side; below that there is nothing to see
WHITE = 0.94  # a background pixel is at least this bright in each channel
WHITE_SHARE = 0.9  # of the border's pixels; the object itself may touch the rest


@dataclass(frozen=True)
class Prediction:
    """The fields that one picture gave.

    Attributes:
        displacement: (2, H, W) tensor on the CPU, world units: 0 front, 1 back. Outside
            the object's mask no Laplacian has taught it anything.
        camera: Camera that was used.
        base_sdf, sdf: the fields f_B and F, (P, 3) -> (P,), world units.
        image: (3, H, W) tensor that the model saw, on the CPU.
    """

    displacement: torch.Tensor
    camera: Camera
    base_sdf: Callable
    sdf: Callable
    image: torch.Tensor


@dataclass(frozen=True)
class Reconstruction(Prediction):
    """A Prediction and its surfaces.

    Attributes:
        mesh: trimesh.Trimesh of F = f_B + f_D, world frame.
        base_mesh: trimesh.Trimesh of f_B.
    """

    mesh: trimesh.Trimesh
    base_mesh: trimesh.Trimesh


def load_image(source, size):
    """Bring a picture into the form that a model takes.

    Args:
        source: path of an image file; PIL image; uint8 array (H, W, 3) or (H, W, 4); or
            float array or tensor (3, H, W) in [0, 1]. Square. Alpha is composited
            on white; without alpha the background must be white already.
        size: pixels of the result.

    Returns:
        (3, size, size) f4 tensor in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, not square, too small, of wrong range or on a busy
            background.
        TypeError: something that is no picture.
    """
    if isinstance(source, str | os.PathLike):
        source = _open_image(Path(source))
    elif isinstance(source, np.ndarray) and source.dtype == np.uint8:
        if source.ndim != 3 or source.shape[2] not in (3, 4):
            raise ValueError(
                f"a uint8 image must be (H, W, 3 or 4), got {source.shape}"
            )
        source = Image.fromarray(source)
    opaque = True
    if isinstance(source, Image.Image):
        if source.mode.startswith(("I", "F")):
            raise ValueError(
                f"the image has more than 8 bits a channel (mode {source.mode}): "
                "save it with 8 bits"
            )
        rgba = np.asarray(source.convert("RGBA"), dtype=np.float32) / 255
        alpha = rgba[..., 3:]
        pixels = (rgba[..., :3] * alpha + (1 - alpha)).transpose(2, 0, 1)
        if not alpha.any():
            raise ValueError("the image is fully transparent: there is no object in it")
        opaque = alpha.all()
    elif isinstance(source, np.ndarray | torch.Tensor):
        if isinstance(source, torch.Tensor):
            source = source.detach().cpu()
            source = source.float().numpy() if source.is_floating_point() else source
        pixels = np.ascontiguousarray(source)
        if pixels.ndim != 3 or pixels.shape[0] != 3:
            raise ValueError(f"an image array must be (3, H, W), got {pixels.shape}")
        if not np.issubdtype(pixels.dtype, np.floating):
            raise ValueError(
                f"an image array must be float in [0, 1], not {pixels.dtype}"
            )
        if not (pixels.min() >= 0 and pixels.max() <= 1):  # also false for NaN
            raise ValueError(
                "an image array must lie in [0, 1], got "
                f"[{pixels.min():.3g}, {pixels.max():.3g}]"
            )
    else:
        raise TypeError(
            "an image must be a path, a PIL image, an array or a tensor, "
            f"not {type(source).__name__}"
        )
    height, width = pixels.shape[1:]
    if height != width or height < SMALLEST_IMAGE:
        raise ValueError(
            f"the image is {width} x {height} px: crop or pad it to a square of at "
            f"least {SMALLEST_IMAGE} px with the object in the middle"
        )
    border = np.ones((height, width), dtype=bool)
    border[1:-1, 1:-1] = False
    white = (pixels[:, border] >= WHITE).all(0).mean()
    if opaque and white < WHITE_SHARE:
        raise ValueError(
            f"the image has no alpha and its background is not white ({white:.0%} of "
            "the border is): cut the object out and save it with alpha"
        )
    image = torch.tensor(pixels, dtype=torch.float32)
    if height != size:
        image = torch.nn.functional.interpolate(
            image[None], (size, size), mode="bilinear", antialias=True
        )[0].clamp(0, 1)
    return image


def _open_image(path):
    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}")
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error


@torch.no_grad()
def predict(model, image, camera=None, *, way="gradient"):
    """Predict the fields of the object in a picture, without meshing them.

    Args:
        model: D2IMNet.
        image: see `load_image`.
        camera: Camera of the picture; its size in pixels need not be the picture's.
        way: how front and back are told apart, see `fields.front_mask`.

    Returns:
        Prediction.

    Raises:
        ValueError: no camera, or an unusable picture.
    """
    if camera is None:
        raise ValueError(
            "the picture's camera is needed: pass "
            "camera=Camera(azimuth, elevation, ratio, size)"
        )
    image = load_image(image, model.image_size)
    training = model.training
    model.eval()
    code, features = model.encode(image[None].to(next(model.parameters())))
    displacement = (model.displacement_decoder(features)[0] / SDF_SCALE).float().cpu()
    model.train(training)
    base = base_field(model.base_decoder, code, SDF_SCALE)
    sdf = displaced_field(base, displacement, camera, way)
    return Prediction(displacement, camera, base, sdf, image)


def reconstruct(model, image, camera=None, resolution=128, *, way="gradient"):
    """Reconstruct the object in a picture: `predict`, then mesh f_B and F.

    Args:
        model, image, camera, way: see `predict`.
        resolution: grid samples along the box's side.

    Returns:
        Reconstruction.

    Raises:
        ValueError: as `predict`, or no surface in the box.
    """
    found = predict(model, image, camera, way=way)
    device = next(model.parameters()).device
    return Reconstruction(
        **vars(found),
        mesh=extract_mesh(found.sdf, resolution, device=device),
        base_mesh=extract_mesh(found.base_sdf, resolution, device=device),
    )
