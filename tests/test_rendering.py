import numpy as np
import pytest
import trimesh

from d2im.camera import Camera
from d2im.data.rendering import Renderer, random_background, render

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


def test_an_edge_pixel_mixes_object_and_background_by_coverage(ball):
    white, black = (
        Renderer(ball).view(
            CAMERA, np.random.default_rng(0), np.full((64, 64, 3), grey)
        )
        for grey in (1.0, 0.0)
    )
    hit, *_ = Renderer(ball).cast(CAMERA, 2)
    covered = hit.reshape(64, 2, 64, 2).mean((1, 3))
    assert white.image - black.image == pytest.approx(
        np.broadcast_to(1 - covered, (3, 64, 64)), abs=1e-6
    )


def test_a_pixel_is_the_objects_where_half_of_its_rays_hit(ball, ball_view):
    hit, *_ = Renderer(ball).cast(CAMERA, 2)
    covered = hit.reshape(64, 2, 64, 2).mean((1, 3))
    assert {0.25, 0.5} < set(covered.ravel())
    assert np.array_equal(ball_view.mask, covered >= 0.5)


def test_a_pixel_on_an_edge_has_the_depth_of_one_surface():
    near = trimesh.creation.box((0.31, 0.33, 0.1)).apply_translation((0, 0, 0.35))
    wall = trimesh.creation.box((0.9, 0.9, 0.1)).apply_translation((0, 0, -0.35))
    both = trimesh.util.concatenate([near, wall])
    view = render(both, Camera(0, 0, 1, 64), np.random.default_rng(0))
    depth = view.depth[view.mask]
    off = np.abs(depth[:, None] - [1.75 - 0.4, 1.75 + 0.3]).min(1)
    assert off.max() < 1e-3


def test_light_comes_from_above(ball):
    camera, brighter = Camera(0, 0, 1, 64), []
    for seed in range(10):
        image = render(ball, camera, np.random.default_rng(seed)).image
        brighter.append(image[:, :32].mean() - image[:, 32:].mean())
    assert min(brighter) > -1e-3 and np.mean(brighter) > 0.02


def test_a_background_is_random_coloured_and_the_same_by_seed():
    first, again, other = (
        random_background(50, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    assert first.shape == (50, 50, 3) and first.dtype == np.float32
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    for seed in range(30):
        image = random_background(50, np.random.default_rng(seed))
        assert 0 <= image.min() and image.max() <= 1 and image.std() > 0.01


def test_a_corner_is_darker_than_the_open():
    # A floor and a wall that meet; both look 45 degrees off the camera.
    floor = trimesh.creation.box((0.8, 0.1, 0.8)).apply_translation((0, -0.05, 0))
    wall = trimesh.creation.box((0.8, 0.8, 0.1)).apply_translation((0, 0.4, -0.4))
    both = trimesh.util.concatenate([floor, wall])
    both.face_attributes["color"] = np.full((24, 3), 0.5)
    view = render(both, Camera(0, 45, 1, 64), np.random.default_rng(0))
    uv, _ = Camera(0, 45, 1, 64).project(np.array([[0, 0, -0.32], [0, 0, 0.2]]))
    (x0, y0), (x1, y1) = ((uv + 1) * 32).astype(int)
    corner, middle = view.image[0, y0, x0], view.image[0, y1, x1]
    assert 0.1 < corner < 0.85 * middle


def test_an_object_outside_the_picture_gives_an_empty_view(ball):
    turned = Camera.from_matrices(np.eye(3), (5, 0, 2), 70, (32, 32), 64)
    view = render(ball, turned, np.random.default_rng(0))
    assert not view.mask.any() and (view.image == 1).all()


def test_a_camera_inside_the_bounding_box_still_sees():
    room = trimesh.creation.icosphere(subdivisions=3, radius=0.5)
    inside = Camera.from_matrices(np.eye(3), (0, 0, 0.1), 70, (32, 32), 64)
    assert render(room, inside, np.random.default_rng(0)).mask.all()
