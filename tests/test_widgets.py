import base64
import io
import json
import subprocess
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import trimesh
from bs4 import BeautifulSoup
from PIL import Image

from d2im import plots, widgets
from d2im.camera import Camera
from d2im.fields import box, sphere

CAMERA = Camera(30, 20, 1.0, 32)
SIDE = 64


@pytest.fixture(scope="module")
def volumes():
    """A ball of radius 0.4 as the shape, of 0.35 as its base."""
    return [plots.grid_values(sphere(radius), SIDE) for radius in (0.4, 0.35)]


@pytest.fixture
def field(volumes):
    return widgets.field_explorer(*volumes, CAMERA)


@pytest.fixture
def displacing(volumes):
    maps = np.full((2, 32, 32), -0.05)
    return widgets.displacement_explorer(*volumes, maps, CAMERA)


def test_importing_widgets_does_not_import_torch():
    code = "import sys, d2im.widgets; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_volumes_are_read_z_y_x_at_cell_centres():
    volume = plots.grid_values(lambda p: p @ torch.tensor([1.0, 10.0, 100.0]), 4)
    line = 1.1 * (np.arange(4) + 0.5) / 4 - 0.55
    expected = 100 * line[:, None, None] + 10 * line[:, None] + line
    assert np.allclose(volume, expected, atol=1e-4)


def test_an_iso_surface_meets_the_slice_of_its_field():
    """k3d puts a surface's outer samples on its bounds, a slice's half a cell in."""
    explorer = widgets.field_explorer(*[plots.grid_values(box(), 16)] * 2, CAMERA)
    cell = 1.1 / 16
    surface, plane = (
        np.array(explorer.objects[name].model_matrix) for name in ("final", "slice")
    )
    assert np.allclose(np.diag(surface)[:3], 1.1 - cell)
    sides = np.diag(plane)[:3]
    assert np.allclose(sides / cell, np.round(sides / cell))  # whole cells about it
    assert (sides >= 0.6).all() and (sides <= 0.6 + 2 * (widgets.AROUND + cell)).all()
    assert np.allclose(plane[:3, 3], 0)


def test_sliders_move_traits_of_the_same_objects(field):
    before = dict(field.objects)
    field.controls["level"].value = 0.02
    field.controls["across"].value = "x"
    field.controls["at"].value = 0.1
    field.controls["surface"].value = "both"
    final, base, plane = (field.objects[n] for n in ("final", "base", "slice"))
    cell, sides = 1.1 / SIDE, np.diag(np.array(plane.model_matrix))[:3]
    assert final.level == base.level == 0.02 and plane.slice_y == plane.slice_z == -1
    assert abs((plane.slice_x + 0.5) * cell - sides[0] / 2 - 0.1) <= cell / 2
    assert final.visible and base.visible
    field.controls["surface"].value = "base"
    assert base.visible and not final.visible
    assert field.plot.objects == [*before.values()]


def test_the_slice_shows_the_chosen_field(field, volumes):
    field.controls["field"].value = "F - f_B"
    plane = field.objects["slice"]
    assert np.allclose(plane.volume, -0.05, atol=1e-4)
    assert plane.color_range[1] == pytest.approx(0.05, abs=1e-4)


def test_the_slice_of_a_laplacian_is_that_of_a_sphere(field):
    field.controls["field"].value = "Δ (F)"
    volume = field.objects["slice"].volume
    step = 1.1 / SIDE
    half = len(volume) // 2
    index = half, half, half + int(0.4 / step)  # z, y, x
    at = (np.array(index) + 0.5 - half) * step
    assert volume[index] == pytest.approx(2 / np.linalg.norm(at), rel=0.01)


def test_the_shape_is_cut_open_towards_the_viewer(field):
    """The slice hides nothing: n · p + d > 0 stays, and the viewer is not there."""
    for axis, at in (("x", 0.1), ("y", 0.0), ("z", -0.2)):
        field.controls["across"].value, field.controls["at"].value = axis, at
        ((*normal, offset),) = field.plot.clipping_planes
        assert np.dot(normal, CAMERA.position) + offset < 0
        there = np.eye(3)["xyz".index(axis)] * at  # the slice itself stays, just so
        assert 0 < np.dot(normal, there) + offset < 2.2 / SIDE
    field.controls["across"].value = "none"
    assert field.plot.clipping_planes == []
    assert field.objects["slice"].slice_z == -1


def test_the_slices_bar_names_field_range_and_unit(field):
    assert "<b>F</b>, world units" in field.controls["bar"].value
    field.controls["field"].value = "Δ (F)"
    bar, top = field.controls["bar"].value, field.objects["slice"].color_range[1]
    assert "Δ (F)</b>, 1 / world unit" in bar and f"{top:+.3g}" in bar


