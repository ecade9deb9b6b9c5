"""What the readers of mesh files share: faces, polygons as triangles, colours.

A polygon is cut in its own plane, by a fan where that is right, else by ear clipping.
"""

import os
import re
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import mapbox_earcut
import numpy as np
from PIL import Image
from trimesh.visual.color import linear_to_srgb, srgb_to_linear

NO_COLOR = (0.8, 0.8, 0.8)  # a plain part among coloured ones
# Where on a face its texture is read, barycentric.
TEXELS = np.array([(i, j, 7 - i - j) for i in range(1, 6) for j in range(1, 7 - i)]) / 7
# Pillow's names. Of its others one runs a program (EPS).
TEXTURE_FORMATS = "PNG", "JPEG", "WEBP", "BMP", "TGA", "TIFF", "GIF", "DDS", "AVIF"
RENDERED_SIDE = 1024  # px, of a picture that is rendered
TEXTURE_SIDE = 4096  # px; a wider picture is made smaller, since faces take means of it
TOO_LARGE = f"more than {Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels"
LINEAR = srgb_to_linear(np.arange(256) / 255)
MOST_NOTES = 5
SOME_FACES = 1 << 16  # whose texels are read at once


class Unreadable(ValueError):
    """A file's fault, by its cause; `advice` says what to do where that is special."""

    def __init__(self, cause: str, advice: str | None = None):
        super().__init__(cause)
        self.advice = advice


@dataclass(frozen=True)
class Texture:
    """A picture that faces wear, not read yet."""

    name: str
    source: Path | bytes | None  # None: it was not found
    wrap: tuple[str, str] = ("repeat", "repeat")  # or "clamp", "mirror"; along u and v


@dataclass
class Paint:
    """Faces that wear a texture."""

    faces: np.ndarray  # (N,) of the surface
    uv: np.ndarray  # (N, 3, 2) of their corners, v down from the picture's upper edge
    texture: Texture
    tint: np.ndarray | float = 1.0  # (N, 3) or (3,), linear light


@dataclass
class Surface:
    """A file's faces, as they are, in the file's frame and unit."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3)
    part: np.ndarray  # (F,) whole numbers
    color: np.ndarray | None = None  # (F, 3) display RGB in [0, 1], nan where none is
    paints: list[Paint] = field(default_factory=list)  # over `color`, see `paint`
    worn: list[Paint] = field(default_factory=list)  # of these, what was read
    images: dict[str, str] = field(default_factory=dict)  # not read, and why
    materials: set[str] = field(default_factory=set)  # named, but not found
    notes: list[str] = field(default_factory=list)  # what else was left out

    def lost(self) -> dict:
        """What the file names and was not read, as `MeshReport` counts and says it."""
        notes = [f"image {name[-60:]}: {why}" for name, why in self.images.items()]
        notes += [
            f"material {name[-60:]}: not found" for name in sorted(self.materials)
        ]
        notes = [" ".join(note.split())[:120] for note in notes + self.notes]
        if len(notes) > MOST_NOTES:
            notes = [*notes[:MOST_NOTES], f"{len(notes) - MOST_NOTES} more"]
        counts = {
            "images_lost": len(self.images),
            "materials_lost": len(self.materials),
        }
        return {**counts, "notes": tuple(notes)}


def triangulate(points: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cut polygons into triangles, in each one's plane.

    Args: points: (C, 3) of the corners, polygon after polygon.
        sizes: (N,) corners of each; one of less than three gives no triangle.
    Returns: (T, 3) numbers of corners, and (T,) the polygon of each, in order.
    """
    if (sizes == 3).all():
        return np.arange(3 * len(sizes)).reshape(-1, 3), np.arange(len(sizes))
    start, triangles, owner = np.cumsum(sizes) - sizes, [], []
    for size in np.unique(sizes[sizes > 2]):
        which = np.flatnonzero(sizes == size)
        corners = start[which, None] + np.arange(size)  # (N, size)
        later = np.arange(2, size)
        fan = np.stack([0 * later, later - 1, later], axis=1)
        cut = corners[:, fan]  # (N, size - 2, 3)
        if size > 3:
            ring = points[corners] - points[corners[:, :1]]
            normal = np.cross(ring[:, 1:-1], ring[:, 2:]).sum(axis=1)  # Newell's
            left = np.flatnonzero(~_fan_fits(ring, normal))
            for turn in (1, 2, 3) if size == 4 else ():  # since these are many
                fits = _fan_fits(np.roll(ring[left], -turn, axis=1), normal[left])
                cut[left[fits]] = np.roll(corners[left[fits]], -turn, axis=1)[:, fan]
                left = left[~fits]
            for k in left:
                cut[k] = corners[k][_clip_ears(ring[k], normal[k], fan)]
        triangles.append(cut.reshape(-1, 3))
        owner.append(which.repeat(size - 2))
    if not triangles:
        return np.empty((0, 3), dtype=int), np.empty(0, dtype=int)
    owner = np.concatenate(owner)
    order = np.argsort(owner, kind="stable")
    return np.concatenate(triangles)[order], owner[order]


