"""The list is fixed, bad predictions count, and the table is the same again."""

import gc
import json
import os
import tracemalloc

import numpy as np
import pytest
import trimesh

from d2im import benchmark, metrics
from d2im.camera import Camera
from d2im.data.dataset import ShapeDataset, prepare, read_example
from d2im.data.readers import read_disn, write_set
from d2im.data.rendering import Renderer
from d2im.data.shapes import SPLITS, make_shape
from d2im.evaluate import tables
from d2im.networks import CameraNet
from d2im.sampling import signed_distance
from d2im.use.reconstruction import predict

from . import test_readers

BALL = trimesh.creation.icosphere(2, 0.4)
CAMERA = Camera(20, 10, 1, 32)
SPEED = {"skip": ("emd", "f_score", "iou")}


@pytest.fixture(scope="module")
def entries():
    return benchmark.make_list(in_family=1, unseen=1)


def result(value):
    return metrics.Result(value, metrics.PROTOCOLS["d2im"]["chamfer_l1"])


def row(name, method, value, status="ok"):
    info = {"id": name, "family": name[0], "split": "test", "view": 0}
    return info | {"method": method, "status": status, "chamfer_l1": result(value)}


def test_the_list_has_the_splits_seeds_and_cameras_of_their_own(entries):
    splits = json.loads(SPLITS.read_text())
    for entry in entries:
        unseen = entry["family"] in splits["unseen_families"]
        assert entry["set"] == ("unseen" if unseen else "test")
        low, high = splits["seeds"][entry["set"]]
        assert low <= entry["seed"] < high
        for azimuth, elevation, ratio in entry["cameras"]:
            assert abs(azimuth) <= 60 and 0 <= elevation <= 40 and 0.8 <= ratio <= 1
    assert len({str(entry["cameras"]) for entry in entries}) == len(entries)
    again = benchmark.make_list(in_family=2, unseen=2)
    assert all(entry in again for entry in entries)  # a longer list only adds


@pytest.mark.parametrize("name", ["volume", "area", "bounds"])
def test_another_shape_than_the_lists_is_noticed(entries, name):
    benchmark.check_shape(entries[0])
    changed = np.multiply(entries[0][name], 1.001).tolist()
    with pytest.raises(ValueError, match=f"chair-010100 .*its {name} is"):
        benchmark.check_shape(entries[0] | {name: changed})


def test_the_command_writes_and_checks_the_list(entries, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "LIST", tmp_path / "benchmark.json")
    monkeypatch.setattr(benchmark, "make_list", lambda: entries)
    with pytest.raises(FileNotFoundError, match="--write"):
        benchmark.check_list()
    benchmark.check_list(write=True)
    benchmark.check_list()
    assert benchmark.read_list() == entries


def test_prepared_lists_are_data_sets_with_the_lists_cameras(entries, tmp_path):
    benchmark.prepare_list(entries[:2], tmp_path, size=32, count=500)
    data = ShapeDataset(tmp_path, None)
    assert [r["id"] for r in data.rows] == sorted(e["id"] for e in entries[:2])
    by_id = {entry["id"]: entry for entry in entries}
    for index, line in enumerate(data.rows):
        wanted = Camera(*by_id[line["id"]]["cameras"][1], 32)
        assert np.array_equal(data.camera(index, 1).to_array(), wanted.to_array())


@pytest.mark.parametrize("suffix", [".obj", ".ply", ".glb", ".off", ".stl"])
def test_a_mesh_of_another_program_is_read_as_it_is(tmp_path, suffix):
    BALL.export(tmp_path / f"chair-010100{suffix}")
    mesh, why = benchmark.read_prediction(tmp_path, "chair-010100")
    assert why == "" and mesh.is_watertight and len(mesh.faces) == len(BALL.faces)
    assert np.allclose(mesh.bounds, BALL.bounds, atol=1e-6)


