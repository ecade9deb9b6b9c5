"""The paper's figures with matplotlib: slices of fields, maps, shaded meshes, curves.

Computing is apart from drawing: `slice_values` and `shade` give arrays, the `draw_*`
functions take an Axes and return what they drew. Everywhere red is where matter is: the
inside of a field, and relief that stands out of the base (a negative displacement).
"""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import CenteredNorm

from ..data.rendering import SUBPIXELS, Renderer
from ..fields import values_at
from ..losses import DELTA
from ..sampling import HALF_BOX

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import trimesh
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D
    from matplotlib.text import Text
    from torch import Tensor

    from ..camera import Camera
    from ..fields import Field

SDF_COLORS = "RdBu"
# Of matplotlib's diverging maps with a light middle coolwarm has the most even steps in
# CIELAB, the same lightness on both sides, and ends that a deuteranope tells apart; its
# zero is grey, so that white stays the background's.
MAP_COLORS = "coolwarm_r"
PARTS = ("F", "f_B", "f_D")  # as lines: dark, light and dashed, apart in grey too
FIELD_LINES = (
    dict(color="#4b1d7f", linewidth=3.5),
    dict(color="#b79be0", linewidth=2.5),
    dict(color="black", linewidth=1.3, linestyle="--"),
)

# A slice's axis -> the world axes that run right and up in its picture.
SLICE_AXES = {"x": ("z", "y"), "y": ("x", "z"), "z": ("x", "y")}

# Camera frame (x right, y down, z forward): up to the left and 55 degrees off the
# viewing axis, so that relief throws a gradient on a face seen head on.
LIGHT = np.array([-0.58, -0.58, -0.57])
CLAY = np.array([0.88, 0.86, 0.82])


class Slice(NamedTuple):
    """A field's values on a plane."""

    values: np.ndarray  # (R, R), world units, row 0 at the lowest coordinate
    extent: tuple  # left, right, bottom, top of the picture, world units
    axes: tuple  # names of the world axes that run right and up


def slice_values(
    field: Field, axis: str = "z", at: float = 0.0, resolution: int = 200
) -> Slice:
    """Evaluate a field on a plane across one axis.

    Args: field: callable on float32 tensors, (P, 3) world -> (P,); it may answer with
            an array, so that `lambda p: signed_distance(mesh, p)[0]` is one.
        axis: "x" (the picture's axes are z, y), "y" (x, z) or "z" (x, y).
        at: coordinate of the plane, world units.
        resolution: samples along a side of the box, at the centres of equal cells.
    Returns: Slice.
    Raises: ValueError: an unknown axis, or a field that answers with another shape.
    """
    if axis not in SLICE_AXES:
        raise ValueError(f'axis must be "x", "y" or "z", got {axis!r}')
    place = {axis: np.full((resolution, resolution), at)}
    plane = np.meshgrid(*2 * [_cells(resolution)])
    place |= dict(zip(SLICE_AXES[axis], plane, strict=True))
    points = np.stack([place[name] for name in "xyz"], -1)
    extent = (-HALF_BOX, HALF_BOX, -HALF_BOX, HALF_BOX)
    return Slice(values_at(field, points), extent, SLICE_AXES[axis])


def grid_values(field: Field, resolution: int = 64) -> np.ndarray:
    """Evaluate a field at the centres of equal cells of the box, for a living scene.

    Args: field: see `slice_values`. resolution: cells along a side.
    Returns: (R, R, R) f4, indexed [z, y, x], world units.
    """
    z, y, x = np.meshgrid(*3 * [_cells(resolution)], indexing="ij")
    return values_at(field, np.stack([x, y, z], -1))


def _cells(resolution):
    return HALF_BOX * ((np.arange(resolution) + 0.5) * 2 / resolution - 1)


class Decomposition(NamedTuple):
    """F, f_B and f_D in the plane of a row of pixels, and along a front surface."""

    sections: tuple  # Slices of F, f_B, f_D: right = camera x, up = depth
    fronts: tuple  # (W, 2) of F and of f_B: where each pixel's ray enters, NaN if never
    at: np.ndarray  # (N,) camera x of the entries into f_B that F's front faces
    values: np.ndarray  # (3, N) of F, f_B, f_D there, world units
    laplacians: np.ndarray  # (3, N) there, 1 / world unit


