import json
import os
import pickle
import struct
import tracemalloc
from pathlib import Path

import manifold3d
import numpy as np
import pytest
import trimesh
from PIL import Image

from d2im.data.mesh import SUFFIXES, find_meshes, load_mesh, normalise
from d2im.data.shapes import FAMILIES, make_shape
from d2im.sampling import sample_points, signed_distance


def box(low, high):
    return trimesh.creation.box(bounds=[low, high])


def write(tmp_path, *meshes, name="mesh.glb"):
    path = tmp_path / name
    trimesh.Scene(list(meshes)).export(path)
    return path


def write_obj(path, vertices, faces, head=""):
    lines = [head, *("v {} {} {}".format(*v) for v in vertices)]
    lines += ["f {} {} {}".format(*(f + 1)) for f in np.asarray(faces)]
    path.write_text("\n".join(lines) + "\n")
    return path


def cube_with_seams(image):
    """A unit cube with four vertices a side, whose six sides read six columns."""
    cube = box([0, 0, 0], [1, 1, 1])
    side = np.abs(cube.face_normals).argmax(1) * 2 + (cube.face_normals.sum(1) > 0)
    vertices = cube.vertices[cube.faces].reshape(-1, 3)
    uv = np.stack([np.repeat((side + 0.5) / 6, 3), np.full(36, 0.5)], axis=1)
    cube = trimesh.Trimesh(vertices, np.arange(36).reshape(-1, 3), process=False)
    material = trimesh.visual.material.PBRMaterial(baseColorTexture=image)
    cube.visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return cube, side


WEDGE = np.array([[0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 1.0]])
WEDGE_FACES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
WEDGE_CENTRED = (WEDGE - [1.5, 1, 0.5]) / (2 * np.linalg.norm([1.5, 1, 0.5]))


# Formats, seams, scenes and colours


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_gives_the_same_normalised_solid(tmp_path, suffix):
    wedge = trimesh.Trimesh(WEDGE, WEDGE_FACES, process=False)
    path = tmp_path / f"wedge{suffix.upper() if suffix == '.stl' else suffix}"
    if suffix == ".gltf":
        for name, data in trimesh.Scene(wedge).export(file_type="gltf").items():
            (tmp_path / name.replace("model", "wedge")).write_bytes(data)
    else:
        wedge.export(path, file_type=suffix[1:])
    mesh = load_mesh(path)
    order = np.lexsort(mesh.vertices.round(5).T)
    truth = WEDGE_CENTRED[np.lexsort(WEDGE_CENTRED.round(5).T)]
    assert np.allclose(mesh.vertices[order], truth, atol=1e-6)
    assert mesh.metadata["solid"] and mesh.is_volume
    report = "one solid; faces 4, parts 1, thickness 0.005"
    assert str(mesh.metadata["report"]) == report


def test_uv_seams_are_merged_and_the_texture_becomes_face_colours(tmp_path):
    columns = np.array([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9, 99, 99, 99, 0, 0, 0])
    image = Image.fromarray(columns.reshape(1, 6, 3).astype(np.uint8))
    image = image.resize((60, 10), Image.Resampling.NEAREST)
    cube, side = cube_with_seams(image)
    mesh = load_mesh(write(tmp_path, cube))
    assert len(mesh.vertices) == 8 and mesh.is_watertight and mesh.metadata["solid"]
    normals = mesh.face_normals  # faces may come in another order
    found = np.abs(normals).argmax(1) * 2 + (normals.sum(1) > 0)
    truth = columns.reshape(6, 3)[found] / 255
    assert np.allclose(mesh.face_attributes["color"], truth)


def test_vertex_colours_are_averaged_and_a_plain_file_has_none(tmp_path):
    cube = box([0, 0, 0], [1, 1, 1])
    assert "color" not in load_mesh(write(tmp_path, cube)).face_attributes
    cube.visual.vertex_colors = np.tile([51, 102, 204, 255], (8, 1))
    cube.export(tmp_path / "cube.ply")
    color = load_mesh(tmp_path / "cube.ply").face_attributes["color"]
    assert color.shape == (12, 3) and np.allclose(color, [0.2, 0.4, 0.8])


