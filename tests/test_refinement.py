import json
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from d2im.__main__ import main
from d2im.camera import Camera
from d2im.data.rendering import Renderer
from d2im.data.shapes import make_shape
from d2im.fields import displaced_field, sphere
from d2im.networks import D2IMNet
from d2im.sampling import signed_distance
from d2im.use.cameras import turn_between
from d2im.use.export import SMALL_OWN, read_camera, small_share
from d2im.use.overlay import overlay
from d2im.use.reconstruction import MODEL
from d2im.use.refinement import (
    FAINT,
    RefineOptions,
    as_field,
    mesh_field,
    refine,
    seen_field,
    visible_weight,
)

CAMERA = Camera(0, 0, 0.9, 32)
FRAMED = RefineOptions(framed=True, resolution=64)


@pytest.fixture
def outward(tiny_model):
    """A model whose front map is -0.05 everywhere and its back map 0.03."""
    out = tiny_model.displacement_decoder.out
    with torch.no_grad():
        out.weight.zero_()
        out.bias.copy_(torch.tensor([-0.5, 0.3]))
    return tiny_model.eval()


def picture_of(mesh, camera=CAMERA):
    return Renderer(mesh).view(camera, np.random.default_rng(0)).image


def test_the_relief_moves_what_is_seen_and_leaves_the_back(outward):
    ball = trimesh.creation.icosphere(4, 0.3)
    found = refine(outward, sphere(0.3), picture_of(ball), CAMERA, options=FRAMED)
    x, y, z = found.mesh.vertices.T
    middle = np.hypot(x, y) < 0.1
    front = np.linalg.norm(found.mesh.vertices, axis=1)[middle & (z > 0)]
    assert np.allclose(front, 0.3 + 0.05 - FAINT, atol=0.003)
    back = np.linalg.norm(found.mesh.vertices, axis=1)[z < -0.02]
    assert np.allclose(back, 0.3, atol=0.003)
    assert found.mesh.is_watertight and found.camera is CAMERA
    assert found.to_world is None  # a field is of the world's frame
    assert small_share(found) == SMALL_OWN


def test_the_models_back_is_taken_where_it_is_asked_for(outward):
    ball = picture_of(trimesh.creation.icosphere(4, 0.3))
    options = RefineOptions(framed=True, resolution=48, back="model")
    found = refine(outward, sphere(0.3), ball, CAMERA, options=options)
    assert found.mesh.bounds[0, 2] == pytest.approx(-0.3 + 0.03 - FAINT, abs=0.003)
    back = found.displacement[1]
    assert (~found.mask).any()
    assert not back[~found.mask].any() and back.max() == pytest.approx(0.03 - FAINT)


def test_a_result_writes_its_overlay_and_camera(outward, tmp_path):
    ball = picture_of(trimesh.creation.icosphere(4, 0.3))
    found = refine(outward, sphere(0.3), ball, CAMERA, options=FRAMED)
    found.export_overlay(tmp_path / "over.png")
    found.export_camera(tmp_path / "camera.json")
    with Image.open(tmp_path / "over.png") as file:
        assert np.array_equal(np.asarray(file), np.asarray(overlay(found)))
    again, _ = read_camera(tmp_path / "camera.json", CAMERA.size)
    assert np.allclose(again.pose, CAMERA.pose, atol=1e-4)


def test_strength_scales_the_relief_and_none_is_the_body(outward):
    ball = picture_of(trimesh.creation.icosphere(4, 0.3))
    none, half = (
        refine(outward, sphere(0.3), ball, CAMERA, strength, FRAMED)
        for strength in (0.0, 0.5)
    )
    assert np.array_equal(none.mesh.vertices, none.base_mesh.vertices)
    assert half.mesh.bounds[1, 2] == pytest.approx(0.3 + 0.0245, abs=0.003)


def test_a_surface_behind_what_is_seen_gets_no_relief():
    near = trimesh.creation.box((0.5, 0.5, 0.05)).apply_translation((0, 0, 0.2))
    far = trimesh.creation.box((0.5, 0.5, 0.05)).apply_translation((0, 0, -0.2))
    both = near + far
    weight, depth = visible_weight(both, CAMERA, np.ones((32, 32), dtype=bool))
    base = seen_field(mesh_field(both), CAMERA, depth)
    maps = torch.full((2, 32, 32), -0.02)
    maps[1] = 0
    sdf = displaced_field(base, maps, CAMERA, "own")
    points = torch.tensor([[0, 0, 0.23], [0, 0, -0.17], [0, 0, 0.17]])
    assert torch.allclose(sdf(points), torch.tensor([-0.015, 0.005, 0.005]), atol=1e-6)


