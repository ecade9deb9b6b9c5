"""Edits change what they should and nothing else; true relief arrives in the mesh."""

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from d2im import editing
from d2im.camera import Camera
from d2im.fields import box, displaced_field, sphere
from d2im.use.reconstruction import Prediction, triangulate

CAMERA = Camera(0, 0, 1, 96)
SQUARE = [(30, 30), (66, 30), (66, 66), (30, 66)]


def bump(amplitude=-0.03, x=48, y=48, width=8):
    """A round hill on the front map; negative values move the surface outward."""
    v, u = np.mgrid[:96, :96] + 0.5
    hill = amplitude * np.exp(-((u - x) ** 2 + (v - y) ** 2) / (2 * width**2))
    return torch.tensor(np.stack([hill, 0 * hill]), dtype=torch.float32)


def prediction(base=None, displacement=None):
    base = base or box((0.35, 0.35, 0.1))
    maps = bump() if displacement is None else displacement
    # Analytic boxes have no forward-mode derivative at their edges: a step instead.
    way = "finite_difference"
    field = displaced_field(base, maps, CAMERA, way)
    return Prediction(maps, CAMERA, base, field, torch.ones(3, 96, 96), way=way)


def front_height(mesh, x, y):
    """World z of the front face at a pixel, from the mesh's vertices near its ray."""
    points = mesh.vertices[mesh.vertices[:, 2] > 0.05]
    uv, _ = CAMERA.project(points)
    pixels = (uv + 1) * 48
    near = np.argsort(np.linalg.norm(pixels - [x, y], axis=1))[:5]
    return points[near, 2].mean()


def test_strength_0_gives_the_base_mesh():
    found = triangulate(editing.scale_detail(prediction(), 0.0), 64)
    base = triangulate(prediction(), 64).base_mesh
    assert np.array_equal(found.mesh.vertices, base.vertices)
    assert np.array_equal(found.mesh.faces, base.faces)


def test_strength_1_is_the_prediction_and_minus_1_turns_a_bump_into_a_dent():
    heights = {}
    for strength in (-1, 0, 1, 2):
        edited = editing.scale_detail(prediction(), strength)
        heights[strength] = front_height(triangulate(edited, 96).mesh, 48, 48)
    as_predicted = triangulate(prediction(), 96).mesh
    assert heights[1] == front_height(as_predicted, 48, 48)
    rise = [heights[s] - heights[0] for s in (-1, 1, 2)]
    assert rise == pytest.approx([-0.03, 0.03, 0.06], abs=0.004)


def test_a_map_transferred_onto_its_own_base_changes_nothing():
    found = prediction()
    moved = editing.transfer_detail(found, found, SQUARE)
    assert torch.allclose(moved.displacement, found.displacement, atol=1e-7)
    points = torch.rand(500, 3) - 0.5
    assert torch.allclose(moved.sdf(points), found.sdf(points), atol=1e-6)


def test_a_patch_pasted_onto_itself_changes_nothing():
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    same = editing.paste(image, image, (30, 30, 66, 66), SQUARE)
    assert torch.allclose(same, image, atol=1e-5)


def test_a_pasted_rectangle_lies_where_its_corners_say():
    image = torch.ones(3, 96, 96)
    ramp = torch.linspace(0, 1, 96).expand(3, 96, 96)
    pasted = editing.paste(ramp, image, (0, 0, 96, 96), SQUARE)
    assert pasted[0, 48, 48] == pytest.approx(ramp[0, 48, 48].item(), abs=0.02)
    assert pasted[0, 48, 36] == pytest.approx(16.5 / 96, abs=0.02)  # 6.5 of 36 px in
    outside = torch.ones(96, 96, dtype=torch.bool)
    outside[30:66, 30:66] = False
    assert (pasted[:, outside] == 1).all()


def test_a_pasted_pixel_is_what_the_source_has_at_its_centre():
    centres = (torch.arange(96) + 0.5).expand(1, 96, 96)
    pasted = editing.paste(centres, torch.zeros(1, 96, 96), (0, 0, 96, 96), SQUARE)
    inner = torch.arange(34, 62)  # of 36 px, away from the border
    assert torch.allclose(pasted[0, 48, inner], (inner + 0.5 - 30) * 96 / 36, atol=1e-3)


def test_a_patch_is_blended_at_its_border():
    pasted = editing.paste(
        torch.zeros(3, 96, 96), torch.ones(3, 96, 96), (0, 0, 96, 96), SQUARE
    )
    assert pasted[0, 48, 48] == 0
    steps = pasted[0, 48, 29:48].diff().abs()
    assert 0.2 < steps.max() < 0.75


