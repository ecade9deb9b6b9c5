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

from ..sampling import is_solid, sample_surface
from .rendering import ray_scene

CELL = 1 / 128  # world units
# World units, 3 cm of an object 1.7 m long: wider than the slits around doors and
# drawers, narrower than any compartment.
OPENING = 0.02
SAMPLES = 6  # of the surface in a cell's square
MOST_SAMPLES = 4_000_000  # of a heap of leaves
LEAST = 27  # cells of a hollow with room for the ball
BEYOND = 4  # cells that a probe looks ahead beyond the ball's radius
RAYS = 8  # of a probe, on either side
MOST_PROBES = 200  # of a face
POINTS = 1500  # by which the filled share is told
OFF_SURFACE = 1e-4  # where a probe starts, world units
OUTSIDE, HOLLOW = 1, 2  # labels of air with room: can be reached, or cannot


def fill_interior(
    mesh: trimesh.Trimesh, opening: float = OPENING
) -> tuple[trimesh.Trimesh, float]:
    """Leave out the faces that border only air which cannot be reached from outside.

    Args: mesh: trimesh.Trimesh, world frame, outward as `load_mesh` makes it.
        opening: world units; a ball of this width is to come in from outside. Air in
            which it has no room, such as a groove, stays air. At least 1/64.
    Returns: the mesh, itself where nothing is to fill, else one of fewer faces, and the
        share of its inside that was air.
    Raises: ValueError: an opening that the cells are too wide for.
    """
    if not opening >= 2 * CELL:  # through walls of one layer of cells it would come in
        raise ValueError(f"opening must be {2 * CELL} or more, not {opening}")
    labels, low = _rooms(mesh, opening)
    if not (labels == HOLLOW).any():
        return mesh, 0.0
    triangles = np.array(mesh.triangles)
    scene, index = ray_scene(triangles), np.arange(len(triangles))
    reach = int(opening / 2 / CELL) + BEYOND
    done, own, cut = [], [], False
    while len(triangles):
        outer, mixed = _are_seen(scene, triangles, labels, low, reach)
        done.append(triangles[outer & ~mixed])
        own.append(index[outer & ~mixed])
        # A board may go on from outside into the hollow: halve what is seen in part.
        triangles, index = triangles[mixed], index[mixed]
        cut |= len(triangles) > 0
        triangles, index = np.concatenate(_halves(triangles)), np.tile(index, 2)
    own = np.concatenate(own)
    if cut:
        corners = np.concatenate(done).reshape(-1, 3)
        vertices, faces = corners, np.arange(len(corners)).reshape(-1, 3)
    else:
        vertices, faces = mesh.vertices, mesh.faces[own]
    colors = {name: of[own] for name, of in mesh.face_attributes.items()}
    filled = trimesh.Trimesh(vertices, faces, face_attributes=colors, process=False)
    filled.metadata.update(mesh.metadata)
    if cut:
        filled.merge_vertices()
    # Where whole inner surfaces went, one solid is left.
    filled.metadata["solid"] = bool(not cut and is_solid(mesh) and filled.is_watertight)
    filled.remove_unreferenced_vertices()
    points = np.random.default_rng(0).uniform(*mesh.bounds, (POINTS, 3))
    before, after = (np.sum(_winding(m, points) > 0.5) for m in (mesh, filled))
    return filled, float(1 - before / max(after, 1))


def _winding(mesh, points):
    vertices = np.array(mesh.vertices, dtype=float)
    return igl.fast_winding_number(vertices, np.array(mesh.faces, np.int64), points)


def _halves(triangles):
    """Triangles (T, 3, 3) cut at the middle of their longest edges, in two lists."""
    length = np.linalg.norm(np.roll(triangles, -1, axis=1) - triangles, axis=2)
    turn = (length.argmax(axis=1)[:, None] + np.arange(3)) % 3
    a, b, c = np.moveaxis(np.take_along_axis(triangles, turn[..., None], 1), 1, 0)
    middle = (a + b) / 2
    return np.stack([a, middle, c], axis=1), np.stack([middle, b, c], axis=1)