@pytest.mark.parametrize("suffix, factor", [("glb", 0.21404), ("obj", 0.5)])
def test_plain_colours_are_display_rgb(tmp_path, suffix, factor):
    cube, colour = box([0, 0, 0], [1, 1, 1]), round(255 * factor)
    if suffix == "glb":  # linear light, as the format says
        material = trimesh.visual.material.PBRMaterial(baseColorFactor=[colour] * 3)
    else:
        material = trimesh.visual.material.SimpleMaterial(diffuse=[colour] * 3)
    cube.visual = trimesh.visual.TextureVisuals(uv=np.zeros((8, 2)), material=material)
    path = tmp_path / f"cube.{suffix}"
    cube.export(path)
    color = load_mesh(path).face_attributes["color"]
    assert np.allclose(color, 0.5, atol=0.006)


def test_scene_transforms_are_applied_and_mirrored_parts_stay_outward(tmp_path):
    scene = trimesh.Scene()
    scene.add_geometry(box([0, 0, 0], [1, 1, 1]))
    mirror = np.diag([-3.0, 1, 1, 1])  # the same cube as [-4, -1] x [0, 1] x [5, 6]
    mirror[:3, 3] = [-1, 0, 5]
    scene.graph.update("mirrored", geometry=next(iter(scene.geometry)), matrix=mirror)
    scene.export(tmp_path / "scene.glb")
    mesh = load_mesh(tmp_path / "scene.glb")
    scale = 1 / np.linalg.norm([5, 1, 6])
    assert np.allclose(mesh.extents, np.array([5, 1, 6]) * scale)
    assert np.isclose(mesh.volume, (1 + 3) * scale**3)
    part = mesh.face_attributes["part"]
    assert len(part) == 24 and set(part) == {0, 1}
    assert len(np.unique(mesh.triangles_center[part == 1, 2] > 0)) == 1


def test_loading_twice_gives_the_same_mesh(tmp_path):
    path = write(tmp_path, box([0, 0, 0], [2, 2, 2]), box([1, 1, 1], [3, 4, 5]))
    first, second = load_mesh(path), load_mesh(path)
    assert np.array_equal(first.vertices, second.vertices)
    assert np.array_equal(first.faces, second.faces)


# Frames


def test_z_up_turns_top_to_y_and_the_front_at_minus_y_to_plus_z(tmp_path):
    path = write_obj(tmp_path / "wedge.obj", WEDGE, WEDGE_FACES)
    turned = load_mesh(path, up="z").vertices
    x, y, z = WEDGE_CENTRED.T
    assert np.allclose(np.sort(turned, 0), np.sort(np.stack([x, z, -y], 1), 0))
    corner = np.stack([x, z, -y], 1)[2]  # file's (0, 2, 0): left, low, at the back
    assert np.linalg.norm(turned - corner, axis=1).min() < 1e-9


def test_yaw_of_90_degrees_turns_front_to_plus_x(tmp_path):
    path = write_obj(tmp_path / "wedge.obj", WEDGE, WEDGE_FACES)
    turned = load_mesh(path, yaw=90).vertices
    x, y, z = WEDGE_CENTRED.T
    for corner in np.stack([z, y, -x], 1):  # +z -> +x and +x -> -z
        assert np.linalg.norm(turned - corner, axis=1).min() < 1e-9


def test_a_stretch_that_is_none_is_refused(tmp_path):
    path = tmp_path / "box.stl"
    trimesh.creation.box((1, 1, 1)).export(path)
    assert load_mesh(path, up="z", stretch=(2, 1, 1)).extents == pytest.approx(
        np.array([2, 1, 1]) / 6**0.5
    )
    for wrong in ((1, 1), (1, 1, 0), (1, 1, np.nan)):
        with pytest.raises(ValueError, match="stretch must be"):
            load_mesh(path, stretch=wrong)


@pytest.mark.parametrize("up, front", [("x", "-y"), ("-y", "x"), ("z", "x")])
def test_up_and_front_come_to_plus_y_and_plus_z_without_mirroring(tmp_path, up, front):
    mesh = load_mesh(write_obj(tmp_path / "w.obj", WEDGE, WEDGE_FACES), up, front)
    for axis, world in ((up, 1), (front, 2)):
        k, sign = "xyz".index(axis[-1]), -1 if axis.startswith("-") else 1
        assert np.allclose(
            np.sort(mesh.vertices[:, world]), np.sort(sign * WEDGE_CENTRED[:, k])
        )
    assert mesh.volume > 0 and mesh.metadata["report"].turned == 0


