"""Real models, where they are at hand: they load, and their signs are right."""

from pathlib import Path

import numpy as np
import pytest
import trimesh

from d2im.data.interior import fill_interior
from d2im.data.mesh import load_mesh
from d2im.sampling import sample_surface, signed_distance

FOLDER = Path(__file__).parents[2] / "shared" / "meshes"
MODELS = sorted(path.stem for path in FOLDER.glob("*.glb"))
CAPPED = [  # every body closed once its holes are capped
    "drawer_cabinet",
    "folding_wooden_stool",
    "modern_coffee_table_02",
]
HOLLOW = {  # share of the box of 1.1^3 that is inside, before and after it is filled
    "GothicCommode_01": (0.022, 0.080),
    "drawer_cabinet": (0.012, 0.026),
    "gallinera_chair": (0.011, 0.032),
    "painted_wooden_cabinet": (0.024, 0.087),
}
CLOSED = [  # every body watertight in the file
    "SchoolChair_01",
    "lampRoundFloor",
    "mid_century_lounge_chair",
    "painted_wooden_bench",
    "painted_wooden_chair_01",
    "speaker",
    "wooden_stool_01",
]
pytestmark = pytest.mark.skipif(not MODELS, reason=f"no models in {FOLDER}")


def closed_bodies(path):
    """Each body's triangles, read by trimesh alone, in the normalised frame."""
    meshes = trimesh.load_scene(path).dump()
    mesh = trimesh.util.concatenate(
        [trimesh.Trimesh(m.vertices, m.faces, process=False) for m in meshes]
    )
    mesh.merge_vertices()
    vertices = mesh.vertices - mesh.bounds.mean(axis=0)
    triangles = (vertices * 0.5 / np.linalg.norm(vertices, axis=1).max())[mesh.faces]
    body = trimesh.graph.connected_component_labels(
        mesh.face_adjacency, node_count=len(mesh.faces)
    )
    return [triangles[body == label] for label in range(body.max() + 1)]


def crossings(points, triangles, rotation):
    """How many triangles a ray from each point along the rotated z axis meets."""
    points, (a, b, c) = points @ rotation.T, np.moveaxis(triangles @ rotation.T, 1, 0)
    p = points[:, None]

    def side(u, v):  # twice the signed area of (u, v, p), seen along z
        return (v - u)[..., 0] * (p - u)[..., 1] - (v - u)[..., 1] * (p - u)[..., 0]

    weights = np.stack([side(b, c), side(c, a), side(a, b)])  # (3, P, F)
    meets = (weights > 0).all(axis=0) | (weights < 0).all(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        height = (weights * np.stack([a, b, c])[:, None, :, 2]).sum(0) / weights.sum(0)
    return (meets & (height > points[:, 2:])).sum(axis=1)


def inside_by_ray_parity(points, bodies, rng):
    """Inside any closed body, by the majority of three random directions."""
    random_matrix = trimesh.transformations.random_rotation_matrix
    rotations = [random_matrix(rand=rng.random(3))[:3, :3] for _ in range(3)]
    inside = np.zeros(len(points), dtype=bool)
    for triangles in bodies:
        low, high = triangles.min(axis=(0, 1)), triangles.max(axis=(0, 1))
        near = np.flatnonzero(((points > low) & (points < high)).all(axis=1))
        for some in np.array_split(near, 1 + len(near) * len(triangles) // 100_000):
            odd = [crossings(points[some], triangles, r) % 2 for r in rotations]
            inside[some] |= np.sum(odd, axis=0) >= 2
    return inside


@pytest.mark.parametrize("name", MODELS)
def test_a_real_model_loads_normalised_with_a_report(name):
    mesh = load_mesh(FOLDER / f"{name}.glb")
    assert np.isclose(np.linalg.norm(mesh.vertices, axis=1).max(), 0.5)
    assert np.isfinite(mesh.vertices).all() and mesh.area_faces.min() > 0
    assert mesh.metadata["solid"] == (name in CLOSED + CAPPED)
    assert mesh.is_volume or not mesh.metadata["solid"]
    assert "parts" in str(mesh.metadata["report"])
    assert mesh.face_attributes["part"].shape == (len(mesh.faces),)
    color = mesh.face_attributes["color"]
    assert color.shape == (len(mesh.faces), 3) and 0 <= color.min() <= color.max() <= 1


@pytest.mark.parametrize("name", ["ArmChair_01", "dining_chair_02", "sofa_02"])
def test_the_field_of_an_open_model_hardly_jumps_where_its_sign_changes(name):
    rng = np.random.default_rng(0)
    mesh = load_mesh(FOLDER / f"{name}.glb")
    start, end = rng.uniform(-0.5, 0.5, (2, 2000, 3))
    inside = signed_distance(mesh, start)[0] < 0
    other = (signed_distance(mesh, end)[0] < 0) != inside
    start, end, inside = start[other], end[other], inside[other]
    for _ in range(20):  # bisect to the change of sign
        middle = (start + end) / 2
        sdf, _ = signed_distance(mesh, middle)
        same = ((sdf < 0) == inside)[:, None]
        start, end = np.where(same, middle, start), np.where(same, end, middle)
    assert len(sdf) > 50 and np.abs(sdf).max() < 0.006


@pytest.mark.parametrize("name", CLOSED)
def test_signs_of_a_closed_model_agree_with_ray_parity(name):
    rng = np.random.default_rng(0)
    mesh = load_mesh(FOLDER / f"{name}.glb")
    surface, _ = sample_surface(mesh, 1300, rng)
    near = surface + rng.normal(scale=0.01, size=surface.shape)
    points = np.vstack([near, rng.uniform(*mesh.bounds, (800, 3))])
    sdf, _ = signed_distance(mesh, points)
    clear = np.abs(sdf) > 1e-3
    inside = inside_by_ray_parity(points, closed_bodies(FOLDER / f"{name}.glb"), rng)
    assert clear.sum() > 1900 and inside.any()
    assert (inside == (sdf < 0))[clear].mean() >= 0.999


@pytest.mark.parametrize("name", [*HOLLOW, "painted_wooden_chair_01", "sofa_02"])
def test_only_hollow_furniture_is_filled_and_none_loses_its_inside(name):
    rng = np.random.default_rng(0)
    mesh = load_mesh(FOLDER / f"{name}.glb")
    filled, share = fill_interior(mesh)
    assert (share > 0) == (name in HOLLOW)
    if name in HOLLOW:
        points = rng.uniform(-0.55, 0.55, (10_000, 3))
        sdf, _ = signed_distance(mesh, points)
        after, _ = signed_distance(filled, points)
        found = (sdf < 0).mean(), (after < 0).mean()
        assert found == pytest.approx(HOLLOW[name], abs=0.006)
        assert ((sdf < 0) & (after > 0)).mean() < 5e-4
        changed = np.abs(after - sdf)[(sdf > 0) & (after > 0.005)]
        assert (changed > 1e-6).mean() < 3e-3 and changed.max() < 0.01