def test_a_shape_grows_out_of_its_base_with_the_scenes_time():
    ball = trimesh.creation.icosphere(radius=0.4)
    feet, added = 0.5 * ball.vertices, np.full(len(ball.vertices), -0.2)
    plot = widgets.strength_scene(ball, feet, added, CAMERA)
    (shape,) = plot.objects
    radii = [np.linalg.norm(shape.vertices[t], axis=1) for t in ("0.0", "2.0")]
    assert plot.time == 1 and plot.get_time_series_range() == [0, 2]
    assert np.allclose(radii[0], 0.2, atol=1e-4)  # and half-way, at 1, the ball itself
    assert np.allclose(np.mean(radii, axis=0), 0.4, atol=1e-4)
    assert not shape.attribute["0.0"].any()
    assert np.allclose(shape.attribute["2.0"], -0.4, atol=1e-4)


def test_a_page_has_a_slider_where_a_scene_has_a_time(tmp_path):
    ball = trimesh.creation.icosphere(radius=0.4)
    growing = widgets.strength_scene(ball, ball.vertices, ball.vertices[:, 0], CAMERA)
    for plot, count in ((growing, 1), (widgets.mesh_scene(ball, CAMERA), 0)):
        widgets.snapshot(plot, tmp_path / "a.html")
        page = (tmp_path / "a.html").read_text(encoding="utf-8")
        sliders = BeautifulSoup(page, "html.parser").find_all("input")
        assert len(sliders) == count == page.count("K3DInstance.setTime(+")
    assert growing.get_time_series_range() == [0, 2]


def test_the_laplacian_of_a_linear_field_is_nothing_up_to_the_border():
    volume = plots.grid_values(lambda p: p @ torch.tensor([1.0, 2.0, 3.0]), 16)
    explorer = widgets.field_explorer(volume, volume, CAMERA)
    explorer.controls["field"].value = "Δ (F)"
    assert np.abs(explorer.objects["slice"].volume).max() < 0.05


def test_strength_scales_what_the_maps_add(displacing, volumes):
    shape, strength = displacing.objects["shape"], displacing.controls["strength"]
    final, base = volumes
    near = np.abs(base) < 0.05
    for value in (0.0, 0.5, 1.0):
        strength.value = value
        expected = base + value * (final - base)
        assert np.allclose(shape.scalar_field[near], expected[near], atol=1e-4)
        assert np.allclose(shape.attribute[near], -0.05 * value, atol=1e-4)


def test_front_and_back_parts_meet_along_the_viewing_axis(displacing, volumes):
    displacing.controls["part"].value = "front"
    added = displacing.objects["shape"].scalar_field - volumes[1]
    line = 1.1 * (np.arange(SIDE) + 0.5) / SIDE - 0.55
    z, y, x = np.meshgrid(line, line, line, indexing="ij")
    along = np.stack([x, y, z], -1) @ CAMERA.rotation[2]
    near = np.abs(volumes[1]) < 0.04
    assert np.allclose(added[near & (along < -0.05)], -0.05, atol=1e-3)
    assert np.allclose(added[near & (along > 0.05)], 0, atol=1e-3)


def test_a_ray_crosses_the_ball_at_its_two_depths(displacing):
    displacing.controls["strength"].value = 1.0
    points = displacing.objects["crossings"].positions[1:]
    assert np.allclose(np.linalg.norm(points, axis=1), 0.4, atol=2e-3)
    uv, depth = CAMERA.project(points.astype(float))
    chosen = [displacing.controls[n].value + 0.5 for n in ("column", "row")]
    assert np.allclose((uv + 1) * 16, chosen, atol=1e-3) and depth[0] < depth[1]


def test_turning_one_map_up_moves_one_crossing(displacing):
    hits, controls = displacing.objects["crossings"], displacing.controls
    before = hits.positions[1:].copy()
    controls["part"].value = "front"
    first, last = np.linalg.norm(hits.positions[1:], axis=1)
    assert first == pytest.approx(0.4, abs=2e-3)
    assert last == pytest.approx(0.35, abs=2e-3) and len(before) == 2


def test_a_pixel_beside_the_shape_has_no_crossing(displacing):
    displacing.controls["column"].value = displacing.controls["row"].value = 0
    assert len(displacing.objects["crossings"].positions) == 1  # the pixel itself
    assert "none" in displacing.controls["words"].value


def test_a_click_on_the_map_chooses_its_pixel(displacing):
    o, rays = CAMERA.rays()
    content = {"msg_type": "click_callback", "position": list(o[0, 0] + rays[20, 9])}
    displacing.objects["map"]._handle_custom_msg(content, [])
    assert displacing.controls["column"].value == 9
    assert displacing.controls["row"].value == 20


@pytest.mark.parametrize("name", ["level", "at", "strength", "column"])
def test_a_slider_moves_twenty_times_a_second(field, displacing, name):
    explorer = field if name in field.controls else displacing
    slider = explorer.controls[name]
    values = np.linspace(slider.min, slider.max, 20)
    start = time.process_time()
    for value in values:
        slider.value = int(value) if name == "column" else value
        for thing in explorer.objects.values():
            thing.get_state()  # what would go over the wire
    assert len(values) / (time.process_time() - start) > 20


