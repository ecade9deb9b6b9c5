"""Data folders: one writer at a time, and examples and indexes that are damaged."""

import os
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from d2im.__main__ import main
from d2im.data.dataset import (
    ShapeDataset,
    prepare,
    read_example,
    read_index,
    write_example,
)
from d2im.data.locks import hold

SMALL = dict(count=2000, views=2, size=32, timeout=None, progress=False)


def test_a_second_preparation_of_a_folder_is_refused_and_deletes_nothing(tmp_path):
    with hold(tmp_path, "preparation"):
        (tmp_path / f".a.npz.{os.getpid()}.tmp").write_text("half")
        with pytest.raises(ValueError, match="another preparation.*wait for its end"):
            prepare([("stool", 0)], tmp_path, **SMALL)
        assert (tmp_path / f".a.npz.{os.getpid()}.tmp").exists()
    prepare([("stool", 0)], tmp_path, **SMALL)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []


def test_two_preparations_at_once_leave_a_row_for_each_example(tmp_path):
    out = tmp_path / "out"
    script = (
        "import sys; from d2im.data.dataset import prepare; prepare("
        "[('stool', int(sys.argv[1]) + k) for k in range(3)], "
        f"{str(out)!r}, count=20_000, views=2, size=64, timeout=None, progress=False)"
    )
    command = [sys.executable, "-c", script]
    two = [
        subprocess.Popen([*command, first], stderr=subprocess.PIPE, text=True)
        for first in ("0", "100")
    ]
    said = [process.communicate(timeout=100)[1] for process in two]
    codes = [process.returncode for process in two]
    made = 3 * codes.count(0)  # a slow start comes after the other's end
    assert made and len(read_index(out)) == len(list(out.glob("*.npz"))) == made
    for code, text in zip(codes, said, strict=True):
        assert code == 0 or "another preparation" in text


def test_a_call_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        prepare(tmp_path / "missing", tmp_path / "out", **SMALL)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../away", "/etc/passwd", "a/b", "a\0b"])
def test_an_id_that_leads_out_of_the_folder_is_refused(tmp_path, name):
    prepare([("stool", 0)], tmp_path / "in", **SMALL)
    path = tmp_path / "in" / "index.csv"
    path.write_text(path.read_text().replace("stool-000000", name))
    shutil.copy(tmp_path / "in" / "stool-000000.npz", tmp_path / "away.npz")
    for use in (ShapeDataset, lambda out: prepare([("stool", 0)], out, **SMALL)):
        with pytest.raises(ValueError, match="index.csv: row 1 .* names no file here"):
            use(tmp_path / "in")


def resaved(path, **changes):
    """Write an example again with some members changed, or gone where None."""
    example = read_example(path) | changes
    with open(path, "wb") as file:
        np.savez(file, **{k: v for k, v in example.items() if v is not None})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sdf": None}, "lacks a member of an example: 'sdf'"),
        ({"image_1": None}, "lacks a member of an example: 'image_1'"),
        ({"camera_1": None}, "lacks a member of an example: 'camera_1'"),
        ({"weights": np.ones(7)}, r"weights is float64 \(7,\), not numbers \(2000,\)"),
        ({"mask_0": np.zeros((9, 9))}, r"image_0 is uint8 .*, not numbers \(3, 9, 9\)"),
        ({"points": np.array(["a"])}, "points is <U1"),
        ({"sdf": np.zeros(0)}, "sdf is float64"),
        ({"points": np.full((2000, 3), np.nan)}, "points holds NaN or infinite"),
        ({"depth_1": np.full((32, 32), np.inf, "f2")}, "depth_1 holds NaN or inf"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_an_example_that_is_none_is_named_with_its_member(tmp_path, changes, reason):
    prepare([("stool", 0)], tmp_path, **SMALL)
    path = tmp_path / "stool-000000.npz"
    resaved(path, **changes)
    with pytest.raises(ValueError, match=f"{path}.*{reason}"):
        ShapeDataset(tmp_path)[0]


def test_a_view_that_is_not_there_is_named(tmp_path):
    prepare([("stool", 0)], tmp_path, **SMALL)
    with pytest.raises(ValueError, match="stool-000000.npz has 2 views, and no view 7"):
        ShapeDataset(tmp_path, view=7)[0]


def test_a_header_that_is_no_python_is_damage(tmp_path):
    prepare([("stool", 0)], tmp_path, **SMALL)
    path = tmp_path / "stool-000000.npz"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["sdf.npy"] = members["sdf.npy"].replace(b": (2000", b":((2000")
    with zipfile.ZipFile(path, "w") as archive:  # its checksum is right
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(ValueError, match=f"{path} is damaged, delete it"):
        read_example(path)


def test_every_flipped_bit_of_an_examples_arrays_is_noticed(tmp_path, rng):
    prepare([("stool", 0)], tmp_path, **SMALL)
    path = tmp_path / "stool-000000.npz"
    whole, known = path.read_bytes(), read_example(path)
    for place in rng.integers(len(whole), size=100):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            found = read_example(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:  # a time or a flag of the archive's
            assert found.keys() == known.keys()
            assert all(np.array_equal(found[k], known[k]) for k in known)


def test_an_example_with_nan_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="a.npz: sdf holds NaN"):
        write_example(tmp_path / "a.npz", {"sdf": np.array([0.1, np.nan])})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("limit", [0, -1, float("nan")])
def test_a_memory_limit_is_above_0(tmp_path, limit):
    with pytest.raises(ValueError, match="memory_gb must be above 0"):
        prepare([("stool", 0)], tmp_path, **SMALL, memory_gb=limit)


def test_the_command_takes_a_memory_limit_and_its_help_a_screen(monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(
        "d2im.data.dataset.prepare", lambda *a, **options: asked.update(options) or []
    )
    assert main(["prepare", "--procedural", "1", "-o", "x", "--memory-gb", "2.5"]) == 0
    assert asked["memory_gb"] == 2.5
    monkeypatch.setenv("COLUMNS", "80")
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    assert len(capsys.readouterr().out.splitlines()) <= 24


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -np.nan])
@pytest.mark.parametrize("kind", ["f2", ">f2", "f4", "f8"])
def test_numbers_that_are_not_finite_are_found_in_every_type(tmp_path, odd, kind):
    largest = np.finfo(kind).max
    whole = np.array([[largest, -largest, 0, -0.0, 1e-7]], kind).repeat(9, 0)
    write_example(tmp_path / "a.npz", {"depth_0": whole, "empty": whole[:0]})
    whole[4, 2] = odd
    with pytest.raises(ValueError, match="depth_0 holds NaN"):
        write_example(tmp_path / "b.npz", {"depth_0": whole})
