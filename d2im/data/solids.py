"""Closed solids with relief: lofts, what dresses them, and their two bodies.

A `Piece` collects bodies and holes (the coarse shape) and dresses their faces. Relief
is a height field of known amplitude over the coarse surface: on flat faces lofts of
rounded rectangles with a smooth profile, or quilts; on curved ones the body's own
vertices, moved along their normals.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import trimesh
from manifold3d import Manifold, Mesh64, OpType
from scipy.interpolate import PchipInterpolator
from trimesh.transformations import rotation_matrix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..camera import Range

STEP = 15.0  # degrees a curved surface may turn from one facet to the next
ROOT = 0.012  # how far relief reaches past its face, to join or cut it cleanly
TALLEST = 0.028  # limit of stacked relief, such as a knob on a panel
FEATURE = 0.06  # smallest relief width: over 4 px where the object spans 70 px
STEEPEST = 0.65  # relief depth over bevel width: slopes up to 45 degrees
GRAIN, SPARSE = 0.01, 0.04  # spacing of a lofted body's points, with relief, without
SUBMERGED = 2e-4  # a quilt's ground lies that far under its face

# Kinds that are patterns: bounds of a cell's width and height (9: the whole patch).
CELLS = {
    "flutes": ((0.07, 9), (0.12, 9)),
    "ribs": ((0.07, 9), (0.12, 9)),
    "rings": ((9, 0.07), (9, 0.11)),
    "louvers": ((9, 0.08), (9, 0.11)),
    "waves": ((0.25, 0.08), (0.4, 0.11)),
    "lattice": ((0.16, 0.16), (0.22, 0.22)),
    "tufts": ((0.14, 0.14), (0.19, 0.19)),
    "studs": ((0.08, 0.08), (0.12, 0.12)),
    "panels": ((0.2, 0.2), (0.4, 0.4)),
    "motifs": ((0.15, 0.15), (0.22, 0.22)),
}
QUILTS = ("louvers", "waves", "lattice", "tufts", "motifs")  # on flat faces
SUNK = ("flutes", "hollows", "dimples", "dish")  # cut into a flat face

# Each side of a body as columns (right, up, outward) in the world frame.
SIDES = {
    "front": np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).T,
    "back": np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]]).T,
    "right": np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]]).T,
    "left": np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]).T,
    "top": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]).T,
}


# Solids: everything is a loft, of rounded rectangles or of any outline.


def _outline(half_x, half_y, corner):
    """Rounded rectangle (K, 2), counter-clockwise, sides exactly at the half sizes."""
    count = round(90 / STEP) if corner > 0 else 1
    half_step = np.pi / 4 / count
    turn = np.arange(count) * 2 * half_step + half_step
    arc = corner * np.stack([np.cos(turn), np.sin(turn)], 1) / np.cos(half_step)
    quarter = np.array([half_x - corner, half_y - corner]) + arc
    mirrored = quarter[::-1] * (-1, 1)
    return np.concatenate([quarter, mirrored, -quarter, -mirrored])


def _loft(width, height, corner, rings):
    """Closed solid through rounded rectangles stacked along z.

    Args: width, height: size of the outline at inset 0. corner: its corner radius.
        rings: (R, 2) rows (inset, z), z rising except where a moulding falls back.
    """
    half = np.array([width, height]) / 2
    corner = min(corner, *half)
    layers = []
    for inset, z in rings:
        halves = half - np.minimum(inset, 0.95 * half.min())
        # An exact offset would shrink the corner to a point: keep some of it.
        radius = min(max(corner - inset, 0.3 * corner), *halves)
        flat = _outline(*halves, radius)
        layers.append(np.column_stack([flat, np.full(len(flat), z)]))
    return _skin(layers)


def _skin(layers):
    """Close (R, K, 3) rings, counter-clockwise about the way they go, by fans."""
    layers = np.asarray(layers, dtype=float)
    grid = np.arange(layers.shape[0] * layers.shape[1]).reshape(layers.shape[:2])
    after = np.roll(grid, -1, axis=1)
    centre = np.full(grid.shape[1], grid.size)  # of the floor; the roof's comes next
    faces = [
        (grid[:-1], after[:-1], after[1:]),
        (grid[:-1], after[1:], grid[1:]),
        (after[0], grid[0], centre),
        (grid[-1], after[-1], centre + 1),
    ]
    faces = np.concatenate([np.stack(f, -1).reshape(-1, 3) for f in faces])
    middles = layers[[0, -1]].mean(1)
    vertices = np.concatenate([layers.reshape(-1, 3), middles])
    ids = np.arange(len(faces), dtype=np.uint64)  # or coplanar ones would merge
    return Manifold(Mesh64(vertices, faces.astype(np.uint64), face_id=ids))


def _ramp(bevel, depth):
    """Smooth profile (R, 2) from 0 to depth over a bevel: half a cosine."""
    # Its slope turns fastest at both ends, by pi^2/2 * depth/bevel per unit of x.
    count = max(5, int(np.ceil(np.pi**2 / 2 * depth / bevel / np.radians(STEP))))
    x = np.linspace(0, 1, count + 1)
    return np.stack([bevel * x, depth * _rise(x)], 1)


def _rise(t):
    """Half a cosine from 0 at t = 0 to 1 at t = 1, flat beyond."""
    return (1 - np.cos(np.pi * np.clip(t, 0, 1))) / 2


def _crest(t):
    """A smooth wave: 0 at whole t, 1 halfway."""
    return (1 - np.cos(2 * np.pi * t)) / 2


def _pattern(kind, a, b, size, rng, closed=False):
    """Heights (R, K) in [0, 1] of one kind of relief on a patch, 0 at its rim.

    Args: kind: key of `CELLS`.
        a, b: (K,) and (R,) places as fractions of the patch; beyond [0, 1] is outside.
        size: (width, height) of the patch, world units.
        rng: numpy Generator for the size of the cells.
        closed: the patch goes all the way round, so that left and right are no rim.
    """
    count = np.maximum(size // rng.uniform(*CELLS[kind]), 1)
    a, b = np.meshgrid(a, b)
    width = np.inf if closed else np.minimum(a, 1 - a) * size[0]
    rim = _rise(width / 0.035) * _rise(np.minimum(b, 1 - b) * size[1] / 0.035)
    a, b = a * count[0], b * count[1]
    cell = size / count
    off = np.stack([(a % 1 - 0.5) * cell[0], (b % 1 - 0.5) * cell[1]])
    radius = np.linalg.norm(off, axis=0)
    diagonal = [(t + 0.5) % 1 - 0.5 for t in (a + b, a - b)]  # from the next crossing
    if kind in ("flutes", "ribs"):
        height = _crest(a)
    elif kind == "rings":
        height = _crest(b)
    elif kind == "louvers":
        height = _crest((b % 1) ** 1.5)
    elif kind == "waves":
        height = _crest(b + 0.25 * np.sin(2 * np.pi * a))
    elif kind == "lattice":
        bars = [_rise(1.15 - np.abs(t) * cell.min() / 0.04) for t in diagonal]
        height = 1 - np.prod(1 - np.array(bars), 0)
    elif kind == "tufts":
        near = np.linalg.norm(diagonal, axis=0) * cell.min()
        button = 0.7 * _rise(2 - near / 0.02)
        height = np.maximum(np.sqrt(_crest(a + b) * _crest(a - b)), button)
    elif kind == "studs":
        height = _rise(1.1 - radius / (0.5 * min(*cell, 0.11)))
    elif kind == "panels":
        corner = np.maximum(np.abs(off) - cell[:, None, None] / 2 + 0.05, 0)
        height = _rise((0.042 - np.linalg.norm(corner, axis=0)) / 0.035)
    else:
        petals = 0.75 + 0.25 * np.cos(rng.integers(4, 7) * np.arctan2(*off))
        height = _rise((0.48 * cell.min() * petals - radius) / 0.04)
    return height * rim


def _gentle(height, layers):
    """The greatest depth of (R, K) heights in [0, 1] that slopes up to 40 degrees."""
    along, across = (
        np.diff(height, axis=k) / np.linalg.norm(np.diff(layers, axis=k), axis=2)
        for k in (0, 1)
    )
    return 0.85 / np.hypot(along[:, 1:], across[1:]).max(initial=1e-9)


def _stations(length, spans, least):
    """Fractions of a line, close to one another where it lies in a span (from, to)."""
    t = np.linspace(0, 1, 1001)
    fine = np.any([(t - low) % 1 <= high - low for low, high in [(0, -1), *spans]], 0)
    density = length / np.where(fine, GRAIN, min(SPARSE, length / least))
    total = np.append(0, np.cumsum(density[1:]) / 1000)
    return np.interp(np.linspace(0, total[-1], round(total[-1]) + 1), total, t)


def oval(half_x: float, half_y: float, power: float = 2.0) -> np.ndarray:
    """Outline (721, 2) of an ellipse; a greater power makes it squarer."""
    turn = np.linspace(-np.pi / 2, 1.5 * np.pi, 721)  # it starts at the front
    wave = np.stack([np.cos(turn), np.sin(turn)], 1)
    return np.sign(wave) * np.abs(wave) ** (2 / power) * (half_x, half_y)


def unit(*size) -> np.ndarray:
    """Scale a size so that its diagonal is 1: the object's diameter."""
    return np.array(size) / np.linalg.norm(size)


