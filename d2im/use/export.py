"""What is taken away: meshes for viewers, editors and printers, maps, cameras.

Meshes leave without specks, with normals and the picture's colours; each format in the
axes and units that its readers expect.
"""

from __future__ import annotations

import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import trimesh
from PIL import Image
from scipy.ndimage import binary_erosion
from scipy.sparse import coo_array, diags_array
from scipy.spatial import cKDTree
from trimesh.visual.color import srgb_to_linear
from trimesh.visual.material import PBRMaterial

from ..camera import Camera
from ..data.files import write_whole
from ..fields import sample_maps
from .pictures import RATIO

if TYPE_CHECKING:
    from .reconstruction import Prediction, Reconstruction

KINDS = ("glb", "obj", "ply", "stl", "3mf")
Y_UP = ("glb", "obj")
MAP_FILES = [f"{n}.png" for n in "front back height height-8 mask picture".split()]
MAP_FILES += ["displacement.npy", "displacement.json", "camera.json"]
PRINTED = ("stl", "3mf")  # in mm, z up, standing on the floor
SIZE_MM = 100.0  # of a printed object's longest side, where none is said
SMALL = 0.01  # of the volume: parts and cavities below are specks
SMALL_OWN = 1e-4  # of a body of one's own: its knobs and wheels are no specks
SQUARE = 0.2  # cosine to the view from which a picture's colour is taken
SAME = 0.02  # world units behind the nearest surface that are still it
SOFT = 20  # times that unseen colours take the mean of their neighbours'
ALIKE = 0.3  # world units that count as much as opposite normals do half
Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])


def mesh_kind(path: str | Path) -> str:
    """The format of a mesh file, by its suffix.

    Raises: ValueError: none that is written.
    """
    kind = Path(path).suffix.lower()[1:]
    if kind not in KINDS:
        raise ValueError(f"a mesh is written as .glb, .obj, .ply, .stl or .3mf: {path}")
    return kind


def export_mesh(
    found: Reconstruction,
    path: str | Path,
    which: str = "final",
    *,
    keep: str = "large",
    color: str = "picture",
    faces: int | None = None,
    size_mm: float | None = None,
) -> trimesh.Trimesh:
    """Write a reconstruction's mesh, whole or not at all.

    A body of one's own goes back to its frame and unit. Else GLB and OBJ are y up, and
    PLY, STL and 3MF z up, which is how their readers take them.

    Args: path: file; its suffix (.glb, .obj, .ply, .stl, .3mf) chooses the format.
        which: "final", "base", or "colored" by the displacement.
        keep: "large" drops parts and closed cavities under 1 % of the volume, or 0.01 %
            of a body of one's own; "all" none.
        color: "picture" takes what it shows, and for the rest what is nearest to that;
            "none".
        faces: about so many at most, by fast_simplification.
        size_mm: the longest side; the object then stands on the floor, its middle at 0.
            By default 100 for STL and 3MF, unless the body is one's own.
    Returns: trimesh.Trimesh, as written; its metadata's "to_world" is the matrix (4, 4)
        from the file's frame.
    Raises: ValueError: another suffix or name, no base mesh, a size or number of faces
        that is none. ImportError: a package of the extra "makers" is missing.
    """
    check_export(path, keep, color, faces, size_mm)
    kind = mesh_kind(path)
    meshes = {"final": found.mesh, "base": found.base_mesh, "colored": found.mesh}
    whole = meshes.get(which)
    if whole is None:
        raise ValueError(f"there is no {which!r} mesh to write")
    mesh = kept_mesh(found, keep, whole)
    if faces is not None:  # which may break off specks
        mesh = kept_mesh(found, keep, simplified(mesh, faces))
    colors = None
    if which == "colored":
        colors = found.colored().visual.vertex_colors[:, :3] / 255
    elif color == "picture" and kind not in PRINTED:
        colors = picture_colors(found, whole)
    if colors is not None and len(mesh.vertices) != len(whole.vertices):
        colors = colors[cKDTree(whole.vertices).query(mesh.vertices)[1]]
    mesh = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    placement = _placement(found, mesh, kind, size_mm)
    mesh.apply_transform(placement)
    _write(mesh, Path(path), kind, colors)
    mesh.metadata["to_world"] = np.linalg.inv(placement)  # not into the file
    return mesh


