"""Procedural furniture with known truth: a coarse body and the same body with relief.

A family is one function that fills a `Piece` with bodies (the coarse shape, with its
holes) and dresses their faces with relief. Lengths are world units from the start:
`unit` gives each piece a diagonal of 1.
"""

import json
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import trimesh

from .solids import FEATURE, SIDES, Piece, lean, oval, unit

SPLITS = Path(__file__).parents[1] / "data" / "splits.json"


@dataclass(frozen=True)
class Shape:
    """A procedural piece: its plain body and the same body with relief."""

    coarse: trimesh.Trimesh
    detailed: trimesh.Trimesh
    family: str
    seed: int


def split_pairs(split, per_family=None):
    """List the shapes of a split as `data/splits.json` fixes it.

    Args:
        split: "train", "val" or "test", of the families that are trained on, or
            "unseen", of those that never are.
        per_family: how many of the split's first seeds; None for all.

    Returns:
        list of (family, seed), every family at one seed, then at the next.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: an unknown split, or more seeds than the split has.
    """
    if not SPLITS.is_file():
        raise FileNotFoundError(
            f"{SPLITS} is missing: it fixes each split's seeds; take it from d2im's "
            "repository, where data/ lies beside d2im/"
        )
    splits = json.loads(SPLITS.read_text())
    if split not in splits["seeds"]:
        known = ", ".join(splits["seeds"])
        raise ValueError(f"split must be one of {known}, got {split!r}")
    seeds = range(*splits["seeds"][split])
    count = len(seeds) if per_family is None else per_family
    if not 1 <= count <= len(seeds):
        raise ValueError(
            f"per_family must be 1 to {len(seeds)} in split {split!r}, got {count!r}"
        )
    unseen = splits["unseen_families"]
    families = [f for f in FAMILIES if (f in unseen) == (split == "unseen")]
    return [(family, seed) for seed in seeds[:count] for family in families]


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
        of |F_detailed - F_coarse|, which relief comes close to, and "relief": pairs of
        a kind and where it is, "flat" or "curved". The coarse one's
        face_attributes["relief"] (F,) bool tells which faces bear relief, if only in
        part: F_coarse is 0 on the detailed surface nearest to the others.

    Raises:
        ValueError: unknown family, or a seed that is no non-negative integer.
    """
    if family not in BUILDERS:
        known = ", ".join(FAMILIES)
        raise ValueError(f"family must be one of {known}, got {family!r}")
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    rng = np.random.default_rng([FAMILIES.index(family), int(seed)])
    piece = Piece(rng, depth=rng.uniform(0.011, 0.024))
    BUILDERS[family](piece, rng)
    coarse, detailed = piece.meshes()
    centre = detailed.bounds.mean(0)
    scale = 0.5 / np.linalg.norm(detailed.vertices - centre, axis=1).max()
    for mesh in (coarse, detailed):
        mesh.vertices = (mesh.vertices - centre) * scale
    detailed.metadata["amplitude"] = float(piece.amplitude * scale)
    detailed.metadata["relief"] = tuple(sorted(piece.kinds))
    del detailed.face_attributes["relief"]
    return Shape(coarse, detailed, family, int(seed))


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
            sunk, depth = style == "hollows", 0.75 * piece.depth
            profile = corner, slope, depth, sunk, "front", end
            [front] = piece.emboss(cell, [(0, 0)], size, *profile)
            piece.kinds |= {(str(style), "flat"), ("handles", "flat")}
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
    width, height, depth = unit(*rng.uniform((0.42, 0.8, 0.42), (0.65, 1.15, 0.6)))
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
    tilt = lean(rng.uniform(0, 12), (0, seat_y, -z))
    ends = (-x + 0.003, low + 0.01, -z + 0.003), (x - 0.003, height, -z + thin)
    back = piece.block("back", *ends, "front", corner, edge=rim, frame=tilt)
    hidden = (thick + 0.01) / (height - low)  # share of the back that is in the seat
    front, rear = (back[side].sub(bottom=hidden) for side in ("front", "back"))
    style = rng.choice(["solid", "gap", "window", "slots"], p=[0.4, 0.2, 0.2, 0.2])
    rail = 0.0 if style == "solid" else rng.uniform(0.3, 0.6)
    if rail:
        choices = [(3, 1), (5, 1), (1, 3)]
        cells = choices[rng.integers(3)] if style == "slots" else (1, 1)
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
    width, height, depth = unit(*rng.uniform((0.7, 0.5, 0.6), (1.7, 0.85, 1.0)))
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
    width, height, depth = unit(*rng.uniform((0.5, 0.5, 0.35), (1.7, 1.8, 0.6)))
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
    width, height, depth = unit(*rng.uniform((0.9, 0.65, 0.75), (2.4, 0.95, 1.0)))
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

    tilt, rear = lean(rng.uniform(2, 10), (0, seat_y, -z)), thin - z
    ends = (-x + 0.01, foot + 0.01, -z + 0.002), (x - 0.01, height, rear)
    corner = rng.uniform(0, 0.06)
    back = piece.block("back", *ends, "front", corner, edge=0.02, frame=tilt)
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
            pillow = piece.block("pillow", *ends, "front", 0.03, 0.025, frame=tilt)
            fronts.append(pillow["front"].sub(bottom=0.1 / (crown - below)))
    kinds = ("ribs", "flutes", "panels", "domes", "dimples", "pad", "mouldings")
    piece.dress(fronts[loose:], *kinds)
    piece.dress(tops, *kinds)
    piece.dress(lips, "ribs", "panels")


def _round(piece, seat, wide, kinds):
    """Put one round relief on the middle of a roof: a pad, a dish or a moulding."""
    kind = str(piece.rng.choice(kinds))
    end = piece.rng.uniform(0.0, 0.3) if kind == "mouldings" else 1.0
    bevel = piece.rng.uniform(0.2, 0.4) * wide / (2 if end < 1 else 1)
    profile = wide / 2, bevel, piece.depth, kind == "dish", seat.part, end
    piece.kinds.add((kind, "flat"))
    return piece.emboss(seat, [(0, 0)], (wide, wide), *profile)[0]


def _stool(piece, rng):
    width, height, _ = unit(*rng.uniform((0.4, 0.45, 0.4), (0.8, 1.0, 0.5)))
    r, thick, rim = width / 2, rng.uniform(0.08, 0.12), rng.uniform(0.9, 0.97)
    style = rng.choice(["splayed", "pedestal", "drum"], p=[0.45, 0.3, 0.25])
    if style == "drum":
        piece.loft("leg", oval(0.85 * r, 0.85 * r), [(1, 0), (1, 0.04)])
    power = rng.choice([2.0, 5.0])
    low, waist = (
        (0.03, rng.uniform(0.75, 1.1)) if style == "drum" else (height - thick, 1)
    )
    rings = [(rim, low), (1, low + 0.02), (waist, (low + height) / 2)]
    rings += [(1, height - 0.02), (rim, height)]
    kinds = ("ribs", "flutes", "studs")
    if style == "drum":
        kinds = ("tufts", "lattice", "waves", "ribs", "rings", "panels", "motifs")
    seat = piece.loft("seat", oval(r, r, power), rings, [(kinds, (0, 1), (0.12, 0.88))])
    if rng.random() < 0.3:
        piece.dress([seat.sub(0.16, 0.84, 0.16, 0.84)], "dimples", "tufts", "lattice")
    else:
        _round(piece, seat, rng.uniform(1.3, 1.8) * r, ("pad", "dish", "mouldings"))
    if style == "pedestal":
        bulge, foot = rng.uniform(0.05, 0.09), rng.uniform(0.7, 0.95) * r
        rings = [(foot, 0), (foot, 0.025), (0.06, 0.07), (bulge, low / 2)]
        rings += [(0.045, 0.8 * low), (0.07, low + 0.02)]
        piece.loft("leg", oval(1, 1), rings)
    legs, step = rng.integers(3, 5), low * rng.uniform(0.2, 0.5)
    size, spread = rng.uniform(0.03, 0.042), rng.uniform(0.75, 1.0) * r
    for turn in 2 * np.pi * (np.arange(legs) + 0.5) / legs:
        if style == "splayed":
            out = np.array([np.cos(turn), np.sin(turn)])
            rings = [(0.75, 0, *spread * out), (1, low + 0.02, *0.62 * r * out)]
            piece.loft("leg", oval(size, size), rings)
            reach = spread + (0.62 * r - spread) * step / low
            frame = trimesh.transformations.rotation_matrix(turn, (0, 1, 0))
            ends = (-0.02, step, -0.02), (reach, step + 0.04, 0.02)
            piece.block("rung", *ends, edge=0.01, frame=frame)


def _bench(piece, rng):
    width, height, depth = unit(*rng.uniform((0.9, 0.3, 0.25), (2.3, 0.7, 0.7)))
    x, z, rim = width / 2, depth / 2, rng.uniform(0.006, 0.015)
    thick, size = rng.uniform(0.04, 0.12), rng.uniform(0.06, 0.11)
    low, back = height - thick, rng.random() < 0.5
    ends, corner = ((-x, low, -z), (x, height, z)), rng.choice([0.0, 0.05])
    seat = piece.block("seat", *ends, corner=corner, edge=rim)
    style = rng.choice(["square", "tapered", "round", "slabs"])
    inner = rng.uniform(0.8, 0.98) * x
    _stand(piece, style, (inner, z - 0.01), low + rim, size, rim)
    if style in ("square", "slabs") and rng.random() < 0.8:
        ends = (size - inner - 0.01, low - 0.09, -0.6 * z)
        rail = piece.block("rail", ends, (inner - size + 0.01, low + 0.01, 0.6 * z))
        rail = rail["front"].sub(0.03, 0.97, top=0.9)
        piece.dress([rail], "ribs", "domes", "panels", "waves")
    if back:
        tall, tilt = rng.uniform(0.2, 0.3), lean(rng.uniform(0, 12), (0, height, -z))
        ends = (0.003 - x, low + 0.01, 0.003 - z), (x - 0.003, height + tall, 0.06 - z)
        board = piece.block("back", *ends, "front", 0.3 * corner, rim, frame=tilt)
        bare = (thick - 0.01) / (height + tall - low - 0.01)
        share = 0.07 / width
        front, rear = (board[s].sub(share, 1 - share, bare) for s in ("front", "back"))
        lift = rng.choice([0.0, 0.45])
        for cell in front.sub(0.05, 0.95, 0.1, 0.38).split(7, 1)[::2] if lift else ():
            piece.hole(cell, 0.11, 0.02)
        kinds = ("ribs", "panels", "louvers", "lattice", "tufts", "motifs", "mouldings")
        piece.dress([front.sub(bottom=lift), rear.sub(bottom=lift)], *kinds)
        for sign in (-1, 1) if rng.random() < 0.5 else ():
            left, right = sorted((sign * (x - 0.06), sign * (x + 0.004)))
            rest = height + rng.uniform(0.09, 0.14)
            piece.block("arm", (left, rest - 0.04, -z), (right, rest, z), edge=0.01)
            piece.block("arm", (left, low + 0.01, z - 0.07), (right, rest, z - 0.01))
    ends = (0.07 / width, 1 - 0.07 / width, 0, 0.72) if back else (0, 1, 0, 1)
    kinds = ("pad", "tufts", "flutes", "dimples", "panels", "ribs", "lattice")
    piece.dress([seat["top"].sub(*ends)], *kinds)
    piece.dress([seat["front"]], "ribs", "panels", "domes")


def _bed(piece, rng):
    width, height, depth = unit(*rng.uniform((0.9, 0.7, 1.8), (2.1, 1.2, 2.1)))
    x, z, foot = width / 2, depth / 2, rng.uniform(0.03, 0.1)
    deck = foot + rng.uniform(0.08, 0.11)
    style = rng.choice(["square", "tapered", "round", "plinth"])
    _stand(
        piece, style, (x - 0.02, z - 0.03), foot + 0.02, rng.uniform(0.06, 0.08), 0.02
    )
    ends = (-x, foot, 0.02 - z), (x, deck, z)
    frame = piece.block("frame", *ends, "front", edge=0.008)
    foot_y = deck + rng.choice([0.0, 0.06, 0.12])
    end = frame["front"]
    if foot_y > deck:
        ends = (-x - 0.01, foot - 0.02, z - 0.05), (x + 0.01, foot_y, z + 0.012)
        end = piece.block("board", *ends, "front", 0.02, 0.01)["front"]
    kinds = ("panels", "hollows", "mouldings", "domes", "ribs", "louvers", "waves")
    piece.dress([end], *kinds)
    share = 0.08 / depth
    rails = [frame[side].sub(share, 1 - share) for side in ("left", "right")]
    piece.dress(rails, "panels", "ribs", "mouldings")
    ends = (-x - 0.01, 0, -z), (x + 0.01, height, 0.06 - z)
    corner = rng.choice([0.01, 0.05, 0.15])
    head = piece.block("board", *ends, "front", corner, 0.01)
    bed_y = deck + rng.uniform(0.05, 0.11)
    front = head["front"].sub(bottom=(bed_y + 0.055) / height)
    kinds = ("tufts", "panels", "lattice", "flutes", "mouldings", "motifs", "hollows")
    piece.dress([front, head["back"].sub(bottom=0.1)], *kinds)
    ends = (0.012 - x, deck - 0.02, 0.03 - z), (x - 0.012, bed_y, z - 0.052)
    top = piece.block("mattress", *ends, corner=0.03, edge=0.02)["top"]
    piece.dress(
        [top.sub(bottom=0, top=0.62)], "tufts", "waves", "lattice", "pad", "ribs"
    )
    high = bed_y + rng.uniform(0.03, 0.05)
    for low, end in pairwise(np.linspace(-x + 0.02, x - 0.02, rng.integers(2, 4))):
        ends = (low + 0.01, bed_y - 0.02, 0.05 - z), (end - 0.01, high, 0.22 - z)
        pillow = piece.block("pillow", *ends, corner=0.04, edge=0.02)
        piece.dress([pillow["top"].sub(top=0.85)], "pad")


def _bookshelf(piece, rng):
    width, height, depth = unit(*rng.uniform((0.55, 0.9, 0.25), (1.2, 1.9, 0.38)))
    x, z, board = width / 2, depth / 2, rng.uniform(0.03, 0.045)
    sides = [
        piece.block("side", (low, 0, -z), (low + board, height - 0.01, z - 0.01))
        for low in (-x, x - board)
    ]
    walls = [sides[0]["left"], sides[1]["right"]]
    share = 1 - 0.1 / height
    kinds = ("panels", "mouldings", "ribs", "lattice", "waves")  # boards are thin
    piece.dress([wall.sub(top=share) for wall in walls], *kinds)
    rear = (0.01 - x, 0.02, 0.004 - z), (x - 0.01, height - 0.02, 0.034 - z)
    back = piece.block("back", *rear)
    rear, inside = back["back"], back["front"]
    piece.dress(
        [rear.sub(board / width, 1 - board / width, top=share)],
        "panels",
        "ribs",
        "mouldings",
    )
    over, plinth = rng.uniform(0.0, 0.025), rng.uniform(0.05, 0.13)
    ends = (-x - over, height - 0.1, 0.002 - z), (x + over, height, z + over)
    crown = piece.block("crown", *ends, edge=min(0.01, over))["front"]
    piece.dress([crown], "ribs", "domes", "panels")
    ends = (0.002 - x, 0.002, 0.01 - z), (x - 0.002, plinth, z - 0.003)
    piece.dress([piece.block("plinth", *ends)["front"]], "ribs", "panels", "domes")
    rows = max(2, int((height - plinth) // rng.uniform(0.16, 0.24)))
    cols = int(rng.integers(1, 3)) if width > 0.42 else 1
    levels = np.linspace(plinth - board / 2, height - 0.1, rows + 1)
    posts = np.linspace(board / 2 - x, x - board / 2, cols + 1)
    for post in posts[1:-1]:
        low, high = post - board / 2, post + board / 2
        piece.block("board", (low, 0.02, 0.01 - z), (high, height - 0.02, z - 0.015))
    for y in levels[1:-1]:
        low, high = y - board / 2, y + board / 2
        piece.block("board", (0.01 - x, low, 0.01 - z), (x - 0.01, high, z - 0.014))
    fronts, bays = [], []
    for (low, high), (left, right) in product(pairwise(levels), pairwise(posts)):
        low, left, right = low + board / 2 - 0.004, left + board / 2, right - board / 2
        wide = (right - left) * rng.uniform(0.55, 0.85)
        if rng.random() < 0.25 or high - low < 0.14 or wide < 0.1:
            bottom = low + 0.004
            size = right - left, high - board / 2 - bottom
            middle = (left + right) / 2, bottom + size[1] / 2 - height / 2
            bays.append(inside.move(*middle, 0, *size))
            continue
        at = rng.choice([left - 0.004, right + 0.004 - wide])
        tall = low + (high - low - board / 2) * rng.uniform(0.7, 0.9)
        ends = (at, low, 0.02 - z), (at + wide, tall, z - rng.uniform(0.03, 0.05))
        fronts.append(piece.block("books", *ends, edge=0.005)["front"])
    piece.dress(fronts, "ribs", "flutes", "panels", "domes")
    piece.dress(bays, "panels", "mouldings", "ribs")


def _lamp(piece, rng):
    tall, wide = rng.uniform((0.7, 0.32), (1.4, 0.62))
    width, height, _ = unit(wide, tall, wide)
    r, shade = width / 2, rng.uniform(0.26, 0.42) * height
    low, narrow = height - shade, rng.uniform(0.45, 1.0)
    mid = (1 + narrow) / 2 * rng.choice([1.0, rng.uniform(0.9, 1.15)])
    rings = [(1, low), (mid, low + shade / 2), (narrow, height)]
    # Raised alone: the shade is thin.
    kinds = ("ribs", "waves", "lattice", "studs", "motifs", "rings", "louvers")
    around = oval(r, r, rng.choice([2.0, 2.0, 4.0]))
    piece.loft("shade", around, rings, [(kinds, (0, 1), (0.04, 0.96))])
    inner = np.array(rings) * (1, 1) - [
        (0.04 / r, 0.04),
        (0.04 / r, 0),
        (0.04 / r, 0.05),
    ]
    piece.loft("shade", around, inner, cut=True)
    body, foot = rng.choice(["thin", "vase"]), rng.uniform(0.5, 0.85) * r
    top = height - 0.03
    if body == "thin":
        stem = rng.uniform(0.02, 0.03)
        rings = [(foot, 0), (foot, 0.02), (0.5 * foot, 0.045), (stem, 0.075)]
        rings += [(stem, 0.4 * low), (stem, 0.9 * low), (stem, top)]
        turned = [(("rings",), (0, 1), (0.45, rng.uniform(0.6, 0.8)))]
        piece.loft("stem", oval(1, 1), rings, turned if rng.random() < 0.6 else ())
    else:
        fat, end = rng.uniform(0.5, 0.75) * r, rng.uniform(0.75, 0.9) * low
        rings = [(0.6 * fat, 0), (0.7 * fat, 0.02), (fat, rng.uniform(0.3, 0.7) * end)]
        rings += [(0.045, end), (0.022, end + 0.03), (0.022, top)]
        share = 0.75 * end / (end + top - end)
        kinds = ("ribs", "flutes", "rings", "lattice", "waves", "panels", "studs")
        piece.loft("stem", oval(1, 1), rings, [(kinds, (0, 1), (0.06, share))])


def _loudspeaker(piece, rng):
    width, height, depth = unit(*rng.uniform((0.4, 0.8, 0.35), (0.7, 1.3, 0.6)))
    x, z, foot = width / 2, depth / 2, 0.035
    style = rng.choice(["box", "bowed"])
    if style == "box":
        ends = (-x, foot, -z), (x, height, z)
        body = piece.block("body", *ends, "front", rng.uniform(0, 0.05), 0.012)
        front = body["front"]
        kinds = ("panels", "louvers", "waves", "hollows", "lattice")
        piece.dress([body["left"], body["right"]], *kinds)
    else:
        rings = [
            (0.55, -z),
            (0.75, 0.02 - z),
            (1, 0.4 * z),
            (0.96, z - 0.02),
            (0.92, z),
        ]
        kinds, share = ("ribs", "rings", "lattice", "waves", "panels"), (0.2, 0.8)
        sides = [(kinds, (k - 0.1, k + 0.1), share) for k in (0.25, 0.75)]
        around = oval(x, (height - foot) / 2, 6.0)
        middle = 0, (height + foot) / 2, 0
        front = piece.loft("body", around, rings, sides, "front", middle)
        front = front.sub(0.06, 0.94, 0.04, 0.96)
    for cx, cz in product((-0.6 * x, 0.6 * x), (-0.4 * z, 0.5 * z)):
        piece.loft(
            "foot", oval(0.03, 0.03), [(0.8, 0), (1, foot + 0.04)], at=(cx, 0, cz)
        )
    # Drivers from below, each narrower than the one under it.
    wide, room = min(0.86 * front.width, 0.45 * front.height), front.height
    y = -room / 2 + 0.02
    end, hollow = rng.uniform(0.0, 0.5), rng.random() < 0.75
    while wide > 0.09 and y + wide < room / 2 - 0.01:
        place = front.move(0, y + wide / 2, 0, wide, wide)
        bevel = (0.4 if hollow else 0.1) * wide
        profile = wide / 2, max(bevel, 0.025), 0.8 * piece.depth, hollow, "ring"
        profile += (1.0 if hollow else end,)
        [inner] = piece.emboss(place, [(0, 0)], (wide, wide), *profile)
        piece.kinds.add(("drivers", "flat"))
        if inner.width > FEATURE:
            size = max(0.5 * inner.width, FEATURE)
            profile = size / 2, size / 2, 0.7 * piece.depth, False, "cone"
            piece.emboss(inner, [(0, 0)], (size, size), *profile)
        y, wide = y + wide + 0.02, wide * rng.uniform(0.55, 1.0)
    room = room / 2 - y - 0.015
    if room > 0.075:
        port = front.move(0, y + room / 2, 0, 0.8 * front.width, room)
        piece.dress([port], "ribs", "louvers", "panels", "domes")


def _guitar(piece, rng):
    width, height, depth = unit(*rng.uniform((0.34, 1.0, 0.1), (0.44, 1.15, 0.16)))
    x, tall, z = width / 2, rng.uniform(0.42, 0.5) * height, depth / 2
    turn = np.linspace(-np.pi / 2, 1.5 * np.pi, 721)
    y, upper, waist = np.sin(turn), rng.uniform(0.1, 0.25), rng.uniform(0.2, 0.38)
    half = 1 - upper * (1 + y) / 2 - waist * np.exp(-(((y - 0.2) / 0.33) ** 2))
    half *= np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** 0.75
    around = np.stack([x * half / half.max(), tall / 2 * y], 1)
    rings = [(0.94, -z), (1, 0.015 - z), (1, 0), (1, z - 0.015), (0.95, z)]
    kinds = ("ribs", "flutes", "studs", "rings")
    wall = [(kinds, (0.57, 1.43), (0.15, 0.85))] if depth > 0.09 else []
    top = piece.loft("body", around, rings, wall, "front", (0, tall / 2, 0))
    at, wide = 0.04 * tall, rng.uniform(0.42, 0.52) * width
    start = tall / 2 + at + wide / 2 + 0.005
    neck, head = rng.uniform(0.055, 0.07), rng.uniform(0.1, 0.13)
    ends = (-neck / 2, start, 0), (neck / 2, height - 0.16, z + 0.025)
    board = piece.block("neck", *ends, "front", edge=0.004)["front"]
    ends = (-head / 2, height - 0.17, -0.01), (head / 2, height, z + 0.012)
    top_end = piece.block("head", *ends, "front", 0.03, 0.005)["front"]
    piece.dress([top_end.sub(bottom=0.15).inset(-0.01)], "domes", "dimples", "panels")
    shown = 1 - 0.02 / board.height
    frets = int(board.height // 0.1)
    cells = board.sub(top=shown).split(1, frets)
    size = neck - 0.01, FEATURE
    piece.kinds |= {("frets", "flat"), ("mouldings", "flat")}
    for cell in cells:
        profile = 0.01, FEATURE / 2, piece.depth, False, "neck"
        piece.emboss(cell, [(0, 0)], size, *profile)
    ring = top.move(0, at, 0, wide, wide)
    profile = wide / 2, 0.12 * wide, piece.depth, False, "rosette", -0.02
    piece.emboss(ring, [(0, 0)], (wide, wide), *profile)
    hole = top.move(0, at, 0, 0.45 * wide, 0.45 * wide)
    piece.hole(hole, 1.2 * z, 0.225 * wide)
    bridge = (rng.uniform(0.8, 1.0) * x, 0.065)
    profile = 0.02, 0.03, piece.depth, False, "bridge"
    piece.emboss(top.move(0, -0.28 * tall, 0, *bridge), [(0, 0)], bridge, *profile)


def _car(piece, rng):
    width, height, length = unit(*rng.uniform((0.75, 0.55, 1.6), (0.9, 0.8, 2.0)))
    x, z, r = width / 2, length / 2, rng.uniform(0.19, 0.24) * height + 0.03
    belt, low = rng.uniform(0.52, 0.62) * height, 0.55 * r
    rings = [(0.9, low), (0.98, low + 0.03), (1, (low + belt) / 2), (0.95, belt - 0.02)]
    rings += [(0.88, belt)]
    side, share = ("panels", "waves", "rings", "ribs"), (0.2, 0.8)
    half = (0.61 * z - r - 0.012) / (3.9 * (x + z))  # between the wheels
    flank = 0.25 - half, 0.25 + half
    relief = [(("ribs", "louvers", "lattice", "studs"), (-0.07, 0.07), share)]
    relief += [(side, flank, share), (side, (flank[0] + 0.5, flank[1] + 0.5), share)]
    around = oval(x, z, rng.uniform(4.0, 6.0))
    piece.loft("body", around, rings, relief)
    back, cabin = rng.uniform(-0.3, 0.0) * z, rng.uniform(0.5, 0.68)
    rings = [(1, belt - 0.03), (0.97, belt), (0.8, height - 0.03), (0.72, height)]
    around = oval(0.9 * x, cabin * z, rng.uniform(4.0, 6.0))
    glass = [(("panels",), (k - 0.08, k + 0.08), (0.28, 0.85)) for k in (0.25, 0.75)]
    glass += [(("panels",), (k - 0.1, k + 0.1), (0.28, 0.85)) for k in (0, 0.5)]
    roof = piece.loft("cabin", around, rings, glass, at=(0, 0, back))
    piece.dress([roof.sub(0.1, 0.9, 0.1, 0.9)], "ribs", "panels", "pad", "flutes")
    rings = [(0.9, 0), (1, 0.012), (1, 0.06), (0.9, 0.075)]
    spot = rng.choice(["dish", "pad", "mouldings"])
    for sign, cz in product((-1, 1), (-0.62 * z, 0.62 * z)):
        at = (sign * (0.93 * x - 0.035), r, cz)
        axis = "right" if sign > 0 else "left"
        wheel = piece.loft("wheel", oval(r, r), rings, axis=axis, at=at)
        _round(piece, wheel, 1.3 * r, (spot,))


def _vase(piece, rng):
    width, height, _ = unit(*rng.uniform((0.4, 0.7, 0.4), (0.85, 1.1, 0.5)))
    r, foot, neck, lip = width / 2, *rng.uniform((0.4, 0.25, 0.35), (0.7, 0.6, 0.75))
    belly, throat = rng.uniform((0.35, 0.75), (0.6, 0.88)) * height
    rings = [(0.95 * foot, 0), (foot, 0.02), (1, belly), (neck, throat)]
    rings += [(lip, height - 0.01), (lip - 0.015 / r, height)]
    # Raised alone: the wall is thin.
    kinds = ("ribs", "rings", "waves", "lattice", "studs", "motifs", "panels")
    cut, mid = rng.uniform(0.4, 0.5), rng.choice([True, False])
    spans = [(0.05, cut), (cut, 0.78)] if mid else [(0.07, 0.78)]
    relief = [(kinds, (0, 1), span) for span in spans]
    piece.depth = min(piece.depth, 0.02)  # its scaling stretches it most
    around = oval(r, r, rng.choice([2.0, 2.0, 3.0]))
    piece.loft("body", around, rings, relief)
    wall = 0.045 / r
    inner = [(foot - wall, 0.05), (1 - wall, belly), (neck - wall, throat)]
    inner += [(lip - wall, height - 0.01), (lip - wall, height + 0.02)]
    piece.loft("inside", around, inner, cut=True)


# A family's place is part of its seed: add new ones at the end.
BUILDERS = (_chair, _table, _cabinet, _sofa, _stool, _bench, _bed, _bookshelf, _lamp)
BUILDERS += (_loudspeaker, _guitar, _car, _vase)
BUILDERS = {build.__name__[1:]: build for build in BUILDERS}
FAMILIES = tuple(BUILDERS)
