"""The camera of a picture against a known mesh, by outlines and inner edges.

A silhouette tells a pose to a degree or so, but not always which one of several: a
chair's outline from behind is nearly that from the front. So all poses that fit are
returned, and what lies inside of the outline ranks them: edges, and how well a light
on the pose's normals explains the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage
from scipy.optimize import least_squares
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from skimage.feature import canny
from skimage.measure import find_contours

from ..camera import Camera
from ..data.rendering import ray_scene
from .pictures import RATIO, load_framed

if TYPE_CHECKING:
    import torch
    import trimesh

    from .pictures import ImageSource

AZIMUTHS, ELEVATIONS = np.arange(0, 360, 10), np.arange(-20, 71, 15)  # 252 views
COARSE, MIDDLE = 64, 112  # pixels at which views are compared, and first refined
TRIED, KEPT = 10, 5  # poses that are refined, and that are looked at closely
APART = 12.0  # degrees between two poses that count as two
STEPS = 6  # of refinement at each size
FAR = 0.03  # of the picture's side: an outline farther off is another one's
ROLL, LENS = 5.0, 0.2  # degrees and log focal: what is usual, for weak priors
PRIOR = 0.002  # weight of these, as a share of the side
STEP, CREASE = 0.03, 0.85  # depth in world units and cosine that make an inner edge
SOFT, RIM = 2.0, 3  # pixels within which two edges agree, and of an outline's own
# What an error of the picture's side weighs against a mask's IoU of 1, what inner edges
# and light do, and a view from the front: of 24 models' pictures these put a mirrored
# pose first in none that tells the two apart.
ERROR, EDGES, LIGHT, FRONT = 20, 0.25, 0.25, 0.02
LIKELY = 0.08  # of score within which the picture does not decide


@dataclass(frozen=True)
class CameraFit:
    """A camera that explains a picture's outline, and how well it does.

    Attributes: camera. error: root mean square distance of the two outlines, in parts
        of the picture's side. iou: of the two masks. edges: how well inner edges agree,
        in [0, 1]. light: share of the brightness's variance that a light on the pose's
        normals explains.
    """

    camera: Camera
    error: float
    iou: float
    edges: float
    light: float

    @property
    def score(self) -> float:
        """What fits are ranked by, more is better: outlines first, then the inside.

        Where nothing else tells, an object is more often seen from its front.
        """
        front = -self.camera.rotation[2, 2]
        inside = EDGES * self.edges + LIGHT * self.light
        return self.iou - ERROR * self.error + inside + FRONT * front


class _Target:
    """A picture's outline and inner edges at some size."""

    def __init__(self, mask, image):
        size = len(mask)
        self.mask, self.size = mask, size
        self.outline = _outline(mask)
        inside = ndimage.distance_transform_edt(mask)
        outside = ndimage.distance_transform_edt(~mask)
        self.distance = inside - outside + np.where(mask, -0.5, 0.5)
        self.image, self.edges = image, canny(image.mean(0), mask=inside > 2)


