"""How well base and displacement share the truth, on the visible front.

Where a shape's coarse body is known so is its displacement, d*(u) = -F_coarse(p).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from ..data.coarse import coarse_distance
from ..data.rendering import ray_scene
from ..fields import sample_maps, values_at
from ..laplacian import laplacian_maps, stencil_mask
from ..losses import visible_near
from ..sampling import signed_distance
from .metrics import SEEN, behind

if TYPE_CHECKING:
    import trimesh

    from ..camera import Camera
    from ..use.reconstruction import Prediction

ON_SURFACE = 0.005  # world units: the stored points that count as surface points
STEP = 0.01  # world units, of the Laplacian of a field: about a pixel at 112 px


def decomposition_scores(
    prediction: Prediction, example: dict[str, np.ndarray], view: int
) -> dict[str, float]:
    """How well f_B and F meet the visible front, and f_D the detail there.

    Args: prediction: Prediction of that view.
        example: arrays of one shape, see `dataset`.
        view: index of the picture that the prediction was made from.
    Returns: dict: base_error and final_error, the mean |f_B - F| and |f - F| in world
        units over the example's points on the visible front surface (|F| < 0.005,
        facing the camera, at the depth that the camera sees); laplacian_correlation of
        the front map with its target, over all pixels that have one; NaN for none.
    Raises: ValueError: the maps and the example's views differ in size.
    """
    camera, size = prediction.camera, example[f"depth_{view}"].shape[-1]
    if (own := prediction.displacement.shape[-1]) != size:
        sizes = f"the model works at {own} px but the views have {size}"
        raise ValueError(f"{sizes}: prepare the data at the model's size")
    names = "normals", "depth", "mask", "camera"
    views = {n: torch.from_numpy(example[f"{n}_{view}"])[None].float() for n in names}
    views["mask"] = views["mask"] > 0
    predicted, target, valid = laplacian_maps(prediction.displacement[:1], views)
    pairs = torch.stack([predicted[valid], target[valid]])

    near = np.abs(example["sdf"]) < ON_SURFACE
    points = torch.from_numpy(example["points"][near])
    sdf = torch.from_numpy(example["sdf"][near])
    uv, depth = camera.project(points)
    front = torch.from_numpy(example["gradients"][near] @ camera.rotation[2] < 0)
    batched = (x[None] for x in (uv, depth, front, sdf))
    visible = visible_near(*batched, views["mask"], views["depth"])[0]
    points, sdf = points[visible], sdf[visible]
    with torch.no_grad():
        base, final = prediction.base_sdf(points), prediction.sdf(points)
    some = pairs.shape[1] > 1
    return {
        "base_error": (base - sdf).abs().mean().item(),
        "final_error": (final - sdf).abs().mean().item(),
        "laplacian_correlation": torch.corrcoef(pairs)[0, 1].item() if some else np.nan,
    }


def true_displacement(
    camera: Camera, depth: np.ndarray, coarse: trimesh.Trimesh | None
) -> np.ndarray:
    """The true displacement of a picture, d*(u) = -F_coarse(p), p seen at pixel u.

    Args: camera: Camera. depth: (H, W) world units, 0 where nothing is seen.
        coarse: the shape without its relief; None where it is not known.
    Returns: (H, W) world units, 0 where nothing is seen; NaN where it is not known.
    """
    found, seen = np.zeros(depth.shape), depth > 0
    origins, rays = camera.resized(len(depth)).rays()
    points = (origins + depth[..., None] * rays)[seen].astype(float)
    found[seen] = np.nan if coarse is None else -coarse_distance(coarse, points, 0.0)
    return found


def disentanglement(
    prediction: Prediction,
    detailed: trimesh.Trimesh,
    coarse: trimesh.Trimesh,
    other: Prediction | None = None,
) -> dict[str, float]:
    """How f_B and f_D share the known truth, on the visible front.

    At the visible point p of pixel u the detailed F is 0 and the true displacement
    d*(u) = -F_coarse(p). High-passed is a map less its Gaussian mean of 1/28 of the
    side: below that f_D mends the base's errors too. Without f_D correlations are 0.

    Args: prediction: Prediction of one picture.
        detailed, coarse: the true shape and the same without relief, trimesh.Trimesh.
        other: Prediction from another picture of the same shape.
    Returns: dict of floats; in brackets what the truth has, and a base that swallowed
        the detail: base_to_coarse (0, relief) and base_to_detailed (relief, 0), mean
        |f_B - F_coarse| and |f_B - F|, world units; detail_in_base (0, 1), the slope of
        f_B - F_coarse over d*, high-passed; displacement_correlation (1, 0) and
        displacement_energy (1, 0), the sum of squares over that of d*, raw and
        _highpass; laplacian_energy (coarse_energy, 1), mean (Laplacian f_B)^2 over that
        of F, by steps of 0.01, coarse_energy being F_coarse's. With `other`, at points
        that both see: transfer_consistency (1, 0), the correlation of both f_D, and
        transfer_error (0, 0), mean |f_B + f_D of the other - F|.
    """
    front = prediction.displacement[0].numpy()
    camera = prediction.camera.resized(len(front))
    scene = ray_scene(detailed.triangles)
    origins, rays = (np.array(a.reshape(-1, 3)) for a in camera.rays())
    depth = scene.run(origins, rays, query="DISTANCE").reshape(front.shape)
    mask = depth < 1e6
    seen = torch.from_numpy(np.stack([mask, np.where(mask, depth, 0)]))[:, None]
    valid = stencil_mask(seen[0] > 0, seen[1])[0].numpy()
    points = (origins + depth.reshape(-1, 1) * rays)[mask.ravel()].astype(float)
    truth, error = np.zeros((2, *mask.shape))
    truth[mask] = -coarse_distance(coarse, points, 0.0)
    error[mask] = values_at(prediction.base_sdf, points) + truth[mask]
    base, points = (error - truth)[valid], points[valid[mask]]
    high, wanted, swallowed = (_highpass(m, mask)[valid] for m in (front, truth, error))
    scores = {
        "base_to_coarse": np.abs(error[valid]).mean(),
        "base_to_detailed": np.abs(base).mean(),
        "detail_in_base": _ratio(swallowed @ wanted, wanted @ wanted),
    }
    for name, a, b in (("", front[valid], truth[valid]), ("_highpass", high, wanted)):
        scores["displacement_correlation" + name] = _correlation(a, b)
        scores["displacement_energy" + name] = _ratio(a @ a, b @ b)
    some = points[:: max(1, len(points) // 1000)]
    of_base, of_coarse, of_truth = (
        (_laplacian(field, some) ** 2).mean()
        for field in (
            lambda p: values_at(prediction.base_sdf, p).astype(float),
            lambda p: coarse_distance(coarse, p, signed_distance(detailed, p)[0]),
            lambda p: signed_distance(detailed, p)[0],
        )
    )
    scores["laplacian_energy"] = _ratio(of_base, of_truth)
    scores["coarse_energy"] = _ratio(of_coarse, of_truth)
    if other is not None:
        both = np.abs(behind(scene, other.camera, points)) < SEEN
        uv, _ = other.camera.project(torch.from_numpy(points[both]).float())
        again = sample_maps(other.displacement[None, :1], uv[None])[0, 0].numpy()
        scores["transfer_consistency"] = _correlation(front[valid][both], again)
        scores["transfer_error"] = np.abs(base[both] + again).mean()
    return {name: float(value) for name, value in scores.items()}


def _laplacian(field, points):
    steps = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))]) * STEP
    values = field((points[:, None] + steps).reshape(-1, 3)).reshape(-1, 7)
    return (values[:, :6].sum(1) - 6 * values[:, 6]) / STEP**2


def _highpass(values, mask):
    blurred = [gaussian_filter(m, len(mask) / 28) for m in (values * mask, mask * 1.0)]
    return values - blurred[0] / np.maximum(blurred[1], 1e-9)


def _ratio(a, b):
    return a / b if b > 0 else np.nan


def _correlation(a, b):
    constant = len(a) < 2 or a.std() < 1e-9 or b.std() < 1e-9
    return 0.0 if constant else np.corrcoef(a, b)[0, 1]
