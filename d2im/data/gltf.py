"""glTF 2.0, as text or GLB: what of it makes a surface; the rest is refused by name.

The Khronos Group's specification and extensions; a pose is that of the file's nodes.
"""

import base64
import json
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from trimesh.visual.color import linear_to_srgb

from .facets import Beside, Paint, Surface, Texture, Unreadable

TYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}
WRAPS = {10497: "repeat", 33071: "clamp", 33648: "mirror"}
DRACO, GLOSS = "KHR_draco_mesh_compression", "KHR_materials_pbrSpecularGlossiness"
INSTANCES, VISIBLE = "EXT_mesh_gpu_instancing", "KHR_node_visibility"
MESHOPT = "EXT_meshopt_compression", "KHR_meshopt_compression"
PICTURES = "EXT_texture_webp", "EXT_texture_avif", "MSFT_texture_dds"
# Extensions that are read, or leave shape and base colour alone.
READ = {DRACO, INSTANCES, *PICTURES, "KHR_mesh_quantization"}
READ |= {"KHR_texture_transform", VISIBLE, "KHR_lights_punctual", "KHR_xmp_json_ld"}
READ |= {"KHR_animation_pointer", "EXT_lights_image_based", "EXT_mesh_features"}
READ |= {"EXT_structural_metadata"}
ADVICE = {
    DRACO: "`pip install DracoPy` lets d2im read it; or export it without Draco",
    "KHR_texture_basisu": "export it with PNG or JPEG textures instead of KTX2",
}
ADVICE |= dict.fromkeys(MESHOPT, "unpack it: gltfpack -noq -i packed.glb -o plain.glb")
# A small file may hold one body and place it often.
MANY_FACES, MANY_PARTS = 2_000_000, 20_000


def read_gltf(data: bytes, beside: Beside) -> Surface:
    """Read a glTF's default scene, or all meshes where it has no scene.

    Args: data: of a GLB or a glTF of text. beside: where its buffers and pictures lie.
    Returns: the faces of all primitives, each a part, under their nodes' transforms.
    Raises: Unreadable: it is damaged, or needs what is not read.
    """
    text, blob = _chunks(data) if data[:4] == b"glTF" else (data, None)
    try:
        tree = json.loads(text.rstrip(b"\0").decode("utf-8-sig", "replace"))
    except json.JSONDecodeError as error:
        raise Unreadable(f"its JSON is none, or damaged: {error}") from error
    version = tree["asset"]["version"]
    if not str(version).startswith("2."):
        raise Unreadable(f"glTF {version}", "export it as glTF 2.0")
    for name in tree.get("extensionsRequired", []):
        if name not in READ and not name.startswith("KHR_materials_"):
            if name not in MESHOPT:  # these lie in buffers, which says it
                advice = ADVICE.get(name, "export it without")
                raise Unreadable(f"it needs the extension {name}", advice)
    return _Tree(tree, blob, len(data), beside).surface()


def _chunks(data):
    """The JSON and the binary chunk of a GLB."""
    if (version := int.from_bytes(data[4:8], "little")) != 2:
        raise Unreadable(f"GLB of version {version}", "export it as glTF 2.0")
    at, found = 12, {}
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "little"), data[at + 4 : at + 8]
        if size > len(data) - at - 8:
            there = f"a chunk of {size:,} bytes, {len(data) - at - 8:,} there"
            raise Unreadable(f"cut off: {there}")
        found.setdefault(kind, data[at + 8 : at + 8 + size])
        at += 8 + size
    if b"JSON" not in found:
        raise Unreadable("cut off: no JSON in it")
    return found[b"JSON"], found.get(b"BIN\0")


