"""Files of each format, made here: the same solid comes out, or a line says why not."""

import base64
import io
import json
import re
import struct
import sys
import time
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image

from d2im.data.facets import NO_COLOR, Unreadable, numbers, triangulate
from d2im.data.formats import SUFFIXES, read_surface
from d2im.data.mesh import load_mesh

CASES = Path(__file__).parents[2] / "shared" / "cases" / "meshes"

# A U profile, 3 x 2 x 1: two concave octagons and eight quads.
OUTLINE = [[0, 0], [3, 0], [3, 2], [2.6, 2], [2.6, 0.4], [0.4, 0.4], [0.4, 2], [0, 2]]
U_VERTICES = np.array([[*p, z] for z in (1, 0) for p in OUTLINE], dtype=float)
U_FACES = [[*range(8)], [*range(15, 7, -1)]]
U_FACES += [[k, k + 8, (k + 1) % 8 + 8, (k + 1) % 8] for k in range(8)]
U_AREA, U_VOLUME = 18.16, 2.48

CUBE = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype="f4")
CUBE_FACES = np.array(trimesh.creation.box().faces)
BLUE = [0.0, 0.0, 1.0]


def written(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def solid(surface):
    mesh = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
    return [mesh.area, mesh.volume]


def lines(rows):
    return "".join(" ".join(map(str, row)) + "\n" for row in rows)


def refused(path, match):
    """The path is refused by one line that names it."""
    with pytest.raises(ValueError, match=match) as caught:
        read_surface(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


# Polygons


def obj(vertices, faces):
    faces = [["f", *(k + 1 for k in face)] for face in faces]
    return lines([["v", *map(float, v)] for v in vertices]) + lines(faces)


def off(vertices, faces):
    faces = [[len(face), *face] for face in faces]
    return f"OFF\n{len(vertices)} {len(faces)} 0\n" + lines(vertices) + lines(faces)


def ply(vertices, faces, form="ascii"):
    head = f"ply\nformat {form} 1.0\nelement vertex {len(vertices)}\n"
    head += "".join(f"property double {c}\n" for c in "xyz")
    head += f"element face {len(faces)}\nproperty list uchar int vertex_indices\n"
    head += "end_header\n"
    if form == "ascii":
        return head + lines(vertices) + lines([len(f), *f] for f in faces)
    order = "<" if "little" in form else ">"
    body = np.asarray(vertices).astype(f"{order}f8").tobytes()
    for face in faces:
        body += struct.pack(f"{order}B{len(face)}i", len(face), *face)
    return head.encode() + body


WRITERS = {
    "obj": obj,
    "off": off,
    "ply": ply,
    "little.ply": lambda v, f: ply(v, f, "binary_little_endian"),
    "big.ply": lambda v, f: ply(v, f, "binary_big_endian"),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_concave_polygons_keep_their_area_and_volume(tmp_path, kind):
    rng = np.random.default_rng(1)
    for first in range(8):  # a fan is wrong from some corners, right from others
        turn = trimesh.transformations.random_rotation_matrix(rng.random(3))[:3, :3]
        faces = [[*np.roll(face, first)] for face in U_FACES]
        content = WRITERS[kind](U_VERTICES @ turn.T, faces)
        surface = read_surface(written(tmp_path / f"u.{kind}", content))
        assert np.allclose(solid(surface), [U_AREA, U_VOLUME])
        assert len(surface.faces) == 2 * 6 + 8 * 2


def test_a_concave_quad_and_a_skew_quad_are_two_triangles_each():
    dart = [[0, 0, 0], [2, 1, 0], [0, 2, 0], [0.5, 1, 0]]
    skew = [[0, 0, 0], [1, 0, 0], [1, 1, 0.3], [0, 1, 0]]
    for first in range(4):
        points = np.roll(dart, first, axis=0)
        faces, _ = triangulate(np.concatenate([points, skew]), np.array([4, 4]))
        corners = np.concatenate([points, skew])[faces]
        normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert len(faces) == 4 and (normals[:, 2] > 0).all()
        assert np.isclose(normals[:2, 2].sum() / 2, 1.5)


def test_corners_on_a_straight_edge_leave_no_gap(tmp_path):
    # Every edge of the outline has its middle as a corner, which neighbours share.
    outline = np.array(OUTLINE)
    dense = np.stack([outline, (outline + np.roll(outline, -1, 0)) / 2], 1)
    count = 2 * len(outline)
    vertices = [[*p, z] for z in (1, 0) for p in dense.reshape(-1, 2)]
    faces = [[*range(count)], [*range(2 * count - 1, count - 1, -1)]]
    faces += [
        [k, k + count, (k + 1) % count + count, (k + 1) % count] for k in range(count)
    ]
    path = written(tmp_path / "u.obj", obj(vertices, faces))
    surface = read_surface(path)
    mesh = trimesh.Trimesh(surface.vertices, surface.faces, process=False)
    assert mesh.is_watertight and np.isclose(mesh.volume, U_VOLUME)
    assert load_mesh(path).metadata["solid"]


def test_a_polygon_without_a_plane_is_a_fan():
    points = np.zeros((5, 3))
    faces, owner = triangulate(points, np.array([5]))
    assert len(faces) == 3 and (owner == 0).all()


def test_a_hole_that_a_bridge_joins_to_the_rim_stays_one():
    rim, hole = [[0, 0], [4, 0], [4, 4], [0, 4]], [[1, 1], [1, 3], [3, 3], [3, 1]]
    ring = np.array([*rim, rim[0], *hole, hole[0]], dtype=float)
    faces, _ = triangulate(np.column_stack([ring, 0 * ring[:, 0]]), np.array([10]))
    a, b, c = ring[faces].swapaxes(0, 1)
    areas = np.linalg.det(np.stack([b - a, c - a], axis=1)) / 2
    assert areas.min() > -1e-12 and np.isclose(areas.sum(), 16 - 4)


def test_random_polygons_keep_their_area():
    rng = np.random.default_rng(0)
    for count in (5, 9, 40):
        angle = np.sort(rng.uniform(0, 2 * np.pi, count))
        star = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(
            0.2, 1, (count, 1)
        )
        ahead = np.roll(star, -1, axis=0)
        truth = (star[:, 0] * ahead[:, 1] - star[:, 1] * ahead[:, 0]).sum() / 2
        points = np.column_stack([star, np.zeros(count)])
        faces, _ = triangulate(points, np.array([count]))
        a, b, c = points[faces].swapaxes(0, 1)
        pieces = np.cross(b - a, c - a)[:, 2] / 2
        if np.ptp(angle) > np.pi and np.diff(angle).max() < np.pi:
            assert np.isclose(pieces.sum(), truth)
            assert np.isclose(np.abs(pieces).sum(), truth)


# OBJ

U_OBJ = obj(U_VERTICES, U_FACES)
SPELLINGS = {
    "CR LF": U_OBJ.replace("\n", "\r\n"),
    "CR": U_OBJ.replace("\n", "\r"),
    "tabs": U_OBJ.replace(" ", "\t"),
    "indented": "  " + U_OBJ.replace("\n", "\n \t "),
    "comments": U_OBJ.replace("\n", " # v 1 2 3\n"),
    "a comment with a face": "# f 1 2 3\n#f 1 2 3\n" + U_OBJ,
    "going on": U_OBJ.replace("f 1 2 3 4", "f 1 2 \\\n 3\\\r\n 4"),
    "a comment that does not": "# C:\\me\\\n" + U_OBJ,
    "UTF-8 mark": "\ufeff" + U_OBJ,
    "UTF-16": U_OBJ.encode("utf-16"),
    "old name": U_OBJ.replace("f ", "fo "),
    "no last end": U_OBJ.strip(),
    "groups": "g a b\ns off\no x\n" + U_OBJ.replace("f ", "\ng c\nf "),
    "w": U_OBJ.replace(".0\n", ".0 1.0\n"),
    "lines and points beside": U_OBJ + "l 1 2\np 1\n",
    "normals": "vn 0 0 1\n" + U_OBJ.replace(" 3 ", " 3//1 ").replace(" 4 ", " 4/ "),
    "blank lines": U_OBJ.replace("\n", "\n\n"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_obj_is_the_same_in_any_spelling(tmp_path, spelling):
    surface = read_surface(written(tmp_path / "u.obj", SPELLINGS[spelling]))
    assert np.allclose(solid(surface), [U_AREA, U_VOLUME])


@pytest.mark.parametrize(
    "line, cause",
    [
        ("f 0 1 2", "line 17: index 0 of 16 v"),
        ("f 1 2 99", "line 17: index 99 of 16 v"),
        ("f 1 2 -17", "line 17: index -17 of 16 v"),
        ("f 1/2/3/4 2 3", "corner is none of"),
        ("f 1 2 x", "'x' stands where a number should"),
        ("f 1 2 3.5", "'3.5' stands where"),
        ("v 1 2", "line 17: a vertex of fewer than three numbers"),
        ("v 1,5 2 3", "'1,5' stands where a number should"),
    ],
)
def test_a_wrong_line_of_an_obj_is_named(tmp_path, line, cause):
    text = U_OBJ.replace("f 1 2 3", f"{line}\nf 1 2 3", 1)
    refused(written(tmp_path / "u.obj", text), cause)


def test_an_obj_of_lines_says_so(tmp_path):
    refused(written(tmp_path / "l.obj", "v 0 0 0\nv 1 0 0\nl 1 2\n"), "left out: lines")


def test_vertex_colours_of_an_obj_are_read(tmp_path):
    for blue in ("0 0 1", "0 0 255"):
        text = U_OBJ.replace(".0\n", f".0 {blue}\n")
        surface = read_surface(written(tmp_path / "c.obj", text))
        assert np.allclose(surface.color, BLUE)


@pytest.mark.parametrize(
    "color, seen",
    [
        ("1.0001 0.2 0.1", [1, 0.2, 0.1]),  # rounded
        ("3 0.5 0.1", [1, 0.5, 0.1]),  # it shines
        ("2 0 1", [2 / 255, 0, 1 / 255]),
        ("200.5 20 10", [200.5 / 255, 20 / 255, 10 / 255]),
        ("0.2 0.4 0.6 1", [0.2, 0.4, 0.6]),  # alpha
        ("1 0.4 0.6 1", [1, 0.4, 0.6]),
        ("1 0.2 0.4 0.6", [0.2, 0.4, 0.6]),  # w before them
        ("1 0 0 1", [1, 0, 0]),  # either: alpha
    ],
)
def test_colours_of_any_size_and_place_are_read(tmp_path, color, seen):
    text = U_OBJ.replace(".0\n", f".0 {color}\n")
    surface = read_surface(written(tmp_path / "c.obj", text))
    assert np.allclose(surface.color, seen)


def test_a_bare_part_leaves_the_others_their_colours(tmp_path):
    written(tmp_path / "a.mtl", "newmtl r\nKd 1 0 0\n")
    bare = "v 5 0 0\nv 6 0 0\nv 6 1 0\nf 17 18 19\nusemtl r\nf 17 19 18\n"
    text = "mtllib a.mtl\n" + U_OBJ.replace(".0\n", ".0 0 0 1\n") + bare
    surface = read_surface(written(tmp_path / "c.obj", text))
    assert np.allclose(surface.color[:-2], BLUE)
    assert np.allclose(surface.color[-2:], [NO_COLOR, [1, 0, 0]])


def picture(path=None, wide=4, kind="PNG"):
    """Red on its left half, blue on its right."""
    image = np.zeros((2, wide, 3), dtype=np.uint8)
    image[:, : wide // 2, 0] = image[:, wide // 2 :, 2] = 255
    file = io.BytesIO()
    Image.fromarray(image).save(
        file, kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    return written(path, file.getvalue()) if path else file.getvalue()


def worn_obj(path, mtllib="a.mtl", name="paint", u=0.75):
    """A U whose corners all stand at one place of a picture."""
    faces = U_OBJ[U_OBJ.index("f") :].split("\n")
    faces = [
        f"f {' '.join(k + '/1' for k in line[2:].split())}" for line in faces if line
    ]
    text = f"mtllib {mtllib}\n{U_OBJ[: U_OBJ.index('f')]}vt {u} 0.5\n"
    return written(path, f"{text}usemtl {name}\n" + "\n".join(faces))


MATERIALS = {  # mtllib, its file, what is in it, where the picture lies
    "plain": ("a.mtl", "a.mtl", "newmtl paint\nmap_Kd b.png", "b.png"),
    "black Kd": ("a.mtl", "a.mtl", "newmtl paint\nKd 0 0 0\nmap_Kd b.png", "b.png"),
    "blanks": ("my a.mtl", "my a.mtl", "newmtl paint\nmap_Kd my b.png", "my b.png"),
    "several": ("no.mtl a.mtl", "a.mtl", "newmtl paint\nmap_Kd b.png", "b.png"),
    "case": ("A.MTL", "a.mtl", "NEWMTL Paint\nmap_kd Tex\\B.PNG", "tex/b.png"),
    "Windows": ("C:\\m\\a.mtl", "a.mtl", "newmtl paint\nmap_Kd D:\\t\\b.png", "b.png"),
    "folder": ("m/a.mtl", "m/a.mtl", "newmtl paint\nmap_Kd b.png", "m/b.png"),
    "up and down": ("m/a.mtl", "m/a.mtl", "newmtl paint\nmap_Kd ../t/b.png", "t/b.png"),
    "mark, CR": ("a.mtl", "a.mtl", "\ufeffnewmtl paint\r  map_Kd\tb.png\r", "b.png"),
    "quotes": ("a.mtl", "a.mtl", 'newmtl paint\nmap_Kd "b.png"', "b.png"),
    "options": (
        "a.mtl",
        "a.mtl",
        "newmtl paint\nmap_Kd -blendu on -mm 0 1 -s 1 1 1 -o 0 0 -texres 9 b.png",
        "b.png",
    ),
}


@pytest.mark.parametrize("kind", MATERIALS)
def test_the_picture_of_an_mtl_is_found_however_it_is_spelled(tmp_path, kind):
    mtllib, mtl, text, place = MATERIALS[kind]
    picture(tmp_path / place)
    written(tmp_path / mtl, text)
    surface = read_surface(worn_obj(tmp_path / "u.obj", mtllib))
    assert surface.lost()["notes"] == () and np.allclose(surface.color, BLUE)


@pytest.mark.parametrize(
    "option, u", [("-o 0.5", 0.25), ("-s 3", 0.25), ("-s 9 -o .5", 0.02)]
)
def test_scale_and_offset_move_the_picture(tmp_path, option, u):
    picture(tmp_path / "b.png")
    written(tmp_path / "a.mtl", f"newmtl paint\nmap_Kd {option} b.png\n")
    surface = read_surface(worn_obj(tmp_path / "u.obj", u=u))
    assert np.allclose(surface.color, BLUE)


def test_a_material_name_may_hold_a_hash_and_a_blank(tmp_path):
    written(tmp_path / "a.mtl", "newmtl Material #25\nKd 0 0 1\n")
    surface = read_surface(worn_obj(tmp_path / "u.obj", name="Material #25"))
    assert np.allclose(surface.color, BLUE)


@pytest.mark.parametrize(
    "color, seen, note",
    [
        ("0 0 1 # blue", BLUE, ""),
        ("0.5", [0.5, 0.5, 0.5], ""),
        ("1.0001 0.2 0.1", [1, 0.2, 0.1], ""),
        ("0,5 0,5 0,5", None, "colour '0,5 0,5 0,5': not read"),
        ("xyz 1 1 1", None, "colour 'xyz 1 1 1': not read"),
        ("1 2", None, "colour '1 2': not read"),
    ],
)
def test_a_materials_colour_is_read_or_named(tmp_path, color, seen, note):
    written(tmp_path / "a.mtl", f"newmtl paint\nKd {color}\n")
    surface = read_surface(worn_obj(tmp_path / "u.obj"))
    assert np.allclose(solid(surface), [U_AREA, U_VOLUME])
    assert surface.color is None if seen is None else np.allclose(surface.color, seen)
    assert surface.lost()["notes"] == ((note,) if note else ())


def test_the_report_counts_pictures_and_materials_that_are_not_there(tmp_path):
    written(tmp_path / "a.mtl", "newmtl paint\nKd 0 0 1\nmap_Kd gone.png\n")
    path = worn_obj(tmp_path / "u.obj")
    path.write_text(path.read_text().replace("f 1", "usemtl oak\nf 1", 1))
    report = load_mesh(path).metadata["report"]
    assert report.images_lost == 0 and report.materials_lost == 1
    path = worn_obj(tmp_path / "u.obj")
    mesh = load_mesh(path)
    report = mesh.metadata["report"]
    assert report.images_lost == 1 and report.materials_lost == 0
    assert "images lost 1; image gone.png: not found" in str(report)
    assert np.allclose(mesh.face_attributes["color"], BLUE)  # its Kd


def test_each_face_has_the_material_named_before_it(tmp_path):
    written(tmp_path / "a.mtl", "newmtl r\nKd 1 0 0\nnewmtl b\nKd 0 0 1\n")
    head, first, rest = U_OBJ.partition("f 1")
    text = f"mtllib a.mtl\nusemtl b\n{head}{first}" + rest.replace(
        "\nf", "\nusemtl r\nf"
    )
    surface = read_surface(written(tmp_path / "u.obj", text))
    up = np.arange(len(surface.faces)) < 6
    assert np.allclose(surface.color[up], BLUE) and len(set(surface.part)) == 2
    assert np.allclose(surface.color[~up], [1, 0, 0])


# PLY, OFF, STL


def test_strips_of_a_ply_are_read(tmp_path):
    strip = [0, 1, 2, 3, -1, 4, 6, 5, 7, -1, 0, 4, 1, 5, -1, 2, 3, 6, 7, -1]
    strip += [0, 2, 4, 6, -1, 1, 5, 3, 7]
    text = f"ply\nformat ascii 1.0\nelement vertex 8\n{'property float {}' * 0}"
    text += "property float x\nproperty float y\nproperty float z\n"
    text += "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
    text += lines(CUBE) + f"{len(strip)} " + " ".join(map(str, strip)) + "\n"
    surface = read_surface(written(tmp_path / "s.ply", text))
    assert len(surface.faces) == 12
    assert np.allclose(np.abs(solid(surface)), [6, 1])


def test_blank_lines_and_elements_that_are_no_mesh_do_not_matter(tmp_path):
    text = ply(U_VERTICES, U_FACES).replace("element vertex", "element knot 2\n"
        "property list char float at\nproperty int n\nelement vertex")  # fmt: skip
    text = text.replace("end_header\n", "end_header\n2 0.5 0.5 7\n\n0 8\n\n").rstrip()
    surface = read_surface(written(tmp_path / "u.ply", text + "\n\n\n"))
    assert np.allclose(solid(surface), [U_AREA, U_VOLUME])


@pytest.mark.parametrize(
    "kind, top",
    [("uchar", 255), ("ushort", 65535), ("float", 1), ("int", 255), ("char", 127)],
)
def test_colours_of_a_ply_are_read_at_vertices_and_faces(tmp_path, kind, top):
    colors = "".join(f"property {kind} {c}\n" for c in ("red", "green", "blue"))
    plain = ply(U_VERTICES, U_FACES)
    at_faces = plain.replace("end_header", f"{colors}end_header")
    head, body = at_faces.split("end_header\n")
    body = body.split("\n")
    body[16:26] = [f"{line} 0 0 {top}" for line in body[16:26]]
    text = f"{head}end_header\n" + "\n".join(body)
    surface = read_surface(written(tmp_path / "f.ply", text))
    assert np.allclose(surface.color, BLUE) and np.allclose(solid(surface)[0], U_AREA)
    head, body = plain.replace("element face", f"{colors}element face").split(
        "header\n"
    )
    body = body.split("\n")
    body[:16] = [f"{line} 0 0 {top}" for line in body[:16]]
    surface = read_surface(
        written(tmp_path / "v.ply", f"{head}header\n" + "\n".join(body))
    )
    assert np.allclose(surface.color, BLUE) and np.allclose(solid(surface)[0], U_AREA)


def test_a_ply_wears_the_picture_that_a_comment_names(tmp_path):
    picture(tmp_path / "b.png")
    text = ply(U_VERTICES, U_FACES).replace(
        "ascii 1.0", "ascii 1.0\ncomment TextureFile b.png"
    )
    text = text.replace("double z", "double z\nproperty float s\nproperty float t")
    head, body = text.split("end_header\n")
    body = body.split("\n")
    body[:16] = [f"{line} 0.75 0.5" for line in body[:16]]
    surface = read_surface(
        written(tmp_path / "t.ply", f"{head}end_header\n" + "\n".join(body))
    )
    assert np.allclose(surface.color, BLUE)


def test_a_list_that_promises_four_thousand_million_corners_is_refused(tmp_path):
    data = ply(CUBE, CUBE_FACES, "binary_little_endian")
    head, body = data.replace(b"list uchar", b"list uint").split(b"end_header\n")
    corners = struct.pack("<I3i", 3, 0, 1, 2) + struct.pack(
        "<I3i", 4_000_000_000, 0, 1, 2
    )
    body = body[: 8 * 24] + corners * 6
    path = written(tmp_path / "c.ply", head + b"end_header\n" + body)
    refused(path, "a list of face has 4e\\+09 entries")


def test_splats_are_named(tmp_path):
    text = "ply\nformat ascii 1.0\nelement vertex 1\n"
    text += "".join(f"property float {n}\n" for n in ("x", "y", "z", "f_dc_0"))
    refused(
        written(tmp_path / "s.ply", text + "end_header\n0 0 0 1\n"), "splats; make a"
    )


OFF_BODY = off(U_VERTICES, U_FACES)[4:]
NUMBERS = [" ".join(line.split()) for line in OFF_BODY.split("\n")[1:17]]
OFFS = {
    "counts first": "OFF " + OFF_BODY,
    "no blank": "OFF" + OFF_BODY,
    "no edges": "OFF\n16 10\n" + OFF_BODY.split("\n", 1)[1],
    "one a line": "OFF\n" + "\n".join(OFF_BODY.split()),
    "one line": "OFF " + " ".join(OFF_BODY.split()),
    "comments": "# of mine\nOFF # U\n\n" + OFF_BODY.replace("\n", " # at\n#\n"),
    "CR LF": "OFF\r\n" + OFF_BODY.replace("\n", "\r\n"),
    "normals": "NOFF\n" + OFF_BODY.replace(".0\n", ".0 0 0 1\n"),
    "uv": "STOFF\n" + OFF_BODY.replace(".0\n", ".0 0.5 0.5\n"),
    "edges": "OFF\n" + OFF_BODY.replace("16 10 0", "16 10 24"),
}


@pytest.mark.parametrize("kind", OFFS)
def test_an_off_is_the_same_in_any_spelling(tmp_path, kind):
    surface = read_surface(written(tmp_path / "u.off", OFFS[kind]))
    assert np.allclose(solid(surface), [U_AREA, U_VOLUME]) and surface.color is None


@pytest.mark.parametrize("blue", ["0 0 1 1", "0 0 255 255", "0 0 1", "0 0 255"])
def test_colours_of_an_off_are_read_at_vertices_and_faces(tmp_path, blue):
    text = "COFF\n" + OFF_BODY.replace(".0\n", f".0 {blue}\n")
    assert np.allclose(read_surface(written(tmp_path / "v.off", text)).color, BLUE)
    rows = OFF_BODY.split("\n")
    rows[17:27] = [f"{row} {blue}" for row in rows[17:27]]
    surface = read_surface(written(tmp_path / "f.off", "OFF\n" + "\n".join(rows)))
    assert np.allclose(surface.color, BLUE)
    assert np.allclose(solid(surface), [U_AREA, U_VOLUME])


def stl(text, start=b""):
    cube = trimesh.Trimesh(CUBE, CUBE_FACES, process=False)
    data = cube.export(file_type="stl_ascii" if text else "stl")
    return data.encode() if text else start + data[len(start) :]


STLS = {
    "binary": stl(False),
    "named solid": stl(False, b"solid of steel"),
    "bytes behind": stl(False) + b"made by me\n",
    "solid, bytes behind": stl(False, b"solid") + bytes(7),
    "text": stl(True),
    "upper": stl(True).upper(),
    "CR": stl(True).replace(b"\n", b"\r"),
    "CR LF, indented": stl(True).replace(b"\n", b"\r\n\t"),
    "a name": b"solid facet vertex\n" + stl(True).split(b"\n", 1)[1],
    "no end": stl(True).split(b"endsolid")[0],
    "bad normals": stl(True).replace(b"normal 0 0 1", b"normal -nan(ind) 0 0"),
}


@pytest.mark.parametrize("kind", STLS)
def test_an_stl_is_the_same_in_any_spelling(tmp_path, kind):
    surface = read_surface(written(tmp_path / "c.stl", STLS[kind]))
    assert np.allclose(solid(surface), [6, 1]) and len(surface.faces) == 12


def test_each_solid_of_an_stl_is_a_part(tmp_path):
    moved = trimesh.Trimesh(CUBE + 2, CUBE_FACES, process=False)
    second = moved.export(file_type="stl_ascii").encode()
    surface = read_surface(written(tmp_path / "c.stl", stl(True) + b"\n" + second))
    assert np.bincount(surface.part).tolist() == [12, 12]


def test_a_cut_stl_is_refused(tmp_path):
    refused(written(tmp_path / "b.stl", stl(False)[:-60]), "12 triangles promised, 10")
    refused(written(tmp_path / "t.stl", stl(True)[:-400]), "cut off")


# glTF

KINDS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class Gltf:
    """A glTF in the making; arrays go into its one buffer."""

    def __init__(self, **tree):
        self.blob = b""
        self.tree = {"asset": {"version": "2.0"}, "bufferViews": [], "accessors": []}
        self.tree |= {"scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}]}
        self.tree |= tree

    def view(self, data, **more):
        view = {"buffer": 0, "byteOffset": len(self.blob), "byteLength": len(data)}
        self.blob += data + bytes(-len(data) % 4)
        self.tree["bufferViews"].append(view | more)
        return len(self.tree["bufferViews"]) - 1

    def array(self, values, **more):
        values = np.asarray(values)
        width = 1 if values.ndim == 1 else values[0].size
        own = {"count": len(values), "type": SHAPES[width]}
        own["componentType"] = KINDS[values.dtype.str[1:]]
        self.tree["accessors"].append(
            {**own, "bufferView": self.view(values.tobytes())} | more
        )
        return len(self.tree["accessors"]) - 1

    def cube(self, faces=CUBE_FACES, points=CUBE, **primitive):
        """Make the mesh 0 of one primitive, a unit cube."""
        own = {"attributes": {"POSITION": self.array(points)}}
        own["indices"] = self.array(np.ravel(faces).astype("u2"))
        own["attributes"] |= primitive.pop("attributes", {})
        self.tree["meshes"] = [{"primitives": [own | primitive]}]
        return self

    def primitive(self):
        return self.tree["meshes"][0]["primitives"][0]

    def write(self, path):
        if self.blob and "buffers" not in self.tree:
            self.tree["buffers"] = [{"byteLength": len(self.blob)}]
            if path.suffix == ".gltf":
                data = base64.b64encode(self.blob).decode()
                self.tree["buffers"][0]["uri"] = f"data:;base64,{data}"
        text = json.dumps(self.tree).encode()
        if path.suffix == ".gltf":
            return written(path, text)
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
        chunks += struct.pack("<II", len(self.blob), 0x004E4942) + self.blob
        return written(path, b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks)


def test_normalised_whole_numbers_are_what_they_stand_for(tmp_path):
    for kind in ("i1", "u1", "i2", "u2"):
        top = np.iinfo(kind).max
        low = 0 if kind[0] == "u" else -top
        scale = top - low
        g = Gltf(nodes=[{"mesh": 0, "scale": [3, 3, 3]}])
        g.cube(points=np.where(CUBE > 0, top, low).astype(kind))
        g.tree["accessors"][0]["normalized"] = True
        side = 3 * scale / top
        assert np.allclose(
            solid(read_surface(g.write(tmp_path / "n.glb"))), [6 * side**2, side**3]
        )
        g.tree["accessors"][0]["normalized"] = False
        side = 3.0 * scale
        assert np.allclose(
            solid(read_surface(g.write(tmp_path / "n.glb"))), [6 * side**2, side**3]
        )


@pytest.mark.parametrize("based", [True, False])
def test_a_sparse_accessor_is_its_base_with_what_is_put_in(tmp_path, based):
    g = Gltf().cube(points=CUBE * np.array([1, 1, 0], "f4"))
    index = g.view(np.flatnonzero(CUBE[:, 2]).astype("u1").tobytes())
    if not based:
        index = g.view(np.arange(8, dtype="u1").tobytes())
        del g.tree["accessors"][0]["bufferView"]
    values = g.view((CUBE if not based else CUBE[CUBE[:, 2] > 0]).tobytes())
    g.tree["accessors"][0]["sparse"] = {
        "count": 4 if based else 8,
        "indices": {"bufferView": index, "componentType": 5121},
        "values": {"bufferView": values},
    }
    assert np.allclose(solid(read_surface(g.write(tmp_path / "s.glb"))), [6, 1])


def test_interleaved_attributes_are_read_by_their_stride(tmp_path):
    g = Gltf().cube()
    rows = np.column_stack([np.full((8, 3), 9, "f4"), CUBE]).astype("f4")
    view = g.view(rows.tobytes(), byteStride=24)
    g.tree["accessors"][0] |= {"bufferView": view, "byteOffset": 12}
    assert np.allclose(solid(read_surface(g.write(tmp_path / "s.glb"))), [6, 1])


def test_fans_and_strips_and_corners_without_indices_are_read(tmp_path):
    quads = [q[:] for q in ([0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1])]
    quads += [[2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]]
    for mode in (4, 5, 6):
        g = Gltf().cube()
        shared = g.primitive()["attributes"]
        own = []
        for a, b, c, d in quads:
            order = {4: [a, b, c, a, c, d], 5: [a, b, d, c], 6: [a, b, c, d]}[mode]
            index = g.array(np.array(order, dtype="u1"))
            own.append({"attributes": shared, "indices": index, "mode": mode})
        g.tree["meshes"] = [{"primitives": own}]
        assert np.allclose(solid(read_surface(g.write(tmp_path / "m.glb"))), [6, 1])
    g = Gltf().cube(points=CUBE[CUBE_FACES].reshape(-1, 3))
    del g.primitive()["indices"]
    assert np.allclose(solid(read_surface(g.write(tmp_path / "m.gltf"))), [6, 1])


def test_a_matrix_and_its_parts_place_alike_also_where_they_mirror(tmp_path):
    turn = trimesh.transformations.rotation_matrix(0.7, [1, 2, 3], [0, 0, 0])
    w, x, y, z = trimesh.transformations.quaternion_from_matrix(turn)
    for scale in ([1, 2, 3], [-1, 2, 3]):
        matrix = turn @ np.diag([*scale, 1])
        matrix[:3, 3] = [4, 5, 6]
        parts = {"translation": [4, 5, 6], "rotation": [x, y, z, w], "scale": scale}
        found = []
        for node in ({"matrix": matrix.T.ravel().tolist()}, parts):
            g = Gltf(
                nodes=[{"children": [1], "translation": [1, 1, 1]}, {"mesh": 0, **node}]
            )
            found.append(read_surface(g.cube().write(tmp_path / "m.glb")))
        assert np.allclose(found[0].vertices, found[1].vertices)
        assert np.array_equal(found[0].faces, found[1].faces)
        truth = CUBE @ matrix[:3, :3].T + [5, 6, 7]
        assert np.allclose(found[0].vertices, truth)
        assert np.isclose(solid(found[0])[1], 6)  # outward


def test_instances_stand_where_their_attributes_say(tmp_path):
    g = Gltf(nodes=[{"mesh": 0, "translation": [0, 0, 1]}]).cube()
    half = np.sqrt(0.5).astype("f4")
    own = {
        "TRANSLATION": g.array(np.array([[0, 0, 0], [4, 0, 0]], "f4")),
        "ROTATION": g.array(np.array([[0, 0, 0, 1], [0, 0, half, half]], "f4")),
        "SCALE": g.array(np.array([[1, 1, 1], [3, 1, 1]], "f4")),
    }
    g.tree["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": {"attributes": own}}
    g.tree["extensionsRequired"] = ["EXT_mesh_gpu_instancing"]
    surface = read_surface(g.write(tmp_path / "i.glb"))
    assert np.allclose(solid(surface), [6 + 14, 1 + 3])
    second = surface.vertices[8:]
    assert np.allclose([second.min(0), second.max(0)], [[3, 0, 1], [4, 3, 2]])


def test_a_skinned_mesh_stands_where_its_joints_are(tmp_path):
    # Its upper vertices hang on a joint at y = 1 that is moved up by 2; the node's own
    # move does not count.
    g = Gltf().cube()
    joints = np.zeros((8, 4), dtype="u1")
    joints[:, 0] = CUBE[:, 1]
    weights = np.zeros((8, 4), dtype="f4")
    weights[:, 0] = 1
    g.primitive()["attributes"] |= {
        "JOINTS_0": g.array(joints),
        "WEIGHTS_0": g.array(weights),
    }
    bind = np.tile(np.eye(4, dtype="f4"), (2, 1, 1))
    bind[1, :3, 3] = [0, -1, 0]
    inverse = g.array(bind.swapaxes(1, 2).reshape(2, 16))
    g.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": inverse}]
    g.tree["nodes"] = [{"mesh": 0, "skin": 0, "translation": [50, 0, 0]}]
    g.tree["nodes"] += [{"children": [2]}, {"translation": [0, 3, 0]}]
    g.tree["scenes"][0]["nodes"] = [0, 1]
    surface = read_surface(g.write(tmp_path / "s.glb"))
    assert np.allclose(surface.vertices, CUBE * [1, 3, 1])


def test_default_weights_move_towards_their_targets(tmp_path):
    g = Gltf().cube()
    g.primitive()["targets"] = [
        {"POSITION": g.array(CUBE)},
        {"POSITION": g.array(CUBE)},
    ]
    g.tree["meshes"][0]["weights"] = [0, 0.5]
    surface = read_surface(g.write(tmp_path / "m.glb"))
    assert np.allclose(surface.vertices, 1.5 * CUBE)
    g.tree["nodes"][0]["weights"] = [1, 1]  # a node's go before the mesh's
    surface = read_surface(g.write(tmp_path / "m.glb"))
    assert np.allclose(surface.vertices, 3 * CUBE)


def test_the_default_scene_is_read_and_without_one_every_node(tmp_path):
    nodes = [{"mesh": 0}, {"mesh": 0, "translation": [9, 0, 0], "camera": 0}]
    g = Gltf(nodes=nodes, scenes=[{"nodes": [0]}, {"nodes": [1]}], scene=1).cube()
    assert read_surface(g.write(tmp_path / "a.glb")).vertices[:, 0].min() == 9
    for key in ("scene", "scenes"):
        del g.tree[key]
        assert len(read_surface(g.write(tmp_path / "a.glb")).faces) == {
            "scene": 12
        }.get(key, 24)
    del g.tree["nodes"]
    assert len(read_surface(g.write(tmp_path / "a.glb")).faces) == 12


def test_a_node_that_is_hidden_is_not_read(tmp_path):
    hidden = {
        "extensions": {"KHR_node_visibility": {"visible": False}},
        "children": [1],
    }
    g = Gltf(
        nodes=[hidden, {"mesh": 0}, {"mesh": 0}], scenes=[{"nodes": [0, 2]}]
    ).cube()
    assert len(read_surface(g.write(tmp_path / "h.glb")).faces) == 12


def test_primitives_of_no_face_are_counted(tmp_path):
    g = Gltf().cube()
    g.tree["meshes"][0]["primitives"] += [
        {**g.primitive(), "mode": 1},
        {"attributes": {}},
    ]
    report = load_mesh(g.write(tmp_path / "l.glb")).metadata["report"]
    assert report.notes == ("1 of points or lines", "1 of no position")


def test_one_buffer_for_many_primitives_does_not_come_with_each(tmp_path):
    g = Gltf().cube(points=np.concatenate([CUBE, np.full((999, 3), 7, "f4")]))
    g.tree["meshes"][0]["primitives"] *= 5
    assert len(read_surface(g.write(tmp_path / "b.glb")).vertices) == 5 * 8


def draco_cube(g):
    DracoPy = pytest.importorskip("DracoPy")
    data = DracoPy.encode(CUBE, CUBE_FACES.astype("u4"), quantization_bits=14)
    ids = {"POSITION": DracoPy.decode(data).attributes[0]["unique_id"]}
    packed = {"bufferView": g.view(data), "attributes": ids}
    g.primitive()["extensions"] = {"KHR_draco_mesh_compression": packed}
    for accessor in g.tree["accessors"]:
        del accessor["bufferView"]
    return g


def test_draco_is_read_where_its_library_is_and_else_named(tmp_path, monkeypatch):
    path = draco_cube(Gltf().cube()).write(tmp_path / "d.glb")
    assert np.allclose(solid(read_surface(path)), [6, 1], atol=1e-3)
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    refused(path, "compressed with Draco .*; `pip install DracoPy`")


REFUSALS = {
    "it needs the extension NEW_geometry; export": {
        "extensionsRequired": ["NEW_geometry"]
    },
    "needs .*KHR_texture_basisu; .* PNG": {
        "extensionsRequired": ["KHR_texture_basisu"]
    },
    "node 1 has two parents": {"nodes": [{"children": [1, 1]}, {"mesh": 0}]},
    "form a circle": {"nodes": [{"mesh": 0}, {"children": [2]}, {"children": [1]}]},
    "scene shows none of its 1 meshes": {"scenes": [{"nodes": []}]},
    "names nodes 7 of 1": {"scenes": [{"nodes": [7]}]},
    "names meshes -1 of 1": {"nodes": [{"mesh": -1}]},
    "glTF 1.0; export it as glTF 2.0": {"asset": {"version": "1.0"}},
    "names scenes 4 of 1": {"scene": 4},
}


@pytest.mark.parametrize("cause", REFUSALS)
def test_what_of_a_gltf_is_not_read_is_refused_by_its_name(tmp_path, cause):
    g = Gltf(**REFUSALS[cause]).cube()
    refused(g.write(tmp_path / "a.glb"), cause)


@pytest.mark.parametrize("required", [True, False])
def test_meshopt_is_refused_unless_there_is_another_copy(tmp_path, required):
    g = Gltf().cube()
    name = "EXT_meshopt_compression"
    g.tree["bufferViews"][0]["extensions"] = {name: {"buffer": 0, "mode": "ATTRIBUTES"}}
    g.tree["extensionsUsed"] = [name]
    if required:
        g.tree["extensionsRequired"] = [name]
        refused(
            g.write(tmp_path / "m.glb"),
            "compressed with meshopt .*; unpack it: gltfpack",
        )
    else:
        assert np.allclose(solid(read_surface(g.write(tmp_path / "m.glb"))), [6, 1])


def test_a_cut_glb_says_so(tmp_path):
    path = Gltf().cube().write(tmp_path / "c.glb")
    whole = path.read_bytes()
    for size in (14, 60, len(whole) - 9):
        refused(written(path, whole[:size]), "cut off")


@pytest.mark.parametrize("uri", ["a%20b%C3%BC.bin", "a bü.bin", "A%20B%C3%BC.BIN"])
def test_a_buffer_is_found_by_a_percent_encoded_name(tmp_path, uri):
    g = Gltf().cube()
    written(tmp_path / "a bü.bin", g.blob)
    g.tree["buffers"] = [{"byteLength": len(g.blob), "uri": uri}]
    assert np.allclose(solid(read_surface(g.write(tmp_path / "p.gltf"))), [6, 1])


def test_a_missing_buffer_is_named(tmp_path):
    g = Gltf().cube()
    g.tree["buffers"] = [{"byteLength": len(g.blob), "uri": "gone.bin"}]
    refused(g.write(tmp_path / "p.gltf"), "its buffer gone.bin is missing")


def worn_gltf(material, image=None, uv=(0.75, 0.5), texture=None, **attributes):
    g = Gltf().cube()
    g.primitive()["material"] = 0
    points = g.array(np.tile(np.array(uv, "f4"), (8, 1)))
    g.primitive()["attributes"] |= {"TEXCOORD_0": points, **attributes}
    data = base64.b64encode(image or picture()).decode()
    g.tree["images"] = [{"uri": f"data:image/png;base64,{data}"}]
    g.tree["textures"] = [{"source": 0} if texture is None else texture]
    g.tree["materials"] = [material]
    return g


def base_color(factor=None, **info):
    own = {"baseColorTexture": {"index": 0, **info}}
    return {
        "pbrMetallicRoughness": own | ({"baseColorFactor": factor} if factor else {})
    }


def moved(**transform):
    return {"extensions": {"KHR_texture_transform": transform}}


WORN = {
    "texture": worn_gltf(base_color()),
    "offset": worn_gltf(base_color(**moved(offset=[0.5, 0])), uv=(0.25, 0.5)),
    "scale": worn_gltf(base_color(**moved(scale=[3, 1])), uv=(0.25, 0.5)),
    # A quarter turn takes (u, v) to (v, -u).
    "rotation": worn_gltf(base_color(**moved(rotation=np.pi / 2)), uv=(0.1, 0.75)),
    "beyond": worn_gltf(base_color(), uv=(-3.25, 8.5)),
    "webp": worn_gltf(
        base_color(),
        picture(kind="WEBP"),
        texture={"extensions": {"EXT_texture_webp": {"source": 0}}},
    ),
    "palette": worn_gltf(base_color(), picture(kind="GIF")),
    "factor": worn_gltf({"pbrMetallicRoughness": {"baseColorFactor": [0, 0, 1, 1]}}),
    "gloss": worn_gltf(
        {
            "extensions": {
                "KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [0, 0, 1, 1]}
            }
        }
    ),
    "gloss texture": worn_gltf(
        {
            "extensions": {
                "KHR_materials_pbrSpecularGlossiness": {"diffuseTexture": {"index": 0}}
            }
        }
    ),
}


@pytest.mark.parametrize("kind", WORN)
def test_what_a_gltf_wears_comes_out_blue(tmp_path, kind):
    surface = read_surface(WORN[kind].write(tmp_path / "w.gltf"))
    assert np.allclose(surface.color, BLUE, atol=0.01) and not surface.images


def test_a_second_set_of_coordinates_and_a_clamped_edge(tmp_path):
    g = worn_gltf(base_color(texCoord=1), uv=(0.25, 0.5))
    g.primitive()["attributes"]["TEXCOORD_1"] = g.array(
        np.tile(np.array([2.25, 0.5], "f4"), (8, 1))
    )
    assert np.allclose(read_surface(g.write(tmp_path / "a.glb")).color, [1, 0, 0])
    g.tree["samplers"] = [{"wrapS": 33071}]
    g.tree["textures"][0]["sampler"] = 0
    assert np.allclose(read_surface(g.write(tmp_path / "a.glb")).color, BLUE)
    g.tree["samplers"] = [{"wrapS": 33648}]
    g.primitive()["attributes"]["TEXCOORD_1"] = g.array(
        np.tile(np.array([1.25, 0.5], "f4"), (8, 1))
    )
    assert np.allclose(read_surface(g.write(tmp_path / "a.glb")).color, BLUE)


@pytest.mark.parametrize("kind, top", [("f4", 1), ("u1", 255), ("u2", 65535)])
@pytest.mark.parametrize("width", [3, 4])
def test_vertex_colours_are_linear_light_of_any_type(tmp_path, kind, top, width):
    g = Gltf().cube()
    rows = np.tile(np.array([0.21404 * top, 0, top, top][:width]), (8, 1)).astype(kind)
    rows = np.pad(rows, ((0, 0), (0, 4 - width))) if kind == "u1" else rows
    color = g.array(rows, normalized=kind != "f4")
    g.primitive()["attributes"]["COLOR_0"] = color
    surface = read_surface(g.write(tmp_path / "c.glb"))
    assert np.allclose(surface.color, [0.5, 0, 1], atol=0.01)


def test_texture_factor_and_vertex_colour_are_multiplied(tmp_path):
    g = worn_gltf(base_color([1, 1, 0.5, 1]))
    g.primitive()["attributes"]["COLOR_0"] = g.array(np.full((8, 3), 0.42808, "f4"))
    surface = read_surface(g.write(tmp_path / "c.glb"))
    assert np.allclose(surface.color, [0, 0, 0.5], atol=0.01)


def test_a_textured_strip_of_no_face_is_left_out(tmp_path):
    g = worn_gltf(base_color())
    g.primitive()["attributes"]["COLOR_0"] = g.array(np.ones((8, 3), "f4"))
    strip = g.primitive() | {"mode": 5, "indices": g.array(np.arange(2, dtype="u2"))}
    g.tree["meshes"][0]["primitives"].append(strip)
    assert len(read_surface(g.write(tmp_path / "c.glb")).faces) == 12


@pytest.mark.parametrize("light", [1.0, 0.5])
def test_vertices_of_one_colour_leave_the_texture_to_be_worn(tmp_path, light):
    g = worn_gltf(base_color())
    g.primitive()["attributes"]["COLOR_0"] = g.array(np.full((8, 3), light, "f4"))
    surface = read_surface(g.write(tmp_path / "c.glb"))
    (paint,) = surface.worn
    assert np.allclose(paint.tint, light)


def test_primitives_that_wear_one_picture_share_it(tmp_path):
    g = worn_gltf(base_color())
    g.tree["meshes"][0]["primitives"] *= 3
    g.tree["textures"] *= 2
    surface = read_surface(g.write(tmp_path / "c.gltf"))
    first, *others = (paint.texture.source for paint in surface.worn)
    assert len(others) == 2 and all(other is first for other in others)


def test_a_texture_of_a_kind_that_is_not_read_is_reported(tmp_path):
    g = worn_gltf(
        base_color(), texture={"extensions": {"KHR_texture_basisu": {"source": 0}}}
    )
    report = load_mesh(g.write(tmp_path / "b.glb")).metadata["report"]
    assert report.images_lost == 1 and "KHR_texture_basisu: not read" in str(report)


# Damaged and hostile files


def test_a_small_file_may_not_fill_the_memory(tmp_path):
    count = 200_000
    nodes = [{"mesh": 0, "translation": [2 * k, 0, 0]} for k in range(count)]
    nodes.append({"children": [*range(count)]})
    many = Gltf(nodes=nodes, scenes=[{"nodes": [count]}]).cube()
    far = Gltf().cube()
    far.tree["accessors"].append(
        {"componentType": 5126, "type": "VEC3", "count": 10**9}
    )
    again = Gltf().cube(np.tile(CUBE_FACES, (3000, 1)))  # 36,000 faces, stored once
    again.tree["meshes"][0]["primitives"] *= 60
    refused(again.write(tmp_path / "again.glb"), "56 parts or more of 2,")
    first = again.tree["meshes"][0]["primitives"][0]
    copies = [first["indices"], *range(2, 61)]  # of the accessor, not of its bytes
    again.tree["accessors"] += 59 * [again.tree["accessors"][first["indices"]]]
    again.tree["meshes"][0]["primitives"] = [first | {"indices": k} for k in copies]
    refused(again.write(tmp_path / "again.glb"), "56 parts or more of 2,")
    own = {"attributes": {"TRANSLATION": 2}}
    far.tree["nodes"][0]["extensions"] = {"EXT_mesh_gpu_instancing": own}
    start = time.process_time()
    refused(many.write(tmp_path / "many.glb"), "its nodes make 200,000 parts or more")
    tracemalloc.start()
    refused(
        far.write(tmp_path / "far.glb"), "promises 1,000,000,000 numbers without data"
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - start < 10 and peak < 20e6


def test_a_picture_that_fills_the_memory_is_not_read(tmp_path):
    png = b"\x89PNG\r\n\x1a\n"
    size = struct.pack(">II5B", 16_000, 11_000, 8, 2, 0, 0, 0)  # 176 Mpx
    for chunk in (b"IHDR" + size, b"IDAT" + zlib.compress(bytes(99))):
        png += struct.pack(">I", len(chunk) - 4) + chunk
        png += struct.pack(">I", zlib.crc32(chunk))
    g = worn_gltf(base_color([0, 0, 1, 1]), png)
    surface = read_surface(g.write(tmp_path / "b.glb"))
    assert "more than 89 million pixels" in str(surface.images)
    assert np.allclose(surface.color, BLUE)


@pytest.mark.parametrize(
    "outside", ["../b", "{}/b", "file://{}/b", "http://a.b/../b", "l"]
)
def test_what_lies_elsewhere_is_not_read(tmp_path, outside):
    inner = tmp_path / "in"
    g = worn_gltf(base_color())
    written(tmp_path / "b.bin", g.blob), picture(tmp_path / "b.png"), inner.mkdir()
    for kind in ("bin", "png"):
        (inner / f"l.{kind}").symlink_to(tmp_path / f"b.{kind}")
    name = outside.format(tmp_path)
    g.tree["images"] = [{"uri": f"{name}.png"}]
    surface = read_surface(g.write(inner / "a.glb"))
    assert [*surface.images.values()] == ["not found"]
    g.tree["buffers"] = [{"byteLength": len(g.blob), "uri": f"{name}.bin"}]
    refused(g.write(inner / "a.gltf"), "is missing; copy it here")


STRANGERS = {
    "a Git LFS pointer; .* git lfs pull": b"version https://git-lfs.github.com/spec/v1",
    "a web page; download": b"<!DOCTYPE html>\n<html></html>",
    "a packed archive; unpack": b"PK\x03\x04" + bytes(99),
    "an FBX file; export": b"Kaydara FBX Binary  \x00" + bytes(99),
    "nothing but zero bytes; copy": bytes(999),
}


@pytest.mark.parametrize("suffix", ["glb", "obj", "ply", "stl", "off"])
def test_a_file_of_another_kind_is_named(tmp_path, suffix):
    for cause, data in STRANGERS.items():
        refused(written(tmp_path / f"a.{suffix}", data), cause)


def test_a_mesh_file_under_a_wrong_name_is_named(tmp_path):
    refused(
        written(tmp_path / "u.stl", ply(CUBE, CUBE_FACES)), "is a PLY; name it .ply"
    )


def mutant(data, rng):
    """Some bytes with a bit turned, a piece lost or doubled, or another number."""
    data = bytearray(data)
    at = int(rng.integers(len(data)))
    end = at + int(rng.integers(1, 40))
    match rng.integers(5):
        case 0:
            data[at] ^= 1 << int(rng.integers(8))
        case 1:
            del data[at:end]
        case 2:
            data[at:at] = data[at:end]
        case 3:
            data[at : at + 4] = rng.choice([b"\xff" * 4, b"\0\0\0\x80", bytes(4)])
        case 4:
            found = [*re.finditer(rb"-?\d+", bytes(data[:4000]))]
            digits = (
                found[int(rng.integers(len(found)))] if found else re.match(b"", b"")
            )
            other = rng.choice([b"-1", b"4294967295", b"1e9", b"nan", b"null", b"[]"])
            data[digits.start() : digits.end()] = other
    return bytes(data)


def test_a_damaged_file_is_read_or_refused_by_one_line(tmp_path):
    rng, files = np.random.default_rng(0), {}
    for kind, write in WRITERS.items():
        content = write(U_VERTICES, U_FACES)
        files[kind] = content if isinstance(content, bytes) else content.encode()
    files |= {"text.stl": stl(True), "stl": stl(False)}
    for k, g in enumerate([Gltf().cube(), *WORN.values()]):
        files[f"{k}.glb"] = g.write(tmp_path / "a.glb").read_bytes()
    refusals = 0
    for name, whole in files.items():
        for _ in range(40):
            path = written(tmp_path / f"mutant.{name}", mutant(whole, rng))
            try:
                read_surface(path)
            except ValueError as error:
                refusals += 1
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert 100 < refusals < 600


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases in {CASES}")
def test_every_case_is_right_or_refused_by_its_cause():
    truth = solid(read_surface(CASES / "truth.ply"))
    refusals = {
        "glb_draco_some": "Draco",
        "gltf_missing_bin": "missing",
        "ply_splat": "splats",
    }
    for path in sorted(p for p in CASES.iterdir() if p.suffix in SUFFIXES):
        if path.stem in refusals:
            refused(path, refusals[path.stem])
        elif path.suffix in (".obj", ".gltf", ".glb") and "blue" in path.stem:
            surface = read_surface(path)
            assert surface.color[:, 2].min() > 2 * surface.color[:, :2].max(), path.name
        elif path.stem.startswith(("obj_", "off_", "stl_", "glb_", "ply_", "gltf_uri")):
            right = [U_AREA, U_VOLUME] if "concave" in path.stem else truth
            assert np.allclose(solid(read_surface(path)), right, rtol=1e-3), path.name


def test_numbers_that_an_older_numpy_only_warns_of_are_refused(monkeypatch):
    def before(text, dtype, sep):
        warnings.warn("unmatched data", DeprecationWarning, stacklevel=2)
        return np.array([1.0])

    monkeypatch.setattr(np, "fromstring", before)
    with warnings.catch_warnings(action="ignore"):  # as it is by default
        with pytest.raises(Unreadable, match="'x' stands where a number should"):
            numbers(b"1 x 2")
