"""Marching cubes on tensors, on any device (Lorensen and Cline, SIGGRAPH 1987).

In a cell the surface follows loops over the cell's edges. Where a face is ambiguous,
its inside corners diagonally opposite, the bilinear function between its corners
decides whether they are joined (Nielson and Hamann's asymptotic decider, 1991), alike
for both cells of the face, so the surface is closed. A loop is filled by a fan of
triangles without a diagonal in a face, as the next cell may have the same one, or by a
fan about a vertex in its middle: no edge has more than two triangles.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

CORNERS = list(product((0, 1), repeat=3))  # corner k of a cell is bit k of its code
EDGES = [(axis, c) for axis in range(3) for c in CORNERS if not c[axis]]  # lower corner
MIDDLE = len(EDGES)  # stands for the vertex in a loop's middle


def _rings():
    """The corners of the six faces, counter-clockwise seen from outside."""
    for axis, side in product(range(3), (0, 1)):
        ring = []
        for turn in ((0, 0), (1, 0), (1, 1), (0, 1)):
            corner = [side] * 3
            corner[axis - 2], corner[axis - 1] = turn
            ring.append(CORNERS.index(tuple(corner)))
        yield ring if side else ring[::-1]


def _edge(a, b):
    low, high = CORNERS[min(a, b)], CORNERS[max(a, b)]
    return EDGES.index(([i != j for i, j in zip(low, high, strict=True)].index(1), low))


RINGS = list(_rings())
SIDES = [[_edge(ring[k - 1], ring[k]) for k in range(4)] for ring in RINGS]
FLAT = {(a, b) for side in SIDES for a in side for b in side}  # edges of a common face


def _ambiguous(code):
    """A bit for each face whose inside corners are diagonally opposite."""
    inside = [[code >> corner & 1 for corner in ring] for ring in RINGS]
    return sum((i[0] == i[2] != i[1] == i[3]) << k for k, i in enumerate(inside))


def _triangles(code, joined):
    """Triangles of a cell, as edges; `joined`: a bit for each ambiguous face whose
    inside corners the inside connects."""
    follow = {}
    for face, (ring, side) in enumerate(zip(RINGS, SIDES, strict=True)):
        inside = [code >> corner & 1 for corner in ring]
        turns = [k for k in range(4) if inside[k - 1] != inside[k]]
        for k, turn in enumerate(turns):
            if inside[turn]:  # from where the ring enters to where it leaves
                after = k - 1 if joined >> face & 1 else (k + 1) % len(turns)
                follow[side[turn]] = side[turns[after]]
    triangles = []
    while follow:
        loop = [next(iter(follow))]
        while (after := follow.pop(loop[-1])) != loop[0]:
            loop.append(after)
        turned = (loop[k:] + loop[:k] for k in range(len(loop)))
        fans = (f for f in turned if not any((f[0], b) in FLAT for b in f[2:-1]))
        apex, *others = next(fans, [MIDDLE, *loop, loop[0]])
        triangles += [(apex, *pair) for pair in zip(others, others[1:], strict=False)]
    return triangles


@cache
def _tables(device):
    """Of each code: its ambiguous faces (256,) and which edges leave its lowest corner
    (256, 3); of each code * 64 + joined: its first triangle and their number; triangles
    (T, 3); corners (8, 3), faces' corners (6, 4), axis and lower corner of edges."""
    ambiguous = [_ambiguous(code) for code in range(256)]
    crossed = [[(code ^ code >> k) & 1 for k in (4, 2, 1)] for code in range(256)]
    first, number, triangles = [], [], []
    for code, joined in product(range(256), range(64)):
        possible = joined & ~ambiguous[code] == 0
        new = _triangles(code, joined) if possible else []
        first.append(len(triangles))
        number.append(len(new))
        triangles += new
    edges = [(axis, CORNERS.index(corner)) for axis, corner in EDGES]
    edges = zip(*edges, (0, 0), strict=True)  # MIDDLE has none, only a place
    tables = ambiguous, crossed, first, number, triangles, CORNERS, RINGS, list(edges)
    return [torch.tensor(table, device=device) for table in tables]


def marching_cubes(
    values: Tensor, move: Callable | None = None
) -> tuple[Tensor, Tensor]:
    """Triangulate the zero surface of a grid's values.

    Args: values: (X, Y, Z), floating point, contiguous; inside where <= 0. The
        outermost layer must be outside.
        move: called with the ends (2, V) of the edges that the surface crosses, as flat
            indices, and the vertices (V, 3) on them, which it may change in place.
    Returns: vertices (V, 3) in grid indices, linear between an edge's ends, then those
        in the middle of loops; faces (F, 3), counter-clockwise seen from outside. Where
        values are exactly 0 vertices coincide.
    """
    ambiguous, crossed, first, number, triangles, *cube = _tables(values.device)
    corners, rings, (edge_axis, edge_low) = cube
    codes = (values <= 0).byte()
    for axis, shift in ((2, 1), (1, 2), (0, 4)):
        low, high = (codes.narrow(axis, k, codes.shape[axis] - 1) for k in (0, 1))
        codes = low | high << shift
    cells = (codes + 1 > 1).nonzero()  # neither 0 nor 255: a byte overflows
    code, strides = codes[tuple(cells.T)].long(), cells.new_tensor(values.stride())
    lowest, flat = (cells * strides).sum(1), values.view(-1)

    # Vertices: each on an edge that leaves the lowest corner of some cell.
    crossed = crossed[code]
    owner, axis = crossed.nonzero().T
    ends = torch.stack([lowest[owner], lowest[owner] + strides[axis]])
    start, end = flat[ends]
    vertices = cells[owner].to(values)
    vertices.scatter_add_(1, axis[:, None], (start / (start - end))[:, None])
    if move:
        move(ends, vertices)

    # Triangles: the bilinear function's saddle is inside where the product of the
    # inside corners is the larger one.
    offsets = (corners * strides).sum(1)
    unsure = ambiguous[code].nonzero()[:, 0]
    ring = flat[lowest[unsure, None, None] + offsets[rings]]
    gap = ring[..., 0] * ring[..., 2] - ring[..., 1] * ring[..., 3]
    joined = torch.where(ring[..., 0] <= 0, gap, -gap) > 0
    joined = (joined << torch.arange(6, device=code.device)).sum(1)
    case = code * 64
    case[unsure] += joined & ambiguous[code[unsure]]
    number = number[case]
    cell = torch.arange(len(case), device=case.device).repeat_interleave(number)
    which = torch.arange(len(cell), device=case.device)
    which += (first[case] - number.cumsum(0) + number)[cell]
    edges = triangles[which]  # (F, 3), of the triangle's cell

    # Faces: an edge's vertex is found by the cell at its lower end.
    place = torch.empty_like(flat, dtype=torch.int32)  # in the list of cells
    place[lowest] = torch.arange(len(cells), dtype=torch.int32, device=place.device)
    place = place[lowest[cell, None] + offsets[edge_low][edges]].long()
    vertex = crossed.view(-1).cumsum(0) - 1
    faces = vertex[3 * place + edge_axis[edges]]
    middle = (edges[:, 0] == MIDDLE).nonzero()[:, 0]  # a cell has one such loop at most
    if len(middle):
        loops, loop = cell[middle].unique_consecutive(return_inverse=True)
        sums = torch.zeros((len(loops), 3), dtype=torch.double, device=cell.device)
        sums.index_add_(0, loop, vertices[faces[middle, 1]].double())
        faces[middle, 0] = len(vertices) + loop
        means = sums / loop.bincount()[:, None]
        vertices = torch.cat([vertices, means.to(vertices)])
    return vertices, faces
