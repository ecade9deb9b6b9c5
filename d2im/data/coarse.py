"""The plain version of a mesh of other people's: its body without relief.

L_rel teaches the base field the body, F_coarse, and the maps the rest. Seen along an
axis a mesh is a map of heights, in which relief is regions that small steps part from
what is around them: grooves, panels and gaps lie lower, knobs, ribs and mouldings stand
out. Each such region gets the height of its surroundings. A tall step is form and
stays, and so do slopes, curved surfaces, legs and boards.
"""

import numpy as np
import trimesh
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import cg

from ..sampling import sample_surface, signed_distance
from .rendering import ray_scene

CELL = 1 / 144  # world units, of the grid that the body is cut from
FINE = 2  # pixels of a map of heights along a cell
PIXEL = CELL / FINE
NEEDLE = 0.03  # cells
MARGIN = 3  # cells around the mesh
SAMPLES, MOST_SAMPLES = 6, 4_000_000  # of the surface in a cell's square, and in all
DEEPEST = 0.04  # world units: a taller step is form, not relief
SLIT = 0.15  # world units: a narrow groove may be as deep
MOST_RELIEF = 0.05  # world units: in such a groove a map cannot hold more
NARROW = 5  # pixels: grooves and ribs of this width are relief whatever is around them
STEP = 0.75 * PIXEL  # between two pixels: a lower one is a slope
BEVEL = 5  # pixels that a step may be wide
WIDE = 17  # pixels, of the square in which most being steep makes a slope
ROUNDS = 4  # relief may lie on relief
# Least shares of a region's border: higher surroundings of a dent, which are all around
# it, and of a ledge, which ends at a drop; lower ones of a bump; all that may be there.
DENT, LEDGE, BUMP, WHOLE = 0.75, 0.3, 0.6, 0.85
FLAT = 0.2  # mean slope of a region that moves, but for a knob
KNOB, AROUND = (0.1 / PIXEL) ** 2, 0.9  # its most pixels, and least share of its border
SHALLOWEST, SMALLEST = 0.003, 12  # world units and pixels: less is no relief


