import numpy as np
import pytest
import torch

from d2im.camera import Camera, project, random_camera


def test_projection_agrees_with_a_camera_worked_by_hand():
    # In front, 1.75 away, 224 px: f = 245. The point stands 0.5 nearer, 0.1 to the
    # right and 0.2 up: z = 1.25, pixel x = 112 + 245 * 0.1 / 1.25 = 131.6,
    # pixel y = 112 - 245 * 0.2 / 1.25 = 72.8.
    uv, depth = Camera(0, 0, 1, 224).project(np.array([[0.1, 0.2, 0.5]]))
    assert depth[0] == pytest.approx(1.25)
    assert (uv[0] + 1) * 112 == pytest.approx([131.6, 72.8])


def test_azimuth_grows_toward_plus_x_and_elevation_toward_plus_y():
    assert Camera(90, 0, 1, 224).position == pytest.approx([1.75, 0, 0])
    assert Camera(0, 90, 2, 224).position == pytest.approx([0, 3.5, 0])


def test_a_camera_at_30_20_sees_hand_worked_points():
    a, e = np.radians(30), np.radians(20)
    position = (
        0.8 * 1.75 * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    )
    camera = Camera(30, 20, 0.8, 112)
    assert camera.position == pytest.approx(position)
    # the origin lies on the axis; a point straight above appears above the centre
    uv, depth = camera.project(np.array([[0.0, 0, 0], [0, 0.1, 0]]))
    assert depth[0] == pytest.approx(1.4)
    assert uv[0] == pytest.approx([0, 0])
    # up . down-axis = -cos(e); up . forward = -sin(e)
    expected = -122.5 * 0.1 * np.cos(e) / (1.4 - 0.1 * np.sin(e)) / 56
    assert uv[1] == pytest.approx([0, expected])


@pytest.mark.parametrize("elevation", [-90, -35, 0, 50, 90])
def test_every_pose_is_a_rotation(elevation):
    rotation = Camera(123, elevation, 1, 224).rotation
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)


def test_rays_go_back_through_their_pixels(rng):
    camera = random_camera(rng, 32)
    origins, directions = camera.rays()
    depth = rng.uniform(1, 2, (32, 32, 1))
    uv, z = camera.project((origins + depth * directions).reshape(-1, 3))
    centres = (np.arange(32) + 0.5) / 16 - 1
    columns, rows = np.moveaxis(uv.reshape(32, 32, 2), -1, 0)
    assert columns == pytest.approx(np.broadcast_to(centres, (32, 32)), abs=1e-5)
    assert rows == pytest.approx(np.broadcast_to(centres, (32, 32)).T, abs=1e-5)
    assert z == pytest.approx(depth.ravel(), abs=1e-5)


def test_a_pixels_ray_is_the_mean_of_its_sub_pixels_rays(rng):
    camera = random_camera(rng, 32)
    fine = camera.rays(2)[1].reshape(32, 2, 32, 2, 3)
    assert fine.mean((1, 3)) == pytest.approx(camera.rays()[1], abs=1e-6)
    assert fine[:, :, :, 0] != pytest.approx(fine[:, :, :, 1])


def test_random_cameras_see_the_front_from_above_at_training_distances(rng):
    places = np.array([random_camera(rng, 32).position for _ in range(400)])
    distance = np.linalg.norm(places, axis=1)
    poses = [
        np.degrees(np.arctan2(places[:, 0], places[:, 2])),
        np.degrees(np.arcsin(places[:, 1] / distance)),
        distance / 1.75,
    ]
    for pose, low, high in zip(poses, (-60, 0, 0.8), (60, 40, 1), strict=True):
        near = 0.05 * (high - low)  # 400 draws come so near to both ends
        assert low <= pose.min() < low + near and high - near < pose.max() <= high


def test_numpy_torch_and_batched_projection_agree(rng):
    cameras = [random_camera(rng, 112) for _ in range(3)]
    points = rng.uniform(-0.5, 0.5, (3, 40, 3))
    arrays = torch.tensor(np.stack([c.to_array() for c in cameras]))
    uv, camera_points = project(torch.tensor(points), arrays)
    for k, camera in enumerate(cameras):
        expected, depth = camera.project(points[k])
        torch_uv, _ = camera.project(torch.tensor(points[k]))
        assert uv[k].numpy() == pytest.approx(expected, abs=1e-12)
        assert torch_uv.numpy() == pytest.approx(expected, abs=1e-12)
        assert camera_points[k, :, 2].numpy() == pytest.approx(depth, abs=1e-12)


def test_a_resized_camera_sees_the_same_uv(rng):
    camera = random_camera(rng, 224)
    points = rng.uniform(-0.5, 0.5, (10, 3))
    assert camera.resized(112).project(points)[0] == pytest.approx(
        camera.project(points)[0]
    )


def test_array_round_trip(rng):
    camera = random_camera(rng, 224)
    again = Camera.from_array(camera.to_array())
    assert np.array_equal(again.to_array(), camera.to_array())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Camera(0, 0, 0, 224), "ratio > 0"),
        (lambda: Camera(float("nan"), 0, 1, 224), "finite degrees"),
        (lambda: Camera(0, 0, 1, float("inf")), "finite degrees"),
        (
            lambda: Camera.from_matrices(np.ones((3, 3)), np.zeros(3), 1, (0, 0), 2),
            "rotation matrix",
        ),
        (
            lambda: Camera.from_matrices(np.eye(4), np.zeros(3), 1, (0, 0), 2),
            r"rotation \(3, 3\)",
        ),
        (lambda: Camera.from_array(np.zeros(12)), "16 numbers"),
    ],
)
def test_an_impossible_camera_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_half_precision_does_not_touch_the_projection(rng):
    camera = Camera(30, 20, 0.8, 224)
    points = torch.from_numpy(rng.uniform(-0.5, 0.5, (500, 3))).float()
    row = torch.from_numpy(camera.to_array()).float()
    exact = project(points, row)
    with torch.autocast("cpu", torch.bfloat16):
        rough = project(points, row)
    assert all(torch.equal(a, b) for a, b in zip(exact, rough, strict=True))


def test_a_size_that_is_no_whole_number_is_one_for_the_lens_too():
    camera = Camera(0, 0, 1, 224.7)
    assert camera.size == 224 and camera.project(np.zeros((1, 3)))[0] == pytest.approx(
        0
    )


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(translation=[0, 0, np.nan]), "finite numbers"),
        (dict(focal=np.inf), "finite numbers"),
        (dict(centre=[np.nan, 8]), "finite numbers"),
        (dict(focal=-5.0), "focal=-5, size=16"),
        (dict(size=0), "focal=20, size=0"),
        (dict(size=16.5), "focal=20, size=16.5"),
    ],
)
def test_matrices_of_no_camera_are_refused(wrong, said):
    known = dict(rotation=np.eye(3), translation=[0, 0, 2], focal=20.0, centre=[8, 8])
    with pytest.raises(ValueError, match=said):
        Camera.from_matrices(**known | dict(size=16) | wrong)


def test_a_pose_is_what_the_camera_was_made_of():
    assert np.allclose(Camera(-40, 25, 0.85, 64).pose, (-40, 25, 0.85))