def check_export(
    path: str | Path,
    keep: str = "large",
    color: str = "picture",
    faces: int | None = None,
    size_mm: float | None = None,
) -> None:
    """Tell before any work what `export_mesh` would refuse of its arguments.

    Raises: ValueError, ImportError: see `export_mesh`.
    """
    kind = mesh_kind(path)
    _one_of("keep", keep, "large", "all")
    _one_of("color", color, "picture", "none")
    if size_mm is not None and not 0 < size_mm < np.inf:
        raise ValueError(f"size_mm must be a positive length, got {size_mm}")
    if kind == "3mf":
        _need("lxml", ".3mf files")  # trimesh writes them by that
    if faces is not None:
        _check_faces(faces)


def _check_faces(faces):
    if faces < 4:
        raise ValueError(f"a closed mesh has 4 faces or more, got {faces}")
    _need("fast_simplification", "fewer faces")


def _need(package, what):
    if find_spec(package) is None:
        raise ImportError(f"{what} need {package}: pip install 'd2im[makers]'")


def _one_of(name, value, one, other):
    if value not in (one, other):
        raise ValueError(f'{name} must be "{one}" or "{other}", got {value!r}')


def _placement(found, mesh, kind, size_mm):
    """The matrix (4, 4) from the world to a file's frame."""
    if found.to_world is not None and size_mm is None:
        return np.linalg.inv(found.to_world)
    move = Z_UP if kind not in Y_UP else np.eye(4)
    if size_mm is None and kind in PRINTED:
        size_mm = SIZE_MM
    if size_mm is None:
        return move
    moved = trimesh.transform_points(mesh.vertices, move)
    low, high = moved.min(0), moved.max(0)
    up = 1 if move is not Z_UP else 2
    floor = (low + high) / 2
    floor[up] = low[up]
    scale = size_mm / (high - low).max()
    stand = np.diag([scale, scale, scale, 1.0])
    stand[:3, 3] = -scale * floor
    return stand @ move


def _write(mesh, path, kind, colors):
    options = {"include_normals": True} if kind in Y_UP else {}
    if kind == "glb":
        options["unitize_normals"] = True
    if colors is not None:
        if kind == "glb":  # its colours are linear light
            colors = srgb_to_linear(colors)
        rgba = np.full((len(colors), 4), 255, dtype=np.uint8)
        rgba[:, :3] = np.round(255 * colors)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=rgba)
    if kind == "glb":  # without a material viewers take it for metal
        matt = PBRMaterial(metallicFactor=0.0, roughnessFactor=0.9)
        if colors is None:
            mesh.visual = trimesh.visual.TextureVisuals(material=matt)
        else:
            mesh.visual.material = matt
    content = mesh.export(file_type=kind, **options)
    content = content.encode() if isinstance(content, str) else content
    write_whole(path, lambda file: file.write(content))


def small_share(found: Prediction) -> float:
    """Of the volume: what is dropped of a network's surface, and of one's own body."""
    return SMALL_OWN if found.way == "own" else SMALL


def kept_mesh(
    found: Reconstruction, keep: str = "large", mesh: trimesh.Trimesh | None = None
) -> trimesh.Trimesh:
    """A reconstruction's mesh as `export_mesh` writes it: without specks, or whole.

    Args: found: its final mesh is taken, or another `mesh` of it. keep: "large", "all".
    """
    mesh = found.mesh if mesh is None else mesh
    return mesh if keep == "all" else without_specks(mesh, small_share(found))


def without_specks(mesh: trimesh.Trimesh, share: float = SMALL) -> trimesh.Trimesh:
    """A closed mesh without parts and cavities under a share of its volume.

    Returns: the mesh itself where it has none, or where it is nothing else.
    """
    # By vertices: what has been simplified hangs on edges of three faces, too.
    joined = trimesh.graph.connected_component_labels(
        mesh.edges, node_count=len(mesh.vertices)
    )
    labels = joined[mesh.faces[:, 0]]
    a, b, c = np.moveaxis(np.asarray(mesh.triangles), 1, 0)
    volumes = np.bincount(labels, np.einsum("fi,fi->f", a, np.cross(b, c)) / 6)
    large = np.abs(volumes) >= share * abs(volumes.sum())
    if large.all() or not large.any():
        return mesh
    kept = mesh.copy()
    kept.update_faces(large[labels])
    kept.remove_unreferenced_vertices()
    return kept