def fit_camera(
    mesh: trimesh.Trimesh,
    picture: ImageSource,
    *,
    mask: np.ndarray | torch.Tensor | None = None,
    size: int = 224,
    focal: str = "known",
    framed: bool = False,
    guess: Camera | None = None,
) -> list[CameraFit]:
    """Find the camera of a picture of a known mesh.

    Args: mesh: trimesh.Trimesh, world frame: centred, of radius 0.5, y up.
        picture, framed: see `pictures.load_image`; the cameras are those of the framed
            picture of `size` pixels.
        mask: (size, size) of its object, where that is known.
        focal: "known", the library's lens, or "free".
        guess: a Camera to start from, instead of from all around.
    Returns: CameraFits, the best one first. More than one whose score is all but as
        good (`rivals`) means that the object looks alike from there.
    Raises: ValueError: an unusable picture, an empty mesh, or another `focal`.
    """
    if focal not in ("known", "free"):
        raise ValueError(f'focal must be "known" or "free", got {focal!r}')
    image, found, _ = load_framed(picture, size, framed=framed)
    image = image.numpy()
    mask = np.asarray(found if mask is None else mask).astype(bool)
    if mask.shape != (size, size):
        raise ValueError(f"mask must be ({size}, {size}), got {mask.shape}")
    if not mask.any():
        raise ValueError("the mask is empty: it must be True on the object")
    if mask.all():
        raise ValueError("the picture shows no outline: give one with a background")
    scene = ray_scene(np.asarray(mesh.triangles))
    normals = np.asarray(mesh.face_normals)
    targets = [_Target(*_scaled(mask, image, side)) for side in (COARSE, MIDDLE, size)]
    if not all(len(target.outline) for target in targets):
        raise ValueError(f"the object covers {mask.sum()} pixels: too few to fit by")
    starts = [guess] if guess else _starts(scene, targets[0])
    found = [_refine(scene, camera, targets[1], focal) for camera in starts]
    found = _distinct([fit for fit in found if fit is not None])[:KEPT]
    found = [_refine(scene, fit[1], targets[2], focal) for fit in found]
    found = _distinct([fit for fit in found if fit is not None])
    if not found:
        raise ValueError("no camera fits the picture: is it of this mesh?")
    fits = [_judge(scene, normals, camera, targets[2]) for _, camera in found]
    return sorted(fits, key=lambda fit: -fit.score)


def rivals(fits: Sequence[CameraFit]) -> list[CameraFit]:
    """The first of `fit_camera`'s fits, which the picture does not decide between."""
    return [fit for fit in fits if fit.score > fits[0].score - LIKELY]


