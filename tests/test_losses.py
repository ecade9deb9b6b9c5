import numpy as np
import pytest
import torch

from d2im import losses
from d2im.camera import Camera


def test_near_points_weigh_four_times_in_disns_loss():
    field, near = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    assert losses.near_loss(field, torch.zeros(2), near).item() == 2.5


@pytest.mark.parametrize("turn", [0.0, 0.5, 10.0, 90.0])
def test_camera_errors_are_the_turn_the_shift_and_the_way_in_the_picture(turn):
    cameras = [Camera(20 + d, 0, r, 64) for d, r in ((0, 1.0), (turn, 0.9))]
    true, predicted = (torch.tensor(c.to_array())[None] for c in cameras)
    points = torch.rand(1, 30, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    found = losses.camera_errors(predicted, true, points.double())
    assert found["rotation_degrees"].item() == pytest.approx(turn, abs=1e-5)
    assert found["distance"].item() == pytest.approx(0.175)
    pixels = [(c.project(points[0].double().numpy())[0] + 1) * 32 for c in cameras]
    moved = np.linalg.norm(pixels[0] - pixels[1], axis=1).mean()
    assert found["reprojection_px"].item() == pytest.approx(moved)


def test_camera_loss_is_the_squared_way_of_points_between_two_frames():
    cameras = [Camera(20, 10, r, 64).to_array() for r in (1.0, 1.1)]
    a, b = (torch.tensor(c)[None] for c in cameras)
    points = torch.zeros(1, 5, 3).double()
    assert losses.camera_loss(a, b, points).item() == pytest.approx(0.175**2 / 3)


def test_pixels_hold_their_own_points():
    uv = torch.tensor([[[-1.0, -1.0], [0.99, -0.99], [0.0, 0.51], [1.2, 0.0]]])
    index, inside = losses.pixel_index(uv, 4, 4)
    assert index.tolist() == [[0, 3, 14, 11]]
    assert inside.tolist() == [[True, True, True, False]]


def test_points_behind_another_surface_are_not_chosen():
    mask, depth = torch.ones(1, 4, 4, dtype=torch.bool), torch.full((1, 4, 4), 1.5)
    point_depth = torch.tensor([[1.5, 1.53, 1.5, 1.5, 1.51]])
    front = torch.tensor([[True, True, False, True, True]])
    sdf = torch.tensor([[0.0, 0.0, 0.0, 0.03, -0.01]])
    chosen = losses.visible_near(
        torch.zeros(1, 5, 2), point_depth, front, sdf, mask, depth
    )
    assert chosen.tolist() == [[True, False, False, False, True]]


def test_points_beside_the_picture_are_not_chosen():
    mask, depth = torch.ones(1, 4, 4, dtype=torch.bool), torch.full((1, 4, 4), 1.5)
    uv = torch.tensor([[[0.9, 0.0], [1.1, 0.0], [0.0, -1.1]]])
    sdf, front = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool)
    chosen = losses.visible_near(uv, sdf + 1.5, front, sdf, mask, depth)
    assert chosen.tolist() == [[True, False, False]]


def test_laplacian_loss_is_the_mean_over_the_chosen_points():
    predicted = torch.zeros(1, 4, 4)
    target = torch.arange(16.0).reshape(1, 4, 4)
    valid = torch.ones(1, 4, 4, dtype=torch.bool)
    valid[0, 0, 1] = False
    # pixels 0, 1 (not valid), 5, and 6 (not chosen)
    uv = torch.tensor([[[-0.75, -0.75], [-0.25, -0.75], [-0.25, -0.25], [0.25, -0.25]]])
    chosen = torch.tensor([[True, True, True, False]])
    loss = losses.laplacian_loss(predicted, target, valid, uv, chosen)
    assert loss.item() == pytest.approx((0 + 25) / 2)


def test_laplacian_loss_without_points_is_zero_and_differentiable():
    predicted = torch.full((1, 4, 4), float("inf"), requires_grad=True)
    loss = losses.laplacian_loss(
        predicted,
        torch.zeros(1, 4, 4),
        torch.zeros(1, 4, 4, dtype=torch.bool),
        torch.zeros(1, 3, 2),
        torch.ones(1, 3, dtype=torch.bool),
    )
    loss.backward()
    assert loss.item() == 0 and not predicted.grad.any()


def test_base_and_sdf_loss_are_mean_square_and_mean_absolute():
    a, b = torch.tensor([[1.0, 3.0]]), torch.tensor([[0.0, 0.0]])
    assert losses.base_loss(a, b).item() == 5
    assert losses.sdf_loss(a, b).item() == 2


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.7])
def test_base_loss_with_a_quantile_is_least_at_that_quantile(quantile):
    draws = torch.rand(1, 1000, generator=torch.Generator().manual_seed(0)) ** 3
    grid = torch.linspace(0, 1, 501)
    values = [losses.base_loss(x.expand_as(draws), draws, quantile) for x in grid]
    best = grid[torch.stack(values).argmin()].item()
    assert best == pytest.approx(draws.quantile(quantile).item(), abs=0.004)
    away = losses.base_loss(draws + 0.5, draws, quantile).item()
    assert away == pytest.approx(1 - quantile, abs=1e-5)  # at 0.5 the mean error


def test_visible_loss_is_the_mean_error_over_the_chosen_points():
    displaced = torch.tensor([[1.0, -3.0, 7.0]], requires_grad=True)
    chosen = torch.tensor([[True, True, False]])
    loss = losses.visible_loss(displaced, torch.zeros(1, 3), chosen)
    loss.backward()
    assert loss.item() == 2
    assert displaced.grad.tolist() == [[0.5, -0.5, 0.0]]
    assert losses.visible_loss(displaced, torch.zeros(1, 3), chosen & False) == 0


def test_relief_loss_is_the_mean_square_over_the_chosen_points():
    found = torch.tensor([[1.0, -3.0, 7.0]], requires_grad=True)
    relief, chosen = (
        torch.tensor([[0.0, 1.0, 0.0]]),
        torch.tensor([[True, True, False]]),
    )
    loss = losses.relief_loss(found, relief, chosen)
    loss.backward()
    assert loss.item() == (1 + 16) / 2
    assert found.grad.tolist() == [[1.0, -4.0, 0.0]]
    assert losses.relief_loss(found, relief, chosen & False) == 0
