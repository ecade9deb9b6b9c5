"""A mesh's body without relief, on blocks whose plain version is known."""

import json

import numpy as np
import pytest
import torch
import trimesh

from d2im.__main__ import main
from d2im.camera import Camera
from d2im.data.coarse import coarse_body, coarse_distance
from d2im.data.dataset import (
    ShapeDataset,
    make_example,
    prepare,
    read_index,
    source_meshes,
)
from d2im.data.rendering import Renderer
from d2im.evaluate.benchmark import field_scores
from d2im.evaluate.decomposition import disentanglement, true_displacement
from d2im.sampling import sample_sdf, signed_distance
from d2im.use.reconstruction import Prediction

FRONT = 0.2  # z of the block's front
FEW = {"count": 2000, "views": 1, "size": 32}
ONE = FEW | {"timeout": None, "progress": False}


def box(low, high):
    return trimesh.creation.box(bounds=[low, high])


def block(add=(), cut=()):
    """A block, with boxes added to it or cut out of it."""
    mesh = box([-0.2, -0.3, -FRONT], [0.2, 0.3, FRONT])
    for other in add:
        mesh = trimesh.boolean.union([mesh, other], engine="manifold")
    for other in cut:
        mesh = trimesh.boolean.difference([mesh, other], engine="manifold")
    return mesh


GROOVES = [box([-0.3, y, FRONT - 0.02], [0.3, y + 0.02, 0.3]) for y in (-0.1, 0.1)]
RELIEF = {
    "grooves": block(cut=GROOVES),
    "a slit": block(cut=[box([-0.003, -0.2, 0.155], [0.003, 0.2, 0.3])]),
    "a panel that lies lower": block(cut=[box([-0.1, -0.2, 0.18], [0.1, 0.2, 0.3])]),
    "a raised panel": block(add=[box([-0.1, -0.2, 0.1], [0.1, 0.15, FRONT + 0.015])]),
    "a knob": block(add=[box([0, 0, 0.1], [0.03, 0.03, FRONT + 0.03])]),
    "a rib on its side": block(add=[box([0.1, -0.2, -0.01], [0.21, 0.2, 0.01])]),
}
LEG = box([-0.2, -0.42, -0.2], [-0.192, -0.2, -0.192])
FORM = {
    "a thin leg": block(add=[LEG]),
    "a deep compartment": block(cut=[box([-0.15, -0.2, -0.1], [0.15, 0.2, 0.3])]),
    "a tall step": block(add=[box([-0.1, -0.2, 0.1], [0.1, 0.2, FRONT + 0.06])]),
    "a ball": trimesh.creation.icosphere(3, 0.4),
    "a sheet": box([-0.3, -0.3, -0.0015], [0.3, 0.3, 0.0015]),
}


def samples(mesh, seed=0):
    return sample_sdf(mesh, 4000, np.random.default_rng(seed))


@pytest.mark.parametrize("name", RELIEF)
def test_relief_on_a_block_leaves_the_block(name):
    found = samples(RELIEF[name])
    coarse = coarse_body(RELIEF[name])
    truth, _ = signed_distance(block(), found.points)
    error = np.abs(coarse_distance(coarse, found.points, found.sdf) - truth)
    assert coarse.is_watertight and coarse.volume == pytest.approx(0.096, rel=0.01)
    assert error.mean() < 0.0003 and np.quantile(error, 0.99) < 0.003


@pytest.mark.parametrize("name", FORM)
def test_form_stays_as_it_is(name):
    assert coarse_body(FORM[name]) is FORM[name]


def test_a_deep_slit_is_no_more_relief_than_a_map_can_hold():
    mesh = block(cut=[box([-0.003, -0.2, 0.1], [0.003, 0.2, 0.3])])
    bottom = np.array([[0, 0, 0.1001]])
    sdf, _ = signed_distance(mesh, bottom)
    relief = sdf - coarse_distance(coarse_body(mesh), bottom, sdf)
    assert relief == pytest.approx(0.05)  # it lies 0.1 below the front


def test_a_thin_leg_stays_where_grooves_go():
    mesh = block(add=[LEG], cut=GROOVES)
    found = samples(mesh)
    truth, _ = signed_distance(FORM["a thin leg"], found.points)
    error = coarse_distance(coarse_body(mesh), found.points, found.sdf) - truth
    below = found.points[:, 1] < -0.32
    assert below.sum() > 30 and np.abs(error[below]).max() < 1e-4
    assert np.abs(error).mean() < 0.0003


def test_the_coarse_distance_is_exact_away_from_relief():
    found = samples(RELIEF["a knob"])
    coarse = coarse_body(RELIEF["a knob"])
    away = np.linalg.norm(found.points - [0.015, 0.015, FRONT], axis=1) > 0.35
    error = coarse_distance(coarse, found.points, found.sdf)[away] - found.sdf[away]
    assert np.abs(error).max() < 1e-6


