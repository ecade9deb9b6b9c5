"""ShapeNet as others published it: DISN, and Occupancy Networks with Choy's views.

Examples are those of `dataset.make_example`, without coarse body, in our world, with

    similarity (5,): yaw in degrees, scale, shift. A point x of ShapeNet's frame is
    scale R(yaw) x + shift in the world, its distance times scale; cameras follow, so
    that it keeps its pixel;
    estimated: the members that the source lacks and that are made here;
    source: the file of the samples;
    left_out (n, 3), where there are any: of each view that does not fit the points its
    number in the source and both shares of `view_misfit`. The others are numbered
    anew, without gaps; `ShapeDataset.view_numbers` tells how the source numbers them.

    member     DISN                           Occupancy Networks
    sdf        stored                         sign stored; distance to the point cloud
    gradients  slope over 16 neighbours       from the nearest point of the cloud
    mask       alpha                          what is not white; Choy's PNG: alpha
    normals    stored, 8 bit                  of the cloud
    depth      samples put on the surface     of the cloud
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

import numpy as np
from PIL import Image
from scipy.ndimage import (
    binary_dilation,
    binary_fill_holes,
    distance_transform_edt,
    minimum_filter,
)
from scipy.spatial import cKDTree
from trimesh.visual.color import srgb_to_linear

from ..camera import Camera, yaw_rotation
from ..sampling import density_weights
from .dataset import (
    INDEX_COLUMNS,
    keep_settings,
    npy_array,
    read_index,
    record,
    safe_id,
    write_example,
)
from .files import one_line
from .locks import hold

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from types import ModuleType

YAW = -90.0  # brings the front, +x by the README of ShapeNetCore.v1, to +z; v2: 180
NEIGHBOURS = 16  # of a slope: 8 and 24 err more on 32,768 points
LARGEST_MEMBER = 5e7  # bytes of an array; the published ones have a few millions
LARGEST_PICTURE = 4096  # pixels of a side; the published ones have 137 and 224
SAME_SURFACE = 0.04  # world units of depth within 2 pixels
# Of views of chairs that fit, at most 0.002 was off; of those whose camera was turned
# by 45 degrees or shifted by 0.1, at least 0.088.
MISFIT = 0.05


def read_disn(
    root: str | Path,
    category: str,
    split: str | None,
    *,
    variant: str = "easy",
    views: Sequence[int] | None = 36,
    iso: float = 0.0,
    **options,
) -> Iterator:
    """Read DISN's data: samples of signed distance, pictures and normals.

    Args: root: folder (links will do) of sdf/<category>/<id>/ori_sample.h5,
            {image,normal}/<category>/<id>/<variant>/, lists/<category>_<split>.lst.
        category: "03001627". split: "train" or "test". variant: "easy" or "hard".
        views: how many of the 36.
        iso: taken off the stored distances: 0 in D2IM-Net, 0.003 in DISN.
        options: size, pixels to bring pictures to (None keeps 224); yaw, degrees from
            +z toward +x, see `check_yaw`; skip, ids that are not to be read again;
            only, ids that alone are read; misfit, the share (0.05) above which a view
            is left out, see `view_misfit`, 1 keeps all.
    Yields: id (<category>_<that of the list>) and example, or the error in its place.
    Raises: ImportError: no h5py. FileNotFoundError: no such list.
    """
    h5py, root = demand_h5py(), Path(root)

    def read(name):
        path = root / "sdf" / category / name / "ori_sample.h5"
        stored, norm = _load(path, h5py.File, "pc_sdf_sample", "norm_params")
        shapes = len(stored) >= NEIGHBOURS and stored.shape[1:] == norm.shape == (4,)
        _demand(shapes, path, "16 or more rows of 4 and norm_params (4,) wanted")
        points = norm[3] * stored[:, :3].astype(float) + norm[:3]  # ShapeNet's frame
        sdf = norm[3] * (stored[:, 3].astype(float) - iso)
        gradients = estimate_gradients(points, sdf)
        near = np.abs(sdf) <= np.median(np.abs(sdf))
        cloud = (points - sdf[:, None] * gradients)[near], gradients[near]
        place = Path(category, name, variant)
        folders = root / "image" / place, root / "normal" / place
        shots = (_view(k, 10, *folders) for k in range(views))
        return path, (points, sdf, gradients), cloud, shots, ("gradients", "depth")

    names = root / "lists" / f"{category}_{split}.lst"
    yield from _each(names, category, read, **options)


def demand_h5py() -> ModuleType:
    """The module that reads DISN's samples.

    Raises: ImportError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError('DISN data need h5py: pip install "d2im[disn]"') from error
    return h5py


