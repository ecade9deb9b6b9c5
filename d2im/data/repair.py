"""A surface of the wild made one that has an inside: welded, turned, closed, united.

Files are closed bodies that overlap, open shells, loose sheets, or all of these. Parts
are turned outward, sheets thickened, holes capped and closed bodies united
(manifold3d); a repair that would drop what is seen from outside is undone. What is open
after that stays a soup, whose sign comes from the winding number (Jacobson et al.
2013).
"""

from itertools import product

import igl
import manifold3d
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from ..sampling import HALF_BOX
from .rendering import ray_scene

SAME, NEAR = 1e-8, 1e-5  # vertices so near are one, the second where that closes more
PROBES = 4000  # points at which a surface is asked
OFF_SURFACE = 1e-4  # where the two sides of a face are asked, world units
HIDDEN = 0.9  # of a wall's probes lie in bodies
CLOSED = 0.75  # mean winding number behind a patch: 1/2 of a flat sheet, 1 of a body
LONGEST_RIM = 400  # edges of a hole; the time to close it grows with their cube
MOST_BODIES = 1000  # to unite: of the 3,000 leaves of a bush manifold3d dies
OUTSIDE_RAYS = 1000  # from each of 26 directions, to see whether a repair loses
LOST = 3e-3  # of these that may meet less: edges of sheets, rays between triangles
# An opening stays open if it is this share of its body's area, and deeper than this
# share of its width: shallow ones are slabs without a bottom.
LID_SHARE, SHALLOW, SEEN_LID = 0.06, 0.25, 0.8
ROOMY = 0.08  # volume by area^1.5 of what is no sheet: a cup 0.10, a ball 0.094
FLOOR = 0.02  # what opens downward so near to the ground is closed, world units


