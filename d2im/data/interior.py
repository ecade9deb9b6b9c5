"""What no ray from outside sees is inside: hollow bodies filled.

Furniture of computer graphics is hollow: its boards enclose air that no picture shows.
After IM-NET and Occupancy Networks such air counts as inside. Cells of a grid tell
which air cannot be reached; the faces that border it alone are left out, and the sign
follows from those that stay, as a soup's does by its winding number.
"""

import igl
import numpy as np
import trimesh
from scipy import ndimage

from ..sampling import sample_surface
from .rendering import ray_scene

CELL = 1 / 128  # world units
# World units, 3 cm of an object 1.7 m long: wider than the slits around doors and
# drawers, narrower than any compartment.
OPENING = 0.02
SAMPLES = 6  # of the surface in a cell's square
REACH = 12  # cells that a probe looks ahead
RAYS = 12  # of a probe, on either side
MOST_PROBES = 200  # of a face
OFF_SURFACE = 1e-4  # where a probe starts, world units
OUTSIDE, HOLLOW = 1, 2  # labels of cells with room: can be reached, or cannot


def fill_interior(
    mesh: trimesh.Trimesh, opening: float = OPENING
) -> tuple[trimesh.Trimesh, float]:
    """Leave out the faces that border only air which cannot be reached from outside.

    Args: mesh: trimesh.Trimesh, world frame, outward as `load_mesh` makes it.
        opening: world units; a ball of this width is to come in from outside. Air in
            which it has no room, such as a groove, stays air.
    Returns: the mesh, itself where nothing is to fill, else one of fewer faces, and the
        share of its inside that was air.
    """
    vertices = np.array(mesh.vertices, dtype=float)
    faces = np.array(mesh.faces, dtype=np.int64)
    labels, low = _rooms(mesh, opening)
    hollow = low + CELL * (np.argwhere(labels == HOLLOW) + 0.5)
    if len(hollow):  # the inside of a solid cannot be reached either
        air = igl.fast_winding_number(vertices, faces, hollow) < 0.5
        hollow = hollow[air]
    if not len(hollow):
        return mesh, 0.0
    scene, index = ray_scene(vertices[faces]), np.arange(len(faces))
    outer, mixed = _are_seen(scene, vertices, faces, labels, low)
    if mixed.any():  # such as a board that goes on from outside into the hollow: cut it
        fine, cut, own = trimesh.remesh.subdivide_to_size(
            vertices, faces[mixed], 2 * CELL, max_iter=16, return_index=True
        )
        index = np.concatenate([index[~mixed], index[mixed][own]])
        faces = np.concatenate([faces[~mixed], cut + len(vertices)])
        seen = _are_seen(scene, fine, cut, labels, low)[0]
        outer = np.concatenate([outer[~mixed], seen])
        vertices = np.concatenate([vertices, fine])
    kept = {name: of[index[outer]] for name, of in mesh.face_attributes.items()}
    filled = trimesh.Trimesh(
        vertices, faces[outer], face_attributes=kept, metadata=mesh.metadata, process=False
    )
    filled.remove_unreferenced_vertices()
    low, high = filled.bounds
    points = np.random.default_rng(0).uniform(low, high, (20_000, 3))
    inside = [
        igl.fast_winding_number(
            np.array(m.vertices, float), np.array(m.faces, np.int64), points
        )
        > 0.5
        for m in (mesh, filled)
    ]
    return filled, float(1 - inside[0].sum() / max(inside[1].sum(), 1))


def _rooms(mesh, opening):
    """Cells that have room for a ball, labelled, and the grid's low corner."""
    count = int(SAMPLES * mesh.area / CELL**2)
    points, _ = sample_surface(mesh, count, np.random.default_rng(0))
    margin = opening / 2 + 3 * CELL
    low = mesh.bounds[0] - margin
    shape = np.ceil((mesh.bounds[1] + margin - low) / CELL).astype(int)
    empty = np.ones(shape, dtype=bool)
    empty[tuple(((points - low) / CELL).astype(int).T)] = False
    room = ndimage.distance_transform_edt(empty) * CELL > opening / 2
    parts, _ = ndimage.label(room)
    return np.where(parts == parts[0, 0, 0], OUTSIDE, HOLLOW) * (parts > 0), low


def _are_seen(scene, vertices, faces, labels, low):
    """Which faces border air that can be reached, and which do so only in part.

    A probe looks along rays to both sides of a face. What the larger part of them meets
    first, of cells with a label, is what it borders.
    """
    rng = np.random.default_rng(0)
    corners = vertices[faces]
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    double_area = np.linalg.norm(cross, axis=1)
    count = np.clip(double_area / 8 / CELL**2, 1, MOST_PROBES).astype(int)
    face = np.repeat(np.arange(len(faces)), count)
    weights = rng.dirichlet(np.ones(3), len(face))[..., None]
    points = (weights * corners[face]).sum(axis=1)
    normals = (cross / np.maximum(double_area, 1e-300)[:, None])[face]
    reach = ndimage.binary_dilation(labels == HOLLOW, iterations=4)
    ask = np.flatnonzero(reach[_cells(points, labels, low)])
    seen = np.ones(len(face), dtype=bool)
    for some in np.array_split(ask, 1 + len(ask) // 20_000):
        keep = np.zeros(len(some), dtype=bool)
        for side in (1, -1):
            first = _first_label(
                scene, points[some], side * normals[some], labels, low, rng
            )
            out, hollow = ((first == kind).sum(axis=1) for kind in (OUTSIDE, HOLLOW))
            keep |= (out > 0) & (out >= hollow)
        seen[some] = keep
    share = np.bincount(face, seen) / count
    long = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2).max(axis=1)
    return share > 0.5, (share > 0) & (share < 1) & (long > 2 * CELL)


def _first_label(scene, points, normals, labels, low, rng):
    """The first label that cosine-distributed rays come to: (P, RAYS), 0 for none."""
    rays = rng.standard_normal((len(points), RAYS, 3))
    rays = rays / np.linalg.norm(rays, axis=2, keepdims=True) + normals[:, None]
    rays /= np.linalg.norm(rays, axis=2, keepdims=True) + 1e-9
    starts = np.broadcast_to((points + OFF_SURFACE * normals)[:, None], rays.shape)
    flat = (a.reshape(-1, 3).astype("f4") for a in (starts, rays))
    free = scene.run(*flat, query="DISTANCE").reshape(len(points), RAYS)
    first = np.where(free > 1e6, OUTSIDE, 0)  # unless there is another before
    for step in np.arange(REACH, 0, -1) * CELL:
        label = labels[_cells(starts + step * rays, labels, low)]
        first = np.where((label > 0) & (step < free), label, first)
    return first


def _cells(points, labels, low):
    """Indices of the cells that points (..., 3) lie in, of those outside the nearest."""
    cells = ((points - low) / CELL).astype(int)
    return tuple(np.moveaxis(cells.clip(0, np.array(labels.shape) - 1), -1, 0))
