from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from d2im.camera import Camera
from d2im.fields import sphere
from d2im.use.overlay import (
    OUTLINE,
    SCALE,
    SIDE,
    VIEWS,
    export_turntable,
    overlay,
    strip,
    turned,
    write_sheet,
)
from d2im.use.reconstruction import Reconstruction

CAMERA = Camera(20, 10, 0.9, 64)


@pytest.fixture(scope="module")
def ball():
    """A ball on a grey picture, its relief outward at the left, inward at the right."""
    maps = torch.zeros(2, 64, 64)
    maps[0, :, :32], maps[0, :, 32:] = -0.01, 0.01
    mesh = trimesh.creation.icosphere(4, 0.4)
    image = torch.full((3, 64, 64), 0.5)
    known = {"image": image, "mesh": mesh, "base_mesh": None}
    return Reconstruction(maps, CAMERA, sphere(0.4), sphere(0.4), **known)


def test_the_outline_lies_on_the_meshs_silhouette(ball):
    pixels = np.asarray(overlay(ball)).astype(int)
    assert pixels.shape == (64 * SCALE, 64 * SCALE, 3)
    row, column = np.nonzero((pixels == OUTLINE).all(-1))
    found = np.hypot(row + 0.5 - 64, column + 0.5 - 64)
    distance = np.linalg.norm(CAMERA.translation)
    expected = CAMERA.focal * SCALE * np.tan(np.arcsin(0.4 / distance))
    assert len(found) > 200 and np.abs(found - expected).max() < 2


def test_an_overlay_shows_what_the_export_keeps(ball):
    speck = trimesh.creation.icosphere(1, 0.03).apply_translation((0, 0.48, 0))
    found = replace(ball, mesh=ball.mesh + speck)
    row, column = (
        ((CAMERA.project(speck.centroid[None])[0][0] + 1) * 64)[::-1]
    ).astype(int)
    there = np.s_[row - 8 : row + 2, column - 8 : column + 8]
    for keep, shown in (("large", False), ("all", True)):
        pixels = np.asarray(overlay(found, keep))[there]
        assert (pixels == OUTLINE).all(-1).any() == shown


def test_outward_relief_is_red_and_inward_blue(ball):
    pixels = np.asarray(overlay(ball)).astype(int)[64]
    left, right = pixels[50], pixels[78]
    assert left[0] > left[2] + 40 and right[2] > right[0] + 40
    assert abs(pixels[2] - 127).max() < 3  # beside the object


def test_a_mesh_turned_shows_its_colours_from_there(ball):
    red = np.zeros((len(ball.mesh.vertices), 3))
    red[ball.mesh.vertices[:, 0] > 0] = (1, 0, 0)
    right, left = turned(ball.mesh, [Camera(a, 0, 1, 32) for a in (90, -90)], red)
    assert np.asarray(right)[16, 16, 0] > 150 and np.asarray(left)[16, 16, 0] < 20


def test_a_turntable_has_all_views(ball, tmp_path):
    knob = trimesh.creation.icosphere(2, 0.2).apply_translation((0.3, 0.1, 0.1))
    solid = trimesh.creation.box((0.6, 0.3, 0.2)) + knob  # no two views alike
    export_turntable(replace(ball, mesh=solid), tmp_path / "a.gif", "all")
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames == VIEWS and file.size == (SIDE, SIDE)
        shots = []
        for k in range(VIEWS):
            file.seek(k)
            shots.append(np.asarray(file.convert("RGB"), dtype=float))
    first, *_, last = (np.abs(shot - shots[0]).mean() for shot in shots)
    opposite = np.abs(shots[VIEWS // 2] - shots[0]).mean()
    assert first == 0 < last < opposite  # once around


def test_a_sheet_shows_what_was_made_and_runs_nothing(ball, tmp_path):
    rows = [("<b>chair</b>", "said & done", strip(ball)), ("bad.png", "failed", None)]
    write_sheet(tmp_path / "index.html", rows)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;chair" in page and "<b>" not in page and "said &amp; done" in page
    assert page.count("<img ") == 1 and "bad.png" in page
    assert "default-src 'none'" in page and "<script" not in page
