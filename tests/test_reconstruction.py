import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from d2im import reconstruction
from d2im.__main__ import main
from d2im.camera import Camera
from d2im.data.mesh import load_mesh
from d2im.data.rendering import render
from d2im.networks import CameraNet, D2IMNet
from d2im.use.cameras import turn_between
from d2im.use.editing import scale_detail
from d2im.use.export import read_camera
from d2im.use.pictures import load_image
from d2im.use.reconstruction import Reconstruction, reconstruct, triangulate

from .conftest import TINY
from .test_pictures import picture

CAMERA = Camera(20, 10, 1, 32)


@pytest.fixture
def ball_model(tiny_model):
    """A model whose base is a ball-like blob and whose maps are constants."""
    with torch.no_grad():
        for layer in tiny_model.base_decoder.layers:
            layer.weight.zero_()
            layer.bias.zero_()
        first, *rest = tiny_model.base_decoder.layers
        # |x|, |y|, |z| through ReLU pairs, carried to the end: an octahedron
        for axis in range(3):
            first.weight[2 * axis, -3 + axis] = 1
            first.weight[2 * axis + 1, -3 + axis] = -1
        for layer in rest:
            for unit in range(6):
                layer.weight[unit, unit] = 1
        tiny_model.base_decoder.out.weight.zero_()
        tiny_model.base_decoder.out.weight[:, :6] = 10
        tiny_model.base_decoder.out.bias.fill_(-3.0)  # |x| + |y| + |z| = 0.3
        tiny_model.displacement_decoder.out.weight.zero_()
        tiny_model.displacement_decoder.out.bias.copy_(torch.tensor([-0.5, 0.2]))
    return tiny_model.eval()


def test_base_and_final_mesh_are_the_zero_sets_of_f_b_and_f(ball_model):
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, resolution=48)
    octahedron = 0.3**3 * 4 / 3
    assert found.base_mesh.volume == pytest.approx(octahedron, rel=0.02)
    assert found.displacement.shape == (2, 32, 32)
    assert torch.allclose(found.displacement[0], torch.tensor(-0.05))
    assert torch.allclose(found.displacement[1], torch.tensor(0.02))
    # front half of an octahedron of 0.35, back half of one of 0.28
    expected = (0.35**3 + 0.28**3) / 2 * 4 / 3
    assert found.mesh.volume == pytest.approx(expected, rel=0.03)
    points = torch.rand(100, 3) - 0.5
    axis = torch.tensor(CAMERA.rotation[2]).float()
    base = points.abs().sum(-1) - 0.3
    assert torch.allclose(found.base_sdf(points), base, atol=1e-6)
    front = (points.sign() @ axis) < 0
    expected = base + torch.where(front, -0.05, 0.02)
    assert torch.allclose(found.sdf(points), expected, atol=1e-6)


def test_the_final_mesh_rises_from_feet_on_the_base(ball_model):
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, resolution=48)
    feet, added = found.rise()
    # off the edges of an octahedron its distance is linear: a step leads to 0
    off = np.abs(feet).sum(1) - 0.3
    assert np.median(np.abs(off)) < 1e-5 < np.median(np.abs(added))
    points = torch.tensor(found.mesh.vertices).float()
    assert np.allclose(added, -found.base_sdf(points).detach(), atol=1e-6)


def test_feet_find_a_curved_base():
    ball = trimesh.creation.icosphere(2, 0.36)

    def base(p):  # not linear: one step ends at 0.003, two at 0.00002
        return p.square().sum(-1) - 0.09

    body = SimpleNamespace(mesh=ball, device="cpu", base_sdf=base)
    feet, added = Reconstruction.rise(body)
    assert np.allclose(np.linalg.norm(feet, axis=1), 0.3, atol=1e-5)
    assert np.allclose(added, 0.09 - 0.36**2, atol=1e-6)


def test_the_models_mode_is_left_as_it_was(ball_model):
    for mode in (True, False):
        ball_model.train(mode)
        reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, resolution=16)
        assert ball_model.training is mode


def test_a_missing_camera_is_asked_for(ball_model):
    with pytest.raises(ValueError, match="camera=Camera"):
        reconstruct(ball_model, torch.ones(3, 32, 32))