def test_a_picker_holds_its_picture_and_corners_and_takes_another(rng):
    image = rng.integers(0, 256, (3, 8, 8)) / 255
    picker = widgets.CornerPicker(image, np.array([[1, 2], [5, 6]]))
    assert picker.size == 8 and picker.corners == [[1, 2], [5, 6]]
    for shown in (image, torch.tensor(1 - image)):
        picker.draw(shown)
        page = base64.b64decode(picker.picture.removeprefix("data:image/png;base64,"))
        pixels = np.asarray(Image.open(io.BytesIO(page)).convert("RGB")) / 255
        assert np.allclose(pixels, np.moveaxis(np.asarray(shown), 0, -1), atol=0.004)


def test_a_mesh_is_sharp_at_its_creases():
    (thing,) = widgets.mesh_scene(trimesh.creation.box(), CAMERA).objects
    assert len(thing.vertices) == 24  # eight corners, three normals at each
    corners = thing.vertices[thing.indices]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    assert np.allclose(thing.normals[thing.indices], flat[:, None], atol=1e-5)


def test_a_scene_is_seen_as_the_camera_sees_it():
    plot = widgets.mesh_scene(trimesh.creation.box(), CAMERA)
    position, target, up = np.reshape(plot.camera, (3, 3))
    forward = (target - position) / np.linalg.norm(target - position)
    assert np.allclose(forward, CAMERA.rotation[2])
    assert np.allclose(np.cross(forward, up), CAMERA.rotation[0])
    edge = np.tan(np.radians(plot.camera_fov) / 2)
    assert edge == pytest.approx(CAMERA.size / 2 / CAMERA.focal)


def test_show_puts_widget_and_picture_into_one_output(monkeypatch, field):
    shown = []
    monkeypatch.setattr(widgets, "display", lambda data, raw: shown.append(data))
    figure = plt.figure()
    widgets.show(field.view, figure)
    (bundle,) = shown
    live = bundle["application/vnd.jupyter.widget-view+json"]
    assert live["model_id"] == field.view.model_id
    assert base64.b64decode(bundle["image/png"])[:4] == b"\x89PNG"
    assert json.dumps(bundle) and not plt.fignum_exists(figure.number)


def test_snapshots_hold_the_scene_in_one_and_a_half_megabytes(tmp_path, displacing):
    path = tmp_path / "scene.html"
    widgets.snapshot(displacing.plot, path)
    page = path.read_text()
    assert 1e6 < len(page) < 1.5e6 and "[DATA]" not in page
    assert [p.name for p in tmp_path.iterdir()] == ["scene.html"]


def test_a_snapshots_page_has_words_language_viewport_and_a_still(tmp_path):
    scene = widgets.mesh_scene(trimesh.creation.box(), CAMERA)
    figure = plt.figure(figsize=(1, 1))
    plt.close(figure)
    path = tmp_path / "scene.html"
    widgets.snapshot(scene, path, "A <box>", "Turn it.", figure)
    page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    assert page.html["lang"] == "en" and page.title.text == "A <box>"
    assert page.find("meta", {"name": "viewport"}) and page.box is None
    assert page.body.p.text == "A <box>. Turn it."
    picture, target = page.main.find_all(recursive=False)  # the scene covers the still
    assert picture["alt"] == "A <box>" and target["id"] == "canvasTarget"
    data = base64.b64decode(picture["src"].partition("base64,")[2])
    assert data[:3] == b"\xff\xd8\xff" and len(data) < 40_000
    assert not scene.menu_visibility


def test_a_page_names_its_colours_once_and_takes_a_dark_theme(
    tmp_path, field, displacing
):
    field.controls["field"].value = "Δ (F)"
    titles = "Δ (F), 1 / world unit", "f_D, world units"
    for explorer, title in zip((field, displacing), titles, strict=True):
        widgets.snapshot(explorer.plot, tmp_path / "scene.html")
        text = (tmp_path / "scene.html").read_text(encoding="utf-8")
        page = BeautifulSoup(text, "html.parser")
        (bar,) = page.find_all(class_="bar")
        assert bar.text.startswith(title)
        assert explorer.plot.colorbar_object_id == 0  # k3d's own has no title
        assert "prefers-color-scheme: dark" in page.style.text
        assert "K3DInstance.setClearColor(0x2b2b2f)" in text  # the scene, too


def test_too_large_a_snapshot_is_refused_and_not_written(tmp_path, rng):
    noise = rng.uniform(-0.1, 0.1, (SIDE, SIDE, SIDE))
    explorer = widgets.field_explorer(noise, noise, CAMERA)
    with pytest.raises(ValueError, match=r"would have \d\.\d+ of 1.5 MB: give coarser"):
        widgets.snapshot(explorer.plot, tmp_path / "scene.html")
    assert not list(tmp_path.iterdir())
