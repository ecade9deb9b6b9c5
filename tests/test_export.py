import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from scipy.spatial import cKDTree

from d2im.camera import Camera
from d2im.data.files import check_writable
from d2im.data.rendering import Renderer
from d2im.fields import displaced_field, sphere
from d2im.use.export import (
    MAP_FILES,
    camera_file,
    check_export,
    export_camera,
    export_mesh,
    picture_colors,
    read_camera,
    simplified,
    without_specks,
)
from d2im.use.reconstruction import Prediction, Reconstruction

CAMERA = Camera(0, 0, 0.9, 64)


def reconstruction(mesh, image=None, **parts):
    """A mesh with its picture, its left half red and its right half blue."""
    mask = Renderer(mesh).cast(CAMERA)[0]
    if image is None:
        image = torch.ones(3, 64, 64)
        image[:, mask] = torch.tensor([0.0, 0.0, 0.5])[:, None]
        left = mask & (np.arange(64) < 32)
        image[:, left] = torch.tensor([0.5, 0.0, 0.0])[:, None]
    maps = torch.zeros(2, 64, 64)
    maps[0] = -0.01
    maps[0, :, 32:] = 0.02
    base = sphere(0.4)
    known = {"sdf": displaced_field(base, maps, CAMERA), "mask": torch.from_numpy(mask)}
    found = Prediction(maps, CAMERA, base, image=image, **known | parts)
    return Reconstruction(**found.parts(), mesh=mesh, base_mesh=None)


@pytest.fixture(scope="module")
def ball():
    return reconstruction(trimesh.creation.icosphere(5, 0.4))


def read(path):
    return trimesh.load(path, force="mesh", process=False)


def test_specks_and_small_cavities_are_dropped_and_large_ones_stay():
    ball = trimesh.creation.icosphere(3, 0.4)
    speck = trimesh.creation.icosphere(1, 0.05).apply_translation((0.45, 0.4, 0))
    bubble = trimesh.creation.icosphere(1, 0.05)
    cavity = trimesh.creation.icosphere(2, 0.15).apply_translation((0, 0.2, 0))
    for hole in (bubble, cavity):
        hole.invert()
    bubble.apply_translation((0, -0.2, 0))
    kept = without_specks(ball + speck + bubble + cavity)
    assert len(kept.faces) == len(ball.faces) + len(cavity.faces)
    assert kept.is_watertight and without_specks(ball) is ball


def test_an_export_keeps_specks_where_that_is_asked(tmp_path):
    ball = trimesh.creation.icosphere(3, 0.4)
    speck = trimesh.creation.icosphere(1, 0.05).apply_translation((0.45, 0.4, 0))
    found = reconstruction(ball + speck)
    counts = {}
    for keep in ("large", "all"):
        found.export(tmp_path / "a.glb", keep=keep)
        counts[keep] = len(read(tmp_path / "a.glb").faces)
    assert counts == {"large": len(ball.faces), "all": len(found.mesh.faces)}


def test_a_small_part_of_ones_own_body_stays(tmp_path):
    ball = trimesh.creation.icosphere(3, 0.4)
    knob = trimesh.creation.icosphere(1, 0.05).apply_translation((0.45, 0.4, 0))
    speck = trimesh.creation.icosphere(0, 0.008).apply_translation((-0.45, 0.4, 0))
    found = reconstruction(ball + knob + speck, way="own")
    found.export(tmp_path / "a.glb")
    expected = len(ball.faces) + len(knob.faces)
    assert len(read(tmp_path / "a.glb").faces) == expected