def simplified(mesh: trimesh.Trimesh, faces: int) -> trimesh.Trimesh:
    """A mesh of about so many faces at most, by quadric error.

    Raises: ValueError: fewer than 4, or so few that nothing is left. ImportError:
        fast_simplification is missing.
    """
    _check_faces(faces)
    if faces >= len(mesh.faces):
        return mesh
    from fast_simplification import simplify

    vertices = np.asarray(mesh.vertices, dtype=np.float64)
    made = simplify(vertices, np.asarray(mesh.faces, dtype=int), target_count=faces)
    made = trimesh.Trimesh(*made, process=False)
    # Thin parts collapse to pairs of faces back to back, whose vertices have no normal.
    counted = {"axis": 0, "return_inverse": True, "return_counts": True}
    sides = np.sort(made.faces, axis=1)
    _, index, count = np.unique(sides, **counted)
    index, closed = index.ravel(), np.c_[made.faces, made.faces[:, 0]]
    turns = np.sign(np.diff(closed, axis=1)).prod(1)  # 1 or -1: which way round
    facing = np.bincount(index, turns)
    made.update_faces((count[index] != 2) | (facing[index] != 0))
    if not len(made.faces):
        raise ValueError(
            f"nothing of the mesh is left with {faces} faces: ask for more"
        )
    made.remove_unreferenced_vertices()
    return made


def picture_colors(prediction: Prediction, mesh: trimesh.Trimesh) -> np.ndarray | None:
    """Colours of a mesh's vertices: the picture's, and of the rest the nearest ones,
    softened.

    Args: prediction: of the picture. mesh: world frame, finer than the picture.
    Returns: (N, 3) in [0, 1], display RGB; None where the picture shows nothing of it.
    """
    camera, image = prediction.camera, prediction.image
    points = np.asarray(mesh.vertices)
    normals = np.asarray(mesh.vertex_normals)
    uv, depth = camera.project(points)
    view = camera.position - points
    view /= np.linalg.norm(view, axis=1, keepdims=True)
    cosine = np.einsum("ni,ni->n", normals, view)
    # A depth picture of the vertices themselves, coarser than they lie; within a cell a
    # slanting surface is its slope deep.
    side = max(len(image[0]) // 3, 8)
    cell = depth * camera.size / camera.focal / side
    deep = SAME + cell * np.sqrt(1 - cosine.clip(SQUARE, 1) ** 2) / cosine.clip(SQUARE)
    column, row = ((uv + 1) / 2 * side).astype(int).clip(0, side - 1).T
    nearest = np.full((side, side), np.inf)
    np.minimum.at(nearest, (row, column), depth)
    facing = (cosine > SQUARE) & (depth < nearest[row, column] + deep)
    inside = np.ones(image.shape[1:], dtype=bool)
    if prediction.mask is not None:  # its rim mixes with the background
        inside = binary_erosion(prediction.mask.numpy(), iterations=2, border_value=1)
    maps = torch.cat([image, torch.from_numpy(inside)[None].float()])[None]
    at = sample_maps(maps, torch.from_numpy(uv)[None].float())[0].T.numpy()
    seen = facing & (at[:, 3] > 0.99) & (np.abs(uv) < 1).all(1)
    if not seen.any():
        return None
    colors = at[:, :3].clip(0, 1)
    places = np.hstack([points, ALIKE * normals])
    _, like = cKDTree(places[seen]).query(places[~seen], k=min(8, seen.sum()))
    colors[~seen] = colors[seen][like.reshape(len(like), -1)].mean(1)
    # Neighbours may have found other ones: seams, softened along the mesh's edges.
    a, b = mesh.edges_unique.T
    joined = coo_array(
        (np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, a])), [len(seen)] * 2
    )
    count = joined.sum(1)
    at = np.flatnonzero(~seen & (count > 0))
    means = diags_array(1 / count[at]) @ joined.tocsr()[at]
    for _ in range(SOFT):
        colors[at] = means @ colors
    return colors