def _rooms(mesh, opening):
    """Air with room for a ball in cells, labelled, and the grid's low corner."""
    count = int(min(SAMPLES * mesh.area / CELL**2, MOST_SAMPLES))
    points, _ = sample_surface(mesh, count, np.random.default_rng(0))
    margin = opening / 2 + 3 * CELL
    low = mesh.bounds[0] - margin
    shape = np.ceil((mesh.bounds[1] + margin - low) / CELL).astype(int)
    empty = np.ones(shape, dtype=bool)
    empty[tuple(((points - low) / CELL).astype(int).T)] = False
    room = ndimage.distance_transform_edt(empty) * CELL > opening / 2
    parts, _ = ndimage.label(room)
    outside = parts[0, 0, 0]
    size = np.bincount(parts.ravel())
    cells = np.flatnonzero((parts != outside) & (parts > 0) & (size[parts] >= LEAST))
    number, first = np.unique(parts.flat[cells], return_index=True)
    labels = np.zeros(len(size), dtype=np.int8)
    labels[outside] = OUTSIDE
    if len(number):  # the inside of a body cannot be reached either
        first = np.stack(np.unravel_index(cells[first], shape), axis=1)
        air = _winding(mesh, low + CELL * (first + 0.5)) < 0.5
        labels[number[air]] = HOLLOW
    return labels[parts], low


def _are_seen(scene, triangles, labels, low, reach):
    """Which triangles border air that can be reached, and which are to be cut.

    A probe looks along rays to both sides. What the larger part of them meets first, of
    cells with a label, is what it borders.
    """
    rng, corners = np.random.default_rng(0), np.moveaxis(triangles, 1, 0)
    cross = np.cross(corners[1] - corners[0], corners[2] - corners[0])
    double_area = np.linalg.norm(cross, axis=1)
    count = np.clip(double_area / 8 / CELL**2, 1, MOST_PROBES).astype(int)
    face = np.repeat(np.arange(len(triangles)), count)
    weights = rng.dirichlet(np.ones(3), len(face))[..., None]
    points = (weights * triangles[face]).sum(axis=1)
    normals = (cross / np.maximum(double_area, 1e-300)[:, None])[face]
    near = ndimage.binary_dilation(labels == HOLLOW, iterations=reach)
    ask = np.flatnonzero(near[_cells(points, labels, low)])
    seen = np.ones(len(face), dtype=bool)
    seen[ask] = False
    for side in (1, -1):
        rays = _rays(side * normals[ask], rng)
        starts = points[ask] + side * OFF_SURFACE * normals[ask]
        first = _first_labels(scene, starts, rays, labels, low, 2 * reach)
        out, hollow = ((first == kind).sum(axis=1) for kind in (OUTSIDE, HOLLOW))
        seen[ask] |= (out > 0) & (out >= hollow)
    share = np.bincount(face, seen, len(triangles)) / count
    edges = np.linalg.norm(triangles - np.roll(triangles, 1, axis=1), axis=2)
    return share > 0.5, (0.02 < share) & (share < 0.98) & (edges.max(1) > 2 * CELL)


def _rays(normals, rng):
    """Cosine-distributed directions about normals (P, 3): (P, RAYS, 3)."""
    rays = rng.standard_normal((len(normals), RAYS, 3))
    rays = rays / np.linalg.norm(rays, axis=2, keepdims=True) + normals[:, None]
    return rays / np.linalg.norm(rays, axis=2, keepdims=True)


def _first_labels(scene, starts, rays, labels, low, reach):
    """The first label that rays (P, RAYS, 3) come to: (P, RAYS), 0 for none."""
    shape, rays = rays.shape[:2], rays.reshape(-1, 3)
    starts = starts.repeat(RAYS, axis=0)
    free = scene.run(starts.astype("f4"), rays.astype("f4"), query="DISTANCE")
    first, left = np.zeros(len(rays), dtype=np.int8), np.arange(len(rays))
    for step in np.arange(1, reach + 1) * CELL:
        left = left[(first[left] == 0) & (free[left] > step)]
        first[left] = labels[_cells(starts[left] + step * rays[left], labels, low)]
    first[left[(first[left] == 0) & (free[left] > 1e6)]] = OUTSIDE  # it left the mesh
    return first.reshape(shape)


def _cells(points, labels, low):
    """Indices of the cells that points (..., 3) lie in, the nearest of a far one's."""
    cells = ((points - low) / CELL).astype(int)
    return tuple(np.moveaxis(cells.clip(0, np.array(labels.shape) - 1), -1, 0))
