"""Mesh files read as they are: faces, parts, colours; or one line that says why not.

The readers are our own: no library tried gave every kind right (polygons cut as fans,
OBJ's rules of lines, glTF's numbers misread), and mending them took as much code.
`gltf` reads glTF, `facets` cuts polygons and reads pictures, `mesh` mends the surface.
"""

import re
from pathlib import Path

import numpy as np

from .facets import (
    Beside,
    Paint,
    Surface,
    Texture,
    Unreadable,
    numbers,
    paint,
    triangulate,
    words,
)
from .gltf import read_gltf

SUFFIXES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
# How files begin that go under another name, and what to do with them.
STRANGERS = {
    rb"version https://git-lfs": ("a Git LFS pointer", "fetch the model: git lfs pull"),
    rb"\s*<(!doctype )?html": ("a web page", "download the model itself"),
    rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf": ("a packed archive", "unpack it"),
    rb"Kaydara FBX": ("an FBX file", "export it as GLB"),
    rb"BLENDER": ("a Blender file", "export it as GLB"),
    rb"\s*<\?xml": ("an XML file", "export it as GLB"),
    rb"\0+\Z": ("nothing but zero bytes", "copy it again"),
}
KINDS = {b"glTF": (".glb", ".gltf"), b"ply": (".ply",), b"OFF": (".off",)}


def read_surface(path: Path) -> Surface:
    """Read a file's faces, as they are, in the file's frame and unit.

    Returns: what is in it; its `color` is None where the file has no colour.
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
        _refuse_strangers(data, kind)
        with np.errstate(all="ignore"):  # `_refuse_odd` looks at what comes out
            surface = READERS[kind](data, Beside(path.parent))
            _refuse_odd(surface)
            paint(surface)
    except (MemoryError, OSError):  # the file is not at fault
        raise
    # A damaged file makes any line stumble, by any error.
    except Exception as error:
        cause = f"{error}" if isinstance(error, Unreadable) else repr(error)
        cause = " ".join(cause.split())[:200]
        if advice := getattr(error, "advice", None):
            raise ValueError(f"{path}: {cause}; {advice}") from error
        kind = kind[1:].upper()
        cause = f"no readable {kind} file ({cause})"
        raise ValueError(f"{path}: {cause}; export it again") from error
    return surface


def _refuse_strangers(data, kind):
    """Refuse what is no mesh file, or one of another kind, by its first bytes."""
    for first, (what, advice) in STRANGERS.items():
        if re.match(first, data, re.I):
            raise Unreadable(f"the file is {what}", advice)
    for first, own in KINDS.items():
        if data.startswith(first) and kind not in own and kind != ".obj":
            raise Unreadable(f"the file is a {own[0][1:].upper()}", f"name it {own[0]}")


def _refuse_odd(surface):
    """Refuse faces that are none: no vertex, no number, no size."""
    faces, vertices = surface.faces, surface.vertices
    if len(faces) == 0:
        left = f"; left out: {', '.join(surface.notes)}" if surface.notes else ""
        raise Unreadable("no face in it", f"d2im needs triangles, not points{left}")
    if faces.min() < 0 or faces.max() >= len(vertices):
        raise Unreadable("a face names a vertex that is missing")
    used = np.zeros(len(vertices), dtype=bool)
    used[faces] = True
    if not used.all():
        surface.faces = (np.cumsum(used) - 1)[faces]
        surface.vertices = vertices = vertices[used]
    bad = int((~np.isfinite(vertices).all(axis=1)).sum())
    if bad:
        share = f"{bad} of {len(vertices)} vertices"
        raise Unreadable(f"{share} are NaN or infinite", "export finite ones")
    size = np.ptp(vertices, axis=0).max()
    if not 1e-30 < size < 1e30:  # squares of sizes are to stay finite
        raise Unreadable(f"its size is {size:g}", "export it at about 1 m")


def _with_newlines(data):
    """A text whose lines end as Unix ends them."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


# STL


