"""A user's mesh: read, turned, repaired, normalised; it says what was done."""

import gc
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import igl
import numpy as np
import trimesh

from ..camera import yaw_rotation
from .dataset import check_repair
from .formats import SUFFIXES, read_surface
from .interior import OPENING, fill_interior
from .repair import one_way, orient, repair, weld

RADIUS = 0.5  # of the farthest vertex, world units
# Of a file; above, its memory is worth 0.1 s, and faces' colours show its textures.
MANY_FACES = 100_000
SPECKS = 0.01  # of the area, all together


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
    walls: int = 0  # open parts inside a body that nobody sees, dropped
    sheets: int = 0  # open parts that enclose nothing, made `thickness` thick
    containers: int = 0  # bodies that stay open, made as thick
    thickness: float = 0.0  # world units
    holes: int = 0  # boundaries closed by a cap
    united: int = 0  # faces after the union of bodies, 0 where there was none
    panels: int = 0  # other open parts, which enclose something together
    undone: int = 0  # repairs undone, since they removed what is seen
    specks: int = 0  # pieces far away that set the scale
    filled: float = 0.0  # share of the inside that was air
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
    caps: str = "auto",
    interior: str = "keep",
    opening: float = OPENING,
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> trimesh.Trimesh:
    """Read a mesh file and bring it into the world frame.

    Scenes are flattened with their transforms, UV seams merged, duplicate and
    degenerate faces dropped, parts turned outward, holes closed, open sheets thickened
    and overlapping closed bodies united. Nothing is dropped that is seen from outside:
    a repair that would is undone.

    Args: path: a GLB, GLTF, OBJ, PLY, STL or OFF file, in any unit.
        up, front: the file's axes toward the world's +y and +z, such as "z" and "-y"
            (Blender's). Where `front` is None: "-y" if up is along z, else "z".
        yaw: degrees about the y axis after that, from front (+z) toward +x.
        thickness: of open sheets, world units; None refuses them.
        caps: "close" closes all holes; "keep" closes none and makes what has one
            `thickness` thick; "auto" does so to cups, shades and bookcases alone, whose
            opening is large, deep and seen, and not from below.
        interior: "fill" counts as inside what cannot be reached from outside, and
            leaves out the surface in there; "keep" leaves cavities.
        opening: what "fill" takes for closed, world units, see `fill_interior`.
        stretch: factors along the world's axes, before it is normalised.
    Returns: trimesh.Trimesh, y up, normalised. `face_attributes` hold "part" (F,) ints
        and, where the file has materials, "color" (F, 3) in [0, 1], display RGB.
        Of its textures "worn" (F,) and "uv" (F, 8) and `metadata["worn"]` know.
        `metadata["solid"]`: it is one closed surface without overlap;
        `metadata["report"]`: a MeshReport; `metadata["to_world"]`: the matrix (4, 4)
        from the file's frame to this one.
    Raises: FileNotFoundError: no such file.
        ValueError: it cannot be read, holds no usable surface, or an open sheet where
            these are refused; or axes or a stretch that are none.
    """
    if not (np.shape(stretch) == (3,) and np.all(np.isfinite(stretch))):
        raise ValueError(f"stretch must be three numbers, got {stretch!r}")
    if min(stretch) <= 0:
        raise ValueError(f"stretch must be above 0, got {stretch!r}")
    turn = np.diag(stretch) @ turn_to_world(up, front, yaw)
    check_repair(caps, interior)
    if not 0 < opening < RADIUS:
        raise ValueError(f"opening must be in (0, 0.5), got {opening!r}")
    if thickness is not None and not 0 < thickness < RADIUS:
        raise ValueError(f"thickness must be in (0, 0.5) or None, got {thickness!r}")
    path = Path(path)
    read = read_surface(path)
    count, lost = len(read.faces), read.lost()
    raw = trimesh.Trimesh(read.vertices @ turn.T, read.faces, process=False)
    attributes = {"part": read.part, "color": read.color}
    attributes = {name: own for name, own in attributes.items() if own is not None}
    mesh, worn = normalise(raw), read.worn if count <= MANY_FACES else []
    to_world = mesh.metadata["to_world"] @ _matrix(turn)
    if worn:
        attributes |= _texture_maps(mesh, worn)
    del raw, read
    if count > MANY_FACES:  # trimesh's objects hold each other: 2 in 5 of the peak
        gc.collect()
    # After normalising, since its tolerances are absolute.
    arrays = np.array(mesh.vertices, dtype=float), np.array(mesh.faces, dtype=int)
    vertices, faces, own, welded = weld(*arrays, attributes["part"])
    if not len(faces) or igl.doublearea(vertices, faces).max() < 1e-16:
        raise ValueError(f"{path}: all faces are degenerate; d2im needs a surface")
    done = welded | {"specks": _warn_of_specks(path, vertices, faces)}
    part = attributes["part"][own]
    if not part.any():  # one in the file: its bodies
        part = igl.facet_components(faces)[1]
    vertices, faces, source, repaired = repair(vertices, faces, thickness, caps)
    done |= repaired
    if thickness is None and done["sheets"]:
        sheets = f"open sheets without an inside: {done['sheets']}"
        raise ValueError(f"{path}: {sheets}; give a thickness, or close the mesh")
    attributes = {k: v[own[source]] for k, v in attributes.items()}
    attributes["part"] = part[source]
    mesh = trimesh.Trimesh(vertices, faces, face_attributes=attributes, process=False)
    mesh.remove_unreferenced_vertices()
    mesh.metadata["to_world"] = to_world
    before, mesh = mesh, normalise(mesh)
    if worn:  # the maps follow
        uv = mesh.face_attributes["uv"].reshape(-1, 2, 4)
        uv[..., 3] += uv[..., :3] @ before.bounds.mean(axis=0)
        uv[..., :3] *= before.scale / mesh.scale  # diagonals
    if interior == "fill":
        mesh.metadata["solid"] = done["solid"]
        mesh, done["filled"] = fill_interior(mesh, opening)
        done["solid"] = mesh.metadata["solid"]
    report = MeshReport(count, thickness=thickness or 0.0, **done, **lost)
    mesh.metadata.update(solid=report.solid, report=report)
    if worn:
        mesh.metadata["worn"] = [(paint.texture, paint.tint) for paint in worn]
    return mesh


