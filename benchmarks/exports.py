"""What a validator of glTF and a slicer say of the exported files.

    npm install --prefix FOLDER gltf-validator
    python benchmarks/exports.py --validator FOLDER --slicer prusa-slicer

A picture's mesh and a refined body of each family are written as GLB in every way that
there is (which mesh, colours, fewer faces, a size in mm), and with a size as STL and
3MF. Node runs Khronos' validator; PrusaSlicer says with --info whether a file is
manifold, of how many parts, and where it lies. Either may be left out.
"""

import common

# ruff: isort: split
import json
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from d2im.camera import Camera
from d2im.data.rendering import render
from d2im.data.shapes import FAMILIES, make_shape
from d2im.networks import D2IMNet
from d2im.use.reconstruction import MODEL, reconstruct
from d2im.use.refinement import refine

SEED, SIZE = 10_103, 80.0  # of the shapes; mm
DEFAULT = ("chair", "cabinet", "vase", "lamp", "guitar", "bookshelf")
SEEN = (
    {},
    {"color": "none"},
    {"keep": "all"},
    {"which": "base"},
    {"which": "colored"},
    {"size_mm": SIZE},
    {"faces": 2000},
    {"faces": 300, "color": "none"},
    {"faces": 300, "color": "none", "which": "base"},
)
PRINTED = ({}, {"which": "base"}, {"faces": 2000})
VALIDATE = """
const fs = require('fs'), path = require('path')
const [home, folder] = process.argv.slice(1)
const validator = require(path.join(home, 'node_modules', 'gltf-validator'))
const names = fs.readdirSync(folder).filter(name => name.endsWith('.glb'))
Promise.all(names.map(async name => {
  const bytes = new Uint8Array(fs.readFileSync(path.join(folder, name)))
  const issues = (await validator.validateBytes(bytes, { uri: name })).issues
  return [name, issues.messages.map(m => [m.severity, m.code])]
})).then(found => console.log(JSON.stringify([validator.version(), found])))
"""
SEVERITIES = ("error", "warning", "information", "hint")


def main():
    parser = common.arguments(__doc__)
    about = "folder in which gltf-validator is installed"
    parser.add_argument("--validator", metavar="FOLDER", help=about)
    parser.add_argument("--slicer", metavar="COMMAND", help="PrusaSlicer")
    parser.add_argument("--families", nargs="+", default=DEFAULT, choices=FAMILIES)
    parser.add_argument("--model", default=str(MODEL), help="folder")
    options = common.opening(parser)
    model = D2IMNet.from_pretrained(options.model).eval()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for family in options.families:
            write(model, family, folder)
            print(f"{family}: written", flush=True)
        if options.validator:
            validate(options.validator, folder)
        if options.slicer:
            slicer(options.slicer, folder)


def write(model, family, folder):
    """All files of a family."""
    shape, camera = make_shape(family, SEED), Camera(30, 20, 0.9, model.image_size)
    image = render(shape.detailed, camera, np.random.default_rng(0)).image
    body = shape.coarse.copy().apply_scale(800).apply_translation((100, 20, 3))
    made = {"picture": reconstruct(model, image, camera)}
    made["body"] = refine(model, body, image, camera)
    for name, found in made.items():
        for k, way in enumerate(SEEN):
            found.export(folder / f"{family}-{name}-{k}.glb", **way)
        for k, way in enumerate(PRINTED):
            for kind in ("stl", "3mf"):
                path = folder / f"{family}-{name}-{k}.{kind}"
                found.export(path, size_mm=SIZE, **way)


def validate(home, folder):
    """Print how many GLB files have errors, and what is noticed at all."""
    command = ["node", "-e", VALIDATE, str(Path(home).resolve()), str(folder)]
    version, found = json.loads(output(command))
    for k, severity in enumerate(SEVERITIES):
        files = [name for name, issues in found if k in {s for s, _ in issues}]
        codes = Counter(code for _, issues in found for s, code in issues if s == k)
        told = f"{severity} in {len(files)} of {len(found)} files"
        print(f"glTF validator {version}: {told}", dict(codes), files[:3])


def slicer(command, folder):
    """Print how many STL and 3MF files are manifold, one part, and where they lie."""
    version = re.search(r"PrusaSlicer-[\d.]+", output([command, "--help"]))[0]
    for kind in ("stl", "3mf"):
        rows = []
        for path in sorted(folder.glob(f"*.{kind}")):
            text = output([command, "--info", str(path)])
            about = dict(re.findall(r"(\w+) = +(\S+)", text))
            low, high = (
                np.array([float(about[f"{end}_{axis}"]) for axis in "xyz"])
                for end in ("min", "max")
            )
            off = [high[:2] + low[:2], low[2], (high - low).max() - SIZE]
            off = np.abs(np.hstack(off)).max()
            parts = int(about["number_of_parts"])
            rows.append((about["manifold"] == "yes", parts == 1, off))
            if not all(rows[-1][:2]):
                print(f"{path.name}: manifold {about['manifold']}, {parts} parts")
        whole, one, off = np.array(rows).T
        told = f"{len(rows)} {kind}, {whole.sum():.0f} manifold, {one.sum():.0f} of one"
        told += f" part; floor, middle and {SIZE:.0f} mm off by {off.max():.1g} mm at"
        print(f"{version}: {told} most")


def output(command):
    """What a program prints.

    Raises: RuntimeError: it failed; its last words.
    """
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
