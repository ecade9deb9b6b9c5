"""The sparse mesh is the dense grid's mesh, closed, outward and where it should be."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from d2im import meshing
from d2im.camera import Camera
from d2im.fields import box, displaced_field, sphere, torus
from d2im.surface.extract import extract_mesh

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "equality.py"


@pytest.fixture(autouse=True)
def one_thread():  # on busy cores two threads wait for each other: 41 s in place of 5
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bumpy(p):  # gradient up to 1 + 0.02 * 30 * sqrt(3) < 2.1
    return p.norm(dim=-1) - 0.38 + 0.02 * torch.sin(30 * p).prod(-1)


def union_of_balls(p):
    return torch.minimum(sphere(0.1, (0.3, 0.3, 0.3))(p), sphere(0.03)(p))


def shell(p):  # a ball with a hollow inside
    return (p.norm(dim=-1) - 0.35).abs() - 0.02


def sheet(height, thickness=0.008):  # both thinner than a cell of the grids below
    flat = box((0.4, thickness / 2, 0.3))
    return lambda p: flat(p - p.new_tensor((0, height, 0)))


def gyroid(p):  # gradient of sin x cos y + ... is at most sqrt(3), hence L = 1 below
    s, c = torch.sin(18 * p), torch.cos(18 * p)
    waves = (s * c.roll(-1, -1)).sum(-1).abs() - 0.4
    return torch.maximum(waves / (18 * 3**0.5), p.norm(dim=-1) - 0.45)


def touching(p):  # two balls with one point in common
    return torch.minimum(sphere(0.2, (0.2, 0, 0))(p), sphere(0.2, (-0.2, 0, 0))(p))


FIELDS = {  # field, bound of its gradient
    "sphere": (sphere(0.4), 1.0),
    "box": (box((0.3, 0.2, 0.1)), 1.0),
    "torus": (torus(), 1.0),
    "bumpy": (bumpy, 2.1),
    "steep": (lambda p: 4 * bumpy(p), 8.4),
    "balls": (union_of_balls, 1.0),
    "shell": (shell, 1.0),
    "cut": (sphere(0.6), 1.0),
    "gyroid": (gyroid, 1.0),
    "touching balls": (touching, 1.0),
    "sheet": (sheet(1.1 / 69 * 0.5), 1.0),
}


def assert_same_mesh(sparse, dense):
    assert sparse.faces.shape == dense.faces.shape
    assert sparse.euler_number == dense.euler_number
    assert sparse.body_count == dense.body_count
    for a, b in ((sparse, dense), (dense, sparse)):
        assert cKDTree(a.vertices).query(b.vertices)[0].max() < 1e-6


@pytest.mark.parametrize("name", FIELDS)
def test_coarse_to_fine_gives_the_mesh_of_the_dense_grid(name):
    field, bound = FIELDS[name]
    dense = extract_mesh(field, 70, coarse=70)
    assert dense.metadata["evaluations"] == 70**3
    for lipschitz in (None, bound):
        sparse = extract_mesh(field, 70, coarse=16, lipschitz=lipschitz)
        assert_same_mesh(sparse, dense)
        assert sparse.metadata["evaluations"] < 70**3 / 2
        assert sparse.is_watertight and sparse.is_winding_consistent
        assert sparse.volume > 0


@pytest.mark.parametrize("layer", range(3, 61, 6))
def test_no_sheet_is_lost_that_crosses_a_layer_of_samples(layer):
    height = layer * 1.1 / 63 - 0.55  # in the middle of a coarse cell where layer = 3
    field = sheet(height, thickness=0.001)
    dense = extract_mesh(field, 64, coarse=64)
    assert_same_mesh(extract_mesh(field, 64), dense)
    assert_same_mesh(extract_mesh(field, 64, lipschitz=1.0), dense)


def test_with_a_lipschitz_bound_not_even_one_sample_is_lost():
    height = 3 * 1.1 / 63 - 0.55  # a ball a tenth of a cell wide, mid of a coarse cell
    field = sphere(0.05 * 1.1 / 63, (height, height, height))
    dense = extract_mesh(field, 64, coarse=64)
    assert len(dense.faces) == 8
    assert_same_mesh(extract_mesh(field, 64, lipschitz=1.0), dense)


@pytest.mark.parametrize("resolution", [8, 33, 50, 64, 97])
def test_any_resolution_gives_a_closed_mesh(resolution):
    mesh = extract_mesh(sphere(0.4), resolution)
    assert mesh.is_watertight
    cell = 1.1 / (resolution - 1)  # linear interpolation errs by cell^2 / (8 radius)
    assert abs(np.linalg.norm(mesh.vertices, axis=1) - 0.4).max() < cell**2


def test_sphere_has_its_volume_and_area():
    mesh = extract_mesh(sphere(0.4), 128)
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.4**3, rel=1e-3)
    assert mesh.area == pytest.approx(4 * np.pi * 0.4**2, rel=1e-3)
    assert mesh.body_count == 1 and mesh.euler_number == 2


def test_normals_point_outward():
    mesh = extract_mesh(sphere(0.4), 48)
    outward = np.einsum("fc,fc->f", mesh.face_normals, mesh.triangles_center)
    assert (outward[mesh.area_faces > 1e-9] > 0).all()


def test_a_torus_has_one_handle():
    assert extract_mesh(torus(), 64).euler_number == 0


def test_axes_are_x_y_z():
    extents = extract_mesh(box((0.3, 0.2, 0.1)), 64).bounds[1]
    assert extents == pytest.approx([0.3, 0.2, 0.1], abs=2e-3)


def test_a_surface_through_the_samples_stays_closed():
    step = 1.1 / 64
    mesh = extract_mesh(box((16 * step,) * 3), 65)
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx((32 * step) ** 3, rel=1e-2)  # rounded edges


def test_a_surface_that_leaves_the_box_is_closed_at_its_faces():
    mesh = extract_mesh(lambda p: p[:, 1], 64)  # the half-space below y = 0
    assert mesh.is_watertight and abs(mesh.bounds).max() < 0.55
    assert mesh.volume == pytest.approx(1.1**2 * 0.55, rel=0.05)


def test_chunks_do_not_change_the_mesh():
    whole, parts = (extract_mesh(bumpy, 64, chunk=c) for c in (10**6, 777))
    assert np.array_equal(whole.vertices, parts.vertices)
    assert np.array_equal(whole.faces, parts.faces)


# torch announces its own use of the deprecated torch.jit at the first forward-mode call
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_a_field_with_forward_mode_derivatives_can_be_extracted():
    class Orthographic:
        rotation = np.eye(3)

        def project(self, points):
            return points[:, :2] / 0.55, points[:, 2]

    maps = torch.zeros(2, 8, 8)
    maps[0] += 0.05  # the near half moves inward, the far half stays
    field = displaced_field(sphere(0.4), maps, Orthographic())
    bounds = extract_mesh(field, 64).bounds[:, 2]
    assert bounds == pytest.approx([-0.35, 0.4], abs=2e-3)


def relief(way="gradient", amplitude=0.04, seed=0):
    """Smooth random maps with a bump 3 px wide, far higher than a cell."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, 2, 8, 8, generator=generator) * amplitude / 3
    maps = torch.nn.functional.interpolate(coarse, (96, 96), mode="bicubic")[0]
    maps[0, 46:49, 50:53] -= 2 * amplitude
    return maps, Camera(25, 15, 1, 96), way


