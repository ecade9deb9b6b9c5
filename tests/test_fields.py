import numpy as np
import pytest
import torch

from d2im import fields
from d2im.camera import Camera

CAMERA = Camera(20, 10, 1, 64)


def test_lookup_meets_pixel_centres_exactly():
    maps = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    centres = (torch.arange(8) + 0.5) / 4 - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    uv = torch.stack([x, y], -1).reshape(1, 64, 2)
    assert torch.allclose(fields.sample_maps(maps, uv).reshape(8, 8), maps[0, 0])


def test_lookup_between_two_pixels_is_their_mean():
    maps = torch.tensor([[[[1.0, 3.0]]]])
    assert fields.sample_maps(maps, torch.zeros(1, 1, 2)).item() == pytest.approx(2.0)


def test_lookup_outside_the_picture_holds_the_border():
    maps = torch.tensor([[[[1.0, 3.0]]]])
    assert fields.sample_maps(maps, torch.tensor([[[5.0, 0.0]]])).item() == 3.0


def test_many_points_are_asked_in_parts_and_all_answered(rng):
    points, asked = rng.uniform(-0.5, 0.5, (350, 200, 3)), []
    field = fields.sphere(0.4)
    found = fields.values_at(lambda p: asked.append(len(p)) or field(p), points)
    assert len(asked) > 1 and found.shape == (350, 200)
    assert found == pytest.approx(np.linalg.norm(points, axis=-1) - 0.4, abs=1e-6)


def test_f_is_base_plus_the_front_or_the_back_displacement():
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(200, 3, generator=generator) - 0.5
    displacement = torch.rand(2, 16, 16, generator=generator)
    base = fields.sphere(0.3)
    field = fields.displaced_field(base, displacement, CAMERA)
    # by hand: a ball falls along the camera's axis where p · axis < 0
    axis = torch.tensor(CAMERA.rotation[2]).float()
    front = points @ axis < 0
    uv, _ = CAMERA.project(points)
    looked_up = torch.nn.functional.grid_sample(
        displacement[None], uv[None, None], padding_mode="border", align_corners=False
    )[0, :, 0]
    expected = base(points) + torch.where(front, looked_up[0], looked_up[1])
    assert 50 < front.sum() < 150
    assert torch.equal(field(points), expected)


def test_front_masks_agree_with_the_analytic_derivative_of_a_ball(rng):
    points = torch.tensor(rng.uniform(-0.5, 0.5, (500, 3)))
    axis = CAMERA.rotation[2]
    expected = points @ torch.tensor(axis) < 0
    exact = fields.front_mask(fields.sphere(), points, axis)
    assert torch.equal(exact, expected)
    # a step of 0.03 sees p + 0.015 axis
    step = fields.front_mask(fields.sphere(), points, axis, "finite_difference")
    sure = (points @ torch.tensor(axis) + 0.015).abs() > 1e-3
    assert torch.equal(step[sure], (points @ torch.tensor(axis) < -0.015)[sure])


def test_an_unknown_way_is_refused():
    with pytest.raises(ValueError, match="finite_difference"):
        fields.front_mask(fields.sphere(), torch.zeros(1, 3), CAMERA.rotation[2], "x")


@pytest.mark.parametrize("field", [fields.sphere(), fields.box(), fields.torus()])
def test_analytic_fields_have_gradients_of_length_one(field, rng):
    points = torch.tensor(rng.uniform(-0.5, 0.5, (500, 3)), requires_grad=True)
    (gradient,) = torch.autograd.grad(field(points).sum(), points)
    assert gradient.norm(dim=-1).numpy() == pytest.approx(np.ones(500))


@pytest.mark.parametrize(
    "field, point, value",
    [
        (fields.sphere(0.4, (0.1, 0, 0)), (0.1, 0.3, 0), -0.1),
        (fields.box((0.1, 0.2, 0.3)), (0.4, 0.6, 0.3), 0.5),
        (fields.box((0.1, 0.2, 0.3)), (0.05, 0, 0), -0.05),
        (fields.torus(0.3, 0.1), (0, 0.2, 0.3), 0.1),
    ],
)
def test_analytic_fields_at_hand_worked_points(field, point, value):
    assert field(torch.tensor([point])).item() == pytest.approx(value, abs=1e-6)
