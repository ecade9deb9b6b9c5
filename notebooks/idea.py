"""Draw the idea in one look: pictures, their bases, maps, and their sums, turning.

    python notebooks/idea.py        # reports/gallery/idea.webp, as does `make gallery`

A cabinet and a chair that the package's model never saw, their camera known; bases and
sums turn to and fro in step, so that what a map adds is seen to be relief, not shading.
"""

import io
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from d2im import Camera, D2IMNet, make_shape, plots, reconstruct, render
from d2im.data.files import write_whole
from d2im.use.reconstruction import MODEL

# Of the split "test": with drawers, a door and knobs; with grooves in its back.
PIECES = ("cabinet", 10101), ("chair", 10102)
CAMERA = dict(azimuth=25, elevation=10, ratio=0.9)
SWING, FRAMES, MILLISECONDS = 40, 36, 90  # degrees to each side; a turn takes 3.2 s
TITLES = "a picture", "coarse base $f_B$", "front map $f_D$", "$f_B + f_D$, a mesh"
SIGNS = "→", "+", "="
LIMIT = 0.02  # world units: the colours' ends


def draw_idea(target: Path, frames: int = FRAMES) -> None:
    """Write the moving picture, whole or not at all.

    Args: target: of the WebP. frames: in a turn to and fro; the first is the picture's
        own view.
    """
    model = D2IMNet.from_pretrained(MODEL).eval()
    eye = Camera(**CAMERA, size=model.image_size)
    rows = len(PIECES)
    size = 8.3, 2.1 * rows + 0.4
    fig, axes = plt.subplots(rows, 4, figsize=size, layout="constrained")
    turning = []  # what is drawn of a body, and the body
    for row, piece in zip(axes, PIECES, strict=True):
        view = render(make_shape(*piece).detailed, eye, np.random.default_rng(0))
        found = reconstruct(model, view.image, eye)
        plots.draw_image(row[0], view.image)
        colors = plots.draw_map(row[2], found.displacement[0], view.mask, LIMIT)
        plots.zoom(row[[0, 2]])  # to the object, in all four alike
        for ax, body in ((row[1], found.base_mesh), (row[3], found.mesh)):
            turning.append((plots.draw_image(ax, view.image), body))
            ax.set(xlim=row[0].get_xlim(), ylim=row[0].get_ylim())
    for ax, title in zip(axes[0], TITLES, strict=True):
        ax.set_title(title, fontsize=12)
    look = dict(orientation="horizontal", shrink=0.7, ticks=[-LIMIT, 0, LIMIT])
    bar = fig.colorbar(colors, ax=axes[-1, 2], **look)
    bar.set_ticklabels(["stands out", "0", "goes in"], fontsize=9)
    fig.canvas.draw()
    fig.set_layout_engine("none")  # or the panels tremble
    for row in axes:
        place = row[0].get_position()
        y = (place.y0 + place.y1) / 2
        for sign, one, other in zip(SIGNS, axes[0, :3], axes[0, 1:], strict=True):
            x = (one.get_position().x1 + other.get_position().x0) / 2
            fig.text(x, y, sign, fontsize=22, ha="center", va="center")
    shots = []
    for at in np.sin(2 * np.pi * np.arange(frames) / frames):
        turned = CAMERA | dict(azimuth=CAMERA["azimuth"] + SWING * at)
        for drawn, body in turning:
            picture = plots.shade(body, Camera(**turned, size=model.image_size))
            drawn.set_data(np.moveaxis(picture, 0, -1))
        page = io.BytesIO()
        fig.savefig(page, format="png", dpi=150)
        shots.append(Image.open(page, formats=["PNG"]).convert("RGB"))
    plt.close(fig)
    look = dict(save_all=True, append_images=shots[1:], loop=0, method=6, quality=80)
    write_whole(
        Path(target),
        lambda file: shots[0].save(file, "WEBP", duration=MILLISECONDS, **look),
    )


if __name__ == "__main__":
    gallery = Path(__file__).parents[1] / "reports/gallery"
    draw_idea(Path(*sys.argv[1:] or [gallery / "idea.webp"]))
