"""ShapeNet by one command: categories, workers, what is missing, going on."""

import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from d2im.__main__ import main
from d2im.data.dataset import Effort, ShapeDataset, read_example, read_index
from d2im.data.readers import read_disn
from d2im.data.shapenet import CATEGORIES, prepare_shapenet, summary
from tests import test_readers
from tests.test_readers import CHAIR, NAMES

HERE = Effort(progress=False, timeout=None)  # in this process


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Both layouts with two chairs and a third that is missing."""
    root = tmp_path_factory.mktemp("shapenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_readers, "POSES", {"easy": [(30, 25, 0.8), (120, 28, 0.9)]})
        test_readers.write_disn(root, np.random.default_rng(0), 500, 5000)
        test_readers.write_occnet(root, np.random.default_rng(0), 501, 5000)
    return root


def prepared(root, out, layout="disn", split="test", **options):
    given = {"layout": layout, "split": split, "views": 2, "size": 32, "effort": HERE}
    return prepare_shapenet(root, out, **given | options)


def test_one_command_reads_in_parallel_what_the_readers_read(root, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["prepare", "shapenet", "--root", root, "--layout", "disn", "-o", out]
    more = ["--split", "train", "--views", 2, "--size", 32, "--workers", 2]
    assert main([str(part) for part in command + more]) == 0
    told = capsys.readouterr().out
    assert "chair           2 examples\n" in told and "not among them: airpl" in told
    data = ShapeDataset(out, points=64)
    read = read_disn(root, CHAIR, "train", views=2, size=32)
    for row, (name, example) in zip(data.rows, read, strict=True):
        stored = read_example(out / f"{name}.npz")
        assert (row["id"], row["family"], row["split"]) == (name, "chair", "train")
        assert stored.keys() - example.keys() == {"row"}
        for member, value in example.items():
            assert np.array_equal(stored[member], value)


def test_a_missing_shape_is_listed_and_tried_again(root, tmp_path):
    rows = prepared(root, tmp_path, "occnet", choy=root / "choy")
    assert {row["id"]: row["status"] for row in rows} == {
        f"{CHAIR}_missing": "failed",
        f"{CHAIR}_{NAMES[0]}": "ok",
    }
    assert read_index(tmp_path)[1]["reason"].endswith("points.npz is missing")
    assert f"1 failed ({CHAIR}_missing)" in summary(rows)
    copy = shutil.copytree(root, tmp_path / "root")
    shutil.copytree(copy / CHAIR / NAMES[1], copy / CHAIR / "missing")
    shutil.copytree(copy / "choy" / CHAIR / NAMES[1], copy / "choy" / CHAIR / "missing")
    rows = prepared(copy, tmp_path, "occnet", choy=copy / "choy")
    assert [row["status"] for row in rows] == ["ok", "ok"]
    for other in ({"layout": "occnet"}, {}, {"layout": "occnet", "misfit": 0.5}):
        with pytest.raises(ValueError, match="holds examples made with"):
            prepared(root, tmp_path, **other)


def test_what_is_made_is_not_made_again(root, tmp_path):
    for split in ("train", "test"):
        prepared(root, tmp_path, split=split)
    path = tmp_path / f"{CHAIR}_{NAMES[1]}.npz"  # in both lists: the last one counts
    before = path.stat().st_mtime_ns
    (tmp_path / "index.csv").unlink()  # as of a call that was killed
    rows = prepared(root, tmp_path)
    assert path.stat().st_mtime_ns == before
    assert [row["status"] for row in rows] == ["ok", "failed"]
    assert {row["split"] for row in read_index(tmp_path)} == {"train", "test"}


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"layout": "r2n2"}, ValueError, "layout must be one of disn, occnet"),
        ({"categories": ["chair", "boat"]}, ValueError, "no category boat: all, or of"),
        ({"categories": ["car"]}, FileNotFoundError, "02958343_test.lst is missing"),
        ({"categories": ["chair", "car"]}, FileNotFoundError, "02958343_test.lst is"),
        ({"split": "val"}, FileNotFoundError, "_val.lst is missing"),
        ({"views": 0}, ValueError, "views and size must be 1 or more, got 0 and 32"),
        ({"choy": "x"}, ValueError, "layout disn has no option choy"),
        ({"effort": None, "vews": 2}, ValueError, "has no option vews"),
    ],
)
def test_a_wrong_call_is_refused_before_any_work(root, tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        prepared(root, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_help_takes_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for words in (["prepare"], ["prepare", "shapenet"], ["prepare", "sweethome3d"]):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert len(capsys.readouterr().out.splitlines()) <= 24


def test_categories_are_taken_by_name_and_number(root, tmp_path):
    by_name = prepared(root, tmp_path, categories=["chair"])
    by_number = prepared(root, tmp_path, categories=[CHAIR])
    assert [row["id"] for row in by_number] == [row["id"] for row in by_name]
    assert len(CATEGORIES) == len({*CATEGORIES.values()}) == 13


def test_a_missing_package_is_said_in_one_line(root, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    command = f"prepare shapenet --root {root} --layout disn --split test"
    assert main([*command.split(), "-o", str(tmp_path / "out")]) == 1
    said = 'error: DISN data need h5py: pip install "d2im[disn]"\n'
    assert capsys.readouterr().err == said and not (tmp_path / "out").exists()


def test_a_killed_call_goes_on_and_ends_as_an_unbroken_one(root, tmp_path):
    copy, names = shutil.copytree(root, tmp_path / "root"), [f"s{k}" for k in range(8)]
    for name in names:
        for kind in ("sdf", "image", "normal"):
            shutil.copytree(copy / kind / CHAIR / NAMES[0], copy / kind / CHAIR / name)
    (copy / "lists" / f"{CHAIR}_test.lst").write_text("\n".join(names))
    prepared(copy, tmp_path / "whole")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "d2im", "prepare", "shapenet", "--root", copy]
    more = "--layout disn --split test --views 2 --size 32 -o".split()
    with subprocess.Popen([*command, *more, out], stderr=subprocess.PIPE) as process:
        while len(list(out.glob("[!.]*.npz"))) < 2:
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    made = {path: path.stat().st_mtime_ns for path in out.glob("[!.]*.npz")}
    assert len(made) >= 2
    prepared(copy, out)
    for path, changed in made.items():
        assert path.stat().st_mtime_ns == changed
    assert not list(out.glob("*.tmp")) + list(out.glob(".*.tmp"))
    assert [row["status"] for row in read_index(out)] == ["ok"] * len(names)
    for path in (tmp_path / "whole").glob("*.npz"):
        one, other = read_example(path), read_example(out / path.name)
        for name in one.keys() - {"row"}:
            assert np.array_equal(one[name], other[name])
