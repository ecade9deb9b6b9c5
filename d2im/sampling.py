"""Points with signed distance, exact gradients and density weights, and their draw.

Signed distance is negative inside, in world units. A closed mesh without self-overlap
gets its sign from the closest point's pseudonormal; a soup from the winding number
(Jacobson et al. 2013; the fast form of Barill et al. 2018), while its distance stays
the plain one.
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

if TYPE_CHECKING:  # a training machine may lack it
    import trimesh

HALF_BOX = 0.55  # sampling and extraction cover [-0.55, 0.55]^3
DENSITY_RADIUS = 0.025
MOST_PAIRS = 2e7  # of neighbours to list at once: twice as fast as counts, 16 B each
# Widths of the near-surface clouds in world units, with their share of the points. The
# rest is uniform in the box, so that a decoder learns the empty corners as well: one in
# a hundred is enough, since the density weights prefer lonely points.
NEAR_SURFACE = {0.005: 0.4, 0.02: 0.4, 0.05: 0.19}


class SDFSamples(NamedTuple):
    """Points with their signed distance, all f4."""

    points: np.ndarray  # (P, 3) world
    sdf: np.ndarray  # (P,) world units, negative inside
    gradients: np.ndarray  # (P, 3) unit, toward larger values
    weights: np.ndarray  # (P,) inverse count of same-side neighbours within 0.025


def sample_surface(
    mesh: "trimesh.Trimesh", count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw points on a surface, uniform by area.

    Args: mesh: trimesh.Trimesh, world frame. count: of points. rng: numpy Generator.
    Returns: points and the unit normals of their faces, each (count, 3).
    Raises: ValueError: the mesh has no area.
    """
    corners = np.asarray(mesh.faces).reshape(-1, 3).T
    a, b, c = np.asarray(mesh.vertices)[corners]  # (F, 3) each
    cross = np.cross(b - a, c - a)
    double_area = np.linalg.norm(cross, axis=1)
    if not double_area.sum() > 0:
        raise ValueError(f"cannot sample a surface of no area ({len(a)} faces)")
    cumulative = np.cumsum(double_area) / double_area.sum()
    # the sum may end just under 1, and no draw may fall behind the last face
    face = np.searchsorted(cumulative, rng.random(count)).clip(max=len(a) - 1)
    u, v = rng.random((2, count, 1))
    outside = u + v > 1  # fold the square back onto the triangle
    u, v = np.where(outside, 1 - u, u), np.where(outside, 1 - v, v)
    points = a[face] + u * (b - a)[face] + v * (c - a)[face]
    return points, cross[face] / np.maximum(double_area[face], 1e-300)[:, None]


def is_solid(mesh: "trimesh.Trimesh") -> bool:
    """Whether pseudonormals tell a mesh's inside: one closed body, or metadata says."""
    solid = mesh.metadata.get("solid")
    return mesh.is_volume and mesh.body_count == 1 if solid is None else solid