def test_a_models_black_background_and_frame_are_kept(ball_model):
    ball_model.background, ball_model.frame = "black", "shapenet"
    found = reconstruct(ball_model, picture(), CAMERA, 16)
    assert found.image[:, 0, 0].tolist() == [0, 0, 0]
    assert found.image[:, 16, 16].tolist() == [1, 0, 0]
    assert found.frame == "shapenet"


def test_a_camera_may_come_from_a_net_that_sees_the_framed_picture(ball_model):
    seen = []

    def net(image):
        seen.append(image)
        return CAMERA

    found = reconstruct(ball_model, picture(), net, 16)
    assert found.camera is CAMERA and torch.equal(seen[0], found.image)


def test_a_model_without_displacement_has_one_surface(ball_model):
    with torch.no_grad():
        ball_model.displacement_decoder.out.bias.zero_()
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, 32)
    assert np.array_equal(found.mesh.vertices, found.base_mesh.vertices)


@pytest.mark.parametrize("kind", ["glb", "obj", "ply"])
@pytest.mark.parametrize("which", ["final", "base", "colored"])
def test_an_exported_mesh_is_read_back_the_same(ball_model, tmp_path, kind, which):
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, 32)
    found.export(tmp_path / f"a.{kind}", which)
    mesh = trimesh.load(tmp_path / f"a.{kind}", force="mesh", process=False)
    expected = found.base_mesh if which == "base" else found.mesh
    assert len(mesh.faces) == len(expected.faces)
    if kind == "ply":  # z up, as its readers take it
        x, y, z = mesh.vertices.T
        mesh.vertices = np.stack([x, z, -y], axis=1)
    assert np.allclose(mesh.bounds, expected.bounds, atol=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{kind}"]
    if kind == "glb":
        content = (tmp_path / "a.glb").read_bytes()
        size = int.from_bytes(content[12:16], "little")  # of the JSON chunk
        (material,) = json.loads(content[20 : 20 + size])["materials"]
        assert material["pbrMetallicRoughness"]["metallicFactor"] == 0
    if which == "colored":
        mesh = load_mesh(tmp_path / f"a.{kind}", up="z" if kind == "ply" else "y")
        colors, at = mesh.face_attributes["color"], mesh.triangles_center[:, 2]
        front, back = colors[at > 0.25], colors[at < -0.25]
        # the front moved outward, the back inward
        assert (front[:, 0] > front[:, 2]).all() and (back[:, 2] > back[:, 0]).all()


def test_an_unknown_format_or_mesh_is_refused_and_writes_nothing(ball_model, tmp_path):
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, 16, base_mesh=False)
    with pytest.raises(ValueError, match=".glb, .obj, .ply, .stl or .3mf"):
        found.export(tmp_path / "a.fbx")
    with pytest.raises(ValueError, match="no 'base' mesh"):
        found.export(tmp_path / "a.glb", "base")
    assert not list(tmp_path.iterdir())


def test_exported_maps_are_read_back_to_their_scale(ball_model, tmp_path):
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, 16)
    found.export_maps(tmp_path)
    about = json.loads((tmp_path / "displacement.json").read_text())
    for name, values in zip(("front", "back"), found.displacement, strict=True):
        grey = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(float)
        assert np.allclose((grey - 32768) * about["scale"], values, atol=about["scale"])
    assert np.array_equal(np.load(tmp_path / "displacement.npy"), found.displacement)
    assert about["camera"]["focal"] == CAMERA.focal


def test_the_sidecars_camera_is_the_maps_whatever_its_own_size(ball_model, tmp_path):
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA.resized(96), 16)
    found.export_maps(tmp_path)
    about = json.loads((tmp_path / "displacement.json").read_text())["camera"]
    assert about["size"] == 32 and about["focal"] == pytest.approx(CAMERA.focal)
    assert np.allclose(about["centre"], CAMERA.centre)


def test_a_coloured_glb_shows_the_colours_of_a_coloured_ply(ball_model, tmp_path):
    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, 32)
    colors = []
    for kind in ("glb", "ply"):
        found.export(tmp_path / f"a.{kind}", "colored")
        colors.append(load_mesh(tmp_path / f"a.{kind}").face_attributes["color"])
    assert np.abs(colors[0].mean(0) - colors[1].mean(0)).max() < 0.03
    assert np.ptp(colors[1]) > 0.5