def repair(
    vertices: np.ndarray, faces: np.ndarray, thickness: float | None, caps: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """Orient, close and unite, as far as nothing is lost that is seen.

    Returns: vertices, faces, the earlier face that each is of (F,), and the counts of
        the report.
    """
    before = vertices, faces
    faces, patch = one_way(vertices, faces)
    own = np.arange(len(faces))
    if caps != "keep":
        faces, patch, own = _close_slabs(vertices, faces, patch)
    slabs = len(np.unique(patch[len(before[1]) :]))
    faces = orient(vertices, faces, patch)
    done = {"parts": int(patch.max()) + 1}
    done["turned"] = int((faces[: len(before[1]), 0] != before[1][:, 0]).sum())
    thin = np.zeros(len(faces), dtype=bool)
    # Where holes are closed, what is seen through them is not.
    kinds = _classify(vertices, faces, patch, thin, seen_stays=caps != "close")
    none = np.zeros_like(kinds[0])
    tries = [(kinds, caps), ((none,) * 3, None)]
    if kinds[1].any():
        tries.insert(1, ((kinds[0], none, kinds[2]), caps))
    for done["undone"], (kinds, caps) in enumerate(tries):
        found = _mended(vertices, faces, patch, kinds, thickness, caps)
        risks = [found[3].get(kind) for kind in ("walls", "sheets", "containers")]
        is_risky = any(risks) or found[3]["united"]
        if caps is None or not is_risky or not _loses(before, found, thickness or 0.0):
            break
    found[3]["holes"] = found[3].get("holes", 0) + slabs
    return *found[:2], own[found[2]], done | found[3]


def _mended(vertices, faces, patch, kinds, thickness, caps):
    """Drop walls, thicken sheets, close holes, unite bodies: as `_repair` returns."""
    closed, wall, sheet = kinds
    done = {"walls": int(wall.sum()), "sheets": int(sheet.sum())}
    keep = np.flatnonzero(~wall[patch])
    faces, flat = faces[keep], sheet[patch[keep]]
    body = igl.facet_components(faces)[1]  # joined by edges
    vertices, faces = _split(vertices, faces, body)
    rims = _rims(vertices, faces, body) if caps else []
    if rims and caps == "close":  # what encloses much is no sheet
        volume, area = _volumes(vertices, faces, body, rims)
        flat &= ~(np.abs(volume) > ROOMY * area**1.5)[body]
    elif rims and thickness is not None:
        stays = _containers(vertices, faces, body, rims, caps)
        stays &= np.bincount(body, flat) == 0
        if stays.any():  # their patches may share edges: each is thickened alone
            done["containers"], thin = int(stays.sum()), stays[body]
            inner = np.unique(patch[keep], return_inverse=True)[1]
            shelves = _classify(vertices, faces, inner, thin)[2]
            flat |= thin | shelves[inner]
            body = _ids(np.stack([body, np.where(thin, patch[keep], 0)], 1))
            vertices, faces = _split(vertices, faces, body)
            rims = _rims(vertices, faces, body)
    rims = [rim for rim in rims if len(rim[1]) <= LONGEST_RIM and not flat[rim[0]]]

    def follow(step, *arguments):
        """Take a step whose last result tells which earlier face each new one is of."""
        nonlocal vertices, faces, keep, body
        vertices, faces, own, *rest = step(vertices, faces, body, *arguments)
        keep, body = keep[own], body[own]
        return rest

    if flat.any() and thickness is not None:
        follow(_thicken, flat, thickness)
    if rims:
        (done["holes"],) = follow(_cap, rims, (closed | wall | sheet).all())
    bodies, done["panels"] = follow(_unite)
    solid = done["panels"] == 0 and _is_solid(vertices, faces)
    if not solid:  # slivers hold a closed mesh together, but only hurt a soup
        proper = igl.doublearea(vertices, faces) > 1e-12
        faces, keep = faces[proper], keep[proper]
    done["united"] = len(faces) if bodies > 1 else 0
    return vertices, faces, keep, done | {"solid": solid}


def _loses(before, after, thickness):
    """Whether a repair moves the bounds or takes away what rays from outside meet."""
    bounds, depths = [], []
    rng = np.random.default_rng(0)
    for vertices, faces, *_ in (before, after):
        corners = vertices[faces]
        bounds.append([corners.min(axis=(0, 1)), corners.max(axis=(0, 1))])
        if not depths:
            low, high = bounds[0]
            rays = np.array([r for r in product((-1, 0, 1), repeat=3) if any(r)], "f4")
            rays = np.repeat(_unit(rays), OUTSIDE_RAYS, axis=0)
            spread = rng.uniform(low, high, rays.shape)  # their targets
            origins = (spread - 2 * rays).astype("f4")
        depths.append(ray_scene(corners).run(origins, rays, query="DISTANCE"))
    slack = thickness + 1e-3
    if np.abs(np.subtract(*bounds)).max() > slack:
        return True
    met = depths[0] < 10
    return (depths[1] > depths[0] + slack)[met].mean() > LOST


def _ids(rows):
    """A number for each row (N, K) of whole numbers, the same for the same rows."""
    ids = rows[:, 0]
    for column in rows.T[1:]:
        ids = np.unique(ids * (column.max() + 1) + column, return_inverse=True)[1]
    return ids


def weld(
    vertices: np.ndarray, faces: np.ndarray, part: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, int]]:
    """Join equal vertices, only as far as it takes to close a body.

    So bodies that touch stay apart. A body closes by the file's own indices, within a
    part of the file, or in all of it; what stays open is joined in all of it, and with
    what is nearer than 1e-5 where that leaves fewer open edges. A face and its mirror
    image are duplicates: a two-sided sheet becomes a sheet, a box exported with both
    its sides a box; so are two bodies of the same faces.

    Returns: vertices, faces, the earlier face that each is of (F,), and the counts of
        duplicate and degenerate faces.
    """
    same = _ids(np.round((vertices - vertices.min(axis=0)) / SAME).astype(np.int64))
    count = len(faces)
    proper = np.flatnonzero((np.diff(np.sort(same[faces]), axis=1) > 0).all(axis=1))
    if not len(proper):
        return vertices, faces[:0], proper, {}
    faces, corners, part = faces[proper], same[faces[proper]], part[proper]
    key = _ids(np.sort(corners))  # the same for duplicates
    body = np.zeros(len(faces), dtype=np.int64)  # a number of the closed one, or 0
    for scope in (igl.facet_components(faces)[1], part, np.zeros_like(part)):
        left = np.flatnonzero(body == 0)
        if not len(left):
            break
        scope = scope[left]
        first = np.unique(_ids(np.stack([key[left], scope], 1)), return_index=True)[1]
        left = left[first]
        own, open_edges = _open_edges(_scoped(corners[left], scope[first]))
        closed = open_edges[own] == 0
        body[left[closed]] = body.max() + 1 + own[closed]
    # A body's faces summed up as random numbers tell it from others.
    number = np.random.default_rng(0).integers(2**63, size=key.max() + 1)
    index = np.unique(body, return_inverse=True)[1]
    sums = np.zeros(index.max() + 1, dtype=np.int64)
    np.add.at(sums, index, number[key])
    single = np.isin(np.arange(len(sums)), np.unique(sums, return_index=True)[1])
    on_bodies = np.isin(key, key[body > 0])
    first = np.isin(np.arange(len(key)), np.unique(key, return_index=True)[1])
    keep = np.flatnonzero(np.where(body > 0, single[index], first & ~on_bodies))
    joined = _scoped(corners[keep], body[keep])
    if len(loose := keep[body[keep] == 0]):
        pieces = igl.facet_components(faces[loose])[1]
        ways = [_scoped(corners[loose], scope) for scope in (pieces, part[loose])]
        ways += corners[loose], _near(vertices, same)[corners[loose]]
        for way in ways[1:]:
            ways[0] = _fewer_open_edges(ways[0], way)
        joined[body[keep] == 0] = ways[0] + joined.max() + 1
    _, at, index = np.unique(joined, return_index=True, return_inverse=True)
    vertices, corners = vertices[faces[keep].ravel()[at]], index.reshape(-1, 3)
    good = (np.diff(np.sort(corners), axis=1) > 0).all(axis=1)
    done = {"duplicate": len(key) - len(keep), "degenerate": count - len(key)}
    return vertices, corners[good], proper[keep[good]], done


