"""How far a predicted shape is from the true one, each measure with its protocol.

The same name means different numbers in different papers (frame, count, square or
not, sum or mean). Here every distance is in this project's world units (farthest vertex
at radius 0.5), nothing is multiplied by 1000, and each docstring says the rest. A shape
is a mesh, sampled by area, or points that the caller has drawn.

Sampled measures have a floor: two samples of the same surface of area A lie about
0.5 * sqrt(A / count) apart, so compare with the truth's own floor, never with 0.
"""

from typing import NamedTuple

import igl
import numpy as np
import torch
import trimesh
from scipy.spatial import cKDTree

from . import losses
from .sampling import HALF_BOX, sample_surface

ON_SURFACE = 0.005  # world units: the stored points that count as surface points


class EdgeProtocol(NamedTuple):
    """Which points of a surface sample count as edge points.

    Attributes:
        count: points drawn from a mesh, by area.
        radius: of the neighbourhood, world units.
        threshold: a point whose sharpness sigma is below it is an edge point.
        limit: at most so many edge points are kept, drawn at random; None keeps all.
    """

    count: int
    radius: float
    threshold: float
    limit: int | None


EDGE_PROTOCOLS = {
    "d2im": EdgeProtocol(16_384, 0.02, 0.8, None),
    # Finds next to nothing on a rounded (learned, marched) surface: see the counts.
    "bspnet": EdgeProtocol(16_384, 0.01, 0.1, 4_096),
}


class EdgeChamfer(NamedTuple):
    """An edge Chamfer distance with what is needed to believe it.

    Attributes:
        value: world units squared; NaN where the truth has no edge point, infinite
            where only the prediction has none.
        prediction_edges, truth_edges: edge points found.
        protocol: name of the protocol.
    """

    value: float
    prediction_edges: int
    truth_edges: int
    protocol: str


