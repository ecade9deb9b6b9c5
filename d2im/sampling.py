"""Points with signed distance, exact gradients and density weights, and their draw.

Signed distance is negative inside, in world units. A closed mesh without self-overlap
gets its sign from the closest point's pseudonormal; a soup from the winding number
(Jacobson et al. 2013; the fast form of Barill et al. 2018), while its distance stays
the plain one.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

HALF_BOX = 0.55  # sampling and extraction cover [-0.55, 0.55]^3
DENSITY_RADIUS = 0.025
# Widths of the near-surface clouds in world units, with their share of the points. The
# rest is uniform in the box, so that a decoder learns the empty corners as well: one in
# a hundred is enough, since the density weights prefer lonely points.
NEAR_SURFACE = {0.005: 0.4, 0.02: 0.4, 0.05: 0.19}


@dataclass(frozen=True)
class SDFSamples:
    """Points with their signed distance.

    Attributes:
        points: (P, 3) f4, world.
        sdf: (P,) f4, world units, negative inside.
        gradients: (P, 3) f4, unit, toward larger values.
        weights: (P,) f4, the inverse count of same-side neighbours within 0.025.
    """

    points: np.ndarray
    sdf: np.ndarray
    gradients: np.ndarray
    weights: np.ndarray


def sample_surface(mesh, count, rng):
    """Draw points on a surface, uniform by area.

    Args:
        mesh: trimesh.Trimesh.
        count: number of points.
        rng: numpy Generator.

    Returns:
        points (count, 3) and the unit normals (count, 3) of their faces.

    Raises:
        ValueError: the mesh has no area.
    """
    triangles = np.asarray(mesh.vertices)[np.asarray(mesh.faces).reshape(-1, 3)]
    a, b, c = triangles[:, 0], triangles[:, 1], triangles[:, 2]
    cross = np.cross(b - a, c - a)
    double_area = np.linalg.norm(cross, axis=1)
    if not double_area.sum() > 0:
        raise ValueError(f"cannot sample a surface of no area ({len(a)} faces)")
    cumulative = np.cumsum(double_area) / double_area.sum()
    # The sum may end just under 1, and no draw may fall behind the last face.
    face = np.searchsorted(cumulative, rng.random(count)).clip(max=len(a) - 1)
    u, v = rng.random((2, count, 1))
    outside = u + v > 1  # fold the square back onto the triangle
    u, v = np.where(outside, 1 - u, u), np.where(outside, 1 - v, v)
    points = a[face] + u * (b - a)[face] + v * (c - a)[face]
    return points, cross[face] / np.maximum(double_area[face], 1e-300)[:, None]


def signed_distance(mesh, points):
    """Signed distance to a mesh and its exact gradient, from the closest point.

    Args:
        mesh: trimesh.Trimesh. `metadata["solid"]` says whether pseudonormal signs are
            right; where it is missing, one closed body counts as solid.
        points: (P, 3), the mesh's frame.

    Returns:
        sdf (P,), negative inside, and gradients (P, 3), unit.

    Raises:
        ValueError: points of another shape or not finite.
    """
    import igl  # absent on a machine that only trains

    points = np.ascontiguousarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must be (P, 3), got {points.shape}")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite")
    # Asked in the order of a tree, each search finds its neighbour's faces still in
    # cache: twice as fast.
    order = cKDTree(points, leafsize=64, balanced_tree=False).indices
    points = points[order]
    vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
    faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
    if _is_solid(mesh):
        kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
        sdf, _, closest, normals = igl.signed_distance(points, vertices, faces, kind)
        # Beside needles libigl may take a neighbour's normal. Of the right ones few
        # look this far past the point: ask the winding number about all such.
        along = np.abs(np.einsum("pi,pi->p", points - closest, normals))
        doubt = np.flatnonzero(along < 0.5 * np.abs(sdf))
        if len(doubt):
            winding = igl.fast_winding_number(vertices, faces, points[doubt])
            sdf[doubt] = np.abs(sdf[doubt]) * np.sign(0.5 - winding)
    else:
        squared, face, closest = igl.point_mesh_squared_distance(
            points, vertices, faces
        )
        winding = igl.fast_winding_number(vertices, faces, points)
        sdf = np.sqrt(squared) * np.sign(0.5 - winding)
        normals = mesh.face_normals[face]
    away = (points - closest) * np.sign(sdf)[:, None]
    length = np.linalg.norm(away, axis=1, keepdims=True)
    # On the surface itself the direction is lost: its normal takes over.
    gradients = np.where(length > 1e-7, away / np.maximum(length, 1e-7), normals)
    back = np.argsort(order)
    return sdf[back], gradients[back]


def density_weights(points, inside):
    """Inverse count of neighbours on the same side within 0.025 (itself counted).

    Args:
        points: (P, 3) world.
        inside: (P,) bool.

    Returns:
        (P,) f4.
    """
    weights = np.empty(len(points), dtype=np.float32)
    for side in (inside, ~inside):
        if side.any():
            tree = cKDTree(points[side], leafsize=64, balanced_tree=False)
            order = tree.indices  # neighbours one after another: faster, see above
            counts = tree.query_ball_point(
                tree.data[order], DENSITY_RADIUS, return_length=True, workers=-1
            )
            weights[np.flatnonzero(side)[order]] = 1.0 / counts
    return weights


def sample_points(mesh, count, rng):
    """Points around a surface: clouds of several widths, the rest uniform in the box.

    Args:
        mesh: trimesh.Trimesh in the world frame.
        count: number of points.
        rng: numpy Generator.

    Returns:
        (count, 3), inside [-0.55, 0.55]^3.
    """
    points = rng.uniform(-HALF_BOX, HALF_BOX, (count, 3))
    shares = np.cumsum([0, *NEAR_SURFACE.values()])
    starts = np.round(shares * count).astype(int)
    surface, _ = sample_surface(mesh, starts[-1], rng)
    widths = np.repeat(list(NEAR_SURFACE), np.diff(starts))[:, None]
    points[: starts[-1]] = surface + widths * rng.standard_normal(surface.shape)
    return points.clip(-HALF_BOX, HALF_BOX)


def sample_sdf(mesh, count, rng):
    """Sample points around a mesh with distance, gradient and density weight.

    Args:
        mesh: trimesh.Trimesh in the world frame.
        count: number of points.
        rng: numpy Generator.

    Returns:
        SDFSamples.

    Raises:
        ValueError: the mesh has no area.
    """
    points = sample_points(mesh, count, rng).astype(np.float32)
    sdf, gradients = signed_distance(mesh, points)
    return SDFSamples(
        points=points,
        sdf=sdf.astype(np.float32),
        gradients=gradients.astype(np.float32),
        weights=density_weights(points, sdf < 0),
    )


def weighted_draw(sdf, weights, count, rng):
    """Draw points by weight without replacement, half inside and half outside.

    A side with too few points gives all it has and the other side fills up; where both
    together are too few, points repeat.

    Args:
        sdf: (P,), negative inside.
        weights: (P,), positive. None draws uniformly.
        count: number of points.
        rng: numpy Generator.

    Returns:
        (count,) indices, inside points first.
    """
    if weights is None:
        weights = np.ones(len(sdf), dtype=np.float32)
    inside = np.flatnonzero(sdf < 0)
    outside = np.flatnonzero(sdf >= 0)
    half = count // 2
    n_inside = min(len(inside), max(half, count - len(outside)))
    sides = ((inside, n_inside), (outside, min(len(outside), count - n_inside)))
    drawn = []
    for index, n in sides:
        # Exponential races: the n first of clocks at rate w are a weighted draw
        # without replacement (Efraimidis and Spirakis 2006).
        clock = rng.standard_exponential(len(index), dtype=np.float32) / weights[index]
        drawn.append(index[np.argpartition(clock, n - 1)[:n]] if n else index[:0])
    drawn = np.concatenate(drawn)
    return np.concatenate([drawn, rng.choice(drawn, count - len(drawn))])


def _is_solid(mesh):
    solid = mesh.metadata.get("solid")
    if solid is None:
        solid = mesh.is_volume and mesh.body_count == 1
    return solid
