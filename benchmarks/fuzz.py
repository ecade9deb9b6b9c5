"""Damaged copies of all files that d2im reads: a result, or a line naming the file.

    python benchmarks/fuzz.py --count 3000 --seed 1

Each case copies a small valid folder, damages one file of it and reads it as d2im does,
in a worker that has 20 s and 2 GB. Damage is drawn from the seed, the kind of file and
the case's number alone, so that `--only KIND NUMBER` repeats a case. Wrong is

    escape     an error that is neither ValueError nor OSError
    unnamed    one that names no file of the folder, or has several lines
    unnoticed  bytes of an example or of weights are others, and so is what was read
    hang, crash, memory

and the script ends with code 1 where anything was. References out of a mesh's folder
are tested elsewhere.
"""

import builtins
import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections import Counter, defaultdict
from importlib.util import find_spec
from pathlib import Path

import common
import nbformat
import numpy as np
import torch
import trimesh
from PIL import Image

from d2im.camera import Camera
from d2im.data.dataset import ShapeDataset, prepare, read_example
from d2im.data.isolation import close_idle, run_isolated
from d2im.data.mesh import load_mesh
from d2im.data.readers import read_disn, read_occnet, write_set
from d2im.networks import D2IMNet, ImageModel
from d2im.show import pages, run
from d2im.training.checkpoints import (
    checkpoint_folder,
    load_checkpoint,
    save_checkpoint,
)
from d2im.use.pictures import load_image
from d2im.use.released import load_imagenet_weights

TIMEOUT, MEMORY_GB = 20, 2
WRONG = ("escape", "unnamed", "unnoticed", "hang", "crash", "memory")
TINY = dict(
    image_size=32,
    encoder_widths=(4, 4, 8, 8, 8),
    encoder_blocks=(1, 1, 1, 1),
    hidden_size=16,
    code_size=8,
    decoder_widths=(16, 8),
    displacement_channels=4,
)
SETTINGS = {"steps": 3, "points": 64}
PAIRS = [("stool", 0), ("stool", 1)]
SMALL = dict(count=300, views=2, size=32, timeout=None, progress=False)
DECLARED = {"rate": 0.1, "steps": 20, "names": ["a", "b"], "title": "x"}
STAMP = dict(date="today", device="cpu", python="3", versions={}, commit="")


# What is read: a valid folder of each kind, and how d2im reads it.


def digest(arrays):
    """A number of named arrays or tensors."""
    total = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        total = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), total)
        total = zlib.crc32(array, total)
    return total


def mesh_kind(name, **options):
    def make(folder):
        parts = [trimesh.creation.box((1, 2, k)) for k in (1, 2)]
        for k, part in enumerate(parts):
            part.apply_translation([3 * k, 0, 0])
            part.visual.face_colors = [200, 100 * k, 50, 255]
        whole = trimesh.util.concatenate(parts)
        if name in ("mesh.obj", "mesh.glb", "mesh.gltf"):
            picture = Image.fromarray(np.full((4, 4, 3), 90, np.uint8))
            uv = whole.vertices[:, :2] / 9
            whole.visual = trimesh.visual.TextureVisuals(uv=uv, image=picture)
        made = trimesh.Scene([whole]) if name == "mesh.gltf" else whole
        kind = options.get("kind", name[5:])
        inner = {k: v for k, v in options.items() if k != "kind"}
        with contextlib.chdir(folder):
            made.export(name, file_type=kind, **inner)

    return make, lambda folder: load_mesh(folder / name)


def make_mesh(folder):
    trimesh.creation.box().export(folder / "box.stl")


def read_victim(folder):
    load_mesh(folder / (folder.parent / "victim").read_text(encoding="utf-8"))