def decompose(
    fields: Sequence[Field],
    camera: Camera,
    row: int,
    *,
    step: float = DELTA / 2,
    resolution: int = 240,
) -> Decomposition:
    """Cut F, f_B and f_D along one row of pixels: the paper's figure, computed.

    Values and Laplacians are taken along the front surface of the base: f_B is 0 there,
    so that what is left of F is what the displacement has to give.

    Args: fields: F, f_B and p -> f_D(u(p)), callables (P, 3) world -> (P,), world
            units. camera: Camera. row: of its pixels.
        step: of the 7-point stencil, world units; for a map, a pixel's width or more.
        resolution: samples along the plane's sides.
    Returns: Decomposition.
    """
    middle = camera.translation[2]  # the origin's depth
    sight = (row + 0.5 - camera.centre[1]) / camera.focal

    def place(x, depth):  # camera x and depth -> world points
        local = np.stack([x, sight * depth, depth], -1)
        return (local - camera.translation) @ camera.rotation

    extent = (-HALF_BOX, HALF_BOX, middle - HALF_BOX, middle + HALF_BOX)
    cells = _cells(resolution)
    plane = place(*np.meshgrid(cells, middle + cells))
    axes = ("camera x", "depth")
    cuts = tuple(Slice(values_at(f, plane), extent, axes) for f in fields)

    pixel = np.arange(camera.size)
    slope = (pixel + 0.5 - camera.centre[0]) / camera.focal  # x / depth of each ray
    depth = np.linspace(*extent[2:], 2 * resolution)
    rays = place(*np.broadcast_arrays(slope * depth[:, None], depth[:, None]))
    fronts = []
    for field in fields[:2]:
        along = values_at(field, rays)  # (depths, W)
        enters = (along[:-1] > 0) & (along[1:] <= 0)
        first = enters.argmax(0)
        low, high = along[first, pixel], along[first + 1, pixel]
        share = low / np.where(enters.any(0), low - high, np.nan)
        entry = depth[first] + share * (depth[1] - depth[0])
        fronts.append(np.stack([slope * entry, entry], 1))
    at = fronts[1][np.isfinite(fronts[0] + fronts[1]).all(1)]
    stencil = np.concatenate([np.zeros((1, 3)), step * np.eye(3), -step * np.eye(3)])
    points = place(*at.T) + stencil[:, None]  # (7, N, 3)
    around = np.stack([values_at(field, points) for field in fields])
    laplacians = (around[:, 1:].sum(1) - 6 * around[:, 0]) / step**2
    return Decomposition(cuts, tuple(fronts), at[:, 0], around[:, 0], laplacians)


def draw_decomposition(fig: Figure, parts: Decomposition) -> dict[str, Axes]:
    """Draw the paper's figure, panels (a) to (e), on an empty figure.

    Returns: dict of Axes, "a" to "e".
    """
    axes = fig.subplot_mosaic("aabbcc;dddeee")
    known = np.concatenate([f[np.isfinite(f).all(1)] for f in parts.fronts])
    if not len(known):
        known = np.reshape(parts.sections[0].extent, (2, 2)).T
    low, high = known.min(0) - 0.05, known.max(0) + 0.05
    spare = max(0, 0.6 * (high - low)[0] - (high - low)[1]) / 2
    low, high = low - (0, spare), high + (0, spare)
    titles = dict(a="SDF of the shape", b="SDF of the base", c="displacement")
    for k, (name, title) in enumerate(titles.items()):
        ax, (values, extent, (right, up)) = axes[name], parts.sections[k]
        place = dict(extent=extent, origin="lower")
        if name == "c":
            limit = max(np.abs(parts.values[2]).max(initial=0), 1e-9)
            colors = dict(cmap=MAP_COLORS, norm=CenteredNorm(halfrange=limit))
            artist = ax.imshow(values, interpolation="bilinear", **colors, **place)
            fig.colorbar(artist, ax=ax, shrink=0.6, label="world units")
        else:
            colors = dict(cmap=SDF_COLORS, vmin=-0.1, vmax=0.1, linestyles="dashed")
            ax.contour(values, np.linspace(-0.3, 0.3, 31), **colors, **place)
        for front, style in zip(parts.fronts, FIELD_LINES, strict=False):
            jump = np.abs(np.diff(front[:, 1], prepend=np.nan)) > DELTA
            if name == "c" or front is parts.fronts[k]:
                ax.plot(*np.where(jump[:, None], np.nan, front).T, **style)
        ax.set(title=f"({name}) {title}", xlabel=right, ylabel=up, aspect="equal")
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
        words = dict(ha="center", fontsize=9, bbox=dict(fc="white", ec="none", pad=1))
        ax.text(0.5, 0.03, "▼ camera", transform=ax.transAxes, **words)
        if name != "c":
            ax.text(0.5, 0.88, "inside", transform=ax.transAxes, **words)
    units = {"d": ("values", "world units"), "e": ("Laplacians", "1 / world unit")}
    for name, curves in zip(units, parts[3:], strict=True):
        ax, (title, unit), sign = axes[name], units[name], "Δ " * (name == "e")
        gap = np.diff(parts.at, prepend=np.nan) > DELTA
        for curve, label, style in zip(curves, PARTS, FIELD_LINES, strict=True):
            ax.plot(parts.at, np.where(gap, np.nan, curve), label=sign + label, **style)
        if curves.size:  # edges would dwarf the relief
            top = 1.6 * max(np.percentile(np.abs(curves), 95), 1e-9)
            ax.set(ylim=(-top, top))
        ax.set(title=f"({name}) {title} on (b)'s front", xlabel="camera x", ylabel=unit)
    fig.legend(handles=axes["d"].lines, ncols=3, loc="outside lower center")
    return axes


