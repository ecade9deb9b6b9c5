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
from trimesh.transformations import rotation_matrix

from .solids import FEATURE, SIDES, Piece, lean, oval, unit

SPLITS = Path(__file__).with_name("splits.json")


@dataclass(frozen=True)
class Shape:
    """A procedural piece: its plain body and the same body with relief."""

    coarse: trimesh.Trimesh
    detailed: trimesh.Trimesh
    family: str
    seed: int


def split_pairs(split: str, per_family: int | None = None) -> list[tuple[str, int]]:
    """List the shapes of a split as `splits.json` beside this file fixes it.

    Args: split: "train", "val" or "test", of the families that are trained on, or
            "unseen", of those that never are.
        per_family: how many of the split's first seeds; None for all.
    Returns: list of (family, seed), every family at one seed, then at the next.
    Raises: FileNotFoundError: the file is missing.
        ValueError: an unknown split, or more seeds than the split has.
    """
    if not SPLITS.is_file():
        raise FileNotFoundError(f"{SPLITS} is missing: take it from d2im's repository")
    splits = json.loads(SPLITS.read_text(encoding="utf-8"))
    if split not in splits["seeds"]:
        known = ", ".join(splits["seeds"])
        raise ValueError(f"split must be one of {known}, got {split!r}")
    seeds = range(*splits["seeds"][split])
    count = len(seeds) if per_family is None else per_family
    if not 1 <= count <= len(seeds):
        most = f"{len(seeds)} in split {split!r}"
        raise ValueError(f"per_family must be 1 to {most}, got {count!r}")
    unseen = splits["unseen_families"]
    families = [f for f in FAMILIES if (f in unseen) == (split == "unseen")]
    return [(family, seed) for seed in seeds[:count] for family in families]


