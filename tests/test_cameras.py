import numpy as np
import pytest
import torch
import trimesh

from d2im.camera import Camera
from d2im.data.rendering import Renderer
from d2im.data.shapes import make_shape
from d2im.use.cameras import fit_camera, inner_edges, rivals, turn_between
from d2im.use.pictures import load_framed

CAMERA = Camera(35, 20, 0.9, 224)


@pytest.fixture(scope="module")
def chair():
    mesh = make_shape("chair", 900).detailed
    return mesh, Renderer(mesh).view(CAMERA, np.random.default_rng(0))


def with_alpha(view):
    pixels = np.moveaxis(view.image, 0, 2) * 255
    return np.dstack([pixels, 255 * view.mask]).astype(np.uint8)


def test_a_known_meshs_camera_is_found_within_a_degree(chair):
    mesh, view = chair
    best = fit_camera(mesh, view.image)[0]
    assert turn_between(best.camera, CAMERA) < 1
    assert np.abs(best.camera.position - CAMERA.position).max() < 0.03
    assert best.iou > 0.97 and best.error < 0.005


def test_a_longer_lens_is_told_where_it_is_free(chair):
    mesh, _ = chair
    longer = 1.5 * CAMERA.focal
    pose = CAMERA.rotation, 1.5 * CAMERA.translation
    camera = Camera.from_matrices(*pose, longer, CAMERA.centre, 224)
    view = Renderer(mesh).view(camera, np.random.default_rng(0))
    found = fit_camera(mesh, view.image, focal="free", guess=CAMERA)[0].camera
    known = fit_camera(mesh, view.image, guess=CAMERA)[0].camera
    assert known.focal == CAMERA.focal and found.focal > 1.1 * known.focal
    assert turn_between(found, camera) < 2


def test_a_guess_a_few_degrees_off_is_mended(chair):
    mesh, view = chair
    guess = Camera(41, 14, 0.95, 64)
    (fit,) = fit_camera(mesh, with_alpha(view), framed=True, guess=guess)
    assert turn_between(fit.camera, CAMERA) < 1 and fit.camera.size == 224


def test_an_object_that_looks_alike_from_behind_has_rivals():
    bench = trimesh.creation.box((0.8, 0.3, 0.4))
    camera = Camera(30, 25, 0.9, 224)
    view = Renderer(bench).view(camera, np.random.default_rng(0))
    fits = rivals(fit_camera(bench, view.image))
    turns = sorted(turn_between(fit.camera, camera) for fit in fits)
    assert turns[0] < 1 and 175 < turns[-1]
    assert turn_between(fits[0].camera, camera) < 1  # from its front, as mostly


def test_a_focal_length_is_known_or_free(chair):
    with pytest.raises(ValueError, match="known.*free"):
        fit_camera(chair[0], chair[1].image, focal="long")


def test_a_mask_has_the_pictures_size(chair):
    with pytest.raises(ValueError, match=r"mask must be \(64, 64\), got \(224, 224\)"):
        fit_camera(chair[0], chair[1].image, mask=chair[1].mask, size=64)


def test_a_picture_without_an_outline_has_no_camera(chair):
    with pytest.raises(ValueError, match="no outline"):
        fit_camera(chair[0], torch.ones(3, 64, 64))


@pytest.mark.parametrize(("count", "said"), [(0, "mask is empty"), (1, "covers 1 ")])
def test_a_mask_of_nothing_has_no_camera(chair, count, said):
    mask = np.zeros((224, 224), dtype=bool)
    mask[30, 30 : 30 + count] = True
    with pytest.raises(ValueError, match=said):
        fit_camera(chair[0], torch.ones(3, 64, 64), mask=mask)


def test_inner_edges_are_creases_and_steps_of_depth():
    mask = np.ones((4, 6), dtype=bool)
    depth, normals = np.ones((4, 6)), np.zeros((4, 6, 3))
    normals[..., 2] = 1
    assert not inner_edges(mask, depth, normals).any()
    depth[:, 2:] = 2.0
    normals[2:] = (1, 0, 0)
    found = np.zeros((4, 6), dtype=bool)
    found[:, 1] = found[1] = True
    assert np.array_equal(inner_edges(mask, depth, normals), found)


def test_a_framed_pictures_mask_is_that_of_its_rendering(chair):
    _, view = chair
    for picture in (view.image, with_alpha(view)):
        mask = load_framed(picture, 224, framed=True)[1].numpy()
        assert (mask & view.mask).sum() / (mask | view.mask).sum() > 0.97
    assert load_framed(np.ones((3, 32, 32), "f4"), 32)[1].all()