def test_a_patchs_weight_begins_and_ends_its_rise_without_a_kink():
    empty, full = torch.zeros(1, 400, 400), torch.ones(1, 400, 400)
    corners = [(0, 0), (400, 0), (400, 400), (0, 400)]  # a border of 32 px
    weight = editing.blend(full, corners, empty, corners)[0, 200, :33]
    slope = 32 * weight.diff()  # 1 everywhere on a straight ramp
    assert slope[0] < 0.25 and slope[-2] < 0.25
    assert weight[0] < 0.01 and weight[-1] == 1 and slope.max() < 1.6


@pytest.mark.parametrize("place", [(48, 48), (36, 60)])
def test_a_relief_transferred_to_a_flat_front_shows_in_the_mesh(place):
    flat = prediction(displacement=torch.zeros(2, 96, 96))
    x, y = place
    corners = [(x - 14, y - 14), (x + 14, y - 14), (x + 14, y + 14), (x - 14, y + 14)]
    ball = prediction(sphere(0.4))  # the relief comes from another object
    edited = triangulate(editing.transfer_detail(ball, flat, SQUARE, corners), 96)
    rise = front_height(edited.mesh, x, y) - front_height(edited.base_mesh, x, y)
    assert 0.5 * 0.03 <= rise <= 1.1 * 0.03
    away = front_height(edited.mesh, 66, 36) - front_height(edited.base_mesh, 66, 36)
    assert abs(away) < 1e-3


def test_true_relief_of_a_cabinet_arrives_on_another_one(monkeypatch, capsys):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(folder)  # as for a script
    benchmark = runpy.run_path(folder / "pasting.py")
    arguments = ["pasting.py", "--seeds", "10100", "10101", "--resolution", "96"]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark["main"]()
    least = re.search(r"true fields .* least ([-.\d]+)", capsys.readouterr().out)[1]
    assert 0.5 <= float(least) <= 1.1  # of the amplitude


def test_a_homography_takes_corners_to_corners(rng):
    corners = np.array(SQUARE) + rng.uniform(-8, 8, (4, 2))
    assert np.allclose(editing.homography(SQUARE, corners)(SQUARE), corners)


@pytest.mark.parametrize(
    "corners",
    [
        SQUARE[:3],
        SQUARE[::-1],
        [*SQUARE[:3], SQUARE[0]],
        [(0, 0), (9, 0), (2, 2), (0, 9)],
    ],
)
def test_corners_that_are_no_convex_quadrilateral_are_refused(corners):
    with pytest.raises(ValueError, match="convex quadrilateral"):
        editing.transfer_detail(prediction(), prediction(), corners)


def test_a_rectangle_outside_the_picture_is_refused():
    image = torch.ones(3, 96, 96)
    with pytest.raises(ValueError, match="within 96 x 96 px"):
        editing.paste(image, image, (50, 50, 120, 90), SQUARE)


def test_paste_and_reconstruct_shows_the_model_the_pasted_picture(tiny_model):
    tiny_model.eval()
    source, target = torch.zeros(3, 32, 32), torch.ones(3, 32, 32)
    corners = [(8, 8), (24, 8), (24, 24), (8, 24)]
    camera = Camera(20, 10, 1, 32)
    found = editing.paste_and_reconstruct(
        tiny_model, source, target, (0, 0, 32, 32), corners, camera, 32
    )
    pasted = editing.paste(source, target, (0, 0, 32, 32), corners)
    assert torch.equal(found.image, pasted)
    assert len(found.mesh.faces) > 100


def test_a_paste_is_framed_for_the_distance_that_is_said(tiny_model, tmp_path):
    tiny_model.eval()
    for name, color in {"a": (200, 0, 0, 255), "b": (0, 0, 200, 255)}.items():
        image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
        image.paste(Image.new("RGBA", (30, 30), color), (17, 17))
        image.save(tmp_path / f"{name}.png")
    pictures = tmp_path / "a.png", tmp_path / "b.png"
    camera, covers = Camera(20, 10, 1, 32), []
    place = (12, 12, 20, 20), [(12, 12), (20, 12), (20, 20), (12, 20)]
    for ratio in (0.7, 1.4):
        seen = dict(camera=camera, resolution=24, framed_for=Camera(20, 10, ratio, 32))
        made = editing.paste_and_reconstruct(tiny_model, *pictures, *place, **seen)
        covers.append((made.image < 0.99).any(0).float().mean().item())
    assert covers[0] > 2 * covers[1]
