"""A user's picture in the form that a model takes: opened, cut out and framed."""

import os
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from ..camera import Camera

ImageSource = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor
NOTHING = "the image is all but fully transparent: no object is in it"
# What cameras, phones (an MPO is read as JPEG) and the web give; Pillow reads dozens
# more, some by calling other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
SMALLEST_IMAGE, LARGEST_IMAGE = 16, 16_000  # pixels a side
WORKING_SIZE = 640  # pixels of the longer side, at which a picture is cut out
PLAIN = 0.9  # of the border's pixels: the object may touch the rest
EDGE = 0.0095  # change per pixel of a smoothed picture that a background does not have
TINT = 0.04  # by which a background's colour may stray from its neighbours', in [0, 1]
# Medians over 144 views of procedural shapes as training draws them, in units of the
# projected radius f * 0.5 / distance: how far from the middle of the mask's box its
# farthest pixel lies, and by how much the middle lies below the picture's.
REACH, DROP = 1.03, 0.05
RATIO = 0.9  # of training's distances the middle one


def load_image(
    source: ImageSource,
    size: int,
    *,
    camera: Camera | None = None,
    framed: bool = False,
    background: str = "white",
) -> torch.Tensor:
    """Bring a picture into the form that a model takes.

    Args: source: path of an image file; PIL image; or uint8 array (H, W, 3) or (H, W,
            4). Transparency tells the object from its background; without it a plain
            background is found and removed. Or a float array or tensor (3, H, W) in [0,
            1], square, which is taken as it is: framed, on the model's background.
        size: pixels of the result.
        camera: Camera whose distance the object is framed for; by default a usual one.
        framed: the picture is square and its object stands as in training's already:
            nothing is cut out or moved. background: of the model, "white" or "black".
    Returns: (3, size, size) f4 tensor in [0, 1].
    Raises: FileNotFoundError: no such file.
        ValueError: not an image, too small or large, of wrong range, on a busy
            background, or without an object. TypeError: something that is no picture.
    """
    if isinstance(source, str | os.PathLike):
        source = _open_image(Path(source))
    elif isinstance(source, np.ndarray) and source.dtype == np.uint8:
        if source.ndim != 3 or source.shape[2] not in (3, 4):
            raise ValueError(f"a uint8 image is (H, W, 3 or 4), not {source.shape}")
        source = Image.fromarray(source)
    elif isinstance(source, np.ndarray | torch.Tensor):
        return _from_floats(source, size)
    if not isinstance(source, Image.Image):
        kind = type(source).__name__
        raise TypeError(f"an image is a path, PIL image, array or tensor, not {kind}")
    if source.mode.startswith(("I", "F")):
        raise ValueError(f"save the image with 8 bits a channel, not as {source.mode}")
    sides = f"{source.width} x {source.height} px"
    if min(source.size) < SMALLEST_IMAGE or max(source.size) > LARGEST_IMAGE:
        wanted = f"{SMALLEST_IMAGE} to {LARGEST_IMAGE} px"
        raise ValueError(f"an image's sides must have {wanted}, got {sides}")
    if framed and source.width != source.height:
        raise ValueError(f"a framed image must be square, got {sides}")
    rgba = _upright(source).convert("RGBA")
    least, most = rgba.getextrema()[3]  # of alpha
    if most < (1 if framed else 128):
        raise ValueError(NOTHING)
    if not framed:
        if least < 128:  # wide margins would cost pixels
            rgba = rgba.crop(rgba.getbbox())
        if max(rgba.size) >= 2 * WORKING_SIZE * min(rgba.size):
            raise ValueError(NOTHING)
        rgba = ImageOps.contain(rgba, (WORKING_SIZE, WORKING_SIZE))
        if least > 127:
            rgba.putalpha(Image.fromarray(cut_out(np.asarray(rgba)[..., :3] / 255.0)))
        rgba = _frame(rgba, camera or Camera(0, 0, RATIO, size))
    rgba = rgba.resize((size, size), Image.Resampling.BILINEAR)
    backdrop = Image.new("RGBA", rgba.size, background)
    pixels = np.asarray(Image.alpha_composite(backdrop, rgba).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _from_floats(source, size):
    if isinstance(source, np.ndarray):
        source = torch.tensor(np.ascontiguousarray(source))
    image = source.detach().cpu()
    channels, height, width = image.shape if image.ndim == 3 else (0, 0, 0)
    if channels != 3 or height != width or height < SMALLEST_IMAGE:
        wanted = f"(3, H, W), square, of {SMALLEST_IMAGE} px at least"
        raise ValueError(f"an image array is {wanted}, not {tuple(image.shape)}")
    low, high = image.min(), image.max()
    if not (image.is_floating_point() and low >= -1e-5 and high <= 1 + 1e-5):  # no NaN
        found = f"{image.dtype} in [{low:.3g}, {high:.3g}]"
        raise ValueError(f"an image array must be float in [0, 1], got {found}")
    image = image.float().clamp(0, 1)  # rounding strays
    if height == size:
        return image
    return torch.nn.functional.interpolate(
        image[None], (size, size), mode="bilinear", antialias=True
    )[0].clamp(0, 1)


def _open_image(path):
    if not path.is_file():
        raise FileNotFoundError(f"no image file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of damaged EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large an image: scale it down") from error
    except UnidentifiedImageError as error:
        what = f"it is none of {', '.join(FORMATS)}"
        raise ValueError(f"{path} is not a readable image: {what}") from error
    except Exception as error:  # decoders raise anything
        raise ValueError(f"{path} is not a readable image: {error}") from error


def _upright(image):
    """A copy, turned as its EXIF data say; as it is where these cannot be read."""
    image = image.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(Exception):  # of damaged data, anything
            image.getexif()
            image.info.pop("exif", None)  # not to be written anew: it may not do
            ImageOps.exif_transpose(image, in_place=True)
    return image


def cut_out(rgb: np.ndarray) -> np.ndarray:
    """Find the object on a plain background, which may have a soft shadow.

    What can be reached from the picture's border without crossing an edge, and what it
    encloses in the same colour, is background.

    Args: rgb: (H, W, 3) in [0, 1].
    Returns: (H, W) uint8: 255 on the object, 0 elsewhere.
    Raises: ValueError: the background is not plain, or there is nothing on it.
    """
    smooth = ndimage.gaussian_filter(rgb, (1.5, 1.5, 0))
    change = np.linalg.norm(np.gradient(smooth, axis=(0, 1)), axis=0).max(-1)
    regions, count = ndimage.label(change < EDGE)
    border = np.ones(regions.shape, dtype=bool)
    border[1:-1, 1:-1] = False
    outer = np.bincount(regions[border], minlength=count + 1)
    background = regions == 1 + outer[1:].argmax() if count else border & False
    if (plain := background[border].mean()) < PLAIN:
        raise ValueError(
            f"the image has no alpha and its background is not plain ({plain:.0%} of "
            "the border is): cut the object out and save it with alpha, or photograph "
            "it before a plain wall"
        )
    for reach in (np.inf, 4):  # enclosed regions, then pixels beside an edge
        far, nearest = ndimage.distance_transform_edt(~background, return_indices=True)
        unlike = np.abs((smooth if reach > 4 else rgb) - smooth[tuple(nearest)]).max(-1)
        if reach > 4:
            means = ndimage.mean(unlike, regions, np.arange(1, count + 1))
            unlike = np.append(1.0, means)[regions]
        background |= (far <= reach) & (unlike < TINT)
    found, largest = _without_specks(ndimage.binary_opening(~background), 0.02)
    if largest < 0.002 * background.size:
        raise ValueError("the image shows nothing on its plain background")
    return (found * 255).astype(np.uint8)


def _without_specks(mask, share):
    """A mask but for its parts smaller than a share of the largest, whose pixels."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # what is no part
    return (sizes > share * sizes.max())[parts], sizes.max()


def _frame(rgba, camera):
    """Crop or pad so that the object stands as a camera at that distance sees it."""
    mask, _ = _without_specks(np.asarray(rgba)[..., 3] > 127, 0.005)
    if mask.sum() < 2:  # too thin to be seen at that size
        raise ValueError(NOTHING)
    pixels = np.argwhere(mask.T) + 0.5  # (x, y)
    middle = (pixels.min(0) + pixels.max(0)) / 2
    reach = np.linalg.norm(pixels - middle, axis=1).max()
    # of the projected radius 0.5, in parts of the picture's side
    radius = 0.5 * camera.focal / camera.size / np.linalg.norm(camera.translation)
    side = reach / (REACH * radius)
    if not 1 <= side <= 10 * WORKING_SIZE:
        raise ValueError("the camera's distance does not fit: its ratio is about 1")
    corner = middle - side * np.array([0.5, 0.5 + DROP * radius])
    box = np.round([*corner, *(corner + side)]).astype(int)
    return rgba.crop(tuple(map(int, box)))
