"""One picture in, an object out: base and final mesh, displacement maps, fields.

d2im reconstruct photo.png -o out.glb
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import trimesh

from ..camera import Camera
from ..data.files import PACKAGE
from ..surface.extract import extract_mesh
from .export import export_camera, export_maps, export_mesh, mesh_kind  # noqa: F401
from .pictures import load_framed

if TYPE_CHECKING:
    from ..networks import ImageModel
    from .cameras import CameraFit
    from .pictures import ImageSource

# Of a picture: known, or found by a callable such as `CameraNet.camera`.
CameraSource = Camera | Callable[[torch.Tensor], Camera] | None
MODEL = PACKAGE / "models" / "d2im-base"  # where none is named
STEP = 0.005  # world units, of the difference that stands for the base's gradient
FIT_RESOLUTION = 64  # of the base whose outline moves a camera
CAMERA_MODEL = MODEL.with_name("camera-small")


@dataclass(frozen=True)
class Prediction:
    """The fields that one picture gave.

    Outside the object's mask no Laplacian has taught the displacement anything.
    """

    displacement: torch.Tensor  # (2, H, W) on the CPU, world units: 0 front, 1 back
    camera: Camera  # that was used
    base_sdf: Callable  # f_B, (P, 3) -> (P,), world units
    sdf: Callable  # F, likewise
    image: torch.Tensor  # (3, H, W) that the model saw, on the CPU
    _: KW_ONLY
    way: str = "gradient"  # of `fields.front_mask`
    device: str | torch.device = "cpu"  # where the fields are evaluated
    frame: str = "world"  # of points and camera: the model's
    mask: torch.Tensor | None = None  # (H, W) bool, of the picture's object
    covers: float | None = None  # share of the picture, as given, that the object fills
    to_world: np.ndarray | None = None  # (4, 4) from the frame of a body of one's own
    fits: tuple[CameraFit, ...] = ()  # the cameras that were found, the best one first
    framed_for: Camera | None = None  # for whose distance the picture was framed

    def parts(self) -> dict:
        """The attributes above, by name."""
        return {part.name: getattr(self, part.name) for part in fields(Prediction)}


@dataclass(frozen=True)
class Reconstruction(Prediction):
    """A Prediction and its surfaces."""

    mesh: trimesh.Trimesh  # of F = f_B + f_D, world frame
    base_mesh: trimesh.Trimesh | None  # of f_B; None where it was not asked for

    def colored(self) -> trimesh.Trimesh:
        """The final mesh, coloured by its displacement: red outward, blue inward."""
        from matplotlib import colormaps

        points = torch.tensor(self.mesh.vertices, dtype=torch.float32)
        with torch.no_grad():  # on the surface F = 0: it lies f_B outside the base's
            outward = self.base_sdf(points.to(self.device)).cpu().numpy()
        limit = max(np.quantile(np.abs(outward), 0.99), 1e-6)
        mesh = self.mesh.copy()
        colors = colormaps["RdBu_r"](0.5 + outward / limit / 2, bytes=True)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colors)
        return mesh

    @torch.no_grad()
    def rise(self) -> tuple[np.ndarray, np.ndarray]:
        """How the final mesh stands on the base: its vertices' feet, and f_D at them.

        F = 0 there, so f_D = -f_B; Newton's steps along the gradient of f_B lead down.

        Returns: (N, 3) world, on the base but for the last step's error; (N,) world
            units.
        """
        points = torch.tensor(self.mesh.vertices, dtype=torch.float32)
        points, steps = points.to(self.device), STEP * torch.eye(3, device=self.device)
        added = -self.base_sdf(points)
        for _ in range(3):  # after one a raised frame is still to be seen
            base = self.base_sdf(points)
            ends = [
                self.base_sdf(points + s) - self.base_sdf(points - s) for s in steps
            ]
            slope = torch.stack(ends, 1) / (2 * STEP)
            rate = base / slope.square().sum(1).clamp(0.1)
            points = points - rate[:, None] * slope
        return points.cpu().numpy(), added.cpu().numpy()

    def export(self, path: str | Path, which: str = "final", **options) -> None:
        """Write a mesh, whole or not at all; see `export.export_mesh`."""
        export_mesh(self, path, which, **options)

    def export_maps(self, folder: str | Path, kind: str = "glb") -> None:
        """Write the maps and what they lie on; see `export.export_maps`."""
        export_maps(self, folder, kind)

    def export_overlay(self, path: str | Path, keep: str = "large") -> None:
        """Write the picture with the mesh on it; see `overlay.export_overlay`."""
        from .overlay import export_overlay

        export_overlay(self, path, keep)

    def export_camera(self, path: str | Path, kind: str = "glb") -> None:
        """Write K, R and t, and for other programs; see `export.export_camera`.

        It is in the frame of a body of one's own as `export` writes it, or of a
        picture's GLB or OBJ; of a file with another size or another upper side, give
        `export.export_camera` the `to_world` that `export.export_mesh` returns.
        """
        export_camera(self, path, kind)


@torch.no_grad()
def predict(
    model: ImageModel,
    image: ImageSource,
    camera: CameraSource = None,
    *,
    way: str = "gradient",
    framed: bool = False,
    framed_for: Camera | None = None,
) -> Prediction:
    """Predict the fields of the object in a picture, without meshing them.

    Args: model: D2IMNet, or another of `networks` with a method `fields`.
        image, framed: see `load_image`.
        camera: Camera of the picture as the model sees it, in the model's frame, of any
            size in pixels; or such as CameraNet's `camera`: (3, size, size) -> Camera.
        way: how front and back are told apart, see `fields.front_mask`.
        framed_for: Camera for whose distance the picture is framed; by default
            `camera`, where that is one, else a usual one.
    Returns: Prediction.
    Raises: ValueError: no camera, or an unusable picture.
    """
    if camera is None:
        raise ValueError(
            "the picture's camera is needed: pass "
            "camera=Camera(azimuth, elevation, ratio, size), or a net that estimates it"
        )
    known = camera if isinstance(camera, Camera) else None
    framed_for = framed_for or known
    framing = {"framed": framed, "background": model.background}
    framing["camera"] = framed_for
    image, mask, covers = load_framed(image, model.image_size, **framing)
    about = {"mask": mask, "covers": covers, "framed_for": framed_for}
    return _predicted(model, image, known or camera(image), way, about)


def _predicted(model, image, camera, way, about):
    """A Prediction of a framed picture, whose object's mask `about` has."""
    weights, training = next(model.parameters()), model.training
    model.eval()
    batch = image[None].to(weights)
    batch = batch.contiguous(memory_format=torch.channels_last)  # a fifth faster
    mask = about["mask"][None].to(batch.device)
    base, sdf, displacement = model.fields(batch, camera, way, mask)
    model.train(training)
    about = about | {"way": way, "device": weights.device, "frame": model.frame}
    return Prediction(displacement.float().cpu(), camera, base, sdf, image, **about)