def _scoped(corners, scope):
    """Vertices of faces (F, 3) numbered anew, such that no two scopes share one."""
    rows = np.column_stack([corners.ravel(), scope.repeat(3)])
    return _ids(rows).reshape(-1, 3)


def _open_edges(faces):
    """The body of each face, joined by edges, and each body's edges without 2 faces."""
    body = igl.facet_components(np.ascontiguousarray(faces))[1]
    edges = np.sort(faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), axis=1)
    index = _ids(edges)
    odd = np.bincount(index)[index] != 2
    return body, np.bincount(body.repeat(3)[odd], minlength=body.max() + 1)


def _near(vertices, same):
    """The number of one of the vertices that are near, for each number in `same`."""
    at = np.unique(same, return_index=True)[1]
    tree = cKDTree(vertices[at])
    if tree.count_neighbors(tree, NEAR) > 20 * len(at):  # all of a tiny object's
        return np.arange(len(at))
    pairs = tree.query_pairs(NEAR, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), pairs.T), (len(at),) * 2)
    heap = connected_components(links, directed=False)[1]
    return np.unique(heap, return_index=True)[1][heap]


def _fewer_open_edges(corners, joined):
    """Faces (F, 3) with the corners as they are, or joined where that closes more."""
    proper = (np.diff(np.sort(joined), axis=1) > 0).all(axis=1)
    if not proper.any():
        return corners
    body = np.zeros(len(joined), dtype=np.int64)
    body[proper], after = _open_edges(joined[proper])
    old, before = _open_edges(corners)
    inner, first = np.unique(old[proper], return_index=True)
    before = np.bincount(body[proper][first], before[inner], len(after))
    better = (after < before)[body]
    # Numbers of those that stay as they are must not be those of joined ones.
    return np.where(better[:, None], joined + corners.max() + 1, corners)


