"""Textures in pictures: where they lie, how fine they are, who asks for them."""

import numpy as np
import pytest
from PIL import Image

from d2im.camera import Camera
from d2im.data.dataset import ExampleConfig, prepare, read_example
from d2im.data.mesh import load_mesh
from d2im.data.rendering import Renderer

FRONT = Camera(0, 0, 1, 64)
BOX = [(x, y, z) for x in (1, 5) for y in (1, 4) for z in (1, 2)]
LINE = "\nv 20 1 1\nf 8/8 9/8 8/8"  # a face without area, far to one side
FACES = "1 2 4 3|5 7 8 6|1 5 6 2|3 4 8 7|1 3 7 5|2 6 8 4"


def textured(folder, texels, repeat=1, lid=True):
    """A box that wears a picture on its front and back, from corner to corner."""
    Image.fromarray(np.asarray(texels, dtype=np.uint8)).save(folder / "picture.png")
    (folder / "box.mtl").write_text("newmtl paper\nKd 1 1 1\nmap_Kd picture.png\n")
    lines = ["mtllib box.mtl", "usemtl paper"]
    lines += [f"v {x} {y} {z}" for x, y, z in BOX]
    lines += [f"vt {(x - 1) / 4 * repeat} {(y - 1) / 3 * repeat}" for x, y, _ in BOX]
    faces = FACES.split("|")[: None if lid else -2] + FACES.split("|")[-1:]
    for face in faces:
        lines.append("f " + " ".join(f"{k}/{k}" for k in face.split()))
    (folder / "box.obj").write_text("\n".join(lines))
    return folder / "box.obj"


def picture(mesh, textures=True):
    return Renderer(mesh, textures).view(FRONT, np.random.default_rng(0)).image


def test_a_texture_lies_as_its_coordinates_say(tmp_path):
    red, green, blue, white = np.eye(3).tolist() + [[1, 1, 1]]
    texels = 255 * np.array([[red, green], [blue, white]])
    seen = picture(load_mesh(textured(tmp_path, texels.repeat(8, 0).repeat(8, 1))))
    rows, columns = np.nonzero((seen < 1).any(axis=0))
    top, left, bottom, right = *(rows[0], columns.min()), *(rows[-1], columns.max())
    middle = (top + bottom) // 2, (left + right) // 2
    for y, x, color in [(-5, -5, red), (-5, 5, green), (5, -5, blue), (5, 5, white)]:
        at = seen[:, middle[0] + y, middle[1] + x]
        assert np.allclose(at / at.max(), np.maximum(color, 0.0), atol=0.02)


@pytest.mark.parametrize("lid, stray", [(True, ""), (False, ""), (True, LINE)])
def test_maps_follow_what_repair_and_scaling_make_of_a_mesh(tmp_path, lid, stray):
    path = textured(tmp_path, np.zeros((4, 4, 3)), lid=lid)
    path.write_text(path.read_text() + stray)
    mesh = load_mesh(path, caps="close", interior="fill")
    worn = mesh.face_attributes["worn"] == 0
    front = worn & (mesh.face_normals[:, 2] > 0.9)
    assert front.sum() >= 2
    maps = mesh.face_attributes["uv"].reshape(-1, 2, 4)[front]
    points = mesh.triangles[front]
    uv = np.einsum("fij,fkj->fki", maps[..., :3], points) + maps[:, None, :, 3]
    (left, low, _), (right, high, _) = mesh.bounds
    u = (points[..., 0] - left) / (right - left)
    v = (high - points[..., 1]) / (high - low)
    assert np.allclose(uv, np.stack([u, v], axis=-1), atol=1e-6)


def test_a_texture_finer_than_the_pixels_is_averaged(tmp_path):
    checks = np.indices((256, 256)).sum(0)[..., None] % 2 * np.full(3, 255)
    mesh = load_mesh(textured(tmp_path, checks, repeat=3))
    grey = mesh.copy()
    grey.face_attributes["color"] = np.full((len(mesh.faces), 3), 0.5)
    fine, plain = picture(mesh), picture(grey, textures=False)
    assert np.abs(fine - plain).max() < 0.02


def test_without_textures_pictures_are_as_before(tmp_path):
    path = textured(tmp_path, np.full((4, 4, 3), 99))
    mesh = load_mesh(path)
    assert np.abs(picture(mesh) - picture(mesh, textures=False)).max() < 0.01
    (tmp_path / "picture.png").unlink()
    mesh = load_mesh(path)  # nothing is worn
    assert np.array_equal(picture(mesh), picture(mesh, textures=False))


def test_a_data_set_has_textures_where_they_are_asked_for(tmp_path):
    path = textured(tmp_path, np.random.default_rng(0).integers(256, size=(8, 8, 3)))
    options = {"views": 1, "size": 32, "count": 200, "timeout": None}
    made = [
        prepare([path], tmp_path / f"{textures}", textures=textures, **options)
        for textures in (True, False)
    ]
    ids = [rows[0]["id"] for rows in made]
    one, other = (
        read_example(tmp_path / kind / f"{name}.npz")
        for kind, name in zip(("True", "False"), ids, strict=True)
    )
    assert not np.array_equal(one["image_0"], other["image_0"])
    for name in ("points", "sdf", "mask_0", "normals_0", "depth_0", "camera_0"):
        assert np.array_equal(one[name], other[name])
    assert "textures" not in ExampleConfig().stored()
    with pytest.raises(ValueError, match="holds examples made with"):
        prepare([path], tmp_path / "False", textures=True, **options)
