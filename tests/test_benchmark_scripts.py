"""The scripts of benchmarks/ open alike: machine, threads, versions, then figures."""

import json
import platform
import re
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from d2im.camera import Camera
from d2im.data.coarse import coarse_body, coarse_distance
from d2im.data.dataset import ShapeDataset, read_index, write_index
from d2im.data.rendering import Renderer
from d2im.fields import sphere
from d2im.sampling import signed_distance
from d2im.use.reconstruction import Prediction, Reconstruction
from d2im.use.refinement import mesh_field

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in FOLDER.glob("*.py") if path.name != "common.py")


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("common")


@pytest.fixture
def campaign(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("campaign")


@pytest.fixture
def opened(common, monkeypatch, capsys):
    """What a benchmark with an argument of its own prints first, and its options."""
    parser = common.arguments("A benchmark.\n\nIts usage.")
    parser.add_argument("--shapes", type=int, default=3)
    monkeypatch.setattr(sys, "argv", ["some.py", "--threads", "1", "--shapes", "5"])
    threads = torch.get_num_threads()
    options = common.opening(parser)
    used = torch.get_num_threads()
    torch.set_num_threads(threads)
    return capsys.readouterr().out, options, used


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_opens_as_the_others_do(name):
    source = (FOLDER / name).read_text(encoding="utf-8")
    assert re.search(r"common\.opening\(parser\)", source)
    assert "ArgumentParser" not in source and "parse_args" not in source


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_says_how_threads_wait_before_torch_is_there(name):
    source = (FOLDER / name).read_text(encoding="utf-8")
    imports = re.findall(r"^(?:import|from) (common|torch|d2im)\b", source, flags=re.M)
    assert imports[0] == "common"


def test_the_opening_is_one_line(opened):
    assert opened[0].count("\n") == 1


def test_the_opening_names_processor_and_versions(opened, common):
    line = opened[0]
    assert common.processor() and line.startswith(common.processor())
    for part in (platform.python_version(), torch.__version__, np.__version__):
        assert part in line


def test_the_opening_sets_the_threads_that_it_names(opened):
    line, _, used = opened
    assert used == 1 and "threads: 1," in line


def test_the_opening_reads_the_benchmarks_own_arguments(opened):
    assert opened[1].shapes == 5


def test_a_benchmark_outside_a_checkout_names_no_commit(common, monkeypatch, tmp_path):
    monkeypatch.setattr(common, "__file__", str(tmp_path / "common.py"))
    assert common.commit() == "no commit"


@pytest.fixture
def mutations(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("mutations")


@pytest.fixture
def toy(tmp_path):
    """A checkout with two functions, of which one is tested."""
    functions = (
        "def add(a, b):\n    return a + b\n\n\ndef less(a, b):\n    return a - b\n"
    )
    test = "from d2im.sums import add\ndef test_sum(): assert add(2, 3) == 5\n"
    files = {"d2im/__init__.py": "", "d2im/sums.py": functions}
    for name, text in (files | {"tests/test_sums.py": test}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_change_that_a_test_notices_is_killed_by_it(mutations, toy):
    change = "a sum", "sums.py", "a + b", "a * b", "sums"
    assert mutations.try_mutation(toy, "d2im", change, 60) == "test_sum"


def test_a_change_that_no_test_notices_survives(mutations, toy):
    change = "a difference", "sums.py", "a - b", "b - a", "sums"
    assert mutations.try_mutation(toy, "d2im", change, 60) == ""


def test_a_test_that_fails_anyhow_kills_nothing(mutations, toy):
    with open(toy / "tests" / "test_sums.py", "a") as file:
        file.write("def test_of_another_fault(): assert False\n")
    change = "a difference", "sums.py", "a - b", "b - a", "sums"
    with pytest.raises(RuntimeError, match="another_fault fails without the change"):
        mutations.try_mutation(toy, "d2im", change, 60)


def test_a_change_is_made_in_a_copy_alone(mutations, toy):
    before = (toy / "d2im" / "sums.py").read_bytes()
    mutations.try_mutation(toy, "d2im", ("", "sums.py", "a + b", "a", "sums"), 60)
    assert (toy / "d2im" / "sums.py").read_bytes() == before


def test_a_change_of_a_line_that_is_not_there_is_refused(mutations, toy):
    with pytest.raises(ValueError, match="sums.py holds 'a / b' 0 times, not once"):
        mutations.mutate(toy / "d2im" / "sums.py", "a / b", "a")


@pytest.mark.parametrize("resolution", [8, 47])
def test_the_released_way_is_timed_on_small_grids_too(
    monkeypatch, tiny_model, resolution
):
    monkeypatch.syspath_prepend(FOLDER)
    extraction = import_module("extraction")
    camera, image = extraction.Camera(20, 10, 1, 32), torch.rand(1, 3, 32, 32)
    given = tiny_model.eval(), image, camera, resolution, 1.0, "cpu"
    wall, core, share = extraction.released(*given)
    assert wall > 0 and core > 0 and 0 < share <= 1


def test_a_campaign_keeps_an_encoders_first_stages(campaign):
    model = campaign.D2IMNet.preset("local")
    campaign.keep_stages(model.code_encoder, 3)
    kept = [p for p in model.code_encoder.parameters() if not p.requires_grad]
    blocks = model.code_encoder.blocks[:5]  # of 1, 2 and 2
    wanted = [*model.code_encoder.stem.parameters(), *blocks.parameters()]
    assert [id(p) for p in kept] == [id(p) for p in wanted]


def test_a_campaign_scores_furniture_apart_from_the_benchmarks_list(
    campaign, tiny_data, tmp_path, monkeypatch
):
    shutil.copytree(tiny_data, tmp_path / "furniture-test")
    model = campaign.CameraNet.preset("small", image_size=32)
    model.save_pretrained(tmp_path / "runs" / "camera-0")
    monkeypatch.setattr(campaign.benchmark, "true_meshes", lambda *_: (None, None))
    options = SimpleNamespace(test=1, unseen=1, workers=1, at_once=1)
    campaign.score_one(options, tmp_path, "camera-0")
    rows = json.loads((tmp_path / "scores" / "camera-0.json").read_text("utf-8"))
    assert {row["split"] for row in rows["cameras"]} == {"furniture"}


def test_a_campaigns_trainings_share_what_they_train_on(
    campaign, tiny_data, tmp_path, monkeypatch
):
    rows = read_index(tiny_data)
    for name in ("train", "furniture-train", "val", "furniture-val"):
        folder, split = tmp_path / name, name.rpartition("-")[2]
        shutil.copytree(tiny_data, folder)
        write_index(folder, [row | {"split": split} for row in rows])
    given = []
    monkeypatch.setattr(campaign, "train", lambda *a, **k: given.append((a, k)) or [])
    options = SimpleNamespace(points=64, libraries=["a.sh3f"], start=None, steps=5)
    vars(options).update(batch=2, rate=1e-3, precision="float32", compile=False)
    vars(options).update(preset="small", first=None, folder="runs", learn="all", keep=0)
    vars(options).update(recolor=True, quantile=0.0, often=4)
    folders = campaign.train_folders(options, tmp_path)
    shared = campaign.ResidentShapes(ShapeDataset(folders))
    campaign.train_one(options, tmp_path, "d2im", 0, shared)
    (_, shapes, *_), used = given[0]
    assert used["resident"] is shared and len(used["validation"]) == 6
    drawn = shared.drawn_as(shapes)
    assert drawn.dataset.mirror and drawn.dataset.recolor
    assert len(drawn.tensors["sdf"]) == 6
    options.quantile = 0.4
    campaign.train_one(options, tmp_path, "d2im-relief", 0)
    config = given[1][0][3]
    assert config.base_quantile == 0.4 and config.relief_weight == 60
    campaign.train_one(options, tmp_path, "imnet", 0)
    assert given[2][0][3].base_quantile == 0.4


def test_a_campaigns_command_names_no_persons_disk(campaign, monkeypatch):
    words = (
        "--libraries a/x.sh3f a/y.sh3f --learn base --first a/b --real a --minutes 3"
    )
    monkeypatch.setattr(sys, "argv", ["campaign.py", *words.split()])
    told = "--libraries FILES.sh3f --learn base --first MODEL --minutes 3"
    assert campaign.command() == told


@pytest.mark.parametrize("size", [0, 32])
def test_a_campaigns_card_tells_what_a_model_began_with(campaign, size):
    model = campaign.CameraNet.preset("small", mobile_size=size)
    told = campaign.given_weights(SimpleNamespace(first=None), model)
    assert told.startswith("ImageNet's" if size else "no pretrained")
    told = campaign.given_weights(SimpleNamespace(first="folder"), model)
    assert told.endswith("another model's weights")


@pytest.fixture
def refining(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return import_module("refining")


def test_of_meshes_that_fail_only_these_are_left_out(refining, monkeypatch, capsys):
    def scene(name, *_):
        if name == "c":
            raise ValueError("no inside")
        return SimpleNamespace(id=name, relief=(0.01, 0.02))

    def rows(scene, other, _):
        found = [(scene.relief, "true", k, 0.01, {}) for k in refining.MAPS]
        return (said.append((scene.id, other.id)), found)[1]

    said, model = [], SimpleNamespace(eval=lambda: None)
    for name, made in (("Scene", scene), ("rows", rows)):
        monkeypatch.setattr(refining, name, made)
    monkeypatch.setattr(refining.D2IMNet, "from_pretrained", lambda _: model)
    shapes = [("a", None, None), ("b", None, None), ("c", None, None)]
    monkeypatch.setattr(refining, "listed_shapes", lambda: shapes)
    monkeypatch.setattr(sys, "argv", ["refining.py", "--bodies", "true"])
    refining.main()
    assert said == [("a", "b"), ("b", "a")]
    assert capsys.readouterr().out.count("left out: no inside") == 1


def test_a_sheet_says_which_picture_it_cannot_open(common, tmp_path):
    (tmp_path / "a.png").write_bytes(b"none")
    made = import_module("sheet").row(tmp_path / "a.png", lambda _: None)
    assert np.asarray(made).min() < 128  # the words


def test_a_sheet_says_how_well_a_result_lies_on_its_picture(common, tmp_path, capsys):
    ball, camera = trimesh.creation.icosphere(3, 0.4), Camera(0, 0, 0.9, 64)
    mask = Renderer(ball).cast(camera)[0]
    mask[:, :32] = False
    parts = {"sdf": sphere(0.4), "mask": torch.from_numpy(mask)}
    parts |= {"image": torch.full((3, 64, 64), 0.5)}
    given = camera.resized(32)  # as a network of small pictures gives it
    found = Prediction(torch.zeros(2, 64, 64), given, sphere(0.4), **parts)
    found = Reconstruction(**found.parts(), mesh=ball, base_mesh=None)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    import_module("sheet").row(tmp_path / "a.png", lambda _: found)
    assert capsys.readouterr().out == "a: camera 0, 0, 0.90; IoU 0.50\n"


def test_two_models_of_one_name_are_scored_apart(common, monkeypatch, tmp_path):
    script = import_module("field_scores")
    given = []
    monkeypatch.setattr(script.ImageModel, "from_pretrained", lambda path: path)
    monkeypatch.setattr(script, "scored", lambda _, made, __: given.append(made) or [])
    folders = [str(tmp_path / name / "model") for name in "ab"]
    argv = ["field_scores.py", "--data", "x", "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*argv, "--models", *folders])
    script.main()
    assert [*given[0]] == folders


def test_a_remembered_field_asks_each_point_once(refining, monkeypatch):
    mesh, asked = trimesh.creation.icosphere(3, 0.3), []

    def counted(mesh, points):
        asked.append(len(points))
        return signed_distance(mesh, points)

    monkeypatch.setattr(refining, "signed_distance", counted)
    points = torch.rand((50, 3), generator=torch.Generator().manual_seed(0)) - 0.5
    ours, known = refining.remembered(mesh), mesh_field(mesh)
    along = torch.tensor([0.0, 0.6, 0.8])
    assert torch.equal(ours(points[:30]), known(points[:30]))
    for one, other in zip(
        ours.along(points, along), known.along(points, along), strict=True
    ):
        assert torch.equal(one, other)
    assert torch.equal(ours(points.flip(0)), known(points.flip(0)))
    assert asked == [30, 20]


def test_a_levelled_field_is_the_coarse_distance_with_its_derivative(refining):
    panel = trimesh.creation.box((0.3, 0.2, 0.02)).apply_translation((0, 0, 0.21))
    whole = trimesh.boolean.union([trimesh.creation.box((0.6, 0.5, 0.4)), panel])
    coarse = coarse_body(whole)
    assert "whole" in coarse.metadata
    field = refining.levelled_field(coarse, whole)
    points = np.random.default_rng(0).uniform(-0.4, 0.4, (300, 3))
    points = np.vstack([points, [[0.05, 0.02, 0.22]]])
    sdf = signed_distance(whole, points)[0]
    expected = coarse_distance(coarse, points, sdf)
    points = torch.from_numpy(points).float()
    assert np.allclose(field(points), expected, atol=1e-5)
    assert expected[-1] == pytest.approx(0.02, abs=0.003)  # of the panel's top
    value, slope = field.along(points[-1:], torch.tensor([0.0, 0.0, 1.0]))
    step = field(points[-1:] + torch.tensor([0, 0, 1e-3])) - value
    assert slope.item() == pytest.approx(step.item() / 1e-3, abs=0.1)


def test_what_is_wanted_of_relief_is_judged_where_there_is_some(refining, capsys):
    relief = np.array([0.01, 0.02, 0.006, 0.001, 0.0, 0.0])
    model = np.array([0.001, 0.002, -0.001, 1.0, -0.0001, -0.001])
    gains = {"model": model, "wrong picture": -np.ones(6)}
    refining.criteria(relief, gains)
    said = capsys.readouterr().out
    assert "relief above: 3 shapes" in said and "better on 67%" in said
    assert "relief none: 2 shapes" in said and "most lost 0.0010" in said
    assert said.count(": no\n") == 2 and said.count(": yes\n") == 1
    refining.criteria(relief[3:], {k: v[3:] for k, v in gains.items()})
    assert ": no such shape\n" in capsys.readouterr().out


def test_meshes_of_a_folder_or_of_examples_become_shapes(refining, tmp_path):
    for k in range(5):
        trimesh.creation.box().export(tmp_path / f"box-{k}.stl")
    shapes = refining.mesh_shapes(tmp_path, coarse=False)
    assert [name for name, *_ in shapes] == [f"box-{k}" for k in range(5)]
    detailed, coarse = shapes[0][1]()
    assert coarse is None and np.allclose(
        np.linalg.norm(detailed.vertices, axis=1), 0.5
    )