def one_way(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Wind each patch, a piece joined by edges of two faces, one way.

    Where its faces disagree, a patch follows the larger part of its area.

    Returns: faces and the patch of each (F,).
    """
    turned, patch = igl.bfs_orient(faces)
    area = igl.doublearea(vertices, faces)
    changed = np.bincount(patch, area * (turned != faces).any(axis=1))
    other = changed > np.bincount(patch, area) / 2
    return np.where(other[patch, None], turned[:, ::-1], turned), patch


def orient(vertices: np.ndarray, faces: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """Turn faces over: the outer side of each patch outward.

    An open one is turned by the side from which more rays leave the mesh (Takayama et
    al. 2014), one that is closed, or nearly closed and enclosed by others, by the sign
    of its volume. A closed one wholly inside another stays its cavity.
    """
    count, area = patch.max() + 1, igl.doublearea(vertices, faces)
    seen = np.isin(np.arange(count), patch[_boundary(faces, patch)[1]])  # open ones
    inverted = np.bincount(patch, np.linalg.det(vertices[faces])) < 0
    points, normals, where = _probes(vertices, faces, patch)
    if seen.any():
        rng = np.random.default_rng(0)
        rays = rng.standard_normal(normals.shape)
        rays += normals * _length(rays)  # about cosine
        scene, left = ray_scene(vertices[faces]), []
        for side in (1, -1):
            origins = points + side * OFF_SURFACE * normals
            hit = scene.run(origins.astype("f4"), (side * rays).astype("f4"))
            left.append(np.bincount(where, hit < 0, minlength=count))
        # The area vectors of a closed surface cancel out.
        cross = [np.bincount(patch, c) for c in _cross(vertices, faces).T]
        nearly_closed = np.linalg.norm(cross, axis=0) < 0.1 * np.bincount(patch, area)
        seen &= (left[0] + left[1] > 0) | ~nearly_closed
        inverted = np.where(seen, left[0] < left[1], inverted)
    hollow, upright = inverted & ~seen, ~inverted & ~seen

    def within(those, others):
        """Which of some patches lie wholly inside others."""
        ask = those[where]
        winding = np.abs(_winding(vertices, faces[others[patch]], points[ask]))
        return those & (np.bincount(where[ask], winding < 0.5, minlength=count) == 0)

    if hollow.any() and not hollow.all():  # wholly inside another: it is its cavity
        if upright.any() and (within(upright, hollow) == upright).all():
            inverted |= upright  # the whole file is turned over
        else:
            inverted &= ~within(hollow, ~hollow)
    return np.where(inverted[patch, None], faces[:, ::-1], faces)


def _close_slabs(vertices, faces, patch):
    """Close patches that lack one flat side and are shallow, or open at the ground.

    Their sides stand upright on the rim; what else is shallow is a sheet.

    Returns: faces, the patches, and the face that each is of (F,).
    """
    own = np.arange(len(faces))
    if not len(_boundary(faces, patch)[1]):
        return faces, patch, own
    apart, split = _split(vertices, faces, patch)
    rims = _rims(apart, split, patch)
    count = np.bincount(patch[[face for face, *_ in rims]]) if rims else []
    volume, area = _volumes(apart, split, patch, rims)
    name = np.empty(len(apart), dtype=np.int64)
    name[split] = faces
    ground, caps, added = vertices[faces][..., 1].min() + FLOOR, [], []
    order = np.argsort(patch, kind="stable")
    groups = np.split(order, np.bincount(patch).cumsum()[:-1])
    for face, loop, _ in rims:
        ring, k = apart[loop], patch[face]
        normal, size, width = _lid(ring)
        is_flat = np.ptp(ring @ normal) < 1e-3 and size > LID_SHARE * area[k]
        if count[k] > 1 or not is_flat or len(loop) > LONGEST_RIM:
            continue
        on_ground = abs(normal[1]) > 0.9 and ring[:, 1].max() < ground
        if abs(volume[k]) < SHALLOW * width * size or on_ground:
            rim = groups[k][np.isin(split[groups[k]], loop).sum(axis=1) > 1]
            upright = np.abs(_unit(_cross(apart, split[rim])) @ normal) < 0.3
            if upright.all():
                caps.append(name[loop[_least_area(ring)]])
                added += [face] * len(caps[-1])
    own = np.concatenate([own, np.array(added, dtype=int)])
    return np.concatenate([faces, *caps]), patch[own], own


def _classify(vertices, faces, patch, thin, seen_stays=True):
    """Which patches are nearly closed, and of the others walls and sheets.

    Behind a body's faces their own winding number is 1, behind a flat sheet's 1/2. With
    all others it is 3/2 behind a wall in a body, whose inside that would blur: nearly
    everywhere, and no ray from outside meets it. Faces that are `thin` (F,) bound no
    body.
    """
    count = patch.max() + 1
    alone, behind, buried = np.ones(count), np.ones(count), np.zeros(count)
    points, normals, where = _probes(vertices, faces, patch)
    there = points - OFF_SURFACE * normals
    order = np.argsort(patch, kind="stable")
    groups = np.split(order, np.bincount(patch).cumsum()[:-1])
    each = len(where) // count  # probes
    for k in np.unique(patch[_boundary(faces, patch)[1]]):
        some, own = faces[groups[k]], there[k * each : (k + 1) * each]
        alone[k] = _winding(vertices, some, own).mean() if len(some) > 2 else 0.5
    if (alone < 1).any():
        winding = _winding(vertices, faces[~thin], there)
        deep = winding > 2 - CLOSED
        buried = np.bincount(where, deep) / np.bincount(where)
        # A sheet may go through a body: its free side tells.
        free = np.bincount(where, ~deep)
        behind = np.where(free, np.bincount(where, winding * ~deep) / free.clip(1), 1)
    body = (alone > CLOSED) | (np.bincount(patch, thin) > 0)
    wall, sheet = ~body & (buried > HIDDEN), ~body & (behind < CLOSED)
    if wall.all():  # sheets upon each other, in no body
        return body, sheet, wall
    if wall.any() and seen_stays:
        ask = np.flatnonzero(wall[where])
        rays = np.random.default_rng(1).standard_normal((len(ask), 32, 3))
        starts = points[ask, None] + OFF_SURFACE * rays / _length(rays)
        scene = ray_scene(vertices[faces])
        hit = scene.run(*(a.reshape(-1, 3).astype("f4") for a in (starts, rays)))
        wall &= np.bincount(where[ask], (hit < 0).reshape(-1, 32).any(1), count) == 0
    return body, wall, sheet & ~wall


def _split(vertices, faces, body):
    """Vertices and faces (F, 3) such that no two bodies share a vertex."""
    corners = np.stack([faces.ravel(), body.repeat(3)], axis=1)
    _, first, index = np.unique(_ids(corners), return_index=True, return_inverse=True)
    return vertices[faces.ravel()[first]], index.reshape(-1, 3)


def _boundary(faces, patch):
    """Directed edges (B, 2) without a partner in their patch, and their faces (B,)."""
    edges = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    sign = np.sign(edges[:, 1] - edges[:, 0])  # 0: a vertex twice in one face
    index = _ids(np.column_stack([np.sort(edges, axis=1), patch.repeat(3)]))
    lonely = np.flatnonzero(np.bincount(index, sign)[index] * sign > 0)
    lonely = lonely[np.unique(index[lonely], return_index=True)[1]]
    return edges[lonely], lonely // 3


def _thicken(vertices, faces, body, flat, thickness):
    """Give the flat faces a back and a rim: vertices, faces and whose each is."""
    normal = np.zeros_like(vertices)
    for k in range(3):
        np.add.at(normal, faces[flat, k], _cross(vertices, faces[flat]))
    normal *= thickness / 2 / np.maximum(_length(normal), 1e-300)
    size, sheets = len(vertices), np.flatnonzero(flat)
    edges, edge_face = _boundary(faces[flat], body[flat])
    a, b = edges.T
    rim = np.stack([b, a, a + size, b, a + size, b + size], axis=1).reshape(-1, 3)
    faces = np.concatenate([faces, faces[flat][:, ::-1] + size, rim])
    own = np.concatenate([np.arange(len(flat)), sheets, sheets[edge_face].repeat(2)])
    return np.vstack([vertices + normal, vertices - normal]), faces, own


def _rims(vertices, faces, body):
    """The holes: a face at each, its loop of vertices as a cap runs, whether bridged.

    Loops in one plane, as of a tube's end, are bridged to one.
    """
    edges, edge_face = _boundary(faces, body)
    into, out = (np.argsort(edges[:, k], kind="stable") for k in (1, 0))
    follower = np.empty(len(edges), dtype=int)
    follower[into] = out
    rims, seen = {}, np.zeros(len(edges), dtype=bool)
    for start in range(len(edges)):
        loop, edge = [], start
        while not seen[edge]:
            seen[edge] = True
            loop.append(edges[edge, 0])
            edge = follower[edge]
        if len(loop) > 2:
            loop = np.array(loop[::-1])  # a cap runs against its rim
            ring, face = vertices[loop], edge_face[start]
            normal = _area_vector(ring)
            normal /= max(np.linalg.norm(normal), 1e-300)
            is_flat = np.ptp(ring @ normal) < 1e-3
            normal *= np.sign(normal[np.abs(normal).argmax()])
            plane = (*np.round(normal, 2), round(float(ring[0] @ normal), 3))
            key = (body[face], *(plane if is_flat else (start,)))
            bridged = key in rims
            if bridged:
                loop = _bridged(vertices, rims[key][1], loop)
            rims[key] = face, loop, bridged
    return list(rims.values())


def _area_vector(ring):
    """The normal of a loop (K, 3), as long as its area."""
    ring = ring - ring.mean(axis=0)
    return np.cross(ring, np.roll(ring, -1, axis=0)).sum(axis=0) / 2


def _lid(ring):
    """A loop's unit normal, its area, and the narrow side of a rectangle as large."""
    vector = _area_vector(ring)
    size = np.linalg.norm(vector)
    half = _length(ring - np.roll(ring, -1, axis=0)).sum() / 2  # of its circumference
    width = (half - max(half**2 - 4 * size, 0) ** 0.5) / 2
    return vector / max(size, 1e-300), size, width


def _volumes(vertices, faces, body, rims):
    """Volume of each body, its holes closed, and the area of its faces."""
    volume = np.bincount(body, np.linalg.det(vertices[faces]) / 6)
    for face, loop, _ in rims:
        ring = vertices[loop]
        volume[body[face]] += _area_vector(ring) @ ring.mean(axis=0) / 3
    return volume, np.bincount(body, igl.doublearea(vertices, faces) / 2)


def _containers(vertices, faces, body, rims, caps):
    """Which bodies are to stay open: with "keep" all that have a hole.

    With "auto" a cup, a shade, a bookcase: what has a large and deep opening that
    nothing hides. Those of downward openings alone are furniture without underside.
    """
    stays = np.zeros(body.max() + 1, dtype=bool)
    if caps == "keep":
        stays[body[[face for face, *_ in rims]]] = True
        return stays
    volume, area = _volumes(vertices, faces, body, rims)
    scene = ray_scene(vertices[faces])
    rng = np.random.default_rng(0)
    for face, loop, bridged in rims:
        k, ring = body[face], vertices[loop]
        normal, size, width = _lid(ring)
        is_small = len(ring) == 3 or size < LID_SHARE * area[k]
        is_shallow = abs(volume[k]) < SHALLOW * width * size
        if stays[k] or bridged or is_small or is_shallow or normal[1] < -0.9:
            continue
        # From just below the lid: another body's face may lie on it.
        starts = ring.mean(axis=0) - 1e-3 * normal
        starts = starts + rng.random((256, 1)) * (rng.choice(ring, 256) - starts)
        rays = _unit(rng.standard_normal((256, 3))) + normal  # about cosine
        left = scene.run(starts.astype("f4"), rays.astype("f4")) < 0
        stays[k] = left.mean() > SEEN_LID
    return stays


def _cap(vertices, faces, body, rims, all_bodies):
    """Close holes by caps of least area: vertices, faces, whose each is, count."""
    caps = [loop[_least_area(vertices[loop])] for _, loop, _ in rims]
    of = np.repeat(np.arange(len(caps)), [len(cap) for cap in caps])
    new, wanted = np.concatenate(caps), np.ones(len(caps), dtype=bool)
    if not all_bodies:
        # Panels may be a hole's lid or hide it. What is open has 1/2 on both sides.
        normal = _cross(vertices, new)
        area = np.maximum(_length(normal), 1e-300)
        off = OFF_SURFACE * normal / area
        sides = (vertices[new].mean(axis=1) + np.stack([off, -off])).reshape(-1, 3)
        winding = _winding(vertices, faces, sides).reshape(2, -1)
        for k, cap in enumerate(caps):
            gap = (np.abs(winding[:, of == k] - 0.5) < 0.25).all(axis=0)
            wanted[k] = np.average(gap, weights=area[of == k, 0]) > 0.8
            if wanted[k]:
                added = _winding(vertices, cap, sides)
                winding += added.reshape(2, -1)
    own = np.array([rim[0] for rim in rims])[of][wanted[of]]
    own = np.concatenate([np.arange(len(faces)), own])
    return vertices, np.concatenate([faces, new[wanted[of]]]), own, int(wanted.sum())


def _bridged(vertices, first, second):
    """Two loops as one, by a bridge there and back between their nearest vertices."""
    gaps = vertices[first][:, None] - vertices[second]
    i, j = np.unravel_index(_length(gaps).argmin(), (len(first), len(second)))
    turned = np.roll(second, -j)
    return np.concatenate([first[: i + 1], turned, turned[:1], first[i:]])


def _least_area(ring):
    """Least triangles (K - 2, 3) on a ring (K, 3) (Barequet and Sharir 1995)."""
    count = len(ring)
    cost, apex = np.zeros((count, count)), np.zeros((count, count), dtype=int)
    for gap in range(2, count):  # the best filling of each chain i..j, by its apex k
        i = np.arange(count - gap)[:, None]
        k, j = i + np.arange(1, gap), i + gap
        area = _length(np.cross(ring[k] - ring[i], ring[j] - ring[i]))[..., 0]
        total = cost[i, k] + cost[k, j] + area
        cost[i, j], apex[i, j] = total.min(1)[:, None], i + 1 + total.argmin(1)[:, None]
    chains, triangles = [(0, count - 1)], []
    while chains:
        i, j = chains.pop()
        if j - i > 1:
            triangles.append((i, apex[i, j], j))
            chains += [(i, apex[i, j]), (apex[i, j], j)]
    return np.array(triangles)


def _unite(vertices, faces, body):
    """Unite the closed bodies and cut out cavities; what is open stays beside them.

    Returns: vertices, faces, the face that each is a piece of, how many bodies were
        closed and how many were not (all, where a union would change the inside).
    """
    solids, cavities, rest = [], [], []
    order = np.argsort(body, kind="stable")
    groups = np.split(order, np.bincount(body).cumsum()[:-1])
    groups = [some for some in groups if len(some)]
    own, is_open = np.arange(len(faces)), np.zeros(body.max() + 1, dtype=bool)
    is_open[body[_boundary(faces, body)[1]]] = True
    if len(groups) - is_open.sum() > MOST_BODIES:
        return vertices, faces, own, 0, len(groups)
    for some in groups:
        if is_open[body[some[0]]]:  # of some of these manifold3d dies
            rest.append(some)
            continue
        used, index = np.unique(faces[some], return_inverse=True)
        corners = index.reshape(-1, 3).astype(np.uint64)
        cavity = np.linalg.det(vertices[faces[some]]).sum() < 0
        corners = np.ascontiguousarray(corners[:, ::-1] if cavity else corners)
        mesh = manifold3d.Mesh64(vertices[used], corners, face_id=some.astype("u8"))
        solid = manifold3d.Manifold(mesh)
        if solid.status() == manifold3d.Error.NoError:
            (cavities if cavity else solids).extend(solid.decompose())
        else:
            rest.append(some)
    if not solids or len(solids) == len(groups) == 1:
        return vertices, faces, own, len(solids), len(groups) - len(solids)
    union = manifold3d.Manifold.batch_boolean(solids, manifold3d.OpType.Add)
    union = manifold3d.Manifold.batch_boolean(
        [union, *cavities], manifold3d.OpType.Subtract
    ).to_mesh64()
    new, left = np.asarray(union.vert_properties), np.concatenate([own[:0], *rest])
    merged = np.concatenate([np.asarray(union.tri_verts, int), faces[left] + len(new)])
    new = np.vstack([new, vertices])
    # Bodies that cross themselves may come out otherwise than by winding number.
    points, normals, _ = _probes(vertices, faces, np.zeros_like(own), 1000)
    points = np.concatenate([points + s * 1e-3 * normals for s in (1, -1)])
    was = _winding(vertices, faces, points) > 0.5
    now = _winding(new, merged, points) > 0.5
    if np.mean(was != now) > 5e-3:
        return vertices, faces, own, 0, len(groups)
    own = np.concatenate([np.asarray(union.face_id, int), left])
    return new, merged, own, len(solids) + len(cavities), len(rest)


def _is_solid(vertices, faces):
    """Whether pseudonormals and winding number agree on the inside, everywhere."""
    rng = np.random.default_rng(0)
    near, normals, _ = _probes(vertices, faces, np.zeros(len(faces), int))
    near += normals * rng.choice([-0.01, -OFF_SURFACE, OFF_SURFACE, 0.01], (PROBES, 1))
    points = np.vstack([near, rng.uniform(-HALF_BOX, HALF_BOX, (PROBES, 3))])
    kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
    sdf = igl.signed_distance(points, vertices, faces, kind)[0]
    winding = _winding(vertices, faces, points)
    return bool(((sdf < 0) == (winding > 0.5))[np.abs(sdf) > OFF_SURFACE / 2].all())


def _probes(vertices, faces, patch, total=PROBES):
    """Points spread by area on each patch, the normals there, and their patches."""
    count, rng = patch.max() + 1, np.random.default_rng(0)
    cross = _cross(vertices, faces)
    area = np.maximum(_length(cross)[:, 0], 1e-300)
    order = np.argsort(patch, kind="stable")
    below = area[order].cumsum()
    each = np.clip(100_000 // count, 4, max(16, total // count))
    where = np.repeat(np.arange(count), each)
    top = below[np.bincount(patch).cumsum() - 1][where]
    height = top - rng.random(len(where)) * np.bincount(patch, area)[where]
    face = order[np.searchsorted(below, height).clip(max=len(faces) - 1)]
    weights = rng.dirichlet(np.ones(3), len(face))[..., None]
    points = (weights * vertices[faces[face]]).sum(axis=1)
    return points, cross[face] / area[face, None], where


def _winding(vertices, faces, points):
    """The winding number at points (P, 3); libigl crashes where there is no face."""
    if not len(faces):
        return np.zeros(len(points))
    return igl.fast_winding_number(vertices, np.ascontiguousarray(faces), points)


def _cross(vertices, faces):
    a, b, c = np.moveaxis(vertices[faces], 1, 0)
    return np.cross(b - a, c - a)


def _unit(vectors):
    return vectors / np.maximum(_length(vectors), 1e-300)


def _length(vectors):
    return np.linalg.norm(vectors, axis=-1, keepdims=True)
