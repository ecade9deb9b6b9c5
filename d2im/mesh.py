"""A user's mesh: read, merge, orient, unite, normalise; it says what it did.

Files from the wild are closed bodies that overlap, or open sheets, or both. Where all
is closed, the bodies are united (manifold3d) and the result is one solid; anything
else stays a soup, whose sign comes from the winding number (Jacobson et al. 2013).
"""

import json
from pathlib import Path

import igl
import manifold3d
import numpy as np
import trimesh
from scipy.ndimage import maximum_filter, minimum_filter
from skimage.measure import marching_cubes

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
RADIUS = 0.5  # of the farthest vertex, world units
HALF_BOX = 0.55  # sampling and extraction cover [-0.55, 0.55]^3
NO_COLOR = (0.8, 0.8, 0.8)  # a plain part among coloured ones
# A texture's mean over a face is taken at its centroid and toward its corners.
TEXTURE_SAMPLES = np.array([[2, 2, 2], [4, 1, 1], [1, 4, 1], [1, 1, 4]]) / 6
# A solid has winding number 0 just outside its surface and 1 just inside. Asked at
# points PROBE_STEP off the surface, this many in a thousand may say otherwise.
PROBES = 10_000
PROBE_STEP = 1e-5
PROBE_FAILURES = 1e-3


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


def load_mesh(path, up="y", yaw=0.0):
    """Read a mesh file and bring it into the world frame.

    Scenes are flattened with their transforms, UV seams merged, duplicate and
    degenerate faces dropped, bodies turned outward, overlapping closed bodies united.

    Args:
        path: a GLB, GLTF, OBJ, PLY, STL or OFF file.
        up: "y", or "z" where the file has z up and its front toward -y (Blender).
        yaw: degrees about the y axis after that, from front (+z) toward +x.

    Returns:
        trimesh.Trimesh, y up, normalised. `face_attributes` hold "part" (F,) ints and,
        where the file has materials, "color" (F, 3) in [0, 1]. `metadata["solid"]`: it
        is one closed surface without overlap; `metadata["report"]`: what was done.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it cannot be read, or holds no usable surface; or an unknown `up`.
    """
    if up not in ("y", "z"):
        raise ValueError(f'up must be "y" or "z", the axis up in the file, not {up!r}')
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
    mesh = trimesh.Trimesh(
        raw.vertices @ _turn(up, yaw).T,
        raw.faces,
        face_attributes={"part": np.repeat(np.arange(len(counts)), counts)},
        process=False,
    )
    if any(color is not None for color in colors):
        mesh.face_attributes["color"] = np.concatenate(
            [
                np.tile(NO_COLOR, (count, 1)) if color is None else color
                for color, count in zip(colors, counts, strict=True)
            ]
        )
    mesh = normalise(mesh)  # before merging, whose tolerance is absolute
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    mesh.update_faces(_proper_faces(mesh.faces))
    proper = mesh.nondegenerate_faces()
    if not proper.any():
        raise ValueError(f"{path}: all faces are degenerate; d2im needs a surface")
    turned, bodies = _orient(mesh)
    pairs = np.stack([mesh.face_attributes["part"], bodies])
    mesh.face_attributes["part"] = np.unique(pairs, axis=1, return_inverse=True)[1]
    parts = 1 + int(mesh.face_attributes["part"].max())

    solid, found = _unite(mesh)
    if solid is None:  # slivers hold a closed mesh together, but only hurt a soup
        mesh.update_faces(proper)
        found += ": kept as a soup, its inside by winding number"
    dropped = sum(counts) - len(mesh.faces)
    mesh = normalise(mesh if solid is None else solid)
    mesh.remove_unreferenced_vertices()
    report = f"{_number(sum(counts), 'face')} in {_number(parts, 'part')}, {found}"
    if dropped:
        report += f"; {_number(dropped, 'face')} dropped, duplicate or degenerate"
    if turned:
        report += f"; {_number(turned, 'face')} turned over"
    mesh.metadata.update(solid=solid is not None, report=report)
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


def solidify(mesh, resolution=128):
    """Make a closed mesh of a soup: marching cubes on its signed distance.

    Sheets thinner than a cell, about 1.1 / resolution, may be lost.

    Args:
        mesh: trimesh.Trimesh, normalised.
        resolution: cells along an axis of [-0.55, 0.55]^3, a multiple of 4.

    Returns:
        trimesh.Trimesh with the nearest faces' attributes.

    Raises:
        ValueError: the resolution is no multiple of 4, or nothing is enclosed.
    """
    if resolution < 8 or resolution % 4:
        raise ValueError(f"resolution must be 8, 12, 16, ..., got {resolution}")
    cell = 2 * HALF_BOX / resolution
    coarse = _distance(mesh, _centres(resolution // 4)).reshape((resolution // 4,) * 3)
    # A fine centre lies up to 1.5 sqrt(3) cells from its coarse one, and the surface's
    # crossings need its neighbours. A hole is closed where the winding number passes
    # 1/2, which may be far from every face: the sign changes there.
    near = np.abs(coarse) < 3 * np.sqrt(3) * cell
    near |= (minimum_filter(coarse, 3) < 0) & (maximum_filter(coarse, 3) > 0)
    sdf, near = (a.repeat(4, 0).repeat(4, 1).repeat(4, 2) for a in (coarse, near))
    sdf[near] = _distance(mesh, _centres(resolution)[near.reshape(-1)])
    sdf = np.pad(sdf[1:-1, 1:-1, 1:-1], 1, constant_values=cell)
    if not sdf.min() < 0:
        raise ValueError(
            "the mesh encloses nothing; give a closed or nearly closed one"
        )
    vertices, faces, _, _ = marching_cubes(sdf, 0.0)
    closed = trimesh.Trimesh((vertices + 0.5) * cell - HALF_BOX, faces, process=False)
    _, nearest, _ = igl.point_mesh_squared_distance(
        closed.triangles_center, *_arrays(mesh)
    )
    for name, values in mesh.face_attributes.items():
        closed.face_attributes[name] = values[nearest]
    solid = closed.is_watertight and _is_solid(closed)
    report = f"closed by marching cubes at {resolution}^3 to {len(faces):,} faces"
    closed.metadata.update(solid=solid, report=report)
    return closed


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


def _turn(up, yaw):
    """Rotation (3, 3) from the file's frame to the world's."""
    sine, cosine = np.sin(np.deg2rad(yaw)), np.cos(np.deg2rad(yaw))
    about_y = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    z_up = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]])  # z -> y, -y -> z
    return about_y @ z_up if up == "z" else about_y


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
    """Indices of the faces with three corners, one of each set of duplicates.

    A face and its mirror image both stay: together they are a two-sided sheet, which
    encloses nothing, while one of them alone would have an inside.
    """
    start = faces.argmin(axis=1)[:, None]
    turned = np.take_along_axis(faces, (start + np.arange(3)) % 3, axis=1)
    _, first = np.unique(turned, axis=0, return_index=True)
    first.sort()
    return first[(np.diff(np.sort(faces[first], axis=1)) > 0).all(axis=1)]


