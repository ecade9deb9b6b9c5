"""Living scenes with k3d and ipywidgets: sliders move traits, nothing is rebuilt.

Volumes are those of `plots.grid_values`: [z, y, x], as k3d reads them; 64^3 is enough.
"""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anywidget
import igl
import ipywidgets as ui
import k3d
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.colors import to_hex
from scipy.ndimage import laplace, map_coordinates
from traitlets import Int, List, Unicode

from ..camera import Camera
from ..data.files import write_whole
from ..data.rendering import CREASE_DEGREES
from ..sampling import HALF_BOX

if TYPE_CHECKING:
    import trimesh
    from matplotlib.figure import Figure
    from torch import Tensor

LIMIT = 1.5  # MB of a snapshot; k3d's own script is 1.2 of them
BOX = np.array([-HALF_BOX, HALF_BOX] * 3)
AROUND = 0.04  # world units, of a slice around the shape
FAR = 0.1  # world units: a volume is cut off there, and so packs well
COLORS = "coolwarm_r"  # `plots.MAP_COLORS`
RAMP = np.array([[t, *plt.get_cmap(COLORS)(t)[:3]] for t in np.linspace(0, 1, 33)])
# k3d's page is its scene alone; above it come words, below it a still
TARGET = '<div id="canvasTarget"></div>'
PHONE = '<meta name="viewport" content="width=device-width, initial-scale=1">\n    '
# A page, and the scene on it, are dark where the reader's other pages are.
DARK = """if (matchMedia("(prefers-color-scheme: dark)").matches) {
    K3DInstance.setClearColor(0x2b2b2f);
    K3DInstance.setLabelColor(0xe6e6e6);
}
"""
LAYOUT = """
        @media (prefers-color-scheme: dark) {
            html body { background: #2b2b2f; color: #e6e6e6; }
        }
        body { display: flex; flex-direction: column; height: 100dvh;
               font: 16px/1.4 system-ui, sans-serif; background: #fff; color: #222; }
        p { margin: 0; padding: .5rem .8rem; }
        main { position: relative; flex: 1; min-height: 0; max-height: 100vw; }
        main img { position: absolute; width: 100%; height: 100%; object-fit: contain; }
        .bar { width: 22rem; max-width: 100%; padding: 0 .8rem .5rem;
               box-sizing: border-box; }
        label { display: flex; gap: .6rem; padding: 0 .8rem .5rem; }
        label[hidden] { display: none; } input { flex: 1; max-width: 30rem; }
    """
