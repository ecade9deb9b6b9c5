"""The three loss terms of the paper, unweighted, and the map operators behind them.

Maps are (B, H, W) with x along the last axis; differences are central and per pixel.
Points near the silhouette or a depth step have no Laplacian: `stencil_mask` drops them.
"""

import torch
import torch.nn.functional as F

DELTA = 0.02  # world units: how near the surface detail lives
DEPTH_STEP = 0.04  # world units a pixel: steeper is another surface


def gradient(maps):
    """Central differences of maps; at the border the edge value goes on.

    Args:
        maps: (B, H, W).

    Returns:
        (B, 2, H, W): along x, along y, per pixel.
    """
    m = F.pad(maps, (1, 1, 1, 1), mode="replicate")
    return torch.stack(
        [m[:, 1:-1, 2:] - m[:, 1:-1, :-2], m[:, 2:, 1:-1] - m[:, :-2, 1:-1]], 1
    ).div(2)


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

    Args:
        mask: (B, H, W) bool.
        depth: (B, H, W) world units.

    Returns:
        (B, H, W) bool.
    """
    valid = mask.clone()
    valid[:, [0, -1]] = False
    valid[:, :, [0, -1]] = False
    for axis in (1, 2):
        for shift in (1, -1):
            step = (depth.roll(shift, axis) - depth).abs()
            valid &= mask.roll(shift, axis) & (step < DEPTH_STEP)
    return valid


def laplacian_target(normals, depth, focal, form="transformed"):
    """The Laplacian that the normal map asks of the front displacement.

    At fixed depth z, dF/du = n z/f. Form "image" is the divergence of that with z held
    per pixel; form "transformed" (the paper's last) is the same equation divided by
    z/f, so that its size suits the other losses.

    Args:
        normals: (B, 3, H, W) camera frame.
        depth: (B, H, W) world units.
        focal: (B,) pixels of this map.
        form: "transformed" or "image".

    Returns:
        (B, H, W).
    """
    target = divergence(normals[:, :2])
    return target if form == "transformed" else target * depth / focal[:, None, None]


def laplacian_prediction(displacement, depth, focal, form="transformed"):
    """The Laplacian of a displacement map, in the units of `laplacian_target`.

    Args:
        displacement: (B, H, W), world units.
        depth: (B, H, W) world units. focal: (B,) pixels. form: as above.

    Returns:
        (B, H, W); where depth is 0 (outside the mask) it means nothing.

    Raises:
        ValueError: an unknown form.
    """
    if form not in ("transformed", "image"):
        raise ValueError(f'form must be "transformed" or "image", got {form!r}')
    predicted = laplacian(displacement)
    if form == "image":
        return predicted
    return predicted * focal[:, None, None] / depth.clamp(min=1e-3)  # du/dp' = f/z


def laplacian_maps(front_displacement, views, form="transformed"):
    """Predicted and target Laplacian of views, and where they can be compared.

    Args:
        front_displacement: (B, H, W), world units.
        views: dict with normals (B, 3, H, W), depth (B, H, W), mask (B, H, W) bool and
            camera (B, 16), rows of `Camera.to_array`.
        form: see `laplacian_target`.

    Returns:
        predicted, target and valid (bool), each (B, H, W).
    """
    depth, cameras = views["depth"], views["camera"]
    focal = cameras[:, 12] * depth.shape[-1] / cameras[:, 15]  # in pixels of the maps
    return (
        laplacian_prediction(front_displacement, depth, focal, form),
        laplacian_target(views["normals"], depth, focal, form),
        stencil_mask(views["mask"], depth),
    )


def base_loss(base_sdf, sdf):
    """L_B: mean squared error of the base field over all sampled points."""
    return F.mse_loss(base_sdf, sdf)


def sdf_loss(displaced, sdf):
    """L_sdf: mean absolute error of the composed field over all sampled points."""
    return F.l1_loss(displaced, sdf)


def pixel_index(uv, height, width):
    """The pixel that each uv falls in, as an index into a flattened (H * W) map.

    Args:
        uv: (B, P, 2).

    Returns:
        index (B, P) long, clamped into the picture, and inside (B, P) bool.
    """
    size = uv.new_tensor([width, height])
    pixel = ((uv + 1) / 2 * size).floor()
    inside = ((pixel >= 0) & (pixel < size)).all(-1)
    pixel = torch.minimum(pixel.clamp(min=0), size - 1).long()
    return pixel[..., 1] * width + pixel[..., 0], inside


def visible_near(uv, point_depth, front, sdf, mask, depth):
    """Points with detail to learn: front-facing, near the surface, on its visible part.

    Args:
        uv (B, P, 2), point_depth (B, P), front (B, P) bool, sdf (B, P) world units.
        mask (B, H, W) bool, depth (B, H, W) world units.

    Returns:
        (B, P) bool: p in P_F, |F| < δ and |z(p) - depth(u(p))| < δ.
    """
    index, inside = pixel_index(uv, *mask.shape[1:])
    surface_depth = depth.flatten(1).gather(1, index)
    on_object = mask.flatten(1).gather(1, index) & inside
    near = (sdf.abs() < DELTA) & ((point_depth - surface_depth).abs() < DELTA)
    return front & near & on_object


def laplacian_loss(predicted, target, valid, uv, chosen):
    """L_lap: mean squared difference of the Laplacians over the chosen points.

    Args:
        predicted, target: (B, H, W) maps. valid: (B, H, W) bool, see `stencil_mask`.
        uv: (B, P, 2). chosen: (B, P) bool, see `visible_near`.

    Returns:
        A scalar; 0 where no point is chosen.
    """
    index, _ = pixel_index(uv, *valid.shape[1:])
    chosen = chosen & valid.flatten(1).gather(1, index)
    error = (predicted - target).flatten(1).gather(1, index)
    # where, not a product: outside the mask the maps may hold anything
    squared = torch.where(chosen, error, 0.0) ** 2
    return squared.sum() / chosen.sum().clamp(min=1)
