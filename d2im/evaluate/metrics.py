"""How far a predicted shape is from the true one.

`evaluate` takes all measures of a protocol (`protocols.PROTOCOLS`). Beside the whole
surface stands the part that the input
camera sees: `*_visible` is the same measure between the seen points of both surfaces.

Sampled measures have a floor: two samples of one surface of area A lie about
0.5 * sqrt(A / count) apart. `evaluate(truth, truth)` is that floor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from ..data.rendering import ray_scene
from ..sampling import HALF_BOX, is_solid, sample_surface
from .protocols import HIGHER_IS_BETTER, PROTOCOLS, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trimesh
    from embreex.rtcore_scene import EmbreeScene

    from ..camera import Camera

BOX_DIAGONAL = 2 * HALF_BOX * 3**0.5  # world units: no distance in the box is larger
SKIN = 0.1  # world units behind the seen surface that the visible IoU looks at
SEEN = 1e-3  # world units: seen points lie so near to where their ray hits


class Match(NamedTuple):
    """Nearest neighbours of N predicted and M true points: distances and indices."""

    accuracy: np.ndarray  # (N,)
    to_truth: np.ndarray  # (N,)
    completeness: np.ndarray  # (M,)
    to_prediction: np.ndarray  # (M,)


def match_points(
    prediction: np.ndarray, truth: np.ndarray, within: float = np.inf
) -> Match:
    """Match two point sets, (N, 3) and (M, 3), by nearest neighbours both ways.

    Beyond `within` the distance is infinite and not searched for: an F-score needs no
    more, and points far from the other set take the longest.

    Raises: ValueError: points of another shape, none, or not finite.
    """
    sets = {"prediction": prediction, "truth": truth}
    sets = {name: np.ascontiguousarray(p, dtype=float) for name, p in sets.items()}
    for name, points in sets.items():
        if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
            raise ValueError(f"{name} must be (N, 3) with N > 0, got {points.shape}")
        if not np.isfinite(points).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    a, b = sets.values()
    return Match(*_nearest(a, b, within), *_nearest(b, a, within))


def chamfer_distance(
    prediction: np.ndarray, truth: np.ndarray, norm: str = "l1"
) -> float:
    """Chamfer distance of point sets, in their unit or its square.

    With a the distances of predicted points to their nearest true ones and c the other
    way: (mean a + mean c) / 2, "l1", after Occupancy Networks, or mean a^2 + mean c^2,
    "l2", after BSP-Net.

    Args: prediction: (N, 3). truth: (M, 3). norm: "l1" or "l2".
    Raises: ValueError: an unknown norm, or as `match_points`.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f'norm must be "l1" or "l2", got {norm!r}')
    return _chamfer(match_points(prediction, truth), norm == "l2")


def _chamfer(match, squared):
    if squared:
        return float((match.accuracy**2).mean() + (match.completeness**2).mean())
    return float(match.accuracy.mean() + match.completeness.mean()) / 2


def f_score(match: Match, threshold: float) -> float:
    """Harmonic mean of precision and recall at a distance (Tatarchenko et al. 2019).

    A surface of area A scores only 1 - exp(-pi * threshold^2 * count / A) against
    itself, hence the large count of `PROTOCOLS`.
    """
    precision = (match.accuracy < threshold).mean()
    recall = (match.completeness < threshold).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def normal_consistency(
    match: Match, prediction_normals: np.ndarray, truth_normals: np.ndarray
) -> float:
    """Mean |cosine| between matched normals, (N, 3) and (M, 3), over both ways."""
    there = _cosine(prediction_normals, truth_normals[match.to_truth])
    back = _cosine(truth_normals, prediction_normals[match.to_prediction])
    return float(there.mean() + back.mean()) / 2


