"""The Laplacian: differences of maps, and what L_lap compares (paper, section 3).

Maps are (B, H, W) with x along the last axis; differences are central and per pixel.
Points near the silhouette or a depth step have no Laplacian: `stencil_mask` drops them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

DEPTH_STEP = 0.04  # world units a pixel: steeper is another surface


def gradient(maps: Tensor) -> Tensor:
    """Central differences of maps (B, H, W) -> (B, 2, H, W): along x, y, per pixel."""
    m = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    along_x = m[:, 1:-1, 2:] - m[:, 1:-1, :-2]
    along_y = m[:, 2:, 1:-1] - m[:, :-2, 1:-1]
    return torch.stack([along_x, along_y], 1) / 2


def divergence(vectors: Tensor) -> Tensor:
    """Divergence of a vector map by central differences, (B, 2, H, W) -> (B, H, W)."""
    return gradient(vectors[:, 0])[:, 0] + gradient(vectors[:, 1])[:, 1]


def laplacian(maps: Tensor) -> Tensor:
    """The 5-point Laplacian of maps, (B, H, W) -> (B, H, W), per pixel squared."""
    m = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    around = m[:, 1:-1, 2:] + m[:, 1:-1, :-2] + m[:, 2:, 1:-1] + m[:, :-2, 1:-1]
    return around - 4 * maps


def stencil_mask(mask: Tensor, depth: Tensor) -> Tensor:
    """Where the 5-point stencil stays inside the mask and on one surface.

    Args: mask (B, H, W) bool, depth (B, H, W) world units. Returns: (B, H, W) bool.
    """
    valid = F.pad(mask[:, 1:-1, 1:-1], (1, 1, 1, 1))  # False along the border
    for axis, shift in ((1, 1), (1, -1), (2, 1), (2, -1)):
        step = (depth.roll(shift, axis) - depth).abs()
        valid &= mask.roll(shift, axis) & (step < DEPTH_STEP)
    return valid


def laplacian_maps(
    front_displacement: Tensor, views: dict[str, Tensor], form: str = "transformed"
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and target Laplacian of views, and where they can be compared.

    At fixed depth z, dF/du = n z/f. Form "image" asks that the Laplacian of f_DF be the
    divergence of that, with z held per pixel; form "transformed" (the paper's last) is
    the same equation divided by z/f, so that its size suits the other losses.

    Args: front_displacement: (B, H, W), world units. form: "transformed" or "image".
        views: dict with normals (B, 3, H, W) in the camera frame, depth (B, H, W) in
            world units, mask (B, H, W) bool and camera (B, 16), `Camera.to_array`.
    Returns: predicted, target and valid (bool), each (B, H, W).
    """
    depth, cameras = views["depth"], views["camera"]
    focal = cameras[:, 12] * depth.shape[-1] / cameras[:, 15]  # in pixels of the maps
    pixel = depth.clamp(min=1e-3) / focal[:, None, None]  # z/f; 0 outside the mask
    predicted = laplacian(front_displacement)
    target = divergence(views["normals"][:, :2])
    if form == "transformed":
        predicted = predicted / pixel
    elif form == "image":
        target = target * pixel
    else:
        raise ValueError(f'form must be "transformed" or "image", got {form!r}')
    return predicted, target, stencil_mask(views["mask"], depth)
