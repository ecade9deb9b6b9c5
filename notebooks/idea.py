"""Draw the idea in one look: a picture, its base, its map, and their sum, turning.

    python notebooks/idea.py        # reports/gallery/idea.webp, as does `make gallery`

A cabinet that the package's model never saw, its camera known; base and sum turn to and
fro in step, so that what the map adds is seen to be relief and not shading.
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

PIECE = "cabinet", 10101  # of the split "test", with drawers, a door and knobs
CAMERA = dict(azimuth=25, elevation=18, ratio=0.9)
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
    view = render(make_shape(*PIECE).detailed, eye, np.random.default_rng(0))
    found = reconstruct(model, view.image, eye)
    fig, axes = plt.subplots(1, 4, figsize=(8.3, 2.35), layout="constrained")
    plots.draw_image(axes[0], view.image)
    colors = plots.draw_map(axes[2], found.displacement[0], view.mask, LIMIT)
    bodies = {1: found.base_mesh, 3: found.mesh}
    turning = {k: plots.draw_image(axes[k], view.image) for k in bodies}
    for ax, title in zip(axes, TITLES, strict=True):
        ax.set_title(title, fontsize=12)
    for ax, sign in zip(axes, SIGNS, strict=False):
        ax.text(1.02, 0.5, sign, fontsize=22, transform=ax.transAxes, ha="center")
    look = dict(orientation="horizontal", shrink=0.7, ticks=[-LIMIT, 0, LIMIT])
    bar = fig.colorbar(colors, ax=axes[2], **look)
    bar.set_ticklabels(["stands out", "0", "goes in"], fontsize=9)
    plots.zoom(axes[[0, 2]])  # to the object, in all four alike
    for k in bodies:
        axes[k].set(xlim=axes[0].get_xlim(), ylim=axes[0].get_ylim())
    fig.canvas.draw()
    fig.set_layout_engine("none")  # or the panels tremble
    shots = []
    for at in np.sin(2 * np.pi * np.arange(frames) / frames):
        turned = CAMERA | dict(azimuth=CAMERA["azimuth"] + SWING * at)
        for k, body in bodies.items():
            picture = plots.shade(body, Camera(**turned, size=model.image_size))
            turning[k].set_data(np.moveaxis(picture, 0, -1))
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
