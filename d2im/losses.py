"""The three loss terms of the paper, unweighted; two of our own, and the rivals'.

What L_lap compares comes from `laplacian.laplacian_maps`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .camera import project

DELTA = 0.02  # world units: how near the surface detail lives
Mean = Callable[[Tensor, Tensor], Tensor]  # of errors, where they are chosen


def base_loss(base_sdf: Tensor, sdf: Tensor, quantile: float = 0.0) -> Tensor:
    """L_B: mean squared error of the base field over all sampled points.

    With a quantile q in (0, 1) least where the base is that quantile of what a picture
    leaves possible: inside where the chance of inside is above q. The mean of uncertain
    thin parts lies outside, where distances are larger, and they vanish.
    """
    if not quantile:
        return F.mse_loss(base_sdf, sdf)
    off = sdf - base_sdf
    return 2 * torch.maximum(quantile * off, (quantile - 1) * off).mean()


def sdf_loss(displaced: Tensor, sdf: Tensor) -> Tensor:
    """L_sdf: mean absolute error of the composed field over all sampled points."""
    return F.l1_loss(displaced, sdf)


def near_loss(field: Tensor, sdf: Tensor, near: Tensor) -> Tensor:
    """DISN's loss: mean absolute error, four times as heavy where `near` (bool)."""
    return ((field - sdf).abs() * (1 + 3 * near)).mean()


def camera_loss(predicted: Tensor, true: Tensor, points: Tensor) -> Tensor:
    """Mean squared error of points (B, P, 3) in the frames of two cameras (B, 16)."""
    return F.mse_loss(project(points, predicted)[1], project(points, true)[1])


def camera_errors(predicted: Tensor, true: Tensor, points: Tensor) -> dict[str, Tensor]:
    """Errors of cameras (B, 16) at points (B, P, 3), world, as a dict of (B,).

    rotation_degrees: angle between the rotations; distance: of the distances from the
    origin, world units; reprojection_px: mean over the points.
    """
    turn = (predicted - true)[:, :9].norm(dim=-1)  # |R - R'| = sqrt(8) sin(angle / 2)
    shift = project(points, predicted)[0] - project(points, true)[0]  # uv
    away = [rows[:, 9:12].norm(dim=-1) for rows in (predicted, true)]
    return {
        "rotation_degrees": 2 * torch.rad2deg(torch.asin((turn / 8**0.5).clamp(max=1))),
        "distance": (away[0] - away[1]).abs(),
        "reprojection_px": shift.norm(dim=-1).mean(1) * true[:, 15] / 2,
    }


def pixel_index(uv: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Index (B, P) of uv's pixels in a flattened map, clamped; inside (B, P), bool."""
    x, y = ((uv.nan_to_num(-2.0) + 1) / 2).unbind(-1)  # NaN: of the camera's own place
    x, y = (x * width).floor(), (y * height).floor()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.clamp(0, width - 1).long(), y.clamp(0, height - 1).long()
    return y * width + x, inside


def visible_near(
    uv: Tensor,
    point_depth: Tensor,
    front: Tensor,
    sdf: Tensor,
    mask: Tensor,
    depth: Tensor,
) -> Tensor:
    """Points with detail to learn: p in P_F, |F| < δ and |z(p) - depth(u(p))| < δ.

    Args: uv (B, P, 2), point_depth, front (bool), sdf (B, P), mask (bool), depth
    (B, H, W), in world units. Returns: (B, P) bool.
    """
    index, inside = pixel_index(uv, *mask.shape[1:])
    surface_depth = depth.flatten(1).gather(1, index)
    on_object = mask.flatten(1).gather(1, index) & inside
    near = (sdf.abs() < DELTA) & ((point_depth - surface_depth).abs() < DELTA)
    return front & near & on_object


def chosen_mean(error: Tensor, chosen: Tensor) -> Tensor:
    """The mean of errors over the chosen points, bool; 0 where none is."""
    return torch.where(chosen, error, 0.0).sum() / chosen.sum().float().clamp(min=1e-6)


def visible_loss(
    displaced: Tensor, sdf: Tensor, chosen: Tensor, mean: Mean = chosen_mean
) -> Tensor:
    """L_vis, ours: mean absolute error of the composed field at the chosen points.

    L_sdf's mean over all points hardly sees the surface that the picture shows.

    Args: displaced, sdf: (B, P). chosen: (B, P) bool. mean: see `laplacian_loss`.
    """
    return mean((displaced - sdf).abs(), chosen)


def relief_loss(
    displacement: Tensor, relief: Tensor, chosen: Tensor, mean: Mean = chosen_mean
) -> Tensor:
    """L_rel, ours: mean squared error of f_D where the coarse body is known.

    An absolute error would be least at 0 (the median) wherever relief is less likely
    than none, which is where the picture leaves a doubt.

    Args: displacement: f_D(u(p)), (B, P). relief: F - F_coarse at p, (B, P).
        chosen: (B, P) bool. mean: see `laplacian_loss`.
    """
    return mean((displacement - relief) ** 2, chosen)


def laplacian_loss(
    predicted: Tensor,
    target: Tensor,
    valid: Tensor,
    uv: Tensor,
    chosen: Tensor,
    mean: Mean = chosen_mean,
) -> Tensor:
    """L_lap: mean squared difference of the Laplacians over the chosen points.

    Args: predicted, target, valid: (B, H, W), see `laplacian_maps`.
        uv: (B, P, 2). chosen: (B, P) bool, see `visible_near`; 0 where none is.
        mean: of the errors at the chosen points; `distributed.shared_mean` where
            several processes have a part of the batch each.
    """
    index, _ = pixel_index(uv, *valid.shape[1:])
    chosen = chosen & valid.flatten(1).gather(1, index)
    error = (predicted - target).flatten(1).gather(1, index)
    # where, not a product: outside the mask the maps may hold anything, also gradients
    return mean(torch.where(chosen, error, 0.0) ** 2, chosen)
