"""Marching cubes: closed whatever the values, and where another library sees it."""

from itertools import product

import numpy as np
import pytest
import torch
import trimesh
from scipy.spatial import cKDTree
from skimage.measure import marching_cubes as other_cubes

from d2im.surface.cubes import EDGES, _ambiguous, _triangles, marching_cubes


def noise(seed, whole=False, size=(14, 16, 18)):
    """A grid of noise, which has every kind of cell; `whole` numbers are often 0."""
    values = np.random.default_rng(seed).normal(size=size).astype("f4")
    values = np.round(values) if whole else values
    return torch.tensor(np.pad(values, 1, constant_values=1))


def triangulate(values, move=None):
    vertices, faces = marching_cubes(values, move)
    return trimesh.Trimesh(vertices.numpy(), faces.numpy(), process=False)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_each_edge_has_two_triangles_that_agree_about_the_outside(seed, whole):
    mesh = triangulate(noise(seed, whole))
    edges, count = np.unique(mesh.edges, axis=0, return_counts=True)
    assert (count == 1).all()  # once in each direction
    assert {tuple(e) for e in edges} == {tuple(e[::-1]) for e in edges}
    assert mesh.volume > 0


def test_the_vertices_are_those_of_another_library():
    values = noise(0)
    mesh, others = triangulate(values), other_cubes(values.numpy(), 0.0)[0]
    on_edges = np.abs(mesh.vertices - mesh.vertices.round()).round(5).astype(bool)
    mine = mesh.vertices[on_edges.sum(1) <= 1]
    assert len(mesh.vertices) > len(mine) > 5000  # a few are in the middle of a cell
    assert cKDTree(others).query(mine)[0].max() < 1e-5


def test_a_smooth_surface_is_that_of_another_library():
    axis = torch.linspace(-1, 1, 40)
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    values = ((x**2 + z**2).sqrt() - 0.6) ** 2 + y**2 - 0.09  # a torus
    mesh = triangulate(values)
    vertices, faces, _, _ = other_cubes(values.numpy(), 0.0)
    other = trimesh.Trimesh(vertices, faces, process=False)
    assert len(mesh.faces) == len(other.faces)
    assert mesh.euler_number == 0 and mesh.body_count == 1
    assert mesh.volume == pytest.approx(other.volume, rel=1e-3)
    assert mesh.area == pytest.approx(other.area, rel=1e-3)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("outside", "bodies"), [(0.5, 1), (1.0, 2), (2.0, 2)])
def test_opposite_corners_of_a_face_are_joined_by_its_bilinear_function(
    axis, outside, bodies
):
    # Its saddle is (1 - outside**2) / (-2 - 2 * outside): inside where outside < 1.
    values = torch.ones(5, 4, 4)
    values[2, 1, 1] = values[2, 2, 2] = -1
    values[2, 1, 2] = values[2, 2, 1] = outside
    assert triangulate(values.transpose(0, axis).contiguous()).body_count == bodies


def ends(edge):
    axis, low = EDGES[edge]
    return low, tuple(c + (k == axis) for k, c in enumerate(low))


FACES = [
    {k for k in range(len(EDGES)) if all(end[axis] == side for end in ends(k))}
    for axis in range(3)
    for side in (0, 1)
]


@pytest.mark.parametrize("code", range(256))
def test_every_loop_is_filled_once_and_without_a_diagonal_in_a_face(code):
    corners = product((0, 1), repeat=3)
    inside = {corner: code >> k & 1 for k, corner in enumerate(corners)}
    crossed = [k for k in range(12) if len({inside[end] for end in ends(k)}) == 2]
    for joined in range(64):
        if joined & ~_ambiguous(code):
            continue
        triangles = _triangles(code, joined)
        sides = [(t[k - 1], t[k]) for t in triangles for k in range(3)]
        assert len(sides) == len(set(sides))
        inner = {side for side in sides if side[::-1] in sides}
        assert not any(face >= set(side) for side in inner for face in FACES)
        rim = set(sides) - inner
        assert all(any(face >= set(side) for face in FACES) for side in rim)
        assert sorted(a for a, _ in rim) == sorted(b for _, b in rim) == crossed


def test_vertices_that_are_moved_take_the_middles_along():
    values, seen = noise(1), []

    def move(ends, vertices):
        low, high = np.stack(np.unravel_index(ends.numpy(), values.shape), 2)
        inside = values.view(-1)[ends] <= 0
        assert (inside[0] != inside[1]).all()
        assert (np.abs(high - low).sum(1) == 1).all()
        assert (low <= vertices.numpy()).all() and (vertices.numpy() <= high).all()
        vertices += 7
        seen.append(len(vertices))

    still, moved = triangulate(values), triangulate(values, move)
    assert len(still.vertices) > seen[0]
    assert np.allclose(moved.vertices, still.vertices + 7, atol=1e-4)
    assert np.array_equal(moved.faces, still.faces)


def test_nothing_inside_is_no_surface():
    vertices, faces = marching_cubes(torch.ones(5, 6, 7))
    assert vertices.shape == faces.shape == (0, 3)