def _texture_maps(mesh, paints):
    """Which paint a face wears, -1 for none, and the map (2, 4) from (p, 1) to its uv.

    A map holds in the face's whole plane, and so for what repair makes of the face.
    """
    worn, maps = np.full(len(mesh.faces), -1), np.zeros((len(mesh.faces), 2, 4))
    for k, paint in enumerate(paints):
        corners = mesh.vertices[mesh.faces[paint.faces]]
        uv = np.nan_to_num(paint.uv, posinf=0, neginf=0)
        edges, steps = (a[:, 1:] - a[:, :1] for a in (corners, uv))
        (a, b), (_, c) = np.moveaxis(edges @ edges.swapaxes(1, 2), 0, 2)
        inverse = np.array([[c, -b], [-b, a]]) / np.maximum(a * c - b * b, 1e-24)
        slope = steps.swapaxes(1, 2) @ np.moveaxis(inverse, 2, 0) @ edges
        start = uv[:, 0] - (slope @ corners[:, 0, :, None])[..., 0]
        maps[paint.faces] = np.concatenate([slope, start[..., None]], axis=2)
        worn[paint.faces] = k
    return {"worn": worn, "uv": maps.reshape(-1, 8)}


def _warn_of_specks(path, vertices, faces):
    """Warn of small pieces far off, which set the scale; how many there are."""
    body = igl.facet_components(faces)[1]
    if not body.any():
        return 0
    area = np.bincount(body, igl.doublearea(vertices, faces))
    centre = np.stack([np.bincount(body, c) for c in vertices[faces].mean(axis=1).T], 1)
    centre /= np.bincount(body)[:, None]
    order = np.argsort(area)
    small = order[area[order].cumsum() < SPECKS * area.sum()]
    rest = vertices[faces[~np.isin(body, small)]].reshape(-1, 3)
    middle = (rest.min(axis=0) + rest.max(axis=0)) / 2
    reach = np.linalg.norm(rest - middle, axis=1).max()
    far = small[np.linalg.norm(centre[small] - middle, axis=1) > 2 * reach]
    if len(far):
        what = f"{len(far)} of {len(area)} pieces, {np.isin(body, far).sum()} faces"
        share = f"{area[far].sum() / area.sum():.1g} of the area"
        how = f"lie apart and make the rest {RADIUS / reach:.3g} times as small"
        warnings.warn(f"{path}: {what} and {share}, {how}; delete them", stacklevel=3)
    return len(far)


def turned_outward(mesh: trimesh.Trimesh) -> tuple[trimesh.Trimesh, dict[str, int]]:
    """A mesh's faces as `load_mesh` turns them, once each, and nothing else changed.

    Args: mesh: trimesh.Trimesh, in any frame and unit.
    Returns: trimesh.Trimesh, and how many faces were "turned", how many "duplicate".
    Raises: ValueError: the mesh has zero size.
    """
    scaled = normalise(mesh)  # tolerances are absolute
    arrays = np.array(scaled.vertices, dtype=float), np.array(mesh.faces, dtype=int)
    vertices, faces, _, done = weld(*arrays, np.zeros(len(mesh.faces), dtype=int))
    if not len(faces):
        return mesh, {}
    turned = orient(vertices, *one_way(vertices, faces))
    outward = trimesh.Trimesh(vertices, turned, process=False)
    unit = mesh.scale / scaled.scale  # diagonals
    outward.vertices = vertices * unit + (mesh.bounds[0] - unit * scaled.bounds[0])
    changed = int((turned[:, 0] != faces[:, 0]).sum())
    return outward, {"turned": changed, "duplicate": done["duplicate"]}


def normalise(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """Centre a mesh on its bounding box, its farthest vertex at radius 0.5.

    Args: mesh: trimesh.Trimesh; it is not changed.
    Returns: A moved copy, with its attributes and metadata, whose "to_world" is the
        matrix (4, 4) of all such moves so far.
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
    scale = RADIUS / radius
    moved.vertices = (mesh.vertices - centre) * scale
    move = np.diag([scale, scale, scale, 1.0])
    move[:3, 3] = -centre * scale
    moved.metadata["to_world"] = move @ mesh.metadata.get("to_world", np.eye(4))
    return moved


def _matrix(turn):
    whole = np.eye(4)
    whole[:3, :3] = turn
    return whole


def turn_to_world(up: str, front: str | None, yaw: float) -> np.ndarray:
    """Rotation (3, 3) from a file's axes to the world's; see `load_mesh`."""
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