def export_maps(prediction: Prediction, folder: str | Path, kind: str = "glb") -> None:
    """Write the maps of a Prediction, and what they lie on.

    front.png and back.png (16 bits, 0 beside the object); displacement.npy, as
    predicted; displacement.json, which tells how grey becomes a displacement, also for
    Blender, and holds the camera; picture.png and mask.png, what the model saw;
    height.png (16 bits) and height-8.png, the front's height for slicers, white is
    high; camera.json, see `camera_file`, as `kind` is.
    """
    maps, folder = prediction.displacement.numpy(), Path(folder)
    camera = prediction.camera.resized(maps.shape[-1])  # its pixels are the maps'
    mask = np.ones(maps.shape[1:], dtype=bool)
    if prediction.mask is not None:
        mask = prediction.mask.numpy()
    shown = maps * mask
    scale = max(float(np.abs(maps).max()), 1e-9) / 32767
    height = -shown[0]  # what adds to the SDF lies farther in
    low = min(float(height.min()), 0.0)
    span = max(float(height.max()) - low, 1e-9)
    share = (height - low) / span
    grey = {"front": 32768 + np.round(shown[0] / scale)}
    grey["back"] = 32768 + np.round(shown[1] / scale)
    grey["height"] = np.round(65535 * share)
    pictures = {n: Image.fromarray(v.astype(np.uint16)) for n, v in grey.items()}
    pictures["height-8"] = Image.fromarray(np.round(255 * share).astype(np.uint8))
    pictures["mask"] = Image.fromarray(mask.astype(np.uint8) * 255)
    pixels = (prediction.image.permute(1, 2, 0).numpy() * 255).round()
    pictures["picture"] = Image.fromarray(pixels.astype(np.uint8))
    about = {
        "formula": "displacement = (grey - 32768) * scale",
        "scale": scale,
        "unit": "world; the object has radius 0.5, positive values add to the SDF",
        "sign": "positive is inward (a dent), negative outward (a bump)",
        "beside the mask": "0 in the pictures; displacement.npy holds the maps whole",
        "frame": prediction.frame,
        "camera": {k: np.asarray(v).tolist() for k, v in vars(camera).items()},
        "height": {
            "image": "height.png",
            "color_space": "Non-Color",
            "midlevel": -low / span,
            "strength": span / _scale(prediction),
            "unit": "of the exported mesh and camera.json, outward along the normal: "
            "(value - midlevel) * strength",
            "uv": "projected from the camera (camera.json), u right, v up",
            "of": "what the camera sees, read where it has moved to: project and move "
            "six times; read once, slopes are off by a tenth of the relief",
        },
    }
    write_whole(folder / "displacement.npy", lambda file: np.save(file, maps))
    for name, picture in pictures.items():
        write_whole(folder / f"{name}.png", partial(picture.save, format="PNG"))
    text = json.dumps(about, indent=1).encode()
    write_whole(folder / "displacement.json", lambda file: file.write(text))
    export_camera(prediction, folder / "camera.json", kind)


def _scale(prediction):
    """World units a unit of the frame that the exported mesh is in."""
    if prediction.to_world is None:
        return 1.0
    return float(np.cbrt(np.linalg.det(prediction.to_world[:3, :3])))


def export_cut_out(prediction: Prediction, path: str | Path) -> None:
    """Write the framed picture as a PNG whose alpha is its object's mask."""
    pixels = np.moveaxis(prediction.image.numpy(), 0, 2) * 255
    mask = np.ones(pixels.shape[:2], dtype=bool)
    if prediction.mask is not None:
        mask = prediction.mask.numpy()
    rgba = np.dstack([pixels.round(), 255 * mask]).astype(np.uint8)
    picture = Image.fromarray(rgba)
    write_whole(Path(path), partial(picture.save, format="PNG"))


def export_camera(prediction: Prediction, path: str | Path, kind: str = "glb") -> None:
    """Write `camera_file` as JSON."""
    text = json.dumps(camera_file(prediction, kind), indent=1).encode()
    write_whole(Path(path), lambda file: file.write(text))