def _orient(mesh):
    """Turn faces over, in place: each body wound one way, closed ones outward.

    Returns:
        The number of faces turned and each face's body (F,).
    """
    vertices, before = _arrays(mesh)
    faces, body = igl.bfs_orient(before)
    size = np.bincount(body)
    area = np.bincount(body, mesh.area_faces)
    # A body whose faces disagree follows the larger part of its own area.
    changed = np.bincount(body, mesh.area_faces * (faces != before).any(axis=1))
    faces = np.where((changed > area / 2)[body, None], faces[:, ::-1], faces)

    pairs = np.bincount(body[mesh.face_adjacency[:, 0]], minlength=len(size))
    triangles = vertices[faces]
    volume = np.bincount(body, np.linalg.det(triangles) / 6)
    inverted = (2 * pairs == 3 * size) & (volume < 0)
    rest = np.ascontiguousarray(faces[~inverted[body]])
    if inverted.any() and len(rest):  # an inverted body inside another is its cavity
        _, first = np.unique(body, return_index=True)
        winding = igl.fast_winding_number(vertices, rest, triangles[first, 0])
        inverted &= winding < 0.5
    mesh.faces = np.where(inverted[body, None], faces[:, ::-1], faces)
    return int((mesh.faces[:, 0] != before[:, 0]).sum()), body


def _unite(mesh):
    """The closed bodies' union as one solid, or None; and what was found."""
    vertices, faces = _arrays(mesh)
    identity = np.arange(len(faces), dtype=np.uint64)
    closed = manifold3d.Manifold(
        manifold3d.Mesh64(vertices, faces.astype(np.uint64), face_id=identity)
    )
    # Two-sided sheets are closed as well, and vanish: the area tells.
    if closed.status() != manifold3d.Error.NoError or not np.isclose(
        closed.surface_area(), mesh.area
    ):
        return None, "not all closed"
    bodies = closed.decompose()
    volumes = [body.volume() for body in bodies]
    if len(bodies) > 1 and min(volumes) > 0:  # a cavity stays what it is
        closed = manifold3d.Manifold.batch_boolean(bodies, manifold3d.OpType.Add)
    result = closed.to_mesh64()
    source = np.asarray(result.face_id, dtype=int)
    solid = trimesh.Trimesh(
        result.vert_properties,
        result.tri_verts,
        face_attributes={k: v[source] for k, v in mesh.face_attributes.items()},
        process=False,
    )
    low, high = min(max(volumes), sum(volumes)), sum(volumes)
    if (
        closed.status() == manifold3d.Error.NoError
        and low * (1 - 1e-6) < closed.volume() < high * (1 + 1e-6)
        and np.allclose(solid.bounds, mesh.bounds)
        and _is_solid(solid)
    ):
        change = "one solid"
        if len(source) != len(faces):
            change = f"overlaps united to one solid of {len(source):,} faces"
        return solid, f"all closed: {change}"
    return None, "closed but crossing itself"


def _is_solid(mesh):
    """Whether the winding number is 0 just outside the surface and 1 just inside."""
    points, face = trimesh.sample.sample_surface(mesh, PROBES, seed=0)
    step = PROBE_STEP * mesh.face_normals[face]
    outside = igl.fast_winding_number(*_arrays(mesh), points + step)
    inside = igl.fast_winding_number(*_arrays(mesh), points - step)
    wrong = (np.abs(outside) > 0.5) | (np.abs(inside - 1) > 0.5)
    return bool(wrong.mean() <= PROBE_FAILURES)


def _distance(mesh, points):
    """Signed distance (P,) by the soup's road, right for solids as well."""
    squared, _, _ = igl.point_mesh_squared_distance(points, *_arrays(mesh))
    winding = igl.fast_winding_number(*_arrays(mesh), points)
    return np.sqrt(squared) * np.where(winding > 0.5, -1.0, 1.0)


def _centres(resolution):
    """Centres (R^3, 3) of the cells of [-0.55, 0.55]^3, z fastest."""
    axis = ((np.arange(resolution) + 0.5) / resolution - 0.5) * (2 * HALF_BOX)
    return np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def _number(count, noun):
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _arrays(mesh):
    return np.asarray(mesh.vertices, dtype=float), np.asarray(mesh.faces, dtype=int)