def test_a_full_disk_is_named_and_leaves_the_maps_of_before(
    ball_model, tmp_path, monkeypatch
):
    def full(file, values):
        raise OSError(28, "No space left on device")

    found = reconstruct(ball_model, torch.ones(3, 32, 32), CAMERA, 16)
    found.export_maps(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match="displacement.npy was not written: .*No space"):
        triangulate(scale_detail(found, 2.0), 16).export_maps(tmp_path)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_command_line_says_before_its_work_what_it_cannot_write(capsys):
    arguments = ["reconstruct", "none.png", "--model", "none", "-o"]
    assert main([*arguments, "a.fbx"]) == 2
    assert ".glb, .obj, .ply, .stl or .3mf" in capsys.readouterr().err
    assert main([*arguments, "a.glb", "--turntable", "a.mp4"]) == 2
    assert "written as .gif" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("no\nroom")])
def test_the_command_line_ends_in_one_line_when_stopped(monkeypatch, capsys, error):
    def stop(*_):
        raise error

    monkeypatch.setattr(D2IMNet, "from_pretrained", stop)
    assert main(["reconstruct", "a.png", "-o", "a.glb"]) == 1
    said = capsys.readouterr().err
    assert said in ("error: interrupted\n", "error: no room\n")


def test_the_command_line_turns_a_picture_into_a_mesh(ball_model, tmp_path, capsys):
    ball_model.save_pretrained(tmp_path / "model")
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    arguments = ["reconstruct", tmp_path / "photo.png", "-o", tmp_path / "out.glb"]
    arguments += ["--resolution", 24]
    arguments += ["--model", tmp_path / "model", "--maps", tmp_path / "maps"]
    arguments = [str(argument) for argument in arguments]
    assert main([*arguments, "--camera", "20", "10", "1"]) == 0
    assert "faces" in capsys.readouterr().out
    assert (tmp_path / "out.glb").is_file() and (tmp_path / "maps/front.png").is_file()
    assert main([*arguments[:4], "--model", "nowhere/at/all"]) == 2
    assert "no model folder" in capsys.readouterr().err


def test_the_command_line_says_what_it_noticed_in_a_picture(
    ball_model, tmp_path, capsys
):
    ball_model.save_pretrained(tmp_path / "model")
    Image.fromarray(picture()[:40]).save(tmp_path / "photo.png")  # cut off below
    arguments = ["reconstruct", "photo.png", "-o", "a.ply", "--model", "model"]
    paths = ("photo.png", "a.ply", "model")
    arguments = [str(tmp_path / a) if a in paths else a for a in arguments]
    assert main([*arguments, "--resolution", "16", "--camera", "0", "0", "1"]) == 0
    said = capsys.readouterr().err
    assert said.startswith("note: ") and "border (bottom)" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "outputs, said",
    [
        ("-o a.glb --cut-out picture.png", "picture.png is read"),
        ("-o a.glb --maps .", "picture.png is read"),
        ("-o a.glb --camera-from c.json --camera-file ./c.json", "c.json is read"),
        ("-o a.glb --overlay b.png --cut-out ./b.png", "b.png is made twice"),
        ("-o a.glb --maps m --camera-file m/camera.json", "camera.json is made twice"),
    ],
)
def test_a_command_does_not_write_over_what_it_reads(
    tmp_path, monkeypatch, capsys, outputs, said
):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture()).save("picture.png")
    before = Path("picture.png").read_bytes()
    assert main(["reconstruct", "picture.png", *outputs.split()]) == 2
    error = capsys.readouterr().err
    assert f"{said} and would be written over: choose another name" in error
    assert Path("picture.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_the_command_line_takes_the_camera_from_a_net(
    ball_model, tmp_path, monkeypatch
):
    ball_model.save_pretrained(tmp_path / "model")
    sizes = {name: TINY[name] for name in CameraNet.SIZES if name in TINY}
    net = CameraNet(head_widths=(8,), **sizes).eval()
    net.save_pretrained(tmp_path / "net")
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    arguments = ["reconstruct", "photo.png", "-o", "out.ply", "--resolution", "24"]
    arguments += ["--model", "model", "--camera-model", "net", "--maps", "maps"]
    names = ("photo.png", "out.ply", "model", "net", "maps")
    assert main([str(tmp_path / a) if a in names else a for a in arguments]) == 0
    about = json.loads((tmp_path / "maps" / "displacement.json").read_text())
    expected = net.camera(load_image(tmp_path / "photo.png", 32))
    assert np.allclose(about["camera"]["rotation"], expected.rotation, atol=1e-5)
    assert np.allclose(about["camera"]["translation"], expected.translation, atol=1e-5)
    # the package's own stands in where none is named
    monkeypatch.setattr(reconstruction, "CAMERA_MODEL", tmp_path / "net")
    photo, mesh = str(tmp_path / "photo.png"), str(tmp_path / "box.glb")
    model = str(tmp_path / "model")
    arguments = ["reconstruct", photo, "-o", mesh, "--model", model]
    assert main([*arguments, "--resolution", "24"]) == 0
    assert trimesh.load(mesh, force="mesh").is_watertight


