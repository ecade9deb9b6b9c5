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

from . import losses
from .fields import sample_maps
from .sampling import HALF_BOX, sample_surface, signed_distance

ON_SURFACE = 0.005  # world units: the stored points that count as surface points
BOX_DIAGONAL = 2 * HALF_BOX * 3**0.5  # world units: no distance in the box is larger
SKIN = 0.1  # world units behind the seen surface that the visible IoU looks at
SEEN = 1e-3  # world units: seen points lie so near to where their ray hits
STEP = 0.01  # world units, of the Laplacian of a field: about a pixel at 112 px


@dataclass(frozen=True)
class Protocol:
    """How one measure is taken.

    Attributes:
        name: of the protocol that it belongs to.
        frame: unit of its lengths: "world", or the truth's farthest vertex ("unit
            sphere"), longest edge ("unit box") or bounding box's diagonal ("unit
            diagonal") is 1.
        points: drawn on each surface (IoU: in the box); sampling says by what.
        squared: whether distances are squared before their mean.
        factor: that the mean is multiplied by.
        threshold: of the F-score a distance, of ECD the sharpness of an edge point.
        radius: of ECD's neighbourhood. limit: ECD takes at most so many edge points.
        seed: of the points.
    """

    name: str
    frame: str = "world"
    points: int = 16_384
    sampling: str = "area"
    squared: bool = False
    factor: float = 1.0
    threshold: float | None = None
    radius: float | None = None
    limit: int | None = None
    seed: int = 0

    def __str__(self):
        power = "squared" if self.squared else "rooted"
        parts = [f"{self.points:,} points by {self.sampling}", power]
        parts += [f"x{self.factor:g}"]
        for name in ("radius", "threshold", "limit"):
            if getattr(self, name) is not None:
                parts.append(f"{name} {getattr(self, name):g}")
        return f"{self.name}: {self.frame}, {', '.join(parts)}, seed {self.seed}"


def _protocol(name, frame, measures, **common):
    rules = {m: common | changes for m, changes in measures.items()}
    return {m: Protocol(name, frame, **rule) for m, rule in rules.items()}


_CHAMFER = {"accuracy": {}, "completeness": {}, "chamfer_l1": {}}
_BOX = {"points": 100_000, "sampling": "volume"}
PROTOCOLS = {  # name -> measure -> Protocol
    "d2im": _protocol(
        "d2im",
        "world",
        {
            **_CHAMFER,
            "chamfer_l2": {"squared": True},
            "emd": {"points": 2048},
            "f_score": {"points": 100_000, "threshold": 0.01},
            "iou": _BOX,
            "normal_consistency": {},
            "ecd": {"squared": True, "radius": 0.02, "threshold": 0.8},
        },
    ),
    # printed in tenths of the longest edge
    "occnet": _protocol(
        "occnet",
        "unit box",
        {m: {"factor": 10.0} for m in _CHAMFER}
        | {"iou": _BOX, "normal_consistency": {}},
        points=100_000,
    ),
    # EMD is a sum of 2,048 distances times 0.01; F-scores at shares of 2.5
    "disn": _protocol(
        "disn",
        "unit sphere",
        {"chamfer_l2": {"squared": True, "factor": 1e3}, "emd": {"factor": 20.48}}
        | {
            f"f_score@{share:g}%": {"threshold": 2.5 * share / 100}
            for share in (0.5, 1, 2, 5, 10, 20)
        },
        points=2048,
        sampling="vertices",
    ),
    # finds next to no edge on a rounded (learned, marched) surface: see the counts
    "bspnet": _protocol(
        "bspnet",
        "unit diagonal",
        {"chamfer_l2": {}, "ecd": {"radius": 0.01, "threshold": 0.1, "limit": 4096}},
        squared=True,
    ),
}
HIGHER_IS_BETTER = ("f_score", "iou", "normal_consistency")


class Result(NamedTuple):
    """A number with what is needed to believe it.

    Attributes:
        value: float; NaN where the truth has nothing to compare with.
        protocol: Protocol.
        counts: points compared, of the prediction and of the truth; ECD's edge points.
    """

    value: float
    protocol: Protocol
    counts: tuple = ()

    def __str__(self):
        counts = " against ".join(f"{n:,}" for n in self.counts)
        return f"{self.value:.6g} ({self.protocol}{counts and '; of them ' + counts})"


