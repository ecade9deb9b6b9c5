"""Results to look at: drawn over their picture, turned, and many on one page.

A result that does not lie on its picture is not the picture's: `overlay` shows it.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import trimesh
from PIL import Image
from scipy.ndimage import binary_dilation, zoom

from ..camera import Camera
from ..data.files import write_whole
from ..data.rendering import Renderer
from .cameras import inner_edges
from .export import kept_mesh, picture_colors

if TYPE_CHECKING:
    from .reconstruction import Reconstruction

SCALE = 2  # of an overlay to the picture that the model saw
OUTLINE, INNER = (230, 0, 120), (40, 40, 40)  # RGB of lines
OUTWARD, INWARD = (178, 24, 43), (33, 102, 172)  # RGB, as `colored` has them
PALE = 0.25  # the share of the object's own colours
STRONG = 0.6  # of a relief's tint, at the most
VIEWS, SIDE = 24, 200  # of a turntable, and their pixels
TURN_MS = 110  # a view
LIGHT = np.array([0.3, 0.4, 0.87])  # where it goes, camera frame: from above the left


def overlay(found: Reconstruction, keep: str = "large") -> Image.Image:
    """The picture with the mesh's outline, its inner edges and the relief on it.

    Args: keep: which parts of the mesh are drawn, as `export_mesh` writes them.
    Returns: RGB image; relief that lies outward is red, inward blue.
    """
    size = SCALE * found.image.shape[-1]
    pixels = found.image.permute(1, 2, 0).numpy() * 255
    options = {"order": 1, "grid_mode": True, "mode": "nearest"}
    pixels = zoom(pixels, (SCALE, SCALE, 1), **options)
    hit, depth, normals, _ = Renderer(kept_mesh(found, keep)).cast(
        found.camera.resized(size)
    )
    relief = zoom(found.displacement[0].numpy(), SCALE, **options)
    grey = (pixels.mean(-1, keepdims=True) + 255) / 2  # red paint hides red relief
    pixels = np.where(hit[..., None], PALE * pixels + (1 - PALE) * grey, pixels)
    limit = max(np.quantile(np.abs(relief[hit]), 0.98) if hit.any() else 0, 1e-6)
    tint = np.where(relief[..., None] < 0, OUTWARD, INWARD)
    share = (np.abs(relief) / limit).clip(0, 1)[..., None] * STRONG * hit[..., None]
    pixels = pixels * (1 - share) + tint * share
    pixels[inner_edges(hit, depth, normals)] = INNER
    pixels[binary_dilation(hit) & ~hit] = OUTLINE
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def export_overlay(
    found: Reconstruction, path: str | Path, keep: str = "large"
) -> None:
    """Write `overlay` as a PNG."""
    picture = overlay(found, keep)
    write_whole(Path(path), lambda file: picture.save(file, "PNG"))


def turned(
    mesh: trimesh.Trimesh, cameras: Iterable[Camera], colors: np.ndarray | None = None
) -> list[Image.Image]:
    """A mesh from several cameras, lit from each.

    Args: mesh: world frame. colors: (N, 3) of its vertices, in [0, 1].
    """
    renderer, tints = Renderer(mesh), None
    if colors is not None:
        tints = colors[mesh.faces].mean(axis=1)
    ambient = 0.35 if tints is None else 0.65  # a picture's colours are lit already
    pictures = []
    for camera in cameras:
        hit, _, normals, face = renderer.cast(camera, 2)
        light = ambient - (1 - ambient) * (normals @ LIGHT).clip(-1, 0)
        shade = np.full((*hit.shape, 3), 0.75) if tints is None else tints[face]
        pixels = np.where(hit[..., None], shade * light[..., None], 1.0)
        half = pixels.reshape(camera.size, 2, camera.size, 2, 3).mean((1, 3))
        pictures.append(Image.fromarray(np.round(255 * half).astype(np.uint8)))
    return pictures


def export_turntable(
    found: Reconstruction, path: str | Path, keep: str = "large"
) -> None:
    """Write the coloured mesh turning once around, as a GIF."""
    mesh = kept_mesh(found, keep)
    steps = np.arange(VIEWS) * 360 / VIEWS
    cameras = [Camera(step, 20, 1, SIDE) for step in steps]
    first, *others = turned(mesh, cameras, picture_colors(found, mesh))
    options = {"save_all": True, "append_images": others, "loop": 0}
    options |= {"duration": TURN_MS, "format": "GIF"}
    write_whole(Path(path), lambda file: first.save(file, **options))


def strip(found: Reconstruction, keep: str = "large") -> Image.Image:
    """A row of pictures: what the model saw, the overlay, the result, and it turned."""
    mesh = kept_mesh(found, keep)
    own = found.camera.resized(SIDE)
    azimuth, elevation, ratio = own.pose
    poses = [(azimuth + turn, max(elevation, 10), ratio) for turn in (60, 180)]
    cameras = [own, *(Camera(*pose, SIDE) for pose in poses)]
    pixels = (found.image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(pixels), overlay(found, keep)]
    pictures += turned(mesh, cameras, picture_colors(found, mesh))
    row = Image.new("RGB", (SIDE * len(pictures), SIDE), "white")
    for place, picture in enumerate(pictures):
        size = (SIDE, SIDE)
        row.paste(picture.resize(size, Image.Resampling.LANCZOS), (SIDE * place, 0))
    return row


def write_sheet(
    path: str | Path, rows: Iterable[tuple[str, str, Image.Image | None]]
) -> None:
    """Write one HTML page of many results, which loads nothing.

    Args: rows: name, what is to be said, and `strip` of each; None where it failed.
    """
    parts = []
    for name, said, picture in rows:
        image = ""
        if picture is not None:
            file = io.BytesIO()
            picture.save(file, "PNG")
            data = base64.b64encode(file.getvalue()).decode()
            about = html.escape(f"{name}: picture, overlay, result and its turns")
            image = f'<img src="data:image/png;base64,{data}" alt="{about}">'
        name, said = html.escape(name), html.escape(said)
        parts.append(f"<h2>{name}</h2><p>{said}</p>{image}\n")
    page = f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none';
 img-src data:; style-src 'unsafe-inline'"><title>d2im</title>
<style>body {{ font: 16px/1.5 sans-serif; margin: 2rem }} img {{ max-width: 100% }}
</style></head><body><h1>Pictures and what was made of them</h1>
<p>From the left: what the model saw; the mesh's outline, edges and relief on it (red
outward, blue inward); the mesh from the same camera, and turned by 60° and 180°.</p>
{"".join(parts)}</body></html>"""
    write_whole(Path(path), lambda file: file.write(page.encode("utf-8", "replace")))
