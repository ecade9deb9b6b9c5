"""Edits of the detail: its strength, its transfer, and pasting in the picture.

What a disentangled field allows (section 4 of the paper): a base takes other maps, and
a picture's patch brings its relief along. Corners are pixels (x, y), pixel centres at
k + 0.5, in the order top left, top right, bottom right, bottom left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from skimage.transform import EuclideanTransform, ProjectiveTransform, warp

from ..camera import Camera
from ..fields import displaced_field
from .pictures import load_image
from .reconstruction import Prediction, reconstruct

if TYPE_CHECKING:
    from ..networks import D2IMNet
    from .pictures import ImageSource
    from .reconstruction import CameraSource, Reconstruction

Corners = Sequence[Sequence[float]] | np.ndarray  # (4, 2)
BLEND = 0.08  # width of a patch's soft border, in sides of the rectangle it comes from


def with_displacement(prediction: Prediction, displacement: torch.Tensor) -> Prediction:
    """The same base under other maps.

    Args: prediction: Prediction or Reconstruction. displacement: (2, H, W) world units.
    Returns: Prediction; `reconstruction.triangulate` meshes it.
    """
    base, camera, way = prediction.base_sdf, prediction.camera, prediction.way
    sdf = displaced_field(base, displacement, camera, way)
    return Prediction(**prediction.parts() | {"displacement": displacement, "sdf": sdf})


def scale_detail(prediction: Prediction, strength: float) -> Prediction:
    """Scale the displacement.

    Args: prediction: Prediction or Reconstruction.
        strength: 0 leaves the base, 1 the object as predicted, more exaggerates, less
            than 0 turns bumps into dents.
    Returns: Prediction.
    Raises: ValueError: a strength that is not finite.
    """
    if not np.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")
    return with_displacement(prediction, prediction.displacement * strength)


def transfer_detail(
    source: Prediction,
    target: Prediction,
    corners: Corners,
    target_corners: Corners | None = None,
) -> Prediction:
    """Put one object's displacement on another's base.

    Args: source, target: Prediction or Reconstruction.
        corners: (4, 2) pixels of a convex quadrilateral in the source's maps.
        target_corners: where it goes in the target's maps; None: the same place.
    Returns: Prediction of the target, whose maps inside the quadrilateral are the
        source's, blended at its border.
    Raises: ValueError: corners that are no convex quadrilateral.
    """
    place = corners if target_corners is None else target_corners
    maps = blend(source.displacement, corners, target.displacement, place)
    return with_displacement(target, maps)


def paste(
    source: torch.Tensor,
    target: torch.Tensor,
    rectangle: Sequence[int],
    corners: Corners,
) -> torch.Tensor:
    """Paste a rectangle of one picture into a quadrilateral of another.

    Args: source, target: (3, H, W) tensors in [0, 1].
        rectangle: (left, top, right, bottom) pixels of the source.
        corners: (4, 2) pixels of the target, a convex quadrilateral.
    Returns: The target with the patch, its border blended.
    Raises: ValueError: an empty rectangle, one outside the source, or bad corners.
    """
    left, top, right, bottom = rectangle
    height, width = source.shape[1:]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        wanted = f"(left, top, right, bottom) within {width} x {height} px"
        raise ValueError(f"rectangle must be {wanted}, got {tuple(rectangle)}")
    box = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return blend(source, box, target, corners)


def paste_and_reconstruct(
    model: D2IMNet,
    source: ImageSource,
    target: ImageSource,
    rectangle: Sequence[int],
    corners: Corners,
    camera: CameraSource,
    resolution: int = 128,
    **options,
) -> Reconstruction:
    """Paste a rectangle of one picture into another and reconstruct the result.

    Args: model, camera (the target's), resolution, options: see `reconstruct`.
        source, target: pictures, see `pictures.load_image`.
        rectangle, corners: see `paste`, in pixels of the model's image size.
    Returns: Reconstruction, whose `image` is the pasted picture.
    Raises: ValueError: as `paste` and `reconstruction.reconstruct`.
    """
    known = options.get("framed_for") or camera
    framing = {"camera": known if isinstance(known, Camera) else None}
    framing |= {"framed": options.pop("framed", False), "background": model.background}
    images = [load_image(im, model.image_size, **framing) for im in (source, target)]
    pasted = paste(*images, rectangle, corners).clamp(0, 1)
    return reconstruct(model, pasted, camera, resolution, **options)


def blend(
    source: torch.Tensor,
    corners: Corners,
    target: torch.Tensor,
    target_corners: Corners,
) -> torch.Tensor:
    """Put a quadrilateral of a picture into that of another, by a homography.

    The patch's weight is 1 inside and falls smoothly to 0 at its border.

    Args: source, target: (C, H, W). corners, target_corners: (4, 2) pixels of each.
    Returns: The target with the patch.
    Raises: ValueError: corners that are no convex quadrilateral.
    """
    unit = [(0, 0), (1, 0), (1, 1), (0, 1)]
    height, width = target.shape[1:]
    centres = np.indices((height, width))[::-1].reshape(2, -1).T + 0.5  # (HW, 2)
    inside = homography(target_corners, unit)(centres)
    edge = np.clip(np.minimum(inside, 1 - inside).min(1) / BLEND, 0, 1)
    weight = (edge**2 * (3 - 2 * edge)).reshape(height, width)
    whole = EuclideanTransform(translation=(0.5, 0.5))  # warp's pixel centres are at k
    to_source = whole + homography(target_corners, corners) + whole.inverse
    pixels = source.permute(1, 2, 0).numpy()
    patch = warp(pixels, to_source, output_shape=(height, width), mode="edge")
    patch, weight = (torch.from_numpy(a).to(target) for a in (patch, weight))
    return target + weight * (patch.permute(2, 0, 1) - target)


def homography(corners: Corners, target_corners: Corners) -> ProjectiveTransform:
    """The ProjectiveTransform that takes four corners to four others.

    Raises: ValueError: corners that are no convex quadrilateral.
    """
    pairs = _convex(corners), _convex(target_corners)
    return ProjectiveTransform.from_estimate(*pairs)


def _convex(corners):
    """Check and return corners (4, 2)."""
    corners = np.asarray(corners, dtype=float)
    if corners.shape == (4, 2) and np.isfinite(corners).all():
        sides = np.roll(corners, -1, 0) - corners
        (x, y), (u, v) = sides.T, np.roll(sides, -1, 0).T
        if (x * v - y * u > 1e-6).all():
            return corners
    raise ValueError(
        "corners must be four pixels (x, y) of a convex quadrilateral: top left, top "
        f"right, bottom right, bottom left; got {corners.tolist()}"
    )