def test_a_mesh_of_many_small_parts_stays():
    balls = [
        trimesh.creation.icosphere(0, 0.02).apply_translation((0.1 * x, 0.1 * y, 0))
        for x, y in np.ndindex(11, 11)
    ]
    many = trimesh.util.concatenate(balls)
    assert without_specks(many) is many


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_vertex_normals_are_written(ball, tmp_path, kind):
    ball.export(tmp_path / f"a.{kind}")
    mesh, content = read(tmp_path / f"a.{kind}"), (tmp_path / f"a.{kind}").read_bytes()
    assert b'"NORMAL":' in content or content.count(b"\nvn ") == len(mesh.vertices)
    outward = mesh.vertices / np.linalg.norm(mesh.vertices, axis=1, keepdims=True)
    assert (mesh.vertex_normals * outward).sum(1).min() > 0.999


def test_the_picture_colours_what_it_sees_and_the_rest_as_beside(ball):
    colors, points = picture_colors(ball, ball.mesh), ball.mesh.vertices
    for side in (np.s_[:], points[:, 2] < -0.1):
        red, blue = points[side][:, 0] < -0.1, points[side][:, 0] > 0.1
        assert np.allclose(colors[side][red], [0.5, 0, 0], atol=0.02)
        assert np.allclose(colors[side][blue], [0, 0, 0.5], atol=0.02)


def test_colors_of_the_back_have_no_seams(ball):
    colors, points = picture_colors(ball, ball.mesh), ball.mesh.vertices
    a, b = ball.mesh.edges_unique.T
    step, behind = np.abs(colors[a] - colors[b]).max(1), points[:, 2] < -0.1
    assert 0.01 < step[behind[a] & behind[b]].max() < 0.15
    assert step[~behind[a]].max() > 0.3  # where the picture itself has one


def test_what_something_hides_does_not_take_its_colour():
    near = trimesh.creation.box((0.2, 0.2, 0.02)).apply_translation((-0.2, 0, 0.3))
    far = trimesh.creation.box((0.8, 0.6, 0.02)).apply_translation((0, 0, -0.1))
    both = (near + far).subdivide_to_size(0.02)
    image = torch.zeros(3, 64, 64)
    hit = Renderer(near).cast(CAMERA)[0]
    image[0, torch.from_numpy(hit)] = 1.0
    colors = picture_colors(reconstruction(both, image), both)
    behind = (both.vertices[:, 2] < 0) & (np.abs(both.vertices[:, 1]) < 0.05)
    front = both.vertices[:, 2] > 0.305
    assert colors[behind, 0].max() < 0.1 and np.median(colors[front, 0]) > 0.9


def test_a_picture_of_nothing_gives_no_colours(ball):
    parts = ball.parts() | {"mask": torch.zeros(64, 64, dtype=torch.bool)}
    assert picture_colors(Prediction(**parts), ball.mesh) is None


@pytest.mark.parametrize("kind", ["stl", "3mf"])
def test_a_print_has_its_size_and_stands_on_the_floor(tmp_path, kind):
    box = trimesh.creation.box((0.2, 0.8, 0.4))
    found = reconstruction(box.subdivide())
    for size, given in ((100, {}), (30, {"size_mm": 30})):
        found.export(tmp_path / f"a.{kind}", **given)
        mesh = read(tmp_path / f"a.{kind}")
        expected = np.array([[-0.125, -0.25, 0], [0.125, 0.25, 1]]) * size
        assert np.allclose(mesh.bounds, expected, atol=1e-4 * size)
        mesh.merge_vertices()
        assert mesh.is_watertight and mesh.volume > 0


def test_a_ply_is_z_up_and_a_glb_y_up(tmp_path):
    cone = trimesh.creation.cone(0.3, 0.6).apply_transform(
        trimesh.transformations.rotation_matrix(-np.pi / 2, (1, 0, 0))
    )  # its tip toward +y
    found = reconstruction(cone.subdivide().subdivide())
    for kind, axis in (("ply", 2), ("glb", 1), ("obj", 1)):
        found.export(tmp_path / f"a.{kind}")
        assert read(tmp_path / f"a.{kind}").bounds[1, axis] == pytest.approx(0.6)


