"""A picture's relief on a body of one's own: any mesh or field in the place of f_B.

d2im refine body.glb photo.png -o out.glb

The body says where the surface is, the picture what is on it: F = f_B + f_D with the
model's front map. The map counts where the picture shows the body squarely. It fades at
outlines and steps of depth, where a pixel more or less is another surface, and where
the body turns away, which no height over the picture describes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import trimesh
from scipy import ndimage

from ..camera import Camera
from ..data.mesh import load_mesh, normalise, turn_to_world
from ..data.rendering import Renderer
from ..fields import Field, displaced_field, sample_maps, value_and_front
from ..sampling import signed_distance
from ..surface.extract import NoSurface, extract_mesh
from .cameras import STEP, fit_camera
from .pictures import load_framed
from .reconstruction import Prediction, predict, triangulate

if TYPE_CHECKING:
    from ..networks import D2IMNet
    from .cameras import CameraFit
    from .pictures import ImageSource
    from .reconstruction import Reconstruction

Body = str | os.PathLike | trimesh.Trimesh | Field
FADE = (
    4 / 224
)  # of the picture's side, from an outline or step to the map's full weight
TILT = 0.15, 0.35  # cosine to the view: at the first nothing is left of it
# World units of a map that are taken off, since the model says as much where there is
# no relief: of 29 shapes the errors fell by a tenth, and at most 0.0002 were added.
FAINT = 0.001
BEHIND = 0.05  # world units behind what is seen: more than any relief is deep


@dataclass(frozen=True)
class RefineOptions:
    """What `refine` may do otherwise.

    Attributes: back: "body" leaves the side that is not seen as it is, "model" takes
        the model's guess of its relief.
        focal: of the camera that is sought, see `cameras.fit_camera`.
        framed: see `pictures.load_image`. framed_for: see `reconstruction.predict`.
        up, front, yaw: of the body's file or mesh, see `data.mesh.load_mesh`.
        resolution: grid samples along the box's side.
    """

    back: str = "body"
    focal: str = "known"
    framed: bool = False
    framed_for: Camera | None = None
    up: str = "y"
    front: str | None = None
    yaw: float = 0.0
    resolution: int = 160


def refine(
    model: D2IMNet,
    body: Body,
    picture: ImageSource,
    camera: Camera | None = None,
    strength: float = 1.0,
    options: RefineOptions | None = None,
    *,
    fit: int = 1,
) -> Reconstruction:
    """Put the relief that a picture shows on a body.

    Args: model: D2IMNet, whose maps are taken.
        body: a mesh file or trimesh.Trimesh in any unit and place, or a field in the
            world frame (centred, within radius 0.5, y up, front toward +z).
        picture: of the object, see `pictures.load_image`.
        camera: of the picture framed for it, in the body's world frame; None finds it
            by `cameras.fit_camera`, whose pictures are framed for another one: take
            `fit` for one of its cameras.
        strength: of the relief; 1 is as predicted, less what is too faint to tell
            (0.001 of every height).
        fit: which of the cameras that `fit_camera` finds, 1 the best one; of a given
            `camera` there is no choice.
    Returns: Reconstruction whose base is the body, in the world frame; `export` writes
        it in the body's own. Its `fits` are the cameras that were found.
    Raises: ValueError: a strength that is not finite, an unknown `back`, a `fit` or a
        free `focal` of a given camera, a body without an inside, or as `load_mesh`,
        `fit_camera` and `load_image`.
    """
    options = options or RefineOptions()
    if not np.isfinite(strength):
        raise ValueError(f"strength must be a finite number, got {strength}")
    if options.back not in ("body", "model"):
        raise ValueError(f'back must be "body" or "model", got {options.back!r}')
    if camera is not None and (fit != 1 or options.focal != "known"):
        raise ValueError("fit and focal are of a camera that is sought: one was given")
    field, mesh, to_world = as_field(body, options)
    framing = {"framed": options.framed, "background": model.background}
    framing["camera"] = framed_for = options.framed_for or camera
    image, mask, covers = load_framed(picture, model.image_size, **framing)
    fits: list[CameraFit] = []
    if camera is None:
        known = {"mask": mask, "size": model.image_size, "focal": options.focal}
        fits = fit_camera(mesh, image, **known)
        if not 1 <= fit <= len(fits):
            raise ValueError(f"{len(fits)} cameras were found, there is no fit {fit}")
        camera = fits[fit - 1].camera
    found = predict(model, image, camera)
    maps = strength * torch.nn.functional.softshrink(found.displacement, FAINT)
    maps[1] *= options.back == "model"
    about = {"mask": mask, "covers": covers, "to_world": to_world, "fits": tuple(fits)}
    about |= {"displacement": maps, "framed_for": framed_for}
    found = on_body(Prediction(**found.parts() | about), field, mesh)
    try:
        return triangulate(found, options.resolution)
    except NoSurface as error:
        name = body if isinstance(body, str | os.PathLike) else "the body"
        wanted = "close it where it is open, or take a higher resolution"
        raise ValueError(f"{name} has no inside here, {wanted}: {error}") from error


def on_body(prediction: Prediction, field: Field, mesh: trimesh.Trimesh) -> Prediction:
    """A prediction whose base is a body, its maps where they count there.

    The back, which nothing shows, fades at the picture's outline alone.

    Args: prediction: of the picture, with its mask. field, mesh: see `as_field`.
    """
    maps, camera, mask = prediction.displacement, prediction.camera, prediction.mask
    weight, depth = visible_weight(mesh, camera.resized(len(mask)), mask.numpy())
    weights = np.stack([weight, _smooth(_within(mask.numpy()))]).astype(np.float32)
    maps = maps * torch.from_numpy(weights)
    base = seen_field(field, camera, depth)
    parts = {"displacement": maps, "base_sdf": base, "device": "cpu", "way": "own"}
    parts["sdf"] = displaced_field(base, maps, camera, "own")
    return Prediction(**prediction.parts() | parts)


def as_field(
    body: Body, options: RefineOptions | None = None
) -> tuple[Field, trimesh.Trimesh, np.ndarray | None]:
    """A body as a field and a mesh in the world frame.

    Returns: field, mesh, and the matrix (4, 4) from the body's frame to the world's;
        None for a field, which is of the world's.
    Raises: ValueError: see `load_mesh` and `extract_mesh`; vertices that are not
        finite. TypeError: something that is no body.
    """
    options = options or RefineOptions()
    axes = options.up, options.front, options.yaw
    if isinstance(body, str | os.PathLike):
        mesh = load_mesh(Path(body), *axes)
    elif isinstance(body, trimesh.Trimesh):
        if not np.isfinite(body.vertices).all():
            raise ValueError("the body has vertices that are NaN or infinite")
        turn = np.eye(4)
        turn[:3, :3] = turn_to_world(*axes)
        mesh = body.copy().apply_transform(turn)
        mesh.metadata["to_world"] = turn
        mesh = normalise(mesh)
    elif not callable(body):
        kind = type(body).__name__  # trimesh reads a GLB as a Scene
        wanted = "a file, a trimesh.Trimesh (of a Scene its to_mesh()) or a field"
        raise TypeError(f"a body is {wanted}, not {kind}")
    else:
        return body, extract_mesh(body, options.resolution), None
    return mesh_field(mesh), mesh, np.array(mesh.metadata["to_world"])


def mesh_field(mesh: trimesh.Trimesh) -> Field:
    """A mesh's signed distance as a field, with its exact derivative (`along`)."""

    def along(points, direction):
        sdf, gradients = signed_distance(mesh, points.double().cpu().numpy())
        slope = gradients @ direction.double().cpu().numpy()
        return [torch.from_numpy(a).to(points) for a in (sdf, slope)]

    def field(points):
        return along(points, points.new_zeros(3))[0]

    field.along = along
    return field


