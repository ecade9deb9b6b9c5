import numpy as np
import pytest
import trimesh

from d2im.camera import Camera
from d2im.rendering import Renderer, render

CAMERA = Camera(25, 15, 1, 64)


@pytest.fixture(scope="module")
def ball():
    return trimesh.creation.icosphere(subdivisions=5, radius=0.4)


@pytest.fixture(scope="module")
def ball_view(ball):
    return render(ball, CAMERA, np.random.default_rng(0))


def analytic_ball(radius=0.4):
    """Depth and camera-frame normals of a ball at the origin, at pixel centres."""
    origins, directions = (a.astype(float) for a in CAMERA.rays())
    half_b = (origins * directions).sum(-1)
    a = (directions**2).sum(-1)
    root = half_b**2 - a * ((origins**2).sum(-1) - radius**2)
    depth = (-half_b - np.sqrt(np.maximum(root, 0))) / a
    normals = (origins + depth[..., None] * directions) / radius @ CAMERA.rotation.T
    return root > 0, depth, normals


def test_depth_and_normals_of_a_ball_meet_the_analytic_ones(ball_view):
    hit, depth, normals = analytic_ball()
    assert (ball_view.mask == hit).mean() > 0.99
    inner = hit & (normals[..., 2] < -0.7)  # away from the silhouette
    # A pixel is 0.025 wide here: the mean over its rays is off by its curvature.
    assert np.abs(ball_view.depth - depth)[inner].max() < 1e-3
    error = np.abs(np.moveaxis(ball_view.normals, 0, -1) - normals)[inner]
    assert error.mean() < 2e-3 and error.max() < 2e-2


def test_normals_are_unit_and_turned_toward_the_camera(ball_view):
    n = ball_view.normals[:, ball_view.mask]
    assert np.linalg.norm(n, axis=0) == pytest.approx(np.ones(n.shape[1]), abs=1e-5)
    _, rays = CAMERA.rays()
    rays = np.moveaxis(rays @ CAMERA.rotation.T, -1, 0)[:, ball_view.mask]
    assert ((n * rays).sum(0) < 0).mean() > 0.99


def test_inverted_faces_give_the_same_normals(ball, ball_view):
    inverted = ball.copy()
    inverted.invert()
    view = render(inverted, CAMERA, np.random.default_rng(0))
    assert view.normals == pytest.approx(ball_view.normals, abs=1e-5)


def test_background_is_white_and_empty(ball_view):
    assert (ball_view.image[:, 0, 0] == 1).all()
    assert not ball_view.depth[~ball_view.mask].any()
    assert not ball_view.normals[:, ~ball_view.mask].any()


def test_no_visible_pixel_is_black(ball):
    for seed in range(10):
        view = render(ball, CAMERA, np.random.default_rng(seed))
        assert view.image[:, view.mask].max(0).min() > 0.1


def test_a_box_keeps_its_sharp_edges():
    normals = Renderer(trimesh.creation.box((0.5, 0.5, 0.5))).corner_normals
    assert np.sort(np.abs(normals).reshape(-1, 3), 1) == pytest.approx(
        np.tile([0.0, 0, 1], (36, 1))
    )


def test_the_same_seed_gives_the_same_picture(ball, ball_view):
    again = render(ball, CAMERA, np.random.default_rng(0))
    assert np.array_equal(again.image, ball_view.image)


def test_parts_differ_in_colour_and_given_colours_are_kept():
    left = trimesh.creation.box((0.3, 0.6, 0.3)).apply_translation((-0.3, 0, 0))
    right = trimesh.creation.box((0.3, 0.6, 0.3)).apply_translation((0.3, 0, 0))
    both = trimesh.util.concatenate([left, right])
    both.face_attributes["part"] = np.repeat([0, 1], 12)
    camera = Camera(0, 0, 1, 64)
    image = render(both, camera, np.random.default_rng(3)).image
    assert np.abs(image[:, 32, 20] - image[:, 32, 44]).max() > 0.05
    both.face_attributes["color"] = np.repeat([[0.8, 0.0, 0.0], [0.0, 0.8, 0.0]], 12, 0)
    image = render(both, camera, np.random.default_rng(3)).image
    assert image[1, 32, 20] == 0 and image[0, 32, 44] == 0


def test_a_mesh_without_faces_is_refused():
    with pytest.raises(ValueError, match="without faces"):
        render(trimesh.Trimesh(), CAMERA, np.random.default_rng(0))
