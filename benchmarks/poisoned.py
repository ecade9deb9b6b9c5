"""A large preparation with bad sources in it, killed twice on the way.

    python benchmarks/poisoned.py

950 procedural shapes are written as mesh files, 50 poisoned ones among them: cut off,
empty, with NaN, hanging (closed bodies that all cross each other, whose union does not
end within its time) and huge (a file under 1 kB that asks for 24 GB or more). `prepare`
with two workers is ended with SIGKILL twice, the parent alone, so that its workers are
orphaned, and started again. In the end every good shape must be there once and whole,
and every bad one must have its reason; nothing that was finished may be made again.
"""

import json
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import common
import numpy as np
import trimesh

from d2im.data.dataset import read_example, read_index
from d2im.data.shapes import make_shape

FAMILIES = ("chair", "table", "cabinet", "sofa")
POINTS, TIMEOUT, MEMORY_GB = 2000, 60, 2
PREPARE = """
from d2im.data.dataset import prepare
prepare({meshes!r}, {out!r}, count={points}, views=1, size=32, workers=2,
        timeout={timeout}, memory_gb={memory}, progress=False)
"""


def write_corrupt(path, rng):
    whole = trimesh.creation.icosphere().export(file_type="ply")
    path.with_suffix(".ply").write_bytes(whole[: rng.integers(20, len(whole) // 2)])


def write_empty(path, rng):
    path.with_suffix(str(rng.choice([".stl", ".obj", ".glb", ".ply"]))).write_bytes(b"")


def write_nan(path, rng):
    mesh = trimesh.creation.icosphere(subdivisions=2)
    mesh.vertices[rng.integers(len(mesh.vertices))] = np.nan
    path.with_suffix(".obj").write_text(mesh.export(file_type="obj"), encoding="utf-8")


def write_hanging(path, rng):
    """Tetrahedra that span the whole: each crosses most of the others."""
    corners = rng.normal(size=(4000, 4, 3))
    corners[np.linalg.det(corners[:, 1:] - corners[:, :1]) < 0, :2] *= -1
    faces = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])
    faces = (np.arange(len(corners))[:, None, None] * 4 + faces).reshape(-1, 3)
    soup = trimesh.Trimesh(corners.reshape(-1, 3), faces, process=False)
    path.with_suffix(".ply").write_bytes(soup.export(file_type="ply"))


def write_huge(path, rng):
    """A GLB whose accessors have no data, which stands for zeros, and a vast count."""
    count = int(rng.integers(2e9, 4e9))
    accessor = {"componentType": 5126, "count": count, "type": "VEC3"}
    tree = {
        "asset": {"version": "2.0"},
        "buffers": [],
        "bufferViews": [],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [accessor],
    }
    text = json.dumps(tree).encode()
    text += b" " * (-len(text) % 4)
    header = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text), len(text), 0x4E4F534A)
    path.with_suffix(".glb").write_bytes(header + text)


POISONS = {
    "corrupt": write_corrupt,
    "empty": write_empty,
    "nan": write_nan,
    "hanging": write_hanging,
    "huge": write_huge,
}


def write_sources(folder, good, each):
    """Write the sources, in mixed order by name; return the ids of both kinds."""
    kinds = ["good"] * good + [kind for kind in POISONS for _ in range(each)]
    order = np.random.default_rng(0).permutation(len(kinds))
    names = {"good": [], "bad": []}
    for place, k in enumerate(order):
        rng, name = np.random.default_rng(int(k)), f"{place:04d}_{kinds[k]}"
        if kinds[k] == "good":
            mesh = make_shape(FAMILIES[k % 4], int(k) // 4).detailed
            mesh.export(folder / f"{name}.ply")
        else:
            POISONS[kinds[k]](folder / name, rng)
        names["good" if kinds[k] == "good" else "bad"].append(name)
    return names["good"], names["bad"]


def run_until(command, out, enough, stamps):
    """Run until `out` holds enough examples, then kill the parent; check what stays."""
    run = subprocess.Popen(command)
    while run.poll() is None and len(stamps) < enough:
        time.sleep(0.2)
        found = {path.name: path.stat().st_mtime_ns for path in out.glob("*.npz")}
        again = [name for name, stamp in stamps.items() if found.get(name) != stamp]
        assert not again, f"lost or made again: {again}"
        stamps.update(found)
    if run.poll() is None:
        run.kill()  # SIGKILL
    run.wait()
    print(f"  ended with code {run.returncode} at {len(stamps)} examples", flush=True)


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--good", type=int, default=950)
    parser.add_argument("--each", type=int, default=10, help="sources of each poison")
    options = common.opening(parser)
    with tempfile.TemporaryDirectory() as folder:
        meshes, out = Path(folder) / "meshes", Path(folder) / "out"
        meshes.mkdir()
        good, bad = write_sources(meshes, options.good, options.each)
        size = sum(path.stat().st_size for path in meshes.iterdir()) / 1e6
        print(f"{len(good)} good and {len(bad)} poisoned sources, {size:.0f} MB")
        script = PREPARE.format(
            meshes=str(meshes),
            out=str(out),
            points=POINTS,
            timeout=TIMEOUT,
            memory=MEMORY_GB,
        )
        start, stamps = time.monotonic(), {}
        for enough in (len(good) // 3, 2 * len(good) // 3, len(good) + 1):
            run_until([sys.executable, "-c", script], out, enough, stamps)
        print(f"{time.monotonic() - start:.0f} s with two workers")

        rows = read_index(out)
        assert sorted(row["id"] for row in rows) == sorted(good + bad)
        failed = {row["id"]: row["reason"] for row in rows if row["status"] != "ok"}
        missing = {name: failed[name] for name in good if name in failed}
        assert not missing, f"good shapes failed: {missing}"
        files = sorted(path.stem for path in out.glob("*.npz"))
        assert files == sorted(good), "a good shape is missing, or a bad one is there"
        for name in good:
            example = read_example(out / f"{name}.npz")
            assert len(example["sdf"]) == POINTS and np.isfinite(example["sdf"]).all()
        assert sorted(failed) == sorted(bad) and all(failed.values())
        assert not list(out.glob(".*")), "temporary files are left"
        print(f"all {len(good)} good shapes are there once and whole; reasons:")
        told = Counter()
        for name, reason in sorted(failed.items()):
            reason = reason.replace(f"{meshes}/{name}", "")
            told[name[5:], reason[:70]] += 1
        for (kind, reason), times in sorted(told.items()):
            print(f"  {times:3} {kind:8} {reason}")


if __name__ == "__main__":
    main()