def test_missing_damaged_and_nan_files_are_scored_with_their_reason(tmp_path):
    (tmp_path / "damaged.ply").write_text("ply\nno")
    (tmp_path / "nan.obj").write_text("v 0 0 0\nv nan 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "empty.obj").write_text("# nothing\n")
    names = ["missing", "damaged", "nan", "empty"]
    jobs = [
        (
            {"id": name, "family": "", "split": "test", "view": 0, "method": "other"},
            *benchmark.read_prediction(tmp_path, name),
            BALL,
            CAMERA,
        )
        for name in names
    ]
    rows = benchmark.score_all(jobs, **SPEED)
    for line, reason in zip(rows, ["missing", "unread", "finite", ""], strict=True):
        assert reason in line["status"] != "ok"
        assert line["chamfer_l1"].value == pytest.approx(1.1 * 3**0.5)
    (first, *_) = benchmark.summarise(rows)
    assert first["failures"] == first["shapes"] == 4
    assert first["mean"] == pytest.approx(1.1 * 3**0.5)
    assert "| 4 of 4 |" in benchmark.markdown([first])


@pytest.fixture(scope="module")
def table():
    """Tables of four shapes' coarse bodies and swollen copies, by seed and workers."""
    draws = [make_shape(family, 5) for family in ("chair", "sofa", "cabinet", "vase")]

    def measure(seed, workers=1):
        jobs = []
        for k, shape in enumerate(draws):
            info = {"id": f"{k}", "family": f"{k % 2}", "split": "test", "view": 0}
            swollen = shape.detailed.copy().apply_scale(1.02)
            for name, mesh in (("coarse", shape.coarse), ("swollen", swollen)):
                jobs += [(info | {"method": name}, mesh, "", shape.detailed, None)]
        rows = benchmark.score_all(jobs, workers, seed=seed, skip=("emd",))
        return benchmark.summarise(rows, seed)

    return measure


def test_the_table_is_the_same_bit_for_bit_and_near_it_with_another_seed(table):
    first, again, other = table(0), table(0, workers=2), table(1)
    assert repr(first) == repr(again)  # numbers in full
    moved = []
    for a, b in zip(first, other, strict=True):
        if a["group"] != "all":  # an interval over two like shapes can be nothing
            continue
        moved.append(abs(a["mean"] - b["mean"]))
        assert moved[-1] < a["high"] - a["low"], (a, b)
    assert min(moved) > 0 and len(moved) == 2 * 8
    text = benchmark.markdown(first)
    assert "d2im: world, 16,384 points by area, rooted, x1, seed 0" in text
    assert "all" in text and "family 1" in text


def test_groups_are_families_and_all_and_nan_is_left_out_and_counted():
    rows = [row("a1", "m", 1.0), row("a2", "m", np.nan), row("b1", "m", 3.0)]
    table = {line["group"]: line for line in benchmark.summarise(rows)}
    assert table["all"]["mean"] == 2 and table["all"]["left_out"] == 1
    assert table["family a"]["mean"] == 1 and table["family b"]["median"] == 3
    assert "(1 left out)" in benchmark.markdown([table["all"]])


def test_a_prediction_without_edges_is_counted_beside_the_mean_of_the_others():
    chair = make_shape("chair", 5)
    ball = trimesh.creation.icosphere(4, 0.3)
    info = {"family": "", "split": "test", "view": 0, "method": "m"}
    jobs = [
        (info | {"id": name}, mesh, "", chair.detailed, None)
        for name, mesh in (("a", chair.coarse), ("b", chair.detailed), ("c", ball))
    ]
    skip = ("emd", "f_score", "iou")
    rows = benchmark.score_all(jobs, skip=skip)
    table = {line["measure"]: line for line in benchmark.summarise(rows)}
    assert np.isinf(rows[2]["ecd"].value) and rows[2]["status"] == "ok"
    two = np.mean([row["ecd"].value for row in rows[:2]])
    assert table["ecd"]["mean"] == two < 1e-3 and table["ecd"]["without"] == 1
    assert table["chamfer_l1"]["without"] == 0
    assert "(1 without)" in benchmark.markdown([table["ecd"]])
    rows += [row | {"method": "n"} for row in rows]
    assert benchmark.compare(rows, "m", "n", "ecd")["pairs"] == 2


def test_shapes_of_one_surface_draw_samples_of_their_own():
    job = (
        {"family": "", "split": "test", "view": 0, "method": "m"},
        BALL,
        "",
        BALL,
        None,
    )
    info, *rest = job
    jobs = [(info | {"id": name}, *rest) for name in "aab"]
    first, again, other = (r["chamfer_l1"] for r in benchmark.score_all(jobs, **SPEED))
    assert first == again != other


def test_several_pictures_of_a_shape_are_one_draw_of_the_interval():
    rows = [row("a", "m", v) for v in (0.0, 2.0)] + [row("b", "m", 1.0)] * 2
    (line, *_) = benchmark.summarise(rows)
    assert line["low"] == line["mean"] == line["high"] == 1
    assert line["shapes"] == 2 and line["pictures"] == 4


def test_the_interval_of_normal_numbers_is_that_of_their_standard_error():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = benchmark.interval(values)
    half = 1.96 * values.std() / 20
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=0.02)