class Match(NamedTuple):
    """Two point sets, each point matched with its nearest in the other.

    Attributes:
        accuracy (N,), to_truth (N,): of predicted points, distance and index.
        completeness (M,), to_prediction (M,): of true points.
    """

    accuracy: np.ndarray
    to_truth: np.ndarray
    completeness: np.ndarray
    to_prediction: np.ndarray


def match_points(prediction, truth):
    """Match two point sets, (N, 3) and (M, 3), by nearest neighbours both ways.

    Raises:
        ValueError: points of another shape, none, or not finite.
    """
    points = []
    for name, values in (("prediction", prediction), ("truth", truth)):
        values = np.ascontiguousarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != 3 or len(values) == 0:
            raise ValueError(f"{name} must be (N, 3) with N > 0, got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, got NaN or infinity")
        points.append(values)
    return Match(*_nearest(*points), *_nearest(*points[::-1]))


def chamfer_distance(prediction, truth, norm="l1"):
    """Chamfer distance of points: mean of both means ("l1"), sum of squared ("l2").

    (mean a + mean c) / 2 after Occupancy Networks, mean a^2 + mean c^2 after BSP-Net.

    Args:
        prediction (N, 3), truth (M, 3): points, or a Match as the first and None.
        norm: "l1" or "l2".

    Raises:
        ValueError: an unknown norm, or as `match_points`.
    """
    if norm not in ("l1", "l2"):
        raise ValueError(f'norm must be "l1" or "l2", got {norm!r}')
    known = isinstance(prediction, Match)
    match = prediction if known else match_points(prediction, truth)
    if norm == "l1":
        return float(match.accuracy.mean() + match.completeness.mean()) / 2
    return float((match.accuracy**2).mean() + (match.completeness**2).mean())


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

    Subtracting potentials of rows and columns does not change which assignment is the
    best. Those of a few Sinkhorn steps leave the solver little to do: five times
    faster on unlike shapes.

    Args:
        prediction, truth: (N, 3) each.

    Raises:
        ValueError: sets of different size.
    """
    if np.shape(prediction) != np.shape(truth):
        shapes = f"{np.shape(prediction)} and {np.shape(truth)}"
        raise ValueError(f"an assignment needs sets of one size, got {shapes}")
    cost = cdist(prediction, truth)
    rough = cost.astype(np.float32)
    rows, columns = np.zeros((2, len(cost)), np.float32)
    for width in np.float32([0.1, 0.03, 0.01, 0.004]) * max(rough.max(), 1e-9):
        kernel = np.exp((rows[:, None] + columns - rough) / width)
        v = np.ones_like(columns)
        for _ in range(20):
            u = 1 / np.maximum(kernel @ v, 1e-30)
            v = 1 / np.maximum(u @ kernel, 1e-30)
        rows, columns = rows + width * np.log(u), columns + width * np.log(v)
    best = linear_sum_assignment(cost - rows[:, None].astype(float) - columns)
    return float(cost[best].mean())


def edge_sharpness(points, normals, radius):
    """sigma(p) = min |n_p . n_q| over the neighbours q within a radius (BSP-Net).

    1 on a flat surface, 0 at a right angle, and 1 where there is no neighbour.

    Args:
        points: (N, 3). normals: (N, 3) unit. radius: in the points' unit.

    Returns:
        (N,) in [0, 1].
    """
    sigma, tree = np.ones(len(points)), cKDTree(points)
    if tree.count_neighbors(tree, radius) < 200 * len(points):
        there, here = tree.query_pairs(radius, output_type="ndarray").T
        cosine = _cosine(normals[here], normals[there])
        np.minimum.at(sigma, here, cosine)
        np.minimum.at(sigma, there, cosine)
        return sigma
    # In blocks, because a tiny fragment makes every point a neighbour of every other.
    for start in range(0, len(points), 512):
        block = cKDTree(points[start : start + 512])
        pairs = tree.sparse_distance_matrix(block, radius, output_type="ndarray")
        there, here = pairs["i"], pairs["j"] + start
        np.minimum.at(sigma, here, _cosine(normals[here], normals[there]))
    return sigma


def edge_chamfer_distance(prediction, truth):
    """ECD: mean d^2 + mean d^2 of edge points, (N, 3) and (M, 3).

    Without true edges there is nothing to compare with: NaN. Without predicted ones
    infinity, for which `evaluate` puts the worst value. Never 0: read the counts.
    """
    if len(truth) == 0:
        return float("nan")
    return chamfer_distance(prediction, truth, "l2") if len(prediction) else np.inf


def iou(prediction, truth):
    """Intersection over union of occupancies (P,) bool; NaN where both are empty."""
    union = (prediction | truth).sum()
    return float((prediction & truth).sum() / union) if union else float("nan")


def inside(mesh, points, scene=None):
    """Which points lie in a mesh: winding number above 1/2.

    That of a watertight mesh is counted exactly along rays, as the signed crossings of
    two out of three directions; any other's is the generalised one (Jacobson et al.
    2013), so that open meshes are scored too. Inside-out meshes hold nothing.

    Args:
        mesh: trimesh.Trimesh. points: (P, 3), its frame. scene: its `ray_scene`.

    Returns:
        (P,) bool.
    """
    found = np.zeros(len(points), dtype=bool)
    near = ((points > mesh.bounds[0]) & (points < mesh.bounds[1])).all(1)
    points = points[near]
    if mesh.is_watertight and mesh.is_winding_consistent:
        scene = scene or ray_scene(mesh)
        axes = np.array([[0.79, 0.53, 0.31], [-0.37, 0.83, 0.42], [0.19, -0.44, 0.88]])
        votes = [_crossings(scene, mesh.face_normals, points, a) > 0 for a in axes]
        found[near] = np.sum(votes, axis=0) >= 2
    else:
        import igl  # absent on a machine that only trains

        faces = np.ascontiguousarray(mesh.faces, dtype=np.int64)
        vertices = np.ascontiguousarray(mesh.vertices, dtype=np.float64)
        found[near] = igl.fast_winding_number(vertices, faces, points) > 0.5
    return found


def ray_scene(mesh):
    """A mesh made ready for `inside` and `behind`."""
    from embreex.mesh_construction import TriangleMesh  # absent where one only trains
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene()
    triangles = np.asarray(mesh.vertices)[mesh.faces].astype(np.float32)
    TriangleMesh(scene, triangles)  # the scene keeps a copy
    return scene


def behind(scene, camera, points):
    """Where the camera's ray toward each point first meets the surface.

    Args:
        scene: of `ray_scene`. camera: Camera. points: (P, 3) world.

    Returns:
        How far behind that place the point lies, (P,) in world units along the ray:
        about 0 on the seen surface, negative in front of it, -inf where the ray meets
        nothing or the point is outside the picture.
    """
    ray = points - camera.position
    origins = np.tile(camera.position, (len(points), 1)).astype(np.float32)
    at = scene.run(origins, ray.astype(np.float32), query="DISTANCE").astype(float)
    uv, depth = camera.project(points)
    met = (at < 1e6) & (np.abs(uv) <= 1).all(1) & (depth > 0)
    return np.where(met, (1 - at) * np.linalg.norm(ray, axis=1), -np.inf)


def prediction_failure(mesh):
    """Why a predicted mesh cannot be measured, or "" where it can.

    Outside the box it is in another frame: one whose farthest vertex is at 1 always is.
    """
    if mesh is None:
        return "no mesh"
    if len(mesh.faces) == 0:
        return "a mesh without faces"
    if not np.isfinite(mesh.vertices).all():
        return "vertices that are not finite"
    if np.abs(mesh.bounds).max() > HALF_BOX + 1e-6:
        reach = np.abs(mesh.bounds).max()
        return f"leaves the box of {HALF_BOX} by reaching {reach:.3g}: another frame?"
    return "" if mesh.area > 0 else "a mesh of no area"


def evaluate(prediction, truth, protocol="d2im", *, camera=None, seed=0, skip=()):
    """Take all measures of a protocol, of the whole and of the visible surface.

    What cannot be measured (`prediction_failure`, no edge or no visible point where
    the truth has some) gets the worst value: for a distance the box's diagonal. The
    visible EMD takes half its protocol's points; the visible IoU the part of the box
    that lies up to 0.1 behind what the camera sees first of either shape.

    Args:
        prediction: trimesh.Trimesh, world, or None for a missing one.
        truth: trimesh.Trimesh, world.
        protocol: a name in `PROTOCOLS`.
        camera: Camera of the input picture; None leaves the visible side out.
        seed: of the samples.
        skip: measures to leave out.

    Returns:
        {measure: Result} and the reason of a failure, "" where there is none.

    Raises:
        ValueError: an unknown protocol, or a truth that cannot be measured.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol must be one of {[*PROTOCOLS]}, got {protocol!r}")
    if why := prediction_failure(truth):
        raise ValueError(f"the truth cannot be measured: {why}")
    rules = {
        name: replace(rule, seed=seed)
        for name, rule in PROTOCOLS[protocol].items()
        if name not in skip
    }
    frame = next(iter(PROTOCOLS[protocol].values())).frame
    scale, failure = _frame_scale(truth, frame), prediction_failure(prediction)
    pair = None if failure else _Pair(prediction, truth, rules.values(), scale, camera)
    results = {}
    for side in ("", "_visible") if camera else ("",):
        for name, rule in rules.items():
            if name + side == "emd_visible":
                rule = replace(rule, points=rule.points // 2)
            worst, counts = _worst(name, rule, scale), ()
            if pair:
                value, counts = pair.measure(name.partition("@")[0], rule, side)
                worst = worst if np.isinf(value) else value
            results[name + side] = Result(float(worst), rule, counts)
    return results, failure


class _Pair:
    """Samples of two surfaces, and what several measures of them share."""

    def __init__(self, prediction, truth, rules, scale, camera):
        self.meshes, self.scale, self.camera = (prediction, truth), scale, camera
        self.scenes = [ray_scene(mesh) for mesh in self.meshes]
        self.clouds, self.known = [], {}
        drawn = [rule for rule in rules if rule.sampling != "volume"]
        count = max([rule.points for rule in drawn], default=1)
        for k, mesh in enumerate(self.meshes):
            rng = np.random.default_rng([*(r.seed for r in drawn[:1]), k])
            points, normals = sample_surface(mesh, count, rng)
            if any(rule.sampling == "vertices" for rule in drawn):
                chosen = rng.integers(len(mesh.vertices), size=count)
                points, normals = np.asarray(mesh.vertices)[chosen], None
            seen = np.ones(count, dtype=bool)
            if camera:
                seen = np.abs(behind(self.scenes[k], camera, points)) < SEEN
            self.clouds.append((points * scale, normals, seen))

    def measure(self, kind, rule, side):
        """The value, inf where only the prediction has nothing, and the counts."""
        if kind == "iou":
            return self.iou(rule, side)
        sets = [self.part(k, kind, rule, side) for k in (0, 1)]
        size = tuple(len(index) for index in sets)
        if 0 in size:
            return (np.nan if size[1] == 0 else np.inf), size
        points, normals = (
            [
                cloud[c] if cloud[c] is None else cloud[c][index]
                for cloud, index in zip(self.clouds, sets, strict=True)
            ]
            for c in (0, 1)
        )
        if kind == "emd":
            few = min(rule.points, *size)
            value = earth_movers_distance(*(p[:few] for p in points))
            return value * rule.factor, (few, few)
        key = side, rule.points, kind == "ecd"
        match = self.known.setdefault(key, None) or match_points(*points)
        self.known[key] = match
        if kind == "f_score":
            return f_score(match, rule.threshold), size
        if kind == "normal_consistency":
            return normal_consistency(match, *normals), size
        if kind in ("accuracy", "completeness"):
            value = getattr(match, kind).mean()
        else:
            value = chamfer_distance(match, None, "l2" if rule.squared else "l1")
        return value * rule.factor, size

    def part(self, k, kind, rule, side):
        """Indices of the points of a surface that a measure compares."""
        points, normals, seen = self.clouds[k]
        if kind == "emd":
            return np.flatnonzero(seen | (not side))[: rule.points]
        index = np.arange(rule.points)
        if kind == "ecd":
            sigma = self.known.get((k, rule))
            if sigma is None:
                drawn = points[index], normals[index]
                sigma = self.known[k, rule] = edge_sharpness(*drawn, rule.radius)
            index = np.flatnonzero(sigma < rule.threshold)[: rule.limit]
        return index[seen[index]] if side else index

    def iou(self, rule, side):
        """Volumetric IoU on uniform points of the box, or of what the camera sees."""
        if "box" not in self.known:
            rng = np.random.default_rng([rule.seed, 2])
            points = rng.uniform(-HALF_BOX, HALF_BOX, (rule.points, 3)) / self.scale
            points += 0 if rule.frame == "world" else self.meshes[1].bounds.mean(0)
            scenes = zip(self.meshes, self.scenes, strict=True)
            self.known["box"] = points, [inside(m, points, s) for m, s in scenes]
        points, held = self.known["box"]
        if side:
            depths = [behind(scene, self.camera, points) for scene in self.scenes]
            near = np.any([(0 <= d) & (d <= SKIN) for d in depths], axis=0)
            held = [h[near] for h in held]
        return iou(*held), tuple(int(h.sum()) for h in held)


def decomposition_scores(prediction, example, view):
    """How well f_B and F meet the visible front, and f_D the detail there.

    Args:
        prediction: Reconstruction or Prediction of that view.
        example: arrays of one shape, see `dataset`.
        view: index of the picture that the prediction was made from.

    Returns:
        dict: base_error and final_error, the mean |f_B - F| and |f - F| in world units
        over the example's points on the visible front surface (|F| < 0.005, facing the
        camera, at the depth that the camera sees); laplacian_correlation of the front
        map with its target, over all pixels that have one. NaN where there is none.

    Raises:
        ValueError: the maps and the example's views differ in size.
    """
    camera = prediction.camera
    sizes = prediction.displacement.shape[-1], example[f"depth_{view}"].shape[-1]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the model works at {sizes[0]} px but the views have {sizes[1]}: prepare "
            "the data at the model's size"
        )
    views = {
        "normals": torch.from_numpy(example[f"normals_{view}"])[None].float(),
        "depth": torch.from_numpy(example[f"depth_{view}"])[None].float(),
        "mask": torch.from_numpy(example[f"mask_{view}"])[None] > 0,
        "camera": torch.from_numpy(example[f"camera_{view}"])[None].float(),
    }
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
    d*(u) = -F_coarse(p). High-passed is what a Gaussian of 1/28 of the picture's side
    leaves: below it f_D also mends the base's errors. Where no displacement is
    predicted, a correlation is 0.

    Args:
        prediction: Prediction of one picture.
        detailed, coarse: the true shape and the same without relief, trimesh.Trimesh.
        other: Prediction from another picture of the same shape.

    Returns:
        dict of floats, in brackets their values for the truth and for a base that
        swallowed the detail: base_to_coarse (0, relief) and base_to_detailed (relief,
        0), mean |f_B - F_coarse| and |f_B - F|, world units; detail_in_base (0, 1),
        the share of d* that f_B follows; displacement_correlation (1, 0) and _energy
        (1, 0), the sum of squares over that of d*, raw and with _highpass;
        laplacian_energy (coarse_energy, 1), mean (Laplacian f_B)^2 over that of F at
        STEP, coarse_energy being F_coarse's. With `other`, at points that both see:
        transfer_consistency (1, 0), the correlation of both f_D, and transfer_error
        (0, 0), mean |f_B + f_D of the other - F|.
    """
    maps = prediction.displacement
    camera = prediction.camera.resized(maps.shape[-1])
    scene = ray_scene(detailed)
    origins, rays = (a.reshape(-1, 3) for a in camera.rays())
    origins = np.ascontiguousarray(origins)
    depth = scene.run(origins, np.ascontiguousarray(rays), query="DISTANCE")
    mask = depth < 1e6
    depth = torch.from_numpy(np.where(mask, depth, 0).reshape(1, *maps.shape[1:]))
    shown = torch.from_numpy(mask.reshape(depth.shape))
    valid = losses.stencil_mask(shown, depth)[0].numpy()
    points = (origins + depth.numpy().reshape(-1, 1) * rays)[mask].astype(float)
    truth = np.zeros(valid.shape)
    truth[shown[0].numpy()] = -signed_distance(coarse, points)[0]
    shown = shown[0].numpy()
    seen = points[valid[shown]]
    base, error = _values(prediction.base_sdf, points), np.zeros(valid.shape)
    error[shown] = base + truth[shown]
    base, flat, scores = base[valid[shown]], maps[0].numpy(), {}
    scores["base_to_coarse"] = np.abs(error[valid]).mean()
    scores["base_to_detailed"] = np.abs(base).mean()
    high = [_highpass(m, shown)[valid] for m in (flat, truth, error)]
    scores["detail_in_base"] = _ratio(high[2] @ high[1], high[1] @ high[1])
    for name, pair in {"": (flat[valid], truth[valid]), "_highpass": high[:2]}.items():
        found, wanted = pair
        scores["displacement_correlation" + name] = _correlation(found, wanted)
        scores["displacement_energy" + name] = _ratio(found @ found, wanted @ wanted)
    points = seen
    some = points[:: max(1, len(points) // 1000)]
    energies = [
        (_laplacian(field, some) ** 2).mean()
        for field in (
            lambda p: _values(prediction.base_sdf, p),
            lambda p: signed_distance(coarse, p)[0],
            lambda p: signed_distance(detailed, p)[0],
        )
    ]
    scores["laplacian_energy"] = _ratio(energies[0], energies[2])
    scores["coarse_energy"] = _ratio(energies[1], energies[2])
    if other is not None:
        both = np.abs(behind(scene, other.camera, points)) < SEEN
        uv = other.camera.project(torch.from_numpy(points[both]))[0]
        again = sample_maps(other.displacement[None, :1].double(), uv[None])[
            0, 0
        ].numpy()
        scores["transfer_consistency"] = _correlation(
            maps[0].numpy()[valid][both], again
        )
        scores["transfer_error"] = np.abs(base[both] + again).mean()
    return {name: float(value) for name, value in scores.items()}


def _values(field, points):
    with torch.no_grad():
        return field(torch.from_numpy(points).float()).double().numpy()


def _laplacian(field, points):
    steps = np.concatenate([np.eye(3), -np.eye(3), np.zeros((1, 3))]) * STEP
    values = field((points[:, None] + steps).reshape(-1, 3)).reshape(-1, 7)
    return (values[:, :6].sum(1) - 6 * values[:, 6]) / STEP**2


def _highpass(values, mask):
    """A map less its Gaussian mean over the mask."""
    blurred = [gaussian_filter(m, len(mask) / 28) for m in (values * mask, mask * 1.0)]
    return values - blurred[0] / np.maximum(blurred[1], 1e-9)


def _ratio(a, b):
    return a / b if b > 0 else np.nan


def _correlation(a, b):
    if len(a) < 2 or a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return np.corrcoef(a, b)[0, 1]


def _frame_scale(truth, frame):
    """What lengths are multiplied by to be in a protocol's frame."""
    size, centre = truth.extents, truth.bounds.mean(0)
    radius = np.linalg.norm(truth.vertices - centre, axis=1).max()
    lengths = {"unit sphere": radius, "unit box": max(size), "world": 1.0}
    return 1 / (lengths | {"unit diagonal": np.linalg.norm(size)})[frame]


