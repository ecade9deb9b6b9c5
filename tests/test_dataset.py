import csv
import io
import json
import os
import shutil
import subprocess
import sys
import time
import unicodedata
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import torch
import trimesh

from d2im.__main__ import main
from d2im.camera import Camera
from d2im.data import dataset, isolation
from d2im.data.dataset import (
    ExampleConfig,
    ShapeDataset,
    _items,
    make_example,
    mirrored,
    prepare,
    read_example,
    read_index,
    recolored,
    safe_id,
    source_meshes,
    write_example,
)
from d2im.data.shapes import make_shape
from d2im.sampling import signed_distance

SMALL = dict(count=2000, views=2, size=32, timeout=None, progress=False)
ONE = dict(count=2000, views=1, size=32)


def test_items_of_shapes_that_memory_does_not_hold_are_the_same(tiny_data, monkeypatch):
    kept, read = (ShapeDataset(tiny_data, points=100) for _ in range(2))
    read.memory = 0
    whole, names = dataset.read_example, []

    def watched(path, some=None, *known):
        names.append(some)
        return whole(path, some, *known)

    monkeypatch.setattr(dataset, "read_example", watched)
    for key in ((0, 0), (1, 0), (1, 5), (0, 7)):
        first, again = kept[key], read[key]
        assert first.keys() == again.keys()
        assert all(torch.equal(first[name], again[name]) for name in first)
    some = [n for n in names if n is not None]
    assert len(some) == 4 and all(len(n) == 5 + 5 for n in some)  # one view of two


def test_a_shape_or_a_view_that_is_not_there_is_named(tiny_data):
    dataset = ShapeDataset(tiny_data, None)
    count, views = len(dataset), dataset.view_count(0)
    for index in (count, -count - 1):
        with pytest.raises(IndexError, match=f"no shape {index}: there are {count}"):
            dataset.example(index)
    wrong = f"{dataset.rows[0]['id']} has no view {views}: there are {views}"
    with pytest.raises(IndexError, match=wrong):
        dataset.camera(0, views)


def test_a_folder_named_twice_is_drawn_from_twice_and_kept_once(tiny_data):
    once, twice = (ShapeDataset([tiny_data] * n, points=64) for n in (1, 2))
    for data in (once, twice):
        items = [data[k] for k in range(len(data))]
    assert len(twice) == 2 * len(once) and twice._held == once._held
    assert not torch.equal(items[0]["points"], items[len(once)]["points"])


def test_a_loaders_workers_share_the_memory_for_examples(tiny_data, monkeypatch):
    data = ShapeDataset(tiny_data, points=100)
    size = sum(array.nbytes for array in data.example(0).values())
    data._kept.clear()
    data._held, data.memory = 0, 4.5 * size
    info = SimpleNamespace(num_workers=4)
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: info)
    items = [data[k] for k in (0, 1)]
    assert len(data._kept) == 1
    assert torch.equal(items[1]["image"], ShapeDataset(tiny_data)[1]["image"])


def test_prepare_writes_one_example_a_shape_and_its_row(tmp_path):
    rows = prepare([("chair", 0), ("table", 1)], tmp_path, **SMALL)
    assert [(r["id"], r["status"]) for r in rows] == [
        ("chair-000000", "ok"),
        ("table-000001", "ok"),
    ]
    example = read_example(tmp_path / "chair-000000.npz")
    types = {name: (a.shape, a.dtype.str[1:]) for name, a in example.items()}
    assert types["points"] == ((2000, 3), "f4")
    assert types["sdf"] == types["base_sdf"] == types["weights"] == ((2000,), "f4")
    assert types["gradients"] == ((2000, 3), "f2")
    assert types["image_1"] == ((3, 32, 32), "u1")
    assert types["mask_1"] == ((32, 32), "u1")
    assert types["normals_1"] == ((3, 32, 32), "f2")
    assert types["depth_1"] == ((32, 32), "f2")
    assert types["camera_1"] == ((16,), "f8")


def test_the_same_seed_makes_the_same_example_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        prepare([("sofa", 3)], tmp_path / name, seed=seed, **SMALL)
    a, b, c = (read_example(tmp_path / n / "sofa-000003.npz") for n in "abc")
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["points"], c["points"])


def test_two_workers_make_what_one_makes(tmp_path):
    pairs = [("chair", 0), ("cabinet", 0)]
    prepare(pairs, tmp_path / "one", **SMALL)
    prepare(pairs, tmp_path / "two", **{**SMALL, "workers": 2, "timeout": 60})
    for name in ("chair-000000.npz", "cabinet-000000.npz"):
        one, two = (
            read_example(tmp_path / "one" / name),
            read_example(tmp_path / "two" / name),
        )
        assert all(np.array_equal(one[k], two[k]) for k in one)


def test_a_bad_mesh_is_recorded_and_the_others_go_on(tmp_path):
    meshes = tmp_path / "meshes"
    meshes.mkdir()
    trimesh.creation.box().export(meshes / "box.ply")
    (meshes / "text.glb").write_text("not a mesh")
    (meshes / "empty.obj").write_text("")
    rows = {r["id"]: r for r in prepare(meshes, tmp_path / "out", **SMALL)}
    assert rows["box"]["status"] == "ok"
    for name in ("text", "empty"):
        assert rows[name]["status"] == "failed" and name in rows[name]["reason"]
        assert "\n" not in rows[name]["reason"]
        assert not (tmp_path / "out" / f"{name}.npz").exists()
    assert {r["id"] for r in read_index(tmp_path / "out")} == {"box", "text", "empty"}


