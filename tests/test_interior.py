"""What no ray from outside sees is inside, and nothing else changes."""

import numpy as np
import pytest
import trimesh

from d2im.data.interior import fill_interior
from d2im.data.mesh import load_mesh
from d2im.evaluate.metrics import inside
from d2im.sampling import sample_surface, signed_distance


def box(low, high):
    return trimesh.creation.box(bounds=[low, high])


def cabinet(slit, thick=0.05):
    """Six boards about a hollow; the door in front leaves a slit all around."""
    a, b = thick, 1 - thick
    boards = [
        box([0, 0, 0], [1, a, b]),
        box([0, b, 0], [1, 1, b]),
        box([0, a, 0], [a, b, b]),
        box([b, a, 0], [1, b, b]),
        box([a, a, 0], [b, b, a]),
        box([0, 0, b + slit], [1, 1, 1 + slit]),
    ]
    return trimesh.util.concatenate(boards)


def loaded(path, mesh, **options):
    mesh.export(path)
    return load_mesh(path, **options)


def box_sdf(points, half):
    """Signed distance to a box of half extents about the origin."""
    q = np.abs(points) - half
    outer = np.linalg.norm(q.clip(0), axis=1)
    return outer + q.max(axis=1).clip(max=0)


@pytest.mark.parametrize("slit", [0.0, 0.01, 0.02])  # times 0.58 in world units
def test_a_cabinet_behind_a_slit_is_full(tmp_path, rng, slit):
    mesh = loaded(tmp_path / "cabinet.ply", cabinet(slit), interior="fill")
    points = rng.uniform(-0.55, 0.55, (20_000, 3))
    truth = box_sdf(points, mesh.extents / 2)
    sdf, _ = signed_distance(mesh, points)
    near_slit = np.abs(points[:, 2] - mesh.bounds[1, 2]) < 0.08  # its sides stay
    assert np.abs(sdf - truth)[~near_slit & (truth > 0)].max() < 1e-6
    assert ((sdf < 0) == (truth < 0))[~near_slit & (np.abs(truth) > 0.012)].all()
    share = mesh.metadata["report"].filled
    assert 0.6 < share < 0.8 and "filled 0.7" in str(mesh.metadata["report"])


def test_a_wider_opening_leaves_it_hollow_or_not_as_asked(tmp_path):
    mesh = loaded(tmp_path / "cabinet.ply", cabinet(0.06), interior="fill")
    assert mesh.metadata["report"].filled == 0 and mesh.metadata["solid"]
    mesh = load_mesh(tmp_path / "cabinet.ply", interior="fill", opening=0.08)
    assert mesh.metadata["report"].filled > 0.6


def test_an_opening_too_narrow_for_the_cells_is_refused(tmp_path):
    mesh = loaded(
        tmp_path / "cabinet.ply", cabinet(0.0), interior="fill", opening=1 / 64
    )
    assert mesh.metadata["report"].filled > 0.6
    with pytest.raises(ValueError, match="opening must be 0.015625 or more"):
        load_mesh(tmp_path / "cabinet.ply", interior="fill", opening=0.015)


def test_samples_and_measures_of_a_filled_cabinet_are_those_outside(tmp_path, rng):
    mesh = loaded(tmp_path / "cabinet.ply", cabinet(0.01), interior="fill")
    hollow = load_mesh(tmp_path / "cabinet.ply", interior="keep")
    points, _ = sample_surface(mesh, 4000, rng)
    depth = -box_sdf(points, mesh.extents / 2)
    assert (depth > 0.02).mean() < 0.08  # the slit's sides are what is left in there
    assert mesh.area < 0.6 * hollow.area
    middle = rng.uniform(-0.1, 0.1, (100, 3))
    assert inside(mesh, middle).all() and not inside(hollow, middle).any()


def test_a_filled_mesh_says_the_same_after_export(tmp_path, rng):
    mesh = loaded(tmp_path / "cabinet.ply", cabinet(0.01), interior="fill")
    mesh.export(tmp_path / "again.ply")
    again = trimesh.load(tmp_path / "again.ply", process=False)
    points = rng.uniform(-0.5, 0.5, (4000, 3))
    clear = np.abs(signed_distance(mesh, points)[0]) > 1e-4
    assert np.array_equal(inside(mesh, points)[clear], inside(again, points)[clear])


def test_a_closed_cavity_goes_whole_and_the_solid_stays_one(tmp_path):
    hole = box([1, 1, 1], [3, 3, 3])
    hole.invert()
    hollow = trimesh.util.concatenate(box([0, 0, 0], [4, 4, 4]), hole)
    mesh = loaded(tmp_path / "hollow.ply", hollow, interior="fill")
    assert mesh.metadata["solid"] and mesh.is_volume and len(mesh.faces) == 12
    assert np.isclose(mesh.volume, np.prod(mesh.extents))
    assert mesh.metadata["report"].filled == pytest.approx(8 / 64, abs=0.02)


def test_a_shelf_that_comes_out_of_the_hollow_is_cut_at_the_wall(tmp_path, rng):
    shelf = box([-1, 0.4, 0.3], [1.2, 0.45, 0.6])
    mesh = trimesh.util.concatenate(cabinet(0.01), shelf)
    mesh.visual.face_colors = np.repeat(
        [[255, 0, 0, 255], [0, 0, 255, 255]], [72, 12], 0
    )
    mesh = loaded(tmp_path / "shelf.ply", mesh, interior="fill")
    points = rng.uniform(mesh.bounds[0], mesh.bounds[1], (20_000, 3))
    scale = 2.2 / mesh.extents[0]
    there = points * scale + [0.1, 0.5, 0.505]  # the file's middle
    truth = ((there > 0) & (there < [1, 1, 1.01])).all(axis=1)
    truth |= ((there > [-1, 0.4, 0.3]) & (there < [1.2, 0.45, 0.6])).all(axis=1)
    sdf, _ = signed_distance(mesh, points)
    assert ((sdf < 0) == truth)[np.abs(sdf) > 0.012].mean() > 0.999
    blue = mesh.face_attributes["color"][:, 2] > 0.5
    middle = mesh.triangles_center[blue] * scale + [0.1, 0.5, 0.505]
    assert blue.any() and (middle[:, 0] < 0.02).any()
    assert not ((middle[:, 0] > 0.1) & (middle[:, 0] < 0.9)).any()  # none in the hollow


@pytest.mark.parametrize("open_side", ["+z", "+y"])
def test_what_is_open_stays_open(tmp_path, open_side):
    axis = "xyz".index(open_side[1])
    niche = trimesh.creation.box(bounds=[[0, 0, 0], [1, 1, 1]])
    niche.update_faces(niche.face_normals[:, axis] < 0.5)
    mesh = loaded(tmp_path / "niche.ply", niche, interior="fill")
    assert mesh.metadata["report"].filled == 0
    assert signed_distance(mesh, np.zeros((1, 3)))[0] > 0


def test_grooves_stay_and_a_mesh_without_a_hollow_is_given_back(tmp_path):
    boards = [box([0.1 * k, 0, 0], [0.1 * k + 0.09, 1, 0.2]) for k in range(10)]
    mesh = loaded(tmp_path / "boards.ply", trimesh.util.concatenate(boards))
    filled, share = fill_interior(mesh)
    assert filled is mesh and share == 0