def _fan_fits(ring, normal):
    """Where polygons (N, K, 3) go round their first corner, all on one side of it."""
    ring = ring - ring[:, :1]
    turns = [np.cross(ring[:, first], ring[:, 2:]) for first in (slice(1, -1), [1])]
    turns = (np.concatenate(turns, axis=1) * normal[:, None]).sum(axis=2)
    return (turns >= -1e-9 * (normal**2).sum(axis=1)[:, None]).all(axis=1)


def _clip_ears(ring, normal, fan):
    """Triangles (K - 2, 3) of a polygon (K, 3) that keep each corner; or the fan.

    The library drops corners on a straight edge. A neighbour may have them, so flat
    triangles put them back.
    """
    length = np.linalg.norm(normal)
    if not 0 < length < np.inf:
        return fan
    u = np.cross(normal, np.eye(3)[np.abs(normal).argmin()])
    axes = np.stack([u / np.linalg.norm(u), np.cross(normal / length, u)], 1)
    axes[:, 1] /= np.linalg.norm(axes[:, 1])
    flat, count = ring @ axes, len(ring)
    ends = np.array([count], dtype=np.uint32)
    ears = mapbox_earcut.triangulate_float64(flat, ends).reshape(-1, 3).astype(int)
    a, b, c = flat[ears].swapaxes(0, 1)
    backward = np.linalg.det(np.stack([b - a, c - a], 1)) < 0
    ears[backward] = ears[backward, ::-1]
    edges = {tuple(e) for e in ears[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2).tolist()}
    rim = {(k, (k + 1) % count) for k in range(count)}
    after = dict(rim - edges) | {b: a for a, b in edges - rim if (b, a) not in edges}
    while after:  # what lies between the rim and the ears, round by round
        first, b = after.popitem()
        while (c := after.pop(b, first)) != first:
            ears = np.vstack([ears, [first, b, c]])
            b = c
    return ears if len(ears) == len(fan) else fan


def paint(surface: Surface) -> None:
    """Read the pictures that a surface's faces wear, one after the other, into `color`.

    Args: surface: changed; a picture that is not read stands in its `images`.
    """
    jobs = defaultdict(list)
    for job in surface.paints:
        jobs[job.texture].append(job)
    if jobs and surface.color is None:
        surface.color = np.full((len(surface.faces), 3), np.nan)
    for texture, some in jobs.items():
        try:
            texels = _texels(texture.source)
        except Exception as error:  # Pillow's are of any kind
            kind = type(error).__name__
            plain = {"FileNotFoundError": "not found"}
            plain["UnidentifiedImageError"] = "no picture that d2im reads"
            plain["DecompressionBombError"] = plain["DecompressionBombWarning"] = (
                TOO_LARGE
            )
            surface.images[texture.name] = plain.get(kind, f"{kind}: {error}"[:100])
            continue
        for job in some:
            if (
                len(job.faces)
                and np.ndim(job.tint) == 2
                and (np.ptp(job.tint, axis=0) < 1e-3).all()
            ):
                job.tint = job.tint[0]  # as of vertices that are white
            for at in range(0, len(job.faces), SOME_FACES):
                part = slice(at, at + SOME_FACES)
                light = _mean_light(texels, job.uv[part], texture.wrap)
                tint = job.tint[part] if np.ndim(job.tint) == 2 else job.tint
                surface.color[job.faces[part]] = linear_to_srgb(light * tint)
        surface.worn += [job for job in some if np.ndim(job.tint) < 2]
    surface.paints = []
    if surface.color is not None:
        bare = np.isnan(surface.color).any(axis=1)
        surface.color = None if bare.all() else surface.color.clip(0, 1)
        if bare.any() and not bare.all():
            surface.color[bare] = NO_COLOR


