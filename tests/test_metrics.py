"""Each measure against analytic truth, a naive loop, and its own symmetries."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh

from d2im import metrics
from d2im.camera import Camera
from d2im.dataset import make_example
from d2im.fields import box, sphere
from d2im.meshing import extract_mesh
from d2im.reconstruction import Prediction
from d2im.sampling import sample_surface

CUBE = trimesh.creation.box((0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def rounded_cube():  # half side 0.25, edges rounded by 0.01
    inner = box((0.24, 0.24, 0.24))
    return extract_mesh(lambda p: inner(p) - 0.01, 192)


def square(height, side=0.5):
    corners = np.array([[0, 0, 0], [side, 0, 0], [side, side, 0], [0, side, 0]])
    return trimesh.Trimesh(corners + [0, 0, height], [[0, 1, 2], [0, 2, 3]])


def ball(radius):
    return trimesh.creation.icosphere(5, radius)


def cloud(rng, count=150):
    normals = rng.normal(size=(count, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return rng.uniform(-0.1, 0.1, (count, 3)), normals


# Chamfer distance and F-score


def test_chamfer_of_the_same_points_is_zero(rng):
    points, _ = cloud(rng)
    assert metrics.chamfer_distance(points, points, norm="l1") == 0
    assert metrics.chamfer_distance(points, points, norm="l2") == 0


def test_chamfer_of_a_mesh_with_itself_is_its_sampling_floor(rng):
    floor = 0.5 * np.sqrt(CUBE.area / 16_384)
    value = metrics.chamfer_distance(CUBE, CUBE, rng=rng)
    assert value == pytest.approx(floor, rel=0.05)
    squared = metrics.chamfer_distance(CUBE, CUBE, norm="l2", rng=rng)
    assert squared == pytest.approx(2 * CUBE.area / (np.pi * 16_384), rel=0.05)


def test_chamfer_of_shifted_points_is_the_shift(rng):
    points = np.c_[rng.uniform(size=(500, 2)), np.zeros(500)]
    shifted = points + [0, 0, 0.03]
    assert metrics.chamfer_distance(points, shifted) == pytest.approx(0.03)
    squared = metrics.chamfer_distance(points, shifted, norm="l2")
    assert squared == pytest.approx(2 * 0.03**2)


def test_chamfer_of_parallel_planes_is_their_distance(rng):
    a, b = square(0), square(0.05)
    assert metrics.chamfer_distance(a, b, rng=rng) == pytest.approx(0.05, rel=5e-3)
    squared = metrics.chamfer_distance(a, b, norm="l2", rng=rng)
    assert squared == pytest.approx(2 * 0.05**2, rel=1e-2)


def test_chamfer_of_concentric_spheres_is_the_gap(rng):
    value = metrics.chamfer_distance(ball(0.4), ball(0.35), rng=rng)
    assert value == pytest.approx(0.05, rel=1e-2)


def test_chamfer_and_f_score_match_naive_loops(rng):
    a, b = cloud(rng)[0], cloud(rng, 90)[0]
    there = np.array([min(np.linalg.norm(p - q) for q in b) for p in a])
    back = np.array([min(np.linalg.norm(p - q) for q in a) for p in b])
    l1, l2 = (there.mean() + back.mean()) / 2, (there**2).mean() + (back**2).mean()
    assert metrics.chamfer_distance(a, b) == pytest.approx(l1, abs=1e-12)
    assert metrics.chamfer_distance(a, b, norm="l2") == pytest.approx(l2, abs=1e-12)
    precision, recall = (there < 0.02).mean(), (back < 0.02).mean()
    f = 2 * precision * recall / (precision + recall)
    assert metrics.f_score(a, b, 0.02) == pytest.approx(f, abs=1e-12)


def test_f_score_is_the_harmonic_mean_of_precision_and_recall():
    half = np.zeros((1, 3))
    whole = np.array([[0, 0, 0], [1, 0, 0]])
    assert metrics.f_score(half, whole) == pytest.approx(2 / 3)  # precision 1, recall ½
    assert metrics.f_score(whole, half) == pytest.approx(2 / 3)
    assert metrics.f_score(half, whole + 5.0) == 0


def test_f_score_of_planes_turns_at_their_distance(rng):
    a, b = square(0), square(0.02)
    assert metrics.f_score(a, b, 0.019, rng=rng) == 0
    assert metrics.f_score(a, b, 0.022, rng=rng) > 0.999


def test_f_score_of_a_mesh_with_itself_is_the_stated_floor(rng):
    floor = 1 - np.exp(-np.pi * 0.005**2 * 20_000 / CUBE.area)
    value = metrics.f_score(CUBE, CUBE, 0.005, count=20_000, rng=rng)
    assert value == pytest.approx(floor, abs=0.01)


# Normal consistency


def test_normals_of_parallel_planes_agree_and_of_perpendicular_ones_do_not(rng):
    flat = sample_surface(square(0), 500, rng)
    upright = flat[0][:, [2, 0, 1]], flat[1][:, [2, 0, 1]]
    assert metrics.normal_consistency(flat, flat) == pytest.approx(1)
    assert metrics.normal_consistency(flat, upright) == pytest.approx(0)


def test_normal_consistency_is_blind_to_orientation(rng):
    flipped = ball(0.4)
    flipped.invert()
    assert metrics.normal_consistency(ball(0.4), flipped, rng=rng) > 0.99


def test_normals_of_a_tilted_plane_give_the_cosine(rng):
    flat = sample_surface(square(0), 500, rng)
    tilted = flat[0], np.tile([0, np.sin(0.5), np.cos(0.5)], (500, 1))
    assert metrics.normal_consistency(flat, tilted) == pytest.approx(np.cos(0.5))


# IoU


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.25, 0.6])
def test_iou_of_shifted_boxes_is_analytic(rng, shift):
    left = CUBE.copy().apply_translation([-shift / 2, 0, 0])
    right = CUBE.copy().apply_translation([shift / 2, 0, 0])
    expected = max(0.5 - shift, 0) / (0.5 + min(shift, 0.5))
    assert metrics.iou(left, right, rng=rng) == pytest.approx(expected, abs=0.01)


def test_iou_of_concentric_spheres_is_the_ratio_of_volumes(rng):
    value = metrics.iou(ball(0.4), ball(0.3), rng=rng)
    assert value == pytest.approx((0.3 / 0.4) ** 3, abs=0.01)


def test_a_mesh_a_field_and_occupancies_of_one_shape_score_one(rng):
    points = rng.uniform(-0.55, 0.55, (50_000, 3))
    inside = np.abs(points).max(axis=1) < 0.25
    field = box((0.25, 0.25, 0.25))
    assert metrics.iou(CUBE, field, points=points) > 0.999
    assert metrics.iou(inside, CUBE, points=points) > 0.999


def test_a_mesh_with_a_hole_is_scored_all_the_same(rng):
    whole = ball(0.4)
    holed = trimesh.Trimesh(whole.vertices, whole.faces[200:])
    assert not holed.is_watertight
    assert metrics.iou(holed, whole, rng=rng) > 0.98


def test_where_closed_bodies_overlap_inside_any_is_inside(rng):
    a = CUBE.copy().apply_translation([-0.1, 0, 0])
    b = CUBE.copy().apply_translation([0.1, 0, 0])
    both = trimesh.util.concatenate([a, b])
    union = trimesh.creation.box((0.7, 0.5, 0.5))
    assert metrics.iou(both, union, rng=rng) > 0.999


def test_iou_is_nan_where_neither_shape_holds_a_point():
    far = np.full((5, 3), 0.5)
    assert np.isnan(metrics.iou(CUBE, sphere(0.1), points=far))


# Edges


def test_sharpness_matches_a_naive_loop(rng):
    points, normals = cloud(rng, 600)
    expected = [
        min(
            abs(normals[i] @ normals[j])
            for j in range(600)
            if np.linalg.norm(points[i] - points[j]) <= 0.03
        )
        for i in range(600)
    ]
    sigma = metrics.edge_sharpness(points, normals, 0.03)
    assert np.allclose(sigma, np.minimum(expected, 1), atol=1e-12)
    assert (sigma < 0.5).any() and (sigma == 1).any()


def test_edge_chamfer_matches_a_naive_loop(rng):
    a, b = cloud(rng), cloud(rng)
    sets = []
    for points, normals in (a, b):
        cosine = np.abs(normals @ normals.T)
        apart = np.linalg.norm(points[:, None] - points[None], axis=2)
        sets.append(points[np.where(apart <= 0.02, cosine, 1).min(axis=1) < 0.8])
    squared = ((sets[0][:, None] - sets[1][None]) ** 2).sum(axis=2)
    expected = squared.min(axis=0).mean() + squared.min(axis=1).mean()
    result = metrics.edge_chamfer_distance(a, b, rng=rng)
    assert result.value == pytest.approx(expected, abs=1e-12)
    assert result[1:] == (len(sets[0]), len(sets[1]), "d2im")


def test_edge_points_of_a_cube_lie_at_its_edges_and_nowhere_else(rng):
    points, normals = sample_surface(CUBE, 16_384, rng)
    # The distance to the nearest edge: two coordinates are near the half side.
    to_edge = 0.25 - np.sort(np.abs(points), axis=1)[:, 1]
    sigma = metrics.edge_sharpness(points, normals, 0.02)
    assert (to_edge[sigma < 0.8] <= 0.02).all()
    assert (sigma[to_edge > 0.02] > 1 - 1e-9).all()
    assert (sigma[to_edge < 0.005] < 1e-9).mean() > 0.99


def test_a_rounded_cube_has_edges_for_d2im_and_none_for_bspnet(rng, rounded_cube):
    wide = metrics.edge_chamfer_distance(rounded_cube, CUBE, rng=rng)
    narrow = metrics.edge_chamfer_distance(
        rounded_cube, CUBE, protocol="bspnet", rng=rng
    )
    assert wide.prediction_edges == pytest.approx(wide.truth_edges, rel=0.1)
    assert wide.value < 0.01**2 * 2
    assert narrow.prediction_edges == 0 and narrow.truth_edges > 500
    assert narrow.value == np.inf


def test_without_edges_the_value_is_nan_or_infinite_but_never_zero(rng):
    smooth = ball(0.4)
    to_smooth = metrics.edge_chamfer_distance(CUBE, smooth, rng=rng)
    from_smooth = metrics.edge_chamfer_distance(smooth, CUBE, rng=rng)
    neither = metrics.edge_chamfer_distance(smooth, smooth, rng=rng)
    assert np.isnan(to_smooth.value) and to_smooth.truth_edges == 0
    assert from_smooth.value == np.inf and from_smooth.prediction_edges == 0
    assert np.isnan(neither.value)


def test_bspnet_keeps_at_most_4096_edge_points(rng):
    comb = np.repeat(cloud(rng, 5_000)[0], 2, axis=0)  # each point with two normals
    normals = np.tile([[1.0, 0, 0], [0, 1.0, 0]], (5_000, 1))
    result = metrics.edge_chamfer_distance(
        (comb, normals), (comb, normals), protocol="bspnet", rng=rng
    )
    assert result[1:] == (4_096, 4_096, "bspnet")
    assert result.value > 0  # two different draws


def test_edges_of_a_tiny_fragment_do_not_exhaust_the_memory(rng):
    speck = CUBE.copy().apply_scale(0.004)
    points, normals = sample_surface(speck, 4_096, rng)
    assert (metrics.edge_sharpness(points, normals, 0.02) < 1e-9).all()


# What all of them share


@pytest.mark.parametrize(
    "measure",
    [
        metrics.chamfer_distance,
        lambda a, b: metrics.chamfer_distance(a, b, norm="l2"),
        lambda a, b: metrics.f_score(a, b, 0.02),
    ],
)
def test_distances_are_symmetric(rng, measure):
    a, b = cloud(rng)[0], cloud(rng)[0]
    assert measure(a, b) == measure(b, a) > 0


def test_measures_with_normals_are_symmetric(rng):
    a, b = cloud(rng), cloud(rng)
    there, back = metrics.normal_consistency(a, b), metrics.normal_consistency(b, a)
    assert there == back
    there, back = (
        metrics.edge_chamfer_distance(*pair, rng=rng) for pair in ((a, b), (b, a))
    )
    assert there.value == back.value > 0


def test_the_same_seed_gives_the_same_number():
    values = {
        metrics.chamfer_distance(CUBE, ball(0.3), rng=np.random.default_rng(3))
        for _ in range(2)
    }
    assert len(values) == 1


EMPTY = trimesh.Trimesh(np.zeros((3, 3)), np.zeros((0, 3), int))
BROKEN = trimesh.Trimesh(
    [[0, 0, 0], [1, 0, 0], [0, np.nan, 0]], [[0, 1, 2]], process=False
)
POINTS = np.zeros((4, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda g: metrics.chamfer_distance(POINTS * np.nan, POINTS),
            "prediction.*NaN",
        ),
        (
            lambda g: metrics.chamfer_distance(POINTS, POINTS[:, :2]),
            r"truth .*\(4, 2\)",
        ),
        (lambda g: metrics.chamfer_distance(POINTS[:0], POINTS), "N > 0"),
        (lambda g: metrics.chamfer_distance(EMPTY, CUBE, rng=g), "without faces"),
        (
            lambda g: metrics.chamfer_distance(CUBE, BROKEN, rng=g),
            "truth .* not finite",
        ),
        (lambda g: metrics.chamfer_distance(CUBE, CUBE), "needs rng"),
        (lambda g: metrics.chamfer_distance(POINTS, POINTS, norm="l3"), "got 'l3'"),
        (lambda g: metrics.f_score(EMPTY, CUBE, rng=g), "without faces"),
        (lambda g: metrics.normal_consistency(POINTS, POINTS), "points and normals"),
        (lambda g: metrics.normal_consistency((POINTS, POINTS[1:]), CUBE), "3 normals"),
        (lambda g: metrics.iou(EMPTY, CUBE, rng=g), "without faces"),
        (lambda g: metrics.iou(np.ones(4, bool), CUBE, rng=g), "need the points"),
        (lambda g: metrics.iou(np.ones(3, bool), CUBE, points=POINTS), r"got \(3,\)"),
        (lambda g: metrics.iou(lambda p: p, CUBE, points=POINTS), r"got \(4, 3\)"),
        (
            lambda g: metrics.edge_chamfer_distance(CUBE, CUBE, protocol="x", rng=g),
            r"one of \['d2im', 'bspnet'\], got 'x'",
        ),
    ],
)
def test_bad_input_is_a_one_line_error(rng, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(rng)
    assert "\n" not in str(caught.value)


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
    scores = metrics.decomposition_scores(found, example, 0)
    assert scores["base_error"] == pytest.approx(0.02, abs=1e-4)
    assert scores["final_error"] == pytest.approx(0, abs=1e-4)
    small = replace(found, displacement=torch.zeros(2, 32, 32))
    with pytest.raises(ValueError, match="works at 32 px but the views have 64"):
        metrics.decomposition_scores(small, example, 0)


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
    scores = metrics.decomposition_scores(found, example, 0)
    assert scores["laplacian_correlation"] > 0.98
