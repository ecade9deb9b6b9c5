"""How often an object is cut out whole, by what its picture is like.

    python benchmarks/cut_outs.py --views 26

Renders of procedural shapes are put before backgrounds, into frames and into formats. A
cut-out counts where its framed mask has an IoU of 0.95 with that of the clean picture.
"""

import common

# ruff: isort: split
import io
import warnings

import numpy as np
from PIL import Image, ImageDraw

from d2im.camera import random_camera
from d2im.data.rendering import render
from d2im.data.shapes import FAMILIES, make_shape
from d2im.use import pictures

SIZE, GOOD = 360, 0.95
WHITE, BLACK, GREY, BLUE = (255, 255, 255), (0, 0, 0), (170, 170, 170), (70, 110, 160)


def on(rgba, colour, margin=40):
    """An object on a colour, with as much margin around its mask's box."""
    rgba = rgba.crop(rgba.getbbox())
    size = [side + 2 * margin for side in rgba.size]
    photo = Image.new("RGB", size, colour)
    photo.paste(rgba, (margin, margin), rgba)
    return photo


def wall(rgba, sharp=12):
    """Before a wall that darkens to its sides, above a shadow."""
    photo = on(rgba, WHITE, 90)
    mask = np.zeros((photo.height, photo.width, 1))
    alpha = np.asarray(rgba.crop(rgba.getbbox()))[..., 3:] / 255
    mask[90:-90, 90:-90] = alpha
    v, u = np.mgrid[: photo.height, : photo.width]
    shade = 0.9 - 0.08 * (2 * u / photo.width - 1) ** 2
    far = ((u - 0.6 * photo.width) / photo.width * 3) ** 2
    far += ((v - photo.height + 95) / 25) ** 2
    shade -= 0.25 / (1 + np.exp((far - 1) * sharp / 4))
    pixels = np.asarray(photo) * mask + 255 * shade[..., None] * (1 - mask)
    return Image.fromarray(pixels.astype(np.uint8))


def framed(photo, *colours, width=0.1):
    """In frames of these colours, each a share of the picture's shorter side wide."""
    for colour in colours:
        edge = max(1, round(width * min(photo.size)))
        whole = Image.new("RGB", [side + 2 * edge for side in photo.size], colour)
        whole.paste(photo, (edge, edge))
        photo = whole
    return photo


def barred(photo, colour, axis, width):
    size = list(photo.size)
    place, edge = [0, 0], round(width * size[axis])
    size[axis] += 2 * edge
    place[axis] = edge
    whole = Image.new("RGB", size, colour)
    whole.paste(photo, tuple(place))
    return whole


def saved(photo, kind="JPEG", **options):
    file = io.BytesIO()
    photo.save(file, kind, **options)
    return Image.open(file, formats=[kind])


def with_alpha(photo, alpha):
    photo = photo.convert("RGBA")
    photo.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return photo


def one_clear_pixel(photo):
    alpha = np.full((photo.height, photo.width), 255)
    alpha[-1, -1] = 0
    return with_alpha(photo, alpha)


def rounded(photo, share=0.12):
    corners = Image.new("L", photo.size)
    end = photo.width - 1, photo.height - 1
    radius = share * min(photo.size)
    ImageDraw.Draw(corners).rounded_rectangle((0, 0, *end), radius, fill=255)
    return with_alpha(photo, np.asarray(corners))


def on_canvas(photo):
    canvas = Image.new("RGBA", [side + 90 for side in photo.size])
    canvas.paste(photo, (60, 20))
    return canvas


def veiled(rgba, level):
    pixels = np.array(rgba)
    pixels[..., 3] = np.maximum(pixels[..., 3], level)
    return Image.fromarray(pixels)


def glassy(rgba, level):
    pixels = np.array(rgba)
    pixels[..., 3] = pixels[..., 3] * (level / 255)
    return Image.fromarray(pixels)


def grey16(photo):
    return Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)


def dim(rgba):
    pixels = np.array(rgba)
    pixels[..., :3] = pixels[..., :3] * 0.25
    return Image.fromarray(pixels)