# A scene's time by a slider of the page, one drawing after the other.
MOVE = """
const label = document.querySelector("label"), at = label.querySelector("input");
let shown = at.value, busy = false;
label.hidden = false;
at.oninput = async () => {
    label.querySelector("output").value = at.value;
    if (busy) return;
    busy = true;
    while (shown !== at.value) {
        shown = at.value;
        await K3DInstance.setTime(+shown);
    }
    busy = false;
};
"""
CLAY, FINAL, BASE = 0xE0DBD1, 0x6A3DA8, 0xC9B6EA
# What a `CornerPicker` is in a browser; an SVG's units are the picture's pixels.
PICKER = """
const made = (name, about) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in about) node.setAttribute(key, about[key]);
  return node;
};
const KEYS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
};
function render({ model, el }) {
  const size = model.get("size");
  const svg = made("svg", { viewBox: `0 0 ${size} ${size}`, class: "corner-picker",
    style: "display:block; width:100%; background:white; touch-action:none" });
  const image = made("image", { width: size, height: size });
  const line = made("polygon", { fill: "none", stroke: "black",
    "stroke-width": size / 150 });
  const dots = model.get("corners").map((_, k) => made("circle", { r: size / 45,
    fill: "white", stroke: "black", "stroke-width": size / 150, tabindex: 0,
    role: "button", "aria-label": `corner ${k + 1}: arrow keys move it` }));
  svg.append(image, line, ...dots);
  const draw = () => {
    const corners = model.get("corners");
    const [[a, b], [c, d]] = corners.length == 2 ? corners : [[0, 0], [0, 0]];
    const ring = corners.length == 2 ? [[a, b], [c, b], [c, d], [a, d]] : corners;
    image.setAttribute("href", model.get("picture"));
    line.setAttribute("points", ring.join(" "));
    corners.forEach(([x, y], k) => {
      dots[k].setAttribute("cx", x);
      dots[k].setAttribute("cy", y);
    });
  };
  const move = (k, place) => {
    const fit = place.map((v) => Math.min(size, Math.max(0, Math.round(v))));
    model.set("corners", model.get("corners").map((c, i) => (i == k ? fit : c)));
    model.save_changes();
  };
  const spot = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY);
    const { x, y } = point.matrixTransform(svg.getScreenCTM().inverse());
    return [x, y];
  };
  let held = -1;
  svg.onpointerdown = (event) => {
    const [x, y] = spot(event);
    const far = model.get("corners").map(([u, v]) => Math.hypot(u - x, v - y));
    held = far.indexOf(Math.min(...far));
    if (held < 0) return;
    svg.setPointerCapture(event.pointerId);
    move(held, [x, y]);
  };
  svg.onpointermove = (event) => held < 0 || move(held, spot(event));
  svg.onpointerup = svg.onpointercancel = () => (held = -1);
  dots.forEach((dot, k) => (dot.onkeydown = (event) => {
    const [dx, dy] = KEYS[event.key] || [0, 0];
    if (!dx && !dy) return;
    event.preventDefault();
    event.stopPropagation();
    const [x, y] = model.get("corners")[k];
    move(k, [x + dx, y + dy]);
  }));
  model.on("change:corners change:picture", draw);
  draw();
  el.append(svg);
}
export default { render };
"""


class Explorer(NamedTuple):
    """A scene with its sliders."""

    view: ui.Widget  # what `show` takes
    plot: k3d.Plot  # what `snapshot` takes
    controls: dict  # ipywidgets by name
    objects: dict  # k3d's objects by name


class CornerPicker(anywidget.AnyWidget):
    """A picture whose corners move: a click takes the nearest one, so does dragging.

    Two corners are opposite ones of a rectangle; without any it is a picture alone.
    `corners` holds them as [x, y] in the picture's pixels, and may be observed.

    Args: image: (3, H, H) RGB in [0, 1], numpy or torch. corners: (N, 2) pixels.
    """

    _esm = PICKER
    picture = Unicode().tag(sync=True)  # a data URL
    size = Int().tag(sync=True)
    corners = List().tag(sync=True)

    def __init__(self, image: np.ndarray | Tensor, corners: object = (), **options):
        places = np.asarray(corners).tolist()
        super().__init__(size=len(image[0]), corners=places, **options)
        self.draw(image)

    def draw(self, image: np.ndarray | Tensor) -> None:
        """Show another picture of the same size under the corners."""
        pixels, page = np.moveaxis(np.asarray(image), 0, -1).clip(0, 1), io.BytesIO()
        plt.imsave(page, pixels, format="png")
        data = base64.b64encode(page.getvalue()).decode()
        self.picture = f"data:image/png;base64,{data}"


def show(view: ui.Widget, still: Figure) -> None:
    """Show a widget and a picture of it in one output: a reader's page has either.

    Args: view: k3d.Plot or Explorer.view. still: Figure from the same camera; closed.
    """
    page = io.BytesIO()
    still.savefig(page, format="png", dpi=100)
    plt.close(still)  # or the notebook shows it once more
    live = dict(version_major=2, version_minor=0, model_id=view.model_id)
    bundle = {"application/vnd.jupyter.widget-view+json": live}
    bundle["image/png"] = base64.b64encode(page.getvalue()).decode()
    display(bundle | {"text/plain": "a scene: run the cell"}, raw=True)