def coarse_body(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The body of a mesh without its relief.

    Args: mesh: trimesh.Trimesh, world frame, as `load_mesh` makes it.
    Returns: trimesh.Trimesh, cut from a grid, so that sheets below 0.007 are ragged in
        it; `metadata["whole"]` is the mesh itself cut so, for `coarse_distance`. Where
        no relief was found, `mesh` itself.
    """
    low, values = _grid(mesh)
    scene, body = ray_scene(np.array(mesh.triangles)), values.copy()
    sides = (0, 1), (0, -1), (1, 1), (2, 1), (2, -1)  # not from below: feet would go
    if not sum(_level(body, values, scene, low, *side) for side in sides):
        return mesh
    plain, whole = (_surface(grid, low) for grid in (body, values))
    plain.metadata["whole"] = whole
    return plain


def coarse_distance(
    coarse: trimesh.Trimesh, points: np.ndarray, sdf: np.ndarray | float
) -> np.ndarray:
    """F_coarse at points, free of the grid's error where nothing was taken away.

    Args: coarse: of `coarse_body`, or any mesh. points: (P, 3), world.
        sdf: the detailed mesh's signed distance there, (P,), or 0 on its surface.
    Returns: (P,), world units; of `coarse_body` no more than 0.05 from sdf.
    """
    found, _ = signed_distance(coarse, points)
    if (whole := coarse.metadata.get("whole")) is None:
        return found
    relief = signed_distance(whole, points)[0] - found
    return sdf - relief.clip(-MOST_RELIEF, MOST_RELIEF)


def _surface(values, low):
    from skimage.measure import marching_cubes

    # Surfaces through samples would give needles, whose sides cannot be told.
    away = np.where(values < 0, -1, 1) * np.maximum(np.abs(values), NEEDLE * CELL)
    vertices, faces, _, _ = marching_cubes(away, 0.0, gradient_direction="descent")
    mesh = trimesh.Trimesh(low + CELL * vertices, faces, process=False)
    mesh.metadata["solid"] = True
    return mesh


def _grid(mesh):
    """Low corner, signed distance at samples, exact near the surface."""
    import igl  # absent on a machine that only trains

    low = mesh.bounds[0] - (MARGIN + 0.5) * CELL
    shape = np.ceil((mesh.bounds[1] - low) / CELL).astype(int) + MARGIN + 1
    count = int(min(SAMPLES * mesh.area / CELL**2, MOST_SAMPLES))
    points, _ = sample_surface(mesh, count, np.random.default_rng(0))
    near = np.zeros(shape, dtype=bool)
    near[tuple(np.round((points - low) / CELL).astype(int).T)] = True
    near = ndimage.binary_dilation(near, np.ones((3, 3, 3)))
    at = np.nonzero(near)
    arrays = np.array(mesh.vertices, float), np.array(mesh.faces, np.int64)
    squared = igl.point_mesh_squared_distance(low + CELL * np.stack(at, 1), *arrays)[0]
    values = np.full(shape, np.inf)
    values[at] = np.sqrt(squared)

    def ask(at):
        return igl.fast_winding_number(*arrays, low + CELL * np.stack(at, 1)) > 0.5

    away, index = ndimage.distance_transform_edt(~near, return_indices=True)
    inside = _inside(values, ask)
    parts, count = ndimage.label(~near)
    middles = ndimage.maximum_position(away, parts, range(1, count + 1))
    inside |= np.append(False, ask(np.transpose(middles)))[parts]
    values = values[tuple(index)] + CELL * away
    return low, np.where(inside, -values, values)


def _inside(values, ask):
    """Which samples are inside, of those whose distance is finite.

    A winding number takes time: an eighth of the samples ask for theirs, the others
    take a neighbour's where no surface can pass between, since both distances together
    are more than a cell.
    """
    near = np.isfinite(values)
    known, inside = np.zeros((2, *values.shape), dtype=bool)

    def settle(which):
        at = np.nonzero(which)
        inside[at] = ask(at)
        known[at] = True

    eighth = np.zeros_like(near)
    eighth[::2, ::2, ::2] = near[::2, ::2, ::2]
    settle(eighth)
    for _ in range(3):
        for axis in range(3):
            a, b = _pairs(axis, 3)
            joined = near[a] & near[b] & (values[a] + values[b] > 1.001 * CELL)
            for one, other in ((a, b), (b, a)):
                take = joined & known[one] & ~known[other]
                inside[other][take] = inside[one][take]
                known[other][take] = True
    settle(near & ~known)
    return inside


def _pairs(axis, dimensions=2):
    """Slices of neighbours along an axis."""
    a, b = ([slice(None)] * dimensions for _ in range(2))
    a[axis], b[axis] = slice(None, -1), slice(1, None)
    return tuple(a), tuple(b)


def _level(body, values, scene, low, axis, side):
    """Take from a body, in place, the relief seen from a side; whether there was any.

    Args: body, values: (X, Y, Z) signed distance, of the body and of the mesh. scene:
        of its triangles. low: the grid's corner. axis, side: 1 looks from its far end.
    """
    order = [axis, (axis + 1) % 3, (axis + 2) % 3]
    body, shape = np.moveaxis(body, order, range(3)), np.array(values.shape)[order]
    counts = FINE * (shape[1:] - 1) + 1
    origins = np.zeros((*counts, 3), dtype=np.float32)
    origins[..., order[1:]] = np.moveaxis(np.indices(counts), 0, -1) * PIXEL
    origins[..., axis] = CELL * shape[0] * (side > 0)
    origins = origins.reshape(-1, 3) + low.astype("f4")
    rays = np.zeros_like(origins)
    rays[:, axis] = -side
    depth = scene.run(origins, rays, query="DISTANCE").reshape(counts)
    mask = depth < 1e6
    height = np.where(mask, side * float(origins[0, axis]) - depth, 0.0)
    plain = _without_relief(height, mask)
    height, plain, mask = (a[::FINE, ::FINE] for a in (height, plain, mask))
    changed = plain != height
    if not changed.any():
        return False
    # The samples beside a step that is gone still know of it.
    away, near = ndimage.distance_transform_edt(~changed, return_indices=True)
    around = mask & (away < 1.5) & (np.abs(plain - plain[tuple(near)]) < 2 * PIXEL)
    level = side * (low[axis] + CELL * np.arange(shape[0]))[:, None, None]
    above = level - plain
    fill = np.maximum(above, np.minimum(height, plain) - CELL - level)
    lower = around & (plain <= height) & (level < height + 1.5 * CELL)
    higher = around & (plain >= height)
    body[:] = np.where(lower, np.maximum(body, above), body)
    body[:] = np.where(higher, np.minimum(body, fill), body)
    return True


def _without_relief(height, mask):
    """Heights (H, W), as they are without what is narrow, and without its regions."""
    start = _narrow_gone(height, mask & ~_steep(height, mask)[1])
    steep, slope = _steep(start, mask)
    # Bevels are made steps: their pixels get the nearest flat one's height.
    away, index = ndimage.distance_transform_edt(steep | ~mask, return_indices=True)
    nearest = start[tuple(index)]
    use = steep & (away <= BEVEL) & (np.abs(nearest - start) < DEEPEST)
    sharp = np.where(use, nearest, start)
    plain, flat = sharp.copy(), mask & ~slope
    for _ in range(ROUNDS):
        if not _move_regions(plain, flat, mask, start):
            break
    return _limited(start, np.where(mask & (plain != sharp), plain, start))


def _steep(height, mask):
    """Where heights rise by more than STEP a pixel, and where most around do."""
    steep = np.zeros_like(mask)
    for axis in range(2):
        a, b = _pairs(axis)
        rise = np.abs(height[a] - height[b])
        found = mask[a] & mask[b] & (rise > STEP) & (rise < DEEPEST)
        steep[a] |= found
        steep[b] |= found
    share, whole = (ndimage.uniform_filter(a * 1.0, WIDE) for a in (steep, mask))
    return steep, mask & (share > 0.5 * whole)


def _narrow_gone(height, mask):
    """Heights without narrow grooves and ribs."""
    # A ridge of two slopes has no steps, and loses as much.
    least = NARROW // 2 * STEP
    closed = ndimage.grey_closing(np.where(mask, height, -9.0), NARROW)
    filled = _limited(height, np.where(mask, closed, height), least, SLIT)
    opened = ndimage.grey_opening(np.where(mask, filled, -9.0), NARROW)
    return _limited(filled, np.where(mask, opened, filled), least)


def _limited(height, other, least=SHALLOWEST, most=DEEPEST):
    """Other heights, but where a connected change is too small or too deep."""
    parts, count = ndimage.label(other != height)
    depth = ndimage.maximum(np.abs(other - height), parts, np.arange(count + 1))
    keep = (depth < least) | (depth > most)
    keep |= np.bincount(parts.ravel(), minlength=count + 1) < SMALLEST
    return np.where(keep[parts], height, other)


def _move_regions(height, flat, mask, start):
    """Give regions that are relief the height of what is around them, in place.

    Args: height: (H, W), with sharp steps. flat, mask: where regions may be, and where
        the mesh is. start: the heights before any was changed. Returns: bool, of any.
    """
    number, shape = np.arange(mask.size).reshape(mask.shape), (mask.size,) * 2
    a, b = (
        np.concatenate([number[_pairs(axis)[end]].ravel() for axis in range(2)])
        for end in range(2)
    )
    level, start, known, solid = (x.ravel() for x in (height, start, flat, mask))
    rise, both = level[b] - level[a], known[a] & known[b]
    joined = both & (np.abs(rise) <= STEP)
    graph = coo_array((joined[joined], (a[joined], b[joined])), shape)
    count, region = connected_components(graph, directed=False)

    def sums(at, weights=None):
        return np.bincount(region[at], weights, count).astype(float)

    area = np.bincount(region, known, count)
    slope = sums(a[joined], np.abs(start[a] - start[b])[joined])
    slope /= sums(a[joined]).clip(1) * PIXEL
    # The regions' borders, each pair of pixels from both its ends.
    border = (region[a] != region[b]) & (known[a] | known[b])
    here, there = np.concatenate([[a, b], [b, a]], axis=1)[:, np.tile(border, 2)]
    rise, both = np.tile(rise[border], 2), np.tile(both[border], 2)
    rise[len(rise) // 2 :] *= -1
    length = sums(here).clip(1)
    small = both & (np.abs(rise) < DEEPEST)
    drop = sums(here, ~solid[there] | both & (rise <= -DEEPEST)) / length
    share, largest = np.zeros((2, 2, count))
    for k, found in enumerate((small & (rise > 0), small & (rise < 0))):
        share[k] = sums(here, found) / length
        np.maximum.at(largest[k], region[here[found]], area[region[there[found]]])
    smaller, ends = area < largest, share + drop >= WHOLE
    up = (share[0] >= DENT) | (share[0] >= LEDGE) & ends[0] & smaller[0]
    down = ~up & (share[1] >= BUMP) & ends[1] & smaller[1]
    knob = (area < KNOB) & (share.max(axis=0) >= AROUND)
    moves = (up | down) & (area > 0) & (knob | (slope < FLAT))
    up, down = (moves & way for way in (up, down))
    held = small & np.where(rise > 0, up[region[here]], down[region[here]])
    # Of two neighbours that would move to each other, the smaller one does.
    larger = area[region[there]] > area[region[here]]
    held &= ~moves[region[there]] | larger
    moves &= sums(here, held) > 0
    here, there = here[held], there[held]
    if not len(here):
        return False
    return _stretch(level, region, moves, (a[joined], b[joined]), here, level[there])


def _stretch(level, region, moves, joined, here, beyond):
    """Give regions the heights of a membrane that is held at their rims, in place.

    Args: level: (N,) of pixels. region: (N,). moves: bool by region. joined: pairs of
        pixels in one region. here: pixels that are held at the heights `beyond`.
    """
    pixels = np.flatnonzero(moves[region])
    own, count = np.zeros(len(level), dtype=int), len(pixels)
    own[pixels] = every = np.arange(count)
    a, b = (own[end[moves[region[joined[0]]]]] for end in joined)
    ends = np.concatenate([a, b])
    degree = np.bincount(np.concatenate([own[here], ends]), minlength=count)
    where = np.concatenate([every, a, b]), np.concatenate([every, b, a])
    weights = np.concatenate([degree, np.full(len(ends), -1.0)])
    matrix = coo_array((weights, where), (count, count)).tocsr()
    given = np.bincount(own[here], beyond, count)
    found, _ = cg(matrix, given, level[pixels], rtol=1e-4, maxiter=500)
    change = np.abs(found - level[pixels]).max()
    level[pixels] = found
    return change > 1e-4