def camera_file(prediction: Prediction, kind: str = "glb") -> dict:
    """The camera in the frame of an exported mesh, for other programs.

    Args: prediction: its `to_world` tells the mesh's frame, as `export_mesh` returns
        it; by default the world's, a GLB's. kind: of the mesh file; Blender turns GLB
        and OBJ upright when it imports them, the others it takes as they are.
    Returns: dict: K (3, 3), R (3, 3) and t (3,) with x_cam = R x + t (x right, y down,
        z forward), and size; to_world (4, 4), from the mesh's frame; framed_for, the
        ratio of the distance that the picture was framed for. "blender": matrix_world
        after an import, lens and sensor_width in mm, shift_x and shift_y; "three":
        matrixWorld by columns, fov in degrees, and x and y of the view offset that a
        shifted centre needs.
    """
    camera, to_world = prediction.camera, prediction.to_world
    rotation, shift, size = camera.rotation, camera.translation, camera.size
    if to_world is not None:
        scale = _scale(prediction)
        shift = (rotation @ to_world[:3, 3] + shift) / scale
        rotation = rotation @ (to_world[:3, :3] / scale)
    framed_for = prediction.framed_for or Camera(0, 0, RATIO, size)
    usual = Camera(0, 0, 1, framed_for.size)
    near = np.linalg.norm(framed_for.translation) / usual.translation[2]
    (x, y), focal = camera.centre, camera.focal
    pose = np.eye(4)
    pose[:3, :3] = (rotation * [[1], [-1], [-1]]).T  # x right, y up, z back
    pose[:3, 3] = -rotation.T @ shift
    return {
        "size": size,
        "K": [[focal, 0, x], [0, focal, y], [0, 0, 1]],
        "R": rotation.tolist(),
        "t": shift.tolist(),
        "to_world": np.asarray(np.eye(4) if to_world is None else to_world).tolist(),
        "framed_for": near * usual.focal / framed_for.focal,
        "blender": {
            "matrix_world": (Z_UP @ pose if kind in Y_UP else pose).tolist(),
            "lens": focal / size * 36,
            "sensor_width": 36,
            "shift_x": 0.5 - x / size,
            "shift_y": y / size - 0.5,
        },
        "three": {
            "matrixWorld": pose.T.ravel().tolist(),
            "fov": float(np.degrees(2 * np.arctan(size / 2 / focal))),
            "aspect": 1,
            "viewOffset": [0.5 * size - x, 0.5 * size - y],
        },
    }


def read_camera(path: str | Path, size: int) -> tuple[Camera, Camera]:
    """Read what `export_camera` wrote.

    Args: path: of the JSON file. size: pixels of the picture, as the model sees it.
    Returns: the Camera in the world frame, and a Camera for whose distance the picture
        is to be framed, see `reconstruction.predict`.
    Raises: FileNotFoundError: no such file. ValueError: it is no such camera.
    """
    try:
        about = json.loads(Path(path).read_text(encoding="utf-8"))
        named = ("K", "R", "t", "to_world", "size", "framed_for")
        found = [np.asarray(about[name], dtype=float) for name in named]
        intrinsic, rotation, shift, to_world, own_size, near = found
        (focal, skew, _), (_, other, _) = intrinsic[:2]
        if skew or not np.isclose(focal, other):
            raise ValueError("its pixels are not square")
        scale = np.cbrt(np.linalg.det(to_world[:3, :3]))
        finite = all(np.isfinite(part).all() for part in found)
        if not finite or focal <= 0 or own_size < 1 or scale <= 0:
            raise ValueError("a number is not finite, or a length not positive")
        rotation = rotation @ (to_world[:3, :3] / scale).T
        shift = scale * shift - rotation @ to_world[:3, 3]
        lens = focal, intrinsic[:2, 2], int(own_size)
        camera = Camera.from_matrices(rotation, shift, *lens).resized(size)
        return camera, Camera(0, 0, float(near), size)
    except OSError:
        raise
    except (LookupError, TypeError, ValueError, OverflowError, RecursionError) as error:
        wrong = f"{path} is no camera that d2im wrote: {error}"
        raise ValueError(wrong) from error
