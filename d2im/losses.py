"""The three loss terms of the paper, unweighted, and the map operators behind them;
two terms of our own, and the rivals' losses.

Maps are (B, H, W) with x along the last axis; differences are central and per pixel.
Points near the silhouette or a depth step have no Laplacian: `stencil_mask` drops them.
"""

import torch
import torch.nn.functional as F

from .camera import project

DELTA = 0.02  # world units: how near the surface detail lives
DEPTH_STEP = 0.04  # world units a pixel: steeper is another surface


def gradient(maps):
    """Central differences of maps (B, H, W) -> (B, 2, H, W): along x, y, per pixel."""
    m = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    along_x = m[:, 1:-1, 2:] - m[:, 1:-1, :-2]
    along_y = m[:, 2:, 1:-1] - m[:, :-2, 1:-1]
    return torch.stack([along_x, along_y], 1) / 2


def divergence(vectors):
    """Divergence of a vector map by central differences, (B, 2, H, W) -> (B, H, W)."""
    return gradient(vectors[:, 0])[:, 0] + gradient(vectors[:, 1])[:, 1]


def laplacian(maps):
    """The 5-point Laplacian of maps, (B, H, W) -> (B, H, W), per pixel squared."""
    m = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    around = m[:, 1:-1, 2:] + m[:, 1:-1, :-2] + m[:, 2:, 1:-1] + m[:, :-2, 1:-1]
    return around - 4 * maps


def stencil_mask(mask, depth):
    """Where the 5-point stencil stays inside the mask and on one surface.

    Args: mask (B, H, W) bool, depth (B, H, W) world units. Returns: (B, H, W) bool.
    """
    valid = F.pad(mask[:, 1:-1, 1:-1], (1, 1, 1, 1))  # False along the border
    for axis, shift in ((1, 1), (1, -1), (2, 1), (2, -1)):
        step = (depth.roll(shift, axis) - depth).abs()
        valid &= mask.roll(shift, axis) & (step < DEPTH_STEP)
    return valid


def laplacian_maps(front_displacement, views, form="transformed"):
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


def base_loss(base_sdf, sdf):
    """L_B: mean squared error of the base field over all sampled points."""
    return F.mse_loss(base_sdf, sdf)


def sdf_loss(displaced, sdf):
    """L_sdf: mean absolute error of the composed field over all sampled points."""
    return F.l1_loss(displaced, sdf)


def near_loss(field, sdf, near):
    """DISN's loss: mean absolute error, four times as heavy where `near` (bool)."""
    return ((field - sdf).abs() * (1 + 3 * near)).mean()


def camera_loss(predicted, true, points):
    """Mean squared error of points (B, P, 3) in the frames of two cameras (B, 16)."""
    return F.mse_loss(project(points, predicted)[1], project(points, true)[1])


def camera_errors(predicted, true, points):
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


def pixel_index(uv, height, width):
    """Index (B, P) of uv's pixels in a flattened map, clamped; inside (B, P), bool."""
    x, y = ((uv + 1) / 2).unbind(-1)
    x, y = (x * width).floor(), (y * height).floor()
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.clamp(0, width - 1).long(), y.clamp(0, height - 1).long()
    return y * width + x, inside


def visible_near(uv, point_depth, front, sdf, mask, depth):
    """Points with detail to learn: p in P_F, |F| < δ and |z(p) - depth(u(p))| < δ.

    Args: uv (B, P, 2), point_depth, front (bool), sdf (B, P), mask (bool), depth
    (B, H, W), in world units. Returns: (B, P) bool.
    """
    index, inside = pixel_index(uv, *mask.shape[1:])
    surface_depth = depth.flatten(1).gather(1, index)
    on_object = mask.flatten(1).gather(1, index) & inside
    near = (sdf.abs() < DELTA) & ((point_depth - surface_depth).abs() < DELTA)
    return front & near & on_object


def visible_loss(displaced, sdf, chosen, share=lambda count: count):
    """L_vis, ours: mean absolute error of the composed field at the chosen points.

    L_sdf's mean over all points hardly sees the surface that the picture shows.

    Args: displaced, sdf: (B, P). chosen: (B, P) bool. share: see `laplacian_loss`.
    """
    return _mean((displaced - sdf).abs(), chosen, share)


def relief_loss(displacement, relief, chosen, share=lambda count: count):
    """L_rel, ours: mean squared error of f_D where the coarse body is known.

    An absolute error would be least at 0 (the median) wherever relief is less likely
    than none, which is where the picture leaves a doubt.

    Args: displacement: f_D(u(p)), (B, P). relief: F - F_coarse at p, (B, P).
        chosen: (B, P) bool. share: see `laplacian_loss`.
    """
    return _mean((displacement - relief) ** 2, chosen, share)


def laplacian_loss(predicted, target, valid, uv, chosen, share=lambda count: count):
    """L_lap: mean squared difference of the Laplacians over the chosen points.

    Args: predicted, target, valid: (B, H, W), see `laplacian_maps`.
        uv: (B, P, 2). chosen: (B, P) bool, see `visible_near`; 0 where none is.
        share: of the points' number, to divide by; of several processes, their mean.
    """
    index, _ = pixel_index(uv, *valid.shape[1:])
    chosen = chosen & valid.flatten(1).gather(1, index)
    error = (predicted - target).flatten(1).gather(1, index)
    # where, not a product: outside the mask the maps may hold anything
    return _mean(torch.where(chosen, error, 0.0) ** 2, chosen, share)


def _mean(error, chosen, share):
    """The mean over the chosen points; `share` is of their number, see above."""
    total = torch.where(chosen, error, 0.0).sum()
    return total / share(chosen.sum().float()).clamp(min=1e-6)
