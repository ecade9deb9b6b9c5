"""What Blender sees in the exported files: upright, normals, colours, camera, relief.

    python -m venv blender && blender/bin/pip install bpy
    python benchmarks/blender.py --blender blender/bin/python

A refined cabinet is exported in each format that Blender reads; `bpy`, in a Python of
its own, imports the files, sets up camera.json's camera, and moves the base by a
Displace modifier with the words of displacement.json. Printed is how far what Blender
has lies from what was exported, in world units, degrees, parts of 1 and pixels.
"""

import common

# ruff: isort: split
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from displaced import SQUARE, displaced
from scipy.spatial import cKDTree

from d2im.camera import Camera
from d2im.data.rendering import render
from d2im.data.shapes import make_shape
from d2im.networks import D2IMNet
from d2im.sampling import signed_distance
from d2im.use.export import Y_UP, Z_UP, export_camera, export_mesh, picture_colors
from d2im.use.reconstruction import MODEL
from d2im.use.refinement import RefineOptions, mesh_field, refine

KINDS = ("glb", "obj", "ply", "stl")
# Runs in Blender's Python, which knows nothing of d2im.
READER = """
import json, sys
from pathlib import Path
import bpy, numpy as np
from bpy_extras.object_utils import world_to_camera_view

folder = Path(sys.argv[1])
readers = {"glb": bpy.ops.import_scene.gltf, "obj": bpy.ops.wm.obj_import}
readers |= {"ply": bpy.ops.wm.ply_import, "stl": bpy.ops.wm.stl_import}

def load(path):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    readers[path.suffix[1:]](filepath=str(path))
    return next(o for o in bpy.data.objects if o.type == "MESH")

def camera(path):
    about, scene = json.loads(path.read_text(encoding="utf-8")), bpy.context.scene
    own, made = about["blender"], bpy.data.cameras.new("own")
    for name in ("lens", "sensor_width", "shift_x", "shift_y"):
        setattr(made, name, own[name])
    placed = bpy.data.objects.new("own", made)
    scene.collection.objects.link(placed)
    placed.matrix_world = np.transpose(own["matrix_world"]).tolist()
    scene.render.resolution_x = scene.render.resolution_y = about["size"]
    bpy.context.view_layer.update()
    return placed

def seen(points, placed):
    from mathutils import Vector
    view = bpy.context.scene, placed
    return np.array([world_to_camera_view(*view, Vector(p))[:2] for p in points])

for path in sorted(folder.glob("final.*")):
    thing = load(path)
    data, matrix = thing.data, np.array(thing.matrix_world)
    points = np.array([v.co for v in data.vertices]) @ matrix[:3, :3].T + matrix[:3, 3]
    corner = np.array([loop.vertex_index for loop in data.loops])
    normals = np.array([n.vector for n in data.corner_normals]) @ matrix[:3, :3].T
    found = {"points": points, "corner": corner, "normals": normals}
    if data.color_attributes:
        colors = data.color_attributes[0]
        values = np.array([c.color_srgb[:3] for c in colors.data])
        if colors.domain == "CORNER":
            spread = np.zeros((len(points), 3))
            spread[corner] = values
            values = spread
        found["colors"] = values
    found["seen"] = seen(points, camera(folder / (path.suffix[1:] + ".json")))
    np.savez(folder / (path.suffix[1:] + ".npz"), **found)

thing = load(folder / "base.glb")
data, matrix = thing.data, np.array(thing.matrix_world)
about = json.loads((folder / "displacement.json").read_text(encoding="utf-8"))["height"]
placed = camera(folder / "camera.json")
image = bpy.data.images.load(str(folder / about["image"]))
image.colorspace_settings.name = about["color_space"]
texture = bpy.data.textures.new("height", "IMAGE")
texture.image, texture.extension = image, "EXTEND"
change = thing.modifiers.new("relief", "DISPLACE")
change.texture, change.texture_coords, change.direction = texture, "UV", "NORMAL"
change.mid_level, change.strength = about["midlevel"], about["strength"]
layer = data.uv_layers.new(name="camera")
change.uv_layer = "camera"
corner = np.array([loop.vertex_index for loop in data.loops])
moved = np.array([v.co for v in data.vertices])
for reads in range(1, 7):
    uv = seen(moved @ matrix[:3, :3].T + matrix[:3, 3], placed)
    layer.data.foreach_set("uv", uv[corner].ravel())
    data.update()
    thing.update_tag()
    graph = bpy.context.evaluated_depsgraph_get()
    mesh = thing.evaluated_get(graph).to_mesh()
    moved = np.array([v.co for v in mesh.vertices])
    there = moved @ matrix[:3, :3].T + matrix[:3, 3]
    np.savez(folder / f"moved-{reads}.npz", points=there)
print(bpy.app.version_string)
"""


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--blender", required=True, help="Python that has bpy")
    parser.add_argument("--model", default=str(MODEL), help="folder")
    parser.add_argument("--resolution", type=int, default=128)
    options = common.opening(parser)
    model = D2IMNet.from_pretrained(options.model).eval()
    shape, camera = make_shape("cabinet", 10_101), Camera(30, 20, 0.9, model.image_size)
    image = render(shape.detailed, camera, np.random.default_rng(0)).image
    settings = RefineOptions(resolution=options.resolution)
    body = mesh_field(shape.coarse)
    found = refine(model, body, image, camera, options=settings)
    with tempfile.TemporaryDirectory() as folder:
        folder, meshes = Path(folder), {}
        for kind in KINDS:
            made = export_mesh(found, folder / f"final.{kind}", keep="all")
            placed = replace(found, to_world=made.metadata["to_world"])
            export_camera(placed, folder / f"{kind}.json", kind)
            meshes[kind] = made
        found.export(folder / "base.glb", "base", keep="all", color="none")
        found.export_maps(folder)
        command = [options.blender, "-c", READER, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        print("Blender", done.stdout.split()[-1])
        for kind, mesh in meshes.items():
            imported(kind, mesh, np.load(folder / f"{kind}.npz"), found)
        displacement(folder, found)


def imported(kind, mesh, seen, found):
    """Print how an imported mesh differs from the exported one."""
    turn = Z_UP[:3, :3] if kind in Y_UP else np.eye(3)  # all stand upright in Blender
    points, normals = (a @ turn.T for a in (mesh.vertices, mesh.vertex_normals))
    away, index = cKDTree(points).query(seen["points"])
    told = f"{kind}: {len(seen['points']):,} vertices of {len(points):,}, off by "
    told += f"{away.max() / np.ptp(points):.1e} of its size at most; z up "
    told += f"{np.ptp(seen['points'], axis=0).round(2)}"
    cosine = (seen["normals"] * normals[index][seen["corner"]]).sum(1).clip(-1, 1)
    angle = np.degrees(np.arccos(cosine))
    told += f"; normals off by {np.median(angle):.2f}°, 99 of 100 by less than "
    told += f"{np.quantile(angle, 0.99):.1f}°"
    if "colors" in seen:
        colors = picture_colors(found, found.mesh)[index]
        told += f"; colours off by {np.abs(seen['colors'] - colors).mean():.4f}"
    uv, _ = found.camera.project(found.mesh.vertices[index])
    pixels = (uv * [1, -1] + 1) / 2 - seen["seen"]
    told += f"; camera off by {np.abs(pixels).max() * found.camera.size:.3f} px"
    print(told)


def displacement(folder, found):
    """Print how far the base that Blender has moved lies from the final mesh."""
    _, moved, cosine = displaced(folder, 1)
    there = (cosine > SQUARE) & (moved > 1e-3)
    for reads in (1, 6):
        points = np.load(folder / f"moved-{reads}.npz")["points"] @ Z_UP[:3, :3]
        off = np.abs(signed_distance(found.mesh, points[there])[0])
        half, most = np.quantile(off, [0.5, 0.9])
        told = f"Displace, the map read {reads} times: {there.sum():,} vertices moved "
        told += f"by {moved[there].mean():.4f}, off by {half:.5f} at the median, "
        print(f"{told}9 of 10 by less than {most:.5f}")


if __name__ == "__main__":
    main()