def test_a_row_of_the_index_gives_its_meshes_again_turned_alike(tmp_path):
    trimesh.creation.box((1, 2, 3)).export(tmp_path / "box.ply")
    prepare(tmp_path, tmp_path / "out", up="z", yaw=90, **SMALL)
    (row,) = read_index(tmp_path / "out")
    mesh, coarse = source_meshes(row)
    # z-up turns (1, 2, 3) to (1, 3, 2), the yaw to (2, 3, 1)
    assert coarse is None
    assert mesh.extents / mesh.extents[2] == pytest.approx([2, 3, 1])
    stored = read_example(tmp_path / "out" / "box.npz", ["points", "sdf"])
    sdf, _ = signed_distance(mesh, stored["points"])
    assert sdf == pytest.approx(stored["sdf"], abs=1e-6)


def test_finished_examples_are_not_made_again(tmp_path):
    prepare([("chair", 0)], tmp_path, **SMALL)
    before = (tmp_path / "chair-000000.npz").stat().st_mtime_ns
    prepare([("chair", 0), ("chair", 1)], tmp_path, split="val", **SMALL)
    assert (tmp_path / "chair-000000.npz").stat().st_mtime_ns == before
    assert {r["id"]: r["split"] for r in read_index(tmp_path)} == {
        "chair-000000": "train",
        "chair-000001": "val",
    }


def test_examples_of_other_settings_are_not_mixed(tmp_path):
    prepare([("chair", 0)], tmp_path, **SMALL)
    with pytest.raises(ValueError, match="'count': 2000.*'count': 3000"):
        prepare([("chair", 0)], tmp_path, **{**SMALL, "count": 3000})


def test_settings_that_made_no_example_bind_nobody(tmp_path):
    with pytest.raises(OSError, match="an example takes"):
        prepare([("chair", 0)], tmp_path, **{**SMALL, "size": 10**8})
    (row,) = prepare([("chair", 0)], tmp_path, **SMALL)
    assert row["status"] == "ok"


def test_another_split_of_what_is_made_is_said(tmp_path, capsys):
    prepare([("chair", 0), ("chair", 1)], tmp_path, split="val", **SMALL)
    assert capsys.readouterr().err == ""
    rows = prepare([("chair", 0), ("chair", 1), ("chair", 2)], tmp_path, **SMALL)
    assert [row["split"] for row in rows] == ["val", "val", "train"]
    said = f"{tmp_path}: 2 made before keep their split (chair-000000 in val, ...)"
    assert capsys.readouterr().err.strip() == said


def test_one_relative_path_in_two_folders_is_two_shapes(tmp_path, monkeypatch):
    made = {}
    for name in "ab":
        boxes(tmp_path / name / "in", *["chair.ply", "chair.stl"][: 1 + (name == "b")])
        monkeypatch.chdir(tmp_path / name)
        made[name] = prepare("in", tmp_path / "out", **SMALL)
    ids_ = [row["id"] for rows in made.values() for row in rows]
    assert len(set(ids_)) == 3 and len(read_index(tmp_path / "out")) == 3
    assert made["a"][0]["source"] == str(tmp_path / "a/in/chair.ply")


def test_relative_paths_of_an_index_of_before_are_followed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    boxes(tmp_path / "in", "chair.ply")
    prepare("in", "out", **SMALL)
    index = tmp_path / "out/index.csv"
    index.write_text(index.read_text().replace(f"{tmp_path}/in", "in"))
    assert read_index("out")[0]["source"] == "in/chair.ply"
    before = stamp(tmp_path / "out", "chair")
    known = ShapeDataset("out").fingerprint()
    (row,) = prepare("in", "out", **SMALL)
    assert ShapeDataset("out").fingerprint() == known
    assert row["source"] == "in/chair.ply"  # a training that goes on compares it
    assert stamp(tmp_path / "out", "chair") == before
    boxes(tmp_path / "b/in", "table.ply")
    monkeypatch.chdir(tmp_path / "b")
    prepare("in", tmp_path / "out", **SMALL)
    monkeypatch.chdir(tmp_path)
    rows = {row["id"]: row["source"] for row in read_index("out")}
    assert rows == {"chair": "in/chair.ply", "table": str(tmp_path / "b/in/table.ply")}


def test_meshes_of_one_stem_do_not_overwrite_each_other(tmp_path):
    box = trimesh.creation.box()
    for name in ("a.ply", "a.stl"):
        box.export(tmp_path / name)
    rows = prepare(tmp_path, tmp_path / "out", **SMALL)
    assert sorted(r["id"] for r in rows) == ["a_ply", "a_stl"]


def test_an_example_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full_disk(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_example(tmp_path / "a.npz", {})
    assert not list(tmp_path.iterdir())


def test_a_worker_whose_run_was_killed_writes_no_example(tmp_path, monkeypatch):
    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(isolation, "_parent", os.getppid() + 1)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit):
        write_example(tmp_path / "a.npz", {})
    assert not list(tmp_path.iterdir())


def test_members_load_one_by_one(tiny_data):
    assert list(read_example(tiny_data / "ball-0.npz", ["sdf"])) == ["sdf"]


