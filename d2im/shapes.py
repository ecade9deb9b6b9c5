"""Procedural furniture with known truth: a coarse body and the same body with relief.

A family is one function that fills a `_Piece` with bodies (the coarse shape, with its
holes) and dresses their flat faces with relief: ribs, flutes, panels, mouldings, domes,
dimples and pads are all lofts of a rounded rectangle with a smooth profile, raised or
sunk, so that relief is a height field of known amplitude over the coarse surface.
Lengths are world units from the start: `_unit` gives each piece a diagonal of 1.
"""

from dataclasses import dataclass, field, replace
from itertools import pairwise, product

import numpy as np
import trimesh
from manifold3d import Manifold, Mesh64, OpType

STEP = 15.0  # degrees a curved surface may turn from one facet to the next
ROOT = 0.012  # how far relief reaches past its face, to join or cut it cleanly
TALLEST = 0.028  # limit of stacked relief, such as a knob on a panel
FEATURE = 0.06  # smallest relief width: over 4 px where the object spans 70 px
STEEPEST = 0.65  # relief depth over bevel width: slopes up to 45 degrees

# Each side of a body as columns (right, up, outward) in the world frame.
SIDES = {
    "front": np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).T,
    "back": np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]]).T,
    "right": np.array([[0, 0, -1], [0, 1, 0], [1, 0, 0]]).T,
    "left": np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]).T,
    "top": np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]).T,
}


@dataclass(frozen=True)
class Shape:
    """A procedural piece: its plain body and the same body with relief."""

    coarse: trimesh.Trimesh
    detailed: trimesh.Trimesh
    family: str
    seed: int


