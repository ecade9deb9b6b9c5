"""A folder of meshes becomes examples to train on, in the folder my_examples.

    python examples/meshes_to_data.py FOLDER

Without a folder it makes one with a box and a ring.
"""

import sys
import tempfile
from pathlib import Path

from trimesh import creation

import d2im

folder = Path(*sys.argv[1:] or [tempfile.mkdtemp()])
if len(sys.argv) == 1:
    creation.box((1, 2, 0.5)).export(folder / "box.ply")
    creation.torus(1, 0.3).export(folder / "ring.ply")
rows = d2im.prepare(folder, "my_examples", count=20_000, views=2, size=112)
for row in rows:
    print(f"{row['id']}: {row['status']} {row['reason']}")
item = d2im.ShapeDataset("my_examples")[0]
print({name: tuple(value.shape) for name, value in item.items()})
