"""Sweet Home 3D's furniture libraries (.sh3f) as examples; docs/sweethome3d.md.

A library is a zip of models and a catalogue, which names each piece, its category, its
creator and how its file is turned to stand upright and look along +z.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote

import numpy as np

from .dataset import CREDIT_COLUMNS, ExampleConfig, prepare, safe_id, stretched
from .files import one_line, write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable

LIST = Path(__file__).with_name("sweethome.json")
CATALOGUE, LICENCE = "PluginFurnitureCatalog.properties", "LICENSE.TXT"
SPLITS = "train", "val", "test"
MOST_TEXT = 4e6  # bytes of a catalogue or a licence, unpacked
MOST_FOLDER = 512e6  # bytes of a model with its textures, unpacked
OUTSIDE = re.compile(r"(?:^|/)\.{0,2}(?:/|$)|[\\:\0]")  # in names on any system
CREDITS = """# Credits

Furniture from libraries of Sweet Home 3D, which models that were trained on it have
seen (train and val of docs/sweethome3d.md). No mesh is in this package. For training
each one was turned, scaled and mended, its hidden hollows were filled, and of
those of train copies were stretched.
"""
NOT_SQUARE = 1e-3  # of a rotation that is written with few digits


@dataclass(frozen=True)
class Piece:
    """A piece of furniture, as its library's catalogue has it."""

    name: str  # its id in an index
    title: str
    family: str  # the catalogue's category
    creator: str
    licence: str
    library: str
    archive: Path  # the .sh3f file
    model: str  # a member of it
    icon: str  # a member, its picture, or ""
    rotation: str  # "", or a matrix row by row, from the file's frame to the world's


