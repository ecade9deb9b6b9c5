"""Write the fixed list of Sweet Home 3D's pieces, d2im/data/sweethome.json, anew.

    python benchmarks/sweethome_list.py LIBRARY.sh3f ...

Made by hand, and kept: what is left out and why, and how much a piece is turned to look
along +z. Of the rest 60 % are drawn for train, 10 % for val and 30 % for test, in each
category. Pieces of one creator in one library stay together where their ids differ by a
number alone, where their points lie as near as those of one surface drawn twice, or,
of the makers of a few pieces, where their titles end in the same word.
"""

import json
import re
import tempfile
from collections import Counter, defaultdict

import common
import numpy as np
import trimesh
from scipy.cluster.hierarchy import DisjointSet
from scipy.spatial import KDTree

from d2im.data.files import write_whole
from d2im.data.formats import read_surface
from d2im.data.mesh import normalise
from d2im.data.sweethome import LIST, SPLITS, read_library, unpack

SEED = 0
SHARES = {"train": 0.6, "val": 0.1, "test": 0.3}
POINTS = 800
NEAR = 1.35  # distance of two surfaces' points over that within one
MANY = 60  # pieces of a creator, whose titles do not join them


def surface_points(piece, folder):
    """Points of a model as it lies in its file, scaled and turned; a tree of them."""
    read = read_surface(unpack(piece, folder))
    mesh = normalise(trimesh.Trimesh(read.vertices, read.faces, process=False))
    return KDTree(trimesh.sample.sample_surface(mesh, POINTS, seed=SEED)[0])


def are_near(one, other):
    """Whether two surfaces are about the same."""
    own = np.mean([tree.query(tree.data, k=2)[0][:, 1] for tree in (one, other)])
    between = one.query(other.data)[0].mean() + other.query(one.data)[0].mean()
    return between / 2 < NEAR * own


def families_of_copies(pieces, folder):
    """Lists of pieces that have to stay on one side."""
    made, joined = defaultdict(list), DisjointSet(pieces)
    for piece in pieces:
        made[piece.library, piece.creator].append(piece)
    for own in made.values():
        trees = {piece: surface_points(piece, folder) for piece in own}
        for k, piece in enumerate(own):
            for other in own[:k]:
                stems = {re.sub(r"[\W\d_]+$", "", p.name) for p in (piece, other)}
                words = {p.title.split()[-1].lower() for p in (piece, other)}
                alike = len(stems) == 1 or (len(words) == 1 and len(own) < MANY)
                if alike or are_near(trees[piece], trees[other]):
                    joined.merge(piece, other)
    return [sorted(own, key=lambda piece: piece.name) for own in joined.subsets()]


def draw(groups, rng):
    """The split of each piece: groups, the largest first, go where most is lacking."""
    parts, have = {}, Counter()
    order = rng.permutation(len(groups))
    for group in sorted((groups[k] for k in order), key=len, reverse=True):
        family = Counter(piece.family for piece in group).most_common(1)[0][0]
        part = min(SPLITS, key=lambda part: have[family, part] / SHARES[part])
        have[family, part] += len(group)
        parts |= {piece.name: part for piece in group}
    return parts


def main(files):
    kept = json.loads(LIST.read_text(encoding="utf-8"))
    out = {name for names in kept["left_out"].values() for name in names}
    pieces = [piece for path in files for piece in read_library(path)]
    pieces = [piece for piece in pieces if piece.name not in out]
    with tempfile.TemporaryDirectory() as folder:
        groups = families_of_copies(pieces, folder)
    groups.sort(key=lambda group: group[0].name)
    parts = draw(groups, np.random.default_rng(SEED))
    fixed = {part: sorted(n for n in parts if parts[n] == part) for part in SPLITS}
    text = json.dumps(
        fixed | {"turns": kept["turns"], "left_out": kept["left_out"]}, indent=1
    )
    write_whole(LIST, lambda file: file.write(f"{text}\n".encode()))
    print({part: len(names) for part, names in fixed.items()}, f"{len(groups)} groups")
    table = Counter((piece.family, parts[piece.name]) for piece in pieces)
    for family in sorted({piece.family for piece in pieces}):
        print(f"{family:15}", *(f"{table[family, part]:4}" for part in SPLITS))
    for group in sorted(groups, key=len, reverse=True)[:40]:
        print(len(group), *(piece.name for piece in group))


if __name__ == "__main__":
    parser = common.arguments(__doc__)
    parser.add_argument("files", nargs="+", metavar="LIBRARY.sh3f")
    main(common.opening(parser).files)