def _read_stl(data, beside):
    count = int.from_bytes(data[80:84], "little")
    exact = len(data) == 84 + 50 * count  # else a header "solid" means text
    is_text = b"\0" not in data or b"facet" in data[:4096].lower()
    if not exact and is_text and re.match(rb"\s*solid\b", data, re.I):
        return _read_ascii_stl(data)
    if len(data) < 84:
        raise Unreadable("neither its text nor its binary form")
    if len(data) < 84 + 50 * count:
        there = (len(data) - 84) // 50
        raise Unreadable(f"cut off: {count:,} triangles promised, {there:,} there")
    kind = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
    corners = np.frombuffer(data, kind, count, 84)["corners"].astype(float)
    faces = np.arange(3 * count).reshape(-1, 3)
    return Surface(corners.reshape(-1, 3), faces, np.zeros(count, dtype=int))


def _read_ascii_stl(data):
    corners = []
    for text in data.lower().split(b"endsolid"):
        start = re.search(rb"facet\s+normal", text)  # a name may hold any word
        text = text[start.start() :].rstrip() if start else b""
        found = re.findall(rb"vertex\s+(\S+\s+\S+\s+\S+)", text)
        ended = text.endswith(b"endfacet") or not text
        if not ended or len(found) != 3 * text.count(b"endfacet"):
            raise Unreadable("cut off, or faces of other than three corners")
        corners.append(numbers(b"\n".join(found)).reshape(-1, 3))
    faces = np.arange(sum(map(len, corners))).reshape(-1, 3)
    part = np.repeat(np.arange(len(corners)), [len(c) // 3 for c in corners])
    return Surface(np.concatenate(corners), faces, part)


# OFF


def _read_off(data, beside):
    text = re.sub(rb"#[^\n]*", b"", _with_newlines(data))
    head = re.match(rb"\s*(ST)?(C)?(N)?(4)?(n)?OFF", text)
    if head is None:
        raise Unreadable("it does not begin with OFF")
    body = text[head.end() :].lstrip(b" \t")
    if head[4] or head[5] or body.startswith(b"BINARY"):
        raise Unreadable("OFF in binary or of other than three dimensions")
    values, (_, line) = numbers(body), words(body)
    count, polygons = (int(n) for n in values[:2])
    if min(count, polygons) < 0 or 3 * count + polygons > len(values):
        promised = f"{count:,} vertices and {polygons:,} faces promised"
        raise Unreadable(f"{promised}, {len(values):,} numbers there")
    per_line = np.unique(line, return_counts=True)[1]
    # The counts end their line, or begin it (one number a line is right as well).
    head_size = 2 if per_line[0] == 2 else 3  # some leave the edges out
    begin = 1 + int(np.searchsorted(np.cumsum(per_line), head_size))
    lines = per_line[begin : begin + count + polygons]
    width = 3 + 3 * bool(head[3]) + 2 * bool(head[1])
    by_line = len(lines) == count + polygons and np.ptp(lines[:count]) == 0
    by_line = by_line and lines[0] >= width and per_line[:begin].sum() == head_size
    if head[2]:
        width = int(lines[0]) if by_line else width + 4
    elif by_line:
        width = int(lines[0])
    at, starts, sizes = head_size + count * width, [], []
    vertices = values[head_size:at].reshape(count, width)
    if by_line:  # what follows the corners is a colour
        starts = at + np.cumsum(lines[count:]) - lines[count:]
        sizes = values[starts].astype(int)
        more = lines[count:] - 1 - sizes
        if more.min(initial=0) < 0:
            raise Unreadable("a face's line has fewer corners than it says")
    else:
        for _ in range(polygons):
            if at >= len(values) or not 0 <= values[at] < len(values) - at:
                raise Unreadable("cut off within the faces")
            starts.append(at)
            sizes.append(int(values[at]))
            at += 1 + sizes[-1]
        starts, sizes = np.array(starts, dtype=int), np.array(sizes, dtype=int)
        more = 0 * sizes
    corners = values[_ranges(starts + 1, sizes)].astype(int)
    surface, _, owner = _polygons(vertices[:, :3], corners, sizes)
    if head[2]:
        at = 3 + 3 * bool(head[3])
        color = _unit(vertices[:, at : at + 3])
        surface.color = color[surface.faces].mean(axis=1)
    colored = more >= 3
    if colored.any():
        own = np.full((polygons, 3), np.nan)
        where = (starts + 1 + sizes)[colored, None] + np.arange(3)
        own[colored] = _unit(values[where])
        surface.color = own[owner]
    return surface


def _unit(color):
    """Colours in [0, 1]: of whole numbers above 1, or far above, a file counts to 255.

    A little above stands what was rounded, or shines.
    """
    most = color.max(initial=0)
    whole = most > 1 and (color == np.round(color)).all()
    return color / 255 if whole or most > 16 else color.clip(max=1)


def _ranges(starts, sizes):
    """The numbers start, start + 1, ... of all ranges, one after the other."""
    ends = np.cumsum(sizes)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(
        starts - (ends - sizes), sizes
    )


def _polygons(vertices, corners, sizes):
    """A surface of polygons; each face's corners of theirs (F, 3), and whose it is."""
    if len(corners) and not 0 <= corners.min() <= corners.max() < len(vertices):
        raise Unreadable("a face names a vertex that is missing")
    cut, owner = triangulate(vertices[corners], sizes)
    surface = Surface(vertices, corners[cut], np.zeros(len(cut), dtype=int))
    return surface, cut, owner


# PLY

PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4"}
PLY_TYPES |= {"uint": "u4", "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1"}
PLY_TYPES |= {"int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
PLY_TYPES |= {"float32": "f4", "float64": "f8"}
PLY_COLORS = [
    [f"{prefix}{c}" for c in names]
    for prefix in ("", "diffuse_")
    for names in (("red", "green", "blue"), "rgb")
]


def _read_ply(data, beside):
    form, elements, pictures, data = _ply_header(data)
    order = ">" if form == "binary_big_endian" else "<"
    if form == "ascii":  # read as numbers of one type; the types still tell a colour's
        data, order = numbers(data).tobytes(), None
    at, found = 0, {}
    for name, count, properties in elements:
        found[name], at = _ply_element(data, at, name, count, properties, order)
    kinds = {name: dict(own) for name, _, own in elements}
    vertex, face = found.get("vertex", {}), found.get("face", {})
    if not {"x", "y", "z"} <= vertex.keys():
        raise Unreadable("its vertices have no x, y, z")
    vertices = np.stack([vertex[c] for c in "xyz"], axis=1).astype(float)
    lists = [n for n in face if isinstance(face[n], tuple)]
    lists.sort(key=lambda n: n not in ("vertex_indices", "vertex_index"))
    corners, sizes = face[lists[0]] if lists else (np.empty(0), np.empty(0, dtype=int))
    strips = [v for v in found.get("tristrips", {}).values() if isinstance(v, tuple)]
    if not len(sizes) and strips:
        corners = _strips(*strips[0])
        sizes = np.full(len(corners) // 3, 3)
    if not len(sizes) and "f_dc_0" in vertex:
        raise Unreadable("no face in it, but Gaussian splats", "make a mesh of them")
    corners = corners.astype(int)
    surface, _, owner = _polygons(vertices, corners, sizes)
    surface.notes += (
        [] if len(sizes) else [n for n in found if n not in ("vertex", "face")]
    )
    for element, of in ((vertex, surface.faces), (face, owner[:, None])):
        color = _ply_color(element, kinds.get("face" if element is face else "vertex"))
        if color is not None and len(color):
            surface.color = color[of].mean(axis=1)
    if pictures:
        _ply_texture(surface, vertex, face, sizes, owner, pictures, beside)
    return surface


def _ply_header(data):
    """The form, the elements, the pictures' names and what follows the header."""
    head = re.match(rb"ply\s(.*?)end_header[ \t]*(\r\n|\n|\r)", data, re.S)
    if head is None:
        raise Unreadable("no PLY header, or a cut one")
    form, elements, pictures = None, [], []
    for line in re.split(rb"[\r\n]+", head[1]):
        match line.split():
            case [b"format", name, *_]:
                form = name.decode()
            case [b"comment", b"TextureFile", *_]:
                pictures.append(line.split(None, 2)[2].strip())
            case [b"element", name, count]:
                elements.append((name.decode(), int(count), []))
            case [b"property", b"list", count, of, name]:
                kinds = PLY_TYPES[count.decode()], PLY_TYPES[of.decode()]
                elements[-1][2].append((name.decode(), kinds))
            case [b"property", of, name]:
                elements[-1][2].append((name.decode(), PLY_TYPES[of.decode()]))
    if form not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise Unreadable(f"unknown format {form}")
    if any(count < 0 for _, count, _ in elements):
        raise Unreadable("a negative count in its header")
    return form, elements, pictures, data[head.end() :]


def _ply_element(data, at, name, count, properties, order):
    """Read an element from a byte on: its columns, and where the next one begins.

    A column of lists is a pair: the values of all, and each one's length.
    """
    lists = {n for n, kind in properties if isinstance(kind, tuple)}

    def dtype(kind):
        return np.dtype("<f8" if order is None else order + kind)

    def record(lengths):
        fields = []
        for n, kind in properties:
            if n in lists:
                fields.append((f"{n} length", dtype(kind[0])))
                kind, length = kind[1], (lengths[n],)
            fields.append((n, dtype(kind), length) if n in lists else (n, dtype(kind)))
        return np.dtype(fields)

    least = count * record(dict.fromkeys(lists, 0)).itemsize
    if least > len(data) - at:
        there = f"{len(data) - at:,} bytes there" if order else "fewer lines there"
        raise Unreadable(f"cut off: {count:,} of {name} promised, {there}")
    if not count or not properties:
        empty = np.empty(0)
        return {
            n: (empty, empty.astype(int)) if n in lists else empty
            for n, _ in properties
        }, at
    # Mostly all rows are as long as the first one.
    lengths, here = {}, at
    for n, kind in properties:
        if n in lists:
            lengths[n] = _ply_length(data, here, *map(dtype, kind), name)
            here += dtype(kind[0]).itemsize + lengths[n] * dtype(kind[1]).itemsize
        else:
            here += dtype(kind).itemsize
    rows = record(lengths)
    if count * rows.itemsize <= len(data) - at:
        table = np.frombuffer(data, rows, count, at)
        if all((table[f"{n} length"] == lengths[n]).all() for n in lists):
            columns = {
                n: (table[n].ravel(), np.full(count, lengths[n]))
                if n in lists
                else table[n]
                for n, _ in properties
            }
            return columns, at + count * rows.itemsize
    chunks = {n: [] for n, _ in properties}
    for _ in range(count):
        for n, kind in properties:
            of, length = dtype(kind[-1] if n in lists else kind), 1
            if n in lists:
                length = _ply_length(data, at, dtype(kind[0]), of, name)
                at += dtype(kind[0]).itemsize
            chunks[n].append(data[at : at + length * of.itemsize])
            at += length * of.itemsize
    if at > len(data):
        raise Unreadable(f"cut off within {name}")
    columns = {}
    for n, kind in properties:
        of = dtype(kind[-1] if n in lists else kind)
        values = np.frombuffer(b"".join(chunks[n]), of)
        sizes = np.array([len(c) // of.itemsize for c in chunks[n]])
        columns[n] = (values, sizes) if n in lists else values
    return columns, at


def _ply_length(data, at, before, of, name):
    """The length of the list at a byte, which is to lie within the data."""
    there = (len(data) - at - before.itemsize) // of.itemsize
    length = np.frombuffer(data, before, 1, at)[0] if there >= 0 else -1
    if not 0 <= length <= there:
        raise Unreadable(f"a list of {name} has {length:g} entries, {there} there")
    return int(length)


def _ply_color(columns, kinds):
    """Colours of an element's rows in [0, 1], or None."""
    for names in PLY_COLORS:
        if set(names) <= columns.keys():
            color = np.stack([columns[n] for n in names], axis=1).astype(float)
            kind = np.dtype(kinds[names[0]])
            if kind.kind not in "iu":
                return _unit(color)
            small = kind.itemsize > 1 and color.max(initial=0) <= 255  # bytes in wider
            return color / (255 if small else np.iinfo(kind).max)
    return None


def _ply_texture(surface, vertex, face, sizes, owner, pictures, beside):
    """Let the faces wear the pictures that the header's comments name."""
    uv = None
    for names in ("uv", "st", ("texture_u", "texture_v")):
        if set(names) <= vertex.keys():
            uv = np.stack([vertex[n] for n in names], axis=1)[surface.faces]
    if isinstance(face.get("texcoord"), tuple) and (sizes == 3).all():
        values, lengths = face["texcoord"]
        if (lengths == 6).all():
            uv = values.reshape(-1, 3, 2)
    if uv is None:
        return
    uv = np.stack([uv[..., 0], 1 - uv[..., 1]], axis=-1).astype(float)
    number = face.get("texnumber", np.zeros(len(sizes)))[owner]
    for k, name in enumerate(pictures):
        worn = np.flatnonzero(number == k)
        texture = Texture(name.decode("utf-8", "replace"), beside.find(name))
        surface.paints.append(Paint(worn, uv[worn], texture))


def _strips(values, sizes):
    """Corners of the triangles of strips, in which -1 begins a new one."""
    values = values.astype(int)
    strip = np.repeat(np.arange(len(sizes)), sizes)
    a, b, c = (np.roll(values, -k)[: max(len(values) - 2, 0)] for k in range(3))
    whole = (strip[2:] == strip[:-2]) & (np.minimum(np.minimum(a, b), c) >= 0)
    # Every other triangle of a strip is wound backward.
    place = np.arange(len(values))
    first = np.concatenate([[True], (strip[1:] != strip[:-1]) | (values[:-1] < 0)])
    odd = (place - np.maximum.accumulate(np.where(first, place, 0)))[: len(a)] % 2 == 1
    faces = np.stack([a, np.where(odd, c, b), np.where(odd, b, c)], axis=1)
    return faces[whole].ravel()


# OBJ

NAMELESS = b"", b"None", b"(null)"  # as exporters name no material


def _read_obj(data, beside):
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        data = data.decode("utf-16").encode()
    data = _with_newlines(data.removeprefix(b"\xef\xbb\xbf"))
    if b"\\" in data:  # a line that goes on; a comment does not
        own = rb"(?m)^[ \t]*[vf][^\n#\\]*(?:\\[ \t]*\n[^\n#\\]*)+"
        data = re.sub(own, lambda m: re.sub(rb"\\[ \t]*\n", b" ", m[0]), data)
    lines = _ObjLines(data)
    if lines.has_comments():
        lines = _ObjLines(re.sub(rb"(?m)^([ \t]*[vf][^\n#]*)#.*$", rb"\1", data))
    vertices, colors = _obj_vertices(lines)
    uvs = _obj_uvs(lines)
    corners, worn, sizes = _obj_corners(lines)
    surface, cut, owner = _polygons(vertices, corners, sizes)
    if len(surface.faces) == 0:
        others = {"l": "lines", "p": "points", "curv": "curves", "surf": "free forms"}
        surface.notes += [v for k, v in others.items() if lines.words_after(k)]
        return surface
    if colors is not None:
        surface.color = colors[surface.faces].mean(axis=1)
    # A face has the material named last before it.
    named = lines.words_after("usemtl")
    last = np.searchsorted([at for at, _ in named], lines.at["f"][owner])
    names = [b"", *(name for _, name in named)]
    unique = {name: k for k, name in enumerate(dict.fromkeys(names))}
    surface.part = np.array([unique[name] for name in names])[last]
    library = {}
    for _, name in lines.words_after("mtllib"):
        _read_mtl(name, beside, library)
    _obj_colors(surface, unique, library, uvs, worn[cut])
    return surface


class _ObjLines:
    """Where the lines of an OBJ's vertices, texture coordinates and faces are.

    at: the numbers of these lines, by kind. sizes: how many words follow on each.
    """

    def __init__(self, data):
        self.data = data
        self.letters = np.frombuffer(data + b"\n\n\n", dtype=np.uint8)
        self.starts, line = words(data)
        self.first = np.flatnonzero(np.diff(line, prepend=-1))  # words of their line
        self.line = line[self.first]
        count = np.diff(self.first, append=len(line)) - 1
        a, b, c = (self.letters[self.starts[self.first] + k] for k in range(3))
        self.kinds = {"v": (a == ord("v")) & (b <= 32)}
        self.kinds["vt"] = (a == ord("v")) & (b == ord("t")) & (c <= 32)
        # "fo" is an old name of "f".
        self.kinds["f"] = (a == ord("f")) & ((b <= 32) | ((b == ord("o")) & (c <= 32)))
        self.at = {kind: self.line[own] for kind, own in self.kinds.items()}
        self.sizes = {kind: count[own] for kind, own in self.kinds.items()}

    def has_comments(self):
        """Whether a comment follows on a line of a vertex or face."""
        at = self.starts[self.first]
        signs = np.flatnonzero(self.letters == ord("#"))
        own = np.searchsorted(at, signs, "right") - 1
        return bool(np.isin(self.letters[at[own[own >= 0]]], list(b"vf")).any())

    def text(self, kind):
        """What follows on the lines of a kind."""
        ends = [*self.starts[self.first], len(self.data)]
        turns = np.diff(self.kinds[kind], prepend=False, append=False)
        begin, end = np.flatnonzero(turns).reshape(-1, 2).T
        runs = (self.data[ends[i] : ends[j]] for i, j in zip(begin, end, strict=True))
        key = {"v": b"v", "vt": b"vt", "f": b"fo"}[kind]
        return b"".join(runs).translate(bytes.maketrans(key, b" " * len(key)))

    def words_after(self, key):
        """(line, the rest of it) of all lines of another kind."""
        lines = re.finditer(rb"(?m)^[ \t]*%b[ \t]+(.*)$" % key.encode(), self.data)
        found = [(m.start(), m[1].strip()) for m in lines]
        ends = np.flatnonzero(self.letters == ord("\n"))
        return [(np.searchsorted(ends, at), rest) for at, rest in found]


def _obj_vertices(lines):
    """Vertices (V, 3), and colours (V, 3), nan where one has none; or None."""
    values, width, at = numbers(lines.text("v")), lines.sizes["v"], lines.at["v"]
    if len(width) and width.min() < 3:
        short = at[width.argmin()] + 1
        raise Unreadable(f"line {short}: a vertex of fewer than three numbers")
    first = np.cumsum(width) - width
    vertices = values[first[:, None] + np.arange(3)]
    color = None
    # x y z r g b, with w before them or alpha after: where both are 1, alpha.
    if (has := width >= 6).any():
        place = first[has] + 3
        if (width[has] == 7).all() and (values[place] == 1).all():
            place += (values[place + 3] != 1).any()
        color = np.full((len(width), 3), np.nan)
        color[has] = _unit(values[place[:, None] + np.arange(3)])
    return vertices, color


def _obj_uvs(lines):
    """Texture coordinates (N, 2), v down; of a line of one number v is 0."""
    values, width = numbers(lines.text("vt")), lines.sizes["vt"]
    first = np.cumsum(width) - width
    uv = np.full((len(width), 2), np.nan)
    for k in range(2):
        has = width > k
        uv[has, k] = values[first[has] + k]
    uv[width == 1, 1] = 0
    uv[:, 1] = 1 - uv[:, 1]
    return uv


def _obj_corners(lines):
    """Vertex and texture coordinate (C,), from 0, of faces' corners such as 1/2/3.

    Returns: both, and how many corners each face has.
    """
    text, sizes = lines.text("f"), lines.sizes["f"]
    at_line = np.repeat(lines.at["f"], sizes)
    count = np.ones(len(at_line), dtype=int)  # of numbers of a corner
    if b"/" in text:
        slash = np.flatnonzero(lines.letters == ord("/"))
        word = np.repeat(lines.first[lines.kinds["f"]] + 1, sizes)
        word += np.arange(len(word)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        ends = np.append(lines.starts, len(lines.data))
        count += np.searchsorted(slash, ends[word + 1])
        count -= np.searchsorted(slash, ends[word])
        if (lines.letters[slash + 1] <= ord("/")).any():  # empty between or at the end
            text = re.sub(rb"/(?=[/\s]|\Z)", b"/0", text)
        text = text.replace(b"/", b" ")
    values = numbers(text, int)
    first = np.cumsum(count) - count
    if len(values) != count.sum() or count.max(initial=1) > 3:
        raise Unreadable("a face's corner is none of 1, 1/2, 1//3, 1/2/3")
    worn = np.zeros(len(count), dtype=int)
    worn[count > 1] = values[first[count > 1] + 1]
    found = []
    for key, index in (("v", values[first]), ("vt", worn)):
        if index.min(initial=0) < 0:  # these count back from their own line
            before = np.searchsorted(lines.at[key], at_line)
            own = np.where(index < 0, index + before, index - 1)
        else:
            own = index - 1
        wrong = (own < 0) | (own >= len(lines.at[key]))
        if key == "vt":  # a picture's place may be missing, a vertex may not
            own[wrong] = -1
        elif wrong.any():
            k = int(wrong.argmax())
            there = np.searchsorted(lines.at[key], at_line[k])
            there = there if index[k] < 0 else len(lines.at[key])
            raise Unreadable(
                f"line {at_line[k] + 1}: index {index[k]} of {there} {key}"
            )
        found.append(own)
    return *found, sizes


def _read_mtl(name, beside, library):
    """Add the materials of the files of one `mtllib` line: name -> colour, texture.

    A name may hold blanks; a line may name several files.
    """
    paths = [beside.find(name)]
    if paths[0] is None:
        several = re.split(rb"(?i)(?<=\.mtl)\s+", name)
        paths = [beside.find(one) for one in several if one != name]
    for path in filter(None, paths):
        own = None
        for line in re.split(
            rb"[\r\n]+", path.read_bytes().removeprefix(b"\xef\xbb\xbf")
        ):
            key, rest = (*line.split(None, 1), b"", b"")[:2]
            key, rest = key.lower(), rest.strip()
            if key == b"newmtl":
                own = library.setdefault(rest, {})
            elif own is None:
                continue
            elif key == b"kd":
                try:
                    color = _unit(numbers(re.split(rb"\s+#", rest)[0]))
                    own["color"] = np.broadcast_to(color, 3)  # of one number: grey
                except ValueError:
                    own["odd"] = rest.decode("utf-8", "replace")
            elif key == b"map_kd":
                own["texture"] = _mtl_texture(rest, path.parent, beside)


def _mtl_texture(rest, folder, beside):
    """A texture, and the scale and offset of uv, from the words of `map_Kd`."""
    scale, offset, wrap = np.ones(2), np.zeros(2), "repeat"
    words = rb"[-+]?[\d.]+(?:[eE][-+]?\d+)?"
    option = rb"-(?:([ost])((?:\s+%b){1,3})|mm(?:\s+%b){2}|(\w+)\s+(\S+))\s+" % (
        words,
        words,
    )
    while found := re.match(option, rest):
        if found[1]:
            given = numbers(found[2])[:2]
            if found[1] != b"t":
                (scale if found[1] == b"s" else offset)[: len(given)] = given
        elif found[3] == b"clamp" and found[4] == b"on":
            wrap = "clamp"
        rest = rest[found.end() :]
    rest = rest.strip(b'"')
    path = beside.find(rest, folder)
    texture = Texture(rest.decode("utf-8", "replace"), path, (wrap, wrap))
    return texture, scale, offset


def _obj_colors(surface, names, library, uvs, worn):
    """Give the faces the colours of their materials, or let them wear pictures.

    A picture goes before the vertices' colours, and these before one of a material,
    since exporters write a grey or black one beside them.
    """
    bare = surface.color is None
    color = np.full((len(surface.faces), 3), np.nan)
    spelled = {name.lower(): own for name, own in library.items()} | library
    order = np.argsort(surface.part, kind="stable")
    faces_of = np.split(order, np.bincount(surface.part, minlength=len(names)).cumsum())
    for name, faces in zip(names, faces_of, strict=False):
        own = spelled.get(name, spelled.get(name.lower()))
        if own is None or not len(faces):
            if name not in NAMELESS and len(faces):
                surface.materials.add(name.decode("utf-8", "replace"))
            continue
        color[faces] = own.get("color", np.nan)
        if "odd" in own:
            surface.notes.append(f"colour {own['odd'][:40]!r}: not read")
        if "texture" in own and len(uvs):
            texture, scale, offset = own["texture"]
            has = faces[(worn[faces] >= 0).all(axis=1)]
            uv = uvs[worn[has]] * [1, -1] + [0, 1]  # up again, as the options count
            uv = (uv * scale + offset) * [1, -1] + [0, 1]
            surface.paints.append(Paint(has, uv, texture))
    if not bare:  # the vertices'
        color = np.where(np.isnan(surface.color), color, surface.color)
    surface.color = color


READERS = {
    ".glb": read_gltf,
    ".gltf": read_gltf,
    ".obj": _read_obj,
    ".ply": _read_ply,
    ".stl": _read_stl,
    ".off": _read_off,
}