class _Tree:
    """A file's JSON, and what was read of it."""

    def __init__(self, tree, blob, size, beside):
        self.tree, self.blob, self.beside = tree, blob, beside
        self.size, self.buffers = size, {}
        self.pictures = {}  # names and sources of images
        self.skins = {}  # what takes a vertex to each joint's place (J, 4, 4)
        self.lost, self.left = {}, {}  # pictures, and primitives of no face

    def item(self, kind, number):
        items = self.tree.get(kind, [])
        if type(number) is not int or not 0 <= number < len(items):
            raise Unreadable(f"it names {kind} {number!r} of {len(items)}")
        return items[number]

    # Numbers

    def buffer(self, number):
        if number not in self.buffers:
            uri = self.item("buffers", number).get("uri")
            data = self.blob if uri is None and number == 0 else b""
            if uri is not None:
                data = self.resource(uri)
                if data is None:
                    raise Unreadable(
                        f"its buffer {uri[:80]} is missing", "copy it here"
                    )
                data = data if isinstance(data, bytes) else data.read_bytes()
                self.size += len(data)
            self.buffers[number] = data or b""
        return self.buffers[number]

    def resource(self, uri):
        """The bytes of a data URI, the path of a file beside, or None."""
        if uri.startswith("data:"):
            head, _, body = uri.partition(",")
            plain = unquote_to_bytes(body)
            return base64.b64decode(plain) if head.endswith(";base64") else plain
        return self.beside.find(uri) or self.beside.find(unquote(uri))

    def view(self, number):
        """A buffer's bytes, and where a view of them begins and how long it is."""
        view = self.item("bufferViews", number)
        data, start = self.buffer(view["buffer"]), view.get("byteOffset", 0)
        length = view["byteLength"]
        for name in MESHOPT:
            if name in view.get("extensions", {}) and (
                name in self.tree.get("extensionsRequired", [])
                or name in self.item("buffers", view["buffer"]).get("extensions", {})
                or not data
            ):
                raise Unreadable(f"compressed with meshopt ({name})", ADVICE[name])
        if not 0 <= start <= start + length <= len(data):
            wrong = f"view {number} ends at byte {start + length:,} of {len(data):,}"
            raise Unreadable(f"cut off: {wrong}")
        return data, start, length, view.get("byteStride")

    def array(self, view, offset, kind, width, count):
        data, start, length, stride = self.view(view)
        stride = stride or kind.itemsize * width
        need = offset + (count - 1) * stride + kind.itemsize * width if count else 0
        if offset < 0 or count < 0 or stride < 1 or need > length:
            raise Unreadable(f"view {view} holds {length:,} of {need:,} bytes")
        strides = stride, kind.itemsize
        return np.ndarray((count, width), kind, data, start + offset, strides)

    def accessor(self, number):
        """Numbers (N, width), those that are normalised in [-1, 1]."""
        own = self.item("accessors", number)
        kind, width = np.dtype(TYPES[own["componentType"]]), WIDTHS[own["type"]]
        count, sparse = own["count"], own.get("sparse")
        if "bufferView" in own:
            offset = own.get("byteOffset", 0)
            values = self.array(own["bufferView"], offset, kind, width, count)
        else:  # zeros, of which a small file may promise any number
            if not 0 <= count <= 1e5 + self.size // 16:
                cause = f"accessor {number} promises {count:,} numbers without data"
                raise Unreadable(cause)
            values = np.zeros((count, width), kind)
        if sparse is not None:
            where, new = sparse["indices"], sparse["values"]
            index = np.dtype(TYPES[where["componentType"]])
            at = where["bufferView"], where.get("byteOffset", 0), index, 1
            index = self.array(*at, sparse["count"])[:, 0]
            at = new["bufferView"], new.get("byteOffset", 0), kind, width
            values = values.copy()
            values[index] = self.array(*at, sparse["count"])
        return _normalised(values, own)

    # Nodes

    def scene(self):
        """The nodes that are shown, in order, and the world matrix of every node."""
        nodes = self.tree.get("nodes", [])
        children = [node.get("children", []) for node in nodes]
        parents = {}
        for k, own in enumerate(children):
            for child in own:
                self.item("nodes", child)
                if child in parents:
                    raise Unreadable(f"node {child} has two parents")
                parents[child] = k
        tops = [k for k in range(len(nodes)) if k not in parents]
        roots = tops
        if self.tree.get("scenes"):
            roots = self.item("scenes", self.tree.get("scene", 0)).get("nodes", [])
        shown, left = {}, [*roots]
        while left:
            k = left.pop()
            hidden = self.item("nodes", k).get("extensions", {}).get(VISIBLE, {})
            if k not in shown and hidden.get("visible", True):
                shown[k] = nodes[k]
                left += children[k]
        self.refuse_crowd(sum("mesh" in node for node in shown.values()), 0, 0)
        world, left = {}, [(k, np.eye(4)) for k in tops]
        while left:
            k, above = left.pop()
            world[k] = above @ own if (own := _matrix(nodes[k])) is not None else above
            left += [(child, world[k]) for child in children[k]]
        if len(world) < len(nodes):
            raise Unreadable("its nodes form a circle")
        return shown, world

    def surface(self):
        """The faces of all primitives, as often as nodes show them."""
        pieces, colors, paints, parts = [], [], [], []
        at = first = stored = 0
        seen = set()  # the accessors of what counts as stored
        for (mesh, skin, weights), matrices in self.placed().items():
            turned = np.linalg.det(matrices[:, :3, :3]) < 0
            for own in self.item("meshes", mesh)["primitives"]:
                read = self.primitive(own, weights, skin)
                if read is None:
                    continue
                vertices, faces, color, worn = read
                times, count = len(matrices), len(faces)
                if (key := self.stored_as(own)) not in seen:
                    stored += count
                    seen.add(key)
                self.refuse_crowd(len(parts) + times, first + times * count, stored)
                moved = vertices @ matrices[:, :3, :3].swapaxes(1, 2)
                moved += matrices[:, None, :3, 3]
                for k in range(times):
                    flip = slice(None, None, -1 if turned[k] else 1)
                    pieces.append((moved[k], faces[:, flip] + at))
                    colors.append(color)
                    at += len(vertices)
                    if worn is not None:
                        uv, texture, tint = worn
                        own = first + np.arange(count)
                        paints.append(Paint(own, uv[:, flip], texture, tint))
                    first += count
                parts += times * [count]
        notes = [f"{count} of {what}" for what, count in self.left.items()]
        lost = {"images": self.lost, "notes": notes}
        if not pieces:
            nothing = np.empty((0, 3), dtype=int)
            return Surface(nothing, nothing, nothing[:, 0], **lost)
        vertices, faces = (np.concatenate(a) for a in zip(*pieces, strict=True))
        part = np.repeat(np.arange(len(parts)), parts)
        return Surface(vertices, faces, part, np.concatenate(colors), paints, **lost)

    def placed(self):
        """Which meshes are shown: (mesh, skin, weights) and the matrices (N, 4, 4)."""
        shown, world = self.scene()
        meshes, found, count = self.tree.get("meshes", []), {}, 0
        if not self.tree.get("nodes"):
            shown = {k: {"mesh": k} for k in range(len(meshes))}
            world = dict.fromkeys(shown, np.eye(4))
        for k, node in shown.items():
            if "mesh" not in node:
                continue
            weights = node.get(
                "weights", self.item("meshes", node["mesh"]).get("weights")
            )
            own, skin = world[k][None], None
            if "skin" in node:  # such a mesh stands where its joints are
                own, skin = np.eye(4)[None], self.skinned(node["skin"], world)
            elif INSTANCES in node.get("extensions", {}):
                own = own @ self.instances(node)
            count += len(own)
            self.refuse_crowd(count, 0, 0)
            found.setdefault((node["mesh"], skin, tuple(weights or ())), []).append(own)
        if not found:
            cause = f"its scene shows none of its {len(meshes)} meshes"
            raise Unreadable(cause, "export the scene again")
        return {key: np.concatenate(own) for key, own in found.items()}

    def refuse_crowd(self, parts, faces, stored):
        """Refuse what nodes multiply beyond what is worth to be mended."""
        if faces > max(MANY_FACES, 4 * stored) or parts > MANY_PARTS:
            cause = f"its nodes make {parts:,} parts or more of {faces:,} faces"
            most = f"{MANY_PARTS:,} parts and {MANY_FACES:,} faces"
            raise Unreadable(cause, f"d2im takes {most}: join parts, or leave some out")

    def stored_as(self, primitive):
        """Where the bytes of a primitive's faces lie, packed or as numbers."""
        packed = primitive.get("extensions", {}).get(DRACO, {}).get("bufferView")
        numbers = primitive.get("indices"), primitive["attributes"]["POSITION"]
        places = []
        for k in (k for k in numbers if k is not None):
            own = self.item("accessors", k)
            place = "accessor", k
            if "bufferView" in own:
                view = self.item("bufferViews", own["bufferView"])
                start = view.get("byteOffset", 0) + own.get("byteOffset", 0)
                place = view["buffer"], start
            places.append((place, own["count"]))
        return packed, *places

    def instances(self, node):
        """The matrices (N, 4, 4) of a node's many places."""
        given = node["extensions"][INSTANCES]["attributes"]
        names = {"TRANSLATION": "translation", "ROTATION": "rotation", "SCALE": "scale"}
        read = {names[n]: self.accessor(k) for n, k in given.items() if n in names}
        count = min(map(len, read.values()), default=1)
        self.refuse_crowd(count, 0, 0)  # before there are so many matrices
        return _placing(count, **read)

    def skinned(self, number, world):
        """A skin by number, once what moves its joints is known."""
        if number not in self.skins:
            skin = self.item("skins", number)
            for k in skin["joints"]:
                self.item("nodes", k)
            joints = np.array([world[k] for k in skin["joints"]])  # (J, 4, 4)
            if "inverseBindMatrices" in skin:  # from the mesh to each joint
                inverse = self.accessor(skin["inverseBindMatrices"])[: len(joints)]
                joints = joints @ inverse.reshape(-1, 4, 4).swapaxes(1, 2)
            self.skins[number] = joints
        return number

    # Primitives

    def primitive(self, own, weights, skin):
        """Vertices, faces, display colours, and what these wear; None without faces."""
        given, mode = own.get("attributes", {}), own.get("mode", 4)
        packed = own.get("extensions", {}).get(DRACO)
        if mode not in (4, 5, 6) or "POSITION" not in given:
            what = "points or lines" if mode in (0, 1, 2, 3) else "no known kind"
            what = what if "POSITION" in given else "no position"
            self.left[what] = self.left.get(what, 0) + 1
            return None
        if packed is None or self.has_copy(given["POSITION"]):
            whole, faces = self.attributes(given), None
        else:
            whole, faces = self.unpacked(packed, given)
        count, chosen = len(whole("POSITION")), slice(None)
        if faces is None:
            index = np.arange(count)
            if "indices" in own:
                index = self.accessor(own["indices"])[:, 0].astype(int)
            faces = _faces(index, mode)
        if len(faces) and not 0 <= faces.min() <= faces.max() < count:
            raise Unreadable("a face names a vertex that is missing")
        if faces.size < count:  # others' vertices
            chosen, faces = np.unique(faces, return_inverse=True)
            faces = faces.reshape(-1, 3)

        def read(name):
            values = whole(name)
            return None if values is None else values[chosen]

        vertices = read("POSITION").astype(float)
        for weight, target in zip(weights, own.get("targets", []), strict=False):
            if weight and "POSITION" in target:
                vertices += weight * self.accessor(target["POSITION"])[chosen]
        if skin is not None:
            vertices = _bent(vertices, self.skins[skin], read)
        return vertices, faces, *self.colors(own, read, faces)

    def attributes(self, given):
        """A reader of a primitive's attributes by name."""
        return lambda name: self.accessor(given[name]) if name in given else None

    def has_copy(self, position):
        """Whether what is compressed with Draco lies there uncompressed, too."""
        required = DRACO in self.tree.get("extensionsRequired", [])
        return not required and "bufferView" in self.item("accessors", position)

    def unpacked(self, packed, given):
        """A reader of the attributes that Draco compressed, and the faces."""
        try:
            import DracoPy
        except ImportError:
            cause = f"compressed with Draco ({DRACO})"
            raise Unreadable(cause, ADVICE[DRACO]) from None
        data, start, length, _ = self.view(packed["bufferView"])
        try:
            mesh = DracoPy.decode(data[start : start + length])
        except Exception as error:  # the library's own kinds
            cause = f"compressed with Draco ({DRACO}), and damaged: {error}"
            raise Unreadable(cause, "export it without Draco") from error
        plain, numbers = self.attributes(given), packed["attributes"]

        def read(name):
            if name not in numbers:
                return plain(name)
            values = mesh.get_attribute_by_unique_id(numbers[name])["data"]
            return _normalised(values, self.item("accessors", given[name]))

        return read, np.asarray(mesh.faces, dtype=int).reshape(-1, 3)

    def colors(self, own, read, faces):
        """A primitive's display colours (F, 3), and what it wears, or None."""
        vertex = read("COLOR_0")
        tint, info = np.ones(3), None
        if "material" in own:
            material = self.item("materials", own["material"])
            gloss = material.get("extensions", {}).get(GLOSS)
            if gloss is None:
                pbr = material.get("pbrMetallicRoughness", {})
                factor, info = pbr.get("baseColorFactor"), pbr.get("baseColorTexture")
            else:
                factor, info = gloss.get("diffuseFactor"), gloss.get("diffuseTexture")
            tint = np.array((factor or [1, 1, 1])[:3], dtype=float)
        elif vertex is None:
            return np.full((len(faces), 3), np.nan), None
        if vertex is not None:
            if (
                vertex.dtype.kind in "iu"
            ):  # normalised, though the file forgot to say so
                vertex = vertex / np.iinfo(vertex.dtype).max
            tint = tint * vertex[:, :3][faces].mean(axis=1)
        color = np.broadcast_to(linear_to_srgb(np.clip(tint, 0, 1)), (len(faces), 3))
        paint = None
        if info is not None:
            paint = self.worn(info, read, faces, tint)
        return color, paint

    def worn(self, info, read, faces, tint):
        """Where faces stand on their picture, the picture, its tint; or None."""
        moved = info.get("extensions", {}).get("KHR_texture_transform", {})
        uv = read(f"TEXCOORD_{moved.get('texCoord', info.get('texCoord', 0))}")
        texture = self.texture(self.item("textures", info["index"]))
        if uv is None or texture is None:
            return None
        uv = uv[:, :2].astype(float)
        if moved:
            turn = moved.get("rotation", 0)
            c, s = np.cos(turn), np.sin(turn)
            uv = uv * moved.get("scale", [1, 1]) @ np.array([[c, -s], [s, c]])
            uv = uv + moved.get("offset", [0, 0])
        return uv[faces], texture, tint

    def texture(self, own):
        given = own.get("extensions", {})
        sources = [given[n]["source"] for n in PICTURES if n in given]
        number = (sources + [own.get("source")])[0]
        if number is None:
            if given:
                self.lost[f"texture in {', '.join(given)}"[:80]] = "not read"
            return None
        if number not in self.pictures:  # once: parts that share it share its bytes
            self.pictures[number] = self.picture(number)
        name, source = self.pictures[number]
        sampler = self.item("samplers", own["sampler"]) if "sampler" in own else {}
        wrap = tuple(WRAPS.get(sampler.get(f"wrap{k}"), "repeat") for k in "ST")
        return Texture(name, source, wrap)

    def picture(self, number):
        """The name and the file or bytes of an image by its number."""
        image = self.item("images", number)
        if "uri" in image:
            source = self.resource(image["uri"])
            name = "" if image["uri"].startswith("data:") else unquote(image["uri"])
        else:
            data, start, length, _ = self.view(image["bufferView"])
            source, name = data[start : start + length], ""
        name = name or f"image {number} {image.get('name', '')}".strip()
        return name[:80], source