def test_damaged_missing_and_foreign_examples_are_named(tmp_path, tiny_data):
    whole = (tiny_data / "ball-0.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.npz is damaged"):
        read_example(tmp_path / "cut.npz")
    with pytest.raises(FileNotFoundError, match="no example .*none.npz"):
        read_example(tmp_path / "none.npz")
    with pytest.raises(ValueError, match="lacks a member"):
        read_example(tiny_data / "ball-0.npz", ["nothing"])


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "evil.npz", points=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"evil\.npz"):
        read_example(tmp_path / "evil.npz")


def test_an_item_is_one_view_and_half_inside_points(tiny_data):
    item = ShapeDataset(tiny_data, points=512)[1]
    assert item["points"].shape == (512, 3) and item["image"].shape == (3, 32, 32)
    assert (item["sdf"] < 0).sum() == 256
    assert item["image"].min() >= 0 and item["image"].max() == 1
    exact = item["points"].norm(dim=-1) - 0.4
    assert torch.allclose(item["sdf"], exact, atol=2e-3)
    assert torch.allclose(item["base_sdf"], exact, atol=2e-3)


def test_an_item_depends_on_seed_index_and_draw_alone(tiny_data):
    data = ShapeDataset(tiny_data, points=64, seed=5)
    first = data[0, 3]
    _ = data[1], data[0]
    assert all(torch.equal(first[k], data[0, 3][k]) for k in first)
    assert not torch.equal(first["points"], data[0, 4]["points"])
    other = ShapeDataset(tiny_data, points=64, seed=6)
    assert not torch.equal(first["points"], other[0, 3]["points"])


def test_a_mirrored_item_is_that_of_the_mirrored_shape(tmp_path):
    box, knob = trimesh.creation.box((0.5, 0.6, 0.3)), trimesh.creation.icosphere(3)
    knob.apply_transform(np.diag([0.1, 0.15, 0.1, 1]))
    knob.apply_translation([0.2, 0.1, 0.2])  # on one side only
    mesh = trimesh.util.concatenate([box, knob])
    other = mesh.copy()
    other.apply_transform(np.diag([-1.0, 1, 1, 1]))
    rows, items = [], []
    for name, shape, azimuth in (("left", mesh, 25), ("right", other, -25)):
        about = dict(ONE, poses=[Camera(azimuth, 20, 1, 32)])
        example = make_example(shape, None, np.random.default_rng(0), **about)
        write_example(tmp_path / f"{name}.npz", example)
        row = dict.fromkeys(dataset.INDEX_COLUMNS, "")
        rows.append({**row, "id": name, "split": "train", "status": "ok"})
    dataset.write_index(tmp_path, rows)
    items = [ShapeDataset(tmp_path, points=200)[k] for k in (0, 1)]
    turned = mirrored(items[0], torch.tensor(True))
    for name in ("mask", "depth", "normals", "camera"):
        off = (turned[name].float() - items[1][name].float()).abs()
        assert (off > 0.01).float().mean() < 0.01, name  # rays may graze an edge
    assert not torch.equal(items[0]["mask"], items[1]["mask"])
    sdf, gradient = signed_distance(other, turned["points"].numpy())[:2]
    assert np.abs(sdf - turned["sdf"].numpy()).max() < 1e-5
    assert np.abs(gradient - turned["gradients"].numpy()).max() < 2e-3
    assert torch.equal(turned["image"], items[0]["image"].flip(-1))
    again = mirrored(turned, torch.tensor(True))
    for name, value in again.items():
        assert torch.allclose(value, items[0][name], equal_nan=True), name


def test_half_of_the_items_are_mirrored_where_asked(tiny_data):
    plain, both = (ShapeDataset(tiny_data, points=64, mirror=m) for m in (False, True))
    assert plain.fingerprint() != both.fingerprint()
    turned = 0
    for draw in range(40):
        first, second = plain[0, draw], both[0, draw]
        flip = not torch.equal(first["points"], second["points"])
        wanted = mirrored(first, torch.tensor(flip))
        assert all(torch.equal(second[k], wanted[k]) for k in wanted)
        turned += flip
    assert 10 < turned < 30


def test_colors_are_changed_where_asked_and_black_and_white_stay(tiny_data):
    plain, other = (
        ShapeDataset(tiny_data, points=64, recolor=m) for m in (False, True)
    )
    assert plain.fingerprint() != other.fingerprint()
    first, second = plain[0, 1], other[0, 1]
    assert torch.equal(second["image"], other[0, 1]["image"])
    assert not torch.equal(second["image"], first["image"])
    assert all(torch.equal(first[k], second[k]) for k in first if k != "image")
    white = first["image"].amin(0) == 1
    assert white.any() and (second["image"][:, white] == 1).all()

    image = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    middle, low = torch.full((3,), 0.5), torch.zeros(3)
    order = torch.tensor([0.7, 0.1, 0.4])  # the second is least, then the third
    assert torch.equal(recolored(image, torch.cat([middle, order])), image[[1, 2, 0]])
    dark = recolored(image, torch.cat([low, order.sort().values]))
    assert torch.allclose(dark, image ** (1 / dataset.RECOLOR))
    both = recolored(torch.stack([image, image]), torch.rand(2, 6))
    assert both.shape == (2, 3, 4, 5) and not torch.equal(*both)


