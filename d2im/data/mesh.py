"""A user's mesh: read, orient, close, unite, normalise; it says what it did.

Files from the wild are closed bodies that overlap, open shells, loose sheets, or all of
these. Parts are turned outward, sheets thickened, holes capped and closed bodies united
(manifold3d). What is open after that stays a soup, whose sign comes from the winding
number (Jacobson et al. 2013).
"""

import gc
from dataclasses import asdict, dataclass
from pathlib import Path

import igl
import manifold3d
import numpy as np
import trimesh

from ..camera import yaw_rotation
from .formats import SUFFIXES, read_surface
from .rendering import ray_scene

RADIUS = 0.5  # of the farthest vertex, world units
PROBES = 4000  # points at which a surface is asked
OFF_SURFACE = 1e-4  # where the two sides of a face are asked, world units
CLOSED = 0.75  # mean winding number behind a patch: 1/2 of a flat sheet, 1 of a body
MANY_FACES = 100_000  # of a file, above which its memory is worth 0.1 s
LONGEST_RIM = 400  # edges of a hole; the time to close it grows with their cube


def find_meshes(folder: str | Path) -> list[Path]:
    """List the mesh files in a folder and below it, as sorted pathlib.Paths.

    Raises: FileNotFoundError: no such folder. ValueError: no mesh in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name one with mesh files")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    shown = [p for p in paths if "/." not in "/" + p.relative_to(folder).as_posix()]
    found = [path for path in shown if path.is_file()]
    if not found:
        raise ValueError(f"{folder}: no mesh here; d2im reads {', '.join(SUFFIXES)}")
    return found


UNCOUNTED = "solid", "notes"  # of a report


@dataclass(frozen=True)
class MeshReport:
    """What was found in a mesh file and what was done; `str()` is a line of it."""

    faces: int  # of the file
    parts: int = 1  # of the file, pieces joined by edges of two faces
    duplicate: int = 0  # faces dropped
    degenerate: int = 0  # faces dropped
    turned: int = 0  # faces turned over
    walls: int = 0  # open parts inside a body, dropped
    sheets: int = 0  # open parts that enclose nothing, made `thickness` thick
    thickness: float = 0.0  # world units
    holes: int = 0  # boundaries closed by a cap
    united: int = 0  # faces after the union of bodies, 0 where there was none
    panels: int = 0  # other open parts, which enclose something together
    solid: bool = False  # the result is one closed surface without overlap
    images_lost: int = 0  # textures not found or not read
    materials_lost: int = 0  # named by the file, but not found
    notes: tuple[str, ...] = ()  # which, and what else of the file was left out

    def __str__(self):
        counts = {n: v for n, v in asdict(self).items() if v and n not in UNCOUNTED}
        kind = "one solid" if self.solid else "a soup, its inside by winding number"
        counts = [f"{n.replace('_', ' ')} {v:.5g}" for n, v in counts.items()]
        return "; ".join([kind, ", ".join(counts), *self.notes])


def load_mesh(
    path: str | Path,
    up: str = "y",
    front: str | None = None,
    yaw: float = 0.0,
    thickness: float = 0.005,
) -> trimesh.Trimesh:
    """Read a mesh file and bring it into the world frame.

    Scenes are flattened with their transforms, UV seams merged, duplicate and
    degenerate faces dropped, parts turned outward, holes closed, open sheets thickened
    and overlapping closed bodies united.

    Args: path: a GLB, GLTF, OBJ, PLY, STL or OFF file, in any unit.
        up, front: the file's axes toward the world's +y and +z, such as "z" and "-y"
            (Blender's). Where `front` is None: "-y" if up is along z, else "z".
        yaw: degrees about the y axis after that, from front (+z) toward +x.
        thickness: of open sheets, world units; None refuses them.
    Returns: trimesh.Trimesh, y up, normalised. `face_attributes` hold "part" (F,) ints
        and, where the file has materials, "color" (F, 3) in [0, 1], display RGB.
        `metadata["solid"]`: it is one closed surface without overlap;
        `metadata["report"]`: a MeshReport.
    Raises: FileNotFoundError: no such file.
        ValueError: it cannot be read, holds no usable surface, or an open sheet where
            these are refused; or axes that are none.
    """
    turn = _turn(up, front, yaw)
    if thickness is not None and not 0 < thickness < RADIUS:
        raise ValueError(f"thickness must be in (0, 0.5) or None, got {thickness!r}")
    path = Path(path)
    read = read_surface(path)
    count, lost = len(read.faces), read.lost()
    raw = trimesh.Trimesh(read.vertices @ turn.T, read.faces, process=False)
    attributes = {"part": read.part, "color": read.color}
    attributes = {name: own for name, own in attributes.items() if own is not None}
    mesh = normalise(raw)
    del raw, read
    if count > MANY_FACES:  # trimesh's objects hold each other: 2 in 5 of the peak
        gc.collect()
    # After normalising, since its tolerance is absolute.
    mesh.merge_vertices()
    if not mesh.nondegenerate_faces().any():
        raise ValueError(f"{path}: all faces are degenerate; d2im needs a surface")
    arrays = np.array(mesh.vertices, dtype=float), np.array(mesh.faces, dtype=int)
    vertices, faces, source, part, done = _repair(
        *arrays, attributes["part"], thickness
    )
    if thickness is None and done["sheets"]:
        sheets = f"open sheets without an inside: {done['sheets']}"
        raise ValueError(f"{path}: {sheets}; give a thickness, or close the mesh")
    attributes = {k: v[source] for k, v in attributes.items()} | {"part": part}
    mesh = trimesh.Trimesh(vertices, faces, face_attributes=attributes, process=False)
    mesh.remove_unreferenced_vertices()
    mesh = normalise(mesh)
    report = MeshReport(count, thickness=thickness or 0.0, **done, **lost)
    mesh.metadata.update(solid=report.solid, report=report)
    return mesh


def normalise(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Centre a mesh on its bounding box, its farthest vertex at radius 0.5.

    Args: mesh: trimesh.Trimesh; it is not changed.
    Returns: A moved copy, with its attributes and metadata.
    Raises: ValueError: the mesh has zero size.
    """
    used = np.zeros(len(mesh.vertices), dtype=bool)
    used[mesh.faces] = True
    corners = np.asarray(mesh.vertices)[used]
    if len(corners) == 0 or not np.ptp(corners, axis=0).any():
        raise ValueError("a mesh of zero size cannot be normalised; give it a surface")
    centre = (corners.min(axis=0) + corners.max(axis=0)) / 2
    radius = np.linalg.norm(corners - centre, axis=1).max()
    moved = mesh.copy()
    moved.vertices = (mesh.vertices - centre) * (RADIUS / radius)
    return moved


def _turn(up, front, yaw):
    """Rotation (3, 3) from the file's frame to the world's."""
    if front is None:
        front = "-y" if up in ("z", "-z") else "z"
    axes = {sign + a: k for k, a in enumerate("xyz") for sign in ("", "-")}
    for name, axis in (("up", up), ("front", front)):
        if axis not in axes:
            raise ValueError(f"{name} must be one of {', '.join(axes)}, not {axis!r}")
    if axes[up] == axes[front]:
        raise ValueError(f"front {front!r} must be perpendicular to up {up!r}")
    y, z = (np.eye(3)[axes[a]] * (-1) ** a.startswith("-") for a in (up, front))
    return yaw_rotation(yaw) @ np.stack([np.cross(y, z), y, z])


def _repair(vertices, faces, part, thickness):
    """Orient, close and unite.

    Returns: vertices, faces, the earlier face that each is of (F,), its part (F,), and
        the counts of the report.
    """
    source, duplicate = _proper_faces(faces)
    done = {"duplicate": duplicate, "degenerate": len(faces) - len(source) - duplicate}
    before = faces[source]
    faces, patch = _orient(vertices, before)
    part = _ids(np.stack([part[source], patch], axis=1))
    closed, wall, sheet = _classify(vertices, faces, patch)
    done["parts"] = int(part.max()) + 1
    done["turned"] = int((faces[:, 0] != before[:, 0]).sum())
    done["walls"], done["sheets"] = int(wall.sum()), int(sheet.sum())
    keep = np.flatnonzero(~wall[patch])
    faces = faces[keep]
    body = igl.facet_components(faces)[1]  # joined by edges
    vertices, faces = _split(vertices, faces, body)

    def follow(step, *arguments):
        """Take a step whose last result tells which earlier face each new one is of."""
        nonlocal vertices, faces, keep, body
        vertices, faces, own, *rest = step(vertices, faces, body, *arguments)
        keep, body = keep[own], body[own]
        return rest

    if sheet.any() and thickness is not None:
        follow(_thicken, sheet[patch[keep]], thickness)
    (done["holes"],) = follow(_cap, (closed | wall | sheet).all())
    bodies, done["panels"] = follow(_unite)
    solid = done["panels"] == 0 and _is_solid(vertices, faces)
    if not solid:  # slivers hold a closed mesh together, but only hurt a soup
        proper = igl.doublearea(vertices, faces) > 1e-12
        faces, keep = faces[proper], keep[proper]
    done["united"] = len(faces) if bodies > 1 else 0
    done["solid"] = solid
    return vertices, faces, source[keep], part[keep], done


def _ids(rows):
    """A number for each row (N, K) of whole numbers, the same for the same rows."""
    ids = rows[:, 0]
    for column in rows.T[1:]:
        ids = np.unique(ids * (column.max() + 1) + column, return_inverse=True)[1]
    return ids


def _proper_faces(faces):
    """Indices of one of each set of duplicate faces, and how many others there were.

    A face and its mirror image are duplicates: a two-sided sheet becomes a sheet, a box
    exported with both its sides a box.
    """
    faces = np.sort(faces, axis=1)
    proper = np.flatnonzero((np.diff(faces, axis=1) > 0).all(axis=1))
    first = np.unique(_ids(faces[proper]), return_index=True)[1]
    return proper[np.sort(first)], len(proper) - len(first)


def _orient(vertices, faces):
    """Turn faces over: each patch wound one way, its outer side outward.

    A patch is a piece joined by edges of two faces. An open one is turned by the side
    from which more rays leave the mesh (Takayama et al. 2014), one that is closed, or
    nearly closed and enclosed by others, by the sign of its volume.

    Returns: faces and the patch of each (F,).
    """
    before = faces
    faces, patch = igl.bfs_orient(before)
    area = igl.doublearea(vertices, faces)
    # Where the faces of a patch disagree, it follows the larger part of its area.
    changed = np.bincount(patch, area * (faces != before).any(axis=1))
    other = changed > np.bincount(patch, area) / 2
    faces = np.where(other[patch, None], faces[:, ::-1], faces)
    count = patch.max() + 1
    seen = np.isin(np.arange(count), patch[_boundary(faces, patch)[1]])  # open ones
    inverted = np.bincount(patch, np.linalg.det(vertices[faces])) < 0
    points, normals, where = _probes(vertices, faces, patch)
    if seen.any():
        rng = np.random.default_rng(0)
        rays = rng.standard_normal(normals.shape)
        rays += normals * _length(rays)  # about cosine
        scene, left = ray_scene(vertices[faces]), []
        for side in (1, -1):
            origins = points + side * OFF_SURFACE * normals
            hit = scene.run(origins.astype("f4"), (side * rays).astype("f4"))
            left.append(np.bincount(where, hit < 0, minlength=count))
        # The area vectors of a closed surface cancel out.
        cross = [np.bincount(patch, c) for c in _cross(vertices, faces).T]
        nearly_closed = np.linalg.norm(cross, axis=0) < 0.1 * np.bincount(patch, area)
        seen &= (left[0] + left[1] > 0) | ~nearly_closed
        inverted = np.where(seen, left[0] < left[1], inverted)
    hollow = inverted & ~seen
    if hollow.any() and not hollow.all():  # wholly inside another: it is its cavity
        ask = hollow[where]
        rest = np.ascontiguousarray(faces[~hollow[patch]])
        winding = np.abs(igl.fast_winding_number(vertices, rest, points[ask]))
        outside = np.bincount(where[ask], winding < 0.5, minlength=count)
        inverted &= ~hollow | (outside > 0)
    return np.where(inverted[patch, None], faces[:, ::-1], faces), patch


def _classify(vertices, faces, patch):
    """Which patches are nearly closed, and of the others walls and sheets.

    Behind a body's faces their own winding number is 1, behind a flat sheet's 1/2. With
    all others it is 3/2 behind a wall in a body, whose inside that would blur.
    """
    count = patch.max() + 1
    alone, behind = np.ones(count), np.ones(count)
    points, normals, where = _probes(vertices, faces, patch)
    points -= OFF_SURFACE * normals
    for k in np.unique(patch[_boundary(faces, patch)[1]]):
        some, there = np.ascontiguousarray(faces[patch == k]), points[where == k]
        alone[k] = igl.fast_winding_number(vertices, some, there).mean()
    if (alone < 1).any():
        winding = igl.fast_winding_number(vertices, faces, points)
        behind = np.bincount(where, winding) / np.bincount(where)
    body = alone > CLOSED
    wall, sheet = ~body & (behind > 2 - CLOSED), ~body & (behind < CLOSED)
    if wall.all():  # sheets upon each other, in no body
        wall, sheet = sheet, wall
    return body, wall, sheet


def _split(vertices, faces, body):
    """Vertices and faces (F, 3) such that no two bodies share a vertex."""
    corners = np.stack([faces.ravel(), body.repeat(3)], axis=1)
    _, first, index = np.unique(_ids(corners), return_index=True, return_inverse=True)
    return vertices[faces.ravel()[first]], index.reshape(-1, 3)


def _boundary(faces, patch):
    """Directed edges (B, 2) without a partner in their patch, and their faces (B,)."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    sign = np.where(edges[:, 0] < edges[:, 1], 1, -1)
    index = _ids(np.column_stack([np.sort(edges, axis=1), patch.repeat(3)]))
    lonely = np.flatnonzero(np.bincount(index, sign)[index] * sign > 0)
    lonely = lonely[np.unique(index[lonely], return_index=True)[1]]
    return edges[lonely], lonely // 3


def _thicken(vertices, faces, body, flat, thickness):
    """Give the flat faces a back and a rim: vertices, faces and whose each is."""
    normal = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normal, faces[flat, k], _cross(vertices, faces[flat]))
    normal *= thickness / 2 / np.maximum(_length(normal), 1e-300)
    size, sheets = len(vertices), np.flatnonzero(flat)
    edges, edge_face = _boundary(faces[flat], body[flat])
    a, b = edges.T
    rim = np.stack([b, a, a + size, b, a + size, b + size], axis=1).reshape(-1, 3)
    faces = np.concatenate([faces, faces[flat][:, ::-1] + size, rim])
    own = np.concatenate([np.arange(len(flat)), sheets, sheets[edge_face].repeat(2)])
    return np.vstack([vertices + normal, vertices - normal]), faces, own


def _cap(vertices, faces, body, all_bodies):
    """Close holes, each by a cap of least area: vertices, faces, whose each is, count.

    Loops in one plane, as of a tube's end, are bridged to one.
    """
    edges, edge_face = _boundary(faces, body)
    into, out = (np.argsort(edges[:, k], kind="stable") for k in (1, 0))
    follower = np.empty(len(edges), dtype=int)
    follower[into] = out
    rims, seen = {}, np.zeros(len(edges), dtype=bool)
    for start in range(len(edges)):
        loop, edge = [], start
        while not seen[edge]:
            seen[edge] = True
            loop.append(edges[edge, 0])
            edge = follower[edge]
        if len(loop) > 2:
            loop = np.array(loop[::-1])  # a cap runs against its rim
            ring, face = vertices[loop], edge_face[start]
            normal = np.cross(ring, np.roll(ring, -1, axis=0)).sum(0)
            normal /= max(np.linalg.norm(normal), 1e-300)
            is_flat = np.ptp(ring @ normal) < 1e-3
            normal *= np.sign(normal[np.abs(normal).argmax()])
            plane = (*np.round(normal, 2), round(float(ring[0] @ normal), 3))
            key = (body[face], *(plane if is_flat else (start,)))
            if key in rims:
                loop = _bridged(vertices, rims[key][1], loop)
            rims[key] = face, loop
    rims = [(face, loop) for face, loop in rims.values() if len(loop) <= LONGEST_RIM]
    if not rims:
        return vertices, faces, np.arange(len(faces)), 0
    caps = [loop[_least_area(vertices[loop])] for _, loop in rims]
    of = np.repeat(np.arange(len(caps)), [len(cap) for cap in caps])
    new, wanted = np.concatenate(caps), np.ones(len(caps), dtype=bool)
    if not all_bodies:
        # Panels may be a hole's lid or hide it. What is open has 1/2 on both sides.
        normal = _cross(vertices, new)
        area = np.maximum(_length(normal), 1e-300)
        off = OFF_SURFACE * normal / area
        sides = (vertices[new].mean(axis=1) + np.stack([off, -off])).reshape(-1, 3)
        winding = igl.fast_winding_number(vertices, faces, sides).reshape(2, -1)
        for k, cap in enumerate(caps):
            gap = (np.abs(winding[:, of == k] - 0.5) < 0.25).all(axis=0)
            wanted[k] = np.average(gap, weights=area[of == k, 0]) > 0.8
            if wanted[k]:
                added = igl.fast_winding_number(vertices, cap, sides)
                winding += added.reshape(2, -1)
    own = np.array([face for face, _ in rims])[of][wanted[of]]
    own = np.concatenate([np.arange(len(faces)), own])
    return vertices, np.concatenate([faces, new[wanted[of]]]), own, int(wanted.sum())


def _bridged(vertices, first, second):
    """Two loops as one, by a bridge there and back between their nearest vertices."""
    gaps = vertices[first][:, None] - vertices[second]
    i, j = np.unravel_index(_length(gaps).argmin(), (len(first), len(second)))
    turned = np.roll(second, -j)
    return np.concatenate([first[: i + 1], turned, turned[:1], first[i:]])


def _least_area(ring):
    """Least triangles (K - 2, 3) on a ring (K, 3) (Barequet and Sharir 1995)."""
    count = len(ring)
    cost, apex = np.zeros((count, count)), np.zeros((count, count), dtype=int)
    for gap in range(2, count):  # the best filling of each chain i..j, by its apex k
        i = np.arange(count - gap)[:, None]
        k, j = i + np.arange(1, gap), i + gap
        area = _length(np.cross(ring[k] - ring[i], ring[j] - ring[i]))[..., 0]
        total = cost[i, k] + cost[k, j] + area
        cost[i, j], apex[i, j] = total.min(1)[:, None], i + 1 + total.argmin(1)[:, None]
    chains, triangles = [(0, count - 1)], []
    while chains:
        i, j = chains.pop()
        if j - i > 1:
            triangles.append((i, apex[i, j], j))
            chains += [(i, apex[i, j]), (apex[i, j], j)]
    return np.array(triangles)


def _unite(vertices, faces, body):
    """Unite the closed bodies and cut out cavities; what is open stays beside them.

    Returns: vertices, faces, the face that each is a piece of, how many bodies were
        closed and how many were not (all, where a union would change the inside).
    """
    solids, cavities, rest = [], [], []
    order = np.argsort(body, kind="stable")
    groups = np.split(order, np.bincount(body).cumsum()[:-1])
    groups = [some for some in groups if len(some)]
    for some in groups:
        used, index = np.unique(faces[some], return_inverse=True)
        corners = index.reshape(-1, 3).astype(np.uint64)
        cavity = np.linalg.det(vertices[faces[some]]).sum() < 0
        corners = np.ascontiguousarray(corners[:, ::-1] if cavity else corners)
        mesh = manifold3d.Mesh64(vertices[used], corners, face_id=some.astype("u8"))
        solid = manifold3d.Manifold(mesh)
        if solid.status() == manifold3d.Error.NoError:
            (cavities if cavity else solids).extend(solid.decompose())
        else:
            rest.append(some)
    own = np.arange(len(faces))
    if not solids:
        return vertices, faces, own, 0, len(groups)
    union = manifold3d.Manifold.batch_boolean(solids, manifold3d.OpType.Add)
    union = manifold3d.Manifold.batch_boolean(
        [union, *cavities], manifold3d.OpType.Subtract
    ).to_mesh64()
    new, left = np.asarray(union.vert_properties), np.concatenate([own[:0], *rest])
    merged = np.concatenate([np.asarray(union.tri_verts, int), faces[left] + len(new)])
    new = np.vstack([new, vertices])
    # Bodies that cross themselves may come out otherwise than by winding number.
    points, normals, _ = _probes(vertices, faces, np.zeros_like(own), 1000)
    points = np.concatenate([points + s * 1e-3 * normals for s in (1, -1)])
    was = igl.fast_winding_number(vertices, faces, points) > 0.5
    now = igl.fast_winding_number(new, merged, points) > 0.5
    if np.mean(was != now) > 5e-3:
        return vertices, faces, own, 0, len(groups)
    own = np.concatenate([np.asarray(union.face_id, int), left])
    return new, merged, own, len(solids) + len(cavities), len(rest)


def _is_solid(vertices, faces):
    """Whether pseudonormals and winding number agree on the inside, everywhere."""
    rng = np.random.default_rng(0)
    near, normals, _ = _probes(vertices, faces, np.zeros(len(faces), int))
    near += normals * rng.choice([-0.01, -OFF_SURFACE, OFF_SURFACE, 0.01], (PROBES, 1))
    points = np.vstack([near, rng.uniform(-1.1 * RADIUS, 1.1 * RADIUS, (PROBES, 3))])
    kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
    sdf = igl.signed_distance(points, vertices, faces, kind)[0]
    winding = igl.fast_winding_number(vertices, faces, points)
    return bool(((sdf < 0) == (winding > 0.5))[np.abs(sdf) > OFF_SURFACE / 2].all())


def _probes(vertices, faces, patch, total=PROBES):
    """Points spread by area on each patch, the normals there, and their patches."""
    count, rng = patch.max() + 1, np.random.default_rng(0)
    cross = _cross(vertices, faces)
    area = np.maximum(_length(cross)[:, 0], 1e-300)
    order = np.argsort(patch, kind="stable")
    below = area[order].cumsum()
    where = np.repeat(np.arange(count), max(16, total // count))
    top = below[np.bincount(patch).cumsum() - 1][where]
    height = top - rng.random(len(where)) * np.bincount(patch, area)[where]
    face = order[np.searchsorted(below, height).clip(max=len(faces) - 1)]
    weights = rng.dirichlet(np.ones(3), len(face))[..., None]
    points = (weights * vertices[faces[face]]).sum(axis=1)
    return points, cross[face] / area[face, None], where


def _cross(vertices, faces):
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.cross(b - a, c - a)


def _length(vectors):
    return np.linalg.norm(vectors, axis=-1, keepdims=True)