def test_a_fitted_camera_lays_the_base_on_the_picture(ball_model):
    with torch.no_grad():  # no octahedron: flat along one axis, long along another
        first = ball_model.base_decoder.layers[0]
        for axis, scale in enumerate((0.7, 1.0, 1.6)):
            first.weight[2 * axis : 2 * axis + 2] *= scale
    camera = Camera(25, 20, 0.9, 32)
    body = reconstruct(ball_model, torch.ones(3, 32, 32), camera, 48).base_mesh
    view = render(body, camera.resized(128), np.random.default_rng(0))
    guess = Camera(33, 14, 0.9, 32)
    found = reconstruct(ball_model, view.image, guess, 24, fit=True)
    assert turn_between(found.camera, camera) < 4 < turn_between(guess, camera)
    assert found.fits[0].camera is found.camera and found.mask is not None


def test_a_model_is_told_the_mask_of_the_picture_as_it_was_given(
    ball_model, monkeypatch
):
    """A white part of an object is no hole of it, also where its camera is moved."""
    camera, masks, fields = Camera(25, 20, 0.9, 32), [], ball_model.fields
    told = lambda *given: masks.append(given[3]) or fields(*given)  # noqa: E731
    monkeypatch.setattr(ball_model, "fields", told)
    size = np.hypot(*np.mgrid[-16:16, -16:16]) < 9
    given = np.dstack([np.where(np.arange(32)[:, None] < 16, 255, 90) + 0 * size] * 3)
    given = np.dstack([given, 255 * size]).astype(np.uint8)
    found = reconstruct(ball_model, given, camera, 24, fit=True, framed=True)
    assert found.mask.numpy()[:16].sum() > 80  # of the white half
    assert len(masks) == 2 and all(torch.equal(m[0], found.mask) for m in masks)


def test_a_failure_of_any_kind_is_a_row_of_the_page(
    ball_model, tmp_path, capsys, monkeypatch
):
    ball_model.save_pretrained(tmp_path / "model")
    for name in ("good.png", "odd.png"):
        Image.fromarray(picture()).save(tmp_path / name)
    whole = reconstruction.reconstruct

    def failing(model, image, *arguments, **options):
        if image.stem == "odd":
            raise RuntimeError("out of memory")
        return whole(model, image, *arguments, **options)

    monkeypatch.setattr(reconstruction, "reconstruct", failing)
    names = [str(tmp_path / name) for name in ("odd.png", "good.png", "out", "model")]
    arguments = ["reconstruct", *names[:2], "-o", names[2], "--model", names[3]]
    arguments += ["--camera", "20", "10", "1", "--resolution", "24"]
    assert main(arguments) == 0
    assert "odd.png: failed: out of memory" in capsys.readouterr().out
    assert (tmp_path / "out" / "good.glb").is_file()
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "failed: out of memory" in page and page.count("<img ") == 1


def test_a_fitted_camera_is_given_again_by_its_file(ball_model, tmp_path, capsys):
    ball_model.save_pretrained(tmp_path / "model")
    Image.fromarray(picture()).save(tmp_path / "a.png")
    names = [str(tmp_path / n) for n in ("a.png", "a.ply", "b.ply", "c.json", "model")]
    arguments = ["reconstruct", names[0], "--model", names[4], "--resolution", "24"]
    given = ["--camera", "20", "10", "0.8", "--fit-camera", "--size-mm", "70"]
    assert main([*arguments, "-o", names[1], *given, "--camera-file", names[3]]) == 0
    assert "camera fitted" in capsys.readouterr().out  # it is not the one given
    again = ["--camera-from", names[3], "--size-mm", "70"]
    assert main([*arguments, "-o", names[2], *again]) == 0
    a, b = (trimesh.load(name, force="mesh") for name in names[1:3])
    assert np.allclose(a.vertices, b.vertices, atol=0.01)