def snapshot(
    plot: k3d.plot.Plot,
    path: str | Path,
    title: str = "A scene",
    sentence: str = "Drag to turn it, scroll or pinch to come nearer.",
    still: Figure | None = None,
) -> None:
    """Write a scene as one HTML file that turns in a browser, without a kernel.

    A scene whose objects change with its time has a slider for it: the strength.

    Args: plot: k3d.Plot. path: of the file, written whole or not at all.
        title, sentence: what stands above the scene. still: Figure of the same, seen
            until the scene is drawn, and where a browser has no WebGL.
    Raises: ValueError: larger than 1.5 MB.
    """
    title, sentence = html.escape(title), html.escape(sentence)
    below = ""
    if still is not None:
        file = io.BytesIO()
        still.savefig(file, format="jpeg", dpi=80, pil_kwargs={"quality": 80})
        data = base64.b64encode(file.getvalue()).decode()
        below = f'<img alt="{title}" src="data:image/jpeg;base64,{data}">'
    low, top = plot.get_time_series_range()
    slider, moves = "", ""
    if low < top:
        span = f'min="{low}" max="{top}" step="0.05" value="{plot.time}"'
        slider = f'<label hidden>strength <input type="range" {span}>'
        slider, moves = f"{slider}<output>{plot.time:g}</output></label>", MOVE
    bars = ""
    for thing in plot.objects:
        if len(ends := getattr(thing, "color_range", ())) == 2:
            name = (thing.custom_data or {}).get("shows", "f_D")
            bars += f'<div class="bar">{_bar(name, ends[1])}</div>'
    page = plot.get_snapshot(9, additional_js_code=DARK + moves)
    head = f"{PHONE}<title>{title}</title>"
    page = re.sub("<title>.*?</title>", lambda _: head, page, count=1)
    page = page.replace("<html>", '<html lang="en">', 1)
    page = page.replace("</style>", f"{LAYOUT}</style>", 1)
    stage = f"<main>{below}{TARGET}</main>"
    words = f"<p><strong>{title}.</strong> {sentence}</p>{bars}{slider}"
    page = page.replace(TARGET, f"{words}{stage}")
    page = page.encode()
    if (mb := len(page) / 1e6) > LIMIT:
        raise ValueError(f"{path} would have {mb:.2f} of {LIMIT} MB: give coarser data")
    write_whole(Path(path), lambda file: file.write(page))


def mesh_scene(mesh: trimesh.Trimesh, camera: Camera) -> k3d.plot.Plot:
    """Show a mesh, smooth but for its creases.

    Args: mesh: trimesh.Trimesh, world frame. camera: Camera, where the viewer stands.
    Returns: k3d.Plot.
    """
    vertices, faces = np.array(mesh.vertices, float), np.array(mesh.faces, np.int64)
    normals = igl.per_corner_normals(vertices, faces, CREASE_DEGREES).reshape(-1, 3)
    # one vertex for each normal that meets at it: creases stay sharp
    corners = np.column_stack([faces.ravel(), np.round(1000 * normals)])
    _, first, index = np.unique(corners, axis=0, return_index=True, return_inverse=True)
    look = dict(normals=normals[first], flat_shading=False, side="double", color=CLAY)
    triangles = index.reshape(-1, 3).astype(np.uint32)
    return _scene(camera, k3d.mesh(vertices[faces.ravel()[first]], triangles, **look))


