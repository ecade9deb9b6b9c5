"""Sweet Home 3D's libraries: what is read, refused, gone on with and credited."""

import json
import re
import struct
import zipfile
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from d2im.__main__ import main
from d2im.data import sweethome
from d2im.data.dataset import (
    INDEX_COLUMNS,
    ShapeDataset,
    read_index,
    source_meshes,
    stretched,
    write_index,
)
from d2im.data.formats import read_surface
from d2im.data.sweethome import (
    CATALOGUE,
    SPLITS,
    credits_text,
    fixed_list,
    listed_items,
    prepare_sweethome,
    read_library,
    unpack,
)

BOX = np.array([[x, y, z] for x in (0, 4) for y in (0, 2) for z in (0, 1)])
FACES = "1 2 4 3|5 7 8 6|1 5 6 2|3 4 8 7|1 3 7 5|2 6 8 4"
QUICK = {"views": 1, "size": 16, "count": 200, "timeout": None, "progress": False}
PLAIN = {"id": "Own#{}", "category": "Kitchen", "creator": "Ann\\u00e9", "name": "Box"}


def obj(corners=BOX):
    lines = ["mtllib box.mtl", "vn 0 0 1", "usemtl red"]
    lines += [f"v {x} {y} {z}" for x, y, z in corners]
    lines += [f"f {' '.join(face.split())}" for face in FACES.split("|")]
    return "\r\n".join(lines).encode()


def library(path, pieces=("a",), members=(), licence="CC0", **values):
    """A .sh3f file: a box for each name; values: of the last piece."""
    text = ["# a comment", "", f"license = {licence}"]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for k, name in enumerate(pieces, 1):
            own = PLAIN | {
                "id": PLAIN["id"].format(name),
                "model": f"/m/{name}/b%20x.obj",
            }
            own |= values if k == len(pieces) else {}
            text += [f"{key}#{k}={value}" for key, value in own.items()]
            archive.writestr(f"m/{name}/b x.obj", obj())
            archive.writestr(f"m/{name}/box.mtl", "newmtl red\nKd 1 0 0\n")
        for name, data in members:
            archive.writestr(name, data)
        archive.writestr(CATALOGUE, "\n".join(text))
    return path


@pytest.fixture
def short_list(monkeypatch, tmp_path):
    """A fixed list of three pieces of the library "Own"."""
    own = {part: [f"Own__Anné-{part}"] for part in SPLITS}
    own |= {"turns": {"Own__Anné-test": 90}, "left_out": {"doors": ["Own__Anné-x"]}}
    path = tmp_path / "list.json"
    path.write_text(json.dumps(own), encoding="utf-8")
    monkeypatch.setattr(sweethome, "LIST", path)


def test_a_command_makes_what_the_list_names(short_list, tmp_path, capsys):
    file = library(tmp_path / "own.sh3f", ["train", "val", "test", "x", "new"])
    command = f"prepare sweethome3d {file} -o {tmp_path / 'out'} --views 1 --size 16"
    more = " --count 200 --backgrounds --ratio 0.7 1.2 --textures --copies 1"
    assert main((command + more).split()) == 0
    rows = read_index(tmp_path / "out")
    names = "split", "yaw", "family", "title", "creator", "licence", "library"
    same = "Kitchen", "Box", "Anné", "CC0", "Own"
    assert [tuple(row[name] for name in names) for row in rows] == [
        ("test", "90.0", *same),
        ("train", "0.0", *same),
        ("train", "0.0", *same),  # its copy; the others have none
        ("val", "0.0", *same),
    ]
    assert [bool(row["stretch"]) for row in rows] == [False, False, True, False]
    assert len(ShapeDataset(tmp_path / "out", "test", points=8)) == 1
    capsys.readouterr()
    assert main(["prepare", "sweethome3d", "--credits", "-o", f"{tmp_path}/out"]) == 0
    told = capsys.readouterr().out
    assert "## Own\n\n2 pieces. Licence: CC0.\n" in told
    assert "- Box, by Anné (`Own__Anné-val`)\n" in told and "test" not in told