def test_a_fixed_view_is_kept_and_its_camera_sees_the_object(tiny_data):
    data = ShapeDataset(tiny_data, view=1)
    item = data[2, 7]
    camera = Camera.from_array(item["camera"].numpy())
    assert np.allclose(camera.to_array(), data.camera(2, 1).to_array(), atol=1e-5)
    uv, depth = camera.project(np.zeros((1, 3)))
    centre = item["depth"][16, 16].item()
    assert depth[0] - centre == pytest.approx(0.5, abs=0.02)  # the ball's radius


def test_given_cameras_are_used(rng):
    cameras = [Camera(10, 20, 1, 32), Camera(-30, 5, 0.9, 32)]
    ball = trimesh.creation.icosphere(subdivisions=2, radius=0.5)
    example = make_example(ball, None, rng, count=100, views=2, size=32, poses=cameras)
    assert np.array_equal(example["camera_1"], cameras[1].to_array())
    assert "base_sdf" not in example


def test_no_data_is_named(tmp_path, tiny_data):
    with pytest.raises(FileNotFoundError, match="run prepare first"):
        ShapeDataset(tmp_path)
    with pytest.raises(ValueError, match="split 'test'"):
        ShapeDataset(tiny_data, "test")


def test_meshes_of_one_name_in_two_folders_are_both_kept(tmp_path):
    for k, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        trimesh.creation.box((1, 1, 1 + k)).export(tmp_path / name / "chair.ply")
    paths = [tmp_path / name / "chair.ply" for name in "ab"]
    rows = prepare(paths, tmp_path / "out", **SMALL)
    assert [r["id"] for r in rows] == ["chair_ply_1", "chair_ply_2"]
    assert {Path(r["source"]) for r in read_index(tmp_path / "out")} == set(paths)


def test_a_mesh_that_is_turned_otherwise_or_has_changed_is_made_again(tmp_path):
    made = []
    for yaw, height in ((0, 2), (90, 2), (90, 2), (90, 3)):
        trimesh.creation.box((1, height, 3)).export(tmp_path / "box.ply")
        prepare([tmp_path / "box.ply"], tmp_path / "out", yaw=yaw, **SMALL)
        made.append((tmp_path / "out" / "box.npz").stat().st_mtime_ns)
    assert made[0] != made[1] == made[2] != made[3]


def test_examples_beyond_the_memory_are_read_again_and_are_the_same(tiny_data):
    kept, read = ShapeDataset(tiny_data), ShapeDataset(tiny_data)
    read.memory = 0
    assert all(torch.equal(kept[1][k], read[1][k]) for k in kept[1])
    assert kept.example(1) is kept.example(1)
    assert read.example(1) is not read.example(1)


def test_worker_processes_give_the_same_items(tiny_data):
    data = ShapeDataset(tiny_data, points=64)
    batches = [
        next(iter(torch.utils.data.DataLoader(data, batch_size=3, num_workers=workers)))
        for workers in (0, 2)
    ]
    assert all(torch.equal(batches[0][k], batches[1][k]) for k in batches[0])