def test_a_body_of_ones_own_goes_back_to_its_frame(tmp_path):
    own = trimesh.creation.icosphere(3, 30.0).apply_translation((100, 20, -7))
    to_world = np.diag([1 / 75, 1 / 75, 1 / 75, 1])
    to_world[:3, 3] = -np.array([100, 20, -7]) / 75
    mesh = own.copy().apply_transform(to_world)
    found = reconstruction(mesh, to_world=to_world)
    for kind in ("glb", "stl", "ply"):
        found.export(tmp_path / f"a.{kind}")
        assert np.allclose(read(tmp_path / f"a.{kind}").bounds, own.bounds, atol=1e-3)


def test_faces_are_made_fewer_and_the_colours_stay(ball, tmp_path):
    ball.export(tmp_path / "a.ply", faces=1000)
    mesh = read(tmp_path / "a.ply")
    assert 900 < len(mesh.faces) <= 1000 and mesh.is_watertight
    assert np.allclose(np.linalg.norm(mesh.vertices, axis=1), 0.4, atol=0.005)
    red = mesh.vertices[:, 0] < -0.1
    assert np.abs(mesh.visual.vertex_colors[red, 0].astype(int) - 128).max() < 5


def test_faces_back_to_back_are_left_out_and_every_normal_is_one(tmp_path):
    ring = trimesh.creation.torus(0.4, 0.02)  # of 40 faces 18 lie on each other
    made = simplified(ring, 40)
    assert len(np.unique(np.sort(made.faces), axis=0)) == len(made.faces) < 40
    reconstruction(ring).export(tmp_path / "a.glb", faces=40, color="none")
    normals = read(tmp_path / "a.glb").vertex_normals
    assert np.allclose(np.linalg.norm(normals, axis=1), 1, atol=1e-5)
    with pytest.raises(ValueError, match="nothing of the mesh is left with 20 faces"):
        simplified(ring, 20)


def test_what_hangs_on_an_edge_of_three_faces_is_no_part_of_its_own():
    """As simplifying leaves a chair's legs."""
    ball = trimesh.creation.icosphere(2, 0.4)
    a, b = ball.edges_unique[0]
    points = np.vstack([ball.vertices, ball.vertices[[a, b]].mean(0) * 1.5])
    tip = len(points) - 1
    leg = [[a, b, tip], [b, a, tip]]
    both = trimesh.Trimesh(points, np.vstack([ball.faces, leg]), process=False)
    assert without_specks(both) is both