def turn_between(one: Camera, other: Camera) -> float:
    """The angle between the rotations of two cameras, degrees."""
    cosine = (np.trace(one.rotation @ other.rotation.T) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def _scaled(mask, image, side):
    """Mask and image at another size, smoothed before where that is a smaller one."""
    if side == len(mask):
        return mask, image
    zoom = side / len(mask)
    blur = 0.35 / zoom  # a third of a new pixel
    at = (np.arange(side) + 0.5) / zoom - 0.5
    grid = np.meshgrid(at, at, indexing="ij")
    planes = [ndimage.gaussian_filter(a, blur) for a in (mask * 1.0, *image)]
    planes = [ndimage.map_coordinates(a, grid, order=1, mode="nearest") for a in planes]
    return planes[0] > 0.5, np.stack(planes[1:])


def _outline(mask):
    """Points (N, 2) = (x, y) in pixels on a mask's outlines."""
    lines = find_contours(np.pad(mask, 1).astype(float), 0.5)
    if not lines:
        return np.zeros((0, 2))
    return np.concatenate(lines)[:, ::-1] - 0.5  # of padding 1, pixel centres at 0.5


def _cast(scene, camera):
    """Depth (H, W), infinite where nothing is."""
    origins, rays = (a.reshape(-1, 3) for a in camera.rays())
    depth = scene.run(origins, rays, query="DISTANCE").reshape(camera.size, -1)
    return np.where(depth < 1e6, depth, np.inf)


def _starts(scene, target):
    """The best of all views, after their outlines are brought onto the picture's."""
    side, own = target.size, target.outline
    middle, reach = _box(own)
    scored = []
    for elevation in ELEVATIONS:
        for azimuth in AZIMUTHS:
            camera = Camera(azimuth, elevation, RATIO, side)
            outline = _outline(np.isfinite(_cast(scene, camera)))
            if len(outline) < 8:
                continue
            centre, radius = _box(outline)
            zoom = reach / radius
            moved = (outline - centre) * zoom + middle
            error = _error(moved, cKDTree(moved).query(own)[1], target)
            depth = camera.translation[2] / zoom
            shift = ((middle - centre * zoom) + side / 2 * (zoom - 1)) / camera.focal
            translation = np.array([*(shift * depth), depth])
            lens = camera.focal, camera.centre, side
            made = Camera.from_matrices(camera.rotation, translation, *lens)
            scored.append((error, made))
    return [camera for _, camera in _distinct(scored)[:TRIED]]


def _box(outline):
    """Middle and geometric mean of the sides of an outline's box."""
    low, high = outline.min(0), outline.max(0)
    return (low + high) / 2, np.sqrt(np.prod(np.maximum(high - low, 1)))


def _distinct(scored):
    """Pairs (score, camera), least first, without those close to a better one."""
    kept = []
    for score, camera in sorted(scored, key=lambda pair: pair[0]):
        if all(turn_between(camera, other) > APART for _, other in kept):
            kept.append((score, camera))
    return kept


def _at(values, pixels):
    """A map at pixels (N, 2) = (x, y), bilinearly."""
    at = pixels.T[::-1] - 0.5
    return ndimage.map_coordinates(values, at, order=1, mode="nearest")


def _refine(scene, camera, target, focal):
    """Least squares on both outlines' distances; (error, camera), None where lost."""
    camera, own = camera.resized(target.size), target.outline
    slopes, best = _slopes(target.distance, own), None
    for step in range(STEPS):
        depth = _cast(scene, camera)
        outline = _outline(np.isfinite(depth))
        if len(outline) < 8:
            break
        match = cKDTree(outline).query(own)[1]
        error = _error(outline, match, target)
        if best is None or error < best[0]:
            best = error, camera
        points = _in_space(outline, depth, camera)
        gap = max(FAR * 0.6**step * target.size, 3.0)
        arguments = camera, target, points, match, slopes, gap
        start = np.zeros(7 if focal == "free" else 6)
        options = {"args": arguments, "max_nfev": 6, "x_scale": 0.05}
        camera = _changed(least_squares(_residuals, start, **options).x, camera)
    return best


def _residuals(change, camera, target, points, match, slopes, gap):
    """Distances of the drawn outline from the picture's, and back; priors.

    What is farther off than a gap belongs to something else and weighs no more.
    """
    pixels = _moved(change, points, camera)
    there = _at(target.distance, pixels)
    back = ((pixels[match] - target.outline) * slopes).sum(1)
    both = [gap * np.tanh(a / gap) / np.sqrt(len(a)) for a in (there, back)]
    return np.concatenate([*both, _priors(change, camera, target.size)])


def _error(outline, match, target):
    """Root mean square distance of two outlines both ways, in parts of the side."""
    there = _at(target.distance, outline)
    back = ((outline[match] - target.outline) ** 2).sum(1)
    return np.sqrt(((there**2).mean() + back.mean()) / 2) / target.size


def _in_space(outline, depth, camera):
    """An outline's points (N, 3), camera frame, as deep as the nearest pixel hit."""
    missed = ~np.isfinite(depth)
    asked = {"return_distances": False, "return_indices": True}
    hit = ndimage.distance_transform_edt(missed, **asked)
    row, column = outline[:, ::-1].astype(int).clip(0, camera.size - 1).T
    z = depth[tuple(hit[:, row, column])]
    x, y = ((outline - camera.centre) / camera.focal).T
    return np.stack([x * z, y * z, z], 1)


def _slopes(values, pixels):
    """Unit direction in which a map grows, at pixels."""
    smooth = ndimage.gaussian_filter(values, 1.0)
    slope = np.stack([_at(a, pixels) for a in np.gradient(smooth)[::-1]], 1)
    return slope / np.maximum(np.linalg.norm(slope, axis=1, keepdims=True), 1e-6)


def _priors(change, camera, size):
    """What holds the roll near 0 and the focal length near the lens's."""
    rotation = Rotation.from_rotvec(change[:3]).as_matrix() @ camera.rotation
    roll = np.degrees(np.arctan2(rotation[0, 1], np.linalg.norm(rotation[0, [0, 2]])))
    held = [roll / ROLL]
    if len(change) == 7:
        usual = np.log(camera.focal / Camera(0, 0, 1, camera.size).focal)
        held.append((usual + change[6]) / LENS)
    return np.array(held) * PRIOR * size


def _moved(change, points, camera):
    """Pixels of points (N, 3) of the camera's frame after a change of the camera."""
    middle = camera.translation
    turned = (points - middle) @ Rotation.from_rotvec(change[:3]).as_matrix().T
    moved = turned + _shifted(change, camera)
    zoom = np.exp(change[6]) if len(change) == 7 else 1.0
    return camera.focal * zoom * moved[:, :2] / moved[:, 2:] + camera.centre


def _shifted(change, camera):
    """The object's middle in the camera's frame after a change."""
    x, y, z = camera.translation
    depth = z * np.exp(change[5] + (change[6] if len(change) == 7 else 0))
    return np.array([x / z + change[3], y / z + change[4], 1.0]) * depth


def _changed(change, camera):
    rotation = Rotation.from_rotvec(change[:3]).as_matrix() @ camera.rotation
    zoom = np.exp(change[6]) if len(change) == 7 else 1.0
    lens = camera.focal * zoom, camera.centre, camera.size
    return Camera.from_matrices(rotation, _shifted(change, camera), *lens)


def _judge(scene, face_normals, camera, target):
    """A CameraFit: outlines, masks, and what lies inside."""
    origins, rays = (a.reshape(-1, 3) for a in camera.rays())
    out = scene.run(origins, rays, output=True)
    side = target.size
    face, depth = (out[name].reshape(side, side) for name in ("primID", "tfar"))
    mask = face >= 0
    normals = face_normals[np.where(mask, face, 0)]
    away = np.einsum("hwi,hwi->hw", normals, rays.reshape(side, side, 3)) > 0
    normals = np.where(away[..., None], -normals, normals)  # a soup's look either way
    outline = _outline(mask)
    error = _error(outline, cKDTree(outline).query(target.outline)[1], target)
    both = mask & target.mask
    deep = ndimage.binary_erosion(both, iterations=RIM)
    drawn, seen = inner_edges(mask, depth, normals) & deep, target.edges & deep
    edges = 0.0
    if drawn.any() and seen.any():
        precise = np.exp(-_to(seen)[drawn] / SOFT).mean()
        complete = np.exp(-_to(drawn)[seen] / SOFT).mean()
        edges = np.sqrt(precise * complete)
    iou = both.sum() / (mask | target.mask).sum()
    light = _explained(target.image, normals @ camera.rotation.T, deep)
    return CameraFit(camera, *map(float, (error, iou, edges, light)))


def inner_edges(mask: np.ndarray, depth: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Pixels beside a step of depth or a crease, all on the object.

    Args: mask: (H, W) bool. depth: (H, W) world units. normals: (H, W, 3) unit.
    Returns: (H, W) bool.
    """
    edges = np.zeros_like(mask)
    for near, far in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        bent = (normals[near] * normals[far]).sum(-1) < CREASE
        step = np.abs(depth[near] - depth[far]) > STEP
        edges[near] |= mask[near] & mask[far] & (bent | step)
    return edges


def _to(mask):
    return ndimage.distance_transform_edt(~mask)


def _explained(image, normals, mask):
    """Share of the brightness's variance that a light on the normals explains."""
    if mask.sum() < 20:
        return 0.0
    x, y, z = normals[mask].T
    shades = np.stack([x**0, x, y, z, x * y, y * z, x * z, x * x, z * z], 1)
    grey = image.mean(0)[mask]
    left = grey - shades @ np.linalg.lstsq(shades, grey, rcond=None)[0]
    return max(0.0, 1 - left.var() / max(grey.var(), 1e-9))