def chamfer_distance(prediction, truth, *, norm="l1", count=16_384, rng=None):
    """Chamfer distance between two surfaces, by nearest neighbours of samples.

    With a the distances of predicted points to their nearest true point and c those of
    true points to their nearest predicted one, "l1" is (mean a + mean c) / 2, in world
    units (Occupancy Networks), and "l2" is mean a^2 + mean c^2, in world units squared
    (BSP-Net).

    Args:
        prediction, truth: meshes, or points (N, 3), world.
        norm: "l1" or "l2".
        count: points drawn from a mesh, by area.
        rng: numpy Generator; needed for meshes alone.

    Returns:
        The distance, a float.

    Raises:
        ValueError: an unknown norm, an empty mesh, points of another shape or not
            finite.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f'norm must be "l1" or "l2", got {norm!r}')
    accuracy, completeness = _distances(prediction, truth, count, rng)
    if norm == "l1":
        return float(accuracy.mean() + completeness.mean()) / 2
    return float((accuracy**2).mean() + (completeness**2).mean())


def f_score(prediction, truth, threshold=0.01, *, count=100_000, rng=None):
    """F-score: harmonic mean of precision and recall at a distance.

    Precision is the share of predicted points nearer than the threshold to a true
    point, recall the share of true points nearer than it to a predicted one
    (Tatarchenko et al. 2019). The count is large because a surface of area A scores
    only about 1 - exp(-pi * threshold^2 * count / A) against itself.

    Args:
        prediction, truth: meshes, or points (N, 3), world.
        threshold: world units; 0.01 is 1 % of the shape's diameter.
        count: points drawn from a mesh, by area.
        rng: numpy Generator; needed for meshes alone.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: as `chamfer_distance`.
    """
    accuracy, completeness = _distances(prediction, truth, count, rng)
    precision, recall = (accuracy < threshold).mean(), (completeness < threshold).mean()
    if precision + recall == 0:
        return 0.0
    return float(2 * precision * recall / (precision + recall))


def normal_consistency(prediction, truth, *, count=16_384, rng=None):
    """Mean |cosine| between a sample's normals and those of its nearest neighbours.

    The mean of both ways, blind to orientation (Occupancy Networks).

    Args:
        prediction, truth: meshes (their face normals count), or pairs of points (N, 3)
            and unit normals (N, 3), world.
        count: points drawn from a mesh, by area.
        rng: numpy Generator; needed for meshes alone.

    Returns:
        A float in [0, 1].

    Raises:
        ValueError: as `chamfer_distance`.
    """
    points_a, normals_a = _oriented_points(prediction, count, rng, "prediction")
    points_b, normals_b = _oriented_points(truth, count, rng, "truth")
    _, to_b = _nearest(points_a, points_b)
    _, to_a = _nearest(points_b, points_a)
    there, back = (
        _cosine(normals_a, normals_b[to_b]),
        _cosine(normals_b, normals_a[to_a]),
    )
    return float(there.mean() + back.mean()) / 2


def iou(prediction, truth, *, points=None, count=100_000, rng=None):
    """Volumetric intersection over union, on points of the box [-0.55, 0.55]^3.

    Args:
        prediction, truth: each a mesh (inside is a winding number above 1/2, so open
            and overlapping meshes are scored too, inside-out ones lose), a field, or
            occupancies (P,) bool that belong to `points`.
        points: (P, 3) world; by default `count` uniform ones.
        count: number of points to draw.
        rng: numpy Generator; needed where points are drawn.

    Returns:
        A float in [0, 1]; NaN where neither shape holds any of the points.

    Raises:
        ValueError: an empty mesh, occupancies without or of other number than points,
            a field that answers with another shape.
    """
    if points is None:
        for shape in (prediction, truth):
            if isinstance(shape, np.ndarray):
                raise ValueError("occupancies need the points they were taken at")
        points = _needed(rng).uniform(-HALF_BOX, HALF_BOX, (count, 3))
    points = _checked_points(points, "points")
    a = _occupancy(prediction, points, "prediction")
    b = _occupancy(truth, points, "truth")
    union = (a | b).sum()
    return float((a & b).sum() / union) if union else float("nan")


def edge_chamfer_distance(prediction, truth, *, protocol="d2im", rng):
    """Chamfer distance between the edge points of two surfaces (ECD, BSP-Net).

    Edge points are those with `edge_sharpness` below the protocol's threshold; the
    value is mean d^2 + mean d^2 between the two sets. Two conventions for empty sets: a
    truth without edges gives NaN (there is nothing to compare with), a prediction
    without edges where the truth has some gives infinity. Neither is ever 0, so print
    the counts beside the value.

    Args:
        prediction, truth: meshes, or pairs of points (N, 3) and unit normals (N, 3),
            world.
        protocol: "d2im" (16,384 points, radius 0.02, sigma < 0.8) or "bspnet" (16,384
            points, radius 0.01, sigma < 0.1, at most 4,096 edge points).
        rng: numpy Generator.

    Returns:
        EdgeChamfer(value, prediction_edges, truth_edges, protocol).

    Raises:
        ValueError: an unknown protocol, or as `chamfer_distance`.
    """
    if protocol not in EDGE_PROTOCOLS:
        raise ValueError(
            f"protocol must be one of {[*EDGE_PROTOCOLS]}, got {protocol!r}"
        )
    rules = EDGE_PROTOCOLS[protocol]
    edges = []
    for shape, name in ((prediction, "prediction"), (truth, "truth")):
        points, normals = _oriented_points(shape, rules.count, rng, name)
        points = points[edge_sharpness(points, normals, rules.radius) < rules.threshold]
        if rules.limit and len(points) > rules.limit:
            points = rng.choice(points, rules.limit, replace=False)
        edges.append(points)
    if len(edges[1]) == 0:
        value = float("nan")
    elif len(edges[0]) == 0:
        value = float("inf")
    else:
        value = chamfer_distance(*edges, norm="l2")
    return EdgeChamfer(value, len(edges[0]), len(edges[1]), protocol)


def edge_sharpness(points, normals, radius):
    """sigma(p) = min |n_p . n_q| over the neighbours q within a radius.

    1 on a flat surface, 0 at a right angle, and 1 where there is no neighbour.

    Args:
        points: (N, 3) world.
        normals: (N, 3) unit.
        radius: world units.

    Returns:
        (N,) in [0, 1].
    """
    sigma = np.ones(len(points))
    tree = cKDTree(points)
    # In blocks, because a tiny fragment makes every point a neighbour of every other.
    for start in range(0, len(points), 512):
        block = cKDTree(points[start : start + 512])
        pairs = tree.sparse_distance_matrix(block, radius, output_type="ndarray")
        neighbour, point = pairs["i"], pairs["j"] + start
        np.minimum.at(sigma, point, _cosine(normals[point], normals[neighbour]))
    return sigma


def decomposition_scores(prediction, example, view):
    """How well f_B and F meet the visible front, and f_D the detail there.

    Args:
        prediction: Reconstruction or Prediction of that view.
        example: arrays of one shape, see `dataset`.
        view: index of the picture that the prediction was made from.

    Returns:
        dict: base_error and final_error, the mean |f_B - F| and |f - F| in world units
        over the example's points on the visible front surface (|F| < 0.005, facing the
        camera, at the depth that the camera sees); laplacian_correlation of the front
        map with its target, over all pixels that have one. NaN where there is none.

    Raises:
        ValueError: the maps and the example's views differ in size.
    """
    camera = prediction.camera
    sizes = prediction.displacement.shape[-1], example[f"depth_{view}"].shape[-1]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the model works at {sizes[0]} px but the views have {sizes[1]}: prepare "
            "the data at the model's size"
        )
    views = {
        "normals": torch.from_numpy(example[f"normals_{view}"])[None].float(),
        "depth": torch.from_numpy(example[f"depth_{view}"])[None].float(),
        "mask": torch.from_numpy(example[f"mask_{view}"])[None] > 0,
        "camera": torch.from_numpy(example[f"camera_{view}"])[None].float(),
    }
    predicted, target, valid = losses.laplacian_maps(prediction.displacement[:1], views)
    pairs = torch.stack([predicted[valid], target[valid]])

    near = np.abs(example["sdf"]) < ON_SURFACE
    points = torch.from_numpy(example["points"][near])
    sdf = torch.from_numpy(example["sdf"][near])
    uv, depth = camera.project(points)
    front = torch.from_numpy(example["gradients"][near] @ camera.rotation[2] < 0)
    batched = (x[None] for x in (uv, depth, front, sdf))
    visible = losses.visible_near(*batched, views["mask"], views["depth"])[0]
    points, sdf = points[visible], sdf[visible]
    with torch.no_grad():
        base, final = prediction.base_sdf(points), prediction.sdf(points)
    return {
        "base_error": (base - sdf).abs().mean().item(),
        "final_error": (final - sdf).abs().mean().item(),
        "laplacian_correlation": torch.corrcoef(pairs)[0, 1].item(),
    }


def _cosine(a, b):
    return np.abs(np.einsum("pc,pc->p", a, b))


def _nearest(points, others):
    return cKDTree(others).query(points, workers=-1)


def _distances(prediction, truth, count, rng):
    """Nearest distances: of each predicted point, and of each true one."""
    sets = []
    for shape, name in ((prediction, "prediction"), (truth, "truth")):
        if isinstance(shape, trimesh.Trimesh):
            shape, _ = _oriented_points(shape, count, rng, name)
        sets.append(_checked_points(shape, name))
    return _nearest(*sets)[0], _nearest(*sets[::-1])[0]


def _oriented_points(shape, count, rng, name):
    if isinstance(shape, trimesh.Trimesh):
        return sample_surface(_checked_mesh(shape, name), count, _needed(rng))
    if not isinstance(shape, tuple) or len(shape) != 2:
        raise ValueError(
            f"{name} must be a mesh or a pair of points and normals, "
            f"got {type(shape).__name__}"
        )
    points = _checked_points(shape[0], f"{name} points")
    normals = _checked_points(shape[1], f"{name} normals")
    if len(points) != len(normals):
        raise ValueError(f"{name} has {len(points)} points but {len(normals)} normals")
    return points, normals


def _occupancy(shape, points, name):
    if isinstance(shape, trimesh.Trimesh):
        mesh = _checked_mesh(shape, name)
        vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
        faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
        return igl.fast_winding_number(vertices, faces, points) > 0.5
    if callable(shape):
        with torch.no_grad():
            parts = torch.from_numpy(points).float().split(16_384)
            inside = torch.cat([shape(part) <= 0 for part in parts]).numpy()
    else:
        inside = np.asarray(shape).astype(bool)
    if inside.shape != points.shape[:1]:
        raise ValueError(
            f"{name} must give ({len(points)},) occupancies, one a point, "
            f"got {inside.shape}"
        )
    return inside


def _checked_mesh(mesh, name):
    if len(mesh.faces) == 0:
        raise ValueError(f"{name} is a mesh without faces: there is nothing to measure")
    if not np.isfinite(mesh.vertices).all():
        raise ValueError(f"{name} has vertices that are not finite")
    return mesh


def _checked_points(points, name):
    points = np.ascontiguousarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
        raise ValueError(f"{name} must be (N, 3) with N > 0, got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return points


def _needed(rng):
    if rng is None:
        raise ValueError("sampling needs rng, such as np.random.default_rng(0)")
    return rng