@pytest.mark.parametrize("count", [5, 10, 30])
def test_intervals_of_normal_numbers_cover_the_mean_as_often_as_they_say(count):
    draws = np.random.default_rng(count).normal(3, 2, (600, count))
    found = np.array([benchmark.interval(values) for values in draws])
    covered = ((found[:, 0] < 3) & (3 < found[:, 1])).mean()
    assert 0.925 < covered < 0.975  # 0.95 within 2.5 of its deviations at 600 draws


def test_one_shape_has_no_interval():
    assert np.isnan(benchmark.interval([1.0])).all()
    (line, *_) = benchmark.summarise([row("a", "m", 1.0)])
    table = benchmark.markdown([line]).partition("Mean,")[0]
    assert "1, 1" in table and "nan" not in table and "[" not in table


def paper_rows():
    """Two methods, two categories, three shapes; the second has two trainings."""
    values = {"ours": [[0.1, 0.2, 0.5]], "rival": [[0.3, 0.3, 0.1], [0.5, 0.5, 0.3]]}
    for method, trainings in values.items():
        for seed, numbers in enumerate(trainings):
            for k, value in enumerate(numbers):
                info = {"id": f"{k}", "family": "lamp" if k == 2 else "a_chair"}
                scores = {"chamfer_l1": value, "iou": 1 - value}
                yield info | {"method": method, "seed": seed} | scores


def test_a_papers_table_has_a_row_a_category_the_best_bold_and_the_mean_last():
    made = benchmark.paper_table(paper_rows(), ["chamfer_l1", "iou"], caption="100 %")
    head, *lines = made["csv"].splitlines()
    assert head == "category,chamfer_l1 ours,chamfer_l1 rival,iou ours,iou rival"
    assert [line.split(",")[0] for line in lines] == ["a_chair", "lamp", "mean"]
    numbers = np.array([line.split(",")[1:] for line in lines], dtype=float)
    means = np.array([[0.15, 0.4], [0.5, 0.2], [0.325, 0.3]])
    assert np.allclose(numbers, np.hstack([means, 1 - means]))
    deviation = np.std([0.2, 0.4], ddof=1)  # of the lamp's two trainings
    chair, lamp, mean = made["md"].splitlines()[2:]
    assert f"| **0.2** ± {deviation:.2g} |" in lamp and "| **0.15** |" in chair
    assert "**0.3**" in mean and "**0.7**" in mean
    assert r"a\_chair & \textbf{0.15} &" in made["tex"]
    assert r"\caption{100 \%}" in made["tex"]
    with pytest.raises(ValueError, match="no row of 'ours' has 'emd'"):
        benchmark.paper_table(paper_rows(), ["emd"])


def test_a_table_wider_than_a_page_is_scaled_and_names_what_that_needs():
    rows = [row | {"f_score": 0.5} for row in paper_rows()]
    narrow, wide = (
        benchmark.paper_table(rows, measures)["tex"]
        for measures in (["chamfer_l1", "iou"], ["chamfer_l1", "iou", "f_score"])
    )
    assert narrow.startswith("% needs booktabs\n") and "resizebox" not in narrow
    assert wide.startswith("% needs booktabs and graphicx\n")
    scaled = wide.partition(r"\resizebox{\linewidth}{!}{%")[2]
    assert r"\end{tabular}}" in scaled
    assert wide.count("{") == wide.count("}")


def test_a_mean_is_over_the_categories_that_every_method_has_and_says_so():
    rows = list(paper_rows())
    rows[2]["chamfer_l1"] = np.inf  # of the lamp, by the first method
    made = benchmark.paper_table(rows, ["chamfer_l1", "iou"])
    chair, lamp, mean, *_, note = made["md"].splitlines()[2:]
    assert "| - |" in lamp and "**0.2**" in lamp
    assert mean.split("|")[2:4] == chair.split("|")[2:4]  # of those alone
    assert "**0.7**" in mean  # the other measure is over both
    assert note.startswith("Mean of chamfer") and note.endswith("has none.")
    assert r"Mean of chamfer\_l1: without lamp" in made["tex"]
    assert "Mean of" not in benchmark.paper_table(paper_rows(), ["iou"])["md"]