def strength_scene(
    mesh: trimesh.Trimesh,
    feet: np.ndarray,
    added: np.ndarray,
    camera: Camera,
    top: float = 2.0,
) -> k3d.plot.Plot:
    """Let a mesh grow out of its base, coloured by what is added to the base field.

    The strength is the scene's time: the browser blends, and nothing is sent again.

    Args: mesh: trimesh.Trimesh of F. feet: (N, 3) of its vertices, on the base.
        added: (N,) f_D there, world units. camera: Camera, where the viewer stands.
        top: the largest strength.
    Returns: k3d.Plot at time 1; `snapshot` gives its page a slider.
    """
    limit = max(np.percentile(np.abs(added), 99), 1e-6)
    ends = {"0.0": 0.0, str(float(top)): top}
    rise = mesh.vertices - feet
    places = {t: _rounded(feet + s * rise) for t, s in ends.items()}
    colors = {t: _rounded(s * added) for t, s in ends.items()}
    look = dict(color_map=RAMP, color_range=[-limit, limit], attribute=colors)
    look |= dict(flat_shading=False, side="double", color=0xFFFFFF, name="shape")
    plot = _scene(camera, k3d.mesh(places, np.array(mesh.faces, np.uint32), **look))
    plot.time = 1.0
    return plot