def test_the_command_line_makes_a_page_of_many_pictures(ball_model, tmp_path, capsys):
    ball_model.save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    Image.fromarray(picture()).save(tmp_path / "photos" / "good.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no picture")
    arguments = ["reconstruct", "photos", "-o", "out", "--model", "model"]
    names = ("photos", "out", "model")
    arguments = [str(tmp_path / a) if a in names else a for a in arguments]
    arguments += ["--camera", "20", "10", "1", "--resolution", "24"]
    assert main([*arguments, "--format", "stl"]) == 0
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["good-camera.json", "good-overlay.png", "good.stl", "index.html"]
    camera, _ = read_camera(tmp_path / "out" / "good-camera.json", 64)
    assert np.allclose(camera.pose, (20, 10, 1), atol=1e-4)
    assert "1 meshes, 1 failed" in capsys.readouterr().out
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "not a readable image" in page and "object covers" in page
    for name in ("good.png", "good-overlay.png"):  # as a second run into them finds
        Image.fromarray(picture()).save(tmp_path / f"photos/{name}")
    before = (tmp_path / "photos" / "good-overlay.png").read_bytes()
    inside = [*arguments[:3], str(tmp_path / "photos"), *arguments[4:]]
    assert main(inside) == 2
    assert "is one of the pictures: choose another" in capsys.readouterr().err
    assert (tmp_path / "photos" / "good-overlay.png").read_bytes() == before
    (tmp_path / "photos" / "good-overlay.png").unlink()
    for name in ("out.glb", "model/config.json"):
        wrong = [*arguments[:3], str(tmp_path / name), *arguments[4:]]
        assert main(wrong) == 2 and "-o FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "out.glb").exists()
    (tmp_path / "photos" / "good.png").rename(tmp_path / "photos" / "bad.jpg")
    assert main(arguments) == 2
    assert "several pictures are named bad" in capsys.readouterr().err
    (tmp_path / "photos" / "bad.jpg").unlink()
    assert main(arguments) == 2
    assert "no picture could be used" in capsys.readouterr().err
    given = tmp_path / "out" / "good-camera.json"
    before = given.read_bytes()
    Image.fromarray(picture()).save(tmp_path / "photos" / "good.png")
    again = [a for a in arguments if a not in ("--camera", "20", "10", "1")]
    assert main([*again, "--camera-from", str(given), "--fit-camera"]) == 2
    assert "would be written over" in capsys.readouterr().err
    assert given.read_bytes() == before
    assert main([*arguments, "--turntable", "a.gif"]) == 2
    assert "--turntable is for one picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "asked", "extra"),
    [
        (["benchmark", "model"], "d2im.show.run.run", "notebooks"),
        (["benchmark"], "d2im.evaluate.benchmark.check_list", "data"),
        (
            ["reconstruct", "a.png", "-o", "a.glb"],
            "d2im.use.pictures.find_pictures",
            "data",
        ),
    ],
)
def test_a_missing_package_is_asked_for_by_its_extra(
    words, asked, extra, monkeypatch, tmp_path, capsys
):
    def lacking(*_, **__):
        raise ModuleNotFoundError("No module named 'igl'")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(asked, lacking)
    assert main(words) == 1
    assert f"pip install 'd2im[{extra}]'" in capsys.readouterr().err


def test_the_command_line_says_what_it_understood(ball_model, tmp_path, capsys):
    ball_model.save_pretrained(tmp_path / "model")
    Image.fromarray(picture()).save(tmp_path / "photo.png")
    paths = {n: str(tmp_path / n) for n in ("photo.png", "a.glb", "c.png", "c.json")}
    arguments = ["reconstruct", paths["photo.png"], "-o", paths["a.glb"]]
    arguments += ["--model", str(tmp_path / "model"), "--camera", "75", "10", "1"]
    arguments += ["--cut-out", paths["c.png"], "--camera-file", paths["c.json"]]
    assert main([*arguments, "--resolution", "24"]) == 0
    said = capsys.readouterr()
    words = r"object covers \d+% of the picture; camera given 75 10 1.00"
    assert re.search(words, said.out)
    assert "azimuth 75 lies outside of training" in said.err
    assert np.asarray(Image.open(paths["c.png"]))[..., 3].min() == 0
    made = json.loads((tmp_path / "c.json").read_text(encoding="utf-8"))
    assert np.allclose(made["R"], Camera(75, 10, 1, 32).rotation)
