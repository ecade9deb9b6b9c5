"""A user's mesh: read, merge, orient, close, unite, normalise; it says what it did.

Files from the wild are closed bodies that overlap, open shells, loose sheets, or all of
these. Parts are turned outward, holes capped, sheets thickened and closed bodies united
(manifold3d). What is open after that stays a soup, whose sign comes from the winding
number (Jacobson et al. 2013).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import igl
import manifold3d
import numpy as np
import trimesh
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
RADIUS = 0.5  # of the farthest vertex, world units
NO_COLOR = (0.8, 0.8, 0.8)  # a plain part among coloured ones
# A texture's mean over a face is taken at its centroid and toward its corners.
TEXTURE_SAMPLES = np.array([[2, 2, 2], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / 6
# A solid has winding number 0 just outside its surface and 1 just inside. Asked at
# points PROBE_STEP off the surface, this many in a thousand may say otherwise.
PROBES = 4000
PROBE_STEP = 1e-5
PROBE_FAILURES = 1e-3
OFF_SURFACE = 1e-4  # where the two sides of a face are asked, world units
NEARLY_CLOSED = (
    0.75  # mean winding number behind a surface: 1/2 of a flat sheet, 1 of a
)
# closed body


def find_meshes(folder):
    """List the mesh files in a folder and below it.

    Args:
        folder: path.

    Returns:
        Sorted list of pathlib.Path.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no mesh in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; name one with mesh files")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        and not path.name.startswith(".")
    )
    if not found:
        raise ValueError(f"{folder}: no mesh here; d2im reads {', '.join(SUFFIXES)}")
    return found


@dataclass(frozen=True)
class MeshReport:
    """What was found in a mesh file and what was done; `str()` is a sentence of it.

    Attributes:
        faces, parts: of the file; a part is a piece joined by edges of two faces.
        duplicate, degenerate: faces dropped.
        turned: faces turned over.
        holes: boundaries closed by a cap.
        sheets: open parts that enclose nothing, made `thickness` (world units) thick.
        panels: open parts that enclose something only together, left open.
        leak: share of the area behind which the winding number finds no clear inside.
        united: faces after the bodies' union, 0 where they were not united.
        solid: the result is one closed surface without overlap.
    """

    faces: int
    parts: int
    duplicate: int
    degenerate: int
    turned: int
    holes: int
    sheets: int
    thickness: float
    panels: int
    leak: float
    united: int
    solid: bool

    def __str__(self):
        found = "all closed" if self.holes + self.sheets + self.panels == 0 else "open"
        if self.solid:
            found += ": one solid"
        elif self.panels:
            found += ": kept as a soup, its inside by winding number"
        else:
            found += ": crossing itself, a soup whose inside is by winding number"
        done = [
            (self.united, f"bodies united to {self.united:,} faces"),
            (self.duplicate, f"{_number(self.duplicate, 'duplicate face')} dropped"),
            (self.degenerate, f"{_number(self.degenerate, 'degenerate face')} dropped"),
            (self.turned, f"{_number(self.turned, 'face')} turned over"),
            (self.holes, f"{_number(self.holes, 'hole')} closed"),
            (
                self.sheets,
                f"{_number(self.sheets, 'sheet')} thickened to {self.thickness:g}",
            ),
            (self.panels, f"{_number(self.panels, 'panel')} left open"),
            (self.leak > 0.01, f"{self.leak:.0%} of the area faces an open hole"),
        ]
        head = (
            f"{_number(self.faces, 'face')} in {_number(self.parts, 'part')}, {found}"
        )
        return "; ".join([head, *(text for happened, text in done if happened)])