def signed_distance(
    mesh: "trimesh.Trimesh", points: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance to a mesh and its exact gradient, from the closest point.

    Args: mesh: trimesh.Trimesh, see `is_solid`. points: (P, 3), the mesh's frame.
    Returns: sdf (P,), negative inside, and gradients (P, 3), unit.
    Raises: ValueError: points of another shape or not finite, or an empty mesh.
    """
    import igl  # absent on a machine that only trains

    points = np.ascontiguousarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3 or not np.isfinite(points).all():
        raise ValueError(f"points must be (P, 3) and finite, got {points.shape}")
    if not len(mesh.faces):  # libigl would crash
        raise ValueError("a mesh without faces has no distance")
    # Asked in the order of a tree, each search finds its neighbour's faces still in
    # cache: twice as fast.
    order = cKDTree(points, leafsize=64, balanced_tree=False).indices
    points = points[order]
    vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
    faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
    if is_solid(mesh):
        kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
        sdf, _, closest, normals = igl.signed_distance(points, vertices, faces, kind)
        # Beside needles libigl may take a neighbour's normal. Of the right ones few
        # look this far past the point: ask the winding number about all such.
        along = np.abs(np.einsum("pi,pi->p", points - closest, normals))
        doubt = np.flatnonzero(along < 0.5 * np.abs(sdf))
        if len(doubt):
            winding = igl.fast_winding_number(vertices, faces, points[doubt])
            sdf[doubt] = np.abs(sdf[doubt]) * np.where(winding > 0.5, -1, 1)
    else:
        found = igl.point_mesh_squared_distance(points, vertices, faces)
        squared, face, closest = found
        winding = igl.fast_winding_number(vertices, faces, points)
        sdf = np.sqrt(squared) * np.where(winding > 0.5, -1, 1)
        normals = mesh.face_normals[face]
    away = (points - closest) * np.sign(sdf)[:, None]
    length = np.linalg.norm(away, axis=1, keepdims=True)
    # On the surface itself the direction is lost: its normal takes over.
    gradients = np.where(length > 1e-7, away / np.maximum(length, 1e-7), normals)
    back = np.argsort(order)
    return sdf[back], gradients[back]


def density_weights(points: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Inverse count of neighbours on the same side within 0.025 (itself counted).

    Args: points (P, 3) world, inside (P,) bool. Returns: (P,) f4.
    """
    weights = np.empty(len(points), dtype=np.float32)
    for side in (inside, ~inside):
        if not side.any():
            continue
        own = points[side]
        tree = cKDTree(own, leafsize=32, balanced_tree=False)
        some = own[:: len(own) // 500 + 1]
        counts = tree.query_ball_point(some, DENSITY_RADIUS, return_length=True)
        if counts.mean() * len(own) > MOST_PAIRS:  # a crowd, such as around a rod
            counts = tree.query_ball_point(own, DENSITY_RADIUS, return_length=True)
        else:
            pairs = tree.query_pairs(DENSITY_RADIUS, output_type="ndarray")
            counts = 1 + np.bincount(pairs.reshape(-1), minlength=len(own))
        weights[side] = 1.0 / counts
    return weights


def sample_points(
    mesh: "trimesh.Trimesh", count: int, rng: np.random.Generator
) -> np.ndarray:
    """Points around a surface: clouds of several widths, the rest uniform in the box.

    Args, raises: see `sample_surface`. Returns: (count, 3) world; what a cloud has
        beyond the box lies on its faces.
    """
    points = rng.uniform(-HALF_BOX, HALF_BOX, (count, 3))
    shares = np.cumsum([0, *NEAR_SURFACE.values()])
    starts = np.round(shares * count).astype(int)
    surface, _ = sample_surface(mesh, starts[-1], rng)
    widths = np.repeat(list(NEAR_SURFACE), np.diff(starts))[:, None]
    points[: starts[-1]] = surface + widths * rng.standard_normal(surface.shape)
    return points.clip(-HALF_BOX, HALF_BOX)


def sample_sdf(
    mesh: "trimesh.Trimesh", count: int, rng: np.random.Generator
) -> SDFSamples:
    """Sample points around a mesh with distance, gradient and density weight.

    Args, raises: see `sample_surface`. Returns: SDFSamples.
    """
    points = sample_points(mesh, count, rng).astype(np.float32)
    sdf, gradients = signed_distance(mesh, points)
    weights = density_weights(points, sdf < 0)
    return SDFSamples(points, sdf.astype("f4"), gradients.astype("f4"), weights)


def weighted_draw(
    sdf: np.ndarray, weights: np.ndarray | None, count: int, rng: np.random.Generator
) -> np.ndarray:
    """Draw points by weight without replacement, half inside and half outside.

    A side with too few points gives all it has and the other side fills up; where both
    together are too few, points repeat.

    Args: sdf: (P,), negative inside. weights: (P,), positive; None draws uniformly.
        count: of points. rng: numpy Generator.
    Returns: (count,) indices, inside points first.
    """
    if weights is None:
        weights = np.ones(len(sdf), dtype=np.float32)
    inside, outside = np.flatnonzero(sdf < 0), np.flatnonzero(sdf >= 0)
    n_inside = min(len(inside), max(count // 2, count - len(outside)))
    sides = ((inside, n_inside), (outside, min(len(outside), count - n_inside)))
    drawn = []
    for index, n in sides:
        # Exponential races: the n first of clocks at rate w are a weighted draw
        # without replacement (Efraimidis and Spirakis 2006).
        clock = rng.standard_exponential(len(index), dtype=np.float32) / weights[index]
        drawn.append(index[np.argpartition(clock, n - 1)[:n]] if n else index[:0])
    drawn = np.concatenate(drawn)
    return np.concatenate([drawn, rng.choice(drawn, count - len(drawn))])