def test_normalise_centres_the_box_and_puts_the_farthest_vertex_at_half():
    before = box([10, 20, 30], [13, 24, 42])
    mesh = normalise(before)
    assert np.allclose(before.bounds, [[10, 20, 30], [13, 24, 42]])  # itself untouched
    assert np.allclose(mesh.bounds.sum(0), 0)
    assert np.allclose(np.linalg.norm(mesh.vertices, axis=1), 0.5)
    assert np.allclose(mesh.extents, np.array([3, 4, 12]) / 13)


def test_a_stray_vertex_without_a_face_moves_nothing(tmp_path):
    vertices = np.vstack([WEDGE, [[99, 99, np.nan]]])
    mesh = load_mesh(write_obj(tmp_path / "stray.obj", vertices, WEDGE_FACES))
    assert np.isclose(np.linalg.norm(mesh.vertices, axis=1).max(), 0.5)
    assert len(mesh.vertices) == 4


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_the_unit_of_the_file_does_not_matter(tmp_path, scale):
    path = write_obj(tmp_path / "wedge.obj", WEDGE * scale, WEDGE_FACES)
    assert np.isclose(
        load_mesh(path).volume, trimesh.Trimesh(WEDGE_CENTRED, WEDGE_FACES).volume
    )


# Bodies


def test_millimetres_far_from_the_origin_under_an_odd_name_do_not_matter(tmp_path):
    path = tmp_path / os.fsdecode(b"st\xfchl.obj")  # no UTF-8
    mesh = load_mesh(write_obj(path, 1000 * WEDGE + 1e6, WEDGE_FACES))
    truth = trimesh.Trimesh(WEDGE_CENTRED, WEDGE_FACES).volume
    assert mesh.metadata["solid"] and np.isclose(mesh.volume, truth)


def test_two_overlapping_boxes_are_united_to_their_analytic_volume(tmp_path):
    path = write(tmp_path, box([0, 0, 0], [2, 2, 2]), box([1, 1, 1], [3, 3, 3]))
    mesh = load_mesh(path)
    scale = 1 / np.linalg.norm([3, 3, 3])
    assert mesh.metadata["solid"] and mesh.metadata["report"].united == len(mesh.faces)
    assert np.isclose(mesh.volume, (8 + 8 - 1) * scale**3)
    assert np.isclose(mesh.area, (24 + 24 - 6) * scale**2)
    # The overlap's centre is sqrt(1/2) from the nearest outer edge, not 1/2 from the
    # nearest buried face.
    sdf, _ = signed_distance(mesh, np.zeros((1, 3)))
    assert np.isclose(sdf[0], -np.sqrt(0.5) * scale)


def test_a_united_face_keeps_its_part_and_colour(tmp_path):
    low, high = box([0, 0, 0], [2, 2, 2]), box([1, 1, 1], [3, 3, 3])
    low.visual.face_colors, high.visual.face_colors = [255, 0, 0], [0, 0, 255]
    mesh = load_mesh(write(tmp_path, low, high))
    centres = mesh.triangles_center * np.linalg.norm([3, 3, 3]) + 1.5
    of_low = (np.abs(centres - 1) >= 1 - 1e-6).any(1) & (centres < 2 + 1e-6).all(1)
    colors = mesh.face_attributes["color"]
    assert np.allclose(colors[of_low], [1, 0, 0])
    assert np.allclose(colors[~of_low], [0, 0, 1])
    part = mesh.face_attributes["part"]
    assert set(part[of_low]).isdisjoint(part[~of_low])


def test_touching_boxes_in_one_stl_become_one_solid(tmp_path):
    pair = trimesh.util.concatenate(
        box([0, 0, 0], [1, 1, 1]), box([0, 0, 1], [1, 1, 2])
    )
    pair.export(tmp_path / "pair.stl")
    mesh = load_mesh(tmp_path / "pair.stl")
    assert mesh.metadata["solid"] and mesh.is_volume
    assert np.isclose(mesh.area, 10 / 6)  # the wall between is gone


