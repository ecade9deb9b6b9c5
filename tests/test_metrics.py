"""Each measure against analytic truth, a second implementation, its symmetries."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from d2im.camera import Camera
from d2im.data.dataset import make_example
from d2im.data.rendering import Renderer, ray_scene
from d2im.data.shapes import make_shape
from d2im.evaluate import decomposition, metrics
from d2im.fields import box, sphere
from d2im.sampling import sample_surface, signed_distance
from d2im.surface.extract import extract_mesh
from d2im.use.reconstruction import Prediction

CUBE = trimesh.creation.box((0.5, 0.5, 0.5))
FRONT = Camera(0, 0, 1, 64)


def square(height, side=0.5):
    corners = np.array([[0, 0, 0], [side, 0, 0], [side, side, 0], [0, side, 0]])
    return trimesh.Trimesh(corners + [0, 0, height], [[0, 1, 2], [0, 2, 3]])


def ball(radius):
    return trimesh.creation.icosphere(5, radius)


def cloud(rng, count=150):
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return rng.uniform(-0.1, 0.1, (count, 3)), normals


def values(prediction, truth, protocol="d2im", skip=("emd",), **options):
    results, failure = metrics.evaluate(
        prediction, truth, protocol, skip=skip, **options
    )
    assert failure == ""
    return {name: result.value for name, result in results.items()}


# On the same points, against naive formulas, scipy and trimesh


LOW, HIGH = np.array([[-0.2, -0.25, -0.3], [0.25, 0.2, 0.25]])  # a box near the cube
LENGTHS = {"d2im": 1, "occnet": 0.5, "disn": 0.75**0.5 / 2, "bspnet": 0.75**0.5}


def naive_edges(points, normals, rule):
    """Points with a neighbour whose normal differs, by a loop over all."""
    least = [
        np.abs(normals[np.linalg.norm(points - p, axis=1) <= rule.radius] @ n).min()
        for p, n in zip(points, normals, strict=True)
    ]
    return np.flatnonzero(np.array(least) < rule.threshold)[: rule.limit]


def naive_value(kind, rule, a, b, normals_a, normals_b):
    """A measure of two clouds as its paper writes it, by all pairs."""
    if kind == "emd":
        cost = cdist(a, b)
        return rule.factor * cost[linear_sum_assignment(cost)].mean()
    pairs = cdist(a, b)
    there, back = pairs.min(1), pairs.min(0)
    if kind == "f_score":
        p, r = (there < rule.threshold).mean(), (back < rule.threshold).mean()
        return 2 * p * r / (p + r) if p + r else 0
    if kind == "normal_consistency":
        cosine = np.abs(normals_a @ normals_b.T)
        one = [cosine[i, j] for i, j in enumerate(pairs.argmin(1))]
        other = [cosine[i, j] for j, i in enumerate(pairs.argmin(0))]
        return (np.mean(one) + np.mean(other)) / 2
    if rule.squared:
        return rule.factor * ((there**2).mean() + (back**2).mean())
    sides = {"accuracy": there.mean(), "completeness": back.mean()}
    sides["chamfer_l1"] = (there.mean() + back.mean()) / 2
    return rule.factor * sides[kind]


def behind_box(low, high, camera, points):
    """Distance along the ray from where it enters a box, by its slabs."""
    ray = points - camera.position
    slabs = np.sort([(side - camera.position) / ray for side in (low, high)], axis=0)
    enter, leave = slabs[0].max(1), slabs[1].min(1)
    met = (enter <= leave) & (np.abs(camera.project(points)[0]) <= 1).all(1)
    return np.where(met, (1 - enter) * np.linalg.norm(ray, axis=1), -np.inf)


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_every_measure_is_its_formula_on_the_same_points(protocol, monkeypatch):
    pairs = []

    class Pair(metrics._Pair):  # the points that `evaluate` has drawn
        def __init__(self, *arguments):
            super().__init__(*arguments)
            pairs.append(self)

    few = {"emd": 400, "iou": 20_000}
    rules = metrics.PROTOCOLS[protocol].items()
    rules = {n: replace(rule, points=few.get(n, 3000)) for n, rule in rules}
    monkeypatch.setitem(metrics.PROTOCOLS, protocol, rules)
    monkeypatch.setattr(metrics, "_Pair", Pair)
    meshes = trimesh.creation.box(bounds=[LOW, HIGH]).subdivide().subdivide(), CUBE
    camera, boxes = Camera(30, 20, 0.7, 64), [(LOW, HIGH), (-0.25, 0.25)]
    results, _ = metrics.evaluate(*meshes, protocol, camera=camera, seed=7)
    scale = 1 / LENGTHS[protocol]
    clouds = pairs[0].clouds
    for (points, *_), (low, high) in zip(clouds, boxes, strict=True):
        off = np.minimum(np.abs(points / scale - low), np.abs(points / scale - high))
        assert off.min(1).max() < 1e-9 and len(points) == 3000
    for name, found in results.items():
        kind, seen_only = name.removesuffix("_visible"), name.endswith("_visible")
        rule = rules[kind]
        if kind == "iou":
            points = pairs[0].known["box"][0]
            held = [((points > low) & (points < high)).all(1) for low, high in boxes]
            if seen_only:
                depth = [behind_box(*box, camera, points) for box in boxes]
                near = np.any([(d >= 0) & (d <= 0.1) for d in depth], axis=0)
                held = [h[near] for h in held]
            expected = (held[0] & held[1]).sum() / (held[0] | held[1]).sum()
        else:
            kept = []
            for (points, normals, seen), box in zip(clouds, boxes, strict=True):
                index = np.arange(len(points))
                if kind == "ecd":
                    index = naive_edges(points, normals, rule)
                    assert len(index) > 20
                if seen_only:
                    if rule.sampling == "area":  # vertices lie on the silhouette
                        seen = np.abs(behind_box(*box, camera, points / scale)) < 1e-3
                    index = index[seen[index]]
                    assert len(index) > 10
                kept.append((points[index], normals[index]))
            (a, normals_a), (b, normals_b) = kept
            if kind == "emd":
                count = min(len(a), len(b), rule.points // (2 if seen_only else 1))
                a, b = a[:count], b[:count]
            kind = kind.partition("@")[0]
            expected = naive_value(kind, rule, a, b, normals_a, normals_b)
        assert found.value == pytest.approx(expected, rel=1e-6, abs=1e-9), name


def test_earth_movers_distance_is_the_plain_solvers_optimum(rng):
    p, q = cloud(rng)[0], cloud(rng)[0]
    for a, b in ((p, q), (1 + 9 * p, q), (p[:1], q[:1]), (p[:9], q[:9]), (p * 0, q)):
        cost = cdist(a, b)
        expected = cost[linear_sum_assignment(cost)].mean()
        found = metrics.earth_movers_distance(a, b)
        assert found == pytest.approx(expected, abs=1e-12)


def test_earth_movers_distance_finds_a_known_permutation(rng):
    grid = np.stack(np.meshgrid(*[np.arange(6.0)] * 3), -1).reshape(-1, 3)
    moved = rng.permutation(grid) + [0.1, 0, 0]
    assert metrics.earth_movers_distance(moved, grid) == pytest.approx(0.1, abs=1e-12)
    assert metrics.earth_movers_distance(rng.permutation(grid), grid) == 0


def test_inside_agrees_with_trimeshs_rays_and_with_a_union(rng):
    overlapping = trimesh.util.concatenate(
        [CUBE.copy().apply_translation([s, 0, 0]) for s in (-0.1, 0.1)]
    )
    points = rng.uniform(-0.55, 0.55, (20_000, 3))
    chair = make_shape("chair", 3).detailed
    expected = chair.contains(points)
    assert (metrics.inside(chair, points) == expected).all() and expected.sum() > 500
    union = (np.abs(points) < [0.35, 0.25, 0.25]).all(1)
    assert (metrics.inside(overlapping, points) == union).all()


def test_sharpness_matches_a_naive_loop_for_few_and_for_many_neighbours(rng):
    points, normals = cloud(rng, 600)
    apart, cosine = cdist(points, points), np.abs(normals @ normals.T)
    for radius in (0.03, 1.0):  # the second has every point as a neighbour
        expected = np.where(apart <= radius, cosine, 1).min(1)
        sigma = metrics.edge_sharpness(points, normals, radius)
        assert np.allclose(sigma, np.minimum(expected, 1), atol=1e-12)
        assert (sigma < 0.5).any()


# Analytic cases


def test_chamfer_of_parallel_planes_is_their_distance(rng):
    a, b = (sample_surface(square(h), 16_384, rng)[0] for h in (0, 0.05))
    assert metrics.chamfer_distance(a, b) == pytest.approx(0.05, rel=5e-3)
    assert metrics.chamfer_distance(a, b, "l2") == pytest.approx(2 * 0.05**2, rel=1e-2)


def test_f_score_of_planes_turns_at_their_distance(rng):
    points = [sample_surface(square(h), 20_000, rng)[0] for h in (0, 0.02)]
    match = metrics.match_points(*points)
    assert metrics.f_score(match, 0.019) == 0
    assert metrics.f_score(match, 0.022) > 0.999


def test_f_score_is_the_harmonic_mean_of_precision_and_recall():
    half, whole = np.zeros((1, 3)), np.array([[0, 0, 0], [1, 0, 0]])
    assert metrics.f_score(metrics.match_points(half, whole), 0.01) == 2 / 3


def test_concentric_spheres_give_gap_and_ratio_of_volumes():
    found = values(ball(0.4), ball(0.35))
    for name in ("accuracy", "completeness", "chamfer_l1"):
        assert found[name] == pytest.approx(0.05, rel=1e-2)
    assert found["chamfer_l2"] == pytest.approx(2 * 0.05**2, rel=0.02)
    assert found["iou"] == pytest.approx((0.35 / 0.4) ** 3, abs=0.01)
    assert found["f_score"] == 0 and found["normal_consistency"] > 0.99
    assert np.isnan(found["ecd"])  # a ball has no edge


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25, 0.6])
def test_iou_of_shifted_boxes_is_analytic(shift):
    left = CUBE.copy().apply_translation([-shift / 2, 0, 0])
    right = CUBE.copy().apply_translation([shift / 2, 0, 0])
    expected = max(0.5 - shift, 0) / (0.5 + min(shift, 0.5))
    assert values(left, right)["iou"] == pytest.approx(expected, abs=0.01)


def test_the_noise_floor_is_that_of_two_samples():
    floor = values(CUBE, CUBE)
    apart = 0.5 * np.sqrt(CUBE.area / 16_384)
    assert floor["chamfer_l1"] == pytest.approx(apart, rel=0.05)
    assert floor["chamfer_l2"] == pytest.approx(
        2 * CUBE.area / (np.pi * 16_384), rel=0.05
    )
    missed = np.exp(-np.pi * 0.01**2 * 50_000 / CUBE.area)
    assert floor["f_score"] == pytest.approx(1 - missed, abs=1e-3)


def test_edge_points_of_a_cube_lie_at_its_edges_and_nowhere_else(rng):
    points, normals = sample_surface(CUBE, 16_384, rng)
    # The distance to the nearest edge: two coordinates are near the half side.
    to_edge = 0.25 - np.sort(np.abs(points), axis=1)[:, 1]
    sigma = metrics.edge_sharpness(points, normals, 0.02)
    assert (to_edge[sigma < 0.8] <= 0.02).all()
    assert (sigma[to_edge > 0.02] > 1 - 1e-9).all()
    assert (sigma[to_edge < 0.005] < 1e-9).mean() > 0.99


def test_a_rounded_cube_has_edges_for_d2im_and_none_for_bspnet():
    inner = box((0.24, 0.24, 0.24))
    rounded = extract_mesh(lambda p: inner(p) - 0.01, 128)
    wide = metrics.evaluate(rounded, CUBE, skip=("emd",))[0]["ecd"]
    narrow = metrics.evaluate(rounded, CUBE, "bspnet")[0]["ecd"]
    assert wide.counts[0] == pytest.approx(wide.counts[1], rel=0.1)
    assert wide.value < 0.01**2 * 2
    assert narrow.counts[0] == 0 and narrow.counts[1] > 500
    assert np.isinf(narrow.value)  # it has no place in a mean


def test_bspnet_keeps_at_most_4096_edge_points():
    comb = trimesh.util.concatenate(
        [
            trimesh.creation.box((0.01, 0.01, 0.01)).apply_translation([x, y, 0])
            for x in np.linspace(-0.4, 0.4, 6)
            for y in np.linspace(-0.2, 0.2, 6)
        ]
    )
    result = metrics.evaluate(comb, comb, "bspnet")[0]["ecd"]
    assert result.counts == (4096, 4096)


def test_edges_of_a_tiny_fragment_do_not_exhaust_the_memory(rng):
    speck = CUBE.copy().apply_scale(0.004)
    points, normals = sample_surface(speck, 4_096, rng)
    assert (metrics.edge_sharpness(points, normals, 0.02) < 1e-9).all()


# The visible side


def test_seen_points_of_a_cube_are_those_of_its_front(rng):
    points, _ = sample_surface(CUBE, 2000, rng)
    seen = np.abs(metrics.behind(ray_scene(CUBE.triangles), FRONT, points)) < 1e-3
    front = points[:, 2] > 0.25 - 1e-9
    assert seen[front].mean() > 0.99 and not seen[points[:, 2] < 0.24].any()


def test_a_wrong_back_side_costs_nothing_on_the_visible_side():
    thick = CUBE.copy()
    thick.vertices[thick.vertices[:, 2] < 0, 2] -= 0.2
    found, floor = (values(m, CUBE, camera=FRONT) for m in (thick, CUBE))
    assert found["chamfer_l1"] > 3 * floor["chamfer_l1"] and found["iou"] < 0.75
    for name in ("chamfer_l1", "normal_consistency", "f_score", "iou"):
        assert found[f"{name}_visible"] == pytest.approx(
            floor[f"{name}_visible"],
            rel=0.1,  # as many points on more surface
        )


def test_a_wrong_front_costs_more_on_the_visible_side():
    short = CUBE.copy()
    short.vertices[short.vertices[:, 2] > 0, 2] -= 0.05
    found = values(short, CUBE, camera=FRONT)
    assert found["chamfer_l1_visible"] == pytest.approx(0.05, rel=0.1)
    assert found["chamfer_l1"] < 0.6 * found["chamfer_l1_visible"]
    # of 0.1 behind the true front, 0.05 is empty; 0.05 more lies behind the other
    assert found["iou_visible"] == pytest.approx(2 / 3, abs=0.03)


# What all of them share


@pytest.mark.parametrize("protocol", metrics.PROTOCOLS)
def test_measures_are_symmetric_up_to_the_draw(protocol, monkeypatch):
    rules = metrics.PROTOCOLS[protocol].items()
    fewer = {n: replace(rule, points=min(rule.points, 20_000)) for n, rule in rules}
    monkeypatch.setitem(metrics.PROTOCOLS, protocol, fewer)
    a, b = make_shape("chair", 3).detailed, make_shape("chair", 3).coarse
    there, back = (values(*pair, protocol, camera=FRONT) for pair in ((a, b), (b, a)))
    for name in set(there) - {"accuracy", "accuracy_visible"}:
        if not name.startswith("completeness"):
            size = max(there[name], back[name])
            assert there[name] == pytest.approx(back[name], rel=0.25, abs=0.02 * size)


def test_distances_of_swapped_points_are_the_same(rng):
    a, b = cloud(rng)[0], cloud(rng)[0]
    for measure in (
        metrics.chamfer_distance,
        lambda a, b: metrics.chamfer_distance(a, b, "l2"),
        lambda a, b: metrics.f_score(metrics.match_points(a, b), 0.02),
        metrics.earth_movers_distance,
    ):
        assert measure(a, b) == pytest.approx(measure(b, a), abs=1e-15) and measure(
            a, b
        )


@pytest.mark.parametrize("protocol", ["occnet", "disn", "bspnet"])
def test_a_protocol_of_the_truths_own_size_is_blind_to_scale(protocol, monkeypatch):
    rules = metrics.PROTOCOLS[protocol].items()
    fewer = {name: replace(rule, points=2000) for name, rule in rules}
    monkeypatch.setitem(metrics.PROTOCOLS, protocol, fewer)
    pair = CUBE, trimesh.creation.cylinder(0.2, 0.4)
    halves = [mesh.copy().apply_scale(0.5) for mesh in pair]
    whole, half = (values(*meshes, protocol) for meshes in (pair, halves))
    for name in whole:
        assert half[name] == pytest.approx(whole[name], rel=1e-6, abs=1e-9)


def test_an_iou_of_the_truths_own_box_is_blind_to_place(monkeypatch):
    rule = replace(metrics.PROTOCOLS["occnet"]["iou"], points=4000)
    monkeypatch.setitem(metrics.PROTOCOLS, "occnet", {"iou": rule})
    pair = CUBE, trimesh.creation.cylinder(0.2, 0.4)
    moved = [mesh.copy().apply_translation((0.2, -0.1, 0.25)) for mesh in pair]
    here, there = (
        metrics.evaluate(*meshes, "occnet")[0]["iou"] for meshes in (pair, moved)
    )
    assert there.counts == pytest.approx(here.counts, abs=2)  # by rounding, at a face


def test_in_the_world_frame_distances_scale_and_squares_twice():
    pair = CUBE, ball(0.3)
    halves = [mesh.copy().apply_scale(0.5) for mesh in pair]
    whole, half = values(*pair), values(*halves)
    for name in ("accuracy", "completeness", "chamfer_l1"):
        assert half[name] == pytest.approx(whole[name] / 2)
    assert half["chamfer_l2"] == pytest.approx(whole["chamfer_l2"] / 4)
    assert half["normal_consistency"] == pytest.approx(whole["normal_consistency"])


def test_protocols_differ_by_frame_and_factor_as_they_say():
    occnet = values(ball(0.35), ball(0.4), "occnet")
    # tenths of the edge 0.8 are printed
    assert occnet["chamfer_l1"] == pytest.approx(0.05 / 0.8 * 10, rel=0.01)
    assert occnet["accuracy"] == pytest.approx(0.05 / 0.8 * 10, rel=0.01)
    pair = CUBE.copy().apply_translation([0.02, 0, 0]), CUBE
    disn = values(*pair, "disn")
    far = np.linalg.norm([0.25] * 3)  # vertices alone: 8 corners, all moved by 0.02
    worst = metrics.evaluate(None, CUBE, "disn")[0]["emd"].value
    assert worst == pytest.approx(0.01 * 2048 * metrics.BOX_DIAGONAL / far)
    assert disn["chamfer_l2"] == pytest.approx(2000 * (0.02 / far) ** 2, rel=1e-6)
    assert disn["f_score@0.5%"] == 0 and disn["f_score@2%"] == 1  # 0.046 apart


def test_a_result_prints_its_protocol_and_its_counts():
    text = str(metrics.evaluate(CUBE, CUBE, seed=5, skip=("emd",))[0]["ecd"])
    for part in ("d2im: world", "16,384 points", "squared", "x1", "radius 0.02"):
        assert part in text
    assert "threshold 0.8" in text and "seed 5" in text and " against " in text


def test_the_same_seed_gives_the_same_numbers_and_another_other_ones():
    first, again, other = (
        values(CUBE, ball(0.3), seed=seed, camera=FRONT) for seed in (3, 3, 4)
    )
    assert str(first) == str(again)  # bit for bit, NaN too
    assert first["chamfer_l1"] != other["chamfer_l1"]


# Bad predictions

FLAT = trimesh.Trimesh(np.zeros((3, 3)), [[0, 1, 2]], process=False)
EMPTY = trimesh.Trimesh(np.zeros((3, 3)), np.zeros((0, 3), int))
BROKEN = trimesh.Trimesh(
    [[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], process=False
)


@pytest.mark.parametrize(
    ("mesh", "reason"),
    [
        (None, "no mesh"),
        (EMPTY, "without faces"),
        (BROKEN, "not finite"),
        (FLAT, "no area"),
        (CUBE.copy().apply_translation([5, 0, 0]), "another frame"),
        (CUBE.copy().apply_scale(4 / np.sqrt(3)), "another frame"),  # unit sphere
    ],
)
def test_a_bad_prediction_gets_the_worst_values_and_a_reason(mesh, reason):
    results, failure = metrics.evaluate(mesh, CUBE, camera=FRONT)
    assert reason in failure
    diagonal = 1.1 * np.sqrt(3)
    for name in ("accuracy", "chamfer_l1", "emd", "chamfer_l1_visible"):
        assert results[name].value == pytest.approx(diagonal)
    assert results["chamfer_l2"].value == pytest.approx(2 * diagonal**2)
    assert results["ecd"].value == pytest.approx(2 * diagonal**2)
    for name in ("f_score", "iou", "normal_consistency", "iou_visible"):
        assert results[name].value == 0


def test_a_mesh_with_a_hole_is_scored_by_its_winding_number():
    whole = ball(0.4)
    holed = trimesh.Trimesh(whole.vertices, whole.faces[200:])
    assert not holed.is_watertight
    assert values(holed, whole)["iou"] > 0.98


def test_an_inside_out_mesh_holds_nothing():
    turned = CUBE.copy()
    turned.invert()
    assert values(turned, CUBE)["iou"] == 0


def test_nobody_is_scored_where_the_truth_has_nothing():
    away = Camera.from_matrices(np.eye(3), [0, 0, -2], 70, [32, 32], 64)  # behind it
    round_ = trimesh.creation.icosphere(3, 0.3)
    for mesh in (None, round_, CUBE):
        found, _ = metrics.evaluate(mesh, round_, camera=away, skip=["emd"])
        assert np.isnan(found["ecd"].value)
        assert all(np.isnan(v.value) for n, v in found.items() if "visible" in n)
        assert not np.isnan(found["iou"].value)
    missing, _ = metrics.evaluate(None, CUBE, skip=["emd"])
    assert missing["ecd"].value > 3 and missing["iou"].value == 0


def test_a_skipped_measure_changes_no_other():
    long = trimesh.creation.box((0.52, 0.5, 0.5))
    every, _ = metrics.evaluate(long, CUBE, skip=["emd"])
    some, _ = metrics.evaluate(long, CUBE, skip=["emd", "f_score"])  # of most points
    assert len(some) == len(every) - 1
    assert all(some[name].value == every[name].value for name in some)


def test_edges_of_no_points_are_none():
    none = np.zeros((0, 3))
    assert metrics.edge_sharpness(none, none, 0.02).shape == (0,)


def test_a_prediction_that_the_camera_does_not_see_is_the_worst_there():
    aside = Camera.from_matrices(np.eye(3), [0, 0, 2], 70, [1000, 32], 64)
    found = metrics.evaluate(CUBE, CUBE, camera=aside, skip=("emd",))[0]
    assert np.isnan(found["chamfer_l1_visible"].value)  # nor the truth
    narrow = Camera.from_matrices(np.diag([1, -1, -1]), [0, 0, 2], 70, [32, 32], 64)
    low = trimesh.creation.box((0.1, 0.1, 0.1)).apply_translation([0, 0, 0.3])
    zoomed = Camera.from_matrices(narrow.rotation, [-0.4, 0, 2], 900, [32, 32], 64)
    wide = trimesh.creation.box((0.9, 0.1, 0.1))
    found = metrics.evaluate(low, wide, camera=zoomed, skip=("emd",))[0]
    assert found["chamfer_l1_visible"].value == pytest.approx(metrics.BOX_DIAGONAL)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: metrics.match_points(p * np.nan, p), "prediction.*NaN"),
        (lambda p: metrics.match_points(p, p[:, :2]), r"truth .*\(4, 2\)"),
        (lambda p: metrics.chamfer_distance(p[:0], p), "N > 0"),
        (lambda p: metrics.chamfer_distance(p, p, "l3"), "got 'l3'"),
        (lambda p: metrics.earth_movers_distance(p, p[1:]), "one size"),
        (lambda p: metrics.evaluate(CUBE, EMPTY), "truth .* without faces"),
        (lambda p: metrics.evaluate(CUBE, CUBE, "x"), "one of .*'bspnet'.*got 'x'"),
    ],
)
def test_bad_input_is_a_one_line_error(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(np.zeros((4, 3)))
    assert "\n" not in str(caught.value)


# Decomposition and disentanglement


def test_decomposition_scores_of_known_fields(rng):
    # A ball of 0.4 under a base that is too large by 0.02: the final field mends it.
    ball = trimesh.creation.icosphere(subdivisions=5, radius=0.4)
    camera = Camera(10, 20, 1, 64)
    example = make_example(
        ball, None, rng, count=5000, views=1, size=64, poses=[camera]
    )
    found = Prediction(
        displacement=torch.zeros(2, 64, 64),
        camera=camera,
        base_sdf=sphere(0.38),
        sdf=sphere(0.4),
        image=None,
    )
    scores = decomposition.decomposition_scores(found, example, 0)
    assert scores["base_error"] == pytest.approx(0.02, abs=1e-4)
    assert scores["final_error"] == pytest.approx(0, abs=1e-4)
    small = replace(found, displacement=torch.zeros(2, 32, 32))
    with pytest.raises(ValueError, match="works at 32 px but the views have 64"):
        decomposition.decomposition_scores(small, example, 0)


def test_the_back_of_a_thin_plate_is_no_visible_front(rng):
    plate, camera = trimesh.creation.box((0.6, 0.6, 0.01)), Camera(0, 0, 1, 64)
    example = make_example(
        plate, None, rng, count=5000, views=1, size=64, poses=[camera]
    )
    exact = box((0.3, 0.3, 0.005))
    found = Prediction(
        displacement=torch.zeros(2, 64, 64),
        camera=camera,
        base_sdf=lambda p: exact(p) + 0.1 * (p[:, 2] < 0),  # wrong on the back alone
        sdf=exact,
        image=None,
    )
    assert decomposition.decomposition_scores(found, example, 0)["base_error"] < 5e-3


def test_the_true_displacement_has_the_targets_laplacian(rng):
    # relief a sin(kx) sin(ky) on a square that faces the camera
    camera = Camera(0, 0, 1, 112)
    k = 2 * np.pi / (24 * 1.75 / camera.focal)
    a = 0.05 / k
    axis = np.linspace(-0.4, 0.4, 300)
    x, y = np.meshgrid(axis, axis)
    corner = np.arange(299 * 300).reshape(299, 300)[:, :-1].ravel()
    faces = [
        np.stack([corner, corner + 1, corner + 301], 1),
        np.stack([corner, corner + 301, corner + 300], 1),
    ]
    relief = a * np.sin(k * x) * np.sin(k * y)
    mesh = trimesh.Trimesh(
        np.stack([x, y, -relief], -1).reshape(-1, 3), np.concatenate(faces)
    )
    mesh.metadata["solid"] = False
    example = make_example(
        mesh, None, rng, count=500, views=1, size=112, poses=[camera]
    )
    pixel = (np.arange(112) + 0.5 - 56) * 1.75 / camera.focal
    displacement = a * np.sin(k * pixel) * np.sin(-k * pixel)[:, None]  # y is down
    found = Prediction(
        displacement=torch.tensor(np.stack([displacement] * 2)).float(),
        camera=camera,
        base_sdf=lambda p: -p[:, 2],
        sdf=lambda p: -p[:, 2],
        image=None,
    )
    scores = decomposition.decomposition_scores(found, example, 0)
    assert scores["laplacian_correlation"] > 0.98


@pytest.fixture(scope="module")
def known():
    """A shape, and what its truth would predict from two pictures of it."""
    shape = make_shape("cabinet", 0)

    def truth(azimuth):
        camera = Camera(azimuth, 15, 0.9, 112)
        hit, depth, _, _ = Renderer(shape.detailed).cast(camera)
        origins, rays = camera.rays()
        points = (origins + depth[..., None] * rays)[hit].astype(float)
        displacement = torch.zeros(2, 112, 112)
        away = -signed_distance(shape.coarse, points)[0]
        displacement[0][torch.from_numpy(hit)] = torch.from_numpy(away).float()
        field = lambda p: torch.from_numpy(  # noqa: E731
            signed_distance(shape.coarse, p.numpy())[0]
        )
        return Prediction(displacement, camera, field, field, None)

    return shape, truth(20), truth(-10)


def scores(known, **changes):
    shape, one, other = known
    pair = [replace(prediction, **changes) for prediction in (one, other)]
    return decomposition.disentanglement(pair[0], shape.detailed, shape.coarse, pair[1])


def test_disentanglement_of_the_truth_is_perfect(known):
    found = scores(known)
    assert found["base_to_coarse"] < 1e-5 < 1e-3 < found["base_to_detailed"]
    assert found["detail_in_base"] == pytest.approx(0, abs=1e-3)
    for name in ("", "_highpass"):
        assert found["displacement_correlation" + name] == pytest.approx(1, abs=1e-4)
        assert found["displacement_energy" + name] == pytest.approx(1, abs=1e-3)
    assert found["laplacian_energy"] == pytest.approx(found["coarse_energy"], rel=0.01)
    assert found["coarse_energy"] < 0.9
    assert found["transfer_consistency"] > 0.95
    assert found["transfer_error"] < 0.2 * found["base_to_detailed"]


def test_disentanglement_of_a_base_that_swallowed_the_detail_is_low(known):
    field = lambda p: torch.from_numpy(  # noqa: E731
        signed_distance(known[0].detailed, p.numpy())[0]
    )
    found = scores(known, base_sdf=field, displacement=torch.zeros(2, 112, 112))
    assert found["base_to_detailed"] < 1e-5 < 1e-3 < found["base_to_coarse"]
    assert found["detail_in_base"] == pytest.approx(1, abs=1e-3)
    for name in ("", "_highpass"):
        assert found["displacement_correlation" + name] == 0
        assert found["displacement_energy" + name] == 0
    assert found["laplacian_energy"] == pytest.approx(1, rel=0.01)
    assert found["transfer_consistency"] == 0


def test_disentanglement_of_noise_is_uncorrelated(known):
    draw = torch.Generator().manual_seed(0)
    shape, one, other = known
    one, other = (
        replace(p, displacement=0.02 * torch.randn(2, 112, 112, generator=draw))
        for p in (one, other)
    )
    found = decomposition.disentanglement(one, shape.detailed, shape.coarse, other)
    for name in ("", "_highpass"):
        assert abs(found["displacement_correlation" + name]) < 0.05
    assert found["displacement_energy_highpass"] > 2
    assert abs(found["transfer_consistency"]) < 0.1
    assert found["transfer_error"] > 5e-3


def test_an_offset_of_the_base_spoils_the_raw_map_but_not_the_highpassed(known):
    shape, one, other = known
    x = torch.linspace(-0.05, 0.05, 112).expand(2, 112, 112)
    tilted = replace(one, displacement=one.displacement + x)
    found = decomposition.disentanglement(tilted, shape.detailed, shape.coarse)
    assert found["displacement_correlation"] < 0.5
    assert found["displacement_correlation_highpass"] > 0.9
    assert "transfer_error" not in found
