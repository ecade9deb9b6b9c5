"""How far a predicted shape is from the true one, each number with its protocol.

The same name means different numbers in different papers: frame, count, square or not,
factor. `PROTOCOLS` writes them down, `evaluate` takes all measures of one, and each
`Result` prints with its own. Beside the whole surface stands the part that the input
camera sees: `*_visible` is the same measure between the seen points of both surfaces.

Sampled measures have a floor: two samples of one surface of area A lie about
0.5 * sqrt(A / count) apart. `evaluate(truth, truth)` is that floor.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from scipy.optimize import linear_sum_assignment
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from .. import losses
from ..data.rendering import ray_scene
from ..fields import sample_maps, values_at
from ..sampling import HALF_BOX, is_solid, sample_surface, signed_distance

ON_SURFACE = 0.005  # world units: the stored points that count as surface points
BOX_DIAGONAL = 2 * HALF_BOX * 3**0.5  # world units: no distance in the box is larger
SKIN = 0.1  # world units behind the seen surface that the visible IoU looks at
SEEN = 1e-3  # world units: seen points lie so near to where their ray hits
STEP = 0.01  # world units, of the Laplacian of a field: about a pixel at 112 px


@dataclass(frozen=True)
class Protocol:
    """How one measure is taken.

    Lengths are in world units, or in a frame where the truth's farthest vertex ("unit
    sphere"), longest edge ("unit box") or box diagonal ("unit diagonal") is 1.
    """

    name: str  # of the protocol that it belongs to
    frame: str = "world"  # unit of its lengths
    points: int = 16_384  # drawn on each surface (IoU: in the box)
    sampling: str = "area"  # by what they are drawn
    squared: bool = False  # distances, before their mean
    factor: float = 1.0  # of the mean
    threshold: float | None = None  # F-score's distance, sharpness of ECD's edge points
    radius: float | None = None  # of ECD's neighbourhood
    limit: int | None = None  # of ECD's edge points
    seed: int = 0  # of the points

    def __str__(self):
        power = "squared" if self.squared else "rooted"
        drawn = f"{self.points:,} points by {self.sampling}"
        parts = [self.frame, drawn, power, f"x{self.factor:g}"]
        for name in ("radius", "threshold", "limit"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {getattr(self, name):g}")
        return f"{self.name}: {', '.join(parts)}, seed {self.seed}"


def _rules(name, frame, measures, **common):
    return {m: Protocol(name, frame, **common | own) for m, own in measures.items()}


_L1, _L2 = ("accuracy", "completeness", "chamfer_l1"), {"squared": True}
_BOX = {"points": 100_000, "sampling": "volume"}
_OURS = dict.fromkeys(_L1, {}) | {
    "chamfer_l2": _L2,
    "emd": {"points": 2048},
    "f_score": {"points": 50_000, "threshold": 0.01},
    "iou": _BOX,
    "normal_consistency": {},
    "ecd": _L2 | {"radius": 0.02, "threshold": 0.8},
}
_OCCNET = dict.fromkeys(_L1, {"factor": 10.0})  # printed in tenths of the edge
_OCCNET |= {"iou": _BOX, "normal_consistency": {}}
# EMD is a sum of 2,048 distances times 0.01; F-scores at shares of 2.5.
_DISN = {"chamfer_l2": _L2 | {"factor": 1e3}, "emd": {"factor": 20.48}}
_DISN |= {f"f_score@{s}%": {"threshold": s / 40} for s in (0.5, 1, 2, 5, 10, 20)}
# Its ECD finds next to no edge on a rounded (learned, marched) surface: see the counts.
_BSPNET = {"chamfer_l2": {}, "ecd": {"radius": 0.01, "threshold": 0.1, "limit": 4096}}
PROTOCOLS = {  # name -> measure -> Protocol
    "d2im": _rules("d2im", "world", _OURS),
    "occnet": _rules("occnet", "unit box", _OCCNET, points=100_000),
    "disn": _rules("disn", "unit sphere", _DISN, points=2048, sampling="vertices"),
    "bspnet": _rules("bspnet", "unit diagonal", _BSPNET, squared=True),
}
HIGHER_IS_BETTER = ("f_score", "iou", "normal_consistency")


class Result(NamedTuple):
    """A number with what is needed to believe it."""

    value: float  # NaN where the truth has nothing to compare with
    protocol: Protocol
    counts: tuple = ()  # points compared (ECD: at edges), of the prediction, the truth

    def __str__(self):
        counts = " against ".join(f"{n:,}" for n in self.counts)
        return f"{self.value:.6g} ({self.protocol}{counts and '; of them ' + counts})"


class Match(NamedTuple):
    """Nearest neighbours of N predicted and M true points: distances and indices."""

    accuracy: np.ndarray  # (N,)
    to_truth: np.ndarray  # (N,)
    completeness: np.ndarray  # (M,)
    to_prediction: np.ndarray  # (M,)


def match_points(prediction, truth, within=np.inf):
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


def chamfer_distance(prediction, truth, norm="l1"):
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


def f_score(match, threshold):
    """Harmonic mean of precision and recall at a distance (Tatarchenko et al. 2019).

    A surface of area A scores only 1 - exp(-pi * threshold^2 * count / A) against
    itself, hence the large count of `PROTOCOLS`.
    """
    precision = (match.accuracy < threshold).mean()
    recall = (match.completeness < threshold).mean()
    return float(2 * precision * recall / max(precision + recall, 1e-12))


def normal_consistency(match, prediction_normals, truth_normals):
    """Mean |cosine| between matched normals, (N, 3) and (M, 3), over both ways."""
    there = _cosine(prediction_normals, truth_normals[match.to_truth])
    back = _cosine(truth_normals, prediction_normals[match.to_prediction])
    return float(there.mean() + back.mean()) / 2


def earth_movers_distance(prediction, truth):
    """Mean distance of the best one-to-one assignment of points, exactly.

    Potentials of the columns do not change which assignment is best; those of a few
    Sinkhorn steps, first on a quarter of the points, leave the solver a fifth to do.

    Args: prediction, truth: (N, 3) each.
    Raises: ValueError: sets of different size.
    """
    if np.shape(prediction) != np.shape(truth):
        shapes = f"{np.shape(prediction)} and {np.shape(truth)}"
        raise ValueError(f"an assignment needs sets of one size, got {shapes}")
    cost = cdist(prediction, truth)
    rough = cost.astype(np.float32)
    rows, columns = np.zeros((2, len(rough[::4])), np.float32)
    for step, share in ((4, 0.1), (4, 0.03), (4, 0.01), (1, 0.004), (1, 0.002)):
        some, width = rough[::step, ::step].copy(), share * max(rough.max(), 1e-9)
        if len(columns) < len(some):  # from a quarter to all: what its rows leave
            columns = (rough[::4] - rows[:, None]).min(0)
        rows, v = (some - columns).min(1), np.ones(len(some), np.float32)
        kernel = np.exp((rows[:, None] + columns - some) / width)
        for _ in range(20):
            u = 1 / np.maximum(kernel @ v, 1e-30)
            v = 1 / np.maximum(u @ kernel, 1e-30)
        rows, columns = rows + width * np.log(u), columns + width * np.log(v)
    best = linear_sum_assignment(cost - columns)
    return float(cost[best].mean())


def edge_sharpness(points, normals, radius):
    """sigma(p) = min |n_p . n_q| over the neighbours q within a radius (BSP-Net).

    1 on a flat surface, 0 at a right angle, and 1 where there is no neighbour.

    Args: points: (N, 3). normals: (N, 3) unit. radius: in the points' unit.
    Returns: (N,) in [0, 1].
    """
    sigma, tree = np.ones(len(points)), cKDTree(points)
    # In blocks, because a tiny fragment makes every point a neighbour of every other.
    size = 1 + int(4e6 * len(points) / tree.count_neighbors(tree, radius))
    for start in range(0, len(points), size):
        block = cKDTree(points[start : start + size])
        pairs = tree.sparse_distance_matrix(block, radius, output_type="ndarray")
        there, here = pairs["i"], pairs["j"] + start
        np.minimum.at(sigma, here, _cosine(normals[here], normals[there]))
    return sigma


def iou(prediction, truth):
    """Intersection over union of occupancies (P,) bool; NaN where both are empty."""
    union = (prediction | truth).sum()
    return float((prediction & truth).sum() / union) if union else float("nan")


def inside(mesh, points, scene=None):
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


def behind(scene, camera, points):
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


def prediction_failure(mesh):
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


def evaluate(prediction, truth, protocol="d2im", *, camera=None, seed=0, skip=()):
    """Take all measures of a protocol, of the whole and of the visible surface.

    What cannot be measured (`prediction_failure`, no edge or no visible point where
    the truth has some) gets the worst value: for a distance the box's diagonal. The
    visible EMD takes half its protocol's points; the visible IoU the part of the box
    that lies up to 0.1 behind what the camera sees first of either shape.

    Args: prediction: trimesh.Trimesh, world, or None for a missing one.
        truth: trimesh.Trimesh, world. protocol: a name in `PROTOCOLS`.
        camera: Camera of the input picture; None leaves the visible side out.
        seed: of the samples. skip: measures to leave out.
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
    pair = None if failure else _Pair(prediction, truth, rules.values(), scale, camera)
    results = {}
    for side in ("", "_visible") if camera else ("",):
        for name, rule in rules.items():
            if name + side == "emd_visible":
                rule = replace(rule, points=rule.points // 2)
            far = BOX_DIAGONAL * scale
            worst = rule.factor * (2 * far**2 if rule.squared else far)
            worst, counts = 0.0 if name.startswith(HIGHER_IS_BETTER) else worst, ()
            if pair:
                value, counts = pair.measure(name.partition("@")[0], rule, side)
                worst = worst if np.isinf(value) else value
            results[name + side] = Result(float(worst), rule, counts)
    return results, failure


class _Pair:
    """Samples of two surfaces, and what several measures of them share."""

    def __init__(self, prediction, truth, rules, scale, camera):
        self.meshes, self.scale, self.camera = (prediction, truth), scale, camera
        self.scenes = [ray_scene(mesh.triangles) for mesh in self.meshes]
        self.clouds, self.known = [], {}  # (points, normals, seen) of each
        drawn = [rule for rule in rules if rule.sampling != "volume"]
        count = max([rule.points for rule in drawn], default=1)
        for k, mesh in enumerate(self.meshes):
            rng = np.random.default_rng([*(r.seed for r in drawn[:1]), k])
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
            rng = np.random.default_rng([rule.seed, 2])
            points = rng.uniform(-HALF_BOX, HALF_BOX, (rule.points, 3)) / self.scale
            points += 0 if rule.frame == "world" else self.meshes[1].bounds.mean(0)
            pairs = zip(self.meshes, self.scenes, strict=True)
            self.known["box"] = points, [inside(m, points, s) for m, s in pairs]
        points, held = self.known["box"]
        if side:
            depths = [behind(scene, self.camera, points) for scene in self.scenes]
            near = np.any([(0 <= d) & (d <= SKIN) for d in depths], axis=0)
            held = [h[near] for h in held]
        return iou(*held), tuple(int(h.sum()) for h in held)


def decomposition_scores(prediction, example, view):
    """How well f_B and F meet the visible front, and f_D the detail there.

    Args: prediction: Prediction of that view.
        example: arrays of one shape, see `dataset`.
        view: index of the picture that the prediction was made from.
    Returns: dict: base_error and final_error, the mean |f_B - F| and |f - F| in world
        units over the example's points on the visible front surface (|F| < 0.005,
        facing the camera, at the depth that the camera sees); laplacian_correlation of
        the front map with its target, over all pixels that have one; NaN for none.
    Raises: ValueError: the maps and the example's views differ in size.
    """
    camera, size = prediction.camera, example[f"depth_{view}"].shape[-1]
    if (own := prediction.displacement.shape[-1]) != size:
        sizes = f"the model works at {own} px but the views have {size}"
        raise ValueError(f"{sizes}: prepare the data at the model's size")
    names = "normals", "depth", "mask", "camera"
    views = {n: torch.from_numpy(example[f"{n}_{view}"])[None].float() for n in names}
    views["mask"] = views["mask"] > 0
    predicted, target, valid = losses.laplacian_maps(prediction.displacement[:1], views)
    pairs = torch.stack([predicted[valid], target[valid]])

    near = np.abs(example["sdf"]) < ON_SURFACE
    points = torch.from_numpy(example["points"][near])
    sdf = torch.from_numpy(example["sdf"][near])
    uv, depth = camera.project(points)
    front = torch.from_numpy(example["gradients"][near] @ camera.rotation[2] < 0)
    batched = (x[None] for x in (uv, depth, front, sdf))
    visible = losses.visible_near(*batched, views["mask"], views["depth"])[0]
    points, sdf = points[visible], sdf[visible]
    with torch.no_grad():
        base, final = prediction.base_sdf(points), prediction.sdf(points)
    return {
        "base_error": (base - sdf).abs().mean().item(),
        "final_error": (final - sdf).abs().mean().item(),
        "laplacian_correlation": torch.corrcoef(pairs)[0, 1].item(),
    }


def disentanglement(prediction, detailed, coarse, other=None):
    """How f_B and f_D share the known truth, on the visible front.

    At the visible point p of pixel u the detailed F is 0 and the true displacement
    d*(u) = -F_coarse(p). High-passed is a map less its Gaussian mean of 1/28 of the
    side: below that f_D mends the base's errors too. Without f_D correlations are 0.

    Args: prediction: Prediction of one picture.
        detailed, coarse: the true shape and the same without relief, trimesh.Trimesh.
        other: Prediction from another picture of the same shape.
    Returns: dict of floats; in brackets what the truth has, and a base that swallowed
        the detail: base_to_coarse (0, relief) and base_to_detailed (relief, 0), mean
        |f_B - F_coarse| and |f_B - F|, world units; detail_in_base (0, 1), the slope of
        f_B - F_coarse over d*, high-passed; displacement_correlation (1, 0) and
        displacement_energy (1, 0), the sum of squares over that of d*, raw and
        _highpass; laplacian_energy (coarse_energy, 1), mean (Laplacian f_B)^2 over that
        of F, by steps of 0.01, coarse_energy being F_coarse's. With `other`, at points
        that both see: transfer_consistency (1, 0), the correlation of both f_D, and
        transfer_error (0, 0), mean |f_B + f_D of the other - F|.
    """
    front = prediction.displacement[0].numpy()
    camera = prediction.camera.resized(len(front))
    scene = ray_scene(detailed.triangles)
    origins, rays = (np.array(a.reshape(-1, 3)) for a in camera.rays())
    depth = scene.run(origins, rays, query="DISTANCE").reshape(front.shape)
    mask = depth < 1e6
    seen = torch.from_numpy(np.stack([mask, np.where(mask, depth, 0)]))[:, None]
    valid = losses.stencil_mask(seen[0] > 0, seen[1])[0].numpy()
    points = (origins + depth.reshape(-1, 1) * rays)[mask.ravel()].astype(float)
    truth, error = np.zeros((2, *mask.shape))
    truth[mask] = -signed_distance(coarse, points)[0]
    error[mask] = values_at(prediction.base_sdf, points) + truth[mask]
    base, points = (error - truth)[valid], points[valid[mask]]
    high, wanted, swallowed = (_highpass(m, mask)[valid] for m in (front, truth, error))
    scores = {
        "base_to_coarse": np.abs(error[valid]).mean(),
        "base_to_detailed": np.abs(base).mean(),
        "detail_in_base": _ratio(swallowed @ wanted, wanted @ wanted),
    }
    for name, a, b in (("", front[valid], truth[valid]), ("_highpass", high, wanted)):
        scores["displacement_correlation" + name] = _correlation(a, b)
        scores["displacement_energy" + name] = _ratio(a @ a, b @ b)
    some = points[:: max(1, len(points) // 1000)]
    of_base, of_coarse, of_truth = (
        (_laplacian(field, some) ** 2).mean()
        for field in (
            lambda p: values_at(prediction.base_sdf, p).astype(float),
            lambda p: signed_distance(coarse, p)[0],
            lambda p: signed_distance(detailed, p)[0],
        )
    )
    scores["laplacian_energy"] = _ratio(of_base, of_truth)
    scores["coarse_energy"] = _ratio(of_coarse, of_truth)
    if other is not None:
        both = np.abs(behind(scene, other.camera, points)) < SEEN
        uv, _ = other.camera.project(torch.from_numpy(points[both]).float())
        again = sample_maps(other.displacement[None, :1], uv[None])[0, 0].numpy()
        scores["transfer_consistency"] = _correlation(front[valid][both], again)
        scores["transfer_error"] = np.abs(base[both] + again).mean()
    return {name: float(value) for name, value in scores.items()}


def _laplacian(field, points):
    steps = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))]) * STEP
    values = field((points[:, None] + steps).reshape(-1, 3)).reshape(-1, 7)
    return (values[:, :6].sum(1) - 6 * values[:, 6]) / STEP**2


def _highpass(values, mask):
    blurred = [gaussian_filter(m, len(mask) / 28) for m in (values * mask, mask * 1.0)]
    return values - blurred[0] / np.maximum(blurred[1], 1e-9)


def _ratio(a, b):
    return a / b if b > 0 else np.nan


def _correlation(a, b):
    constant = len(a) < 2 or a.std() < 1e-9 or b.std() < 1e-9
    return 0.0 if constant else np.corrcoef(a, b)[0, 1]


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