def earth_movers_distance(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance of the best one-to-one assignment of points, exactly.

    Args: prediction, truth: (N, 3) each.
    Raises: ValueError: sets of different size.
    """
    if np.shape(prediction) != np.shape(truth):
        shapes = f"{np.shape(prediction)} and {np.shape(truth)}"
        raise ValueError(f"an assignment needs sets of one size, got {shapes}")
    cost = cdist(prediction, truth)
    return float(cost[linear_sum_assignment(cost)].mean())


def edge_sharpness(
    points: np.ndarray, normals: np.ndarray, radius: float
) -> np.ndarray:
    """sigma(p) = min |n_p . n_q| over the neighbours q within a radius (BSP-Net).

    1 on a flat surface, 0 at a right angle, and 1 where there is no neighbour.

    Args: points: (N, 3). normals: (N, 3) unit. radius: in the points' unit.
    Returns: (N,) in [0, 1].
    """
    sigma, tree = np.ones(len(points)), cKDTree(points)
    # In blocks, because a tiny fragment makes every point a neighbour of every other.
    size = 1 + int(4e6 * len(points) / max(1, tree.count_neighbors(tree, radius)))
    for start in range(0, len(points), size):
        block = cKDTree(points[start : start + size])
        pairs = tree.sparse_distance_matrix(block, radius, output_type="ndarray")
        there, here = pairs["i"], pairs["j"] + start
        np.minimum.at(sigma, here, _cosine(normals[here], normals[there]))
    return sigma


def iou(prediction: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union of occupancies (P,) bool; NaN where both are empty."""
    union = (prediction | truth).sum()
    return float((prediction & truth).sum() / union) if union else float("nan")


def inside(
    mesh: trimesh.Trimesh, points: np.ndarray, scene: EmbreeScene | None = None
) -> np.ndarray:
    """Which points (P, 3) lie in a mesh: winding number above 1/2, (P,) bool.

    That of one closed body is counted along rays, as signed crossings, by two of three
    directions; any other's is the generalised one (Jacobson et al. 2013), so that open
    and overlapping bodies are scored too. `scene` is the mesh's `ray_scene`.
    """
    found = np.zeros(len(points), dtype=bool)
    near = ((points > mesh.bounds[0]) & (points < mesh.bounds[1])).all(1)
    points = points[near]
    if is_solid(mesh):
        scene = scene or ray_scene(mesh.triangles)
        axes = np.array([[0.79, 0.53, 0.31], [-0.37, 0.83, 0.42], [0.19, -0.44, 0.88]])
        votes = [_crossings(scene, mesh.face_normals, points, a) > 0 for a in axes]
        found[near] = np.sum(votes, axis=0) >= 2
    else:
        import igl  # absent on a machine that only trains

        faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
        vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
        found[near] = igl.fast_winding_number(vertices, faces, points) > 0.5
    return found


def behind(scene: EmbreeScene, camera: Camera, points: np.ndarray) -> np.ndarray:
    """How far points (P, 3) lie behind what the camera's rays toward them meet first.

    Along the ray, (P,) world units: about 0 on the seen surface, negative before it,
    -inf where the ray meets nothing or the point is outside the picture.
    """
    ray = points - camera.position
    origins = np.tile(camera.position, (len(points), 1)).astype(np.float32)
    at = scene.run(origins, ray.astype(np.float32), query="DISTANCE").astype(float)
    uv, depth = camera.project(points)
    met = (at < 1e6) & (np.abs(uv) <= 1).all(1) & (depth > 0)
    return np.where(met, (1 - at) * np.linalg.norm(ray, axis=1), -np.inf)


def prediction_failure(mesh: trimesh.Trimesh | None) -> str:
    """Why a predicted mesh cannot be measured, or "" where it can.

    What leaves the box is in another frame: a farthest vertex at 1 always does.
    """
    if mesh is None or len(mesh.faces) == 0:
        return "no mesh" if mesh is None else "a mesh without faces"
    if not np.isfinite(mesh.vertices).all():
        return "vertices that are not finite"
    reach = np.abs(mesh.bounds).max()
    if reach > HALF_BOX + 1e-6:
        return f"leaves the box of {HALF_BOX} by reaching {reach:.3g}: another frame?"
    return "" if mesh.area > 0 else "a mesh of no area"


def evaluate(
    prediction: trimesh.Trimesh | None,
    truth: trimesh.Trimesh,
    protocol: str = "d2im",
    *,
    camera: Camera | None = None,
    seed: int = 0,
    stream: int = 0,
    skip: Sequence[str] = (),
) -> tuple[dict[str, Result], str]:
    """Take all measures of a protocol, of the whole and of the visible surface.

    What cannot be measured (`prediction_failure`, no visible point where the truth has
    some) gets the worst value: for a distance the box's diagonal; NaN where the truth
    has nothing to compare, whatever the prediction. An ECD without edge
    points of the prediction is infinite: it has no place in a mean. The visible EMD
    takes half its protocol's points; the visible IoU the part of the box that lies up
    to 0.1 behind what the camera sees first of either shape.

    Args: prediction: trimesh.Trimesh, world, or None for a missing one.
        truth: trimesh.Trimesh, world. protocol: a name in `PROTOCOLS`.
        camera: Camera of the input picture; None leaves the visible side out.
        seed, stream: of the samples; each shape of a list wants a stream of its own.
        skip: measures to leave out.
    Returns: {measure: Result} and the reason of a failure, "" where there is none.
    Raises: ValueError: an unknown protocol, or a truth that cannot be measured.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {[*PROTOCOLS]}, got {protocol!r}")
    if why := prediction_failure(truth):
        raise ValueError(f"the truth cannot be measured: {why}")
    known = PROTOCOLS[protocol]
    rules = {n: replace(known[n], seed=seed) for n in known if n not in skip}
    frame = next(iter(known.values())).frame
    scale, failure = _frame_scale(truth, frame), prediction_failure(prediction)
    drawn = {n: replace(known[n], seed=seed) for n in known}  # skipped or not
    first = truth if failure else prediction
    pair = _Pair(first, truth, drawn.values(), scale, camera, stream)
    results = {}
    for side in ("", "_visible") if camera else ("",):
        for name, rule in rules.items():
            if name + side == "emd_visible":
                rule = replace(rule, points=rule.points // 2)
            far = BOX_DIAGONAL * scale
            worst = rule.factor * (2 * far**2 if rule.squared else far)
            worst = 0.0 if name.startswith(HIGHER_IS_BETTER) else worst
            kind, counts = name.partition("@")[0], ()
            if failure:
                value, there = worst, pair.count_of_truth(kind, rule, side)
            else:
                value, counts = pair.measure(kind, rule, side)
                there = counts[1]
            if not there:
                value = np.nan
            elif np.isinf(value) and not name.startswith("ecd"):
                value = worst
            results[name + side] = Result(float(value), rule, counts)
    return results, failure


class _Pair:
    """Samples of two surfaces, and what several measures of them share."""

    def __init__(self, prediction, truth, rules, scale, camera, stream):
        self.meshes, self.scale, self.camera = (prediction, truth), scale, camera
        self.stream = stream
        self.scenes = [ray_scene(mesh.triangles) for mesh in self.meshes]
        self.clouds, self.known = [], {}  # (points, normals, seen) of each
        drawn = [rule for rule in rules if rule.sampling != "volume"]
        count = max([rule.points for rule in drawn], default=1)
        for k, mesh in enumerate(self.meshes):
            rng = np.random.default_rng([*(r.seed for r in drawn[:1]), k, stream])
            points, normals = sample_surface(mesh, count, rng)
            if any(rule.sampling == "vertices" for rule in drawn):
                points = mesh.vertices[rng.integers(len(mesh.vertices), size=count)]
            seen = np.ones(count, dtype=bool)
            if camera:
                seen = np.abs(behind(self.scenes[k], camera, points)) < SEEN
            self.clouds.append((np.asarray(points) * scale, normals, seen))

    def measure(self, kind, rule, side):
        """The value, inf where only the prediction has nothing, and the counts."""
        if kind == "iou":
            return self.iou(rule, side)
        index = [self.part(k, kind, rule, side) for k in (0, 1)]
        drawn = zip(self.clouds, index, strict=True)
        points, normals = zip(*[(p[i], n[i]) for (p, n, _), i in drawn], strict=True)
        size = len(index[0]), len(index[1])
        if 0 in size:
            return (np.inf if size[1] else np.nan), size
        if kind == "emd":
            points = [p[: min(size)] for p in points]
            return earth_movers_distance(*points) * rule.factor, (min(size),) * 2
        within = rule.threshold if kind == "f_score" else np.inf
        key = side, rule.points, kind == "ecd", within
        if key not in self.known:
            self.known[key] = match_points(*points, within)
        match = self.known[key]
        if kind == "f_score":
            return f_score(match, rule.threshold), size
        if kind == "normal_consistency":
            return normal_consistency(match, *normals), size
        if kind in ("accuracy", "completeness"):
            return getattr(match, kind).mean() * rule.factor, size
        return _chamfer(match, rule.squared) * rule.factor, size

    def count_of_truth(self, kind, rule, side):
        """How many points of the truth a measure compares."""
        if kind == "iou":
            return self.iou(rule, side)[1][1]
        return len(self.part(1, kind, rule, side))

    def part(self, k, kind, rule, side):
        """Indices of the points of a surface that a measure compares."""
        points, normals, seen = self.clouds[k]
        if kind == "emd":
            return np.flatnonzero(seen | (not side))[: rule.points]
        index = np.arange(rule.points)
        if kind == "ecd":
            if k not in self.known:
                drawn = points[index], normals[index], rule.radius
                self.known[k] = edge_sharpness(*drawn) < rule.threshold
            index = np.flatnonzero(self.known[k])[: rule.limit]
        return index[seen[index]] if side else index

    def iou(self, rule, side):
        """Volumetric IoU on uniform points of the box, or of what the camera sees."""
        if "box" not in self.known:
            rng = np.random.default_rng([rule.seed, 2, self.stream])
            half = HALF_BOX * (2 if rule.frame == "unit sphere" else 1) / self.scale
            points = rng.uniform(-half, half, (rule.points, 3))
            points += 0 if rule.frame == "world" else self.meshes[1].bounds.mean(0)
            pairs = zip(self.meshes, self.scenes, strict=True)
            self.known["box"] = points, [inside(m, points, s) for m, s in pairs]
        points, held = self.known["box"]
        if side:
            depths = [behind(scene, self.camera, points) for scene in self.scenes]
            near = np.any([(0 <= d) & (d <= SKIN) for d in depths], axis=0)
            held = [h[near] for h in held]
        return iou(*held), tuple(int(h.sum()) for h in held)


def _frame_scale(truth, frame):
    """What lengths are multiplied by to be in a protocol's frame."""
    size, centre = truth.extents, truth.bounds.mean(0)
    radius = np.linalg.norm(truth.vertices - centre, axis=1).max()
    lengths = {"unit sphere": radius, "unit box": max(size), "world": 1.0}
    return 1 / (lengths | {"unit diagonal": np.linalg.norm(size)})[frame]


def _cosine(a, b):
    return np.abs(np.einsum("pc,pc->p", a, b))


def _nearest(points, others, within):
    """Distance and index, asked in the order of a tree: twice as fast."""
    order = cKDTree(points, leafsize=64, balanced_tree=False).indices
    tree = cKDTree(others, balanced_tree=False)
    distance, index = tree.query(points[order], distance_upper_bound=within)
    back = np.argsort(order)
    return distance[back], index[back]


def _crossings(scene, face_normals, points, direction):
    """Winding number of a closed mesh: crossings out of it less those into it."""
    winding, left = np.zeros(len(points)), np.arange(len(points))
    rays = np.tile(direction, (len(points), 1)).astype(np.float32)
    starts = points.astype(np.float32)
    for _ in range(100):  # layers; a ray that sticks to an edge is outvoted
        hits = scene.run(starts, rays[left], output=True)
        met = hits["primID"] >= 0
        if not met.any():
            break
        left = left[met]
        winding[left] += np.sign(face_normals[hits["primID"][met]] @ direction)
        starts = starts[met] + (hits["tfar"][met, None] + 1e-5) * rays[left]
    return winding