@pytest.mark.parametrize("turn", [45, 90])
def test_a_turned_block_keeps_its_form(turn):
    turned = trimesh.transformations.rotation_matrix(np.radians(turn), [0, 1, 0])
    mesh = block().apply_transform(turned)
    found = samples(mesh)
    error = coarse_distance(coarse_body(mesh), found.points, found.sdf) - found.sdf
    assert np.abs(error).max() < 0.002


def test_prepare_makes_coarse_bodies_where_it_is_asked_to(tmp_path):
    path = tmp_path / "drawers.obj"
    RELIEF["grooves"].export(path)
    prepare([path], tmp_path / "with", coarse="levels", **ONE)
    prepare([path], tmp_path / "without", **ONE)
    (row,), data = read_index(tmp_path / "with"), ShapeDataset(tmp_path / "with")
    example = data.example(0)
    detailed, coarse = source_meshes(row)
    assert row["coarse"] == "levels" and data.knows_coarse()
    relief = coarse_distance(coarse, example["points"], example["sdf"]).astype("f4")
    np.testing.assert_allclose(example["base_sdf"], relief, atol=1e-6)
    assert coarse.volume == pytest.approx(1.0033 * detailed.volume, rel=5e-4)
    settings = [tmp_path / name / "settings.json" for name in ("with", "without")]
    made = [json.loads(file.read_text(encoding="utf-8")) for file in settings]
    assert made[0] == made[1] | {"coarse": "levels"}
    (row,) = read_index(tmp_path / "without")
    assert source_meshes(row)[1] is None
    assert not ShapeDataset(tmp_path / "without").knows_coarse()


def test_a_folder_made_without_coarse_bodies_is_not_mixed_with_them(tmp_path):
    path = tmp_path / "block.obj"
    block().export(path)
    out = tmp_path / "set"
    prepare([path], out, **ONE)
    with pytest.raises(ValueError, match="examples made with"):
        prepare([path], out, coarse="levels", **ONE)
    assert prepare([path], out, **ONE)[0]["status"] == "ok"


def test_a_wrong_mode_is_one_line(tmp_path, capsys):
    with pytest.raises(ValueError, match="coarse must be one of none, levels, not 'x'"):
        prepare([tmp_path / "a.obj"], tmp_path / "set", coarse="x")
    with pytest.raises(SystemExit):
        main(["prepare", "a.obj", "-o", str(tmp_path / "set"), "--coarse", "x"])
    assert "none" in capsys.readouterr().err


def test_the_truth_of_a_real_mesh_is_scored_as_perfect():
    mesh = RELIEF["a panel that lies lower"]
    coarse, camera = coarse_body(mesh), Camera(20, 15, 0.9, 64)
    hit, depth, _, _ = Renderer(mesh).cast(camera)
    origins, rays = camera.rays()
    seen = (origins + depth[..., None] * rays)[hit].astype(float)
    maps = torch.zeros(2, 64, 64)
    relief = -coarse_distance(coarse, seen, 0.0)
    maps[0][torch.from_numpy(hit)] = torch.from_numpy(relief).float()

    def base(points):
        sdf, _ = signed_distance(mesh, points.numpy())
        return torch.from_numpy(coarse_distance(coarse, points.numpy(), sdf))

    found = Prediction(maps, camera, base, base, None)
    scores = disentanglement(found, mesh, coarse)
    assert relief.max() == pytest.approx(0.02, abs=1e-3)
    assert scores["displacement_correlation_highpass"] > 0.999
    assert scores["base_to_coarse"] < 1e-4 < 1e-3 < scores["base_to_detailed"]


def test_a_mesh_without_relief_has_no_score_of_it():
    mesh, camera = FORM["a ball"], Camera(0, 0, 0.9, 32)
    example = make_example(mesh, mesh, np.random.default_rng(0), poses=[camera], **FEW)
    base = lambda p: torch.from_numpy(signed_distance(mesh, p.numpy())[0])  # noqa: E731
    found = Prediction(torch.zeros(2, 32, 32), camera, base, base, None)
    scores = field_scores(None, found, example, 0, mesh, mesh)
    assert "base_error" in scores and "displacement_correlation" not in scores
    assert (example["base_sdf"] == example["sdf"]).all()


def test_the_true_displacement_of_a_raised_panel_is_its_height_and_0_beside_it():
    camera = Camera(0, 0, 1.0, 64)
    depth = (
        Renderer(RELIEF["a raised panel"]).view(camera, np.random.default_rng(0)).depth
    )
    found = true_displacement(camera, depth, block())
    panel = np.isclose(depth, camera.translation[2] - FRONT - 0.015, atol=1e-5)
    beside = np.isclose(depth, camera.translation[2] - FRONT, atol=1e-5)
    assert min(panel.sum(), beside.sum()) > 100
    assert np.allclose(found[panel], -0.015, atol=1e-5)
    assert np.allclose(found[beside], 0, atol=1e-5)
    assert not found[depth == 0].any()
    unknown = true_displacement(camera, depth, None)
    assert (np.isnan(unknown) == (depth > 0)).all()
