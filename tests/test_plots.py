import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import trimesh
from matplotlib import colormaps

from d2im import plots
from d2im.camera import Camera
from d2im.fields import box, sphere
from d2im.sampling import signed_distance


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    figure.canvas.draw()  # what is wrong with an artist shows only here
    plt.close(figure)


@pytest.mark.parametrize(("axis", "right", "up"), ["xzy", "yxz", "zxy"])
def test_slices_hold_the_field_at_their_own_coordinates(axis, right, up):
    weights = dict(x=1.0, y=10.0, z=100.0)
    slope = torch.tensor([*weights.values()])
    section = plots.slice_values(lambda p: p @ slope, axis, 0.3, 4)
    assert section.axes == (right, up) and section.extent == (-0.55, 0.55) * 2
    centres = np.array([-0.4125, -0.1375, 0.1375, 0.4125])  # of cells of 0.275
    expected = weights[axis] * 0.3 + weights[right] * centres[None]
    assert np.allclose(section.values, expected + weights[up] * centres[:, None])


def test_slices_of_a_mesh_and_of_its_field_agree():
    mesh = trimesh.creation.box(extents=(0.6, 0.4, 0.2))
    of_mesh = plots.slice_values(lambda p: signed_distance(mesh, p)[0], "y", 0.1, 30)
    of_field = plots.slice_values(box((0.3, 0.2, 0.1)), "y", 0.1, 30)
    assert np.allclose(of_mesh.values, of_field.values, atol=1e-6)


def test_the_black_contour_of_a_sliced_sphere_is_a_circle(ax):
    plots.draw_slice(ax, plots.slice_values(sphere(0.4), at=0.24), step=0)
    (contour,) = ax.collections
    points = np.concatenate([path.vertices for path in contour.get_paths()])
    assert np.allclose(np.linalg.norm(points, axis=1), 0.32, atol=2e-4)  # 0.4, 0.24


def test_iso_lines_lie_at_multiples_of_the_step_but_zero(ax):
    plots.draw_slice(ax, plots.slice_values(sphere(0.4)), step=0.1)
    lines, _ = ax.collections
    assert np.allclose(lines.levels, [-0.3, -0.2, -0.1, 0.1, 0.2, 0.3])


def test_a_slice_without_surface_has_no_contour(ax):
    plots.draw_slice(ax, plots.slice_values(lambda p: 1 + 0 * p[:, 0]), step=0)
    assert not ax.collections


def test_zero_is_the_middle_of_the_colours_whatever_the_values(ax):
    section = plots.slice_values(lambda p: p[:, 0] + 10)
    assert plots.draw_slice(ax, section).norm(0.0) == 0.5
    assert plots.draw_map(ax, section.values).norm(0.0) == 0.5


def test_map_colours_are_even_and_symmetric_in_lightness():
    from skimage.color import rgb2lab

    lab = rgb2lab(colormaps[plots.MAP_COLORS](np.linspace(0, 1, 101))[None, :, :3])[0]
    lightness, steps = lab[:, 0], np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert np.abs(lightness - lightness[::-1]).max() < 2
    assert (np.diff(lightness[:51]) > 0).all()
    assert steps.std() < 0.25 * steps.mean()
    assert lightness[50] < 90  # zero is not the white of the background


def test_background_neither_shows_nor_sets_a_map_s_range(ax):
    values, mask = np.full((4, 4), 100.0), np.zeros((4, 4), dtype=bool)
    mask[1:3, 1:3], values[1:3, 1:3] = True, [[-2, 1], [0, 1]]
    artist = plots.draw_map(ax, torch.tensor(values), torch.tensor(mask))
    assert artist.norm.vmin == -2 and artist.norm.vmax == 2
    assert (artist.get_array().mask == ~mask).all()


def test_an_empty_map_is_drawn(ax):
    plots.draw_map(ax, np.ones((4, 4)), np.zeros((4, 4), dtype=bool))


