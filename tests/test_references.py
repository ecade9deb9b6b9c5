"""What a mesh file names outside its own folder is not read."""

import json
import socket

import pytest
import trimesh
from PIL import Image

from d2im.data.mesh import load_mesh

LEADING_OUT = {
    "above": lambda path: f"../{path.name}",
    "around": lambda path: f"sub/../../{path.name}",
    "absolute": str,
    "address": lambda path: path.as_uri(),
    "net": lambda path: f"http://localhost:9/{path.name}",
    "link": lambda path: "link",
}
ways = pytest.mark.parametrize("way", LEADING_OUT)


@pytest.fixture
def folder(tmp_path):
    inner = tmp_path / "models"
    (inner / "sub").mkdir(parents=True)
    return inner


def leading_out(folder, way, path):
    (folder / "link").symlink_to(path)
    return LEADING_OUT[way](path)


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda _, at: asked.append(at))
    yield
    assert asked == []


@ways
def test_a_buffer_elsewhere_is_not_read(folder, way):
    files = trimesh.creation.box().export(file_type="gltf")
    tree = json.loads(files.pop("model.gltf"))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "box.gltf").write_text(json.dumps(tree))
    assert len(load_mesh(folder / "box.gltf").faces) == 12
    name = tree["buffers"][0]["uri"]
    outside = (folder / name).rename(folder.parent / name)
    tree["buffers"][0]["uri"] = leading_out(folder, way, outside)
    (folder / "box.gltf").write_text(json.dumps(tree))
    with pytest.raises(ValueError, match="box.gltf"):
        load_mesh(folder / "box.gltf")


def is_red(path):
    """Whether a mesh comes out red."""
    colors = load_mesh(path).face_attributes.get("color")
    return colors is not None and bool((colors @ [1, -1, -1] > 0.8).all())


def write_box(folder, material, picture):
    """A box whose material names a red picture; both as names in the files."""
    box = trimesh.creation.box()
    lines = [f"mtllib {material}", "usemtl red", "vt 0.5 0.5"]
    lines += ["v {} {} {}".format(*vertex) for vertex in box.vertices]
    lines += ["f {}/1 {}/1 {}/1".format(*face) for face in box.faces + 1]
    (folder / "box.obj").write_text("\n".join(lines))
    (folder / "a.mtl").write_text(f"newmtl red\nmap_Kd {picture}\n")
    Image.new("RGB", (4, 4), (255, 0, 0)).save(folder / "red.png")
    return folder / "box.obj"


@ways
@pytest.mark.parametrize("name", ["a.mtl", "red.png"])
def test_a_material_or_picture_elsewhere_is_not_read(folder, way, name):
    path = write_box(folder, "a.mtl", "red.png")
    assert is_red(path)
    outside = (folder / name).rename(folder.parent / name)
    leading = leading_out(folder, way, outside)
    write_box(folder, *(leading if n == name else n for n in ("a.mtl", "red.png")))
    (folder / name).unlink()
    try:
        assert not is_red(path)
    except ValueError as error:  # refused, which is as well
        assert str(path) in str(error)