def rounded_box(p):  # smooth along the view, but for the edges' measure zero
    q = p.abs() - p.new_tensor((0.25, 0.3, 0.15))
    return (q.clamp(min=0) ** 2 + 1e-12).sum(-1).sqrt() + q.amax(-1).clamp(max=0) - 0.05


@pytest.mark.parametrize("way", ["gradient", "finite_difference"])
@pytest.mark.parametrize("field", [sphere(0.35), torus(), rounded_box, bumpy])
def test_base_and_relief_have_the_meshes_of_their_dense_grids(field, way):
    maps, camera, way = relief(way)
    both = extract_mesh(field, 70, relief=(maps, camera, way), both=True)
    final = displaced_field(field, maps, camera, way)
    for sparse, whole in zip(both, (field, final), strict=True):
        dense = extract_mesh(whole, 70, coarse=70)
        assert sparse.faces.shape == dense.faces.shape
        assert sparse.euler_number == dense.euler_number
        assert sparse.body_count == dense.body_count
        moved = cKDTree(dense.vertices).query(sparse.vertices)[0] > 1e-6
        assert moved.sum() <= sparse.metadata["jumps"]  # 0 for the base
    treated = extract_mesh(field, 70, relief=(maps, camera, way), coarse=70)
    assert_same_mesh(both[1], treated)  # jumps, too
    assert both[1].metadata["jumps"] > 50
    assert both[1].metadata["evaluations"] < 70**3 / 3


@pytest.mark.parametrize("family", ["chair", "lamp", "bench"])
def test_furniture_with_thin_parts_has_the_mesh_of_the_dense_grid(family, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARK.parent)  # as for a script
    fields = runpy.run_path(BENCHMARK)["true_fields"](family, 10_200, knots=37)
    args = {"relief": fields[1], "both": True}
    found = extract_mesh(fields[0], 64, **args)
    monkeypatch.setattr(meshing, "STEEP", np.inf)  # the exact derivative everywhere
    dense = extract_mesh(fields[0], 64, **args, coarse=64)
    for pair in zip(found, dense, strict=True):
        assert_same_mesh(*pair)
    assert found[1].metadata["jumps"] > 50
    assert found[1].metadata["evaluations"] < 64**3 / 5