def _texels(source):
    """A picture's RGB (H, W, 3) bytes; Pillow refuses what would fill the memory."""
    if source is None:
        raise FileNotFoundError("not found")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        file = BytesIO(source) if isinstance(source, bytes) else source
        with Image.open(file, formats=TEXTURE_FORMATS) as image:
            image.draft("RGB", (TEXTURE_SIDE, TEXTURE_SIDE))
            if image.mode.startswith("I"):  # 16 bits, of which `convert` cuts the top
                grey = (np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)
                image = Image.fromarray(grey)
            # A palette's numbers have no means.
            image = image.convert("RGB") if image.mode != "RGB" else image
            factor = -(-max(image.size) // TEXTURE_SIDE)
            return np.asarray(image.reduce(factor) if factor > 1 else image)


def _mean_light(texels, uv, wrap):
    """Mean linear light (N, 3) of the texels under faces with corners (N, 3, 2)."""
    uv = TEXELS @ np.nan_to_num(uv, posinf=0, neginf=0)  # (N, 15, 2)
    return LINEAR[texels_at(texels, uv, wrap)].mean(axis=1)


def rendered_texture(texture: Texture, tint: np.ndarray | float) -> np.ndarray:
    """A picture that faces wear, read small and tinted: (H, W, 3) bytes."""
    small = Image.fromarray(_texels(texture.source))
    small = np.asarray(small.reduce(-(-max(small.size) // RENDERED_SIDE)))
    tinted = linear_to_srgb(LINEAR[small] * tint).clip(0, 1)
    return np.round(tinted * 255).astype(np.uint8)


def texels_at(texels: np.ndarray, uv: np.ndarray, wrap: tuple[str, str]) -> np.ndarray:
    """The texels (..., 3) of a picture (H, W, 3) at uv (..., 2), as it wraps."""
    pixel = []
    for k, (mode, size) in enumerate(zip(wrap, texels.shape[1::-1], strict=True)):
        along = uv[..., k]
        if mode == "mirror":
            along = 1 - np.abs(along % 2 - 1)
        elif mode == "repeat":
            along = along % 1
        pixel.append((along.clip(0, 1) * size).astype(int).clip(max=size - 1))
    return texels[pixel[1], pixel[0]]


class Beside:
    """The files beside a mesh file, and below; what lies elsewhere is not read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def find(self, name: str | bytes, start: Path | None = None) -> Path | None:
        """Find a file that a mesh file names, if need be by the end of its path.

        Args: name: in any spelling: backslashes, a drive, another case of letters.
            start: the folder of the file that names it, if that is another one.
        Returns: the file's path, or None.
        """
        if isinstance(name, bytes):
            found = self.find(os.fsdecode(name), start)
            return found or self.find(name.decode("latin-1"), start)
        parts = [p for p in re.split(r"[\\/]+", name) if p not in ("", ".")]
        for k in range(min(len(parts), 100)):
            for base in {start or self.folder: 0, self.folder: 0}:
                path = self._follow(base, parts[k:])
                if path is not None and os.path.isfile(path):
                    if path.resolve().is_relative_to(self.folder.resolve()):
                        return path
        return None

    def _follow(self, base, parts):
        for part in parts:
            path = base / part
            if not os.path.exists(path):
                low = part.lower()
                try:
                    same = [n for n in os.listdir(base) if n.lower() == low]
                except (OSError, ValueError):  # no folder, or a name that is none
                    return None
                if not same:
                    return None
                path = base / min(same)
            base = path
        return base


def numbers(text: bytes, kind: type = float) -> np.ndarray:
    """Read a text of numbers between blanks (N,).

    Raises: Unreadable: there is something else in it.
    """
    if not text.strip():
        return np.empty(0, dtype=kind)
    try:
        with warnings.catch_warnings(action="error", category=DeprecationWarning):
            return np.fromstring(text, dtype=kind, sep=" ")  # before 2.4 it but warns
    except (DeprecationWarning, ValueError):
        for word in text.split():
            try:
                kind(word)
            except ValueError:
                shown = word.decode("latin-1")[:20]
                raise Unreadable(f"{shown!r} stands where a number should") from None
        raise


def words(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of a text start, and in which line each one is (N,), from 0."""
    letters = np.frombuffer(text, dtype=np.uint8)
    ink = letters > 32
    starts = np.flatnonzero(ink & ~np.concatenate([[False], ink[:-1]]))
    return starts, np.searchsorted(np.flatnonzero(letters == 10), starts)