def test_the_map_counts_nothing_at_outlines_and_steps_and_where_it_is_turned_away():
    low = trimesh.creation.box((0.8, 0.6, 0.1))
    high = trimesh.creation.box((0.3, 0.6, 0.1)).apply_translation((0, 0, 0.2))
    camera = CAMERA.resized(112)
    mask = np.ones((112, 112), dtype=bool)
    weight, depth = visible_weight(low + high, camera, mask)
    row = weight[56]
    seen = np.flatnonzero(depth[56])
    edge = np.flatnonzero(np.abs(np.diff(depth[56])) > 0.1)
    assert (row[[seen[0], seen[-1], *edge, *edge + 1]] == 0).all() and row[56] == 1
    mask[:, :60] = False
    assert visible_weight(low + high, camera, mask)[0][56, :60].max() == 0
    plate, every = trimesh.creation.box((0.8, 0.6, 1e-3)), np.ones((224, 224), bool)
    tilted = visible_weight(plate, Camera(75, 0, 0.9, 224), every)[0]
    assert tilted[112, 112] == pytest.approx(0.56, abs=0.06)
    straight = visible_weight(plate, Camera(0, 0, 0.9, 224), every)[0]
    assert straight[112, 112] == 1


def test_a_body_comes_as_a_field_and_its_frame_is_told():
    ball = trimesh.creation.icosphere(3, 40.0).apply_translation((100, 7, -3))
    field, mesh, to_world = as_field(ball, RefineOptions(up="z"))
    assert np.allclose(mesh.bounds, [[-0.5] * 3, [0.5] * 3], atol=1e-3)
    top = trimesh.transform_points([[100, 7, 37]], to_world)
    assert np.allclose(top, [[0, 0.5, 0]], atol=1e-3)
    points = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.7]])
    assert torch.allclose(field(points), torch.tensor([-0.5, 0.2]), atol=0.01)
    value, slope = field.along(points[1:], torch.tensor([0.0, 0.0, -1.0]))
    assert slope.item() == pytest.approx(-1, abs=0.01)