def make_shape(family, seed):
    """Make the piece of furniture that belongs to a family and a seed.

    Args:
        family: one of `FAMILIES`.
        seed: non-negative int; the same pair gives the same shape.

    Returns:
        Shape of two closed meshes in the world frame (y up, front +z), both centred and
        scaled by the detailed one (bounding box at the origin, farthest vertex at 0.5).
        Each has face_attributes["part"] (F,) int; metadata "solid" (True) and "parts"
        (names by id); the detailed one metadata "amplitude", in world units: the bound
        of |F_detailed - F_coarse|, which relief comes close to.

    Raises:
        ValueError: unknown family, or a seed that is no non-negative integer.
    """
    if family not in BUILDERS:
        known = ", ".join(FAMILIES)
        raise ValueError(f"family must be one of {known}, got {family!r}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    rng = np.random.default_rng([FAMILIES.index(family), int(seed)])
    piece = _Piece(rng, depth=rng.uniform(0.011, 0.024))
    BUILDERS[family](piece, rng)
    coarse, detailed = piece.meshes()
    centre = detailed.bounds.mean(0)
    scale = 0.5 / np.linalg.norm(detailed.vertices - centre, axis=1).max()
    for mesh in (coarse, detailed):
        mesh.vertices = (mesh.vertices - centre) * scale
    detailed.metadata["amplitude"] = float(piece.amplitude * scale)
    return Shape(coarse, detailed, family, int(seed))


# Solids: everything is a loft of rounded rectangles.


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

    Args:
        width, height: size of the outline at inset 0.
        corner: its corner radius.
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
    count = len(flat)
    grid = np.arange(len(rings) * count).reshape(-1, count)
    after = np.roll(grid, -1, axis=1)
    centre = np.full(count, grid.size)  # of the floor; the roof's comes next
    faces = [
        (grid[:-1], after[:-1], after[1:]),
        (grid[:-1], after[1:], grid[1:]),
        (after[0], grid[0], centre),
        (grid[-1], after[-1], centre + 1),
    ]
    faces = np.concatenate([np.stack(f, -1).reshape(-1, 3) for f in faces])
    layers.append([(0, 0, rings[0][1]), (0, 0, rings[-1][1])])
    return Manifold(Mesh64(np.concatenate(layers), faces.astype(np.uint64)))


def _ramp(bevel, depth):
    """Smooth profile (R, 2) from 0 to depth over a bevel: half a cosine."""
    # Its slope turns fastest at both ends, by pi^2/2 * depth/bevel per unit of x.
    count = max(5, int(np.ceil(np.pi**2 / 2 * depth / bevel / np.radians(STEP))))
    x = np.linspace(0, 1, count + 1)
    return np.stack([bevel * x, depth * (1 - np.cos(np.pi * x)) / 2], 1)


def _unit(*size):
    """Scale a size so that its diagonal is 1: the object's diameter."""
    return np.array(size) / np.linalg.norm(size)


def _frame(rotation, origin):
    """(4, 4) transform from a rotation and an origin."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = rotation, origin
    return matrix


def _lean(degrees, hinge):
    """(4, 4) rotation that leans a body back about the x axis through a hinge."""
    return trimesh.transformations.rotation_matrix(
        -np.radians(degrees), (1, 0, 0), hinge
    )


@dataclass(frozen=True)
class _Face:
    """A flat rectangle of a body that can carry relief, with its own frame."""

    frame: np.ndarray  # (4, 4), (right, up, outward) at its centre -> piece
    width: float
    height: float
    body: int
    part: str
    level: float = 0.0  # height over the coarse surface

    def move(self, x, y, z, width, height):
        frame = self.frame @ _frame(np.eye(3), (x, y, z))
        return replace(self, frame=frame, width=width, height=height)

    def sub(self, left=0.0, right=1.0, bottom=0.0, top=1.0):
        """The part between these fractions of its width and height."""
        x, y = (left + right - 1) / 2 * self.width, (bottom + top - 1) / 2 * self.height
        size = (right - left) * self.width, (top - bottom) * self.height
        return self.move(x, y, 0, *size)

    def inset(self, margin):
        return self.move(0, 0, 0, self.width - 2 * margin, self.height - 2 * margin)

    def split(self, cols, rows):
        """Its cells, row by row from below."""
        x, y = np.linspace(0, 1, cols + 1), np.linspace(0, 1, rows + 1)
        cells = [(*i, *j) for j in pairwise(y) for i in pairwise(x)]
        return [self.sub(*cell) for cell in cells]


@dataclass
class _Piece:
    """Bodies, holes and relief of one piece of furniture, each with its part."""

    rng: np.random.Generator
    depth: float  # of its relief
    bodies: list = field(default_factory=list)
    holes: list = field(default_factory=list)
    raised: list = field(default_factory=list)
    sunk: dict = field(default_factory=dict)  # body's index -> what is cut out of it
    names: list = field(default_factory=list)
    part_of: dict = field(default_factory=dict)  # manifold's original id -> part id
    amplitude: float = 0.0

    def mark(self, solid, part):
        """The same solid, remembered as belonging to a part."""
        if part not in self.names:
            self.names.append(part)
        solid = solid.as_original()
        self.part_of[solid.original_id()] = self.names.index(part)
        return solid

    def block(self, part, low, high, axis="top", corner=0, edge=0, taper=0, frame=None):
        """Add a box whose outline across `axis` and whose rims may be rounded.

        Args:
            part: name of the part, for colouring.
            low, high: (3,) opposite corners.
            axis: side toward which the rounded outline is extruded.
            corner: radius of the outline's corners.
            edge: radius of the rims at both ends of the axis.
            taper: inset of the outline at the axis' low end (such faces stay plain).
            frame: (4, 4) transform of the finished block, for leaning parts.

        Returns:
            dict of its flat faces by side.
        """
        extent, centre = np.subtract(high, low), np.add(high, low) / 2
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
        self.bodies.append(self.mark(solid, part))
        faces = {}
        for side, turn in SIDES.items():
            size = np.abs(turn.T) @ extent
            along = np.abs(turn.T @ rotation[:, 2]) > 0.5
            cap = edge + 0.3 * corner
            trim = np.full(2, cap) if along[2] else np.where(along[:2], edge, corner)
            place = frame @ _frame(turn, centre + turn[:, 2] * size[2] / 2)
            faces[side] = _Face(
                place, *(size[:2] - 2 * trim), body=len(self.bodies) - 1, part=part
            )
        return faces

    def hole(self, face, depth, corner=0.0):
        """Cut the face's rectangle `depth` deep: a hole of the coarse body too."""
        rings = np.array([(0, -depth), (0, 0.04)])
        solid = _loft(face.width, face.height, corner, rings)
        self.holes.append(self.mark(solid.transform(face.frame[:3]), face.part))

    def emboss(self, face, centres, size, corner, bevel, depth, sunk, part, end=1.0):
        """Put copies of one smooth bump or hollow on a face.

        Args:
            face: the face; it carries its level over the coarse surface.
            centres: (K, 2) places in the face's frame.
            size: (width, height) of the bump.
            corner, bevel: radius of its outline, width of its slope.
            depth: its height, cut down where slope or stack would be too high.
            sunk: cut into the face instead of standing on it.
            part: name of its part.
            end: height of the middle over the rim's; below 1 makes a moulding.

        Returns:
            its flat middles, as faces.
        """
        bevel = min(bevel, (0.24 if end < 1 else 0.47) * min(size))
        depth = min(depth, STEEPEST * bevel, TALLEST - max(face.level, 0))
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
        solid = self.mark(solid, part)
        copies = self.sunk.setdefault(face.body, []) if sunk else self.raised
        middles = []
        for x, y in centres:
            place = face.frame @ _frame(np.eye(3), (x, y, 0))
            copies.append(solid.transform(place[:3]))
            middle = face.move(x, y, rise, size[0] - 2 * inset, size[1] - 2 * inset)
            middles.append(replace(middle, level=face.level + rise))
        return middles

    def dress(self, faces, *kinds):
        """Cover faces with relief of one kind, drawn once so that they match.

        Args:
            faces: those too small for a feature stay plain.
            kinds: names to draw from: ribs, flutes, panels, hollows, mouldings, domes,
                dimples, pad, dish.
        """
        kind, seed = str(self.rng.choice(kinds)), self.rng.integers(2**32)
        suffix = f" {kind}" if self.rng.random() < 0.35 else ""
        for face in faces:
            area = face.inset(0.012)
            extent = np.array([area.width, area.height])
            if extent.min() < FEATURE:
                continue
            layout = _layout(kind, extent, np.random.default_rng(seed))
            grid, size, corner, bevel, end = layout
            cells = np.array(list(np.ndindex(*grid)))
            centres = ((cells + 0.5) / grid - 0.5) * extent
            sunk = kind in ("flutes", "hollows", "dimples", "dish")
            part = face.part + suffix
            self.emboss(area, centres, size, corner, bevel, self.depth, sunk, part, end)

    def bead(self, part, centre, radius):
        """Put a ring around an upright round leg."""
        # Its corners stand out further than its flat facets.
        depth = min(self.depth, STEEPEST * FEATURE / 2)
        self.amplitude = max(self.amplitude, depth / np.cos(np.radians(STEP / 2)))
        rise = _ramp(FEATURE / 2, depth)
        rise[0, 1] = -rise[1, 1]
        rings = np.concatenate([rise, rise[-2::-1] * (-1, 1) + (FEATURE, 0)])
        rings = np.stack([-rings[:, 1], rings[:, 0] - FEATURE / 2], 1)
        solid = _loft(2 * radius, 2 * radius, radius, rings)
        solid = solid.transform(_frame(SIDES["top"], centre)[:3])
        self.raised.append(self.mark(solid, part))

    def meshes(self):
        """The coarse and the detailed body, closed, with a part id per face."""
        # Relief is cut before the union, so that it cuts no neighbouring body.
        carved = [
            Manifold.batch_boolean([body, *self.sunk.get(i, ())], OpType.Subtract)
            for i, body in enumerate(self.bodies)
        ]
        for bodies in (self.bodies, [*carved, *self.raised]):
            body = Manifold.batch_boolean(bodies, OpType.Add)
            raw = Manifold.batch_boolean(
                [body, *self.holes], OpType.Subtract
            ).to_mesh64()
            parts = [self.part_of[i] for i in raw.run_original_id]
            yield trimesh.Trimesh(
                raw.vert_properties,
                raw.tri_verts.astype(np.int64),
                face_attributes={"part": np.repeat(parts, np.diff(raw.run_index) // 3)},
                metadata={"solid": True, "parts": tuple(self.names)},
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


# Assemblies that several families share.


def _stand(piece, style, half, top, size, hidden=0.0):
    """Support a piece from the floor (y = 0).

    Args:
        style: square, tapered or round legs, slabs, pedestal, column or plinth.
        half: (half_x, half_z) of the ground it covers.
        top: height of the legs.
        size: thickness of a leg.
        hidden: length of their upper ends that other bodies cover.
    """
    (x, z), rng, r = half, piece.rng, size / 2
    if style == "plinth":
        faces = piece.block("leg", (-x, 0, -z), (x, top, z))
        piece.dress([faces["front"].sub(top=1 - hidden / top)], "ribs", "panels")
    elif style == "slabs":
        left = piece.block("leg", (-x, 0, -z), (size - x, top, z), edge=0.006)
        right = piece.block("leg", (x - size, 0, -z), (x, top, z), edge=0.006)
        piece.dress([left["left"], right["right"]], "panels", "hollows", "mouldings")
        piece.dress([left["front"], right["front"]], "ribs", "panels")
    elif style == "pedestal":
        reach, r = min(x, z), 0.75 * size
        piece.block("leg", (-reach, 0, -reach), (reach, 0.04, reach), corner=reach)
        piece.block("leg", (-r, 0, -r), (r, top, r), corner=r)
        for y in np.arange(0.1, top - hidden - 0.05, rng.uniform(0.09, 0.16)):
            piece.bead("leg", (0, y, 0), r)
    elif style == "column":
        piece.block("leg", (-0.7 * x, 0, -0.7 * z), (0.7 * x, 0.04, 0.7 * z), edge=0.01)
        faces = piece.block("leg", (-size, 0, -size), (size, top, size))
        seen = 0.06 / top, 1 - hidden / top
        sides = [faces[s].sub(0, 1, *seen) for s in SIDES if s != "top"]
        piece.dress(sides, "panels", "hollows", "flutes", "domes")
    else:
        # Feet are too short to be turned.
        beads = rng.random(rng.integers(0, 3)) if top > 0.2 else ()
        beads = [0.05 + y * (top - hidden - 0.1) for y in beads]
        taper = 0.4 * r if style == "tapered" else 0
        corner = r if style == "round" else 0.2 * r
        fronts = []
        for cx, cz in product((r - x, x - r), (r - z, z - r)):
            low, high = (cx - r, 0, cz - r), (cx + r, top, cz + r)
            faces = piece.block("leg", low, high, corner=corner, taper=taper)
            fronts.append(faces["front"])
            for y in beads if style == "round" else ():
                piece.bead("leg", (cx, y, cz), r)
        if style == "square" and rng.random() < 0.7:
            piece.dress(fronts, "panels", "hollows")


def _fronts(piece, face, reach):
    """Divide a front into doors, drawers and niches `reach` deep, with handles."""
    rng = piece.rng
    cols = int(np.clip(face.width // rng.uniform(0.17, 0.36), 1, 4))
    counts = np.clip(face.height // rng.uniform(0.14, 0.6, cols), 1, 5).astype(int)
    if rng.random() < 0.7:  # left and right alike
        counts = counts[np.minimum(np.arange(cols), np.arange(cols)[::-1])]
    style = rng.choice(["panels", "hollows", "mouldings", "pad"])
    gap, corner, bevel = rng.uniform((0.01, 0.008, 0.025), (0.025, 0.03, 0.045))
    end = rng.uniform(0.0, 0.3) if style == "mouldings" else 1.0
    door, grip = rng.uniform(0.4, 0.65), rng.uniform(0.06, 0.075)
    bar, niches = rng.random() < 0.4, rng.random() < 0.3
    for count, column in zip(counts, face.split(cols, 1), strict=True):
        # Two or three rows: a tall one under drawers.
        rows = np.linspace(0, 1, count + 1)
        if count in (2, 3):
            rows[1:] = np.linspace(door, 1, count)
        for low, high in pairwise(rows):
            cell = column.sub(bottom=low, top=high).inset(gap / 2)
            if niches and high == 1 and count > 1:
                piece.hole(cell.inset(0.01), reach)
                continue
            size = np.array([cell.width, cell.height])
            slope = 0.35 * size.min() if style == "pad" else bevel
            profile = (
                corner,
                slope,
                0.75 * piece.depth,
                style == "hollows",
                "front",
                end,
            )
            [front] = piece.emboss(cell, [(0, 0)], size, *profile)
            tall = size[1] > 1.2 * size[0]
            hold = np.full(2, grip)
            if bar:
                hold[int(tall)] = 0.14
            room = front.width - hold[0], front.height - hold[1]
            if min(room) > 0.01:
                x = 0.5 * room[0] - 0.01 if tall else 0.0
                profile = grip / 2, grip / 2, piece.depth, False, "handle"
                piece.emboss(front, [(x, 0)], hold, *profile)


# The families: proportions, bodies, and what their faces may carry.


def _chair(piece, rng):
    width, height, depth = _unit(*rng.uniform((0.42, 0.8, 0.42), (0.65, 1.15, 0.6)))
    x, z = width / 2, depth / 2
    seat_y, thick = height * rng.uniform(0.4, 0.5), rng.uniform(0.05, 0.12)
    low, rim = seat_y - thick, rng.uniform(0.006, 0.015)
    corner = rng.uniform(0, 0.05)
    ends = (-x, low, -z), (x, seat_y, z)
    seat = piece.block("seat", *ends, corner=corner, edge=rim)
    style = rng.choice(["square", "tapered", "round", "slabs", "pedestal"])
    size = rng.uniform(0.06, 0.09)
    _stand(piece, style, (x - 0.01, z - 0.01), low + rim, size, rim)

    arms, wide = rng.choice(["none", "none", "posts", "sides"]), rng.uniform(0.06, 0.08)
    inside = (0.0, 1.0) if arms == "none" else (wide / width, 1 - wide / width)
    thin, corner = rng.uniform(0.06, 0.085), rng.uniform(0, 0.06)
    lean = _lean(rng.uniform(0, 12), (0, seat_y, -z))
    ends = (-x + 0.003, low + 0.01, -z + 0.003), (x - 0.003, height, -z + thin)
    back = piece.block("back", *ends, "front", corner, edge=rim, frame=lean)
    hidden = (thick + 0.01) / (height - low)  # share of the back that is in the seat
    front, rear = (back[side].sub(bottom=hidden) for side in ("front", "back"))
    style = rng.choice(["solid", "gap", "window", "slots"], p=[0.4, 0.2, 0.2, 0.2])
    rail = 0.0 if style == "solid" else rng.uniform(0.3, 0.6)
    if rail:
        cells = (
            [(3, 1), (5, 1), (1, 3)][rng.integers(3)] if style == "slots" else (1, 1)
        )
        opening = front.sub(0.18, 0.82, 0.05 if style == "gap" else 0.15, rail)
        corner = rng.uniform(0, 0.02)
        for cell in opening.split(*cells)[::2]:
            piece.hole(cell, thin + 0.05, corner)
        rail += 0.03
    tops = [front.sub(*inside, rail), rear.sub(bottom=rail)]
    kinds = ("ribs", "flutes", "panels", "hollows", "mouldings", "domes", "pad")
    piece.dress(tops, *kinds)

    rest, outer = seat_y + height * rng.uniform(0.16, 0.24), []
    for sign, side in ((-1, "left"), (1, "right")):
        left, right = sorted((sign * (x - wide), sign * (x + 0.004)))
        if arms == "posts":
            piece.block("arm", (left, rest - 0.05, -z), (right, rest, z), edge=0.015)
            ends = (left + 0.01, low, z - 0.1), (right - 0.01, rest - 0.01, z - 0.03)
            piece.block("arm", *ends)
        elif arms == "sides":
            ends = (left, low + 0.01, -z + 0.01), (right, rest, z - 0.01)
            outer.append(piece.block("arm", *ends, edge=0.015)[side])
    piece.dress(outer, "panels", "hollows", "pad", "flutes")

    top = seat["top"].sub(*inside, top=1 - (thin + 0.03) / depth)
    if rng.random() < 0.75:
        piece.dress([top], "pad", "dish", "flutes", "ribs", "dimples", "panels")
    piece.dress([seat["front"]], "ribs", "panels", "flutes")


def _table(piece, rng):
    width, height, depth = _unit(*rng.uniform((0.7, 0.5, 0.6), (1.7, 0.85, 1.0)))
    x, z = width / 2, depth / 2
    corner, rim = rng.choice([0, 0.05, 1.0]), rng.uniform(0.005, 0.02)
    under = height - rng.uniform(0.05, 0.08)
    ends = (-x, under, -z), (x, height, z)
    top = piece.block("top", *ends, corner=corner, edge=rim)["top"]
    styles = ["square", "tapered", "round", "slabs", "pedestal", "column", "desk"]
    style = rng.choice(styles[:-1] if corner == 1 else styles)
    # A round top stands on its inscribed rectangle.
    fit = 0.68 if corner == 1 else rng.uniform(0.86, 0.95)
    fx, fz, leg = fit * x, fit * z, rng.uniform(0.06, 0.1)
    drop = rng.uniform(0.12, 0.3) if style == "slabs" else rng.uniform(0.09, 0.15)
    end = fx - (0.04 if style in ("slabs", "desk") else 0.01)
    ends = (-end, under - drop, -fz + 0.01), (end, under + 0.01, fz - 0.01)
    apron = piece.block("apron", *ends)
    apron = {side: face.sub(top=drop / (drop + 0.01)) for side, face in apron.items()}
    left = right = 0.0 if style in ("pedestal", "column") else leg / (2 * fx)
    if style == "desk":
        chest = rng.uniform(0.3, 0.42) * 2 * fx
        right = chest / (2 * fx)
        ends = (fx - chest, 0.02, -fz), (fx, under + 0.01, fz)
        faces = piece.block("chest", *ends)
        shown = (under - 0.02) / (under - 0.01)
        _fronts(piece, faces["front"].sub(top=shown).inset(0.01), fz)
        piece.dress([faces["right"]], "panels", "hollows", "mouldings")
        faces = piece.block("leg", (-fx, 0, -fz), (leg - fx, under + 0.01, fz))
        piece.dress([faces["left"]], "panels", "hollows", "flutes")
    else:
        _stand(piece, style, (fx, fz), under + 0.01, leg, drop + 0.01)
    kinds = ("ribs", "flutes", "panels", "hollows", "domes", "mouldings")
    rear = apron["back"].sub(right, 1 - left)
    piece.dress([apron["front"].sub(left, 1 - right), rear], *kinds)
    if style not in ("slabs", "desk"):
        share = leg / (2 * fz)
        sides = [apron[side].sub(share, 1 - share) for side in ("left", "right")]
        piece.dress(sides, "ribs", "panels", "hollows")
    if rng.random() < 0.75:
        piece.dress([top], "mouldings", "flutes", "dish", "panels", "hollows")


def _cabinet(piece, rng):
    width, height, depth = _unit(*rng.uniform((0.5, 0.5, 0.35), (1.7, 1.8, 0.6)))
    x, z, low = width / 2, depth / 2, 0.0
    stand = rng.choice(["none", "plinth", "square", "tapered", "round"])
    if stand != "none":
        low, inset = rng.uniform(0.05, 0.14), rng.uniform(0.005, 0.03)
        half = x - inset, z - inset
        _stand(piece, stand, half, low + 0.01, rng.uniform(0.06, 0.08), 0.01)
    ends = (-x, low, -z), (x, height, z)
    body = piece.block("body", *ends, "front", edge=rng.uniform(0, 0.015))
    top, lid = body["top"], 0.0
    if rng.random() < 0.6:
        over, lid = rng.uniform(0.01, 0.03), rng.uniform(0.03, 0.06)
        wide, deep = x + over, z + over
        ends = (-wide, height - lid, -z + 0.003), (wide, height + 0.003, deep)
        top = piece.block("top", *ends, edge=0.3 * over)["top"]
    shown = 1 - lid / (height - low)
    body = {side: face.sub(top=shown) for side, face in body.items()}
    margin, reach = rng.uniform(0.012, 0.03), depth * rng.uniform(0.5, 0.8)
    _fronts(piece, body["front"].inset(margin), reach)
    kinds = ("panels", "hollows", "mouldings", "flutes", "pad", "ribs")
    piece.dress([body["left"], body["right"]], *kinds)
    piece.dress([body["back"]], "panels", "flutes", "hollows", "ribs")
    if rng.random() < 0.5:
        piece.dress([top], "mouldings", "hollows", "panels", "dish")


def _sofa(piece, rng):
    width, height, depth = _unit(*rng.uniform((0.9, 0.65, 0.75), (2.4, 0.95, 1.0)))
    x, z = width / 2, depth / 2
    foot, seat_y = height * rng.uniform((0.1, 0.44), (0.16, 0.54))
    arm, arm_y = rng.uniform(0.085, 0.13), height * rng.uniform(0.6, 0.8)
    thick, thin = rng.uniform((0.06, 0.08), (0.09, 0.11))
    deck, inner = max(seat_y - thick + 0.025, foot + 0.05), x - arm
    style = rng.choice(["square", "round", "plinth", "tapered"])
    size = rng.uniform(0.06, 0.08)
    _stand(piece, style, (x - 0.02, z - 0.06), foot + 0.03, size, 0.03)
    # The lower end of the leaning back stands free behind base and arms.
    ends = (0.03 - x, foot + 0.02, -z + 0.05), (x - 0.03, deck, z - 0.012)
    base = piece.block("base", *ends)["front"]
    share = arm / width, 1 - arm / width
    base = base.sub(*share, top=(deck - 0.02 - foot) / (deck - foot))
    piece.dress([base], "ribs", "panels", "domes", "hollows", "flutes")

    outline, corner = rng.choice(["front", "right", "top"]), rng.uniform(0.01, 0.05)
    ends = (-x, foot, -z + 0.05), (-inner, arm_y, z)
    left = piece.block("arm", *ends, outline, corner, edge=0.012)
    ends = (inner, foot, -z + 0.05), (x, arm_y, z)
    right = piece.block("arm", *ends, outline, corner, edge=0.012)
    kinds = ("panels", "mouldings", "hollows", "domes", "pad", "ribs")
    piece.dress([left["front"], right["front"]], *kinds)
    piece.dress([left["left"], right["right"]], *kinds)

    lean, rear = _lean(rng.uniform(2, 10), (0, seat_y, -z)), thin - z
    ends = (-x + 0.01, foot + 0.01, -z + 0.002), (x - 0.01, height, rear)
    corner = rng.uniform(0, 0.06)
    back = piece.block("back", *ends, "front", corner, edge=0.02, frame=lean)
    piece.dress([back["back"]], "panels", "flutes", "hollows", "ribs")
    seen = (seat_y - foot) / (height - foot) + 0.03
    fronts, tops, lips = [back["front"].sub(*share, seen)], [], []
    loose = rng.random() < 0.6
    plump = rng.uniform(0.05, 0.08) if loose else 0.0
    gap, crown = rng.uniform(0.004, 0.007), height - rng.uniform(0.0, 0.04)
    seats = int(np.clip(2 * inner // rng.uniform(0.22, 0.4), 1, 4))
    # Cushions keep a gap: rounded rims that touch would leave needle-sharp notches.
    for low, high in pairwise(np.linspace(-inner, inner, seats + 1)):
        ends = (low + gap, seat_y - thick, rear - 0.04), (high - gap, seat_y, z)
        cushion = piece.block("cushion", *ends, corner=0.02, edge=0.012)
        hidden = (plump + 0.07) / (z - rear + 0.04)
        tops.append(cushion["top"].sub(top=1 - hidden))
        lips.append(cushion["front"])
        if loose:
            low, high, below = low + gap + 0.015, high - gap - 0.015, seat_y - 0.09
            ends = (low, below, rear - 0.04), (high, crown, rear + plump)
            pillow = piece.block("pillow", *ends, "front", 0.03, 0.025, frame=lean)
            fronts.append(pillow["front"].sub(bottom=0.1 / (crown - below)))
    kinds = ("ribs", "flutes", "panels", "domes", "dimples", "pad", "mouldings")
    piece.dress(fronts[loose:], *kinds)
    piece.dress(tops, *kinds)
    piece.dress(lips, "ribs", "panels")


# A family's place is part of its seed: add new ones at the end.
BUILDERS = {"chair": _chair, "table": _table, "cabinet": _cabinet, "sofa": _sofa}
FAMILIES = tuple(BUILDERS)