def read_library(path: str | Path) -> list[Piece]:
    """List the pieces of a library; their models are not looked at.

    Args: path: of a .sh3f file. Returns: a Piece each, in the catalogue's order.
    Raises: FileNotFoundError: no such file. ValueError: it is no library.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a .sh3f library")
    try:
        with zipfile.ZipFile(path) as archive:
            values = _properties(_text(archive, CATALOGUE))
            terms = _text(archive, LICENCE) if LICENCE in archive.namelist() else ""
    except Exception as error:  # of damage zipfile raises anything
        wrong = f"{path} is no .sh3f library, or damaged: {one_line(error)}"
        raise ValueError(wrong) from error
    link = re.search(r"https?://creativecommons\.org/\S+", terms)
    terms = [values.get("license"), link and link[0]]
    values["license"] = ", ".join(filter(None, terms)) or "no licence named"
    numbers = [key[6:] for key in values if key.startswith("model#")]
    if not numbers:
        raise ValueError(f"{path}: its catalogue names no model")
    pieces = [_piece(path, values, number) for number in numbers]
    taken = set()
    for k, piece in enumerate(pieces):
        if piece.name.casefold() in taken:
            pieces[k] = piece = replace(piece, name=f"{piece.name}-{numbers[k]}")
        taken.add(piece.name.casefold())
    return pieces


def _piece(path, values, number):
    def own(key, default=""):
        return values.get(f"{key}#{number}") or default

    model = unquote(own("model")).lstrip("/")
    library, _, stem = own("id").rpartition("#")
    library, stem = library or path.stem, stem or PurePosixPath(model).stem
    creator = own("creator", "unknown")
    name = stem if creator == library else f"{creator}-{stem}"
    plain = [re.sub(r"[^\w.]+", "-", part).strip("-") for part in (library, name)]
    return Piece(
        safe_id("__".join(plain)),
        own("name", stem),
        own("category", "none"),
        creator,
        own("license", values["license"]),
        library,
        path,
        model,
        unquote(own("icon")).lstrip("/"),
        own("modelRotation"),
    )


def _text(archive, name):
    if archive.getinfo(name).file_size > MOST_TEXT:
        raise ValueError(f"{name} is too large")
    with archive.open(name) as file:  # in steps, no more than it says of itself
        return file.read(int(MOST_TEXT)).decode("latin-1")


def _properties(text):
    """The pairs of a Java properties file."""
    text = re.sub(r"\\\r?\n[ \t]*", "", text)
    lines = r"(?m)^[ \t]*([^#!\s=:][^\s=:]*)[ \t]*[=:]?[ \t]*(.*)$"
    escapes = r"\\(?:u([0-9a-fA-F]{4})|(.))"

    def plain(value):
        value = re.sub(escapes, lambda m: chr(int(m[1], 16)) if m[1] else m[2], value)
        return one_line(value)

    return {key: plain(value) for key, value in re.findall(lines, text)}


def unpack(piece: Piece, folder: str | Path) -> Path:
    """Unpack a piece's model, with what lies beside it in the library.

    A file that is there already stays as it is. A model that the catalogue turns is
    written turned, under a name of its own.

    Args: folder: for files, in which a folder stands for each library.
    Returns: the model's path.
    Raises: ValueError: the piece is damaged, too large, leads out of `folder` or cannot
        be written; the message names its library.
    """
    folder = Path(folder) / safe_id(piece.archive.stem)
    try:
        with zipfile.ZipFile(piece.archive) as archive:
            for info in _members(archive, piece.model):
                path = folder / info.filename
                if not (path.is_file() and zlib.crc32(path.read_bytes()) == info.CRC):
                    with archive.open(info) as packed:
                        # in steps: no more than the member says of itself
                        write_whole(path, lambda f, p=packed: shutil.copyfileobj(p, f))
        path = folder / piece.model
        if piece.rotation:
            data = _turned(path, _rotation(piece.rotation))
            mark = zlib.crc32(piece.rotation.encode())
            path = path.with_stem(f"{path.stem}-turned-{mark:08x}")
            if not (path.is_file() and path.read_bytes() == data):
                write_whole(path, lambda file: file.write(data))
    except Exception as error:  # of damage zipfile raises anything
        wrong = f"{piece.archive}: {piece.title} ({piece.name}): {one_line(error)}"
        raise ValueError(wrong) from error
    return path


def _members(archive, model):
    """What a model needs: its folder, or, of one at the top, what lies there."""
    infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    if model not in infos:
        raise ValueError(f"its model {model!r} is not in the library")
    parent = model.rpartition("/")[0]
    found = [
        info
        for name, info in infos.items()
        if (name.startswith(f"{parent}/") if parent else "/" not in name)
    ]
    for info in found:
        if OUTSIDE.search(info.filename):
            raise ValueError(f"{info.filename!r} leads out of the library")
    if sum(info.file_size for info in found) > MOST_FOLDER:
        raise ValueError(f"its files are larger than {MOST_FOLDER / 1e6:.0f} MB")
    return found


def _rotation(text):
    try:
        turn = np.array(text.split(), dtype=float).reshape(3, 3)
    except ValueError:
        turn = np.full((3, 3), np.nan)
    square = np.abs(turn @ turn.T - np.eye(3)).max() < NOT_SQUARE
    if not (square and np.linalg.det(turn) > 0):
        raise ValueError(f"modelRotation is no rotation: {text:.80}")
    return turn


def _turned(path, turn):
    """The bytes of an OBJ file with its vertices and normals turned."""
    if path.suffix.lower() != ".obj":
        raise ValueError(f"modelRotation is applied to OBJ alone, not to {path.name}")

    def line(match):
        turned = turn @ np.array(match[2].split(), dtype=float)
        return match[1] + " ".join(f"{x:.9g}" for x in turned).encode()

    data = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return re.sub(rb"(?m)^([ \t]*vn?[ \t]+)((?:\S+[ \t]+){2}\S+)", line, data)


def fixed_list() -> dict:
    """The fixed list: "train", "val" and "test" name pieces; "turns" degrees of yaw.

    Raises: FileNotFoundError: the package lacks it.
    """
    if not LIST.is_file():
        raise FileNotFoundError(f"{LIST} is missing: take it from the repository")
    return json.loads(LIST.read_text(encoding="utf-8"))


def listed_items(
    files: Iterable[str | Path], out: str | Path, split: str = "all"
) -> list[dict]:
    """Unpack what the fixed list takes of libraries; `prepare` takes the result.

    Args: files: .sh3f libraries. Of one that the list does not name, all pieces are
            taken. out: the models go into `meshes` in this folder.
        split: "train", "val", "test" or "all"; of a library that the list does not
            name, "all" is "train".
    Returns: a dict a piece, as rows of an index begin; one that cannot be unpacked has
        the reason in it.
    Raises: FileNotFoundError, ValueError: as `read_library`; two libraries of one name,
        two pieces of one name, or an unknown split.
    """
    return _unpacked(_listed(files, split), out)


def _listed(files, split):
    """What the fixed list takes of libraries: (piece, how its row begins)."""
    if split not in (*SPLITS, "all"):
        raise ValueError(f"split must be {', '.join(SPLITS)} or all, not {split!r}")
    files = [Path(path) for path in files]
    if len({path.stem.casefold() for path in files}) < len(files):
        raise ValueError("two libraries have one file name: rename or leave out one")
    fixed = fixed_list()
    known = {name: part for part in SPLITS for name in fixed[part]}
    named = [*known, *sum(fixed["left_out"].values(), [])]
    libraries = {name.partition("__")[0] for name in named}
    items, made = [], {}
    for piece in (piece for path in files for piece in read_library(path)):
        part = known.get(piece.name)
        if piece.name.partition("__")[0] not in libraries:
            part = "train" if split == "all" else split
        if part is None or split not in ("all", part):
            continue
        if (other := made.setdefault(piece.name, piece)) is not piece:
            both = f"{other.archive} and {piece.archive}"
            raise ValueError(f"{piece.name} is in {both}: leave out one")
        item = {"id": piece.name, "family": piece.family, "split": part, "up": "y"}
        item["yaw"] = float(fixed["turns"].get(piece.name, 0))
        item |= {name: getattr(piece, name) for name in CREDIT_COLUMNS}
        items.append((piece, item))
    if not items:
        raise ValueError(f"no piece of {', '.join(map(str, files))} is in {split!r}")
    return items


def _unpacked(listed, out):
    """How their rows begin, once the pieces' models lie in `meshes`."""
    items = []
    for piece, item in listed:
        try:
            source = {"source": str(unpack(piece, Path(out) / "meshes"))}
        except ValueError as error:
            source = {"source": "", "reason": str(error)}
        items.append(item | source)
    return items


