"""Fields: callables on torch tensors, (P, 3) -> (P,), world units, negative inside.

Here are the composition F(p) = f_B(p) + f_D(u(p)) of the paper, the front mask that
chooses its map, and analytic fields with known truth.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .camera import Camera

Field = Callable[[Tensor], Tensor]  # (P, 3) -> (P,)
LOCAL_STEP = 1e-3  # world units, of the derivative of what a base looks up
FINITE_STEP = 0.03  # world units along the camera's z axis, after the released code


def values_at(field: Field, points: np.ndarray) -> np.ndarray:
    """A field's answer at points, an array (..., 3): f4 array (...).

    Raises: ValueError: the field answers with another shape.
    """
    flat = torch.tensor(points.reshape(-1, 3), dtype=torch.float32)
    with torch.no_grad():
        answers = [field(part) for part in flat.split(65_536)]
    values = np.concatenate([torch.as_tensor(answer).cpu() for answer in answers])
    if values.shape != (len(flat),):
        raise ValueError(f"field must give ({len(flat)},), got {values.shape}")
    return values.reshape(points.shape[:-1]).astype(np.float32)


def sample_maps(maps: Tensor, uv: Tensor) -> Tensor:
    """Look maps up at uv, bilinearly; outside the picture the border goes on.

    Args: maps: (B, C, H, W). uv: (B, P, 2) in [-1, 1], pixel edges at ±1.
    Returns: (B, C, P).
    """
    grid = uv[:, :, None]
    return F.grid_sample(maps, grid, padding_mode="border", align_corners=False)[..., 0]


def displaced_sdf(
    base_sdf: Tensor, displacement: Tensor, uv: Tensor, front: Tensor
) -> Tensor:
    """F(p) = f_B(p) + f_DF(u(p)) where p is front-facing, + f_DB(u(p)) otherwise.

    Args: base_sdf: (B, P), in the units of the displacement. front: (B, P) bool.
        displacement: (B, 2, H, W): 0 front, 1 back. uv: (B, P, 2).
    Returns: (B, P).
    """
    at_points = sample_maps(displacement, uv)  # (B, 2, P)
    return base_sdf + torch.where(front, at_points[:, 0], at_points[:, 1])


def front_mask(
    field: Field, points: Tensor, direction: np.ndarray, way: str = "gradient"
) -> Tensor:
    """Which points are front-facing: the field falls along the camera's z axis.

    Args: field: the base field. points: (P, 3) world.
        direction: (3,) unit, the camera's z axis in the world (`rotation[2]`).
        way: "gradient", the exact directional derivative by forward mode (the field's
            own `along(points, direction)` where it has one; of what a base looks up
            in the picture, a difference over 0.001), or "finite_difference", a
            step of 0.03 along the axis (released code), or "own", what the field's
            `front(points, direction)` says, which gives its value, too.
    Returns: (P,) bool. Raises: ValueError: an unknown way.
    """
    return value_and_front(field, points, direction, way)[1]


def value_and_front(
    field: Field, points: Tensor, direction: np.ndarray, way: str = "gradient"
) -> tuple[Tensor, Tensor]:
    """The field and its `front_mask`; the derivative brings the value with it."""
    if way == "own":
        return field.front(points, direction)
    step = points.new_tensor(direction)
    if way == "gradient":
        if hasattr(field, "along"):
            value, derivative = field.along(points, step)
        else:
            step = step.expand_as(points)
            value, derivative = torch.func.jvp(field, (points,), (step,))
        return value, derivative < 0
    if way == "finite_difference":
        value = field(points)
        return value, field(points + FINITE_STEP * step) < value
    known = '"gradient", "finite_difference" or "own"'
    raise ValueError(f"way must be {known}, got {way!r}")


def base_field(
    decoder: nn.Module,
    code: Tensor,
    scale: float,
    local: Callable[[Tensor], Tensor] | None = None,
) -> Field:
    """The base field f_B of a code (1, C): the BaseDecoder's output by its scale.

    Its attribute `along(points, direction)` gives value and derivative.

    Args: local: of a decoder that takes them, the picture's numbers at points: (P, 3)
        -> (1, P, K). They change little along the camera's axis: a difference is taken.
    """

    def field(points):
        extra = () if local is None else (local(points).to(code),)
        return (decoder(code, points.to(code)[None], *extra)[0] / scale).to(points)

    def along(points, direction):
        extra = ()
        if local is not None:
            here, there = local(points), local(points + LOCAL_STEP * direction)
            rising = (there - here) / LOCAL_STEP
            extra = ((here.to(code), rising.to(code)),)
        found = decoder.along(code, points.to(code)[None], direction.to(code), *extra)
        return [(part[0] / scale).to(points) for part in found]

    field.along = along
    return field


def displaced_field(
    base: Field, displacement: Tensor, camera: Camera, way: str = "gradient"
) -> Field:
    """The field F = f_B + f_D of a base field and its maps.

    Args: base: field. displacement: (2, H, W) world units: 0 front, 1 back.
        camera: Camera that the maps belong to. way: of `front_mask`.
    """

    def field(points):
        uv, _ = camera.project(points)
        base_sdf, front = value_and_front(base, points, camera.rotation[2], way)
        maps = displacement.to(points)[None]
        return displaced_sdf(base_sdf[None], maps, uv[None], front[None])[0]

    return field


def sphere(radius: float = 0.4, centre: Sequence[float] = (0.0, 0.0, 0.0)) -> Field:
    """The exact signed distance of a sphere."""
    return lambda p: (p - p.new_tensor(centre)).norm(dim=-1) - radius


def box(half_sides: Sequence[float] = (0.3, 0.3, 0.3)) -> Field:
    """The exact signed distance of an axis-aligned box about the origin."""

    def field(p):
        q = p.abs() - p.new_tensor(half_sides)
        return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)

    return field


def torus(major: float = 0.3, minor: float = 0.12) -> Field:
    """The exact signed distance of a torus about the y axis."""

    def field(p):
        ring = p[..., [0, 2]].norm(dim=-1) - major
        return torch.stack([ring, p[..., 1]], -1).norm(dim=-1) - minor

    return field