def test_pieces_that_gave_no_example_are_not_credited(tmp_path, capsys):
    row = dict.fromkeys(INDEX_COLUMNS, "") | {"split": "train", "library": "Own"}
    row |= {"licence": "CC0", "creator": "Ann", "title": "Box"}
    both = {"made": "ok", "failed": "failed"}
    write_index(tmp_path, [row | {"id": k, "status": v} for k, v in both.items()])
    assert main(["prepare", "sweethome3d", "--credits", "-o", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "1 pieces" in told and "(`made`)" in told and "(`failed`)" not in told


def test_a_sheet_shows_the_icons_of_the_test_set(short_list, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    given = {"members": [("i/a b.png", b"x")], "icon": "/i/a%20b.png"}
    files = [library(tmp_path / f"{k}.sh3f", [k], **given) for k in ("train", "test")]
    icons = import_module("sheet").icons
    (path,) = icons(files, None, tmp_path)
    assert path.name == "Own__Anné-test.png" and path.read_bytes() == b"x"
    (piece,) = read_library(files[1])
    assert piece.icon == "i/a b.png"
    path.unlink()
    lost = library(tmp_path / "test.sh3f", ["test"], icon="/i/lost.png")
    assert [path.exists() for path in icons([lost], None, tmp_path)] == [False]
    assert not list(icons([library(tmp_path / "test.sh3f", ["test"])], None, tmp_path))


def test_all_pieces_of_other_libraries_are_taken(short_list, tmp_path):
    file = library(tmp_path / "other.sh3f", "a", id="", creator="", category="")
    ids = [(item["id"], item["split"]) for item in listed_items([file], tmp_path)]
    assert ids == [("other__unknown-b-x", "train")]  # of the model's file
    assert {item["split"] for item in listed_items([file], tmp_path, "test")} == {
        "test"
    }


def test_names_that_differ_in_case_alone_are_told_apart(tmp_path):
    file = library(tmp_path / "own.sh3f", ["a", "A", "b"])
    names = [piece.name for piece in read_library(file)]
    assert names == ["Own__Anné-a", "Own__Anné-A-2", "Own__Anné-b"]


def test_the_licence_text_gives_its_link(tmp_path):
    text = "see\thttp://creativecommons.org/licenses/by/3.0/\nand more"
    file = library(tmp_path / "own.sh3f", members=[("LICENSE.TXT", text)])
    (piece,) = read_library(file)
    assert piece.licence == "CC0, http://creativecommons.org/licenses/by/3.0/"


def test_a_model_is_turned_as_its_catalogue_says(tmp_path):
    turn = "0 0 1 0 1 0 -1 0 0"
    (piece,) = read_library(library(tmp_path / "own.sh3f", modelRotation=turn))
    path = unpack(piece, tmp_path)
    matrix = np.array(turn.split(), dtype=float).reshape(3, 3)
    read = read_surface(path)
    assert np.allclose(read.vertices, BOX @ matrix.T)
    assert b"vn 1 0 0\n" in path.read_bytes()
    assert np.allclose(read.color, (1, 0, 0))  # its material is found


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model": "/m/none.obj"}, "its model 'm/none.obj' is not in the library"),
        ({"model": ""}, "its model '' is not in the library"),
        ({"model": "bad/x.obj"}, "'bad/../../x' leads out of the library"),
        ({"model": "deep/x.obj"}, "'deep/a:b' leads out of the library"),
        ({"modelRotation": "1 0 0 0 1"}, "modelRotation is no rotation: 1 0 0 0 1"),
        ({"modelRotation": "1 0 0 0 1 0 0 0 -1"}, "modelRotation is no rotation: 1"),
        ({"modelRotation": "1 0 0 0 1 0 0 0 nan"}, "modelRotation is no rotation: 1"),
        ({"model": "x.stl", "modelRotation": "1 0 0 0 1 0 0 0 1"}, "to OBJ alone, not"),
        ({"model": "large/x.obj"}, "its files are larger than 1 MB"),
        ({"model": "two/z.obj"}, "two/x/y was not written: "),
    ],
)
def test_a_broken_piece_fails_alone_and_says_why(tmp_path, monkeypatch, values, reason):
    monkeypatch.setattr(sweethome, "MOST_FOLDER", 1e6)
    names = "bad/x.obj bad/../../x deep/x.obj deep/a:b x.stl two/x two/x/y two/z.obj"
    members = [(name, "v 0 0 0") for name in names.split()]
    members.append(("large/x.obj", "#" * 1_100_000))
    file = library(tmp_path / "own.sh3f", ["a", "b"], members, **values)
    first, second = prepare_sweethome([file], tmp_path / "out", **QUICK)
    assert first["status"] == "ok" and second["status"] == "failed"
    assert second["reason"].startswith(f"{file}: Box (Own__Anné-b): ")
    assert reason in second["reason"] and second["creator"] == "Anné"


def test_a_member_that_lies_of_its_size_is_not_unpacked(tmp_path):
    data = b"#" * 5_000_000
    file = library(tmp_path / "own.sh3f", members=[("m/a/bomb", data)])
    size = struct.pack("<I", len(data))
    raw = file.read_bytes()
    file.write_bytes(raw.replace(size, struct.pack("<I", 1000)))
    (piece,) = read_library(file)
    with pytest.raises(ValueError, match="own.sh3f: Box .*: Bad CRC-32"):
        unpack(piece, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*bomb*"))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no zip", "is no .sh3f library, or damaged: File is not a zip file"),
        ({"x": b""}, f"no item named '{CATALOGUE}' in the archive"),
        ({CATALOGUE: b"name=x"}, "names no model"),
        ({CATALOGUE: b"#" * 4_000_001}, f"{CATALOGUE} is too large"),
    ],
)
def test_what_is_no_library_is_said_in_a_line(tmp_path, capsys, data, reason):
    file = tmp_path / "own.sh3f"
    if isinstance(data, bytes):
        file.write_bytes(data)
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, own in data.items():
                archive.writestr(name, own)
    assert main(["prepare", "sweethome3d", f"{file}", "-o", f"{tmp_path}/out"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {file}") and reason in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_wrong_calls_are_refused(short_list, tmp_path):
    one = library(tmp_path / "one.sh3f", ["train"])
    two = library(tmp_path / "two.sh3f", ["train"])
    for files, split, match in [
        ([one, one], "all", "two libraries have one file name"),
        ([one, two], "all", "Own__Anné-train is in .*one.sh3f and .*two.sh3f: leave"),
        ([one], "val", "no piece of .*one.sh3f is in 'val'"),
        ([one], "unseen", "split must be train, val, test or all, not 'unseen'"),
    ]:
        with pytest.raises(ValueError, match=match):
            listed_items(files, tmp_path, split)
    with pytest.raises(FileNotFoundError, match="none.sh3f: no such file"):
        listed_items([tmp_path / "none.sh3f"], tmp_path)


def test_a_call_goes_on_in_a_moved_folder_and_without_an_index(tmp_path):
    file = library(tmp_path / "own.sh3f", "ab")
    prepare_sweethome([file], tmp_path / "old", **QUICK)
    out = (tmp_path / "old").rename(tmp_path / "new")
    made = {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    before = prepare_sweethome([file], out, **QUICK)
    (out / "index.csv").unlink()
    after = prepare_sweethome([file], out, **QUICK)
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("*.npz")}
    assert [row["creator"] for row in before + after] == ["Anné"] * 4
    assert all(str(out) in row["source"] for row in before + after)


def test_copies_are_the_piece_stretched_along_its_axes(tmp_path):
    file, out = library(tmp_path / "Own.sh3f", ["a"]), tmp_path / "out"
    rows = prepare_sweethome([file], out, copies=2, split="train", **QUICK)
    names = [f"Own__Anné-a{end}" for end in ("", "~1", "~2")]
    assert [row["id"] for row in rows] == names
    assert [row["status"] for row in rows] == ["ok"] * 3
    sides = np.ptp(BOX, axis=0)
    for row in rows:
        factors = np.array((row.get("stretch") or "1 1 1").split(), float)
        assert (factors > 1 / 1.3001).all() and (factors < 1.3001).all()
        whole = sides * factors / np.linalg.norm(sides * factors)  # radius 0.5
        assert source_meshes(row)[0].extents == pytest.approx(whole, abs=1e-5)
    assert rows[1]["stretch"] != rows[2]["stretch"]
    made = {row["id"]: (out / f"{row['id']}.npz").stat().st_mtime_ns for row in rows}
    (out / "index.csv").unlink()  # the rows that the examples carry say it, too
    again = prepare_sweethome([file], out, copies=3, split="train", **QUICK)
    assert again[1]["stretch"] == rows[1]["stretch"] and len(again) == 4
    for name, time in made.items():
        assert (out / f"{name}.npz").stat().st_mtime_ns == time
    for some in (again, again[1:], again[:1]):  # also where the piece itself failed
        assert credits_text(some).count("by Ann") == 1
        assert "(`Own__Anné-a`)" in credits_text(some)
    ids = ShapeDataset(out).fingerprint()
    other = [row | {"stretch": row.get("stretch") and "1 1 1.1"} for row in again]
    write_index(out, other)
    assert ShapeDataset(out).fingerprint() != ids
    with pytest.raises(ValueError, match="-1 copies, stretched by at most 1.3"):
        stretched([], -1)


def test_a_changed_piece_is_made_again_alone(tmp_path):
    file = library(tmp_path / "own.sh3f", "ab")
    prepare_sweethome([file], tmp_path / "out", **QUICK)
    made = [
        path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.npz"))
    ]
    library(file, "ab", modelRotation="0 0 1 0 1 0 -1 0 0")
    prepare_sweethome([file], tmp_path / "out", **QUICK)
    now = [path.stat().st_mtime_ns for path in sorted((tmp_path / "out").glob("*.npz"))]
    assert now[0] == made[0] and now[1] > made[1]


def test_a_refused_call_leaves_the_models_as_they_are(tmp_path):
    file, out = library(tmp_path / "own.sh3f", "a"), tmp_path / "out"
    prepare_sweethome([file], out, **QUICK)
    there = {p: p.read_bytes() for p in (out / "meshes").rglob("*.*")}
    library(file, "a", modelRotation="0 0 1 0 1 0 -1 0 0")
    with pytest.raises(ValueError, match="made with"):
        prepare_sweethome([file], out, **QUICK | {"views": 3})
    assert {p: p.read_bytes() for p in (out / "meshes").rglob("*.*")} == there != {}


def test_the_list_splits_60_10_30_and_names_each_piece_once():
    fixed = fixed_list()
    parts = [fixed[part] for part in SPLITS]
    out = [name for names in fixed["left_out"].values() for name in names]
    names = [*sum(parts, []), *out]
    assert len(names) == len(set(names)) == 820
    assert set(fixed["turns"]) <= set(names) - set(out)
    shares = np.array([len(part) for part in parts]) / (len(names) - len(out))
    assert np.abs(shares - (0.6, 0.1, 0.3)).max() < 0.02
    assert not any(name.startswith("Reallusion") for name in sum(parts, []))


def test_credits_name_what_is_trained_on_and_nothing_else():
    text = (Path(__file__).parents[1] / "CREDITS.md").read_text(encoding="utf-8")
    fixed = fixed_list()
    credited = re.findall(r"^- .+, by .+ \(`(.+)`\)$", text, re.MULTILINE)
    assert sorted(credited) == sorted(fixed["train"] + fixed["val"])