def test_normals_toward_right_top_and_camera_are_red_green_and_blue():
    normals = np.zeros((3, 1, 4))
    normals[:, 0, :3] = [[1, 0, 0], [0, -1, 0], [0, 0, -1]]  # one pixel each
    colors = plots.normal_colors(normals)[:, 0]
    expected = [[1, 0.5, 0.5, 1], [0.5, 1, 0.5, 1], [0.5, 0.5, 1, 1]]
    assert np.allclose(colors, expected)  # the last one is background


def test_a_shaded_ball_is_brightest_toward_the_light_and_white_outside():
    ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
    image = plots.shade(ball, Camera(20, 30, 1.0, 64))
    assert image.shape == (3, 64, 64) and (image[:, 0, 0] == 1).all()
    middle = image[0, 32, 32]
    assert image[0, 22, 22] > middle > image[0, 42, 42]


def test_shading_shows_relief_on_a_face_seen_head_on():
    plain = trimesh.creation.box(extents=(0.6, 0.6, 0.2)).subdivide_to_size(0.02)
    waved = plain.copy()
    waved.vertices[:, 2] += 0.003 * np.sin(60 * waved.vertices[:, 0])  # slope 10°
    spread = [
        np.std(plots.shade(mesh, Camera(0, 0, 1.0, 64))[0, 28:36, 20:44])
        for mesh in (plain, waved)
    ]
    assert spread[0] < 0.002 and spread[1] > 0.03


def test_a_missing_mesh_is_said_in_words(ax):
    assert plots.draw_mesh(ax, None, Camera(0, 0, 1.0, 32)).get_text() == "no surface"


def test_a_grid_has_a_place_for_every_picture_and_gap():
    pictures = [[np.zeros((3, 8, 8)), None], [np.ones((8, 8)), torch.ones(3, 8, 8)]]
    figure = plots.image_grid(pictures, ["a", "b"], ["first", "second"])
    assert [len(ax.images) for ax in figure.axes] == [1, 0, 1, 1]
    assert [ax.get_title() for ax in figure.axes] == ["a", "b", "", ""]
    assert [ax.get_ylabel() for ax in figure.axes] == ["first", "", "second", ""]
    plt.close(figure)


def test_curves_average_the_records_around_each_step(ax):
    values = 2.0 ** np.array([0, 3, 0, 6, 0, 0, 0, 0, 2, 4])
    records = [{"step": k, "loss": v, "none": 0.0} for k, v in enumerate(values)]
    (line,) = plots.draw_curves(ax, records, ("loss", "none"), window=3)
    # A quarter of ten are two: one on either side, and what is there at the ends.
    powers = [3 / 2, 1, 3, 2, 2, 0, 0, 2 / 3, 2, 3]
    assert np.allclose(line.get_xdata(), np.arange(10))
    assert np.allclose(np.log2(line.get_ydata()), powers)
    (line,) = plots.draw_curves(ax, records[:3], ("loss",))  # too short for a mean
    assert np.allclose(line.get_ydata(), values[:3])


def test_the_mean_of_a_falling_loss_lies_among_its_records(ax):
    losses = 0.8 ** np.arange(60)
    records = [{"step": k, "loss": value} for k, value in enumerate(losses)]
    (line,) = plots.draw_curves(ax, records, ("loss",), window=10)
    for k, mean in enumerate(line.get_ydata()):
        near = losses[max(0, k - 5) : k + 6]
        assert near.min() < mean < near.max()
    assert line.get_ydata()[0] < losses[0]


def test_a_term_that_came_later_has_a_curve_from_there(ax):
    records = [{"step": k} | ({"relief": 2.0} if k > 5 else {}) for k in range(1, 11)]
    (line,) = plots.draw_curves(ax, records, ("relief",), window=2)
    steps, values = line.get_xydata().T
    assert steps[np.isfinite(values)].tolist() == [6, 7, 8, 9, 10]
    assert np.allclose(values[-5:], 2)


def test_an_unknown_axis_is_refused():
    with pytest.raises(ValueError, match='axis must be "x", "y" or "z"'):
        plots.slice_values(sphere(), "depth")