def test_where_the_derivative_tells_always_the_mesh_is_the_same(monkeypatch):
    found = extract_mesh(torus(), 130, relief=relief(), both=True)
    monkeypatch.setattr(meshing, "STEEP", np.inf)  # as on a GPU
    always = extract_mesh(torus(), 130, relief=relief(), both=True, coarse=64)
    for pair in zip(found, always, strict=True):
        assert_same_mesh(*pair)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")
def test_cpu_and_cuda_give_the_same_mesh():
    here = extract_mesh(torus(), 130, relief=relief(), both=True)
    there = extract_mesh(torus(), 130, relief=relief(), both=True, device="cuda")
    for pair in zip(here, there, strict=True):
        assert_same_mesh(*pair)


def test_a_narrow_high_bump_of_the_map_is_not_lost():
    maps = torch.zeros(2, 224, 224)
    maps[0, 110:113, 110:113] = -0.12  # a rod 3 px wide, 14 cells high
    camera = Camera(0, 0, 1, 224)
    mesh = extract_mesh(sphere(0.3), 128, relief=(maps, camera, "gradient"))
    assert mesh.bounds[1, 2] == pytest.approx(0.42, abs=0.01)
    assert mesh.body_count == 1


def test_the_base_mesh_is_the_same_with_and_without_relief():
    alone = extract_mesh(torus(), 64)
    beside, _ = extract_mesh(torus(), 64, relief=relief(), both=True)
    assert_same_mesh(beside, alone)


@pytest.mark.parametrize("slope", [1.5, 4, 16])
@pytest.mark.parametrize("relieved", [False, True])
def test_a_part_that_the_window_missed_is_followed(slope, relieved, monkeypatch):
    monkeypatch.setattr(meshing, "STEEP", np.inf)  # the exact derivative everywhere

    def field(p):  # a ball with a rod, steep, so that no band reaches the rod
        nearest = p * p.new_tensor((1, 0, 0))
        rod = (p - nearest.clamp(0, 0.45)).norm(dim=-1) - 0.012
        return slope * torch.minimum(sphere(0.15)(p), rod)

    args = {"relief": relief(amplitude=0.01)} if relieved else {}
    found = extract_mesh(field, 128, **args)
    assert_same_mesh(found, extract_mesh(field, 128, **args, coarse=128))
    assert found.is_watertight and found.bounds[1, 0] > 0.45


def test_where_front_turns_to_back_the_wall_is_flat():
    class Orthographic:
        rotation, focal, size = np.eye(3), 8.0, 8

        def project(self, points):
            return points[:, :2] / 0.55, points[:, 2] + 2

    maps = torch.zeros(2, 8, 8)
    maps[0] += 0.05  # the front half shrinks: a step of 6 cells at z = 0
    args = (maps, Orthographic(), "gradient")
    cell, off = 1.1 / 63, {}
    ball = sphere(0.4, (0, 0, 0.3 * cell))  # an edge's middle is off by as much
    treated = extract_mesh(ball, 64, relief=args)
    plain = extract_mesh(displaced_field(ball, *args), 64)
    for name, mesh in (("treated", treated), ("plain", plain)):
        radius = np.linalg.norm(mesh.vertices[:, :2], axis=1)
        height = abs(mesh.vertices[:, 2] - 0.3 * cell)
        off[name] = height[(height < cell) & (radius > 0.36) & (radius < 0.39)]
    assert treated.metadata["jumps"] >= len(off["treated"]) > 100
    assert off["treated"].max() < cell / 8
    assert off["plain"].max() > cell / 4
    assert treated.is_watertight and treated.euler_number == plain.euler_number


@pytest.mark.parametrize(
    ("field", "resolution", "message"),
    [
        (sphere(0.4), 7, "resolution must be 8 samples or more, got 7"),
        (lambda p: p, 32, r"tensor of values \(2048,\), got \(2048, 3\)"),
        (lambda p: 1.0, 32, "got float"),
        (lambda p: p[:, 0] * torch.nan, 32, "must be finite in the box"),
        (lambda p: p.norm(dim=-1) + 0.1, 64, "no surface .* from 0.1.* to 1.05"),
        (lambda p: p[:, 0] - 1, 64, "no surface .* from -1.55 to -0.45"),
    ],
)
def test_a_bad_field_is_a_one_line_error(field, resolution, message):
    with pytest.raises(ValueError, match=message) as caught:
        extract_mesh(field, resolution)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_map_that_is_not_finite_is_a_one_line_error(bad):
    maps = torch.zeros(2, 32, 32)
    maps[0, 5, 5] = bad
    with pytest.raises(ValueError, match="displacement must be finite, got NaN or inf"):
        extract_mesh(sphere(0.4), 32, relief=(maps, Camera(0, 0, 1, 32), "gradient"))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_a_field_may_answer_in_another_precision(kind):
    mesh = extract_mesh(lambda p: sphere(0.4)(p.to(kind)), 32)
    expected = extract_mesh(sphere(0.4), 32)
    assert mesh.is_watertight and mesh.volume == pytest.approx(
        expected.volume, rel=0.01
    )
