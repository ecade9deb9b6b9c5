"""Procedural shapes: closed, repeatable, and relief within its stated amplitude."""

from functools import cache

import igl
import numpy as np
import pytest

from d2im.camera import Camera
from d2im.rendering import render
from d2im.shapes import FAMILIES, make_shape

SEEDS = range(4)
PAIRS = [(family, seed) for family in FAMILIES for seed in SEEDS]
every_shape = pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}")
shape_of = cache(make_shape)


def signed_distance(mesh, points):
    kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
    vertices, faces = np.array(mesh.vertices), np.array(mesh.faces, np.int64)
    return igl.signed_distance(np.ascontiguousarray(points), vertices, faces, kind)[0]


def test_the_four_families_are_known():
    assert FAMILIES[:4] == ("chair", "table", "cabinet", "sofa")


@every_shape
def test_both_bodies_are_closed_connected_and_outward(pair):
    shape = shape_of(*pair)
    for mesh in (shape.coarse, shape.detailed):
        assert mesh.is_watertight and mesh.is_winding_consistent
        assert mesh.volume > 0
        assert mesh.body_count == 1
        assert mesh.area_faces.min() > 0
        assert mesh.metadata["solid"] is True


@every_shape
def test_pseudonormal_signs_agree_with_winding_numbers(pair):
    shape = shape_of(*pair)
    points = np.random.default_rng(3).uniform(-0.5, 0.5, (2000, 3))
    for mesh in (shape.coarse, shape.detailed):
        sdf = signed_distance(mesh, points)
        vertices, faces = np.array(mesh.vertices), np.array(mesh.faces, np.int64)
        inside = igl.winding_number(vertices, faces, points[:200]) > 0.5
        np.testing.assert_array_equal(sdf[:200] < 0, inside)
        fast = igl.fast_winding_number(vertices, faces, points) > 0.5
        assert np.mean((sdf < 0) != fast) < 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_and_a_seed_give_the_same_shape(family):
    first, second = make_shape(family, 5), make_shape(family, np.int64(5))
    assert (first.family, first.seed) == (second.family, second.seed) == (family, 5)
    for a, b in ((first.coarse, second.coarse), (first.detailed, second.detailed)):
        assert a.volume == pytest.approx(b.volume, abs=1e-5)
        assert a.area == pytest.approx(b.area, abs=1e-5)
        np.testing.assert_allclose(a.bounds, b.bounds, atol=1e-5)
        parts = [np.bincount(m.face_attributes["part"], m.area_faces) for m in (a, b)]
        np.testing.assert_allclose(*parts, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_seeds_of_a_family_give_different_shapes(family):
    volumes = [shape_of(family, seed).coarse.volume for seed in SEEDS]
    assert np.std(volumes) > 0.1 * np.mean(volumes)


@every_shape
def test_the_detailed_body_is_centred_with_radius_one_half(pair):
    vertices = shape_of(*pair).detailed.vertices
    middle = (vertices.min(0) + vertices.max(0)) / 2
    np.testing.assert_allclose(middle, 0, atol=1e-9)
    assert np.linalg.norm(vertices, axis=1).max() == pytest.approx(0.5, abs=1e-9)


@every_shape
def test_the_two_fields_differ_by_the_amplitude_and_no_more(pair):
    shape = shape_of(*pair)
    rng = np.random.default_rng(7)
    amplitude = shape.detailed.metadata["amplitude"]
    assert 0.005 < amplitude < 0.035
    near = np.concatenate([shape.detailed.vertices, shape.coarse.vertices])
    cloud = near[rng.integers(len(near), size=2000)] + rng.normal(0, 0.02, (2000, 3))
    points = np.concatenate([near, cloud, rng.uniform(-0.55, 0.55, (1000, 3))])
    gap = signed_distance(shape.detailed, points) - signed_distance(
        shape.coarse, points
    )
    assert np.abs(gap).max() <= amplitude + 1e-9
    assert np.abs(gap).max() > 0.8 * amplitude


@every_shape
def test_relief_is_seen_from_the_front(pair):
    shape = shape_of(*pair)
    amplitude = shape.detailed.metadata["amplitude"]
    camera = Camera(azimuth=0, elevation=15, ratio=1.0, size=112)
    views = [
        render(mesh, camera, np.random.default_rng(0))
        for mesh in (shape.coarse, shape.detailed)
    ]
    both = views[0].mask & views[1].mask
    step = np.abs(views[0].depth - views[1].depth)[both]
    assert np.mean(step > 0.3 * amplitude) > 0.01
    turned = np.sum(views[0].normals * views[1].normals, 0)[both] < np.cos(
        np.radians(8)
    )
    assert np.mean(turned) > 0.02


@every_shape
def test_relief_turns_gradually(pair):
    shape = shape_of(*pair)
    mesh, amplitude = shape.detailed, shape.detailed.metadata["amplitude"]
    height = np.abs(signed_distance(shape.coarse, mesh.triangles_center))
    slope = (height > 0.05 * amplitude) & (height < 0.95 * amplitude)
    inner = slope[mesh.face_adjacency].all(1)
    ends = mesh.vertices[mesh.face_adjacency_edges[inner]]
    length = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1)
    sharp = mesh.face_adjacency_angles[inner] > np.radians(30)
    assert length[sharp].sum() < 0.05 * length.sum()


@every_shape
def test_part_ids_cover_the_faces_of_both_bodies(pair):
    shape = shape_of(*pair)
    for mesh in (shape.coarse, shape.detailed):
        part = mesh.face_attributes["part"]
        assert part.shape == (len(mesh.faces),) and part.dtype.kind == "i"
        assert part.min() >= 0 and part.max() < len(mesh.metadata["parts"])
        assert len(np.unique(part)) >= 2 or pair[0] == "cabinet"


def test_parts_lie_where_their_names_say():
    mesh = shape_of("chair", 0).detailed
    names, part = mesh.metadata["parts"], mesh.face_attributes["part"]
    height = {
        name: mesh.triangles_center[part == i, 1].mean() for i, name in enumerate(names)
    }
    assert height["leg"] < height["seat"] < height["back"]
    back = mesh.triangles_center[part == names.index("back"), 2]
    assert back.mean() < 0  # the front faces +z


def test_an_unknown_family_names_the_known_ones():
    with pytest.raises(ValueError, match="chair, table, cabinet, sofa.*'lamp-post'"):
        make_shape("lamp-post", 0)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", None, True])
def test_a_seed_that_is_no_natural_number_is_refused(seed):
    with pytest.raises(ValueError, match="seed must be a non-negative integer"):
        make_shape("chair", seed)