def prepare_sweethome(
    files: Iterable[str | Path],
    out: str | Path,
    config: ExampleConfig | None = None,
    *,
    split: str = "all",
    copies: int = 0,
    **options,
) -> list[dict]:
    """Turn Sweet Home 3D's libraries into example files, by the fixed list.

    Args: files, split: see `listed_items`. out, config, options: see `prepare`.
        copies: of each piece to train on, stretched, see `dataset.stretched`.
    Returns: the rows of the index that belong to the pieces, with "title", "creator",
        "licence" and "library".
    Raises: as `listed_items` and `prepare`.
    """
    listed = _listed(files, split)

    def items():
        all_ = _unpacked(listed, out)
        return all_ + stretched([i for i in all_ if i["split"] == "train"], copies)

    return prepare(items, out, config, **options)


def credits_text(rows: Iterable[dict]) -> str:
    """A text in Markdown that names whose the pieces of an index are.

    Args: rows: of an index, or as `listed_items` gives them; those that have no creator
        are left out, and a piece and its copies are named once.
    """
    lines, groups = [CREDITS], {}
    for row in rows:
        if row.get("creator"):
            name = row["id"].rpartition("~")[0] if row.get("stretch") else row["id"]
            groups.setdefault((row["library"], row["licence"]), {})[name] = row
    for (library, licence), own in sorted(groups.items()):
        lines += [f"## {library}", "", f"{len(own)} pieces. Licence: {licence}.", ""]
        for name, row in sorted(own.items()):
            lines.append(f"- {row['title']}, by {row['creator']} (`{name}`)")
        lines.append("")
    return "\n".join(lines)