def read_occnet(
    root: str | Path,
    category: str,
    split: str | None,
    *,
    choy: str | Path | None = None,
    views: Sequence[int] | None = 24,
    **options,
) -> Iterator:
    """Read Occupancy Networks' data: occupancies, a point cloud, Choy's pictures.

    Args: root: folder of <category>/{<split>.lst,<id>/}; category, options and what is
            yielded and raised: see `read_disn`. split: "train", "val" or "test".
        choy: 3D-R2N2's folder of <category>/<id>/rendering/, PNGs with an exact mask;
            None reads the JPEGs of img_choy2016. views: how many of the 24. Without a
            size they keep 137 pixels, no multiple of 16, as the networks want it.
    """

    def read(name):
        folder = Path(root, category, name)
        path, names = folder / "points.npz", ("points", "occupancies", "loc", "scale")
        points, packed, loc, scale = _load(path, ZipFile, *names)
        placed = points.shape[1:] == (3,) and loc.size == 3 and scale.size == 1
        _demand(placed, path, "points (P, 3), loc (3,) and one scale wanted")
        bits = packed.dtype == np.uint8 and len(packed) == -(-len(points) // 8)
        _demand(bits, path, "occupancies are not the packed bits of the points")
        sign = np.where(np.unpackbits(packed)[: len(points)], -1.0, 1.0)
        path = folder / "pointcloud.npz"
        surface, normals = _load(path, ZipFile, "points", "normals")
        paired = surface.shape == normals.shape == (len(surface), 3) and len(surface)
        _demand(paired, path, "as many normals as points, (P, 3), wanted")
        points, surface = (scale * x.astype(float) + loc for x in (points, surface))
        tree, normals = cKDTree(surface), _unit(normals.astype(float))
        distance, near = tree.query(points, workers=-1)
        away = points - surface[near]
        height = (away * normals[near]).sum(1)
        _demand(np.mean(height * sign > 0) > 0.5, path, "the normals point inward")
        # Close by, the nearest point lies beside the foot of the perpendicular.
        close = distance < 3 * np.median(tree.query(surface[:999], 2)[0][:, 1])
        sdf = sign * np.where(close, np.abs(height), distance)
        away = np.where(close[:, None], normals[near], _unit(away) * sign[:, None])
        if choy is None:
            shots = (_jpeg_view(folder / "img_choy2016", k) for k in range(views))
        else:
            images = Path(choy, category, name, "rendering")
            shots = (_view(k, 5, images) for k in range(views))
        made = ("sdf", "gradients", "normals", "depth")
        cloud, samples = (surface, normals), (points, sdf, away)
        return folder / "points.npz", samples, cloud, shots, made

    yield from _each(Path(root, category, f"{split}.lst"), category, read, **options)


def write_set(
    readings: Iterable, out: str | Path, split: str, family: str = ""
) -> list[dict]:
    """Write what a reader yields as a data folder like that of `prepare`.

    Args: readings: pairs of id and example or error. out: folder.
        split, family: for the index.
    Returns: The new rows of the index: "failed", with the reason, without an example.
    Raises: ValueError: `out` holds examples made otherwise, or another call writes to
        it. OSError: it cannot be written.
    """
    out, written = Path(out), []

    def rows():
        start, made = time.perf_counter(), False
        for name, example in readings:
            name = safe_id(name)
            row = dict.fromkeys(INDEX_COLUMNS, "") | {"id": name, "status": "ok"}
            row |= {"split": split, "family": family}
            error = example if isinstance(example, Exception) else None
            if not error:
                try:
                    row, made = _write(out, row, example), True
                except ValueError as odd:
                    # Of the first one it is the call that is wrong, not the shape.
                    if not made and known.get(name, {}).get("status") != "failed":
                        raise
                    error = odd
            if error:
                reason = one_line(f"{type(error).__name__}: {error}")[:1000]
                row |= {"status": "failed", "reason": reason}
            written.append(name)
            yield row | {"seconds": f"{time.perf_counter() - start:.2f}"}
            start = time.perf_counter()

    with hold(out, "preparation"):
        known = {row["id"]: row for row in read_index(out)}
        record(out, known, rows())
    return [known[name] for name in written]


def _write(out, row, example):
    """Write an example of a reader; return its row, which it carries."""
    yaw = float(example["similarity"][0])
    views = sum(member.startswith("mask_") for member in example)
    views += len(example.get("left_out", ()))
    made = {"views": views, "size": len(example["mask_0"]), "yaw": yaw}
    keep_settings(out / "settings.json", {**made, "poses": "as stored"})
    return write_reading(out / f"{row['id']}.npz", row, example)


def write_reading(path: Path, row: dict, example: dict) -> dict:
    """Write an example of a reader.

    Args: path: of its file. row: of the index, as far as it is known.
    Returns: The whole row, which the file carries. Its reason names the views that were
        left out.
    """
    yaw = float(example["similarity"][0])
    row = row | {"source": str(example["source"]), "up": "y", "yaw": yaw}
    if len(left := example.get("left_out", ())):
        total = sum(name.startswith("mask_") for name in example) + len(left)
        row["reason"] = f"left out {len(left)} of {total} views: {_told(left)}"[:1000]
    write_example(path, {**example, "row": np.array(json.dumps(row))})
    return row


def _told(left):
    """What is wrong with views, as `left_out` has them."""
    return "; ".join(
        f"view {number:.0f} ({off:.0%} of the inside points off its mask, {bare:.0%} "
        "of the mask without surface)"
        for number, off, bare in left
    )


def check_yaw(examples: Iterable, has_back: bool = True) -> dict:
    """Ask the data whether cameras fit the points, and which way the objects face.

    Points inside must fall on the masks. A yaw of points and cameras together changes
    no picture, so the shapes are asked for their front: the upper half of a chair, sofa
    or airplane stands behind the lower.

    Args: examples: read ones of one category. has_back: it is such a one.
    Returns: dict: on_mask (4,), the share of inside points on the masks, turned by 0,
        90, 180 and 270 degrees; facing, degrees from +z toward +x; back, how far the
        upper half stands behind, in world units.
    Raises: ValueError: the cameras do not fit, or the objects do not face +z.
    """
    examples, shares, lean = list(examples), [], np.zeros(3)
    for example in examples:
        inside = example["points"][example["sdf"] < 0].astype(float)
        upper = inside[:, 1] > (inside[:, 1].min() + inside[:, 1].max()) / 2
        lean += inside[upper].mean(0) - inside[~upper].mean(0)
        turned = np.concatenate([inside @ yaw_rotation(90 * i).T for i in range(4)])
        for k in range(sum(name.startswith("camera_") for name in example)):
            camera = Camera.from_array(example[f"camera_{k}"])
            pixel, _, within = _pixels(camera, turned)
            hit = within & (example[f"mask_{k}"].ravel()[pixel * within] > 0)
            shares.append(hit.reshape(4, -1).mean(1))
    on_mask = np.mean(shares, axis=0)
    facing = float(np.degrees(np.arctan2(-lean[0], -lean[2])))
    back = float(np.hypot(lean[0], lean[2]) / len(examples))
    if on_mask[0] < max(0.95, on_mask.max()):
        raise ValueError(
            f"the cameras do not fit the points: {on_mask.round(3)} of those inside "
            "fall on the masks when turned by 0, 90, 180, 270 degrees"
        )
    if has_back and (back < 0.04 or abs(facing) > 45):
        yaw = (examples[0]["similarity"][0] - 90 * round(facing / 90) + 180) % 360 - 180
        raise ValueError(
            f"the objects face {facing:.0f} degrees from +z toward +x (backs stand "
            f"{back:.2f} behind): read them with yaw={yaw:g}"
        )
    return {"on_mask": on_mask, "facing": facing, "back": back}


def estimate_gradients(points: np.ndarray, sdf: np.ndarray) -> np.ndarray:
    """Unit gradients of a sampled SDF: the slope over each point's neighbours.

    Least squares by inverse squared distance, all points at once; where the gradient
    jumps (at edges, in the middle of a part) a mean of both sides.

    Args: points: (P, 3), P >= 16. sdf: (P,), negative inside.
    Returns: (P, 3).
    """
    distance, near = cKDTree(points).query(points, NEIGHBOURS)
    off, rise = points[near] - points[:, None], sdf[near] - sdf[:, None]
    weighted = off / np.where(distance > 0, distance, np.inf)[..., None] ** 2
    square = np.einsum("pki,pkj->pij", weighted, off)
    # a little of the trace, for neighbours that lie in one plane
    trace = np.trace(square, axis1=1, axis2=2)[:, None, None] + 1e-12
    slope = np.einsum("pki,pk->pi", weighted, rise)[..., None]
    return _unit(np.linalg.solve(square + 1e-5 * trace * np.eye(3), slope)[..., 0])


def read_list(path: Path) -> list[str]:
    """The names in a list of shapes, each once.

    Raises: FileNotFoundError: it is missing. ValueError: it is no text.
    """
    names = _load(path, lambda file: file.read().decode()).split()
    return list(dict.fromkeys(names))  # one that stands there twice is one shape


def _each(
    path, category, read, *, size=None, yaw=YAW, skip=(), only=None, misfit=MISFIT
):
    for name in read_list(path):
        identity = f"{category}_{name}"
        if identity not in skip and (only is None or identity in only):
            try:
                plain = Path(name).name == name != ".." and len(name) < 256
                _demand(plain, path, f"{name[:40]!r} is no name of a shape")
                example = _example(*read(name), size, yaw, misfit)
            except Exception as error:  # of any kind: handed on in the example's place
                example, known = error, isinstance(error, OSError | ValueError)
                if not known or name not in str(error):  # it names no file
                    example = ValueError(f"{path}: {name}: {_cause(error)}")
            yield identity, example


def _example(source, samples, cloud, shots, estimated, size, yaw, misfit):
    """Bring samples, oriented surface points and views into the world."""
    points, sdf, gradients = samples
    if not (sdf < 0).any():
        raise ValueError("no point is inside")
    turn = yaw_rotation(yaw)
    surface = cloud[0] @ turn.T
    centre = (surface.min(0) + surface.max(0)) / 2
    scale = 0.5 / np.linalg.norm(surface - centre, axis=1).max()
    shift = -scale * centre
    cloud = scale * surface + shift, cloud[1] @ turn.T
    points = (scale * points @ turn.T + shift).astype("f4")
    example = {
        "points": points,
        "sdf": (scale * sdf).astype("f4"),
        "gradients": (gradients @ turn.T).astype("f2"),
        "weights": density_weights(points, sdf < 0),
        "similarity": np.array([yaw, scale, *shift]),
        "estimated": np.array(estimated),
        "source": np.array(str(source)),
    }
    inside, left = points[sdf < 0], []
    for number, (image, mask, normals, pose) in enumerate(shots):
        rotation, translation, *lens = pose
        rotation = rotation @ turn.T
        translation = scale * translation - rotation @ shift
        camera = Camera.from_matrices(rotation, translation, *lens, len(mask))
        off, bare = view_misfit(camera, mask, inside, cloud[0])
        if max(off, bare) > misfit:
            left.append((number, off, bare))
            continue
        k = number - len(left)
        if size not in (None, len(mask)):
            camera, image = camera.resized(size), _resized(image, size)
            mask = _resized(mask[..., None], size)[..., 0] > 0.5
            normals = None if normals is None else _unit(_resized(normals, size))
        depth, seen = _splat(*cloud, camera, mask)
        normals = seen if normals is None else normals * mask[..., None]
        example[f"image_{k}"] = np.moveaxis(np.round(image), -1, 0).astype("u1")
        example[f"mask_{k}"] = mask.astype("u1")
        example[f"normals_{k}"] = np.moveaxis(normals, -1, 0).astype("f2")
        example[f"depth_{k}"] = depth.astype("f2")
        example[f"camera_{k}"] = camera.to_array()
    if left:
        if "camera_0" not in example:
            raise ValueError(f"no view fits the points: {_told(left)}")
        example["left_out"] = np.array(left)
    return example


def view_misfit(
    camera: Camera, mask: np.ndarray, inside: np.ndarray, surface: np.ndarray
) -> tuple[float, float]:
    """Ask a view's mask whether the picture shows the points from this camera.

    A pose or a shift that is not the picture's, or a part that the picture has
    elsewhere, puts points off the mask; another size or an opaque background leaves
    parts of the mask without points. Holes in the mask count as filled, since windows
    are transparent and white objects, on white, lost but for their outline.

    Args: camera, mask (H, W) bool. inside, surface: points (P, 3), world.
    Returns: The share of the inside points more than a pixel off the mask, and that of
        the mask's pixels farther from all surface points than thrice their spacing.
    """
    near = binary_dilation(binary_fill_holes(mask), np.ones((3, 3)))
    pixel, _, within = _pixels(camera, inside)
    off = 1 - np.mean(within & near.ravel()[pixel * within])
    pixel, _, within = _pixels(camera, surface)
    bare = np.ones(mask.shape, bool)
    bare.ravel()[pixel[within]] = False
    if mask.any() and not bare.all():
        spacing = max(1.0, (mask.sum() / within.sum()) ** 0.5)  # pixels
        bare = distance_transform_edt(bare)[mask] > 3 * spacing
    return float(off), float(bare.mean())


def _splat(points, normals, camera, mask):
    """Depth (H, W) and camera-frame normals (H, W, 3) of the surface points seen.

    Pixels of the mask that no point meets take the nearest one's.
    """
    pixel, z, seen = _pixels(camera, points)
    seen &= ((points - camera.position) * normals).sum(1) < 0
    nearest = np.full(mask.shape, np.inf)
    np.minimum.at(nearest.ravel(), pixel[seen], z[seen])
    # Through the gaps of a sparse near surface the one behind it shows.
    density = seen.sum() / max(mask.sum(), 1)
    veil = minimum_filter(nearest, 1 if density > 3 else 3 if density > 0.5 else 5)
    seen[seen] = z[seen] < veil.ravel()[pixel[seen]] + SAME_SURFACE
    values = np.column_stack([np.ones_like(z), z, normals @ camera.rotation.T])[seen]
    sums = [np.bincount(pixel[seen], value, mask.size) for value in values.T]
    count, *maps = np.reshape(sums, (5, *mask.shape))
    if not (mask & (count > 0)).any():
        raise ValueError("no surface point falls on the mask of a view")
    _, index = distance_transform_edt(~(mask & (count > 0)), return_indices=True)
    maps = (maps / np.maximum(count, 1))[:, *index] * mask
    return maps[0], _unit(np.moveaxis(maps[1:], 0, -1))


def _view(k, width, folder, normal_folder=None):
    """Image (S, S, 3), mask, normals (S, S, 3) and pose, of a PNG with alpha."""
    picture, normals = _rgba(folder / f"{k:02d}.png"), None
    alpha, size = picture[..., 3:] / 255, len(picture)
    if normal_folder is not None:
        path = normal_folder / f"{k:02d}.png"
        coded = _rgba(path)[..., :3] / 255
        _demand(len(coded) == size, path, f"{size} pixels wanted, as its image has")
        linear = srgb_to_linear(coded)
        normals = _unit((2 * linear - 1) * [1, -1, -1])  # y was up, z to the viewer
    path = folder / "rendering_metadata.txt"
    lines = _load(path, lambda file: file.read().decode().splitlines())
    try:
        line = [float(x) for x in lines[k].strip(" [],").replace(",", " ").split()]
        # Azimuth 0 is at +x there and grows toward +z; ours is at +z, toward +x.
        camera = Camera(-line[0], line[1], line[3], size)
    except (IndexError, ValueError):
        line = []
    right = len(line) == width and np.isfinite(line).all()
    _demand(right, path, f"line {k + 1} is not the {width} numbers of a view")
    rotation = camera.rotation @ yaw_rotation(-90.0)
    x, y, z = line[7:] or (0.0, 0.0, 0.0)  # the object's shift, Blender's z being up
    translation = camera.translation + rotation @ [x, z, -y]
    pose = rotation, translation, camera.focal, camera.centre
    mask = alpha[..., 0] > 0.5
    if normals is not None:
        y, x = np.indices(mask.shape) + 0.5 - size / 2
        rays = np.dstack([x, y, np.full(mask.shape, camera.focal)])
        away = (normals * rays).sum(-1, keepdims=True) > 0
        normals *= np.where(away, -1, 1) * mask[..., None]
    return picture[..., :3] * alpha + 255 * (1 - alpha), mask, normals, pose


def _rgba(path):
    picture = _load(path, lambda file: np.asarray(_picture(file, "PNG")))
    square = picture.shape == (len(picture), len(picture), 4)
    _demand(square, path, f"a square RGBA picture wanted, got {picture.shape}")
    return picture


def _jpeg_view(folder, k):
    path = folder / f"{k:03d}.jpg"

    def read(file):
        return np.asarray(_picture(file, "JPEG").convert("RGB"))

    image = _load(path, read)
    path = folder / "cameras.npz"
    world, lens = _load(path, ZipFile, f"world_mat_{k}", f"camera_mat_{k}")
    shapes = world.shape == (3, 4) and lens.shape == (3, 3)
    _demand(shapes and lens[0, 0] == lens[1, 1], path, f"view {k} is no pinhole camera")
    # JPEG's white rings down to 240 beside an edge; a white object is lost as well.
    mask = (image < 240).any(-1)
    return image, mask, None, (world[:, :3], world[:, 3], lens[0, 0], lens[:2, 2])


def _load(path, read, *names):
    """What `read` makes of a file, or the members `names` of that archive."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    try:
        with open(path, "rb") as file:
            if not names:
                return read(file)
            with read(file) as archive:
                arrays = [_member(archive, name) for name in names]
    except Exception as error:  # of damage the libraries raise anything
        lacks = f" or lacks one of {', '.join(names)}" if names else ""
        wrong = f"{path} is damaged{lacks} ({_cause(error)})"
        raise ValueError(wrong) from error
    kinds = [array.dtype.kind for array in arrays]
    _demand(set(kinds) <= set("biuf"), path, f"not numbers: {', '.join(names)}")
    finite = all(np.isfinite(array).all() for array in arrays)
    _demand(finite, path, "a number is not finite")
    return arrays


def _member(archive, name):
    """An array of an npz or of an HDF5 file, if it does not fill the memory."""
    if isinstance(archive, ZipFile):
        stored = archive.getinfo(f"{name}.npy")
        size = stored.file_size
    else:
        stored = archive[name]
        size = getattr(stored, "nbytes", 0)  # a group has none
    if size > LARGEST_MEMBER:
        raise ValueError(f"{name} has {size / 1e9:.3g} GB")
    if isinstance(archive, ZipFile):
        return npy_array(archive.read(stored))
    return np.asarray(stored)


def _picture(file, kind):
    """A picture of that kind, not read yet, if it does not fill the memory."""
    picture = Image.open(file, formats=[kind])
    if max(picture.size) > LARGEST_PICTURE:
        raise ValueError(f"it has {picture.width} x {picture.height} pixels")
    return picture


def _cause(error):
    return " ".join(f"{type(error).__name__} {error}".split())[:200]


def _demand(right, path, wrong):
    if not right:
        raise ValueError(f"{path}: {wrong}")


def _pixels(camera, points):
    """Flat pixel index, depth, and whether it is in the picture, of world points."""
    uv, z = camera.project(points)
    pixel = np.floor((uv + 1) / 2 * camera.size).astype(int)
    within = ((pixel >= 0) & (pixel < camera.size)).all(1)
    return pixel[:, 1] * camera.size + pixel[:, 0], z, within


def _resized(pixels, size):
    """(S, S, C) to (size, size, C), averaging where it shrinks."""
    bands = (Image.fromarray(band.astype("f4")) for band in np.moveaxis(pixels, -1, 0))
    way = Image.Resampling.BILINEAR
    return np.stack([np.asarray(b.resize((size, size), way)) for b in bands], -1)


def _unit(vectors):
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(length, 1e-12)