def test_what_simplifying_breaks_off_is_a_speck(tmp_path):
    arc = np.linspace(0, np.pi, 24)
    large, small = (
        np.c_[radius * np.sin(arc), y - radius * np.cos(arc)]
        for y, radius in ((-0.1, 0.3), (0.4, 0.05))
    )
    stalk = np.c_[np.full(60, 0.005), np.linspace(0.21, 0.34, 60)]
    profile = np.vstack([large[:-1], stalk, small[2:]])
    flower = trimesh.creation.revolve(profile, sections=4)
    assert flower.body_count == 1 and simplified(flower, 60).body_count > 1
    found = reconstruction(flower)
    for keep, parts in (("large", 1), ("all", simplified(flower, 60).body_count)):
        path = tmp_path / f"{keep}.stl"
        found.export(path, keep=keep, faces=60)
        assert trimesh.load(path).body_count == parts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"keep": "some"}, "keep"),
        ({"color": "red"}, "color"),
        ({"faces": 2}, "4 faces"),
        ({"size_mm": 0}, "size_mm"),
    ],
)
def test_a_wrong_option_is_named_and_nothing_is_written(ball, tmp_path, options, said):
    with pytest.raises(ValueError, match=said):
        ball.export(tmp_path / "a.stl", **options)
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(ball, monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_simplification", None)
    with pytest.raises(ImportError, match=r"d2im\[makers\]"):
        simplified(ball.mesh, 100)
    with pytest.raises(ImportError, match="fewer faces need"):
        check_export("never.glb", faces=100)
    monkeypatch.setattr("d2im.use.export.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="lxml"):
        check_export("never.3mf")
    with pytest.raises(ImportError, match=r"lxml.*d2im\[makers\]"):
        ball.export("never.3mf")


def test_all_files_of_maps_are_known_by_name(ball, tmp_path):
    ball.export_maps(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*MAP_FILES}


def test_a_height_map_is_read_back_by_its_sidecars_words(ball, tmp_path):
    ball.export_maps(tmp_path)
    about = json.loads((tmp_path / "displacement.json").read_text(encoding="utf-8"))
    mask = np.asarray(Image.open(tmp_path / "mask.png")) > 127
    height = about["height"]
    grey = np.asarray(Image.open(tmp_path / height["image"])) / 65535
    outward = (grey - height["midlevel"]) * height["strength"]
    expected = np.where(mask, -ball.displacement[0].numpy(), 0)
    assert np.allclose(outward, expected, atol=1e-6)
    eight = np.asarray(Image.open(tmp_path / "height-8.png"))
    assert eight.dtype == np.uint8 and np.ptp(eight) == 255
    assert height["color_space"] == "Non-Color"


def test_a_height_maps_strength_is_in_the_unit_of_the_body(ball, tmp_path):
    strengths = []
    for to_world in (None, np.diag([0.02, 0.02, 0.02, 1])):  # 50 of its units are 1
        replace(ball, to_world=to_world).export_maps(tmp_path)
        text = (tmp_path / "displacement.json").read_text(encoding="utf-8")
        strengths.append(json.loads(text)["height"]["strength"])
    assert strengths[1] == pytest.approx(50 * strengths[0])


def test_exported_maps_are_0_beside_the_object(ball, tmp_path):
    ball.export_maps(tmp_path)
    mask = np.asarray(Image.open(tmp_path / "mask.png")) > 127
    front = np.asarray(Image.open(tmp_path / "front.png"))
    assert (front[~mask] == 32768).all() and (front[mask] != 32768).all()
    picture = np.asarray(Image.open(tmp_path / "picture.png")) / 255
    assert np.allclose(picture, ball.image.permute(1, 2, 0), atol=0.003)


def test_a_camera_file_projects_as_the_camera_does():
    camera = Camera.from_matrices(
        Camera(30, 20, 1, 64).rotation, [0.1, 0.05, 1.6], 80, [30, 35], 64
    )
    to_world = np.diag([0.1, 0.1, 0.1, 1])
    to_world[:3, 3] = 0.2, -0.1, 0.3
    known = {"sdf": sphere(), "image": torch.ones(3, 64, 64), "to_world": to_world}
    parts = Prediction(torch.zeros(2, 64, 64), camera, sphere(), **known)
    made, own = camera_file(parts), np.array([[1.0, 2.0, -3.0], [0.0, 1.0, 4.0]])
    uv, _ = camera.project(trimesh.transform_points(own, to_world))
    expected = (uv + 1) * 32
    seen = own @ np.array(made["R"]).T + made["t"]
    pixels = seen @ np.array(made["K"]).T
    assert np.allclose(pixels[:, :2] / pixels[:, 2:], expected)
    # Blender: x right, y up, looking along -z, z up in its world
    blender = made["blender"]
    z_up = np.stack([own[:, 0], -own[:, 2], own[:, 1]], axis=1)
    inverse = np.linalg.inv(blender["matrix_world"])
    x, y, z = trimesh.transform_points(z_up, inverse).T
    focal = blender["lens"] / blender["sensor_width"]
    across = 0.5 + focal * x / -z - blender["shift_x"]
    down = 0.5 - focal * y / -z + blender["shift_y"]
    assert np.allclose(64 * np.stack([across, down], 1), expected)
    # three.js: columns, a field of view, y up
    three = made["three"]
    matrix = np.reshape(three["matrixWorld"], (4, 4)).T
    x, y, z = trimesh.transform_points(own, np.linalg.inv(matrix)).T
    half = np.tan(np.radians(three["fov"] / 2))
    offset = three["viewOffset"]
    across, down = 32 * (1 + x / -z / half), 32 * (1 - y / -z / half)
    found = np.stack([across - offset[0], down - offset[1]], 1)
    assert np.allclose(found, expected)


@pytest.mark.parametrize("kind", ["glb", "ply", "stl", "3mf"])
@pytest.mark.parametrize("size", [None, 40.0])
def test_a_camera_file_is_of_the_mesh_files_frame(ball, tmp_path, kind, size):
    shifted = Camera.from_matrices(
        Camera(30, 20, 1, 64).rotation, [0.1, 0.05, 1.6], 80, [30, 35], 64
    )
    solid = trimesh.creation.box((0.5, 0.3, 0.2)).subdivide()  # no two sides alike
    solid.vertices[solid.vertices[:, 0] > 0.2] *= [1, 0.5, 0.8]
    found = replace(ball, mesh=solid, camera=shifted)
    made = export_mesh(found, tmp_path / f"a.{kind}", size_mm=size)
    placed = replace(found, to_world=made.metadata["to_world"])
    about, written = camera_file(placed, kind), read(tmp_path / f"a.{kind}")
    uv, _ = shifted.project(found.mesh.vertices)
    seen = written.vertices @ np.transpose(about["R"]) + about["t"]
    pixels = seen @ np.transpose(about["K"])
    expected = cKDTree((uv + 1) * 32)  # of all vertices, in any order
    assert expected.query(pixels[:, :2] / pixels[:, 2:])[0].max() < 0.01
    # In Blender a GLB is turned upright, the others are taken as they are.
    matrix, points = np.array(about["blender"]["matrix_world"]), written.vertices
    if kind == "glb":
        points = points @ np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]).T
    local = trimesh.transform_points(points, np.linalg.inv(matrix))
    assert np.allclose(local, seen * [1, -1, -1], atol=1e-3)