KINDS = {
    "plain: white, black, grey, blue": [
        lambda x, c=c: on(x, c) for c in (WHITE, BLACK, GREY, BLUE)
    ],
    "JPEG at quality 50": [
        lambda x, c=c: saved(on(x, c), quality=50) for c in (WHITE, GREY, BLUE)
    ],
    "no margin": [lambda x, c=c: on(x, c, 0) for c in (WHITE, BLACK, GREY, BLUE)],
    "a margin of 1 px": [
        lambda x, c=c: on(x, c, 1) for c in (WHITE, BLACK, GREY, BLUE)
    ],
    "no margin, JPEG at 85": [
        lambda x, c=c: saved(on(x, c, 0), quality=85) for c in (WHITE, GREY, BLUE)
    ],
    "a wall with a soft shadow": [lambda x: wall(x, 4)],
    "a wall with a harder shadow": [lambda x: wall(x, 12)],
    "a frame of 1 px": [
        lambda x, c=c: framed(on(x, WHITE), c, width=0) for c in (BLACK, BLUE)
    ],
    "a frame of a tenth": [
        lambda x, c=c: framed(on(x, GREY), c) for c in (BLACK, WHITE, BLUE)
    ],
    "a frame of a third": [
        lambda x, c=c: framed(on(x, WHITE), c, width=0.33) for c in (BLACK, GREY)
    ],
    "two frames": [lambda x: framed(on(x, WHITE), BLACK, BLUE, width=0.05)],
    "bars above and below": [
        lambda x, w=w: barred(on(x, WHITE), BLACK, 1, w) for w in (0.05, 0.15, 0.33)
    ],
    "bars at the sides": [
        lambda x, w=w: barred(on(x, GREY), BLUE, 0, w) for w in (0.05, 0.15, 0.33)
    ],
    "one transparent pixel": [lambda x: one_clear_pixel(on(x, WHITE))],
    "a photo with rounded corners": [lambda x: rounded(on(x, GREY, 60))],
    "a photo on a transparent canvas": [lambda x: on_canvas(on(x, WHITE, 60))],
    "an alpha of 10 to 100 all over": [
        lambda x, a=a: veiled(x, a) for a in (10, 50, 100)
    ],
    "an object of alpha 60 to 160": [
        lambda x, a=a: glassy(x, a) for a in (60, 100, 160)
    ],
    "grey, 16 bits": [lambda x: grey16(on(x, WHITE))],
    "CMYK, palette": [
        lambda x: on(x, WHITE).convert("CMYK"),
        lambda x: on(x, WHITE).quantize(64),
    ],
    "dark on dark": [lambda x: on(dim(x), (40, 40, 40))],
}


def mask_of(image, camera):
    """The framed mask that `load_image` takes; None where it refuses."""
    kept, frame = [], pictures._frame
    pictures._frame = lambda *given: kept.append(frame(*given)) or kept[-1]
    try:
        pictures.load_image(image, 224, camera=camera)
    except (ValueError, TypeError):
        return None
    finally:
        pictures._frame = frame
    return np.asarray(kept[0].getchannel("A").resize((224, 224))) > 127


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--views", type=int, default=26)
    options = common.opening(parser)
    rng = np.random.default_rng(0)
    found = {kind: [] for kind in KINDS}
    for k in range(options.views):
        camera = random_camera(rng, SIZE)
        shape = make_shape(FAMILIES[k % len(FAMILIES)], 10100 + k).detailed
        view = render(shape, camera, rng)
        pixels = np.dstack([np.moveaxis(view.image, 0, -1) * 255, view.mask * 255])
        rgba = Image.fromarray(pixels.round().astype(np.uint8))
        clean = mask_of(rgba, camera)
        for kind, ways in KINDS.items():
            mask = mask_of(ways[k % len(ways)](rgba), camera)
            iou = 0 if mask is None else (mask & clean).sum() / (mask | clean).sum()
            found[kind].append(np.nan if mask is None else iou)
    print("| picture | cut out whole | refused |\n|---|---|---|")
    for kind, ious in found.items():
        ious = np.array(ious)
        print(f"| {kind} | {(ious >= GOOD).mean():.0%} | {np.isnan(ious).mean():.0%} |")


if __name__ == "__main__":
    warnings.simplefilter("ignore", UserWarning)  # what the pictures are like is known
    main()