def seen_field(field: Field, camera: Camera, depth: np.ndarray) -> Field:
    """A field that also tells which points are of the side that a picture shows.

    That is its `front(points, direction)`, for the way "own" of `fields.front_mask`:
    front-facing, and not behind what is seen by more than any relief.

    Args: field: any. depth: (H, W) of what the camera sees, 0 where nothing is.
    """
    reach = np.where(depth > 0, depth + BEHIND, 0)
    # Beside an outline the map has faded; a point there belongs to the nearer surface.
    reach = torch.from_numpy(ndimage.maximum_filter(reach, 3)).float()[None, None]

    def own(points):
        return field(points)

    def front(points, direction):
        value, facing = value_and_front(field, points, direction)
        uv, z = camera.project(points)
        return value, facing & (z < sample_maps(reach.to(points), uv[None])[0, 0])

    own.front = front
    return own


def visible_weight(
    mesh: trimesh.Trimesh, camera: Camera, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """How much a picture's map counts at each pixel.

    Args: mesh: world frame. camera: of the picture's size. mask: (H, W) of its object.
    Returns: weight (H, W) f4 in [0, 1], and depth (H, W) of the mesh, 0 beside it.
    """
    hit, depth, normals, _ = Renderer(mesh).cast(camera)
    step = np.zeros_like(hit)
    for near, far in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        wide = np.abs(depth[near] - depth[far]) > STEP
        step[near] |= wide
        step[far] |= wide
    away = _within(hit & mask & ~step)
    rays = camera.rays()[1] @ camera.rotation.T
    cosine = -(normals * rays).sum(-1) / np.linalg.norm(rays, axis=-1)
    low, high = TILT
    weight = _smooth(away) * _smooth((cosine - low) / (high - low))
    return weight.astype(np.float32), depth


def _within(mask):
    """How far a pixel is from what is not of a mask (H, W), in FADE of its side."""
    inside = np.pad(mask, 1)  # the picture ends there, too
    return ndimage.distance_transform_edt(inside)[1:-1, 1:-1] / (FADE * len(mask))


def _smooth(values):
    """From 0 at 0 to 1 at 1, level at both."""
    values = np.clip(values, 0, 1)
    return values**2 * (3 - 2 * values)
