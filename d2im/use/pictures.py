"""A user's picture in the form that a model takes: opened, cut out and framed."""

import os
import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from ..camera import Camera
from ..data.files import one_line
from ..networks import UNLIKE
from . import cutting
from .cutting import PictureWarning, cut_out

__all__ = ["FORMATS", "ImageSource", "PictureWarning", "cut_out", "load_image"]

ImageSource = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor
NOTHING = "the image is all but fully transparent: no object is in it"
# What cameras, phones (an MPO is read as JPEG) and the web give; Pillow reads dozens
# more, some by calling other programs.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF")
HEIC_BRANDS = [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"]
SMALLEST_IMAGE, LARGEST_IMAGE = 16, 16_000  # pixels a side
WORKING_SIZE = 640  # pixels of the longer side, at which a picture is cut out
VEIL = 20  # of 255: an alpha below it shows nothing
OPAQUE = 0.98  # of a picture: an alpha that hides less says nothing
SOFT = 3  # pixels at working size: how far an object's soft edge reaches
SUFFIXES = tuple(".png .jpg .jpeg .webp .avif .gif .bmp .tif .tiff .heic .heif".split())
TRAINED = (-60, 60), (0, 40), (0.8, 1)  # `camera.random_camera`'s ranges
# A network of rembg's whose weights are free (Apache); its default one's are not.
REMBG_MODEL = "u2net"
# Medians over 144 views of procedural shapes as training draws them, in units of the
# projected radius f * 0.5 / distance: how far from the middle of the mask's box its
# farthest pixel lies, and by how much the middle lies below the picture's.
REACH, DROP = 1.03, 0.05
RATIO = 0.9  # of training's distances the middle one


def find_pictures(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """List picture files: those named, and all of the folders named.

    Raises: FileNotFoundError: nothing of that name. ValueError: a folder without any.
    """
    found = []
    for path in map(Path, paths):
        if path.is_dir():
            shown = (p for p in path.iterdir() if not p.name.startswith("."))
            inside = sorted(p for p in shown if p.suffix.lower() in SUFFIXES)
            if not inside:
                known = ", ".join(SUFFIXES)
                raise ValueError(f"{path}: no picture here; d2im reads {known}")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"no image file {path}")
    return found


def outside_training(camera: Camera) -> list[str]:
    """What of a camera lies outside of what the models have seen, a line each."""
    pose = zip(("azimuth", "elevation", "ratio"), camera.pose, TRAINED, strict=True)
    slack = dict(azimuth=1, elevation=1, ratio=0.01)  # of a guess
    return [
        f"the camera's {name} {value:.3g} lies outside of training, {low:g} to {high:g}"
        for name, value, (low, high) in pose
        if not low - slack[name] <= value <= high + slack[name]
    ]


class Framed(NamedTuple):
    """A picture as a model takes it, and what is known of its object."""

    image: torch.Tensor  # (3, size, size) f4 in [0, 1]
    # (size, size) bool, all True where nothing tells the object from the background
    mask: torch.Tensor
    covers: float  # share of the picture as it was given that the object fills


def load_image(
    source: ImageSource,
    size: int,
    *,
    camera: Camera | None = None,
    framed: bool = False,
    background: str = "white",
) -> torch.Tensor:
    """Bring a picture into the form that a model takes; see `load_framed`."""
    framing = {"camera": camera, "framed": framed, "background": background}
    return load_framed(source, size, **framing).image


def load_framed(
    source: ImageSource,
    size: int,
    *,
    camera: Camera | None = None,
    framed: bool = False,
    background: str = "white",
) -> Framed:
    """Bring a picture into the form that a model takes, and tell where its object is.

    What may have spoiled it is a PictureWarning: an object that touches the border, a
    second one, a hard shadow.

    Args: source: path of an image file; PIL image; or uint8 array (H, W, 3) or (H, W,
            4). Transparency tells the object from its background; without it a plain
            background is found and removed, any other one by rembg where that is
            installed. Or a float array or tensor (3, H, W) in [0, 1], square, which is
            taken as it is: framed, on the model's background.
        size: pixels of the result.
        camera: Camera whose distance the object is framed for; by default a usual one.
        framed: the picture is square and its object stands as in training's already:
            nothing is cut out or moved. background: of the model, "white" or "black".
    Returns: Framed.
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
        image = _from_floats(source, size)
        return _on_background(image, background)
    if not isinstance(source, Image.Image):
        kind = type(source).__name__
        raise TypeError(f"an image is a path, PIL image, array or tensor, not {kind}")
    sides = f"{source.width} x {source.height} px"
    if min(source.size) < SMALLEST_IMAGE or max(source.size) > LARGEST_IMAGE:
        wanted = f"{SMALLEST_IMAGE} to {LARGEST_IMAGE} px"
        raise ValueError(f"an image's sides must have {wanted}, got {sides}")
    if framed and source.width != source.height:
        raise ValueError(f"a framed image must be square, got {sides}")
    rgba = _with_alpha(_upright(source))
    if framed:
        if rgba.getextrema()[3][1] == 0:
            raise ValueError(NOTHING)
    else:
        cut, covers = _cut(rgba)
        rgba = _frame(cut, camera or Camera(0, 0, RATIO, size))
    rgba = rgba.resize((size, size), Image.Resampling.BILINEAR)
    backdrop = Image.new("RGBA", rgba.size, background)
    pixels = np.asarray(Image.alpha_composite(backdrop, rgba).convert("RGB"))
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    if framed and rgba.getextrema()[3][0] == 255:  # no alpha: it is on the background
        return _on_background(image, background)
    mask = torch.from_numpy(np.asarray(rgba)[..., 3] > 127)
    return Framed(image, mask, mask.float().mean().item() if framed else covers)


def _on_background(image, background):
    """A picture's object is what differs from a model's background."""
    differs = (image - float(background == "white")).abs().amax(0).numpy()
    mask = differs > UNLIKE
    if not mask.any():
        return Framed(image, torch.from_numpy(~mask), 1.0)
    # A pixel of the rim is half covered where it differs half as much as its neighbours
    # (a little less, since of these the one that differs most is taken).
    rim = mask & ~ndimage.binary_erosion(mask, iterations=1)
    covered = differs >= 0.4 * ndimage.maximum_filter(differs, 3)
    mask &= covered | ~rim
    return Framed(image, torch.from_numpy(mask), float(mask.mean()))


def _with_alpha(image):
    """An image of any mode as RGBA of 8 bits a channel."""
    grey = np.asarray(image) if image.mode.startswith("I") else np.zeros(1)  # 16 bits
    if image.mode in ("F", "LAB") or grey.min() < 0 or grey.max() > 65535:
        wanted = "8 or 16 bits a channel, as grey or RGB"
        raise ValueError(f"save the image with {wanted}, not as {image.mode}")
    if image.mode.startswith("I"):
        # Of 32 bits, which hold the numbers of 8 as well as those of 16.
        is_small = image.mode == "I" and grey.max() <= 255
        grey = grey if is_small else (grey.astype(int) + 128) // 257
        image = Image.fromarray(grey.astype(np.uint8))
    return image.convert("RGBA")


def _cut(rgba):
    """The image at its working size, alpha 0 but on the object, and the share of it."""
    whole = rgba.width * rgba.height
    alpha = rgba.getchannel("A").point(lambda level: level if level >= VEIL else 0)
    box = alpha.getbbox()
    if box is None:
        raise ValueError(NOTHING)
    ends = zip(("left", "top", "right", "bottom"), box, (0, 0, *rgba.size), strict=True)
    touched = [side for side, at, end in ends if at == end]
    rgba.putalpha(alpha)
    rgba = rgba.crop(box)  # wide margins would cost pixels
    if max(rgba.size) >= 2 * WORKING_SIZE * min(rgba.size):
        raise ValueError(NOTHING)
    share = rgba.width * rgba.height / whole
    rgba = ImageOps.contain(rgba, (WORKING_SIZE, WORKING_SIZE))
    pixels = np.asarray(rgba)
    alpha, rgb = pixels[..., 3], pixels[..., :3] / 255.0
    full = np.quantile(alpha, 1 - cutting.SMALLEST)  # of glass less than 255
    if full < VEIL:
        raise ValueError(NOTHING)
    alpha = _with_glass(alpha, full)
    mask = alpha > full / 2
    filled = ndimage.binary_fill_holes(mask)
    if len(touched) == 4 and _is_inverted(mask, filled):
        raise ValueError(
            "the image is opaque at its border and transparent in its middle: invert "
            "its alpha"
        )
    if len(touched) == 4 and filled.mean() > OPAQUE:  # the alpha says nothing
        found = _cut_photo(cutting.nearest_inside(rgb, mask)) > 0
    elif (found := cutting.cut_inside(rgb, filled)) is None:
        cutting.remark_on_shape(mask, touched)
        near = ndimage.binary_dilation(filled, iterations=SOFT)  # its shadow is not
        alpha = np.where(near, np.minimum(alpha * (255 / full), 255), 0)
        rgba.putalpha(Image.fromarray(alpha.round().astype(np.uint8)))
        return rgba, share * mask.mean()
    else:
        cutting.remark_on_shape(found, ())
    rgba.putalpha(Image.fromarray((found * 255).astype(np.uint8)))
    return rgba, share * found.mean()


def _with_glass(alpha, full):
    """An alpha whose half-transparent parts are opaque, if they end as sharply."""
    glass = ndimage.binary_opening((alpha >= 2 * VEIL) & (alpha <= full / 2))
    seen = alpha >= VEIL
    outline = seen & ~ndimage.binary_erosion(seen, border_value=1)
    sharp = ndimage.binary_dilation(alpha >= 3 * VEIL, iterations=SOFT)[outline]
    if sharp.sum() <= 0.9 * outline.sum():  # a shadow or a halo fades, a veil is all
        return alpha
    return np.where(glass, full, alpha)


def _is_inverted(mask, filled):
    """Whether a mask is the background's: a hole, or corners around what touches."""
    if filled.mean() > OPAQUE:
        return (filled & ~mask).mean() > 1 - OPAQUE
    clear, _ = ndimage.label(~mask)
    sides = [set(side) - {0} for side in (clear[0], clear[-1], *clear.T[[0, -1]])]
    return mask[:: mask.shape[0] - 1, :: mask.shape[1] - 1].all() and bool(
        set.intersection(*sides)
    )


def _cut_photo(rgb):
    """The mask of the object before a plain background, else by a network of rembg."""
    try:
        return cut_out(rgb)
    except cutting.BusyBackground as error:
        busy = error
    try:
        import rembg
    except (ImportError, SystemExit) as error:  # it exits where its runtime is missing
        more = "or pip install 'd2im[photos]': rembg then does it (it fetches 176 MB)"
        raise ValueError(f"{busy}; {more}") from error
    cutting.remark(
        "the background is not plain: rembg cuts the object out, by weights of 176 MB "
        "that it fetches at its first use; look whether the object is whole"
    )
    image = Image.fromarray((rgb * 255).round().astype(np.uint8))
    try:
        session = rembg.new_session(REMBG_MODEL)
        mask = np.asarray(rembg.remove(image, session=session, only_mask=True)) > 127
    except Exception as error:  # of its runtime and its download, anything
        raise ValueError(f"{busy}; rembg failed: {one_line(error)}") from error
    found, largest = cutting.without_specks(mask, 0.02)
    if largest < cutting.SMALLEST * mask.size:
        raise ValueError(f"{busy}; rembg found no object")
    cutting.remark_on_shape(found)
    return found


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
            with Image.open(path, formats=_formats(path)) as image:
                image.load()
                return image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large an image: scale it down") from error
    except UnidentifiedImageError as error:
        what = f"it is none of {', '.join(FORMATS)}"
        if _is_heic(path):
            what = "of HEIC files pip install pillow-heif, or save it as JPEG or PNG"
        raise ValueError(f"{path} is not a readable image: {what}") from error
    except Exception as error:  # decoders raise anything
        raise ValueError(f"{path} is not a readable image: {error}") from error


def _is_heic(path):
    with path.open("rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


def _formats(path):
    if not _is_heic(path):
        return FORMATS
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return FORMATS
    register_heif_opener()
    return (*FORMATS, "HEIF")


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


def _frame(rgba, camera):
    """Crop or pad so that the object stands as a camera at that distance sees it."""
    mask, _ = cutting.without_specks(np.asarray(rgba)[..., 3] > 127, 0.005)
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