def _worst(name, rule, scale):
    if name.startswith(HIGHER_IS_BETTER):
        return 0.0
    far = BOX_DIAGONAL * scale
    return rule.factor * (2 * far**2 if rule.squared else far)


def _cosine(a, b):
    return np.abs(np.einsum("pc,pc->p", a, b))


def _nearest(points, others):
    """Distance and index, asked in the order of a tree: twice as fast."""
    order = cKDTree(points, leafsize=64, balanced_tree=False).indices
    distance, index = cKDTree(others, balanced_tree=False).query(points[order])
    back = np.argsort(order)
    return distance[back], index[back]


def _crossings(scene, face_normals, points, direction):
    """Winding number of a closed mesh: crossings out of it less those into it."""
    winding, left = np.zeros(len(points), int), np.arange(len(points))
    rays = np.tile(direction, (len(points), 1)).astype(np.float32)
    starts = points.astype(np.float32)
    for _ in range(100):  # layers; a ray that sticks to an edge is outvoted
        hits = scene.run(starts, rays[left], output=True)
        met = hits["primID"] >= 0
        if not met.any():
            break
        left = left[met]
        winding[left] += np.sign(face_normals[hits["primID"][met]] @ direction).astype(
            int
        )
        starts = starts[met] + (hits["tfar"][met, None] + 1e-5) * rays[left]
    return winding