def test_numbers_of_two_protocols_are_not_set_beside_each_other(tmp_path):
    evaluated(tmp_path / "s/a", 0.1), evaluated(tmp_path / "s/b", 0.2)
    for name, protocol in (("a", "d2im"), ("b", "occnet")):
        path = tmp_path / "s" / name / "05_evaluate/metrics.csv"
        head, line = path.read_text().splitlines()
        assert benchmark.paper_table(tables.gather([tmp_path / "s"]), ["iou"])
        path.write_text(f"{head},protocol\n{line},{protocol}\n")
    with pytest.raises(ValueError, match=r"d2im \(a\) and occnet \(b\) do not"):
        benchmark.paper_table(tables.gather([tmp_path / "s"]), ["iou"])


def test_the_bootstrap_of_many_shapes_takes_no_more_memory():
    values = np.random.default_rng(0).normal(size=20_000)
    drawn = np.random.default_rng(0).integers(20_000, size=(50, 20_000))
    tracemalloc.start()
    low, high = tables.interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6  # of all at once 1.6e9
    assert np.mean((values[drawn].mean(1) > low) & (values[drawn].mean(1) < high)) > 0.8


def test_methods_of_other_shapes_are_not_set_beside_each_other():
    rows = [r for r in paper_rows() if (r["method"], r["id"]) != ("rival", "1")]
    with pytest.raises(ValueError, match="of 'rival' .* not of the same shapes"):
        benchmark.paper_table(rows, ["iou"])


def evaluated(folder, value, method="final"):
    text = f"id,family,split,view,method,status,iou\na,car,test,0,{method},ok,{value}\n"
    (folder / "05_evaluate").mkdir(parents=True)
    (folder / "05_evaluate/metrics.csv").write_text(text)


def test_seeds_are_trainings_of_a_method_and_those_of_two_folders_do_not_mix(tmp_path):
    for k, value in enumerate((0.1, 0.2, 0.3, 0.4)):
        evaluated(tmp_path / f"{'ab'[k // 2]}/seed{k % 2}", value)
    one = tables.gather([tmp_path / "a"])
    assert [(r["method"], r["seed"]) for r in one] == [("final", 0), ("final", 1)]
    two = tables.gather([tmp_path / "a", tmp_path / "b"])
    assert [(r["method"], r["seed"], r["iou"]) for r in two] == [
        ("a", 0, 0.1),
        ("a", 1, 0.2),
        ("b", 0, 0.3),
        ("b", 1, 0.4),
    ]


def test_two_runs_that_would_be_one_training_are_named(tmp_path):
    evaluated(tmp_path / "s/a", 0.1)  # made before its sweep got seeds
    evaluated(tmp_path / "s/a-seed0", 0.2)
    with pytest.raises(ValueError, match=r"a-seed0.* both training 0 of 'final'"):
        tables.gather([tmp_path / "s"])


def test_an_evaluations_table_is_read_back_and_another_is_named(tmp_path):
    texts = "id,family,split,view,method,status"
    (tmp_path / "m.csv").write_text(f"{texts},iou,ecd\na,car,test,0,m,ok,0.5,\n")
    (found,) = benchmark.read_rows(tmp_path / "m.csv")
    assert found["iou"] == 0.5 and "ecd" not in found and found["method"] == "m"
    (tmp_path / "m.csv").write_text(f"{texts},iou,ecd_points\na,c,t,0,m,bad,0.0,()\n")
    (found,) = benchmark.read_rows(tmp_path / "m.csv")  # of a failed one, as before
    assert found["iou"] == 0.0 and "ecd_points" not in found
    for text in ("a,b\n1,2\n", f"{texts},iou\na,car,test,0,m,ok,much\n", ""):
        (tmp_path / "m.csv").write_text(text)
        with pytest.raises(ValueError, match=r"m\.csv"):
            benchmark.read_rows(tmp_path / "m.csv")