def load_mesh(path, up="y", front=None, yaw=0.0, thickness=0.005):
    """Read a mesh file and bring it into the world frame.

    Scenes are flattened with their transforms, UV seams merged, duplicate and
    degenerate faces dropped, parts turned outward, holes closed, open sheets thickened
    and overlapping closed bodies united.

    Args:
        path: a GLB, GLTF, OBJ, PLY, STL or OFF file, in any unit.
        up, front: the file's axes toward the world's +y and +z, such as "z" and "-y"
            (Blender's). Where `front` is None: "-y" if up is along z, else "z".
        yaw: degrees about the y axis after that, from front (+z) toward +x.
        thickness: of open sheets, world units; None refuses them.

    Returns:
        trimesh.Trimesh, y up, normalised. `face_attributes` hold "part" (F,) ints and,
        where the file has materials, "color" (F, 3) in [0, 1]. `metadata["solid"]`: it
        is one closed surface without overlap; `metadata["report"]`: a MeshReport.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, holds no usable surface, or an open sheet where
            these are refused; or axes that are none.
    """
    turn = _turn(up, front, yaw)
    if thickness is not None and not 0 < thickness < RADIUS:
        raise ValueError(f"thickness must be in (0, 0.5) or None, got {thickness!r}")
    path = Path(path)
    geometries, colors = _read(path)
    raw = trimesh.util.concatenate(
        [trimesh.Trimesh(g.vertices, g.faces, process=False) for g in geometries]
    )
    raw.remove_unreferenced_vertices()
    bad = int((~np.isfinite(raw.vertices).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"{path}: {bad} of {len(raw.vertices)} vertices are NaN or infinite;"
            " export it with finite ones"
        )
    size = np.ptp(raw.vertices, axis=0).max()
    if not 1e-30 < size < 1e30:  # squares of sizes are to stay finite
        raise ValueError(f"{path}: its size is {size:g}; export it at about 1 m")

    counts = [len(g.faces) for g in geometries]
    mesh = trimesh.Trimesh(raw.vertices @ turn.T, raw.faces, process=False)
    attributes = {"part": np.repeat(np.arange(len(counts)), counts)}
    if any(color is not None for color in colors):
        attributes["color"] = np.concatenate(
            [
                np.tile(NO_COLOR, (count, 1)) if color is None else color
                for color, count in zip(colors, counts, strict=True)
            ]
        )
    mesh = normalise(mesh)  # before merging, whose tolerance is absolute
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    source, duplicate = _proper_faces(mesh.faces)
    mesh.update_faces(source)
    degenerate = sum(counts) - len(source) - duplicate
    if not mesh.nondegenerate_faces().any():
        raise ValueError(f"{path}: all faces are degenerate; d2im needs a surface")
    vertices, faces, patch, turned = _orient(*_arrays(mesh))
    pairs = np.stack([attributes["part"][source], patch])
    attributes["part"][source] = np.unique(pairs, axis=1, return_inverse=True)[1]

    vertices, faces, own, patch, closed, done = _close(
        vertices, faces, patch, thickness
    )
    if thickness is None and done["sheets"]:
        raise ValueError(
            f"{path}: {_number(done['sheets'], 'open sheet')} without an inside;"
            " give a thickness for them, or a closed mesh"
        )
    source = source[own]
    united = _unite(vertices, faces, patch, closed)
    crossing = united is None
    if not crossing:
        vertices, faces, own = united
        source = source[own]
    mesh = trimesh.Trimesh(
        vertices,
        faces,
        face_attributes={name: a[source] for name, a in attributes.items()},
        process=False,
    )
    mesh.remove_unreferenced_vertices()
    solid = not crossing and bool(closed.all()) and _is_solid(mesh)
    if not solid:  # slivers hold a closed mesh together, but only hurt a soup
        proper = mesh.nondegenerate_faces()
        degenerate += int((~proper).sum())
        mesh.update_faces(proper)
    mesh = normalise(mesh)
    mesh.remove_unreferenced_vertices()
    report = MeshReport(
        faces=sum(counts),
        parts=1 + int(attributes["part"].max()),
        duplicate=duplicate,
        degenerate=degenerate,
        turned=turned,
        thickness=thickness or 0.0,
        united=0 if crossing or len(np.unique(patch)) == 1 else len(mesh.faces),
        solid=solid,
        **done,
    )
    mesh.metadata.update(solid=solid, report=report)
    return mesh


def normalise(mesh, reference=None):
    """Centre a mesh on its bounding box, its farthest vertex at radius 0.5.

    Args:
        mesh: trimesh.Trimesh; it is not changed.
        reference: a mesh whose centre and scale are used instead, so that a coarse and
            a detailed body share the detailed one's.

    Returns:
        A moved copy, with its attributes and metadata.

    Raises:
        ValueError: the mesh has zero size.
    """
    corners = (mesh if reference is None else reference).triangles.reshape(-1, 3)
    if len(corners) == 0 or not np.ptp(corners, axis=0).any():
        raise ValueError("a mesh of zero size cannot be normalised; give it a surface")
    centre = (corners.min(axis=0) + corners.max(axis=0)) / 2
    radius = np.linalg.norm(corners - centre, axis=1).max()
    moved = mesh.copy()
    moved.vertices = (mesh.vertices - centre) * (RADIUS / radius)
    return moved


def _read(path):
    """The file's triangle meshes, moved to their places, and their faces' colours."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a mesh file")
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: unknown kind; d2im reads {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; export it again")
    try:
        if kind == ".gltf":  # trimesh would read a model.gltf beside a broken one
            json.loads(path.read_bytes())
        scene = trimesh.load_scene(path, file_type=kind[1:], process=False)
        found = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh)]
        found = [g for g in found if len(g.faces)]
        colors = [_face_colors(g) for g in found]
    # Broken files make trimesh raise errors of any kind, with any text.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{path}: no readable {kind[1:].upper()} file ({reason}); export it again"
        ) from error
    if not found:
        raise ValueError(f"{path}: no face in it; d2im needs triangles, not points")
    if any(g.faces.min() < 0 or g.faces.max() >= len(g.vertices) for g in found):
        raise ValueError(f"{path}: a face names a vertex that is missing; export again")
    return found, colors


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
    sine, cosine = np.sin(np.deg2rad(yaw)), np.cos(np.deg2rad(yaw))
    about_y = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    return about_y @ np.stack([np.cross(y, z), y, z])


def _face_colors(mesh):
    """Colour of each face (F, 3) in [0, 1], or None where the file gives none."""
    visual = mesh.visual
    if visual.kind is None:
        return None
    if visual.kind != "texture":  # vertex or face colours
        return visual.face_colors[:, :3] / 255
    material = visual.material
    image = getattr(material, "baseColorTexture", getattr(material, "image", None))
    if image is None or visual.uv is None:
        return np.tile(material.main_color[:3] / 255, (len(mesh.faces), 1))
    uv = (TEXTURE_SAMPLES @ visual.uv[mesh.faces]).reshape(-1, 2)  # (F * 4, 2)
    texels = trimesh.visual.uv_to_color(uv, image)[:, :3] / 255
    tint = getattr(material, "baseColorFactor", None)
    tint = 1.0 if tint is None else tint[:3] / 255
    return texels.reshape(-1, len(TEXTURE_SAMPLES), 3).mean(axis=1) * tint


def _proper_faces(faces):
    """Indices of one of each set of duplicate faces, and how many others there were.

    A face and its mirror image are duplicates: a two-sided sheet becomes a sheet, a box
    exported with both its sides a box.
    """
    faces = np.sort(faces, axis=1)
    proper = np.flatnonzero((np.diff(faces, axis=1) > 0).all(axis=1))
    _, first = np.unique(faces[proper], axis=0, return_index=True)
    return proper[np.sort(first)], len(proper) - len(first)


def _orient(vertices, faces):
    """Turn faces over: each patch wound one way, its outer side outward.

    A patch is a piece joined by edges of two faces. A closed one is turned by the sign
    of its volume, an open one by the side from which more rays leave the mesh
    (Takayama et al. 2014).

    Returns:
        Vertices that no two patches share, faces, patch of each face (F,), number of
        faces turned.
    """
    before = faces
    faces, patch = igl.bfs_orient(before)
    area = np.linalg.norm(_cross(vertices, faces), axis=1) / 2
    # Where the faces of a patch disagree, it follows the larger part of its area.
    changed = np.bincount(patch, area * (faces != before).any(axis=1))
    other = changed > np.bincount(patch, area) / 2
    faces = np.where(other[patch, None], faces[:, ::-1], faces)
    shared, shared_vertices = faces, vertices
    vertices, faces = _split(vertices, faces, patch)
    count = patch.max() + 1
    owner = patch[_boundary(faces)[1]]
    is_open = np.bincount(owner, minlength=count) > 0
    # About its middle, so that an open patch seen from nowhere has a volume as well.
    weights = np.maximum(np.bincount(patch, area), 1e-300)
    centres = vertices[faces].mean(axis=1)
    middle = np.stack(
        [np.bincount(patch, area * c) / weights for c in centres.T], axis=1
    )
    volume = np.bincount(patch, np.linalg.det(vertices[faces] - middle[patch, None]))
    inverted = volume < -1e-3 * weights**1.5  # a flat one stays as it is
    points, normals, where = _probes(vertices, faces, patch)
    if is_open.any():
        rng = np.random.default_rng(0)
        rays = rng.standard_normal(normals.shape)
        rays += normals * np.linalg.norm(rays, axis=1, keepdims=True)  # about cosine
        scene = EmbreeScene()
        TriangleMesh(scene, vertices[faces].astype(np.float32))
        votes = 0
        for side in (1, -1):
            origins = points + side * OFF_SURFACE * normals
            hit = scene.run(
                origins.astype(np.float32), (side * rays).astype(np.float32)
            )
            votes += side * np.bincount(where, hit < 0, minlength=count)
        inverted = np.where(is_open & (votes != 0), votes < 0, inverted)
    hollow = inverted & ~is_open
    if hollow.any() and not hollow.all():  # wholly inside another: it is its cavity
        ask = hollow[where]
        rest = np.ascontiguousarray(faces[~hollow[patch]])
        winding = np.abs(igl.fast_winding_number(vertices, rest, points[ask]))
        outside = np.bincount(where[ask], winding < 0.5, minlength=count)
        inverted &= ~hollow | (outside > 0)
    faces = np.where(inverted[patch, None], shared[:, ::-1], shared)
    turned = int((faces[:, 0] != before[:, 0]).sum())
    # Patches that meet in edges of more faces, and close each other, are one.
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    _, edge = np.unique(edges, axis=0, return_inverse=True)
    links = (np.ones(len(edges)), (patch.repeat(3), count + edge.reshape(-1)))
    _, cluster = connected_components(
        coo_matrix(links, shape=(count + len(edges),) * 2), directed=False
    )
    cluster = cluster[patch]
    torn = np.isin(cluster, cluster[_boundary(faces)[1]])
    patch = np.where(torn, cluster.max() + 1 + patch, cluster)
    patch = np.unique(patch, return_inverse=True)[1].reshape(-1)
    return *_split(shared_vertices, faces, patch), patch, turned


def _split(vertices, faces, patch):
    """Vertices and faces (F, 3) such that no two patches share a vertex."""
    corners = np.stack([patch.repeat(3), faces.ravel()], axis=1)
    corners, index = np.unique(corners, axis=0, return_inverse=True)
    return vertices[corners[:, 1]], np.ascontiguousarray(index.reshape(-1, 3))


def _close(vertices, faces, patch, thickness):
    """Cap the holes of what is nearly closed and thicken what encloses nothing.

    Returns:
        vertices, faces, the earlier face each comes from (F,), patch of each face (F,),
        whether each patch is closed now, and the counts of the report.
    """
    count, own = patch.max() + 1, np.arange(len(faces))
    edges, edge_face = _boundary(faces)
    owner = patch[edge_face]
    closed = np.bincount(owner, minlength=count) == 0
    done = {"holes": 0, "sheets": 0, "panels": 0, "leak": 0.0}
    if closed.all():
        return vertices, faces, own, patch, closed, done
    points, normals, where = _probes(vertices, faces, patch)
    behind = points - OFF_SURFACE * normals
    asked = np.flatnonzero(~closed[where])
    winding = np.ones(len(points))
    winding[asked] = igl.fast_winding_number(vertices, faces, behind[asked])
    totals = np.bincount(where, minlength=count)
    together = np.bincount(where, winding, minlength=count) / totals
    # Behind a flat sheet the winding number is 1/2, in a closed body 1.
    alone = np.full(count, 0.5)
    groups = np.split(
        np.argsort(patch, kind="stable"), np.bincount(patch).cumsum()[:-1]
    )
    for k in np.flatnonzero(~closed):
        if len(groups[k]) > 2:
            some = np.ascontiguousarray(faces[groups[k]])
            alone[k] = igl.fast_winding_number(
                vertices, some, behind[where == k]
            ).mean()
    bodies = ~closed & (alone > NEARLY_CLOSED)
    # Walls inside a body: 3/2 behind and 1/2 before them would blur its inside.
    walls = ~closed & ~bodies & (together > 2 - NEARLY_CLOSED)
    if walls.any() and not walls.all():
        keep = np.flatnonzero(~walls[patch])
        vertices, index = np.unique(vertices, axis=0, return_inverse=True)
        faces = index.reshape(-1)[faces[keep]]
        vertices, faces, patch, _ = _orient(vertices, faces)
        vertices, faces, own, *rest = _close(vertices, faces, patch, thickness)
        return vertices, faces, keep[own], *rest
    sheets = ~closed & ~bodies & (together < NEARLY_CLOSED)
    panels = ~closed & ~bodies & ~sheets

    new_faces, new_own = [], []
    found = _loops(vertices, edges, edge_face, owner, bodies[owner])
    caps = [_cap(vertices, loops) for loops, _ in found]
    if panels.any() and caps:  # these may be the lid of a hole, or hide it
        lids = vertices[np.concatenate(caps)].mean(axis=1)
        gaps = np.abs(igl.fast_winding_number(vertices, faces, lids) - 0.5)
        splits = np.cumsum([len(cap) for cap in caps])[:-1]
        needed = [np.median(gap) < 0.25 for gap in np.split(gaps, splits)]
    else:
        needed = [True] * len(caps)
    for cap, (loops, face), wanted in zip(caps, found, needed, strict=True):
        if wanted:
            new_faces.append(cap)
            new_own.append(np.full(len(cap), face))
            done["holes"] += len(loops)
        else:
            panels[patch[face]] = True
    closed |= (bodies & ~panels) | sheets
    done.update(sheets=int(sheets.sum()), panels=int(panels.sum()))
    if panels.any():
        ask = panels[where]
        weak = np.bincount(where[ask], winding[ask] < NEARLY_CLOSED, minlength=count)
        area = np.linalg.norm(_cross(vertices, faces), axis=1)
        share = np.bincount(patch, area) / area.sum()
        done["leak"] = float((share * weak / totals).sum())
    if sheets.any() and thickness is not None:
        flat = sheets[patch]
        normal = np.zeros_like(vertices)
        for k in range(3):
            np.add.at(normal, faces[flat, k], _cross(vertices, faces[flat]))
        normal *= thickness / 2 / np.maximum(_length(normal), 1e-300)
        size = len(vertices)
        vertices = np.vstack([vertices + normal, vertices - normal])
        rim = sheets[owner]
        a, b = edges[rim].T
        sides = np.stack([b, a, a + size, b, a + size, b + size], 1).reshape(-1, 3)
        new_faces += [faces[flat][:, ::-1] + size, sides]
        new_own += [own[flat], edge_face[rim].repeat(2)]
    faces = np.concatenate([faces, *new_faces])
    own = np.concatenate([own, *new_own])
    return vertices, faces, own, patch[own], closed, done


def _boundary(faces):
    """Directed edges (B, 2) without a partner the other way, and their faces (B,)."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    sign = np.where(edges[:, 0] < edges[:, 1], 1, -1)
    _, index = np.unique(np.sort(edges, axis=1), axis=0, return_inverse=True)
    index = index.reshape(-1)
    lonely = np.flatnonzero(np.bincount(index, sign)[index] * sign > 0)
    lonely = lonely[np.unique(index[lonely], return_index=True)[1]]
    return edges[lonely], lonely // 3


def _loops(vertices, edges, edge_face, owner, wanted):
    """Boundary loops of the wanted edges: lists of those in one plane, with a face."""
    edges, edge_face, owner = edges[wanted], edge_face[wanted], owner[wanted]
    into, out = (np.argsort(edges[:, k], kind="stable") for k in (1, 0))
    follower = np.empty(len(edges), dtype=int)
    follower[into] = out
    groups, seen = {}, np.zeros(len(edges), dtype=bool)
    for start in range(len(edges)):
        loop, edge = [], start
        while not seen[edge]:
            seen[edge] = True
            loop.append(edges[edge, 0])
            edge = follower[edge]
        if len(loop) < 3:
            continue
        loop = np.array(loop[::-1])  # a cap runs against its rim
        ring = vertices[loop]
        normal = np.cross(ring - ring[0], np.roll(ring, -1, 0) - ring[0]).sum(0)
        normal /= max(np.linalg.norm(normal), 1e-300)
        if np.ptp(ring @ normal) < 1e-3:  # a hole in a lid lies in the lid's plane
            normal *= np.sign(normal[np.abs(normal).argmax()])
            plane = (*np.round(normal, 2), round(float(ring[0] @ normal), 3))
        else:
            plane = (start,)
        groups.setdefault((owner[start], *plane), ([], edge_face[start]))[0].append(
            loop
        )
    return list(groups.values())


def _cap(vertices, loops):
    """Triangles (T, 3) that fill loops lying near one plane, holes left out."""
    rings = [vertices[loop] - vertices[loops[0][0]] for loop in loops]
    normal = sum(np.cross(ring, np.roll(ring, -1, axis=0)).sum(0) for ring in rings)
    # Columns 1 and 2 of a full basis whose first vector is the normal.
    basis = np.linalg.svd(normal[None])[2][1:]
    if np.linalg.det(np.stack([*basis, normal])) < 0:
        basis = basis[::-1]
    flat = [np.ascontiguousarray(ring @ basis.T) for ring in rings]
    return np.concatenate(loops)[manifold3d.triangulate(flat)].astype(int)


def _unite(vertices, faces, patch, closed):
    """The closed patches' union with the open ones, or None where it fails.

    Returns:
        vertices, faces and the face that each is a piece of.
    """
    bodies, cavities, rest = [], [], []
    order = np.argsort(patch, kind="stable")
    for some in np.split(order, np.bincount(patch).cumsum()[:-1]):
        used, index = np.unique(faces[some], return_inverse=True)
        corners = index.reshape(-1, 3).astype(np.uint64)
        cavity = np.linalg.det(vertices[faces[some]]).sum() < 0
        body = manifold3d.Manifold(
            manifold3d.Mesh64(
                vertices[used],
                np.ascontiguousarray(corners[:, ::-1]) if cavity else corners,
                face_id=some.astype(np.uint64),
            )
        )
        if closed[patch[some[0]]] and body.status() == manifold3d.Error.NoError:
            (cavities if cavity else bodies).extend(body.decompose())
        else:
            rest.append(some)
    if not bodies:
        return None
    union = manifold3d.Manifold.batch_boolean(bodies, manifold3d.OpType.Add)
    if cavities:
        union = manifold3d.Manifold.batch_boolean(
            [union, *cavities], manifold3d.OpType.Subtract
        )
    union = union.to_mesh64()
    new, rest = np.asarray(union.vert_properties), np.concatenate([[], *rest])
    rest = rest.astype(int)
    merged = np.concatenate([np.asarray(union.tri_verts, int), faces[rest] + len(new)])
    own = np.concatenate([np.asarray(union.face_id, dtype=int), rest])
    new = np.vstack([new, vertices])
    # Bodies that cross themselves may come out otherwise than by winding number.
    points, normals, _ = _probes(vertices, faces, np.zeros(len(faces), int), 1000)
    points = np.concatenate([points + s * 1e-3 * normals for s in (1, -1)])
    was, now = (
        igl.fast_winding_number(*arrays, points) > 0.5
        for arrays in ((vertices, faces), (new, merged))
    )
    return (new, merged, own) if np.mean(was != now) < 5e-3 else None


def _is_solid(mesh):
    """Whether the winding number is 0 just outside the surface and 1 just inside."""
    vertices, faces = _arrays(mesh)
    if len(_boundary(faces)[0]):
        return False
    points, normals, _ = _probes(vertices, faces, np.zeros(len(faces), int))
    outside = igl.fast_winding_number(vertices, faces, points + PROBE_STEP * normals)
    inside = igl.fast_winding_number(vertices, faces, points - PROBE_STEP * normals)
    wrong = (np.abs(outside) > 0.5) | (np.abs(inside - 1) > 0.5)
    return bool(wrong.mean() <= PROBE_FAILURES)


def _probes(vertices, faces, patch, total=PROBES):
    """Points spread by area on each patch, the normals there, and their patches."""
    count = patch.max() + 1
    each = max(16, total // count)
    order = np.argsort(patch, kind="stable")
    cross = _cross(vertices, faces[order])
    area = np.maximum(_length(cross)[:, 0], 1e-300)
    below = area.cumsum()
    last = np.bincount(patch).cumsum() - 1
    low = np.concatenate([[0], below[last[:-1]]])
    rng = np.random.default_rng(0)
    where = np.repeat(np.arange(count), each)
    share = (np.arange(len(where)) % each + rng.random(len(where))) / each
    height = low[where] + share * (below[last] - low)[where]
    first = np.concatenate([[0], last[:-1] + 1])
    face = np.searchsorted(below, height).clip(first[where], last[where])
    a, b, c = np.moveaxis(vertices[faces[order[face]]], 1, 0)
    u, v = rng.random((2, len(face), 1))
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    return a + u * (b - a) + v * (c - a), cross[face] / area[face, None], where


def _cross(vertices, faces):
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.cross(b - a, c - a)


def _length(vectors):
    return np.linalg.norm(vectors, axis=1, keepdims=True)


def _number(count, noun):
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _arrays(mesh):
    return np.asarray(mesh.vertices, dtype=float), np.asarray(mesh.faces, dtype=int)