def make_shape(family: str, seed: int) -> Shape:
    """Make the piece of furniture that belongs to a family and a seed.

    Args: family: one of `FAMILIES`.
        seed: non-negative int; the same pair gives the same shape.
    Returns: Shape of two closed meshes in the world frame (y up, front +z), both
        centred and scaled by the detailed one (bounding box at the origin, farthest
        vertex at 0.5). Each has face_attributes["part"] (F,) int; metadata "solid"
        (True) and "parts" (names by id); the detailed one metadata "amplitude", in
        world units: the bound of |F_detailed - F_coarse|, which relief comes close to.
    Raises: ValueError: unknown family, or a seed that is no non-negative integer.
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
    return Shape(coarse, detailed, family, int(seed))


# Assemblies that several families share.


def _stand(piece, style, half, top, size, hidden=0.0):
    """Support a piece from the floor (y = 0).

    Args: style: square, tapered or round legs, slabs, pedestal, column or plinth.
        half: (half_x, half_z) of the ground it covers. top: height of the legs.
        size: thickness of a leg.
        hidden: length of their upper ends that other bodies cover.
    """
    (x, z), rng, r = half, piece.rng, size / 2
    if style == "plinth":
        faces = piece.block("leg", x, (0, top), z)
        piece.dress([faces["front"].sub(top=1 - hidden / top)], "ribs panels")
    elif style == "slabs":
        left = piece.block("leg", (-x, size - x), (0, top), z, edge=0.006)
        right = piece.block("leg", (x - size, x), (0, top), z, edge=0.006)
        piece.dress([left["left"], right["right"]], "panels hollows mouldings")
        piece.dress([left["front"], right["front"]], "ribs panels")
    elif style == "pedestal":
        reach, r = min(x, z), 0.75 * size
        piece.block("leg", reach, (0, 0.04), reach, corner=reach)
        piece.block("leg", r, (0, top), r, corner=r)
        for y in np.arange(0.1, top - hidden - 0.05, rng.uniform(0.09, 0.16)):
            piece.bead("leg", (0, y, 0), r)
    elif style == "column":
        piece.block("leg", 0.7 * x, (0, 0.04), 0.7 * z, edge=0.01)
        faces = piece.block("leg", size, (0, top), size)
        seen = 0.06 / top, 1 - hidden / top
        sides = [faces[s].sub(0, 1, *seen) for s in SIDES if s != "top"]
        piece.dress(sides, "panels hollows flutes domes")
    else:
        # Feet are too short to be turned.
        beads = rng.random(rng.integers(0, 3)) if top > 0.2 else ()
        beads = [0.05 + y * (top - hidden - 0.1) for y in beads]
        taper = 0.4 * r if style == "tapered" else 0
        corner = r if style == "round" else 0.2 * r
        fronts = []
        for cx, cz in product((r - x, x - r), (r - z, z - r)):
            across, along = (cx - r, cx + r), (cz - r, cz + r)
            leg = piece.block(
                "leg", across, (0, top), along, corner=corner, taper=taper
            )
            fronts.append(leg["front"])
            for y in beads if style == "round" else ():
                piece.bead("leg", (cx, y, cz), r)
        if style == "square":
            piece.dress(fronts, "panels hollows", 0.7)


def _fronts(piece, face, reach):
    """Divide a front into doors, drawers and niches `reach` deep, with handles."""
    rng = piece.rng
    cols = int(np.clip(face.width // rng.uniform(0.17, 0.36), 1, 4))
    counts = np.clip(face.height // rng.uniform(0.14, 0.6, cols), 1, 5).astype(int)
    if rng.random() < 0.7:  # left and right alike
        counts = counts[np.minimum(np.arange(cols), np.arange(cols)[::-1])]
    style = piece.pick("panels hollows mouldings pad")
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
            how = dict(share=0.75, sunk=style == "hollows", end=end)
            [front] = piece.emboss(cell, size, corner, slope, "front", **how)
            tall = size[1] > 1.2 * size[0]
            hold = np.full(2, grip)
            if bar:
                hold[int(tall)] = 0.14
            room = front.width - hold[0], front.height - hold[1]
            if min(room) > 0.01:
                at = [(0.5 * room[0] - 0.01 if tall else 0.0, 0)]
                piece.emboss(front, hold, grip / 2, grip / 2, "handle", at=at)


def _round(piece, seat, wide, kinds):
    """Put one round relief on the middle of a roof: a pad, a dish or a moulding."""
    kind = piece.pick(kinds)
    end = piece.rng.uniform(0.0, 0.3) if kind == "mouldings" else 1.0
    bevel = piece.rng.uniform(0.2, 0.4) * wide / (2 if end < 1 else 1)
    how = dict(sunk=kind == "dish", end=end)
    piece.emboss(seat, (wide, wide), wide / 2, bevel, seat.part, **how)


# The families: proportions, bodies, and what their faces may carry.


def _chair(piece, rng):
    width, height, depth = unit(*rng.uniform((0.42, 0.8, 0.42), (0.65, 1.15, 0.6)))
    x, z = width / 2, depth / 2
    seat_y, thick = height * rng.uniform(0.4, 0.5), rng.uniform(0.05, 0.12)
    low, rim = seat_y - thick, rng.uniform(0.006, 0.015)
    corner = rng.uniform(0, 0.05)
    seat = piece.block("seat", x, (low, seat_y), z, corner=corner, edge=rim)
    style = piece.pick("square tapered round slabs pedestal")
    size = rng.uniform(0.06, 0.09)
    _stand(piece, style, (x - 0.01, z - 0.01), low + rim, size, rim)

    arms, wide = piece.pick("none none posts sides"), rng.uniform(0.06, 0.08)
    inside = (0.0, 1.0) if arms == "none" else (wide / width, 1 - wide / width)
    thin, corner = rng.uniform(0.06, 0.085), rng.uniform(0, 0.06)
    tilt = lean(rng.uniform(0, 12), (0, seat_y, -z))
    size = x - 0.003, (low + 0.01, height), (0.003 - z, thin - z)
    back = piece.block("back", *size, axis="front", corner=corner, edge=rim, frame=tilt)
    hidden = (thick + 0.01) / (height - low)  # share of the back that is in the seat
    front, rear = (back[side].sub(bottom=hidden) for side in ("front", "back"))
    style = piece.pick("solid gap window slots", p=[0.4, 0.2, 0.2, 0.2])
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
    piece.dress(tops, "ribs flutes panels hollows mouldings domes pad")

    rest, outer = seat_y + height * rng.uniform(0.16, 0.24), []
    for sign, side in ((-1, "left"), (1, "right")):
        across = left, right = sorted((sign * (x - wide), sign * (x + 0.004)))
        if arms == "posts":
            post = (left + 0.01, right - 0.01), (low, rest - 0.01), (z - 0.1, z - 0.03)
            piece.block("arm", across, (rest - 0.05, rest), z, edge=0.015)
            piece.block("arm", *post)
        elif arms == "sides":
            size = across, (low + 0.01, rest), z - 0.01
            outer.append(piece.block("arm", *size, edge=0.015)[side])
    piece.dress(outer, "panels hollows pad flutes")

    top = seat["top"].sub(*inside, top=1 - (thin + 0.03) / depth)
    piece.dress([top], "pad dish flutes ribs dimples panels", 0.75)
    piece.dress([seat["front"]], "ribs panels flutes")


def _table(piece, rng):
    width, height, depth = unit(*rng.uniform((0.7, 0.5, 0.6), (1.7, 0.85, 1.0)))
    x, z = width / 2, depth / 2
    corner, rim = rng.choice([0, 0.05, 1.0]), rng.uniform(0.005, 0.02)
    under = height - rng.uniform(0.05, 0.08)
    top = piece.block("top", x, (under, height), z, corner=corner, edge=rim)["top"]
    styles = "square tapered round slabs pedestal column"
    style = piece.pick(styles if corner == 1 else styles + " desk")
    # A round top stands on its inscribed rectangle.
    fit = 0.68 if corner == 1 else rng.uniform(0.86, 0.95)
    fx, fz, leg = fit * x, fit * z, rng.uniform(0.06, 0.1)
    drop = rng.uniform(0.12, 0.3) if style == "slabs" else rng.uniform(0.09, 0.15)
    end = fx - (0.04 if style in ("slabs", "desk") else 0.01)
    apron = piece.block("apron", end, (under - drop, under + 0.01), fz - 0.01)
    apron = {side: face.sub(top=drop / (drop + 0.01)) for side, face in apron.items()}
    left = right = 0.0 if style in ("pedestal", "column") else leg / (2 * fx)
    if style == "desk":
        chest = rng.uniform(0.3, 0.42) * 2 * fx
        right = chest / (2 * fx)
        faces = piece.block("chest", (fx - chest, fx), (0.02, under + 0.01), fz)
        shown = (under - 0.02) / (under - 0.01)
        _fronts(piece, faces["front"].sub(top=shown).inset(0.01), fz)
        piece.dress([faces["right"]], "panels hollows mouldings")
        faces = piece.block("leg", (-fx, leg - fx), (0, under + 0.01), fz)
        piece.dress([faces["left"]], "panels hollows flutes")
    else:
        _stand(piece, style, (fx, fz), under + 0.01, leg, drop + 0.01)
    fronts = [apron["front"].sub(left, 1 - right), apron["back"].sub(right, 1 - left)]
    piece.dress(fronts, "ribs flutes panels hollows domes mouldings")
    if style not in ("slabs", "desk"):
        share = leg / (2 * fz)
        sides = [apron[side].sub(share, 1 - share) for side in ("left", "right")]
        piece.dress(sides, "ribs panels hollows")
    piece.dress([top], "mouldings flutes dish panels hollows", 0.75)


def _cabinet(piece, rng):
    width, height, depth = unit(*rng.uniform((0.5, 0.5, 0.35), (1.7, 1.8, 0.6)))
    x, z, low = width / 2, depth / 2, 0.0
    stand = piece.pick("none plinth square tapered round")
    if stand != "none":
        low, inset = rng.uniform(0.05, 0.14), rng.uniform(0.005, 0.03)
        half = x - inset, z - inset
        _stand(piece, stand, half, low + 0.01, rng.uniform(0.06, 0.08), 0.01)
    edge = rng.uniform(0, 0.015)
    body = piece.block("body", x, (low, height), z, axis="front", edge=edge)
    top, lid = body["top"], 0.0
    if rng.random() < 0.6:
        over, lid = rng.uniform(0.01, 0.03), rng.uniform(0.03, 0.06)
        size = x + over, (height - lid, height + 0.003), (0.003 - z, z + over)
        top = piece.block("top", *size, edge=0.3 * over)["top"]
    shown = 1 - lid / (height - low)
    body = {side: face.sub(top=shown) for side, face in body.items()}
    margin, reach = rng.uniform(0.012, 0.03), depth * rng.uniform(0.5, 0.8)
    _fronts(piece, body["front"].inset(margin), reach)
    sides = [body["left"], body["right"]]
    piece.dress(sides, "panels hollows mouldings flutes pad ribs")
    piece.dress([body["back"]], "panels flutes hollows ribs")
    piece.dress([top], "mouldings hollows panels dish", 0.5)


def _sofa(piece, rng):
    width, height, depth = unit(*rng.uniform((0.9, 0.65, 0.75), (2.4, 0.95, 1.0)))
    x, z = width / 2, depth / 2
    foot, seat_y = height * rng.uniform((0.1, 0.44), (0.16, 0.54))
    arm, arm_y = rng.uniform(0.085, 0.13), height * rng.uniform(0.6, 0.8)
    thick, thin = rng.uniform((0.06, 0.08), (0.09, 0.11))
    deck, inner = max(seat_y - thick + 0.025, foot + 0.05), x - arm
    style = piece.pick("square round plinth tapered")
    size = rng.uniform(0.06, 0.08)
    _stand(piece, style, (x - 0.02, z - 0.06), foot + 0.03, size, 0.03)
    # The lower end of the leaning back stands free behind base and arms.
    size = x - 0.03, (foot + 0.02, deck), (0.05 - z, z - 0.012)
    share = arm / width, 1 - arm / width
    top = (deck - 0.02 - foot) / (deck - foot)
    base = piece.block("base", *size)["front"].sub(*share, top=top)
    piece.dress([base], "ribs panels domes hollows flutes")

    look = {"axis": piece.pick("front right top"), "corner": rng.uniform(0.01, 0.05)}
    look["edge"] = 0.012
    size = (foot, arm_y), (0.05 - z, z)
    left = piece.block("arm", (-x, -inner), *size, **look)
    right = piece.block("arm", (inner, x), *size, **look)
    kinds = "panels mouldings hollows domes pad ribs"
    piece.dress([left["front"], right["front"]], kinds)
    piece.dress([left["left"], right["right"]], kinds)

    tilt, rear = lean(rng.uniform(2, 10), (0, seat_y, -z)), thin - z
    size = x - 0.01, (foot + 0.01, height), (0.002 - z, rear)
    back = piece.block(
        "back", *size, axis="front", corner=rng.uniform(0, 0.06), edge=0.02, frame=tilt
    )
    piece.dress([back["back"]], "panels flutes hollows ribs")
    seen = (seat_y - foot) / (height - foot) + 0.03
    fronts, tops, lips = [back["front"].sub(*share, seen)], [], []
    loose = rng.random() < 0.6
    plump = rng.uniform(0.05, 0.08) if loose else 0.0
    gap, crown = rng.uniform(0.004, 0.007), height - rng.uniform(0.0, 0.04)
    seats = int(np.clip(2 * inner // rng.uniform(0.22, 0.4), 1, 4))
    # Cushions keep a gap: rounded rims that touch would leave needle-sharp notches.
    for low, high in pairwise(np.linspace(-inner, inner, seats + 1)):
        size = (low + gap, high - gap), (seat_y - thick, seat_y), (rear - 0.04, z)
        cushion = piece.block("cushion", *size, corner=0.02, edge=0.012)
        hidden = (plump + 0.07) / (z - rear + 0.04)
        tops.append(cushion["top"].sub(top=1 - hidden))
        lips.append(cushion["front"])
        if loose:
            low, high, below = low + gap + 0.015, high - gap - 0.015, seat_y - 0.09
            size = (low, high), (below, crown), (rear - 0.04, rear + plump)
            pillow = piece.block(
                "pillow", *size, axis="front", corner=0.03, edge=0.025, frame=tilt
            )
            fronts.append(pillow["front"].sub(bottom=0.1 / (crown - below)))
    kinds = "ribs flutes panels domes dimples pad mouldings"
    piece.dress(fronts[loose:], kinds)
    piece.dress(tops, kinds)
    piece.dress(lips, "ribs panels")


def _stool(piece, rng):
    width, height, _ = unit(*rng.uniform((0.4, 0.45, 0.4), (0.8, 1.0, 0.5)))
    r, thick, rim = width / 2, rng.uniform(0.08, 0.12), rng.uniform(0.9, 0.97)
    style = piece.pick("splayed pedestal drum", p=[0.45, 0.3, 0.25])
    if style == "drum":
        piece.loft("leg", oval(0.85 * r, 0.85 * r), [(1, 0), (1, 0.04)])
    power, low, waist = rng.choice([2.0, 5.0]), height - thick, 1
    kinds = "ribs flutes studs"
    if style == "drum":
        low, waist = 0.03, rng.uniform(0.75, 1.1)
        kinds = "tufts lattice waves ribs rings panels motifs"
    rings = [(rim, low), (1, low + 0.02), (waist, (low + height) / 2)]
    rings += [(1, height - 0.02), (rim, height)]
    seat = piece.loft("seat", oval(r, r, power), rings, [(kinds, (0, 1), (0.12, 0.88))])
    if rng.random() < 0.3:
        piece.dress([seat.sub(0.16, 0.84, 0.16, 0.84)], "dimples tufts lattice")
    else:
        _round(piece, seat, rng.uniform(1.3, 1.8) * r, "pad dish mouldings")
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
            frame = rotation_matrix(turn, (0, 1, 0))
            rung = (-0.02, reach), (step, step + 0.04), 0.02
            piece.block("rung", *rung, edge=0.01, frame=frame)


def _bench(piece, rng):
    width, height, depth = unit(*rng.uniform((0.9, 0.3, 0.25), (2.3, 0.7, 0.7)))
    x, z, rim = width / 2, depth / 2, rng.uniform(0.006, 0.015)
    thick, size = rng.uniform(0.04, 0.12), rng.uniform(0.06, 0.11)
    low, back = height - thick, rng.random() < 0.5
    corner = rng.choice([0.0, 0.05])
    seat = piece.block("seat", x, (low, height), z, corner=corner, edge=rim)
    style = piece.pick("square tapered round slabs")
    inner = rng.uniform(0.8, 0.98) * x
    _stand(piece, style, (inner, z - 0.01), low + rim, size, rim)
    if style in ("square", "slabs") and rng.random() < 0.8:
        rail = inner - size + 0.01, (low - 0.09, low + 0.01), 0.6 * z
        rail = piece.block("rail", *rail)["front"].sub(0.03, 0.97, top=0.9)
        piece.dress([rail], "ribs domes panels waves")
    if back:
        tall, tilt = rng.uniform(0.2, 0.3), lean(rng.uniform(0, 12), (0, height, -z))
        size = x - 0.003, (low + 0.01, height + tall), (0.003 - z, 0.06 - z)
        board = piece.block(
            "back", *size, axis="front", corner=0.3 * corner, edge=rim, frame=tilt
        )
        bare = (thick - 0.01) / (height + tall - low - 0.01)
        share = 0.07 / width
        front, rear = (board[s].sub(share, 1 - share, bare) for s in ("front", "back"))
        lift = rng.choice([0.0, 0.45])
        for cell in front.sub(0.05, 0.95, 0.1, 0.38).split(7, 1)[::2] if lift else ():
            piece.hole(cell, 0.11, 0.02)
        tops = [front.sub(bottom=lift), rear.sub(bottom=lift)]
        piece.dress(tops, "ribs panels louvers lattice tufts motifs mouldings")
        for sign in (-1, 1) if rng.random() < 0.5 else ():
            across = sorted((sign * (x - 0.06), sign * (x + 0.004)))
            rest = height + rng.uniform(0.09, 0.14)
            piece.block("arm", across, (rest - 0.04, rest), z, edge=0.01)
            piece.block("arm", across, (low + 0.01, rest), (z - 0.07, z - 0.01))
    free = (0.07 / width, 1 - 0.07 / width, 0, 0.72) if back else (0, 1, 0, 1)
    top = seat["top"].sub(*free)
    piece.dress([top], "pad tufts flutes dimples panels ribs lattice")
    piece.dress([seat["front"]], "ribs panels domes")


def _bed(piece, rng):
    width, height, depth = unit(*rng.uniform((0.9, 0.7, 1.8), (2.1, 1.2, 2.1)))
    x, z, foot = width / 2, depth / 2, rng.uniform(0.03, 0.1)
    deck = foot + rng.uniform(0.08, 0.11)
    style = piece.pick("square tapered round plinth")
    half, size = (x - 0.02, z - 0.03), rng.uniform(0.06, 0.08)
    _stand(piece, style, half, foot + 0.02, size, 0.02)
    frame = piece.block(
        "frame", x, (foot, deck), (0.02 - z, z), axis="front", edge=0.008
    )
    foot_y = deck + rng.choice([0.0, 0.06, 0.12])
    end = frame["front"]
    if foot_y > deck:
        size = x + 0.01, (foot - 0.02, foot_y), (z - 0.05, z + 0.012)
        end = piece.block("board", *size, axis="front", corner=0.02, edge=0.01)
        end = end["front"]
    piece.dress([end], "panels hollows mouldings domes ribs louvers waves")
    share = 0.08 / depth
    rails = [frame[side].sub(share, 1 - share) for side in ("left", "right")]
    piece.dress(rails, "panels ribs mouldings")
    size = x + 0.01, (0, height), (-z, 0.06 - z)
    corner = rng.choice([0.01, 0.05, 0.15])
    head = piece.block("board", *size, axis="front", corner=corner, edge=0.01)
    bed_y = deck + rng.uniform(0.05, 0.11)
    front = head["front"].sub(bottom=(bed_y + 0.055) / height)
    kinds = "tufts panels lattice flutes mouldings motifs hollows"
    piece.dress([front, head["back"].sub(bottom=0.1)], kinds)
    size = x - 0.012, (deck - 0.02, bed_y), (0.03 - z, z - 0.052)
    top = piece.block("mattress", *size, corner=0.03, edge=0.02)["top"]
    piece.dress([top.sub(bottom=0, top=0.62)], "tufts waves lattice pad ribs")
    high = bed_y + rng.uniform(0.03, 0.05)
    for low, end in pairwise(np.linspace(-x + 0.02, x - 0.02, rng.integers(2, 4))):
        size = (low + 0.01, end - 0.01), (bed_y - 0.02, high), (0.05 - z, 0.22 - z)
        pillow = piece.block("pillow", *size, corner=0.04, edge=0.02)
        piece.dress([pillow["top"].sub(top=0.85)], "pad")


def _bookshelf(piece, rng):
    width, height, depth = unit(*rng.uniform((0.55, 0.9, 0.25), (1.2, 1.9, 0.38)))
    x, z, board = width / 2, depth / 2, rng.uniform(0.03, 0.045)
    size = (0, height - 0.01), (-z, z - 0.01)
    left, right = (piece.block("side", (a, a + board), *size) for a in (-x, x - board))
    share = 1 - 0.1 / height
    walls = [wall.sub(top=share) for wall in (left["left"], right["right"])]
    piece.dress(walls, "panels mouldings ribs lattice waves")  # boards are thin
    size = x - 0.01, (0.02, height - 0.02), (0.004 - z, 0.034 - z)
    back = piece.block("back", *size)
    rear = back["back"].sub(board / width, 1 - board / width, top=share)
    piece.dress([rear], "panels ribs mouldings")
    over, plinth = rng.uniform(0.0, 0.025), rng.uniform(0.05, 0.13)
    size = x + over, (height - 0.1, height), (0.002 - z, z + over)
    crown = piece.block("crown", *size, edge=min(0.01, over))["front"]
    piece.dress([crown], "ribs domes panels")
    size = x - 0.002, (0.002, plinth), (0.01 - z, z - 0.003)
    piece.dress([piece.block("plinth", *size)["front"]], "ribs panels domes")
    rows = max(2, int((height - plinth) // rng.uniform(0.16, 0.24)))
    cols = int(rng.integers(1, 3)) if width > 0.42 else 1
    levels = np.linspace(plinth - board / 2, height - 0.1, rows + 1)
    posts = np.linspace(board / 2 - x, x - board / 2, cols + 1)
    half = np.array([-board / 2, board / 2])
    for post in posts[1:-1]:
        size = (0.02, height - 0.02), (0.01 - z, z - 0.015)
        piece.block("board", post + half, *size)
    for y in levels[1:-1]:
        piece.block("board", x - 0.01, y + half, (0.01 - z, z - 0.014))
    fronts, bays = [], []
    for (low, high), (left, right) in product(pairwise(levels), pairwise(posts)):
        low, left, right = low + board / 2 - 0.004, left + board / 2, right - board / 2
        wide = (right - left) * rng.uniform(0.55, 0.85)
        if rng.random() < 0.25 or high - low < 0.14 or wide < 0.1:
            bottom = low + 0.004
            size = right - left, high - board / 2 - bottom
            middle = (left + right) / 2, bottom + size[1] / 2 - height / 2
            bays.append(back["front"].move(*middle, 0, *size))
            continue
        at = rng.choice([left - 0.004, right + 0.004 - wide])
        tall = low + (high - low - board / 2) * rng.uniform(0.7, 0.9)
        size = (at, at + wide), (low, tall), (0.02 - z, z - rng.uniform(0.03, 0.05))
        fronts.append(piece.block("books", *size, edge=0.005)["front"])
    piece.dress(fronts, "ribs flutes panels domes")
    piece.dress(bays, "panels mouldings ribs")


def _lamp(piece, rng):
    tall, wide = rng.uniform((0.7, 0.32), (1.4, 0.62))
    width, height, _ = unit(wide, tall, wide)
    r, shade = width / 2, rng.uniform(0.26, 0.42) * height
    low, narrow = height - shade, rng.uniform(0.45, 1.0)
    mid = (1 + narrow) / 2 * rng.choice([1.0, rng.uniform(0.9, 1.15)])
    rings = np.array([(1, low), (mid, low + shade / 2), (narrow, height)])
    # Raised alone: the shade is thin.
    kinds = "ribs waves lattice studs motifs rings louvers"
    around = oval(r, r, rng.choice([2.0, 2.0, 4.0]))
    piece.loft("shade", around, rings, [(kinds, (0, 1), (0.04, 0.96))])
    wall = [(0.04 / r, 0.04), (0.04 / r, 0), (0.04 / r, 0.05)]
    piece.loft("shade", around, rings - wall, cut=True)
    body, foot = piece.pick("thin vase"), rng.uniform(0.5, 0.85) * r
    top = height - 0.03
    if body == "thin":
        stem = rng.uniform(0.02, 0.03)
        rings = [(foot, 0), (foot, 0.02), (0.5 * foot, 0.045), (stem, 0.075)]
        rings += [(stem, 0.4 * low), (stem, 0.9 * low), (stem, top)]
        turned = [("rings", (0, 1), (0.45, rng.uniform(0.6, 0.8)))]
        piece.loft("stem", oval(1, 1), rings, turned if rng.random() < 0.6 else ())
    else:
        fat, end = rng.uniform(0.5, 0.75) * r, rng.uniform(0.75, 0.9) * low
        rings = [(0.6 * fat, 0), (0.7 * fat, 0.02), (fat, rng.uniform(0.3, 0.7) * end)]
        rings += [(0.045, end), (0.022, end + 0.03), (0.022, top)]
        share = 0.75 * end / (end + top - end)
        kinds = "ribs flutes rings lattice waves panels studs"
        piece.loft("stem", oval(1, 1), rings, [(kinds, (0, 1), (0.06, share))])


def _loudspeaker(piece, rng):
    width, height, depth = unit(*rng.uniform((0.4, 0.8, 0.35), (0.7, 1.3, 0.6)))
    x, z, foot = width / 2, depth / 2, 0.035
    if piece.pick("box bowed") == "box":
        look = {"axis": "front", "corner": rng.uniform(0, 0.05), "edge": 0.012}
        body = piece.block("body", x, (foot, height), z, **look)
        front = body["front"]
        kinds = "panels louvers waves hollows lattice"
        piece.dress([body["left"], body["right"]], kinds)
    else:
        rings = [(0.55, -z), (0.75, 0.02 - z), (1, 0.4 * z)]
        rings += [(0.96, z - 0.02), (0.92, z)]
        kinds = "ribs rings lattice waves panels"
        sides = [(kinds, (k - 0.1, k + 0.1), (0.2, 0.8)) for k in (0.25, 0.75)]
        around = oval(x, (height - foot) / 2, 6.0)
        middle = 0, (height + foot) / 2, 0
        front = piece.loft("body", around, rings, sides, "front", middle)
        front = front.sub(0.06, 0.94, 0.04, 0.96)
    for cx, cz in product((-0.6 * x, 0.6 * x), (-0.4 * z, 0.5 * z)):
        rings = [(0.8, 0), (1, foot + 0.04)]
        piece.loft("foot", oval(0.03, 0.03), rings, at=(cx, 0, cz))
    # Drivers from below, each narrower than the one under it.
    wide, room = min(0.86 * front.width, 0.45 * front.height), front.height
    y = -room / 2 + 0.02
    end, hollow = rng.uniform(0.0, 0.5), rng.random() < 0.75
    while wide > 0.09 and y + wide < room / 2 - 0.01:
        place = front.move(0, y + wide / 2, 0, wide, wide)
        bevel = max((0.4 if hollow else 0.1) * wide, 0.025)
        how = dict(share=0.8, sunk=hollow, end=1.0 if hollow else end)
        [inner] = piece.emboss(place, (wide, wide), wide / 2, bevel, "ring", **how)
        if inner.width > FEATURE:
            size = max(0.5 * inner.width, FEATURE)
            piece.emboss(inner, (size, size), size / 2, size / 2, "cone", 0.7)
        y, wide = y + wide + 0.02, wide * rng.uniform(0.55, 1.0)
    room = room / 2 - y - 0.015
    if room > 0.075:
        port = front.move(0, y + room / 2, 0, 0.8 * front.width, room)
        piece.dress([port], "ribs louvers panels domes")


def _guitar(piece, rng):
    width, height, depth = unit(*rng.uniform((0.34, 1.0, 0.1), (0.44, 1.15, 0.16)))
    x, tall, z = width / 2, rng.uniform(0.42, 0.5) * height, depth / 2
    turn = np.linspace(-np.pi / 2, 1.5 * np.pi, 721)
    y, upper, waist = np.sin(turn), rng.uniform(0.1, 0.25), rng.uniform(0.2, 0.38)
    half = 1 - upper * (1 + y) / 2 - waist * np.exp(-(((y - 0.2) / 0.33) ** 2))
    half *= np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** 0.75
    around = np.stack([x * half / half.max(), tall / 2 * y], 1)
    rings = [(0.94, -z), (1, 0.015 - z), (1, 0), (1, z - 0.015), (0.95, z)]
    wall = [("ribs flutes studs rings", (0.57, 1.43), (0.15, 0.85))]
    wall = wall if depth > 0.09 else ()
    top = piece.loft("body", around, rings, wall, "front", (0, tall / 2, 0))
    at, wide = 0.04 * tall, rng.uniform(0.42, 0.52) * width
    start = tall / 2 + at + wide / 2 + 0.005
    neck, head = rng.uniform(0.055, 0.07), rng.uniform(0.1, 0.13)
    size = neck / 2, (start, height - 0.16), (0, z + 0.025)
    board = piece.block("neck", *size, axis="front", edge=0.004)["front"]
    size = head / 2, (height - 0.17, height), (-0.01, z + 0.012)
    head = piece.block("head", *size, axis="front", corner=0.03, edge=0.005)
    top_end = head["front"]
    piece.dress([top_end.sub(bottom=0.15).inset(-0.01)], "domes dimples panels")
    shown = 1 - 0.02 / board.height
    for fret in board.sub(top=shown).split(1, int(board.height // 0.1)):
        piece.emboss(fret, (neck - 0.01, FEATURE), 0.01, FEATURE / 2, "neck")
    ring = top.move(0, at, 0, wide, wide)
    piece.emboss(ring, (wide, wide), wide / 2, 0.12 * wide, "rosette", end=-0.02)
    hole = top.move(0, at, 0, 0.45 * wide, 0.45 * wide)
    piece.hole(hole, 1.2 * z, 0.225 * wide)
    bridge = (rng.uniform(0.8, 1.0) * x, 0.065)
    place = top.move(0, -0.28 * tall, 0, *bridge)
    piece.emboss(place, bridge, 0.02, 0.03, "bridge")


def _car(piece, rng):
    width, height, length = unit(*rng.uniform((0.75, 0.55, 1.6), (0.9, 0.8, 2.0)))
    x, z, r = width / 2, length / 2, rng.uniform(0.19, 0.24) * height + 0.03
    belt, low = rng.uniform(0.52, 0.62) * height, 0.55 * r
    rings = [(0.9, low), (0.98, low + 0.03), (1, (low + belt) / 2), (0.95, belt - 0.02)]
    rings += [(0.88, belt)]
    half, share = (0.61 * z - r - 0.012) / (3.9 * (x + z)), (0.2, 0.8)
    relief = [("ribs louvers lattice studs", (-0.07, 0.07), share)]
    for k in (0, 0.5):  # on either side, between the wheels
        flank = 0.25 - half + k, 0.25 + half + k
        relief.append(("panels waves rings ribs", flank, share))
    around = oval(x, z, rng.uniform(4.0, 6.0))
    piece.loft("body", around, rings, relief)
    back, cabin = rng.uniform(-0.3, 0.0) * z, rng.uniform(0.5, 0.68)
    rings = [(1, belt - 0.03), (0.97, belt), (0.8, height - 0.03), (0.72, height)]
    around = oval(0.9 * x, cabin * z, rng.uniform(4.0, 6.0))
    glass = [
        ("panels", (k - half, k + half), (0.28, 0.85))
        for k, half in ((0.25, 0.08), (0.75, 0.08), (0, 0.1), (0.5, 0.1))
    ]
    roof = piece.loft("cabin", around, rings, glass, at=(0, 0, back))
    piece.dress([roof.sub(0.1, 0.9, 0.1, 0.9)], "ribs panels pad flutes")
    rings = [(0.9, 0), (1, 0.012), (1, 0.06), (0.9, 0.075)]
    spot = piece.pick("dish pad mouldings")
    for sign, cz in product((-1, 1), (-0.62 * z, 0.62 * z)):
        at = (sign * (0.93 * x - 0.035), r, cz)
        axis = "right" if sign > 0 else "left"
        wheel = piece.loft("wheel", oval(r, r), rings, axis=axis, at=at)
        _round(piece, wheel, 1.3 * r, spot)


def _vase(piece, rng):
    width, height, _ = unit(*rng.uniform((0.4, 0.7, 0.4), (0.85, 1.1, 0.5)))
    r, foot, neck, lip = width / 2, *rng.uniform((0.4, 0.25, 0.35), (0.7, 0.6, 0.75))
    belly, throat = rng.uniform((0.35, 0.75), (0.6, 0.88)) * height
    rings = [(0.95 * foot, 0), (foot, 0.02), (1, belly), (neck, throat)]
    rings += [(lip, height - 0.01), (lip - 0.015 / r, height)]
    # Raised alone: the wall is thin.
    kinds = "ribs rings waves lattice studs motifs panels"
    cut, mid = rng.uniform(0.4, 0.5), rng.choice([True, False])
    spans = [(0.05, cut), (cut, 0.78)] if mid else [(0.07, 0.78)]
    piece.depth = min(piece.depth, 0.02)  # its scaling stretches it most
    around = oval(r, r, rng.choice([2.0, 2.0, 3.0]))
    piece.loft("body", around, rings, [(kinds, (0, 1), span) for span in spans])
    wall = 0.045 / r
    inner = [(foot - wall, 0.05), (1 - wall, belly), (neck - wall, throat)]
    inner += [(lip - wall, height - 0.01), (lip - wall, height + 0.02)]
    piece.loft("inside", around, inner, cut=True)


# A family's place is part of its seed: add new ones at the end.
BUILDERS = (_chair, _table, _cabinet, _sofa, _stool, _bench, _bed, _bookshelf, _lamp)
BUILDERS += (_loudspeaker, _guitar, _car, _vase)
BUILDERS = {build.__name__[1:]: build for build in BUILDERS}
FAMILIES = tuple(BUILDERS)