def test_a_hollow_box_stays_hollow(tmp_path):
    hole = box([1, 1, 1], [3, 3, 3])
    hole.invert()
    hollow = trimesh.util.concatenate(box([0, 0, 0], [4, 4, 4]), hole)
    mesh = load_mesh(write_obj(tmp_path / "h.obj", hollow.vertices, hollow.faces))
    assert mesh.metadata["solid"]
    assert np.isclose(mesh.volume, (64 - 8) / np.linalg.norm([4, 4, 4]) ** 3)
    assert signed_distance(mesh, np.zeros((1, 3)))[0] > 0


def test_an_inside_out_body_with_a_hole_in_a_closed_room_is_turned_over(tmp_path):
    bodies = [trimesh.creation.icosphere(subdivisions=2, radius=0.5)]
    for k, axis in enumerate(np.eye(3)):  # six slabs about [-1, 1]^3, of no shared edge
        low, high = -3 - 0.1 * k * (1 - axis), 3 + 0.1 * k * (1 - axis)
        bodies += [box(low, high - 4 * axis), box(low + 4 * axis, high)]
    volumes = []
    for name in ("clean.obj", "spoilt.obj"):
        whole = trimesh.util.concatenate(bodies)
        mesh = load_mesh(write_obj(tmp_path / name, whole.vertices, whole.faces))
        assert mesh.metadata["solid"]
        volumes.append(mesh.volume)
        bodies[0].invert()
        bodies[0].update_faces(np.arange(len(bodies[0].faces)) != 7)
    assert mesh.metadata["report"].turned == 319 and np.ptp(volumes) < 1e-9


def test_an_inside_out_body_and_a_flipped_face_are_turned_over(tmp_path):
    first, second = box([0, 0, 0], [1, 1, 1]), box([2, 0, 0], [3, 1, 1])
    first.invert()
    second.faces[5] = second.faces[5, ::-1]
    mesh = load_mesh(write(tmp_path, first, second))
    assert mesh.metadata["solid"] and mesh.metadata["report"].turned == 13
    assert "turned 13" in str(mesh.metadata["report"])
    assert np.isclose(mesh.volume, 2 / np.linalg.norm([3, 1, 1]) ** 3)


def test_a_missing_face_is_put_back(tmp_path):
    cube = box([0, 0, 0], [1, 1, 1])
    mesh = load_mesh(write_obj(tmp_path / "o.obj", cube.vertices, cube.faces[:-1]))
    assert mesh.metadata["solid"] and mesh.metadata["report"].holes == 1
    assert np.isclose(mesh.volume, 3**-1.5)


def test_a_hole_is_closed_beside_another_inside_it(tmp_path):
    tube = trimesh.creation.annulus(r_min=1, r_max=2, height=4, sections=32)
    open_below = tube.faces[tube.face_normals[:, 2] > -0.5]
    mesh = load_mesh(write_obj(tmp_path / "tube.obj", tube.vertices, open_below))
    scale = 0.5 / np.linalg.norm(tube.vertices, axis=1).max()
    assert mesh.metadata["solid"] and mesh.metadata["report"].holes == 1
    assert np.isclose(mesh.volume, tube.volume * scale**3, rtol=1e-3)


def test_a_crack_along_an_edge_is_closed_without_a_membrane(tmp_path):
    # Four sides of a bar, its lids, and a seam opened by 1e-4 along one edge.
    bar = box([0, 0, 0], [4, 1, 1]).subdivide().subdivide()
    ends, apart = bar.vertices.copy(), np.arange(len(bar.vertices))
    on_edge = np.flatnonzero(
        (bar.vertices[:, 1] == 1)
        & (bar.vertices[:, 2] == 1)
        & (np.abs(bar.vertices[:, 0] - 2) < 1.9)
    )
    apart[on_edge] = len(ends) + np.arange(len(on_edge))
    top = bar.face_normals[:, 1] > 0.5
    faces = np.where(top[:, None], apart[bar.faces], bar.faces)
    vertices = np.vstack([ends, ends[on_edge] + [0, 4e-4, 0]])
    mesh = load_mesh(write_obj(tmp_path / "crack.obj", vertices, faces))
    assert mesh.metadata["report"].holes == 1 and mesh.is_watertight
    assert np.isclose(mesh.area, 18 / 18, rtol=1e-3)  # nothing spans the bar
    assert np.isclose(mesh.volume, 4 / 18**1.5, rtol=1e-3)


