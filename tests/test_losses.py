import numpy as np
import pytest
import torch
import trimesh

from d2im import losses
from d2im.camera import Camera
from d2im.rendering import Renderer


def grid(size=24):
    y, x = torch.meshgrid(
        torch.arange(size, dtype=torch.float64),
        torch.arange(size, dtype=torch.float64),
        indexing="ij",
    )
    return x[None], y[None]


def inner(maps):
    return maps[..., 1:-1, 1:-1]


def test_gradient_of_a_plane_is_its_slope():
    x, y = grid()
    g = inner(losses.gradient(2 * x - 3 * y + 1))
    assert torch.allclose(g[:, 0], g.new_tensor(2)) and torch.allclose(
        g[:, 1], g.new_tensor(-3)
    )


def test_laplacian_of_a_paraboloid_is_four():
    x, y = grid()
    assert torch.allclose(
        inner(losses.laplacian(x**2 + y**2)), torch.tensor(4.0, dtype=x.dtype)
    )


def test_laplacian_of_a_linear_map_is_zero():
    x, y = grid()
    assert inner(losses.laplacian(0.3 * x - 0.7 * y)).abs().max() < 1e-12


def test_divergence_is_the_sum_of_the_axes_slopes():
    x, y = grid()
    vectors = torch.stack([2 * x + y, 5 * y - x], 1)
    assert torch.allclose(
        inner(losses.divergence(vectors)), torch.tensor(7.0, dtype=x.dtype)
    )


def test_laplacian_agrees_with_a_naive_loop():
    maps = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(0))
    found = losses.laplacian(maps)
    for b in range(2):
        for i in range(1, 5):
            for j in range(1, 6):
                m = maps[b]
                naive = m[i - 1, j] + m[i + 1, j] + m[i, j - 1] + m[i, j + 1]
                assert found[b, i, j] == pytest.approx(
                    (naive - 4 * m[i, j]).item(), abs=1e-5
                )


def test_stencils_stay_inside_the_mask_and_on_one_surface():
    mask = torch.zeros(1, 12, 12, dtype=torch.bool)
    mask[:, 2:10, 2:10] = True
    depth = torch.full((1, 12, 12), 1.5)
    depth[:, :, 6:] = 1.7  # a step between columns 5 and 6
    valid = losses.stencil_mask(mask, depth)
    expected = torch.zeros_like(mask)
    expected[:, 3:9, 3:5] = True
    expected[:, 3:9, 7:9] = True
    assert torch.equal(valid, expected)


def test_stencils_do_not_leave_the_picture():
    valid = losses.stencil_mask(
        torch.ones(1, 8, 8, dtype=torch.bool), torch.ones(1, 8, 8)
    )
    assert valid.sum() == 36 and valid[0, 1:-1, 1:-1].all()


@pytest.mark.parametrize("ratio", [0.7, 1.0, 1.5])
@pytest.mark.parametrize("form", ["transformed", "image"])
def test_target_prediction_and_analytic_laplacian_agree_on_rendered_relief(ratio, form):
    # A plane facing the camera at depth z0 with relief a sin(kx) into the depth:
    # f_D = a sin(kx), and both sides are -a k² sin(kx) z0/f, in the image form
    # -a k² sin(kx) (z0/f)².
    camera = Camera(0, 0, ratio, 224)
    pixel = 1.75 * ratio / camera.focal  # z0/f
    k = 2 * np.pi / (24 * pixel)  # a period of 24 px
    a = 0.1 / k
    x, y = np.meshgrid(
        np.linspace(-0.5, 0.5, 1001) * ratio, [-0.6 * ratio, 0.6 * ratio]
    )
    vertices = np.stack([x, y, -a * np.sin(k * x)], -1).reshape(-1, 3)
    i = np.arange(1000)
    faces = np.concatenate(
        [np.stack([i, i + 1, i + 1001], 1), np.stack([i + 1, i + 1002, i + 1001], 1)]
    )
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    view = Renderer(mesh).view(camera, np.random.default_rng(0))
    depth = torch.tensor(view.depth.astype("f2").astype("f4"))[None]
    normals = torch.tensor(view.normals.astype("f2").astype("f4"))[None]
    focal = torch.tensor([camera.focal])
    hit_x = (torch.arange(224) + 0.5 - 112) * torch.tensor(view.depth) / camera.focal
    true_displacement = a * torch.sin(k * hit_x.double())[None]
    analytic = -a * k**2 * torch.sin(k * hit_x.double())[None] * pixel
    if form == "image":
        analytic = analytic * pixel
    target = losses.laplacian_target(normals, depth, focal, form)
    predicted = losses.laplacian_prediction(true_displacement, depth, focal, form)
    valid = losses.stencil_mask(torch.tensor(view.mask)[None], depth)
    valid[..., :8] = valid[..., -8:] = False  # away from borders
    assert valid.sum() > 5000
    peak = analytic.abs().max()
    assert (predicted - analytic).abs()[valid].max() < 0.05 * peak
    assert (target - analytic).abs()[valid].max() < 0.05 * peak


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="transformed"):
        losses.laplacian_prediction(torch.zeros(1, 4, 4), torch.ones(1, 4, 4), 1, "x")


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
