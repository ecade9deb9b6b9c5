"""The paper's figures with matplotlib: slices of fields, maps, shaded meshes, curves.

Computing is apart from drawing: `slice_values` and `shade` give arrays, the `draw_*`
functions take an Axes and return what they drew. Everywhere red is where matter is: the
inside of a field, and relief that stands out of the base (a negative displacement).
"""

from itertools import zip_longest
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import CenteredNorm

from .rendering import SUBPIXELS, Renderer
from .sampling import HALF_BOX

SDF_COLORS = "RdBu"
# Of matplotlib's diverging maps with a light middle coolwarm has the most even steps in
# CIELAB, the same lightness on both sides, and ends that a deuteranope tells apart; its
# zero is grey, so that white stays the background's.
MAP_COLORS = "coolwarm_r"

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
    field, axis="z", at=0.0, resolution=200, *, extent=None, device="cpu"
) -> Slice:
    """Evaluate a field on a plane across one axis.

    Args:
        field: callable on float32 tensors, (P, 3) world -> (P,); it may answer with an
            array, so that `lambda p: signed_distance(mesh, p)[0]` is one.
        axis: "x" (the picture's axes are z, y), "y" (x, z) or "z" (x, y).
        at: coordinate of the plane, world units.
        resolution: samples along a side, at the centres of equal cells.
        extent: left, right, bottom, top, world units; by default the whole box.
        device: where the points given to the field live.

    Returns:
        Slice.

    Raises:
        ValueError: an unknown axis, or a field that answers with another shape.
    """
    if axis not in SLICE_AXES:
        raise ValueError(f'axis must be "x", "y" or "z", got {axis!r}')
    extent = extent or (-HALF_BOX, HALF_BOX, -HALF_BOX, HALF_BOX)
    centres = (np.arange(resolution) + 0.5) / resolution
    right = extent[0] + (extent[1] - extent[0]) * centres
    up = extent[2] + (extent[3] - extent[2]) * centres
    place = {axis: np.full((resolution, resolution), at)}
    place |= dict(zip(SLICE_AXES[axis], np.meshgrid(right, up), strict=True))
    points = np.stack([place[name].ravel() for name in "xyz"], 1)
    with torch.no_grad():
        values = field(torch.tensor(points, dtype=torch.float32, device=device))
    values = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if values.shape != (resolution**2,):
        raise ValueError(f"field must give ({resolution**2},), got {values.shape}")
    values = values.reshape(resolution, resolution)
    return Slice(values, tuple(extent), SLICE_AXES[axis])