def triangulate(
    prediction: Prediction, resolution: int = 128, *, base_mesh: bool = True
) -> Reconstruction:
    """Mesh the surfaces of a Prediction; see `reconstruct`."""
    maps, camera, way = prediction.displacement, prediction.camera, prediction.way
    options = {"device": prediction.device}
    if maps.any():  # a model without displacement has one surface
        options |= {"relief": (maps, camera, way), "both": base_mesh}
    found = extract_mesh(prediction.base_sdf, resolution, **options)
    base, mesh = found if isinstance(found, tuple) else (found, found)
    known = prediction.parts()
    return Reconstruction(**known, mesh=mesh, base_mesh=base if base_mesh else None)


def reconstruct(
    model: ImageModel,
    image: ImageSource,
    camera: CameraSource = None,
    resolution: int = 128,
    *,
    base_mesh: bool = True,
    fit: bool = False,
    **options,
) -> Reconstruction:
    """Reconstruct the object in a picture: `predict`, then mesh f_B and F.

    Args: model, image, camera, options: see `predict`.
        resolution: grid samples along the box's side.
        base_mesh: whether the surface of f_B is wanted too.
        fit: whether the camera is moved until the base's outline is the picture's, see
            `cameras.fit_camera`.
    Returns: Reconstruction.
    Raises: ValueError: as `predict`, or no surface in the box.
    """
    found = predict(model, image, camera, **options)
    if fit:
        found = _fitted(model, found)
    return triangulate(found, resolution, base_mesh=base_mesh)


@torch.no_grad()
def _fitted(model, found):
    """A Prediction under the camera that its own base's outline asks for."""
    from .cameras import fit_camera  # of the extra "data", which others do not need

    base = extract_mesh(found.base_sdf, FIT_RESOLUTION, device=found.device)
    known = {"mask": found.mask, "guess": found.camera, "size": model.image_size}
    fits = tuple(fit_camera(base, found.image, **known))
    kept = {name: getattr(found, name) for name in ("mask", "covers", "framed_for")}
    kept["fits"] = fits
    return _predicted(model, found.image, fits[0].camera, found.way, kept)