def test_a_paired_test_sees_a_small_gap_in_large_scatter():
    draw = np.random.default_rng(0)
    rows = []
    for k, value in enumerate(draw.normal(10, 5, 30)):
        rows.append(row(f"{k}", "a", value))
        rows.append(row(f"{k}", "b", value + draw.normal(0.2, 0.1)))
    found = benchmark.compare(rows, "a", "b", "chamfer_l1")
    for pair in (("a", "none"), ("none", "a")):
        with pytest.raises(ValueError, match="have not the same shapes, or none"):
            benchmark.compare(rows, *pair, "chamfer_l1")
    assert found["high"] < 0 and found["p"] < 1e-4 and found["pairs"] == 30
    same = benchmark.compare(rows, "a", "a", "chamfer_l1")
    assert same["p"] == 1 and same["difference"] == 0


def test_costs_count_the_time_and_the_memory_of_the_block():
    costs = []
    gc.collect()  # what is freed amid the block would hide a part
    with benchmark.cost(costs, "m"):
        block = np.ones(32_000_000)  # 256 MB
    (spent,) = costs
    assert spent["wall_s"] > 0 and block.sum() == 32_000_000
    if os.access("/proc/self/clear_refs", os.W_OK):
        assert 150 < spent["peak_mb"] < 400
    else:
        assert np.isnan(spent["peak_mb"])


def test_a_truth_of_another_frame_follows_the_examples_similarity(tmp_path):
    box = trimesh.creation.box((1, 2, 4))
    box.export(tmp_path / "car.ply")
    example = {"similarity": np.array([90, 0.1, 0, 0.05, 0])}
    turned = trimesh.creation.box((0.4, 0.2, 0.1)).apply_translation([0, 0.05, 0])
    points = np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 3))
    example |= {"points": points, "sdf": signed_distance(turned, points)[0]}
    mesh, coarse = benchmark.true_meshes({"id": "car"}, example, tmp_path)
    assert coarse is None  # +z turned to +x, and a tenth
    assert np.allclose(mesh.extents, [0.4, 0.2, 0.1])
    assert np.allclose(mesh.bounds.mean(0), [0, 0.05, 0])
    with pytest.raises(FileNotFoundError, match="truth of bus .* missing file"):
        benchmark.true_meshes({"id": "bus"}, {}, tmp_path)
    for wrong in (
        [0, 0.1, 0, 0.05, 0],
        [90, 0.05, 0, 0.05, 0],
        [90, 0.1, 0.1, 0.05, 0],
    ):
        frame = "truth of car in .* another frame.*`interior`"
        with pytest.raises(ValueError, match=frame):
            similarity = {"similarity": np.array(wrong)}
            benchmark.true_meshes({"id": "car"}, example | similarity, tmp_path)


def test_shapenets_meshes_meet_the_points_read_from_disns_layout(tmp_path, monkeypatch):
    monkeypatch.setattr(test_readers, "POSES", {"easy": [(30, 25, 0.8)]})
    written = test_readers.write_disn(tmp_path, np.random.default_rng(0), 500, 5000)
    for (name, _), (mesh, _) in written.items():
        mesh.export(tmp_path / f"{test_readers.CHAIR}_{name}.obj")
    read = read_disn(tmp_path, test_readers.CHAIR, "train", views=1, size=56)
    write_set(read, tmp_path / "data", "test", family="chair")
    data = ShapeDataset(tmp_path / "data", "test")
    for index, line in enumerate(data.rows):
        example = data.example(index)
        truth, _ = benchmark.true_meshes(line, example, tmp_path)
        sdf = signed_distance(truth, example["points"])[0]
        assert np.allclose(sdf, example["sdf"], atol=1e-4) and len(sdf) == 500
        camera = data.camera(index, 0)
        mask = Renderer(truth).cast(camera)[0]
        assert (mask == example["mask_0"].astype(bool)).mean() > 0.97
    assert len(data) == 2


def test_a_model_without_a_surface_fails_instead_of_stopping(tiny_model, tiny_data):
    data = ShapeDataset(tiny_data, view=0)
    image, camera = data[0]["image"], data.camera(0, 0)
    _, made = benchmark.predict_meshes(tiny_model, image, camera, 16)
    assert set(made) == {"base", "final"}
    tiny_model.base_decoder.out.bias.data.fill_(100.0)
    _, made = benchmark.predict_meshes(tiny_model, image, camera, 16)
    assert made["final"][0] is None and "no surface" in made["final"][1]
    assert list(benchmark.pictures(image, made, camera)) == ["picture"]


