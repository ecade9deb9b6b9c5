"""How often signs are wrong: clean shapes, and soups made from them.

    python benchmarks/signs.py

Each file is written as PLY and read by `load_mesh`, and `signed_distance` is asked for
its signs. The truth is libigl's exact winding number of each clean piece alone: inside
one of them is inside. Points nearer than 1e-4 to a face are left out.
"""

import tempfile
from pathlib import Path

import common
import igl
import numpy as np
import trimesh

from d2im.data.mesh import find_meshes, load_mesh
from d2im.data.shapes import FAMILIES, make_shape
from d2im.sampling import sample_points, signed_distance

CLEAR = 1e-4  # world units to the nearest face
KINDS = {  # what is done to the pieces, and the share of wrong signs that is allowed
    "overlaps": 5e-4,
    "overlaps, 5 % duplicates, 2 % holes": 5e-4,
    "the same, 10 % of faces flipped": 5e-3,
    "the same, 30 % of parts inverted": 1e-3,
}


def arrays(mesh):
    return np.array(mesh.vertices, float), np.array(mesh.faces, np.int64)


def heap(rng, pieces):
    """Pieces of furniture of random sizes, turned and pushed into each other."""
    placed = []
    for _ in range(rng.integers(3, 7)):
        piece = pieces[rng.integers(len(pieces))].copy()
        turn = trimesh.transformations.random_rotation_matrix(rng.random(3))[:3, :3]
        shift = rng.uniform(-0.25, 0.25, 3)
        piece.vertices = rng.uniform(0.4, 1) * piece.vertices @ turn.T + shift
        placed.append(piece)
    return placed


def spoil(kind, pieces, rng):
    """One dirty mesh of the pieces, with the defects that the kind names."""
    pieces = [piece.copy() for piece in pieces]
    if "inverted" in kind:
        for k in rng.permutation(len(pieces))[: int(np.ceil(0.3 * len(pieces)))]:
            pieces[k].invert()
    soup = trimesh.util.concatenate(pieces)
    dirty = faces = np.array(soup.faces)
    if kind != "overlaps":
        some = rng.permutation(len(faces))
        if "flipped" in kind:
            flip = some[: len(faces) // 10]
            faces[flip] = faces[flip, ::-1]
        copies = faces[some[: len(faces) // 20]]
        copies[::2] = copies[::2, ::-1]  # every second one turned over
        dirty = np.delete(np.vstack([faces, copies]), some[-len(faces) // 50 :], axis=0)
    return trimesh.Trimesh(soup.vertices, dirty, process=False)


def truth(pieces, count, rng):
    """Points near the surface and in the box, and which of them are inside."""
    whole = trimesh.util.concatenate(pieces)
    near = sample_points(whole, 3 * count // 4, rng)
    points = np.vstack([near, rng.uniform(-0.55, 0.55, (count - len(near), 3))])
    squared, _, _ = igl.point_mesh_squared_distance(points, *arrays(whole))
    points = points[squared > CLEAR**2]
    winding = [igl.winding_number(*arrays(p), points) for p in pieces]
    return points, np.max(np.abs(winding), axis=0) > 0.5


def wrong_share(mesh, points, inside, path):
    mesh.export(path)
    return np.mean((signed_distance(load_mesh(path), points)[0] < 0) != inside)


def normalised(pieces):
    """The pieces moved together as `load_mesh` will move their file."""
    vertices = np.vstack([piece.vertices for piece in pieces])
    centre = (vertices.min(0) + vertices.max(0)) / 2
    scale = 0.5 / np.linalg.norm(vertices - centre, axis=1).max()
    for piece in pieces:
        piece.vertices = (piece.vertices - centre) * scale
    return pieces


def closed_bodies(path):
    """The bodies of a file by trimesh alone, or None where one is open."""
    parts = trimesh.load_scene(path).dump()
    mesh = trimesh.util.concatenate(
        [trimesh.Trimesh(part.vertices, part.faces, process=False) for part in parts]
    )
    mesh.merge_vertices()
    bodies = mesh.split(only_watertight=False)
    return list(bodies) if all(body.is_watertight for body in bodies) else None


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--soups", type=int, default=20, help="of each kind")
    parser.add_argument("--seeds", type=int, default=2, help="clean shapes a family")
    parser.add_argument("--points", type=int, default=8000, help="a shape")
    parser.add_argument("--meshes", help="folder of other models, the closed ones used")
    options = common.opening(parser)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mesh.ply"

        def measure(kind, mesh, points, inside):
            share = wrong_share(mesh, points, inside, path)
            rows.setdefault(kind, []).append((share, len(points)))

        clean = [
            make_shape(family, seed).detailed
            for family in FAMILIES
            for seed in range(options.seeds)
        ]
        for seed, mesh in enumerate(clean):
            known = truth([mesh], options.points, np.random.default_rng(seed))
            measure("clean", mesh, *known)
        for seed in range(options.soups):
            rng = np.random.default_rng([seed, 1])
            pieces = normalised(heap(rng, clean))
            known = truth(pieces, options.points, rng)
            for kind in KINDS:
                measure(kind, spoil(kind, pieces, rng), *known)
        for source in find_meshes(options.meshes) if options.meshes else ():
            if (bodies := closed_bodies(source)) is not None:
                known = truth(normalised(bodies), options.points, rng)
                whole = trimesh.util.concatenate(bodies)
                measure(f"clean, {source.stem}", whole, *known)
    print("| kind | files | points | wrong, all | worst file | allowed |")
    print("|---|---|---|---|---|---|")
    for kind, row in rows.items():
        share, count = np.array(row).T
        print(
            f"| {kind} | {len(row)} | {int(count.sum())} |"
            f" {share @ count / count.sum():.4%} | {share.max():.4%} |"
            f" {KINDS.get(kind, 0):.2%} |"
        )


if __name__ == "__main__":
    main()