def test_what_is_no_body_is_named():
    box = trimesh.creation.box()
    with pytest.raises(TypeError, match=r"a body is .*to_mesh.* not Scene"):
        as_field(trimesh.Scene(box))
    box.vertices[0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        as_field(box)


def test_a_file_keeps_the_way_back_to_its_frame(tmp_path):
    mesh = trimesh.creation.box((2, 4, 6)).apply_translation((10, 20, 30))
    mesh.export(tmp_path / "body.stl")
    _, found, to_world = as_field(tmp_path / "body.stl", RefineOptions(up="z", yaw=30))
    back = trimesh.transform_points(found.vertices, np.linalg.inv(to_world))
    assert np.allclose([back.min(0), back.max(0)], mesh.bounds, atol=1e-4)


def test_a_real_maps_relief_brings_the_visible_front_nearer():
    shape, camera = make_shape("cabinet", 10101), Camera(30, 20, 0.9, 224)
    model = D2IMNet.from_pretrained(MODEL).eval()
    renderer = Renderer(shape.detailed)
    view = renderer.view(camera, np.random.default_rng(0))
    body = mesh_field(shape.coarse)  # the detailed one's scale is kept
    found = refine(model, body, view.image, options=FRAMED)
    assert turn_between(found.camera, camera) < 2
    origins, rays = (a.reshape(-1, 3)[::7] for a in camera.rays())
    depth = renderer.scene.run(*map(np.array, (origins, rays)), query="DISTANCE")
    seen = depth < 1e6
    points = (origins + depth[:, None] * rays)[seen]
    before = np.abs(signed_distance(shape.coarse, points)[0]).mean()
    after = found.sdf(torch.from_numpy(points).float()).abs().mean().item()
    assert after < 0.5 * before


@pytest.mark.parametrize(
    ("strength", "options", "said"),
    [(np.nan, None, "strength"), (1.0, RefineOptions(back="none"), "body.*model")],
)
def test_a_wrong_option_is_named(outward, strength, options, said):
    with pytest.raises(ValueError, match=said):
        refine(outward, sphere(0.3), torch.ones(3, 32, 32), CAMERA, strength, options)


def test_a_given_camera_leaves_no_choice_of_fits(outward):
    image, options = torch.ones(3, 32, 32), RefineOptions(focal="free")
    for given in ({"fit": 2}, {"options": options}):
        with pytest.raises(ValueError, match="of a camera that is sought"):
            refine(outward, sphere(0.3), image, CAMERA, **given)


@pytest.mark.parametrize("resolution", [12, 48])
def test_a_body_without_an_inside_is_named(outward, tmp_path, resolution):
    flat = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
    flat.export(tmp_path / "flat.stl")
    options = RefineOptions(resolution=resolution)
    for body, name in ((tmp_path / "flat.stl", "flat.stl"), (flat, "the body")):
        with pytest.raises(ValueError, match=f"{name} has no inside.*close it"):
            refine(outward, body, torch.zeros(3, 32, 32), CAMERA, options=options)


@pytest.fixture
def photo(outward, tmp_path):
    """A folder with a body, its photo, not yet framed, and a model; and its command."""
    body = trimesh.creation.box((0.9, 0.5, 0.4))
    pixels = np.moveaxis(picture_of(body, Camera(30, 20, 0.9, 64)), 0, 2) * 255
    wide = np.full((90, 140, 3), 255, np.uint8)
    wide[20:84, 60:124] = pixels.astype(np.uint8)
    Image.fromarray(wide).save(tmp_path / "photo.png")
    body.apply_scale(20).apply_translation((50, 0, 0)).export(tmp_path / "body.stl")
    outward.save_pretrained(tmp_path / "model")
    names = [str(tmp_path / name) for name in ("body.stl", "photo.png", "model")]
    command = ["refine", *names[:2], "--model", names[2], "--resolution", "32"]
    return tmp_path, [*command, "-o"]


def test_a_found_camera_is_given_again_by_its_file(photo, capsys):
    folder, command = photo
    camera, first, second = (str(folder / n) for n in ("c.json", "a.glb", "b.glb"))
    assert main([*command, first, "--camera-file", camera]) == 0
    assert "in full in a camera file" in capsys.readouterr().out
    assert main([*command, second, "--camera-from", camera]) == 0
    assert "camera given" in capsys.readouterr().out
    a, b = (trimesh.load(name, force="mesh") for name in (first, second))
    assert np.allclose(a.vertices, b.vertices, atol=1e-4)
    both = ["--camera-from", camera, "--camera", "30", "20", "0.9"]
    assert main([*command, first, *both]) == 2
    assert main([*command, first, "--camera-from", camera, "--fit", "2"]) == 2


@pytest.mark.parametrize(
    ("name", "more", "said"),
    [
        ("body.stl/a.glb", [], "body.stl is no folder"),
        ("a.glb", ["--overlay", ""], "is a folder"),
        ("a.glb", ["--maps", "/body.stl/maps"], "body.stl is no folder"),
        ("a.glb", ["--faces", "2"], "4 faces"),
        ("a.3mf", [], "lxml"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(
    photo, monkeypatch, capsys, name, more, said
):
    folder, command = photo
    more = [
        f"{folder}{word}" if word[:2] != "--" and word != "2" else word for word in more
    ]
    monkeypatch.setattr(D2IMNet, "from_pretrained", None)  # no work is begun
    monkeypatch.setattr("d2im.use.export.find_spec", lambda name: None)
    if said == "4 faces":
        monkeypatch.undo()
        monkeypatch.setattr(D2IMNet, "from_pretrained", None)
    assert main([*command, str(folder / name), *more]) in (1, 2)
    assert said in capsys.readouterr().err
    assert not list(folder.glob("a.*"))


def test_the_command_line_refines_a_body_in_its_own_frame(outward, tmp_path, capsys):
    body = trimesh.creation.box((0.9, 0.5, 0.4))
    pixels = np.moveaxis(picture_of(body, Camera(30, 20, 0.9, 64)), 0, 2) * 255
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photo.png")
    body.apply_scale(20).apply_translation((50, 0, 0))
    body.export(tmp_path / "body.stl")
    outward.save_pretrained(tmp_path / "model")
    names = ["body.stl", "photo.png", "out.glb", "model", "over.png"]
    body_file, photo, out, model, over = (str(tmp_path / name) for name in names)
    arguments = ["refine", body_file, photo, "-o", out, "--model", model]
    arguments += ["--resolution", "48"]
    assert main([*arguments, "--strength", "0", "--overlay", over]) == 0
    said = capsys.readouterr()
    assert "object covers" in said.out and "camera found" in said.out
    assert "--fit N takes one: 1:" in said.err  # a box looks alike from behind
    assert said.err.count("(score ") > 1
    found = trimesh.load(out, force="mesh")
    assert np.allclose(found.bounds, body.bounds, atol=0.5)
    with Image.open(over) as file:
        assert file.size == (64, 64)
    camera = str(tmp_path / "camera.json")
    sized = ["--size-mm", "80", "--camera-file", camera]
    assert main([*arguments, "--strength", "0", *sized]) == 0
    made = json.loads(Path(camera).read_text(encoding="utf-8"))
    found = trimesh.load(out, force="mesh")
    assert found.extents.max() == pytest.approx(80)
    seen = found.vertices @ np.transpose(made["R"]) + made["t"]
    pixels = seen @ np.transpose(made["K"])
    pixels = pixels[:, :2] / pixels[:, 2:]  # of 32: it lies in the picture and fills it
    assert 0 < pixels.min() and np.ptp(pixels, axis=0).max() > 16 and pixels.max() < 32
    assert main([*arguments, "--fit", "90"]) == 2
    assert "there is no fit 90" in capsys.readouterr().err


def test_a_body_is_not_written_over(tmp_path, capsys):
    trimesh.creation.box().export(tmp_path / "body.glb")
    before = (tmp_path / "body.glb").read_bytes()
    body, photo = str(tmp_path / "body.glb"), str(tmp_path / "photo.png")
    assert main(["refine", body, photo, "-o", body]) == 2
    assert "body.glb is read and would be written over" in capsys.readouterr().err
    assert (tmp_path / "body.glb").read_bytes() == before