def _normalised(values, accessor):
    """Whole numbers as what they stand for, if the accessor says so."""
    if accessor.get("normalized") and values.dtype.kind in "iu":
        return np.maximum(values / np.iinfo(values.dtype).max, -1.0)
    return values


def _matrix(node):
    """A node's matrix (4, 4), None where it is the identity."""
    if "matrix" in node:
        return np.array(node["matrix"], dtype=float).reshape(4, 4).T
    names = "translation", "rotation", "scale"
    given = {n: np.array(node[n], dtype=float)[None] for n in names if n in node}
    return _placing(1, **given)[0] if given else None


def _placing(count, translation=None, rotation=None, scale=None):
    """Matrices (N, 4, 4) of moves, quaternions (x, y, z, w) and scales."""
    matrix = np.tile(np.eye(4), (count, 1, 1))
    if rotation is not None:
        q = np.array(rotation[:count], dtype=float)
        x, y, z, w = (q / np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-30)).T
        rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]
        rows += [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]
        rows += [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
        matrix[:, :3, :3] = np.stack(rows, axis=1).reshape(-1, 3, 3)
    if scale is not None:
        matrix[:, :3, :3] *= np.asarray(scale[:count])[:, None, :3]
    if translation is not None:
        matrix[:, :3, 3] = translation[:count]
    return matrix


def _faces(index, mode):
    """Triangles (F, 3) of a list, a strip or a fan of indices."""
    if mode == 4:
        if len(index) % 3:
            raise Unreadable(f"{len(index)} corners are no triangles")
        return index.reshape(-1, 3)
    k = np.arange(max(len(index) - 2, 0))
    if mode == 6:
        return index[np.stack([0 * k, k + 1, k + 2], axis=1)]
    return index[np.stack([k, k + 1 + k % 2, k + 2 - k % 2], axis=1)]


def _bent(vertices, joints, read):
    """Vertices where their joints take them (V, 3)."""
    moved, total = np.zeros_like(vertices), np.zeros((len(vertices), 1))
    for number in range(99):
        which, weights = read(f"JOINTS_{number}"), read(f"WEIGHTS_{number}")
        if which is None or weights is None:
            break
        weights = weights.astype(float)
        if number == 0:  # a vertex that no joint moves follows its first one
            weights[weights.sum(axis=1) == 0, 0] = 1
        for k in range(4):
            own = joints[which[:, k].astype(int)]
            place = np.einsum("vij,vj->vi", own[:, :3, :3], vertices) + own[:, :3, 3]
            moved += weights[:, k, None] * place
            total += weights[:, k, None]
    if not total.all():
        raise Unreadable("a skinned mesh whose vertices name no joints")
    return moved / total
