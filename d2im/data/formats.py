"""Mesh files: their faces, parts and colours, and what a file says oddly said plainly.

`mesh` mends the surface that comes out.
"""

import json
import re
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import trimesh
from trimesh.visual.color import linear_to_srgb, srgb_to_linear

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
NO_COLOR = (0.8, 0.8, 0.8)  # a plain part among coloured ones
# Where on a face its texture is read, barycentric.
TEXELS = np.array([(i, j, 7 - i - j) for i in range(1, 6) for j in range(1, 7 - i)]) / 7
TEXTURE_USES = "baseColor", "emissive", "normal", "occlusion", "metallicRoughness"
# Pillow's names; None: made in memory. Of its others one runs a program (EPS).
TEXTURE_FORMATS = None, "PNG", "JPEG", "WEBP", "BMP", "TGA", "TIFF", "GIF"


def read_surface(path: Path) -> tuple[trimesh.Trimesh, dict[str, np.ndarray]]:
    """Read a file's faces, as they are, in the file's frame and unit.

    Returns: one mesh of all, and its faces' attributes: "part" (F,) ints and, where the
        file has materials, "color" (F, 3) in [0, 1], display RGB.
    Raises: FileNotFoundError: no such file. ValueError: it cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; name a mesh file")
    kind = path.suffix.lower()
    if kind not in SUFFIXES:
        raise ValueError(f"{path}: unknown kind; d2im reads {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the file is empty; export it again")
    try:
        data = path.read_bytes()
        if kind == ".gltf":  # trimesh would read a model.gltf beside a broken one
            _refuse_empty_promises(json.loads(data), path)
        elif kind == ".glb":
            end = 20 + int.from_bytes(data[12:16], "little")
            _refuse_empty_promises(json.loads(data[20:end]), path)
        elif kind == ".obj":
            data = _plain_obj(data)
        elif kind == ".ply":
            _refuse_cut_ply(data)
        # Bytes, since trimesh takes UTF-8 names alone.
        beside = trimesh.resolvers.FilePathResolver(path.parent)
        data = BytesIO(data)
        scene = trimesh.load_scene(data, kind[1:], resolver=beside, process=False)
        for g in scene.geometry.values():  # `dump` drops colours beside a material
            own = getattr(getattr(g, "visual", None), "vertex_attributes", {})
            if "color" in own and g.visual.uv is None:
                g.visual = trimesh.visual.ColorVisuals(g, vertex_colors=own["color"])
            _drop_odd_textures(getattr(getattr(g, "visual", None), "material", None))
        found = [g for g in scene.dump() if isinstance(g, trimesh.Trimesh)]
        found = [g for g in found if len(g.faces)]
        colors = [_face_colors(g, kind in (".glb", ".gltf")) for g in found]
    except MemoryError:  # the file is not at fault
        raise
    # Broken files make trimesh raise errors of any kind, with any text.
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(
            f"{path}: no readable {kind[1:].upper()} file ({reason}); export it again"
        ) from error
    if not found:
        raise ValueError(f"{path}: no face in it; d2im needs triangles, not points")
    if any(g.faces.min() < 0 or g.faces.max() >= len(g.vertices) for g in found):
        raise ValueError(f"{path}: a face names a vertex that is missing; export again")
    mesh = trimesh.util.concatenate(
        [trimesh.Trimesh(g.vertices, g.faces, process=False) for g in found]
    )
    mesh.remove_unreferenced_vertices()
    bad = int((~np.isfinite(mesh.vertices).all(axis=1)).sum())
    if bad:
        share = f"{bad} of {len(mesh.vertices)} vertices"
        raise ValueError(f"{path}: {share} are NaN or infinite; export finite ones")
    size = np.ptp(mesh.vertices, axis=0).max()
    if not 1e-30 < size < 1e30:  # squares of sizes are to stay finite
        raise ValueError(f"{path}: its size is {size:g}; export it at about 1 m")
    counts = [len(g.faces) for g in found]
    attributes = {"part": np.repeat(np.arange(len(counts)), counts)}
    if any(g.visual.kind for g in found):
        attributes["color"] = np.concatenate(colors)
    return mesh, attributes


def _drop_odd_textures(material):
    """Let go of pictures whose kind a mesh file has no use for, before one is read."""
    for name in ("image", *(f"{use}Texture" for use in TEXTURE_USES)):
        kind = getattr(getattr(material, name, None), "format", None)
        if kind not in TEXTURE_FORMATS:
            setattr(material, name, None)


def _refuse_empty_promises(tree, path):
    """Refuse a glTF whose accessors without data would fill the memory with zeros.

    Accessors with data are checked against it. Some without are right, since a decoder
    fills them (Draco), but none packs a thousand times.
    """
    size, without = path.stat().st_size, 0
    for buffer in tree.get("buffers", []):
        if not buffer.get("uri", "data:").startswith("data:"):
            beside = path.with_name(unquote(buffer["uri"]))
            size += beside.stat().st_size if beside.is_file() else 0
    for accessor in tree.get("accessors", []):
        if "bufferView" not in accessor:
            without += 64 * max(accessor["count"], 0)  # bytes of a 4 x 4 matrix
    if without > 1e6 + 1000 * size:
        wrong = f"accessors without data promise up to {without / 1e9:.3g} GB"
        raise ValueError(f"{wrong}, the file holds {size:,} bytes")


def _refuse_cut_ply(data):
    """Refuse a PLY of text that has fewer lines than its header promises."""
    end = data.find(b"end_header")
    head = data[: max(end, 0)]
    if re.search(rb"(?m)^format ascii", head):
        promised = sum(map(int, re.findall(rb"(?m)^element \S+ (\d{1,18})", head)))
        if promised > (there := data.count(b"\n", end)):  # the last one may lack it
            raise ValueError(f"{promised:,} lines promised, there are {there:,}")


def _plain_obj(data):
    """An OBJ's bytes with what trimesh misreads said otherwise.

    An index below 0 counts back from its own line, not from the file's end; a texture
    coordinate of one number is (u, 0).
    """
    data = re.sub(rb"\\\r?\n", b" ", data)  # a line that goes on
    data = re.sub(rb"(?m)^(vt[ \t]+[^\s#]+)[ \t]*(#.*)?\r?$", rb"\1 0", data)
    if not re.search(rb"(?m)^[ \t]*f[ \t].*-", data):
        return data
    counts, kinds = dict.fromkeys((b"v", b"vt", b"vn"), 0), (b"v", b"vt", b"vn")
    lines = data.split(b"\n")
    for k, line in enumerate(lines):
        first, *corners = line.split(b"#", 1)[0].split() or [b""]
        if first in counts:
            counts[first] += 1
        elif first == b"f" and b"-" in line:
            for j, corner in enumerate(corners):
                indices = corner.split(b"/")
                for i, (index, kind) in enumerate(zip(indices, kinds, strict=False)):
                    if index.startswith(b"-"):
                        own = counts[kind] + 1 + int(index)
                        if own < 1:
                            wrong = f"line {k + 1}: index {int(index)} of"
                            raise ValueError(f"{wrong} {counts[kind]} {kind.decode()}")
                        indices[i] = b"%d" % own
                corners[j] = b"/".join(indices)
            lines[k] = b" ".join([b"f", *corners])
    return b"\n".join(lines)


def _face_colors(mesh, gltf):
    """Display colour of each face (F, 3) in [0, 1], grey where the file has none.

    glTF's vertex colours and factors are linear light, its textures sRGB.
    """
    visual = mesh.visual
    if visual.kind is None:
        return np.tile(NO_COLOR, (len(mesh.faces), 1))
    material = getattr(visual, "material", None)  # else vertices or faces have colours
    image = getattr(material, "baseColorTexture", getattr(material, "image", None))
    if image is None or visual.uv is None:
        colors = visual.face_colors if material is None else material.main_color
        colors = np.broadcast_to(colors, (len(mesh.faces), 4))[:, :3] / 255
        return linear_to_srgb(colors) if gltf else colors
    uv = (TEXELS @ visual.uv[mesh.faces]).reshape(-1, 2)  # (F * 15, 2)
    texels = trimesh.visual.uv_to_color(uv, image)[:, :3] / 255
    linear = srgb_to_linear(texels)
    tint = getattr(material, "baseColorFactor", None)
    tint = 1.0 if tint is None else tint[:3] / 255
    return linear_to_srgb(linear.reshape(-1, len(TEXELS), 3).mean(axis=1) * tint)