def picture_kind(name, mode="RGBA", **options):
    def make(folder):
        pixels = np.full((64, 64, 4), 255, np.uint8)
        pixels[20:50, 15:45] = 40, 90, 160, 255
        pixels[..., 3] = np.where(pixels[..., 0] < 99, 255, 0)
        Image.fromarray(pixels).convert(mode).save(folder / name, **options)

    def read(folder):
        try:
            load_image(folder / name, 32)
        except ValueError as error:  # of what it shows, where it can be read
            raise ValueError(f"{name}: {error}") from error

    return make, read


def make_data(folder):
    prepare(PAIRS, folder, **SMALL)


def read_data(folder):
    data = ShapeDataset(folder, points=32)
    for index in range(len(data)):
        data[index]
    data.fingerprint()
    prepare(PAIRS, folder, **SMALL)


def read_members(folder):
    read_example(folder / "stool-000000.npz")
    data = ShapeDataset(folder, points=32)
    data[0]
    return digest(data.example(0))


def read_rescued(folder):
    (folder / "index.csv").unlink()
    rows = prepare(PAIRS, folder, **SMALL)
    assert all(row["status"] == "ok" or row["reason"] for row in rows)


def tiny_model():
    torch.manual_seed(0)
    return D2IMNet(**TINY)


def make_model(folder):
    tiny_model().save_pretrained(folder)


def read_model(folder):
    return digest(ImageModel.from_pretrained(folder).state_dict())


def make_checkpoint(folder):
    model = tiny_model()
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(SETTINGS["steps"]):
        sum(p.square().sum() for p in model.parameters()).backward()
        optimizer.step()
    best = tiny_model().state_dict()
    records = [{"step": k, "loss": 1 / k, "validation": k} for k in (1, 2, 3)]
    save_checkpoint(folder, model, best, optimizer, records, SETTINGS)


def read_checkpoint(folder):
    model = tiny_model()
    optimizer = torch.optim.Adam(model.parameters())
    with checkpoint_folder(folder):
        _, best = load_checkpoint(folder, model, optimizer, SETTINGS)
    ImageModel.from_pretrained(folder)
    return digest(model.state_dict()), digest(best or {})


def make_released(folder):
    torch.save(tiny_model().image_encoder.state_dict(), folder / "weights.pth")


def read_released(folder):
    load_imagenet_weights(tiny_model(), folder / "weights.pth")


def ball(count):
    """Points around a ball of radius 0.3 and on it, and its picture's mask, 32 px."""
    points = np.random.default_rng(0).normal(size=(count, 3))
    surface = 0.3 * points / np.linalg.norm(points, axis=1, keepdims=True)
    side = np.arange(32) - 15.5
    mask = side**2 + side[:, None] ** 2 < (0.3 * 35 / 1.75) ** 2
    return 0.25 * points, surface, (mask * 255).astype(np.uint8)


def make_disn(folder):
    import h5py

    points, _, mask = ball(400)
    place = Path("cat", "shape", "easy")
    for name in (Path("sdf/cat/shape"), Path("lists"), "image" / place):
        (folder / name).mkdir(parents=True)
    shutil.copytree(folder / "image", folder / "normal")
    (folder / "lists/cat_train.lst").write_text("shape\n", encoding="utf-8")
    sdf = np.linalg.norm(points, axis=1, keepdims=True) - 0.3
    with h5py.File(folder / "sdf/cat/shape/ori_sample.h5", "w") as file:
        samples = np.hstack([points, sdf]).astype("f4")
        file.create_dataset("pc_sdf_sample", data=samples, compression="gzip")
        file.create_dataset("norm_params", data=[0, 0, 0, 1.0])
    for name in ("image", "normal"):
        picture = Image.fromarray(np.dstack([mask] * 4))
        picture.save(folder / name / place / "00.png")
    line = "[30, 20, 0, 1.0, 35, 32, 1.75, 0, 0, 0], \n"
    (folder / "image" / place / "rendering_metadata.txt").write_text(
        line, encoding="utf-8"
    )