def poisoned(folder):
    """Four sources that cannot become an example; return their ids."""
    folder.mkdir()
    (folder / "corrupt.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\n\x00")
    (folder / "empty.stl").write_text("")
    (folder / "nan.obj").write_text("v nan 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (folder / "points.obj").write_text("v 0 0 0\nv 1 0 0\n")
    return sorted(path.stem for path in folder.iterdir())


def test_a_run_killed_twice_loses_and_doubles_nothing(tmp_path):
    bad = poisoned(tmp_path / "meshes")
    good = [f"good{k:02}" for k in range(12)]
    for k, name in enumerate(good):
        box = trimesh.creation.box((1, 1 + k / 10, 1))
        box.export(tmp_path / "meshes" / f"{name}.ply")
    out = tmp_path / "out"
    script = (
        "from d2im.data.dataset import prepare; prepare("
        f"{str(tmp_path / 'meshes')!r}, {str(out)!r}, count=20_000, views=2, size=64, "
        "workers=2, progress=False)"
    )
    stamps = {}
    for least in (2, 6, len(good) + 1):  # the third run is let end
        run = subprocess.Popen([sys.executable, "-c", script])
        while run.poll() is None and len(stamps) < least:
            found = {p.name: p.stat().st_mtime_ns for p in out.glob("good*.npz")}
            assert stamps.items() <= found.items()  # nothing is made again
            stamps = found
            time.sleep(0.02)
        run.kill()
        run.wait()
    rows = {row["id"]: row for row in read_index(out)}
    assert sorted(rows) == sorted(bad + good)
    assert all(
        rows[name]["status"] == "failed" and rows[name]["reason"] for name in bad
    )
    for name in good:
        assert rows[name]["status"] == "ok"
        assert len(read_example(out / f"{name}.npz")["sdf"]) == 20_000
    assert not list(out.glob(".*"))


def test_a_cluster_makes_what_one_process_makes_and_keeps_the_time_limit(tmp_path):
    distributed = pytest.importorskip("distributed")
    joblib = pytest.importorskip("joblib")
    pairs = [("chair", 0), ("table", 1), ("cabinet", 2)]
    prepare(pairs, tmp_path / "one", **SMALL)
    local = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(**local, processes=True) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        rows = prepare(pairs, tmp_path / "two", **{**SMALL, "timeout": 60})
        (late,) = prepare(
            [("chair", 9)], tmp_path / "two", **{**SMALL, "timeout": 0.01}
        )
    assert [row["status"] for row in rows] == ["ok"] * 3
    for row in rows:
        name = f"{row['id']}.npz"
        one, two = (read_example(tmp_path / k / name) for k in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(np.array_equal(one[k], two[k]) for k in one)
    assert late["reason"] == "took longer than 0.01 s"


def test_a_background_changes_the_picture_outside_the_object_alone(rng):
    ball = trimesh.creation.icosphere(subdivisions=3, radius=0.4)
    plain, drawn = (
        make_example(
            ball,
            None,
            np.random.default_rng(0),
            count=100,
            views=2,
            size=32,
            backgrounds=backgrounds,
        )
        for backgrounds in (False, True)
    )
    for name in plain:
        if not name.startswith("image"):
            assert np.array_equal(plain[name], drawn[name])
    for k in range(2):
        changed = (plain[f"image_{k}"] != drawn[f"image_{k}"]).any(0)
        core = scipy.ndimage.binary_erosion(plain[f"mask_{k}"])
        assert not changed[core].any() and changed[0].mean() > 0.9
    assert not np.array_equal(drawn["image_0"][:, 0], drawn["image_1"][:, 0])


def test_a_plain_example_is_the_coarse_bodys(tmp_path):
    shape, rng = make_shape("cabinet", 0), np.random.default_rng
    plain = make_example(shape.detailed, shape.coarse, rng(0), plain=True, **ONE)
    same = make_example(shape.coarse, shape.coarse, rng(0), **ONE)
    for name, value in same.items():
        np.testing.assert_array_equal(plain[name], value)
    np.testing.assert_allclose(plain["sdf"], plain["base_sdf"], atol=1e-6)
    relief = make_example(shape.detailed, shape.coarse, rng(0), **ONE)
    assert np.abs(relief["sdf"] - relief["base_sdf"]).max() > 0.005
    with pytest.raises(ValueError, match="without relief is known of our shapes"):
        make_example(shape.detailed, None, rng(0), plain=True, **ONE)
    [row] = prepare([("cabinet", 0)], tmp_path, plain=True, **SMALL)
    assert row["status"] == "ok"
    with pytest.raises(ValueError, match="'plain': True"):
        prepare([("cabinet", 0)], tmp_path, **SMALL)


def test_examples_with_and_without_backgrounds_are_not_mixed(tmp_path):
    prepare([("chair", 0)], tmp_path, **SMALL)
    with pytest.raises(ValueError, match="'backgrounds': False.*: True"):
        prepare([("chair", 0)], tmp_path, backgrounds=True, **SMALL)


def test_several_folders_are_one_data_set(tmp_path, tiny_data):
    shutil.copytree(tiny_data, tmp_path / "other")
    both = ShapeDataset([tiny_data, tmp_path / "other"], points=64)
    one = ShapeDataset(tiny_data, points=64)
    assert len(both) == 2 * len(one)
    assert all(np.array_equal(both.example(4)[k], v) for k, v in one.example(1).items())
    moved = ShapeDataset([tmp_path / "other", tiny_data], points=64)
    assert both.fingerprint() == moved.fingerprint() != one.fingerprint()


def test_an_example_that_cannot_be_read_and_is_in_no_index_is_made_again(tmp_path):
    (tmp_path / "chair-000000.npz").write_bytes(b"half")
    (row,) = prepare([("chair", 0)], tmp_path, **SMALL)
    assert row["status"] == "ok"
    assert len(read_example(tmp_path / "chair-000000.npz")["sdf"]) == 2000


def test_naming_ten_thousand_files_of_one_name_takes_no_square_time():
    paths = [f"{k}/model.obj" for k in range(10_000)]
    start = time.process_time()
    names = [item["id"] for item in _items(paths, "y", 0)]
    assert time.process_time() - start < 3
    assert len(set(names)) == len(names) and names[9] == "model_obj_10"


def test_numpys_numbers_are_as_good_as_pythons(tmp_path):
    pairs = [("stool", seed) for seed in np.arange(1)]
    settings = dict(count=np.int64(500), views=np.int32(1), size=32, progress=False)
    (row,) = prepare(pairs, tmp_path, timeout=None, **settings)
    assert row["status"] == "ok" and row["id"] == "stool-000000"
    stored = json.loads(str(read_example(tmp_path / f"{row['id']}.npz")["row"]))
    assert stored["seed"] == 0 and isinstance(stored["seed"], int)
    before = (tmp_path / f"{row['id']}.npz").stat().st_mtime_ns
    again = dict(count=500, views=1, size=32, progress=False)
    prepare([("stool", 0)], tmp_path, timeout=None, **again)
    assert (tmp_path / f"{row['id']}.npz").stat().st_mtime_ns == before  # it was there


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tiny_data):
    with pytest.raises(
        ValueError, match=r"split 'tset' in .*; there are: train \(\d+\)"
    ):
        ShapeDataset(tiny_data, "tset")


# Names, changes and damage


def boxes(folder, *names):
    """Boxes in a folder, one a name (text or bytes), each of another height."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate(names):
        kind = os.path.splitext(os.fsdecode(name))[1][1:]
        data = trimesh.creation.box((1, 1 + k / 4, 1)).export(file_type=kind)
        path = os.path.join(os.fsencode(folder), os.fsencode(name))
        Path(os.fsdecode(path)).write_bytes(
            data.encode() if isinstance(data, str) else data
        )
    return folder


def ids(rows):
    return [row["id"] for row in rows]


def stamp(folder, name):
    return (folder / f"{name}.npz").stat().st_mtime_ns


def test_four_files_that_were_two_of_one_id_have_four(tmp_path):
    names = ("m.obj", "m.glb", "m_obj.ply", "m_obj_1.stl")
    rows = prepare(boxes(tmp_path / "in", *names), tmp_path / "out", **SMALL)
    assert len(set(ids(rows))) == len(list((tmp_path / "out").glob("*.npz"))) == 4
    for row in rows:  # and each example is of its own file
        sdf = read_example(tmp_path / "out" / f"{row['id']}.npz", ["points", "sdf"])
        assert signed_distance(source_meshes(row)[0], sdf["points"])[
            0
        ] == pytest.approx(sdf["sdf"], abs=1e-6)


def test_plain_names_keep_the_ids_that_they_always_had():
    paths = ["a/Stühl (2).obj", "b/chair.glb", "c/chair.obj", "d/chair.obj", "e f.ply"]
    wanted = ["Stühl (2)", "chair_glb", "chair_obj_1", "chair_obj_2", "e f"]
    assert ids(_items(paths, "y", 0)) == wanted


@pytest.mark.parametrize(
    "name",
    ["a\nb", 'a"b', "a:b", "a*b", "-rf", ".hid", "CON", "nul.x", "=1+1", "ü" * 125],
)
def test_a_name_that_is_no_file_elsewhere_gets_a_valid_id_of_its_own(name):
    ((first,), (second,)) = (
        ids(_items([f"{text}.obj"], "y", 0)) for text in (name, name + "2")
    )
    assert first != second and safe_id(first) == first
    assert len(f".{first}.npz.{2**22}.tmp".encode()) <= 255


def test_names_that_differ_in_case_or_spelling_alone_get_different_files():
    paths = ["a/Chair.ply", "b/chair.ply", "c/é.ply", "d/e\u0301.ply"]
    found = ids(_items(paths, "y", 0))
    same = {unicodedata.normalize("NFC", name).casefold() for name in found}
    assert len(same) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="names are any bytes on Linux")
def test_odd_file_names_end_nothing_and_lose_no_row(tmp_path):
    long = "x" * 250 + ".ply"
    deep = "/".join(["folder" * 10] * 5)
    source = boxes(tmp_path / "in", b"chair\xff.off", "new\nline.ply", long, "ok.ply")
    boxes(source / deep, "deep.ply")
    rows = prepare(source, tmp_path / "out", **SMALL)
    assert len(set(ids(rows))) == 5
    failed = [row["reason"] for row in rows if row["status"] != "ok"]
    assert len(failed) == 1 and "not UTF-8; rename" in failed[0]
    assert sorted(ids(read_index(tmp_path / "out"))) == sorted(ids(rows))
    again = prepare(source, tmp_path / "out", **SMALL)
    assert ids(again) == ids(rows)


def test_a_file_keeps_its_id_when_others_join_it(tmp_path):
    source, out = boxes(tmp_path / "in", "chair.ply"), tmp_path / "out"
    prepare(source, out, **SMALL)
    before = stamp(out, "chair")
    boxes(source, "chair.ply", "chair.stl")
    assert ids(prepare(source, out, **SMALL)) == ["chair", "chair_stl"]
    assert stamp(out, "chair") == before


def test_another_folders_file_of_one_name_takes_no_example_away(tmp_path):
    out = tmp_path / "out"
    boxes(tmp_path / "a", "chair.ply")
    boxes(tmp_path / "b", "x.ply", "chair.ply")
    prepare(tmp_path / "a", out, **SMALL)
    before = stamp(out, "chair")
    rows = prepare([tmp_path / "b/chair.ply"], out, **SMALL)
    assert rows[0]["status"] == "ok" and ids(rows) != ["chair"]
    assert stamp(out, "chair") == before and len(read_index(out)) == 2


def test_a_folder_that_has_moved_is_not_made_again(tmp_path):
    out = tmp_path / "out"
    prepare(boxes(tmp_path / "a", "chair.ply", "table.ply"), out, **SMALL)
    before = stamp(out, "table")
    (tmp_path / "a").rename(tmp_path / "b")
    rows = prepare(tmp_path / "b", out, **SMALL)
    assert ids(rows) == ["chair", "table"] and stamp(out, "table") == before
    assert rows[0]["source"] == str(tmp_path / "b" / "chair.ply")


@pytest.mark.parametrize("size", ["same", "other"])
def test_a_changed_file_with_an_old_time_is_noticed(tmp_path, size):
    path, out = tmp_path / "box.ply", tmp_path / "out"
    shapes = [trimesh.creation.box((1, 1, z)) for z in (1, 2)]
    shapes[0].export(path)
    old = path.stat()
    prepare([path], out, **SMALL)
    before = stamp(out, "box")
    (shapes[1] if size == "same" else shapes[1].subdivide()).export(path)
    assert (path.stat().st_size == old.st_size) == (size == "same")
    os.utime(path, ns=(0, old.st_mtime_ns - (size == "same")))
    prepare([path], out, **SMALL)
    assert stamp(out, "box") != before


def test_an_unchanged_file_with_a_new_time_is_not_made_again(tmp_path):
    source, out = boxes(tmp_path / "in", "box.ply"), tmp_path / "out"
    prepare(source, out, **SMALL)
    before = stamp(out, "box")
    os.utime(source / "box.ply", (2e9, 2e9))
    (row,) = prepare(source, out, **SMALL)
    assert stamp(out, "box") == before
    assert row["source_time"] == str(2 * 10**18)  # so that no hash is needed next time


def test_an_older_index_is_read_made_no_example_again_and_has_its_fingerprint(tmp_path):
    source, out = boxes(tmp_path / "in", "box.ply"), tmp_path / "out"
    (row,) = prepare(source, out, **SMALL)
    columns = "id split family seed source up yaw faces seconds status reason".split()
    with open(out / "index.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerow(row)
    before = stamp(out, "box"), ShapeDataset(out).fingerprint()
    shapes = [[str(row[name]) for name in columns if name != "seconds"]]
    settings = (out / "settings.json").read_text(encoding="utf-8")
    text = json.dumps([shapes, [2048, None, True, 0], settings])  # as it always was
    assert before[1] == zlib.crc32(text.encode())
    prepare(source, out, **SMALL)
    assert (stamp(out, "box"), ShapeDataset(out).fingerprint()) == before


def damaged_copies(data):
    """A zip of a later version, a row of other columns, one that is a list."""
    late = bytearray(data)
    late[late.rindex(b"PK\x01\x02") + 6] = 201
    yield bytes(late)
    for row in ({"id": "other", "status": "ok", "colour": "red"}, [1], {"id": "x"}):
        file = io.BytesIO()
        np.savez(file, row=np.array(json.dumps(row)))
        yield file.getvalue()


@pytest.mark.parametrize("kind", range(4))
def test_a_damaged_example_without_an_index_ends_nothing(tmp_path, kind):
    prepare([("stool", 0), ("stool", 1)], tmp_path, **SMALL)
    (tmp_path / "index.csv").unlink()
    path = tmp_path / "stool-000000.npz"
    path.write_bytes(list(damaged_copies(path.read_bytes()))[kind])
    before = stamp(tmp_path, "stool-000001")
    rows = prepare([("stool", 0), ("stool", 1)], tmp_path, **SMALL)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert len(read_example(path)["sdf"]) == 2000
    assert stamp(tmp_path, "stool-000001") == before


def test_a_spreadsheets_index_is_read_and_its_own_columns_stay(tmp_path):
    prepare([("stool", 0)], tmp_path, **SMALL)
    path = tmp_path / "index.csv"
    head, *rest = path.read_text(encoding="utf-8").splitlines()
    lines = [f"{head},note", *(f"{line},mine" for line in rest)]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    assert read_index(tmp_path)[0]["id"] == "stool-000000"
    prepare([("stool", 1)], tmp_path, **SMALL)
    assert [row["note"] for row in read_index(tmp_path)] == ["mine", ""]


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda data: data.replace(b"status", b"state"), "lacks the columns status"),
        (lambda data: data.replace(b",", b";"), "lacks the columns id"),
        (lambda data: bytes(range(256)) * 9, "no table"),
        (lambda data: data[:-20], "row 2 has not 14 columns"),
        (lambda data: b"", "lacks the columns"),
    ],
)
def test_a_damaged_index_is_named_with_what_to_do(tmp_path, spoil, reason):
    prepare([("stool", 0), ("stool", 1)], tmp_path, **SMALL)
    path = tmp_path / "index.csv"
    path.write_bytes(spoil(path.read_bytes()))
    spoiled = path.read_bytes()
    for use in (ShapeDataset, lambda out: prepare([("stool", 2)], out, **SMALL)):
        with pytest.raises(ValueError, match=f"index.csv.*{reason}.*delete") as caught:
            use(tmp_path)
        assert "\n" not in str(caught.value)
    assert path.read_bytes() == spoiled


@pytest.mark.parametrize("text", [b'{"count": 20', b"", b"\xff\xfe", b"[" * 99_999])
def test_damaged_settings_are_named_with_what_to_do(tmp_path, text):
    prepare([("stool", 0)], tmp_path, **SMALL)
    (tmp_path / "settings.json").write_bytes(text)
    with pytest.raises(ValueError, match="settings.json is damaged.*delete it"):
        prepare([("stool", 0)], tmp_path, **SMALL)


def test_what_belongs_to_no_shape_is_named_and_kept(tmp_path, capsys):
    source, out = boxes(tmp_path / "in", "a.ply", "b.ply", "c.ply"), tmp_path / "out"
    prepare(source, out, **SMALL)
    assert capsys.readouterr().err == ""
    shutil.copy(out / "a.npz", out / "copy.npz")
    (source / "b.ply").unlink()
    (out / "c.npz").unlink()
    (out / ".thesis.tmp").write_text("mine")
    prepare([source / "a.ply"], out, **SMALL)
    (line,) = capsys.readouterr().err.splitlines()
    assert "1 example files that index.csv does not list (copy)" in line
    assert "1 examples whose mesh file is gone (b)" in line
    assert "1 rows without their example file (c)" in line
    assert (out / "copy.npz").exists() and (out / ".thesis.tmp").exists()


def test_a_full_disk_is_one_line_before_a_shape_is_made_and_keeps_the_others(
    tmp_path, monkeypatch
):
    prepare([("stool", 0)], tmp_path, **SMALL)
    index = (tmp_path / "index.csv").read_bytes()
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda p: real(p)._replace(free=100))
    with pytest.raises(OSError, match="0.0 MB free.*make room.*kept"):
        prepare([("stool", 1)], tmp_path, **SMALL)
    assert (tmp_path / "index.csv").read_bytes() == index


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file/out cannot be made"):
        prepare([("stool", 0)], tmp_path / "file" / "out", **SMALL)


def test_a_reason_is_never_empty(tmp_path, monkeypatch):
    def fails(row):
        raise MemoryError

    monkeypatch.setattr("d2im.dataset.source_meshes", fails)
    (row,) = prepare([("stool", 0)], tmp_path, **SMALL)
    assert "MemoryError" in row["reason"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_a_mesh_beyond_the_memory_is_refused_with_what_to_do(tmp_path):
    ball = trimesh.creation.icosphere(subdivisions=8)  # 1.3 million faces
    ball.export(tmp_path / "large.stl")
    options = {**SMALL, "timeout": 60, "memory_gb": 0.6}  # it ends while numpy reads
    boxes(tmp_path, "small.stl")
    large, small = prepare(tmp_path, tmp_path / "out", **options)
    assert large["reason"] == (
        "MemoryError: needs more than 0.6 GB: give a larger memory_gb"
    )
    assert small["status"] == "ok"


def test_memory_is_limited_by_default(tmp_path, monkeypatch):
    asked = []

    def isolated(function, *arguments, timeout, memory_gb):
        asked.append(memory_gb)
        return function(*arguments)

    monkeypatch.setattr("d2im.dataset.run_isolated", isolated)
    monkeypatch.setattr("d2im.dataset.fair_memory_gb", lambda workers: workers)
    prepare([("stool", 0)], tmp_path, **{**SMALL, "timeout": 60, "workers": 2})
    assert asked == [2]


# Openings and hollows of mesh files


def hollow_box(folder):
    folder.mkdir()
    inner = trimesh.creation.box((1, 1, 1))
    inner.invert()
    hollow = trimesh.util.concatenate(trimesh.creation.box((2, 2, 2)), inner)
    hollow.export(folder / "hollow.ply")
    return folder


def middle_is_inside(out, row):
    example = read_example(out / f"{row['id']}.npz")
    middle = np.abs(example["points"]).max(axis=1) < 0.12
    assert middle.any()
    return (example["sdf"] < 0)[middle].all(), source_meshes(row)[0].volume > 0.19


def test_hollows_of_files_are_filled_and_the_truth_as_well(tmp_path):
    source, out = hollow_box(tmp_path / "in"), tmp_path / "out"
    (row,) = prepare(source, out, **SMALL)
    assert row["interior"] == "fill" and "filled 0.1" in row["repair"]
    assert middle_is_inside(out, read_index(out)[0]) == (True, True)
    (out / "index.csv").unlink()  # as of a run that was killed: the example tells
    (row,) = prepare(source, out, **SMALL)
    assert (row["caps"], row["interior"]) == ("auto", "fill")
    keep = {**SMALL, "interior": "keep"}
    with pytest.raises(ValueError, match="'interior': 'fill'.*another folder"):
        prepare(source, out, **keep)
    (row,) = prepare(source, tmp_path / "hollow", **keep)
    assert middle_is_inside(tmp_path / "hollow", row) == (False, False)


def test_a_folder_of_before_goes_on_as_it_was_made(tmp_path):
    source, out = hollow_box(tmp_path / "in"), tmp_path / "out"
    prepare(source, out, caps="close", interior="keep", **SMALL)
    settings = json.loads((out / "settings.json").read_text())
    assert not {"caps", "interior"} & settings.keys()  # as it was written before
    before = stamp(out, "hollow")
    boxes(source, "box.ply")
    rows = prepare(source, out, **SMALL)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert stamp(out, "hollow") == before
    assert source_meshes(read_index(out)[1])[0].volume < 0.18
    assert not any(row.get("interior") for row in read_index(out))
    (out / "settings.json").unlink()  # as the advice on a damaged one is
    prepare(source, out, **SMALL)
    assert (stamp(out, "hollow"), settings) == (
        before,
        json.loads((out / "settings.json").read_text()),
    )


def test_a_folder_of_before_refuses_settings_that_name_another_repair(tmp_path):
    source, out = hollow_box(tmp_path / "in"), tmp_path / "out"
    prepare(source, out, caps="close", interior="keep", **SMALL)
    with pytest.raises(ValueError, match="'caps': 'keep'.*another folder"):
        prepare(source, out, ExampleConfig(caps="keep"), **SMALL)


def test_procedural_shapes_know_nothing_of_openings(tmp_path):
    (row,) = prepare([("stool", 0)], tmp_path, **SMALL)
    assert not {"caps", "interior", "repair"} & row.keys()


@pytest.mark.parametrize("name", ["caps", "interior"])
def test_an_unknown_way_of_repair_is_refused_before_the_work(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name} must be one of .*not 'no'"):
        prepare([("stool", 0)], tmp_path / "out", **SMALL, **{name: "no"})
    assert not (tmp_path / "out").exists()


def test_the_command_takes_caps_and_interior(tmp_path, capsys):
    source, out = hollow_box(tmp_path / "in"), tmp_path / "out"
    small = "--count 500 --views 1 --size 32 --timeout 60".split()
    command = ["prepare", str(source), "-o", str(out), *small]
    assert main([*command, "--caps", "keep", "--interior", "keep"]) == 0
    (row,) = read_index(out)
    assert (row["caps"], row["interior"]) == ("keep", "keep")
    assert main(command) == 2  # the folder has others
    assert "choose another folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--interior", "solid"])
    assert "choose from" in capsys.readouterr().err