def draw_slice(
    ax: Axes, section: Slice, *, limit: float | None = None, step: float = 0.05
) -> AxesImage:
    """Draw a slice: RdBu centred at 0, iso-lines, the surface in black.

    Args: ax: Axes. section: Slice.
        limit: the colours' range is [-limit, limit], world units; by default the
            slice's own. step: between iso-lines, world units; 0 draws none.
    Returns: The AxesImage.
    """
    values, extent, (right, up) = section
    limit = limit or max(np.abs(values).max(), 1e-9)
    place = dict(extent=extent, origin="lower")
    colors = dict(cmap=SDF_COLORS, norm=CenteredNorm(halfrange=limit))
    artist = ax.imshow(values, **colors, **place)
    low, high = values.min(), values.max()
    if step:
        levels = step * np.arange(np.ceil(low / step), np.floor(high / step) + 1)
        if len(levels := levels[levels != 0]):
            style = dict(colors="0.35", linewidths=0.5, linestyles="solid")
            ax.contour(values, levels, **style, **place)
    if low < 0 < high:
        ax.contour(values, [0], colors="black", linewidths=1.6, **place)
    ax.set(xlabel=right, ylabel=up)
    return artist


def draw_map(
    ax: Axes,
    values: np.ndarray,
    mask: np.ndarray | None = None,
    limit: float | None = None,
) -> AxesImage:
    """Draw a displacement or Laplacian map, zero in grey, the background white.

    Args: ax: Axes. values: (H, W), numpy or torch.
        mask: (H, W) bool, True where the map means something; None for everywhere.
        limit: the colours' range is [-limit, limit]; by default the largest of the
            masked values. Maps that are compared need one limit.
    Returns: The AxesImage.
    """
    values = np.asarray(values, dtype=float)
    shown = np.isfinite(values) if mask is None else np.asarray(mask, dtype=bool)
    limit = limit or max(np.abs(values[shown]).max(initial=0), 1e-9)
    _frameless(ax)
    colors = dict(cmap=MAP_COLORS, norm=CenteredNorm(halfrange=limit))
    return ax.imshow(np.ma.array(values, mask=~shown), **colors)


def draw_image(ax: Axes, image: np.ndarray | Tensor) -> AxesImage:
    """Draw a picture.

    Args: ax: Axes.
        image: (3, H, W) RGB in [0, 1], numpy or torch, or a grey map (H, W), 0 white.
    Returns: The AxesImage.
    """
    image = np.asarray(image)
    if image.ndim == 3:
        image = np.clip(np.moveaxis(image, 0, -1), 0, 1)
    _frameless(ax)
    return ax.imshow(image, cmap="Greys")  # the map of colours is for grey alone


def normal_colors(normals: np.ndarray) -> np.ndarray:
    """Normals as colours: red grows to the right, green up, blue toward the camera.

    Args: normals: (3, H, W) camera frame, zero on the background.
    Returns: (3, H, W) RGB in [0, 1], white on the background.
    """
    normals = np.asarray(normals, dtype=np.float32)
    colors = 0.5 + 0.5 * normals * np.array([1, -1, -1], np.float32)[:, None, None]
    return np.where(normals.any(0), colors, 1.0)


def shade(
    mesh: trimesh.Trimesh,
    camera: Camera,
    paint: Callable | None = None,
    limit: float | None = None,
) -> np.ndarray:
    """Shade a mesh under one fixed light beside the camera; needs no screen.

    Args: mesh: trimesh.Trimesh, world frame. camera: Camera; its size is the picture's.
        paint: callable (P, 3) -> (P,) that colours the surface as a map, such as the
            displacement p -> f_D(u(p)); None for clay.
        limit: the colours' range is [-limit, limit]; by default paint's own.
    Returns: (3, H, W) RGB in [0, 1] on white.
    Raises: ValueError: the mesh has no face.
    """
    hit, depth, normals, _ = Renderer(mesh).cast(camera, SUBPIXELS)
    color = CLAY
    if paint is not None:
        origins, rays = camera.rays(SUBPIXELS)
        values = values_at(paint, (origins + depth[..., None] * rays)[hit])
        norm = CenteredNorm(halfrange=limit or max(np.abs(values).max(initial=0), 1e-9))
        color = np.ones(normals.shape)
        color[hit] = plt.get_cmap(MAP_COLORS)(norm(values))[:, :3]
    key = np.clip(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0, None)
    light = 0.35 + 0.65 * key + 0.15 * np.clip(-normals[..., 2], 0, None)
    fine = np.where(hit[..., None], np.clip(light[..., None] * color, 0, 1), 1.0)
    blocks = (camera.size, SUBPIXELS, camera.size, SUBPIXELS, 3)
    return fine.reshape(blocks).mean((1, 3)).transpose(2, 0, 1)