def test_a_camera_file_is_read_back_into_the_world_frame(ball, tmp_path):
    camera = Camera.from_matrices(
        Camera(30, 20, 1, 64).rotation, [0.1, 0.05, 1.6], 80, [30, 35], 64
    )
    to_world = np.diag([0.1, 0.1, 0.1, 1])
    to_world[:3, 3] = 0.2, -0.1, 0.3
    parts = {
        "camera": camera,
        "to_world": to_world,
        "framed_for": Camera(0, 0, 0.8, 64),
    }
    export_camera(replace(ball, **parts), tmp_path / "a.json")
    found, framed_for = read_camera(tmp_path / "a.json", 128)
    assert np.allclose(found.to_array(), camera.resized(128).to_array())
    assert framed_for.pose[2] == pytest.approx(0.8) and framed_for.size == 128


@pytest.mark.parametrize("text", ["{}", "[1]", "no json", '{"K": [[1]]}', "null"])
def test_a_file_that_holds_no_camera_is_named(tmp_path, text):
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json is no camera that d2im wrote"):
        read_camera(tmp_path / "a.json", 64)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": np.inf},
        {"size": 10**400},
        {"t": [0, 0, np.nan]},
        {"K": [[0, 0, 32], [0, 0, 32], [0, 0, 1]]},
        {"to_world": np.diag([1, 1, -1, 1]).tolist()},
    ],
)
def test_a_camera_that_no_lens_could_be_is_refused(ball, tmp_path, change):
    export_camera(ball, tmp_path / "a.json")
    about = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    text = json.dumps(about | change)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.json is no camera that d2im wrote"):
        read_camera(tmp_path / "a.json", 64)


def test_a_file_that_cannot_be_written_is_told_before_any_work(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    check_writable(tmp_path / "new" / "deep" / "a.glb")
    assert not (tmp_path / "new").exists()
    for path, said in (
        (tmp_path, "it is a folder"),
        (tmp_path / "file" / "a", "no folder"),
    ):
        with pytest.raises(OSError, match=f"cannot be written: .*{said}"):
            check_writable(path)