SHEET = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
SHEET_FACES = np.array([[0, 1, 2], [0, 2, 3], [0, 2, 1], [0, 3, 2]])


@pytest.mark.parametrize("sides", [1, 2])
def test_a_sheet_is_made_as_thick_as_asked(tmp_path, sides):
    path = write_obj(tmp_path / "sheet.obj", SHEET, SHEET_FACES[: 2 * sides])
    mesh = load_mesh(path, thickness=0.02)
    report = mesh.metadata["report"]
    assert mesh.metadata["solid"] and report.sheets == 1 and report.thickness == 0.02
    assert np.isclose(mesh.extents.min(), 0.02, rtol=1e-3)
    assert np.isclose(mesh.volume, 0.02 / 2, rtol=2e-3)


def test_sheets_upon_each_other_become_one_solid(tmp_path):
    vertices = np.vstack([SHEET + [0, 0, 2e-5 * k] for k in range(3)])
    faces = np.vstack([SHEET_FACES[:2] + 4 * k for k in range(3)])
    mesh = load_mesh(write_obj(tmp_path / "s.obj", vertices, faces), thickness=0.02)
    assert mesh.metadata["solid"] and mesh.metadata["report"].sheets == 3
    assert np.isclose(mesh.volume, 0.02 / 2, rtol=5e-3)


def test_a_sheet_is_refused_where_no_thickness_is_given(tmp_path):
    path = write_obj(tmp_path / "sheet.obj", SHEET, SHEET_FACES)
    one_line(path, "open sheets without an inside: 1;", thickness=None)


def test_panels_that_do_not_meet_still_enclose_their_inside(tmp_path, rng):
    cube = box([0, 0, 0], [1, 1, 1])
    sides = cube.facets
    panels = [cube.submesh([side], append=True) for side in sides]
    for k, panel in enumerate(panels):
        panel.vertices += 1e-4 * k  # no two of them share an edge
        if k % 3 == 0:
            panel.invert()
    mesh = load_mesh(write(tmp_path, *panels))
    assert mesh.metadata["report"].panels == 6 and not mesh.metadata["solid"]
    points = rng.uniform(-0.5, 0.5, (2000, 3))
    distance = np.abs(points).max(axis=1) - 0.5 / np.sqrt(3)
    clear = np.abs(distance) > 3e-3
    assert ((signed_distance(mesh, points)[0] < 0) == (distance < 0))[clear].all()


def test_a_closed_body_that_crosses_itself_is_a_soup(tmp_path):
    angle = np.arange(5) * 0.8 * np.pi  # a pentagram: its middle is wound round twice
    ring = np.stack([np.cos(angle), 0 * angle, np.sin(angle)], 1)
    vertices = np.vstack([ring, ring + [0, 1, 0], [[0, 0, 0], [0, 1, 0]]])
    a, b = np.arange(5), (np.arange(5) + 1) % 5
    sides = [[a, a + 5, b], [b, a + 5, b + 5]]
    caps = [[a, b, 0 * a + 10], [b + 5, a + 5, 0 * a + 11]]
    faces = np.concatenate([np.stack(f, 1) for f in sides + caps])
    assert trimesh.Trimesh(vertices, faces, process=False).is_volume
    mesh = load_mesh(write_obj(tmp_path / "star.obj", vertices, faces))
    assert not mesh.metadata["solid"] and "a soup" in str(mesh.metadata["report"])


def test_duplicate_and_degenerate_faces_are_dropped_and_counted(tmp_path):
    faces = np.vstack([WEDGE_FACES, [[2, 1, 0], [0, 1, 1]]])  # a turned copy, a line
    mesh = load_mesh(write_obj(tmp_path / "wedge.obj", WEDGE, faces))
    assert len(mesh.faces) == 4 and mesh.metadata["solid"]
    report = mesh.metadata["report"]
    assert report.duplicate == 1 and report.degenerate == 1


# Dirty copies of clean shapes: the clean one's signs are the truth