def draw_mesh(
    ax: Axes, mesh: trimesh.Trimesh | None, camera: Camera
) -> AxesImage | Text:
    """Draw a shaded mesh, or say that there is none.

    Args: ax: Axes. camera: Camera.
        mesh: trimesh.Trimesh, world frame; None where a field has no surface.
    Returns: The AxesImage, or the Text "no surface".
    """
    if mesh is not None:
        return draw_image(ax, shade(mesh, camera))
    _frameless(ax)
    return ax.text(0.5, 0.5, "no surface", transform=ax.transAxes, ha="center")


def image_grid(
    rows: Sequence[Sequence],
    titles: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    size: float = 1.5,
) -> Figure:
    """Draw pictures row by row as one contact sheet.

    Args: rows: lists of pictures for `draw_image`; None leaves a gap.
        titles: over the columns. labels: beside the rows. size: of a picture, inches.
    Returns: The Figure.
    """
    columns = max(len(row) for row in rows)
    figsize = size * columns, size * len(rows)
    fig, axes = plt.subplots(len(rows), columns, figsize=figsize, squeeze=False)
    fig.set_layout_engine("constrained")
    for line, row in zip(axes, rows, strict=True):
        for ax, image in zip_longest(line, row):
            _frameless(ax)
            if image is not None:
                draw_image(ax, image)
    # a name may well have a "$"
    look = dict(fontsize=np.clip(4 * size, 8, 11), parse_math=False)
    for ax, title in zip(axes[0], titles or (), strict=False):
        ax.set_title(title, **look)
    for ax, label in zip(axes[:, 0], labels or (), strict=False):
        ax.set_ylabel(label, **look)
    zoom(axes.flat)
    shown = next((ax for ax in axes.flat if ax.images), None)
    if shown:  # low things need low rows
        low = np.ptp(shown.get_ylim()) / np.ptp(shown.get_xlim())
        fig.set_figheight(0.3 + size * len(rows) * min(low, 1))
    return fig


def zoom(axes: Iterable[Axes]) -> None:
    """Cut pictures down to the window that holds all that is not white in any.

    Args: axes: of the pictures, which show one view or stand in one sheet.
    """
    pictures = [(ax, artist.get_array()) for ax in axes for artist in ax.images]
    low, high = np.ones(2), np.zeros(2)  # of rows and columns, in sides of a picture
    for _, values in pictures:
        shown = (values < 0.99).any(-1) if values.ndim == 3 else values.filled(0) != 0
        spots = np.argwhere(shown) / shown.shape
        low = np.minimum(low, spots.min(0, initial=1))
        high = np.maximum(high, spots.max(0, initial=0))
    for ax, values in pictures if (low < high).all() else ():
        (top, left), (bottom, right) = np.array([low - 0.03, high + 0.04]).clip(0, 1)
        height, width = values.shape[:2]
        ax.set(xlim=(left * width - 0.5, right * width - 0.5))
        ax.set(ylim=(bottom * height - 0.5, top * height - 0.5))


def draw_curves(
    ax: Axes,
    records: list[dict],
    names: Sequence[str] = ("loss", "base", "sdf", "laplacian"),
    window: int = 25,
) -> list[Line2D]:
    """Draw training curves on a logarithmic axis: each record faint, their mean strong.

    Args: ax: Axes. records: dicts of `training.train`, with "step".
        names: entries to draw; one that is never there and positive is left out.
        window: records that the strong line averages around each step, of those that
            are there; at most a quarter of all. The mean is the geometric one, which is
            an axis of logarithms' own.
    Returns: The strong lines, a list of Line2D.
    """
    steps = [record["step"] for record in records]
    # A mean of the steps before would start late, and lie above all losses that fall.
    around = np.ones(1 + 2 * (max(1, min(window, len(records) // 4)) // 2))
    lines = []
    for name in names:
        values = np.array([record.get(name, np.nan) for record in records])
        if not (known := values > 0).any():
            continue
        total = np.convolve(np.log(np.where(known, values, 1)), around, "same")
        count = np.where(known, np.convolve(known, around, "same"), np.nan)
        lines += ax.plot(steps, np.exp(total / count), label=name)
        color = lines[-1].get_color()
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
    ax.set(xlabel="step", yscale="log")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.grid(alpha=0.3)
    ax.legend()
    return lines


def _frameless(ax):
    """No ticks and no frame, but titles and labels stay."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