def test_a_field_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"must give \(16,\), got \(16, 3\)"):
        plots.slice_values(lambda p: p, resolution=4)


CAMERA = Camera(0, 0, 0.7, 64)  # 1.225 in front of the origin


def decomposed():
    """A ball of radius 0.4 over a base of 0.35, and the displacement between."""
    fields = sphere(0.4), sphere(0.35), lambda p: 0 * p[:, 0] - 0.05
    return plots.decompose(fields, CAMERA, 32, resolution=80)


def test_the_front_surface_of_a_ball_is_where_rays_enter_it():
    for front, radius in zip(decomposed().fronts, (0.4, 0.35), strict=True):
        x, depth = front[np.isfinite(front).all(1)].T
        assert np.allclose(np.hypot(x, depth - 1.225), radius, atol=2e-3)
        assert (depth < 1.225).all() and len(x) > 20


def test_along_the_coarse_front_the_shape_is_what_the_displacement_gives():
    values = decomposed().values
    assert np.allclose(values[1], 0, atol=2e-3)
    assert np.allclose(values[0], values[2], atol=2e-3)


def test_laplacians_along_a_ball_are_two_over_its_radius():
    laplacians = decomposed().laplacians
    assert np.allclose(laplacians[:2], 2 / 0.35, rtol=0.02)
    assert np.allclose(laplacians[2], 0, atol=1e-2)


def test_a_displacement_has_one_value_along_each_line_of_sight():
    def of_pixel(p):
        return CAMERA.project(p)[0][:, 0]  # uv's x: a map with a ramp

    parts = plots.decompose((sphere(), sphere(), of_pixel), CAMERA, 32, resolution=80)
    values, (left, right, low, high), _ = parts.sections[2]
    depth = low + (high - low) * (np.arange(80) + 0.5) / 80
    x = left + (right - left) * (np.arange(80) + 0.5) / 80
    expected = x * CAMERA.focal / depth[:, None] * 2 / CAMERA.size
    assert np.allclose(values, expected, atol=1e-4)


@pytest.mark.parametrize("empty", [False, True])
def test_the_figure_has_its_five_panels_even_where_nothing_is_hit(empty):
    field = (lambda p: 1 + 0 * p[:, 0]) if empty else sphere()
    parts = plots.decompose((field,) * 3, CAMERA, 32, resolution=20)
    figure = plt.figure(figsize=(10, 5), layout="constrained")
    axes = plots.draw_decomposition(figure, parts)
    figure.canvas.draw()
    assert [*axes] == [*"abcde"] and all(axes[name].get_title() for name in axes)
    plt.close(figure)


def test_paint_colours_a_surface_by_the_field_at_it():
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    image = plots.shade(ball, Camera(0, 0, 1.0, 64), lambda p: p[:, 0])
    red, blue = image[0] - image[2] > 0.1, image[2] - image[0] > 0.1
    assert red[:, :30].any() and not red[:, 34:].any()  # negative x: matter
    assert blue[:, 34:].any() and not blue[:, :30].any()


def test_pictures_of_a_sheet_are_cut_to_one_window_of_what_they_show():
    white, grey = np.ones((3, 100, 100)), np.zeros((50, 50))
    white[:, 40:60, 20:30] = 0.5
    grey[35, 40] = 1.0
    figure = plots.image_grid([[white, None, grey, np.ones((3, 8, 8))]])
    shown = [figure.axes[k] for k in (0, 2, 3)]
    for ax, side in zip(shown, (100, 50, 8), strict=True):
        window = (np.array([ax.get_xlim(), ax.get_ylim()[::-1]]) + 0.5) / side
        assert np.allclose(window, [[0.17, 0.84], [0.37, 0.74]])  # x, then y
    plt.close(figure)


def test_names_beside_pictures_are_no_formulas():
    figure = plots.image_grid([[np.zeros((4, 4))]], [r"$\frac$"], ["a$b$_$"])
    figure.canvas.draw()
    assert figure.axes[0].get_title() == r"$\frac$"
    plt.close(figure)