def four_pieces(seed):
    """Four pieces of furniture pushed into each other, and their exact union."""
    bodies, rng = [], np.random.default_rng(seed)
    for k, family in enumerate(FAMILIES[:4]):
        mesh = make_shape(family, seed + k).detailed
        turn = trimesh.transformations.random_rotation_matrix(rng.random(3))[:3, :3]
        vertices = 0.6 * mesh.vertices @ turn.T + 0.1 * k
        faces = np.array(mesh.faces, dtype=np.uint64)
        body = manifold3d.Manifold(manifold3d.Mesh64(vertices, faces))
        bodies.append(body.refine_to_length(0.06))
    union = manifold3d.Manifold.batch_boolean(bodies, manifold3d.OpType.Add)
    arrays = [body.to_mesh64() for body in (*bodies, union)]
    *pieces, clean = [
        trimesh.Trimesh(a.vert_properties, a.tri_verts, process=False) for a in arrays
    ]
    clean.metadata["solid"] = True
    return pieces, clean


def spoil(kind, pieces, rng):
    pieces = [piece.copy() for piece in pieces]
    if kind == "inverted parts":
        for k in rng.permutation(4)[:2]:  # of four: more than the 30 % of all parts
            pieces[k].invert()
    soup = trimesh.util.concatenate(pieces)
    faces = np.array(soup.faces)
    some = rng.permutation(len(faces))
    if kind == "flipped faces":
        some = some[: len(faces) // 10]
        faces[some] = faces[some, ::-1]
    elif kind == "holes and duplicates":
        faces = np.vstack([faces, faces[some[: len(faces) // 20]]])
        faces = np.delete(faces, some[-len(some) // 50 :], axis=0)
    return trimesh.Trimesh(soup.vertices, faces, process=False)


@pytest.mark.parametrize(
    "kind, allowed",
    [
        ("overlaps", 0.0),
        ("holes and duplicates", 0.0005),
        ("flipped faces", 0.005),
        ("inverted parts", 0.001),
    ],
)
def test_a_dirty_copy_has_the_clean_shapes_signs(tmp_path, kind, allowed):
    rng = np.random.default_rng(7)
    pieces, clean = four_pieces(7)
    spoil(kind, pieces, rng).export(tmp_path / "dirty.ply")
    mesh, clean = load_mesh(tmp_path / "dirty.ply"), normalise(clean)
    points = sample_points(clean, 10_000, rng)
    truth, _ = signed_distance(clean, points)
    sdf, _ = signed_distance(mesh, points)
    clear = np.abs(truth) > 1e-3
    assert ((sdf < 0) != (truth < 0))[clear].mean() <= allowed


# Errors


def one_line(path, match, error=ValueError, **options):
    with pytest.raises(error, match=match) as caught:
        load_mesh(path, **options)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return caught.value


def test_a_missing_file_is_named(tmp_path):
    one_line(tmp_path / "no.glb", "no such file", FileNotFoundError)


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "empty.glb").touch()
    one_line(tmp_path / "empty.glb", "file is empty")


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".ply", ".off"])
def test_a_text_under_another_name_is_one_line_with_its_cause(tmp_path, suffix):
    path = tmp_path / f"text{suffix}"
    path.write_text("Dear reader,\nthis is no mesh.\n" * 9)
    caught = one_line(path, f"no readable {suffix[1:].upper()} file")
    assert caught.__cause__ is not None


@pytest.mark.parametrize("suffix", [".glb", ".ply", ".stl", ".off"])
def test_a_truncated_file_is_one_line(tmp_path, suffix):
    data = trimesh.creation.icosphere().export(file_type=suffix[1:])
    data = data.encode() if isinstance(data, str) else data
    path = tmp_path / f"half{suffix}"
    path.write_bytes(data[: len(data) // 2])
    one_line(path, "no readable|no face")


def test_an_unknown_suffix_names_the_known_ones(tmp_path):
    (tmp_path / "chair.fbx").write_text("x")
    one_line(tmp_path / "chair.fbx", r"unknown kind; d2im reads \.glb, .*\.off")


def test_a_point_cloud_has_no_face(tmp_path):
    points = np.random.default_rng(0).random((9, 3))
    trimesh.PointCloud(points).export(tmp_path / "points.ply")
    one_line(tmp_path / "points.ply", "no face in it; d2im needs triangles")


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_vertices_that_are_not_finite_are_counted(tmp_path, bad):
    vertices = WEDGE.copy()
    vertices[1, 2] = float(bad)
    path = write_obj(tmp_path / "bad.obj", vertices, WEDGE_FACES)
    one_line(path, "1 of 4 vertices are NaN or infinite")


def test_a_mesh_of_zero_size_is_named(tmp_path):
    path = write_obj(tmp_path / "dot.obj", WEDGE * 0 + 7, WEDGE_FACES)
    one_line(path, "its size is 0")


def test_a_mesh_of_degenerate_faces_is_named(tmp_path):
    line = np.outer(np.arange(4), [1, 2, 3])
    path = write_obj(tmp_path / "line.obj", line, WEDGE_FACES)
    one_line(path, "all faces are degenerate")


def test_a_face_of_a_missing_vertex_is_named(tmp_path):
    path = tmp_path / "bad.ply"
    head = (
        "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\n"
    )
    head += "property float z\nelement face 1\nproperty list uchar int vertex_indices\n"
    path.write_text(head + "end_header\n0 0 0\n1 0 0\n0 1 0\n3 0 1 7\n")
    one_line(path, "vertex that is missing|no readable")


def test_an_unknown_up_axis_says_which_there_are(tmp_path):
    with pytest.raises(ValueError, match="up must be one of x, -x, .* not 'w'"):
        load_mesh(tmp_path / "any.glb", up="w")
    with pytest.raises(ValueError, match="front 'y' must be perpendicular to up '-y'"):
        load_mesh(tmp_path / "any.glb", up="-y", front="y")


def test_an_obj_without_its_material_file_still_loads(tmp_path):
    head = "mtllib missing.mtl\nusemtl oak"
    mesh = load_mesh(write_obj(tmp_path / "w.obj", WEDGE, WEDGE_FACES, head))
    assert mesh.metadata["solid"]


def test_a_pickle_named_by_a_gltf_is_not_unpickled(tmp_path):
    class Touch:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Touch()) + bytes(99))
    wedge = trimesh.Trimesh(WEDGE, WEDGE_FACES, process=False)
    tree = trimesh.Scene(wedge).export(file_type="gltf")["model.gltf"].decode()
    buffer = tree.split('"uri":"')[1].split('"')[0]
    (tmp_path / "wedge.gltf").write_text(tree.replace(buffer, "model.pkl"))
    one_line(tmp_path / "wedge.gltf", "wedge.gltf")
    assert not (tmp_path / "executed").exists()


# Folders


def test_find_meshes_lists_all_kinds_in_order(tmp_path):
    for folder in ("sub", ".cache"):
        (tmp_path / folder).mkdir()
    names = ["b.glb", "a.OBJ", "sub/c.stl", "notes.txt", ".hidden.glb", ".cache/d.glb"]
    for name in names:
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_meshes(tmp_path)]
    assert found == ["a.OBJ", "b.glb", "sub/c.stl"]


def test_find_meshes_names_an_empty_or_missing_folder(tmp_path):
    with pytest.raises(ValueError, match="no mesh here; d2im reads .glb"):
        find_meshes(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_meshes(tmp_path / "no")


# Files that promise or count otherwise

BOX = """v 0 0 0
v 1 0 0
v 1 1 0
v 0 1 0
v 0 0 1
v 1 0 1
v 1 1 1
v 0 1 1
"""
BOX_FACES = "1432 5678 1265 2376 3487 4158".split()
CASES = Path(__file__).parents[2] / "shared" / "cases" / "meshes"


def obj_faces(corner):
    """The box's faces, each corner written by a format of its number."""
    corners = (" ".join(corner(int(n)) for n in face) for face in BOX_FACES)
    return "".join(f"f {line}\n" for line in corners)


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_indices_that_count_back_in_blocks_give_every_box(tmp_path):
    faces = obj_faces(lambda n: f"{n - 9}")
    second = BOX.replace("v 0", "v 3").replace("v 1", "v 4")
    path = written(tmp_path / "two.obj", BOX + faces + second + faces)
    same = tmp_path / "same.obj"
    ahead = obj_faces(str) + obj_faces(lambda n: f"{n + 8}")
    mesh, plain = load_mesh(path), load_mesh(written(same, BOX + second + ahead))
    assert np.array_equal(mesh.triangles, plain.triangles)
    assert len(mesh.split()) == 2


def test_textures_and_normals_count_back_as_well(tmp_path):
    rest = "vt 0 0\nvn 0 0 1\n"
    faces = obj_faces(lambda n: f"{n - 9}/-1/-1") + obj_faces(lambda n: f"{n - 9}//-1")
    mesh = load_mesh(written(tmp_path / "a.obj", BOX + rest + faces))
    plain = load_mesh(written(tmp_path / "b.obj", BOX + obj_faces(str)))
    assert mesh.volume == pytest.approx(plain.volume) and mesh.metadata["solid"]


def test_an_index_that_counts_back_too_far_is_named_with_its_line(tmp_path):
    path = written(tmp_path / "far.obj", BOX + "f -9 -1 -2\n" + obj_faces(str))
    one_line(path, "line 9: index -9 of 8 v")


@pytest.mark.skipif(not CASES.is_dir(), reason=f"no cases in {CASES}")
def test_the_interleaved_chair_is_the_plain_one():
    mesh, truth = (
        load_mesh(CASES / name)
        for name in ("obj_negative_interleaved.obj", "truth.ply")
    )
    assert mesh.volume == pytest.approx(truth.volume, rel=1e-3)


@pytest.mark.parametrize("line", ["0.5", "0.5 # half", "0.5\r", "0.5 0.5\nvt 0.1"])
def test_texture_coordinates_of_one_number_are_read(tmp_path, line):
    faces = obj_faces(lambda n: f"{n}/1")
    mesh = load_mesh(written(tmp_path / "one.obj", f"{BOX}vt {line}\n{faces}"))
    assert mesh.metadata["solid"]


def glb(count, size=36, **accessor):
    """A GLB of one accessor of so many points, and a buffer of `size` bytes."""
    accessor |= {"componentType": 5126, "type": "VEC3", "count": count}
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [{"byteLength": size}],
        "bufferViews": [{"buffer": 0, "byteLength": size}],
        "accessors": [accessor, {**accessor, "count": -count}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "nodes": [{"mesh": 0}],
        "scenes": [{"nodes": [0]}],
    }
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    chunks = struct.pack("<II", len(text), 0x4E4F534A) + text
    chunks += struct.pack("<II", size, 0x004E4942) + bytes(size)
    return b"glTF" + struct.pack("<II", 2, 12 + len(chunks)) + chunks


PLY = (
    "ply\nformat {} 1.0\nelement vertex {}\nproperty float x\nproperty float y\n"
    "property float z\nelement face {}\nproperty list uchar int vertex_indices\n"
    "end_header\n"
)
MANY = 200_000_000
PROMISES = {
    "zeros.glb": glb(MANY),
    "sparse.glb": glb(MANY, sparse={"count": 1}),
    "view.glb": glb(MANY, bufferView=0),
    "vertices.ply": PLY.format("binary_little_endian", MANY, 1).encode() + bytes(99),
    "faces.ply": PLY.format("binary_little_endian", 3, MANY).encode() + bytes(99),
    "text.ply": PLY.format("ascii", 3, MANY) + "0 0 0\n1 0 0\n0 1 1\n3 0 1 2\n",
    "count.stl": bytes(80) + struct.pack("<I", MANY) + bytes(500),
    "count.off": f"OFF\n{MANY} 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n",
    "index.off": f"OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1 {MANY}\n",
    "index.obj": f"{BOX}{obj_faces(str)}f 1 2 {MANY}\n",
}


@pytest.mark.parametrize("name", PROMISES)
def test_a_file_that_promises_more_than_it_holds_is_refused_at_once(tmp_path, name):
    path = written(tmp_path / name, PROMISES[name])
    tracemalloc.start()
    one_line(path, name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_a_texture_that_needs_a_program_is_not_opened(tmp_path):
    written(tmp_path / "paint.eps", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    written(tmp_path / "a.mtl", "newmtl paint\nmap_Kd paint.eps\n")
    faces = obj_faces(lambda n: f"{n}/1")
    text = f"mtllib a.mtl\n{BOX}vt 0 0\nusemtl paint\n{faces}"
    assert load_mesh(written(tmp_path / "a.obj", text)).metadata["solid"]
