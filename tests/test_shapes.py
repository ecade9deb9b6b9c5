"""Procedural shapes: closed, repeatable, and relief within its stated amplitude."""

import json
from functools import cache

import igl
import numpy as np
import pytest

from d2im import shapes, solids
from d2im.camera import Camera
from d2im.data.rendering import Renderer, render
from d2im.data.shapes import FAMILIES, SPLITS, make_shape, split_pairs
from d2im.data.solids import QUILTS, SUNK, Piece

SEEDS = range(3)
PAIRS = [(family, seed) for family in FAMILIES for seed in SEEDS]
every_shape = pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1]}")
shape_of = cache(make_shape)
FLAT_KINDS = ("ribs", "flutes", "panels", "hollows", "mouldings", "domes", "dimples")
FLAT_KINDS += ("pad", "dish", *QUILTS)


def signed_distance(mesh, points):
    kind = igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL
    vertices, faces = np.array(mesh.vertices), np.array(mesh.faces, np.int64)
    points = np.ascontiguousarray(points)
    return igl.signed_distance(points, vertices, faces, kind)[0]


def test_the_families_keep_their_places_as_seeds_depend_on_them():
    first = "chair table cabinet sofa stool bench bed bookshelf lamp loudspeaker"
    assert FAMILIES == (*first.split(), "guitar", "car", "vase")


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
    volumes = [shape_of(family, seed).coarse.volume for seed in range(4)]
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
def test_the_surfaces_are_one_where_no_relief_is(pair):
    shape = shape_of(*pair)
    for mesh, other in (
        (shape.detailed, shape.coarse),
        (shape.coarse, shape.detailed),
    ):
        gap = np.abs(signed_distance(other, mesh.sample(4000, seed=1)))
        assert np.mean(gap <= 1e-6) > 0.15
        assert np.mean(gap > 1e-4) > 0.02


@pytest.mark.parametrize("kind", FLAT_KINDS)
def test_relief_stays_within_the_face_that_it_dresses(kind):
    piece = Piece(np.random.default_rng(0), depth=0.02)
    piece.dress([piece.block("box", 0.4, 0.3, 0.2)["front"]], kind)
    coarse, detailed = piece.meshes()
    points = np.concatenate([detailed.sample(20_000, seed=1), detailed.vertices])
    gap = signed_distance(coarse, points)
    dressed = (np.abs(points[:, :2]) < (0.389, 0.289)).all(1) & (points[:, 2] > 0.17)
    assert np.abs(gap[~dressed]).max() <= 1e-6
    assert 0.005 < np.abs(gap).max() <= piece.amplitude + 1e-9
    assert (gap.min() < -0.005) == (kind in SUNK)  # which cut into the body


@every_shape
def test_the_true_displacement_reaches_the_amplitude_where_it_is_seen(pair):
    shape = shape_of(*pair)
    amplitude, renderer = shape.detailed.metadata["amplitude"], Renderer(shape.detailed)
    reached = 0.0
    for azimuth, elevation in ((30, 25), (-60, 10), (90, 60), (0, 10), (180, 30)):
        camera = Camera(azimuth, elevation, ratio=0.9, size=112)
        hit, depth, *_ = renderer.cast(camera)
        origins, rays = camera.rays()
        seen = origins[hit] + rays[hit] * depth[hit][:, None]
        displacement = -signed_distance(shape.coarse, seen.astype(float))
        reached = max(reached, np.abs(displacement).max())
    assert 0.8 * amplitude <= reached <= amplitude + 1e-5  # rays meet in single floats


def test_kinds_of_relief_are_many_on_flat_and_on_curved_faces(monkeypatch):
    layout, pattern, flat, curved = solids._layout, solids._pattern, set(), set()

    def spy_layout(kind, *arguments):
        flat.add(kind)
        return layout(kind, *arguments)

    def spy_pattern(kind, *arguments):  # lofts also tell whether it goes all round
        (curved if len(arguments) == 5 else flat).add(kind)
        return pattern(kind, *arguments)

    monkeypatch.setattr(solids, "_layout", spy_layout)
    monkeypatch.setattr(solids, "_pattern", spy_pattern)
    for pair in PAIRS:
        make_shape(*pair)
    assert len(flat) >= 8 and len(curved) >= 3


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


def test_splits_are_disjoint_and_hold_unseen_families_apart():
    unseen = set(json.loads(SPLITS.read_text())["unseen_families"])
    pairs = {split: split_pairs(split) for split in ("train", "val", "test", "unseen")}
    everything = [pair for members in pairs.values() for pair in members]
    assert len(set(everything)) == len(everything)
    for split, members in pairs.items():
        seen = unseen if split == "unseen" else set(FAMILIES) - unseen
        assert {family for family, _ in members} == seen
    seeds = [{seed for _, seed in members} for members in pairs.values()]
    assert sum(map(len, seeds)) == len(set.union(*seeds))


def test_a_prefix_of_a_split_is_balanced_over_families():
    pairs = split_pairs("val", per_family=3)
    count = len(pairs) // 3
    assert pairs == split_pairs("val")[: len(pairs)]
    assert [seed for _, seed in pairs] == sorted(seed for _, seed in pairs)
    assert len({family for family, _ in pairs[:count]}) == count


@pytest.mark.parametrize(
    "call, message",
    [(("dev",), "split must be one of train.*'dev'"), (("val", 101), "1 to 100.*101")],
)
def test_a_split_that_is_not_there_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        split_pairs(*call)


def test_a_missing_splits_file_says_where_to_find_it(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "SPLITS", tmp_path / "splits.json")
    with pytest.raises(FileNotFoundError, match="splits.json is missing.*repository"):
        split_pairs("train")