def draw_slice(ax, section, *, limit=None, step=0.05, surface=None):
    """Draw a slice: RdBu centred at 0, iso-lines, the surface in black.

    Args:
        ax: Axes.
        section: Slice.
        limit: the colours' range is [-limit, limit], world units; by default the
            slice's own.
        step: between iso-lines, world units; 0 draws none.
        surface: Slice whose zero contour is drawn in black; by default this one's. A
            difference of fields shows the surface of one of them.

    Returns:
        The AxesImage.
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
    outline = values if surface is None else surface.values
    if outline.min() < 0 < outline.max():
        ax.contour(outline, [0], colors="black", linewidths=1.6, **place)
    ax.set(xlabel=right, ylabel=up)
    return artist


def draw_map(ax, values, mask=None, limit=None):
    """Draw a displacement or Laplacian map, zero in grey, the background white.

    Args:
        ax: Axes.
        values: (H, W), numpy or torch.
        mask: (H, W) bool, True where the map means something; None for everywhere.
        limit: the colours' range is [-limit, limit]; by default the largest of the
            masked values. Maps that are compared need one limit.

    Returns:
        The AxesImage.
    """
    values = np.asarray(values, dtype=float)
    shown = np.isfinite(values) if mask is None else np.asarray(mask, dtype=bool)
    limit = limit or max(np.abs(values[shown]).max(initial=0), 1e-9)
    _frameless(ax)
    colors = dict(cmap=MAP_COLORS, norm=CenteredNorm(halfrange=limit))
    return ax.imshow(np.ma.array(values, mask=~shown), **colors)


def draw_image(ax, image):
    """Draw a picture.

    Args:
        ax: Axes.
        image: (3, H, W) RGB in [0, 1], numpy or torch, or a grey map (H, W), 0 white.

    Returns:
        The AxesImage.
    """
    image = np.asarray(image)
    if image.ndim == 3:
        image = np.clip(np.moveaxis(image, 0, -1), 0, 1)
    _frameless(ax)
    return ax.imshow(image, cmap="Greys")  # the map of colours is for grey alone


def normal_colors(normals):
    """Normals as colours: red grows to the right, green up, blue toward the camera.

    Args:
        normals: (3, H, W) camera frame, zero on the background.

    Returns:
        (3, H, W) RGB in [0, 1], white on the background.
    """
    normals = np.asarray(normals, dtype=np.float32)
    colors = 0.5 + 0.5 * normals * np.array([1, -1, -1], np.float32)[:, None, None]
    return np.where(normals.any(0), colors, 1.0)


def shade(mesh, camera):
    """Shade a mesh as clay under one fixed light beside the camera; needs no screen.

    Args:
        mesh: trimesh.Trimesh, world frame.
        camera: Camera; its size is the picture's.

    Returns:
        (3, H, W) RGB in [0, 1] on white.

    Raises:
        ValueError: the mesh has no face.
    """
    hit, _, normals, _ = Renderer(mesh).cast(camera, SUBPIXELS)
    key = np.clip(normals @ (LIGHT / np.linalg.norm(LIGHT)), 0, None)
    light = 0.35 + 0.65 * key + 0.15 * np.clip(-normals[..., 2], 0, None)
    fine = np.where(hit[..., None], np.clip(light[..., None] * CLAY, 0, 1), 1.0)
    blocks = (camera.size, SUBPIXELS, camera.size, SUBPIXELS, 3)
    return fine.reshape(blocks).mean((1, 3)).transpose(2, 0, 1)


def draw_mesh(ax, mesh, camera):
    """Draw a shaded mesh, or say that there is none.

    Args:
        ax: Axes.
        mesh: trimesh.Trimesh, world frame; None where a field has no surface.
        camera: Camera.

    Returns:
        The AxesImage, or the Text "no surface".
    """
    if mesh is not None:
        return draw_image(ax, shade(mesh, camera))
    _frameless(ax)
    return ax.text(0.5, 0.5, "no surface", transform=ax.transAxes, ha="center")


def image_grid(rows, titles=None, labels=None, size=1.5):
    """Draw pictures row by row as one contact sheet.

    Args:
        rows: lists of pictures for `draw_image`; None leaves a gap.
        titles: over the columns. labels: beside the rows.
        size: of a picture, inches.

    Returns:
        The Figure.
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
    for ax, title in zip(axes[0], titles or (), strict=False):
        ax.set_title(title, fontsize=8)
    for ax, label in zip(axes[:, 0], labels or (), strict=False):
        ax.set_ylabel(label, fontsize=8)
    return fig


def draw_curves(ax, records, names=("loss", "base", "sdf", "laplacian"), window=25):
    """Draw training curves on a logarithmic axis: each record faint, their mean strong.

    Args:
        ax: Axes.
        records: dicts of `training.train`, with "step".
        names: entries to draw; one without a positive value is left out.
        window: records that the strong line averages, up to the step it stands at.

    Returns:
        The strong lines, a list of Line2D.
    """
    steps = [record["step"] for record in records]
    span = min(window, len(records))
    lines = []
    for name in names:
        values = np.array([record[name] for record in records], dtype=float)
        if not (values > 0).any():
            continue
        mean = np.convolve(values, np.ones(span) / span, "valid")
        lines += ax.plot(steps[span - 1 :], mean, label=name)
        color = lines[-1].get_color()
        ax.plot(steps, values, color=color, alpha=0.25, linewidth=0.7)
    ax.set(xlabel="step", yscale="log")
    ax.grid(alpha=0.3)
    ax.legend()
    return lines


def draw_distribution(ax, values):
    """Draw each method's values as dots, with a box from quartile to quartile.

    Args:
        ax: Axes.
        values: {method: numbers}; NaN is left out.

    Returns:
        The boxes, a list.
    """
    values = {name: np.asarray(v, dtype=float) for name, v in values.items()}
    values = {name: v[np.isfinite(v)] for name, v in values.items()}
    boxes = ax.boxplot(list(values.values()), widths=0.6, showfliers=False)
    for place, numbers in enumerate(values.values(), 1):
        # spread by rank, so that no draw is needed and equal values stay apart
        spread = 0.15 * np.sin(2.4 * np.arange(len(numbers)))
        ax.scatter(place + spread, numbers, s=12, alpha=0.5)
    turned = dict(rotation=30, ha="right") if len(values) > 4 else {}
    ax.set_xticks(range(1, len(values) + 1), list(values), fontsize=8, **turned)
    ax.grid(axis="y", alpha=0.3)
    return boxes["boxes"]


def _frameless(ax):
    """No ticks and no frame, but titles and labels stay."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