def _frame(rotation, origin):
    """(4, 4) transform from a rotation and an origin."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, origin
    return matrix


def lean(degrees: float, hinge: Sequence[float]) -> np.ndarray:
    """(4, 4) rotation that leans a body back about the x axis through a hinge."""
    return rotation_matrix(-np.radians(degrees), (1, 0, 0), hinge)


@dataclass(frozen=True)
class Face:
    """A flat rectangle of a body that can carry relief, with its own frame."""

    frame: np.ndarray  # (4, 4), (right, up, outward) at its centre -> piece
    width: float
    height: float
    body: int
    part: str
    level: float = 0.0  # height over the coarse surface

    def move(
        self, x: float, y: float, z: float, width: float | None, height: float | None
    ) -> Face:
        frame = self.frame @ _frame(np.eye(3), (x, y, z))
        return replace(self, frame=frame, width=width, height=height)

    def sub(
        self,
        left: float = 0.0,
        right: float = 1.0,
        bottom: float = 0.0,
        top: float = 1.0,
    ) -> Face:
        """The part between these fractions of its width and height."""
        x, y = (left + right - 1) / 2 * self.width, (bottom + top - 1) / 2 * self.height
        size = (right - left) * self.width, (top - bottom) * self.height
        return self.move(x, y, 0, *size)

    def inset(self, margin: float) -> Face:
        return self.move(0, 0, 0, self.width - 2 * margin, self.height - 2 * margin)

    def split(self, cols: int, rows: int) -> list[Face]:
        """Its cells, row by row from below."""
        x, y = np.linspace(0, 1, cols + 1), np.linspace(0, 1, rows + 1)
        cells = [(*i, *j) for j in pairwise(y) for i in pairwise(x)]
        return [self.sub(*cell) for cell in cells]


@dataclass
class Piece:
    """Bodies, holes and relief of one piece of furniture, each with its part."""

    rng: np.random.Generator
    depth: float  # of its relief
    bodies: list = field(default_factory=list)
    holes: list = field(default_factory=list)
    carved: list = field(default_factory=list)  # a body's detailed form, what is cut
    raised: list = field(default_factory=list)
    part_of: dict = field(default_factory=dict)  # manifold's original id -> its name
    amplitude: float = 0.0

    def pick(self, words: str, p: Sequence[float] | None = None) -> str:
        """Draw one of several words."""
        return str(self.rng.choice(words.split(), p=p))

    def mark(self, solid: Manifold, part: str) -> Manifold:
        """The same solid, remembered as belonging to a part."""
        self.part_of[solid.to_mesh64().run_original_id[0]] = part
        return solid

    def block(
        self,
        part: str,
        x: Range,
        y: Range,
        z: Range,
        *,
        axis: str = "top",
        corner: float = 0,
        edge: float = 0,
        taper: float = 0,
        frame: np.ndarray | None = None,
    ) -> dict[str, Face]:
        """Add a box whose outline across `axis` and whose rims may be rounded.

        Args: part: name of the part, for colouring.
            x, y, z: its range (low, high) on each axis, or half of one around 0.
            axis: side toward which the rounded outline is extruded.
            corner: radius of the outline's corners.
            edge: radius of the rims at both ends of the axis.
            taper: inset of the outline at the axis' low end (such faces stay plain).
            frame: (4, 4) transform of the finished block, for leaning parts.
        Returns: dict of its flat faces by side.
        """
        ranges = [(-s, s) if np.ndim(s) == 0 else s for s in (x, y, z)]
        low, high = np.transpose(ranges)
        extent, centre = high - low, (high + low) / 2
        frame = np.eye(4) if frame is None else frame
        rotation = SIDES[axis]
        width, height, length = np.abs(rotation.T) @ extent
        corner = min(corner, width / 2, height / 2)
        edge = min(edge, 0.45 * min(width, height, length))
        turn = np.radians([0, 22.5, 45, 67.5, 90] if edge > 0 else [0])
        inset = edge * (1 - np.cos(turn))
        rise = length / 2 - edge * (1 - np.sin(turn))
        rings = np.stack([inset, rise], 1)
        rings = np.concatenate([rings[::-1] * (1, -1) + (taper, 0), rings])
        solid = _loft(width, height, corner, rings)
        solid = solid.transform((frame @ _frame(rotation, centre))[:3])
        solid = self.mark(solid.as_original(), part)
        self.bodies.append(solid)
        self.carved.append([solid])
        faces = {}
        for side, turn in SIDES.items():
            size = np.abs(turn.T) @ extent
            along = np.abs(turn.T @ rotation[:, 2]) > 0.5
            cap = edge + 0.3 * corner
            trim = np.full(2, cap) if along[2] else np.where(along[:2], edge, corner)
            place = frame @ _frame(turn, centre + turn[:, 2] * size[2] / 2)
            area = size[:2] - 2 * trim
            faces[side] = Face(place, *area, len(self.bodies) - 1, part)
        return faces

    def loft(
        self,
        part: str,
        outline: np.ndarray,
        rings: Sequence,
        relief: Sequence[tuple] = (),
        axis: str = "top",
        at: Sequence[float] = (0, 0, 0),
        cut: bool = False,
    ) -> Face:
        """Add a body of any outline, its walls curved and perhaps with relief.

        Args: part: name of the part, for colouring.
            outline: (K, 2) closed polygon, counter-clockwise.
            rings: (R, 2 or 4) rows (scale, z) or (scale, z, x, y) that the outline runs
                through along a smooth curve.
            relief: rows (kinds, (from, to), (low, high)): words to draw from, fractions
                of the outline, which may start below 0, and of the way up the wall.
            axis: side toward which z goes. at: (3,) where the rings' origin lies.
            cut: hollow the body that was lofted last instead.
        Returns: Face of its roof: the bounding rectangle of the last ring.
        """
        rings = np.pad(rings, [(0, 0), (0, 4 - len(rings[0]))]).astype(float)
        way = np.diff(rings * (np.abs(outline).max(), 1, 1, 1), axis=0)
        way = np.append(0, np.cumsum(np.linalg.norm(way, axis=1)))
        edge = np.linalg.norm(np.diff(outline, axis=0), axis=1)
        edge = np.append(0, np.cumsum(edge))
        girth = edge[-1] * rings[:, 0].max()
        u = _stations(girth, [row[1] for row in relief], 24)[:-1]
        v = _stations(way[-1], [row[2] for row in relief], 12)
        v = v if relief or len(rings) > 2 else np.array([0.0, 1.0])
        scale, z, *middle = PchipInterpolator(way, rings)(v * way[-1]).T[..., None]
        layers = [
            scale * np.interp(u * edge[-1], edge, line) + shift
            for line, shift in zip(outline.T, middle, strict=True)
        ]
        layers = np.stack([*layers, np.repeat(z, len(u), 1)], -1)
        around = np.roll(layers, -1, 1) - np.roll(layers, 1, 1)
        normals = np.cross(around, np.gradient(layers, axis=0))
        normals /= np.linalg.norm(normals, axis=2, keepdims=True)
        height = np.zeros(layers.shape[:2])
        for kinds, (left, right), (low, high) in relief:
            kind = self.pick(kinds)
            a, b = (u - left) % 1 / (right - left), (v - low) / (high - low)
            scales = scale[(b > 0) & (b < 1)]
            size = (right - left) * edge[-1] * scales.min(), (high - low) * way[-1]
            bump = _pattern(kind, a, b, np.array(size), self.rng, right - left == 1)
            sign = -0.65 if kind == "flutes" else 1  # hollows turn more sharply
            height += sign * min(self.depth, _gentle(bump, layers)) * bump
        place = _frame(SIDES[axis], at)
        solids = []
        for rows in (layers, layers + height[..., None] * normals)[: 1 + bool(relief)]:
            solids.append(self.mark(_skin(rows), part).transform(place[:3]))
        if cut:
            self.bodies[-1] -= solids[-1]
            self.carved[-1][0] -= solids[-1]
        else:
            self.amplitude = max(self.amplitude, np.abs(height).max())
            self.carved.append(solids[-1:])
            self.bodies.append(solids[0])
        low, high = layers[-1].min(0), layers[-1].max(0)
        roof = place @ _frame(np.eye(3), (low + high) / 2)
        return Face(roof, *(high - low)[:2], len(self.bodies) - 1, part)

    def hole(self, face: Face, depth: float, corner: float = 0.0) -> None:
        """Cut the face's rectangle `depth` deep: a hole of the coarse body too."""
        rings = np.array([(0, -depth), (0, 0.04)])
        solid = _loft(face.width, face.height, corner, rings)
        solid = solid.transform(face.frame[:3]).as_original()
        self.holes.append(self.mark(solid, face.part))

    def emboss(
        self,
        face: Face,
        size: tuple[float, float],
        corner: float,
        bevel: float,
        part: str,
        share: float = 1,
        sunk: bool = False,
        end: float = 1,
        at: Sequence[tuple[float, float]] = ((0, 0),),
    ) -> list[Face]:
        """Put copies of one smooth bump or hollow on a face.

        Args: face: the face; it carries its level over the coarse surface.
            size: (width, height) of the bump.
            corner, bevel: radius of its outline, width of its slope. part: its part.
            share: its height as one of the piece's depth, cut down where slope or stack
                would be too high. sunk: cut into the face instead of standing on it.
            end: height of the middle over the rim's; below 1 makes a moulding.
            at: (K, 2) centres of the copies in the face's frame.
        Returns: its flat middles, as faces.
        """
        bevel = min(bevel, (0.24 if end < 1 else 0.47) * min(size))
        depth = min(share * self.depth, STEEPEST * bevel, TALLEST - max(face.level, 0))
        rings = _ramp(bevel, depth)
        # The profile crosses the face within its first facet, not along an edge.
        rings[0, 1] = -rings[1, 1]
        if end < 1:
            fall = _ramp(bevel, depth * (1 - end))[1:]
            rings = np.concatenate([rings, (bevel, depth) + fall * (1, -1)])
        inset, rise = rings[-1]
        solid = _loft(*size, corner, np.concatenate([[(0, -ROOT)], rings]))
        if sunk:
            solid, depth, rise = solid.mirror((0, 0, 1)), -depth, -rise
        self.amplitude = max(self.amplitude, abs(face.level + depth))
        solid = self.mark(solid.as_original(), part)
        copies = self.carved[face.body] if sunk else self.raised
        middles = []
        for x, y in at:
            place = face.frame @ _frame(np.eye(3), (x, y, 0))
            copies.append(solid.transform(place[:3]))
            middle = face.move(x, y, rise, size[0] - 2 * inset, size[1] - 2 * inset)
            middles.append(replace(middle, level=face.level + rise))
        return middles

    def dress(self, faces: Sequence[Face], kinds: str, chance: float = 1) -> None:
        """Cover faces with relief of one kind, drawn once so that they match.

        Args: faces: those too small for a feature stay plain.
            kinds: words to draw from: ribs, flutes, panels, hollows, mouldings, domes,
                dimples, pad, dish, or one of `QUILTS`.
            chance: that they are not left plain.
        """
        if chance < 1 and self.rng.random() >= chance:
            return
        kind, seed = self.pick(kinds), self.rng.integers(2**32)
        suffix = f" {kind}" if self.rng.random() < 0.35 else ""
        for face in faces:
            area = face.inset(0.012)
            extent = np.array([area.width, area.height])
            if extent.min() < FEATURE:
                continue
            if kind in QUILTS:
                self.quilt(area, kind, face.part + suffix, np.random.default_rng(seed))
                continue
            layout = _layout(kind, extent, np.random.default_rng(seed))
            grid, size, corner, bevel, end = layout
            cells = np.array(list(np.ndindex(*grid)))
            centres = ((cells + 0.5) / grid - 0.5) * extent
            how = dict(sunk=kind in SUNK, end=end, at=centres)
            self.emboss(area, size, corner, bevel, face.part + suffix, **how)

    def quilt(self, face: Face, kind: str, part: str, rng: np.random.Generator) -> None:
        """Cover a face with a pattern: a slab whose top is a height field."""
        size = np.array([face.width, face.height])
        x, y = (np.linspace(0, 1, round(s / GRAIN) + 1) for s in size)
        bump = _pattern(kind, x, y, size, rng)
        grid = np.meshgrid((x - 0.5) * size[0], (y - 0.5) * size[1])
        grid = np.stack(grid, -1)
        depth = min(self.depth, TALLEST - max(face.level, 0), _gentle(bump, grid))
        top = np.concatenate([grid, depth * bump[..., None] - SUBMERGED], 2)
        under = top[:, [-1, 0]] * (1, 1, 0) - (0, 0, ROOT)
        solid = self.mark(_skin(np.concatenate([top, under], 1)).as_original(), part)
        self.raised.append(solid.transform(face.frame[:3]))
        self.amplitude = max(self.amplitude, face.level + depth * bump.max())

    def bead(self, part: str, centre: Sequence[float], radius: float) -> None:
        """Put a ring around an upright round leg."""
        # Its corners stand out further than its flat facets.
        depth = min(self.depth, STEEPEST * FEATURE / 2)
        self.amplitude = max(self.amplitude, depth / np.cos(np.radians(STEP / 2)))
        rise = _ramp(FEATURE / 2, depth)
        rise[0, 1] = -rise[1, 1]
        rings = np.concatenate([rise, rise[-2::-1] * (-1, 1) + (FEATURE, 0)])
        rings = np.stack([-rings[:, 1], rings[:, 0] - FEATURE / 2], 1)
        solid = _loft(2 * radius, 2 * radius, radius, rings)
        place = _frame(SIDES["top"], centre)
        solid = solid.transform(place[:3]).as_original()
        self.raised.append(self.mark(solid, part))

    def meshes(self) -> tuple[trimesh.Trimesh, trimesh.Trimesh]:
        """The coarse and the detailed body, closed, with a part id per face."""
        # Relief is cut before the union, so that it cuts no neighbouring body.
        names = tuple(dict.fromkeys(self.part_of.values()))
        carved = [Manifold.batch_boolean(b, OpType.Subtract) for b in self.carved]
        for bodies in (self.bodies, [*carved, *self.raised]):
            body = Manifold.batch_boolean(bodies, OpType.Add)
            body = Manifold.batch_boolean([body, *self.holes], OpType.Subtract)
            raw = body.to_mesh64()
            parts = [names.index(self.part_of[i]) for i in raw.run_original_id]
            yield trimesh.Trimesh(
                raw.vert_properties,
                raw.tri_verts.astype(np.int64),
                face_attributes={"part": np.repeat(parts, np.diff(raw.run_index) // 3)},
                metadata={"solid": True, "parts": names},
                process=False,
            )


def _layout(kind, extent, rng):
    """Arrange relief on a rectangle: (grid, size, corner, bevel, end) for `emboss`."""
    grid, end = np.ones(2, int), 1.0
    narrow = extent.min()
    if kind in ("ribs", "flutes"):
        across = rng.integers(2)
        grid[across] = np.clip(extent[across] // rng.uniform(0.085, 0.14), 1, 8)
        size = extent.copy()
        size[across] *= rng.uniform(0.6, 0.8) / grid[across]
        size[across] = np.clip(size[across], FEATURE, 0.1)
        corner = bevel = size.min() / 2
    elif kind in ("domes", "dimples"):
        size = np.full(2, min(rng.uniform(0.06, 0.1), narrow))
        grid = np.clip(extent // (size * rng.uniform(1.25, 1.8)), 1, (5, 3)).astype(int)
        corner = bevel = size[0] / 2
    elif kind in ("pad", "dish"):
        size = extent
        corner, bevel = rng.uniform((0.1, 0.2), (0.45, 0.4)) * narrow
    else:
        grid = np.clip(extent // rng.uniform(0.17, 0.5, 2), 1, 4).astype(int)
        size = np.maximum(extent / grid - rng.uniform(0.012, 0.03), FEATURE)
        corner, bevel = rng.uniform((0.008, 0.025), (0.04, 0.045))
        end = rng.uniform(0.0, 0.3) if kind == "mouldings" else 1.0
    return grid, size, corner, bevel, end