def field_explorer(sdf: np.ndarray, base: np.ndarray, camera: Camera) -> Explorer:
    """Walk through F, f_B, their difference and Laplacians by slice and iso level.

    The slice is as large as the shape, which is cut open there: what stands between
    slice and viewer is left out.

    Args: sdf, base: volumes of F and f_B. camera: Camera, where the viewer stands.
    Returns: Explorer; controls: field, bar (its colours), across (x, y, z or none),
        at (the slice's place, world units), level, surface.
    """
    side, step = len(sdf), 2 * HALF_BOX / len(sdf)
    fields = {"F": sdf, "f_B": base, "F - f_B": sdf - base}
    odd = dict(pad_width=1, mode="reflect", reflect_type="odd")  # no bend at the border
    for name, v in [*fields.items()]:
        fields[f"Δ ({name})"] = laplace(np.pad(v, **odd))[3 * (slice(1, -1),)] / step**2
    near = np.abs(sdf) <= max(2 * step, np.abs(sdf).min())
    tops = [np.percentile(np.abs(v[near]), 99) + 1e-6 for v in fields.values()]
    tops[:2], tops[3:] = [FAR] * 2, [max(tops[5], 10.0)] * 3  # 2 / 0.2: a ball's
    packed = {n: _pack(v, t) for (n, v), t in zip(fields.items(), tops, strict=True)}
    surface = dict(flat_shading=False, opacity=0.6, bounds=(1 - 1 / side) * BOX)
    final = k3d.marching_cubes(packed["F"], 0, FINAL, name="final", **surface)
    coarse = k3d.marching_cubes(packed["f_B"], 0, BASE, name="base", **surface)
    spots = np.argwhere(np.minimum(sdf, base) < AROUND)  # z, y, x
    low, high = (
        (spots.min(0), spots.max(0) + 1) if len(spots) else ([0] * 3, [side] * 3)
    )
    window = tuple(map(slice, low, high))
    corners = np.array([low, high])[:, ::-1] * step - HALF_BOX  # x, y, z
    look = dict(color_map=RAMP, color_range=[-FAR, FAR], bounds=corners.T.ravel())
    plane = k3d.volume_slice(packed["F"][window], name="slice", slice_z=-1, **look)
    field = ui.Dropdown(options=list(fields), description="slice shows")
    ui.dlink((field, "value"), (plane, "volume"), lambda name: packed[name][window])
    spans = {name: [-t, t] for name, t in zip(fields, tops, strict=True)}
    ui.dlink((field, "value"), (plane, "color_range"), spans.get)
    ui.dlink((field, "value"), (plane, "custom_data"), lambda n: {"shows": n})
    bar = ui.HTML()
    ui.dlink((field, "value"), (bar, "value"), lambda n: _bar(n, spans[n][1]))
    across = ui.ToggleButtons(options=(*"xyz", "none"), value="y", description="across")
    across.style.button_width = "45px"
    look = dict(min=-0.5, max=0.5, step=0.01, description="at")
    at, plot = ui.FloatSlider(**look), _scene(camera, final, coarse, plane)

    def cut(_=None):
        for k, name in enumerate("xyz"):
            cell = int((at.value - corners[0, k]) // step)
            seen = name == across.value and 0 <= cell < high[2 - k] - low[2 - k]
            setattr(plane, f"slice_{name}", cell if seen else -1)
        if across.value == "none":
            plot.clipping_planes = []
            return
        keeps = np.eye(3)["xyz".find(across.value)]  # n · p + d > 0 stays
        keeps *= -1 if keeps @ camera.position > at.value else 1
        plot.clipping_planes = [[*keeps, 0.6 * step - keeps.sum() * at.value]]

    for control in (across, at):
        control.observe(cut, "value")
    cut()
    look = dict(min=-0.05, max=0.05, step=0.005, readout_format=".3f")
    level = ui.FloatSlider(description="level", **look)
    shown = ui.ToggleButtons(options=("final", "base", "both"), description="surface")
    for thing in (final, coarse):
        ui.link((level, "value"), (thing, "level"))
        shows = {thing.name, "both"}.__contains__
        ui.dlink((shown, "value"), (thing, "visible"), shows)
    controls = dict(field=field, bar=bar, across=across, at=at)
    return _explorer(plot, controls | dict(level=level, surface=shown))


def displacement_explorer(
    sdf: np.ndarray,
    base: np.ndarray,
    maps: np.ndarray,
    camera: Camera,
    mask: np.ndarray | None = None,
) -> Explorer:
    """Turn the displacement up and down, and follow a pixel's ray through the shape.

    The map stands as a picture before the shape; a click on it chooses the pixel. Its
    ray enters where the front map counts, and leaves where the back map does.

    Args: sdf, base: volumes of F and f_B. maps: (2, H, W) world units: 0 front, 1 back.
        camera: Camera of the maps. mask: (H, W) bool, where they mean something.
    Returns: Explorer; controls: strength, part (both, front, back), bar (the colours of
        what they add), column and row (pixels), words.
    """
    side, size = len(sdf), np.shape(maps)[-1]
    camera = camera.resized(size)
    slope = np.stack(np.gradient(base)[::-1], -1) @ camera.rotation[2]
    both = _pack(sdf - base)  # in front f_B falls along the viewing axis
    added = {"both": both, "front": both * (slope < 0), "back": both * (slope >= 0)}
    maps = np.where(True if mask is None else mask, maps, 0.0)
    limit = max(np.abs(maps).max(), 1e-6)
    look = dict(attribute=_pack(both, limit), bounds=(1 - 1 / side) * BOX)
    look |= dict(color_map=RAMP, color_range=[-limit, limit], flat_shading=False)
    shape = k3d.marching_cubes(_pack(sdf), 0.0, 0xFFFFFF, name="shape", **look)
    eye, rays = camera.position, camera.rays()[1].astype(float)
    depth = max(camera.translation[2] - HALF_BOX - 0.2, 0.2)  # of the picture
    square = np.array([[0, 0], [1, 0], [1, 1], [0, 1]])
    edges = np.insert((size * square - camera.centre) / camera.focal, 2, 1, axis=1)
    corners = eye + depth * edges @ camera.rotation
    pictures = [io.BytesIO() for _ in maps]
    for page, values in zip(pictures, maps, strict=True):
        plt.imsave(page, values, cmap=COLORS, vmin=-limit, vmax=limit, format="png")
    look = dict(texture_file_format="png", uvs=square, side="double")
    look |= dict(texture=pictures[0].getvalue(), color=0xFFFFFF, name="map")
    picture = k3d.mesh(corners, [[0, 1, 2], [0, 2, 3]], **look)
    line = k3d.line(corners[:2], shader="simple", color=0x808080, name="ray")
    look = dict(color=0xF2C500, point_size=0.03, shader="3d", name="crossings")
    hits = k3d.points(corners[:2], **look)  # the first one is the pixel on the map
    strength = ui.FloatSlider(1, min=0, max=3, description="strength")
    part = ui.ToggleButtons(options=tuple(added), description="maps")
    column = ui.IntSlider(size // 2, 0, size - 1, description="column")
    row, words = ui.IntSlider(size // 2, 0, size - 1, description="row"), ui.HTML()
    depths = camera.translation[2] + 2**0.5 * HALF_BOX * np.linspace(-1, 1, 257)

    def follow(_=None):
        ray = rays[row.value, column.value]
        points = eye + depths[:, None] * ray  # z, y, x is a volume's order
        cells = (points[:, ::-1] / HALF_BOX + 1) * side / 2 - 0.5
        along = map_coordinates(shape.scalar_field, cells.T, order=1, cval=FAR)
        ends = np.flatnonzero((along[1:] > 0) != (along[:-1] > 0))
        share = along[ends] / (along[ends] - along[ends + 1])
        z = depths[ends] + share * (depths[1] - depths[0])
        hits.positions = eye + np.append(depth, z)[:, None] * ray
        line.vertices = [eye, points[-1]]
        front, back = maps[:, row.value, column.value]
        deep = ", ".join(f"{value:.3f}" for value in z) or "none"
        words.value = f"maps {front:+.4f}, {back:+.4f}<br>crossings at depth {deep}"

    def compose(_=None):
        more = strength.value * added[part.value]
        shape.scalar_field, shape.attribute = _pack(base + more), _pack(more, limit)
        picture.texture = pictures[part.value == "back"].getvalue()
        follow()

    def click(content):
        uv, _ = camera.project(np.array([content["position"]]))
        column.value, row.value = ((uv[0] + 1) / 2 * size).clip(0, size - 1).astype(int)

    picture.click_callback = click
    for control in (strength, part, column, row):
        control.observe(follow if control in (column, row) else compose, "value")
    compose()
    aside = np.degrees(np.arctan2(eye[0], eye[2]))
    aside -= np.copysign(50, aside)  # the picture hides nothing; +z has the relief
    plot = _scene(Camera(aside, 20, 1.35, size), shape, picture, line, hits)
    plot.mode = "callback"  # or a click is not heard
    controls = dict(strength=strength, part=part, bar=ui.HTML(_bar("f_D", limit)))
    return _explorer(plot, controls | dict(column=column, row=row, words=words))


def _scene(camera, *things):
    plain = dict(grid_visible=False, menu_visibility=False, camera_auto_fit=False)
    plain |= dict(colorbar_object_id=0)  # it has no title: `_bar` stands beside a scene
    plot = k3d.plot(height=420, **plain)
    plot.camera_fov = np.degrees(2 * np.arctan(camera.size / 2 / camera.focal))
    plot.camera = [*camera.position, 0, 0, 0, *-camera.rotation[1]]
    for thing in things:
        plot += thing
    return plot


def _explorer(plot, controls):
    column = ui.VBox(list(controls.values()), layout=dict(min_width="330px"))
    objects = {thing.name: thing for thing in plot.objects}
    return Explorer(ui.HBox([column, plot]), plot, controls, objects)


def _bar(name, top):
    """A titled bar of the colours of a slice or a shape."""
    colors = ", ".join(map(to_hex, plt.get_cmap(COLORS)(np.linspace(0, 1, 9))))
    unit = "1 / world unit" if "Δ" in name else "world units"
    look = f"height: 12px; background: linear-gradient(to right, {colors})"
    ends = "".join(f"<span>{value:+.3g}</span>" for value in (-top, 0, top))
    ends = f'<div style="display: flex; justify-content: space-between">{ends}</div>'
    return f'<b>{name}</b>, {unit}<div style="{look}"></div>{ends}'


def _pack(volume, limit=FAR):  # in 16 bits' precision: a page has room for it
    return np.clip(volume, -limit, limit).astype(np.float16).astype(np.float32)


def _rounded(values, steps=2**14):  # as above: a wobble of 0.00003 world units
    return np.array(np.round(values * steps) / steps, np.float32)