def read_readings(folder, readings):
    rows = write_set(readings, folder / "out", "train")
    for row in rows:
        if row["status"] == "failed":
            kind, _, text = row["reason"].partition(": ")
            known = issubclass(getattr(builtins, kind), OSError | ValueError)
            raise (ValueError if known else RuntimeError)(text)


def read_disn_folder(folder):
    read_readings(folder, read_disn(folder, "cat", "train", views=1))


def make_occnet(folder):
    points, surface, mask = ball(400)
    shape = folder / "cat" / "shape"
    (shape / "img_choy2016").mkdir(parents=True)
    rendering = folder / "choy/cat/shape/rendering"
    rendering.mkdir(parents=True)
    (folder / "cat/train.lst").write_text("shape\n", encoding="utf-8")
    frame = {"loc": np.zeros(3), "scale": np.float64(1)}
    inside = np.packbits(np.linalg.norm(points, axis=1) < 0.3)
    points = points.astype("f2")
    np.savez(shape / "points.npz", points=points, occupancies=inside, **frame)
    normals = (surface / 0.3).astype("f2")
    surface = surface.astype("f2")
    np.savez_compressed(shape / "pointcloud.npz", points=surface, normals=normals)
    picture = Image.fromarray(np.dstack([mask] * 4))
    picture.save(rendering / "00.png")
    grey = Image.fromarray(np.dstack([255 - mask // 2] * 3))
    grey.save(shape / "img_choy2016/000.jpg")
    camera = Camera(30, 20, 1, 32)
    world = np.column_stack([camera.rotation, camera.translation])
    lens = np.array([[35, 0, 16], [0, 35, 16], [0, 0, 1.0]])
    cameras = {"world_mat_0": world, "camera_mat_0": lens}
    np.savez(shape / "img_choy2016/cameras.npz", **cameras)
    (rendering / "rendering_metadata.txt").write_text(
        "30 20 0 1.0 25\n", encoding="utf-8"
    )


def read_occnet_folder(folder):
    read_readings(folder, read_occnet(folder, "cat", "train", views=1))


def read_choy_folder(folder):
    choy = folder / "choy"
    read_readings(folder, read_occnet(folder, "cat", "train", views=1, choy=choy))


def make_notebook(folder):
    cells = [nbformat.v4.new_markdown_cell("# A title")]
    code = "rate = 0.1  # a rate\nsteps = 20\nnames = ['a', 'b']"
    tags = {"tags": ["parameters"]}
    cells.append(nbformat.v4.new_code_cell(code, metadata=tags))
    cells.append(nbformat.v4.new_code_cell("print(rate)"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "01_a.ipynb")


def read_notebook(folder):
    assigned(run.declared_parameters(folder / "01_a.ipynb"), {"rate": "0.5"})


def make_params(folder):
    text = "rate: 0.5\nsteps: &n 30\n03_use:\n  names: [c, d]\n  title: &t z # é\n"
    (folder / "params.yaml").write_text(text, encoding="utf-8")


def read_params(folder):
    assigned(DECLARED, run.read_params(folder / "params.yaml"))


def assigned(declared, params):
    """Of a wrong value the notebook and the parameter are named, not the file."""
    try:
        json.dumps(run.assign({"03_use": declared}, [params]))
    except (ValueError, FileNotFoundError) as error:
        raise ValueError(f"params.yaml 01_a.ipynb: {error}") from error


def make_run(folder):
    outputs = {"data": "data/x", "summary": {"iou": 0.5, "no": None}, "note": "Well."}
    outputs["figures"] = [{"file": "a.png", "caption": "A <dot>"}]
    entry = {"notebook": "03_use", "title": "Use", "seconds": 1.5, "error": ""}
    entry |= {"parameters": {"rate": 0.2}, "defaults": {"rate": 0.1}, "status": "ok"}
    (folder / "run.json").write_text(
        json.dumps({"notebooks": [entry | {"outputs": outputs}]}), encoding="utf-8"
    )
    (folder / "03_use").mkdir()
    (folder / "03_use/outputs.json").write_text(json.dumps(outputs), encoding="utf-8")
    Image.new("RGB", (4, 4)).save(folder / "03_use/a.png")
    (folder / "03_use/metrics.csv").write_text(
        "shape,iou\nchair,0.5\n'é',1e3\n", encoding="utf-8"
    )
    table = "| a | b |\n|---|---|\n| $x^2$ | [c](http://a.b) |\n\n### more\n\n1\n"
    (folder / "03_use/table.md").write_text(table, encoding="utf-8")


def read_run(folder):
    entries = run._record(folder)
    made, wrong = run._outputs(folder / "03_use/outputs.json")
    assert made or wrong
    if made and entries:
        entries[0]["outputs"] = made
    pages.write_page(folder, notebooks=entries, **STAMP)


# kind: make, read, which files are damaged, and whether others must be noticed
KINDS = {
    "glb": (*mesh_kind("mesh.glb"), "*", False),
    "gltf": (*mesh_kind("mesh.gltf"), "*", False),
    "obj": (*mesh_kind("mesh.obj"), "*", False),
    "ply": (*mesh_kind("mesh.ply"), "*", False),
    "ply text": (*mesh_kind("mesh.ply", encoding="ascii"), "*", False),
    "stl": (*mesh_kind("mesh.stl"), "*", False),
    "stl text": (*mesh_kind("mesh.stl", kind="stl_ascii"), "*", False),
    "off": (*mesh_kind("mesh.off"), "*", False),
    "meshes": (make_mesh, read_victim, "*", False),  # or a user's, see --meshes
    "png": (*picture_kind("picture.png"), "*", False),
    "png, palette": (*picture_kind("picture.png", "P"), "*", False),
    "jpeg": (*picture_kind("picture.jpg", "RGB"), "*", False),
    "webp": (*picture_kind("picture.webp"), "*", False),
    "gif": (*picture_kind("picture.gif"), "*", False),
    "bmp": (*picture_kind("picture.bmp", "RGB"), "*", False),
    "tiff": (*picture_kind("picture.tif", compression="tiff_lzw"), "*", False),
    "example": (make_data, read_members, "*0.npz", True),
    "example without index": (make_data, read_rescued, "*.npz", False),
    "index and settings": (make_data, read_data, "*.*[vn]", False),
    "model": (make_model, read_model, "[cm]*", True),
    "checkpoint": (make_checkpoint, read_checkpoint, "*", True),
    "weights of others": (make_released, read_released, "*", False),
    "DISN": (make_disn, read_disn_folder, "*", False),
    "Occupancy Networks": (make_occnet, read_occnet_folder, "cat", False),
    "Choy's views": (make_occnet, read_choy_folder, "*", False),
    "notebook": (make_notebook, read_notebook, "*", False),
    "parameters": (make_params, read_params, "*", False),
    "run": (make_run, read_run, "*", False),
}
if not find_spec("h5py"):
    del KINDS["DISN"]


# Damage: functions of a file's bytes, or of its path, and a generator.

EXTREMES = [0, -1, 1, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, 10**30]
WORDS = [
    b"nan",
    b"inf",
    b"-1",
    b"0",
    b"1e309",
    b"1e-320",
    b"",
    b"9" * 5000,
    b"\xff\xfe",
]
WORDS += [str(number).encode() for number in EXTREMES]
VALUES = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    "../x",
    "\ud800",
    [],
    {},
    [[]],
    "9" * 5000,
]


def flip(data, rng):
    """Some bits."""
    data = bytearray(data)
    for place in rng.integers(len(data), size=rng.choice([1, 1, 2, 8])):
        data[place] ^= 1 << rng.integers(8)
    return bytes(data)


def cut(data, rng):
    """The end missing."""
    return data[: rng.integers(len(data))]


def splice(data, rng):
    """A piece of itself over or within it, or a piece missing."""
    start, length, place = rng.integers(len(data), size=3)
    length = int(length) % 64 + 1 if rng.random() < 0.7 else int(length)
    piece = data[start : start + length] if rng.random() < 0.7 else b""
    return data[:place] + piece + data[place + (length if rng.random() < 0.6 else 0) :]


def count(data, rng):
    """An extreme number where headers have theirs: near the start or the end."""
    width = int(rng.choice([1, 2, 4, 8]))
    number = EXTREMES[rng.integers(len(EXTREMES))] % 256**width
    place = int(rng.integers(min(len(data), 400)))
    place = place if rng.random() < 0.6 else max(0, len(data) - place - width)
    order = "little" if rng.random() < 0.7 else "big"
    return data[:place] + number.to_bytes(width, order) + data[place + width :]


def swap(data, rng):
    """Numbers or words of a text for extreme or odd ones."""
    pattern = rb"-?\d[\d.e+-]*" if rng.random() < 0.6 else rb"\w+"
    found = list(re.finditer(pattern, data[:100_000]))
    for _ in range(rng.integers(1, 4)):
        if found:
            hit = found.pop(int(rng.integers(len(found))))
            found = [one for one in found if one.end() <= hit.start()]
            word = WORDS[rng.integers(len(WORDS))]
            data = data[: hit.start()] + word + data[hit.end() :]
    return data


def lines(data, rng):
    """A line missing, twice, or thousands of times."""
    rows = data.split(b"\n")
    place = int(rng.integers(len(rows)))
    rows[place : place + 1] = [rows[place]] * int(rng.choice([0, 2, 2, 5000]))
    return b"\n".join(rows)


def deep(data, rng):
    """Brackets without end somewhere."""
    place = int(rng.integers(len(data) + 1))
    return data[:place] + rng.choice([b"[", b"{", b"("]) * 100_000 + data[place:]


def nodes(tree, path=()):
    """The paths of all parts of a JSON tree."""
    yield path
    inner = tree.items() if isinstance(tree, dict) else ()
    inner = enumerate(tree) if isinstance(tree, list) else inner
    for key, value in inner:
        yield from nodes(value, (*path, key))


def changed(tree, rng):
    """A JSON tree with a part gone, renamed or of another kind."""
    known = [path for path in nodes(tree) if path]
    if not known:
        return None
    *path, last = known[rng.integers(len(known))]
    holder = tree
    for key in path:
        holder = holder[key]
    choice = rng.random()
    if choice < 0.25:
        del holder[last]
    elif choice < 0.4 and isinstance(holder, dict):
        holder[f"{last}x"] = holder.pop(last)
    else:
        holder[last] = VALUES[rng.integers(len(VALUES))]
    return tree


def change_json(path, rng):
    """A part of its tree another one."""
    path.write_text(
        json.dumps(changed(json.loads(path.read_text(encoding="utf-8")), rng)),
        encoding="utf-8",
    )


def change_header(path, rng):
    """The same in the JSON that begins a file of weights or a GLB."""
    data, start = path.read_bytes(), 8 if path.suffix == ".safetensors" else 20
    width = 8 if start == 8 else 4
    size = int.from_bytes(data[12 * (start > 8) :][:width], "little")
    text = json.dumps(changed(json.loads(data[start:][:size]), rng)).encode()
    text += b" " * (-len(text) % 8)
    if start == 8:
        head = len(text).to_bytes(8, "little")
    else:
        whole = len(data) - size + len(text)
        head = data[:8] + whole.to_bytes(4, "little") + len(text).to_bytes(4, "little")
        head += data[16:20]
    path.write_bytes(head + text + data[start + size :])


def odd_array(array, rng):
    """An array of another shape, type or content."""
    kinds = [
        lambda: array[: len(array) // 2] if array.ndim else array[None],
        lambda: array.reshape(-1)[:0],
        lambda: np.repeat(array[None], 2, 0),
        lambda: array.astype("f8") * np.nan,
        lambda: array.astype("f4") * np.inf,
        lambda: array.astype("f8") * 1e300,
        lambda: -array.astype("f4"),
        lambda: array * 0,
        lambda: np.array(["a"]),
        lambda: array.astype(complex),
        lambda: np.array([{}], dtype=object),
    ]
    with np.errstate(all="ignore"), contextlib.suppress(TypeError, ValueError):
        return kinds[rng.integers(len(kinds))]()
    return array  # of texts, some are not


def change_members(path, rng):
    """Members of an archive gone, renamed, packed, or of other arrays or headers."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = list(members)[rng.integers(len(members))]
    choice, packed = rng.random(), zipfile.ZIP_STORED
    if choice < 0.15:
        del members[name]
    elif choice < 0.25:
        members[f"x{name}"] = members.pop(name)
    elif choice < 0.35:
        packed = zipfile.ZIP_DEFLATED
    elif choice < 0.6 or not name.endswith(".npy"):
        head = swap(members[name][:128], rng)  # its own checksum will be right
        members[name] = head + members[name][128:]
    else:
        file = io.BytesIO()
        array = np.load(io.BytesIO(members[name]), allow_pickle=True)
        np.save(file, odd_array(array, rng), allow_pickle=True)
        members[name] = file.getvalue()
    with zipfile.ZipFile(path, "w", packed) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def change_datasets(path, rng):
    """A data set of an HDF5 file gone or another one."""
    import h5py

    with h5py.File(path, "r+") as file:
        name = sorted(file)[rng.integers(len(file))]
        array = file[name][:]
        del file[name]
        if rng.random() < 0.8:
            with contextlib.suppress(TypeError):  # it takes no objects
                file[name] = odd_array(array, rng)


def lose(path, rng):
    """The file missing, empty, or a folder."""
    path.unlink()
    if rng.random() < 0.3:
        path.mkdir()
    elif rng.random() < 0.5:
        path.touch()


def exchange(path, rng):
    """Another file of the folder in its place."""
    others = sorted(p for p in path.parent.iterdir() if p.is_file())
    path.write_bytes(others[rng.integers(len(others))].read_bytes())


ANY = [flip, flip, cut, splice, count, count, swap, swap, lines, deep, lose, exchange]
NOTICED = flip, cut, splice, count  # where a checksum tells
OWN = {
    **dict.fromkeys((".json", ".ipynb", ".gltf"), change_json),
    **dict.fromkeys((".safetensors", ".glb"), change_header),
    **dict.fromkeys((".npz", ".pth"), change_members),
    ".h5": change_datasets,
}


def damage(path, rng):
    """Damage a file; return which function did it."""
    own = OWN.get(path.suffix)
    how = own if own and rng.random() < 0.3 else ANY[rng.integers(len(ANY))]
    if how in (own, lose, exchange):
        how(path, rng)
    else:
        path.write_bytes(how(path.read_bytes(), rng))
    return how


# Cases


def make_all(folder):
    """Write a valid folder of each kind and read it; return {kind: folder}."""
    sources = {}
    for number, (kind, (make, *_)) in enumerate(KINDS.items()):
        sources[kind] = folder / f"source-{number}"
        sources[kind].mkdir()
        make(sources[kind])
    return sources


def attempt(kind, number, seed, source, place):
    """Damage a copy of a folder and read it.

    Args: kind, number, seed: what the damage is a function of; number None: of none.
        source: a valid folder.
        place: a folder for the copy. Returns: verdict, what was said, how it was
        damaged, the peak of memory in GB.
    """
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # decoders in C say much
    _, read, pattern, sealed = KINDS[kind]
    seeds = [seed, zlib.crc32(kind.encode()), number or 0]
    rng = np.random.default_rng(seeds)
    folder = Path(tempfile.mkdtemp(dir=place)) / "folder"
    shutil.copytree(source, folder)
    try:
        found = [p for top in folder.glob(pattern) for p in (top, *top.rglob("*"))]
        files = sorted({path for path in found if path.is_file()})
        names = {p.name for p in files} | {str(folder)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            whole = read(folder) if sealed else None
            victim = files[rng.integers(len(files))]
            (folder.parent / "victim").write_text(
                str(victim.relative_to(folder)), encoding="utf-8"
            )
            how = damage(victim, rng) if number is not None else ""
            label = f"{getattr(how, '__name__', '')} {victim.relative_to(folder)}"
            reset_peak()
            verdict, said = judged(read, folder, names)
        if verdict == "read" and sealed and how in NOTICED and said != whole:
            verdict = "unnoticed"
        return verdict, str(said), label, peak_gb()
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def judged(read, folder, names):
    try:
        return "read", read(folder)
    except MemoryError as error:
        return "memory", error
    except (ValueError, OSError) as error:
        text = str(error)
        named = any(name in text for name in names) and len(text.splitlines()) == 1
        return ("refused" if named else "unnamed"), f"{type(error).__name__}: {text}"
    except Exception as error:
        return "escape", f"{type(error).__name__}: {error}"


def reset_peak():
    with contextlib.suppress(OSError):  # Linux alone has it
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_gb():
    with contextlib.suppress(OSError):
        text = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) / 1e6
    return float("nan")


def tried(kind, number, seed, source, place):
    """The same in a worker, whose end is a verdict as well."""
    given = kind, number, seed, str(source), str(place)
    limits = {"timeout": TIMEOUT, "memory_gb": MEMORY_GB}
    try:
        return run_isolated(attempt, *given, **limits)
    except RuntimeError as error:
        text = str(error)
        kinds = {"took longer": "hang", "MemoryError": "memory"}
        verdict = next((v for k, v in kinds.items() if k in text), "crash")
        return verdict, text, "", float("nan")


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--count", type=int, default=1000, help="files in all (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="one kind alone")
    about = "small mesh files to damage, and nothing else"
    parser.add_argument("--meshes", type=Path, metavar="FOLDER", help=about)
    parser.add_argument("--number", type=int, help="one case of it alone")
    options = common.opening(parser)
    kinds = [options.kind] if options.kind else list(KINDS)
    kinds = ["meshes"] if options.meshes else kinds
    numbers = range(-(-options.count // len(kinds)))
    numbers = numbers if options.number is None else [options.number]
    verdicts, seconds, peaks = defaultdict(Counter), Counter(), Counter()
    with tempfile.TemporaryDirectory() as place:
        sources = make_all(Path(place))
        if options.meshes:
            shutil.copytree(options.meshes, sources["meshes"], dirs_exist_ok=True)
        for number in numbers:
            for kind in kinds:
                start = time.perf_counter()
                given = kind, number, options.seed, sources[kind], place
                verdict, said, label, peak = tried(*given)
                seconds[kind] = max(seconds[kind], time.perf_counter() - start)
                peaks[kind] = max(peaks[kind], peak)
                verdicts[kind][verdict] += 1
                if verdict in WRONG or options.number is not None:
                    print(f"{verdict}: {kind} {number} ({label}): {said[:300]!r}")
        close_idle()
    print(f"{'':24}  read refused wrong  slowest  memory")
    for kind, found in verdicts.items():
        wrong = sum(found[name] for name in WRONG)
        line = f"{found['read']:6}{found['refused']:8}{wrong:6}"
        print(f"{kind:24}{line}{seconds[kind]:7.1f} s{peaks[kind]:5.2f} GB")
    total = sum(verdicts.values(), Counter())
    print(f"{total.total()} files: " + ", ".join(f"{n} {v}" for v, n in total.items()))
    sys.exit(any(total[name] for name in WRONG))


if __name__ == "__main__":
    import fuzz  # by its name, which the workers import

    fuzz.main()
