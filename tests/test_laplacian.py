import numpy as np
import pytest
import torch
import trimesh

from d2im.camera import Camera
from d2im.data.rendering import Renderer
from d2im.laplacian import (
    divergence,
    gradient,
    laplacian,
    laplacian_maps,
    stencil_mask,
)


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
    g = inner(gradient(2 * x - 3 * y + 1))
    assert torch.allclose(g[:, 0], g.new_tensor(2)) and torch.allclose(
        g[:, 1], g.new_tensor(-3)
    )


def test_laplacian_of_a_paraboloid_is_four():
    x, y = grid()
    assert torch.allclose(
        inner(laplacian(x**2 + y**2)), torch.tensor(4.0, dtype=x.dtype)
    )


def test_laplacian_of_a_linear_map_is_zero():
    x, y = grid()
    assert inner(laplacian(0.3 * x - 0.7 * y)).abs().max() < 1e-12


def test_divergence_is_the_sum_of_the_axes_slopes():
    x, y = grid()
    vectors = torch.stack([2 * x + y, 5 * y - x], 1)
    assert torch.allclose(inner(divergence(vectors)), torch.tensor(7.0, dtype=x.dtype))


def test_laplacian_agrees_with_a_naive_loop():
    maps = torch.rand(2, 6, 7, generator=torch.Generator().manual_seed(0))
    found = laplacian(maps)
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
    valid = stencil_mask(mask, depth)
    expected = torch.zeros_like(mask)
    expected[:, 3:9, 3:5] = True
    expected[:, 3:9, 7:9] = True
    assert torch.equal(valid, expected)


def test_stencils_do_not_leave_the_picture():
    valid = stencil_mask(torch.ones(1, 8, 8, dtype=torch.bool), torch.ones(1, 8, 8))
    assert valid.sum() == 36 and valid[0, 1:-1, 1:-1].all()


def relief_view(ratio, tilt, size, period=24, slope=0.1):
    """A plane tilted by `tilt` degrees about the camera's y axis, rendered with relief.

    Along the plane's coordinate s the relief h = a sin(ks) stands out of it, its period
    `period` pixels where the plane faces the camera, its slope a k.

    Returns:
        views for `laplacian_maps`, the true displacement -F_plane = -h, the analytic
        divergence of the normals, and the pixels away from the plane's ends.
    """
    camera = Camera(0, 0, ratio, size)
    pixel = 1.75 * ratio / camera.focal  # z0/f
    k = 2 * np.pi / (period * pixel)
    a, theta = slope / k, np.radians(tilt)
    along = np.array([np.cos(theta), 0, np.sin(theta)])  # T in the camera's frame
    normal = np.array([np.sin(theta), 0, -np.cos(theta)])  # N, toward the camera
    s = np.linspace(-0.45, 0.45, 1401) * ratio
    line = np.outer(s, along) + np.outer(a * np.sin(k * s), normal)
    ends = [line + [0, y, 0] for y in (-0.6 * ratio, 0.6 * ratio)]
    flip = np.array([1, -1, -1])  # the camera's axes in the world, seen from +z
    vertices = np.stack(ends, 1).reshape(-1, 3) * flip
    i = 2 * np.arange(len(s) - 1)
    faces = np.concatenate([np.c_[i, i + 1, i + 2], np.c_[i + 1, i + 3, i + 2]])
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    view = Renderer(mesh).view(camera, np.random.default_rng(0))
    views = {
        name: torch.tensor(getattr(view, name).astype("f2")).float()[None]
        for name in ("normals", "depth")
    }
    views |= {"mask": torch.tensor(view.mask)[None]}
    views |= {"camera": torch.tensor(camera.to_array()).float()[None]}
    x = (np.arange(size) + 0.5 - size / 2) / camera.focal
    z = np.where(view.mask, view.depth, 1.0).astype(float)
    s = x * z * along[0] + (z - 1.75 * ratio) * along[2]  # of the visible point
    h, dh, ddh = a * np.sin(k * s), a * k * np.cos(k * s), -a * k**2 * np.sin(k * s)
    # n = (N - h' T) / |.|, u = f x/z of P(s) = P0 + s T + h N, dn/du = dn/ds : du/ds
    length = np.sqrt(1 + dh**2)
    dn = -ddh / length * (along[0] + (normal[0] - dh * along[0]) * dh / length**2)
    px, pz = x * z, z
    dx, dz = along[0] + dh * normal[0], along[2] + dh * normal[2]
    du = camera.focal * (dx * pz - px * dz) / pz**2
    inner = np.abs(s) < 0.35 * ratio
    return views, torch.tensor(-h)[None], torch.tensor(dn / du)[None], inner[None]


@pytest.mark.parametrize(
    "ratio, tilt, size",
    [(0.7, 0, 224), (1, 0, 112), (1.5, 0, 224), (1, 30, 224), (0.8, 45, 224),
     (1, -30, 112), (1, 60, 224)],
)  # fmt: skip
@pytest.mark.parametrize("form", ["transformed", "image"])
def test_the_target_meets_its_analytic_value(ratio, tilt, size, form):
    period = 24 / np.cos(np.radians(tilt))  # 24 pixels in the picture
    views, displacement, analytic, inner = relief_view(ratio, tilt, size, period)
    _, target, valid = laplacian_maps(displacement.float(), views, form)
    if form == "image":
        analytic = analytic * views["depth"] * 32 / (35 * size)
    valid &= torch.tensor(inner)
    assert valid.sum() > 2000
    peak = analytic[valid].abs().max()
    assert (target - analytic).abs()[valid].max() < 0.06 * peak


@pytest.mark.parametrize("form", ["transformed", "image"])
def test_prediction_and_target_agree_where_the_base_faces_the_camera(form):
    views, displacement, analytic, inner = relief_view(1, 0, 224)
    predicted, target, valid = laplacian_maps(displacement, views, form)
    valid &= torch.tensor(inner)
    peak = target[valid].abs().max()
    assert (predicted - target).abs()[valid].max() < 0.08 * peak


@pytest.mark.parametrize("form", ["transformed", "image"])
def test_maps_smaller_than_the_cameras_picture_count_in_their_own_pixels(form):
    views, displacement, _, _ = relief_view(1, 0, 56)
    expected = laplacian_maps(displacement, views, form)
    camera = torch.tensor(Camera(0, 0, 1, 224).to_array()).float()[None]
    found = laplacian_maps(displacement, views | {"camera": camera}, form)
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("tilt", [0, 15, 30, 45])
def test_on_a_tilted_plane_the_displacement_outgrows_the_target(tilt):
    # by 1/cos² θ where the relief is wide and shallow; more where it is not
    views, displacement, _, inner = relief_view(1, tilt, 224, period=40)
    predicted, target, valid = laplacian_maps(displacement.float(), views)
    valid &= torch.tensor(inner)
    found = (predicted * target)[valid].sum() / (target**2)[valid].sum()
    assert found.item() == pytest.approx(1 / np.cos(np.radians(tilt)) ** 2, rel=0.02)


def test_a_plane_asks_for_no_laplacian_at_any_tilt():
    for tilt in (0, 30, 60):
        views, _, _, inner = relief_view(1, tilt, 112, slope=0.0)
        _, target, valid = laplacian_maps(torch.zeros(1, 112, 112), views)
        assert target[valid & torch.tensor(inner)].abs().max() < 1e-3


def test_an_unknown_form_is_refused():
    views, displacement, _, _ = relief_view(1, 0, 32)
    with pytest.raises(ValueError, match="transformed"):
        laplacian_maps(displacement, views, "x")