def spoilt(name):
    mesh = BALL.copy()
    if name == "turned":
        mesh.invert()
    elif name == "doubled":
        mesh = trimesh.Trimesh(
            mesh.vertices, np.vstack([mesh.faces, mesh.faces]), process=False
        )
    elif name == "two-sided":
        faces = np.vstack([mesh.faces, mesh.faces[:, ::-1]])
        mesh = trimesh.Trimesh(mesh.vertices, faces, process=False)
    return mesh


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("name", ["turned", "doubled", "two-sided"])
def test_anothers_turned_or_doubled_faces_are_mended_and_told(tmp_path, name, scale):
    mesh = spoilt(name)
    mesh.apply_scale(scale)
    mesh.export(tmp_path / "ball.ply")
    mesh, _ = benchmark.read_prediction(tmp_path, "ball")
    assert mesh.is_volume and len(mesh.faces) == len(BALL.faces)
    assert np.isclose(mesh.volume, BALL.volume * scale**3)
    assert np.allclose(mesh.bounds, BALL.bounds * scale)
    what = "turned" if name == "turned" else "duplicate"
    assert mesh.metadata["note"] == f"{len(BALL.faces)} of its faces {what}"


def test_anothers_turned_mesh_has_its_iou_and_a_note_in_its_row(tmp_path):
    spoilt("turned").export(tmp_path / "ball.OBJ", file_type="obj")
    info = {"id": "ball", "family": "", "split": "test", "view": 0, "method": "other"}
    jobs = [
        (info, *benchmark.read_prediction(tmp_path, "ball"), BALL, CAMERA),
        (info, BALL, "", BALL, CAMERA),
        (info, None, "missing file", BALL, CAMERA),
    ]
    rows = benchmark.score_all(jobs, skip=("emd", "f_score"))
    assert rows[0]["iou"].value > 0.99 and rows[0]["status"] == "ok"
    assert [row["note"] != "" for row in rows] == [True, False, False]


def test_methods_are_models_and_meshes_by_names_that_tell_them_apart(
    tiny_model, tmp_path
):
    for name in ("mine", "a/final", "b/net", "c/net"):
        tiny_model.save_pretrained(tmp_path / name)
    (tmp_path / "meshes").mkdir()
    others = ["a/final", "b/net", "c/net", "meshes"]
    found = benchmark.load_methods("mine", others, tmp_path)
    assert [*found] == ["", "a/final/", "b/net/", "c/net/", "meshes"]
    assert found["meshes"] == tmp_path / "meshes"
    assert type(found[""]) is type(found["b/net/"]) is type(tiny_model)
    assert [*benchmark.load_methods("", ["b/net"], tmp_path)] == ["net"]


def test_a_missing_folder_and_a_camera_network_are_no_methods(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no folder of a model or of"):
        benchmark.load_methods("", ["nowhere"], tmp_path)
    CameraNet.preset("small").save_pretrained(tmp_path / "camera")
    with pytest.raises(ValueError, match="^camera holds a camera network, which has"):
        benchmark.load_methods("", ["camera"], tmp_path)


@pytest.mark.parametrize(
    ("count", "wanted", "places"),
    [(7, 0, range(7)), (7, 3, (0, 3, 6)), (2, 5, (0, 1)), (4, 1, (0,)), (0, 3, ())],
)
def test_some_of_a_list_are_spread_evenly_over_it(count, wanted, places):
    assert benchmark.spread(count, wanted) == [*places]


def test_one_view_has_no_other_to_transfer_to(tmp_path, tiny_model):
    (row,) = prepare([("cabinet", 3)], tmp_path, views=1, size=32, count=500)
    example = read_example(tmp_path / f"{row['id']}.npz")
    model = tiny_model.eval()
    image = example["image_0"] / np.float32(255)
    found = predict(model, image, Camera.from_array(example["camera_0"]))
    shape = make_shape("cabinet", 3)
    given = model, found, example, 0, shape.detailed, shape.coarse
    scores = benchmark.field_scores(*given)
    assert "displacement_correlation" in scores
    assert not [name for name in scores if name.startswith("transfer")]
