"""An object cut out of its picture: plain backgrounds, frames, and what was noticed.

Lengths in pixels are those of a picture whose longer side has 640.
"""

import warnings
from collections.abc import Iterable

import numpy as np
from scipy import ndimage

PLAIN = 0.9  # of the border are background or the object, which may touch it
REACHED = 0.75  # of the border's pixels in the background's colours are background
EDGE = 0.0095  # change per pixel of a smoothed picture that a background does not have
TINT = 0.04  # by which a background's colour may stray from its neighbours', in [0, 1]
EVEN = 0.016  # four of 255, likewise, of a background of one colour
CELL = 0.03  # in [0, 1]: colours of a border two cells apart belong together
LEAST_BORDER = 0.25  # of the border must show the background: the object hides the rest
MARGIN = 8  # pixels put around a picture, five times the smoothing's width
RECTANGLE = 0.93  # of its box that a picture in a picture fills, its corners rounded
FRAMES = 3  # that a picture may have around each other
# Shares that draw a remark: of the largest part that another one has, of the object's
# extent that lies at the picture's border, of the object that looks like a shadow.
SECOND, CONTACT, SHADOW = 0.15, 0.02, 0.06
FAINT = 0.1  # difference in [0, 1] between an object and its background
SMALLEST = 0.002  # of a picture, that an object fills
SIDES = ("top", "right", "bottom", "left")
CUT_IT_OUT = (
    "cut the object out and save it with alpha, or photograph it before a plain wall"
)


class PictureWarning(UserWarning):
    """Something in a picture that may have spoiled its cut-out."""


class BusyBackground(ValueError):
    """The background is not plain."""


def remark(text: str) -> None:
    """Warn of something in a picture."""
    warnings.warn(text, PictureWarning, stacklevel=3)


def cut_out(rgb: np.ndarray) -> np.ndarray:
    """Find the object on a plain background, which may have a soft shadow and a frame.

    What can be reached from the picture's border without crossing an edge, and what it
    encloses in the same colour, is background. A rectangle with a plain rim and an
    object of its own is a picture in a frame. What is noticed is a PictureWarning.

    Args: rgb: (H, W, 3) in [0, 1].
    Returns: (H, W) uint8: 255 on the object, 0 elsewhere.
    Raises: BusyBackground, a ValueError: the background is not plain.
        ValueError: there is nothing on it.
    """
    found, window = _search(rgb, FRAMES)
    if window != _whole(found):
        remark("a frame around the picture was taken off")
    _remark_on_colours(rgb[window], found[window])
    remark_on_shape(found[window])
    return (found * 255).astype(np.uint8)


def cut_inside(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
    """Find the object of a picture that fills a mask, as `cut_out` does.

    Args: rgb: (H, W, 3) in [0, 1]. mask: (H, W) bool.
    Returns: (H, W) bool; None where the mask is no rectangle or holds no such picture.
    """
    return _inner(rgb, mask, FRAMES)[0]


def _whole(mask):
    return tuple(slice(0, side) for side in mask.shape)


def _within(inner, outer):
    """A window of a window as one of the whole."""
    pairs = zip(inner, outer, strict=True)
    return tuple(slice(o.start + i.start, o.start + i.stop) for i, o in pairs)


def _search(rgb, frames):
    """The object's mask, and the window of the picture within its frames."""
    try:
        found = _foreground(rgb)
    except BusyBackground:
        window = _between_bars(rgb)
        if not frames or window is None:
            raise
        inner, within = _search(rgb[window], frames - 1)
        found = np.zeros(rgb.shape[:2], dtype=bool)
        found[window] = inner
        return found, _within(within, window)
    inner, window = _inner(rgb, found, frames)
    return (found, _whole(found)) if inner is None else (inner, window)


def _rectangle(mask):
    """The window that a mask's largest part all but fills; else None."""
    part, _ = without_specks(mask, 1 - 1e-9)
    window = ndimage.find_objects(part.astype(int))[0]
    filled = ndimage.binary_fill_holes(part[window])
    return window if filled.mean() >= RECTANGLE and min(filled.shape) > 16 else None


def _inner(rgb, mask, frames):
    """The object of a picture that fills a mask, and its window; else None twice."""
    window = _rectangle(mask)
    if not frames or window is None:
        return None, None
    # Without the frame's last pixels, which mix with it, and its rounded corners.
    inside = ndimage.binary_fill_holes(mask)
    inside = ndimage.binary_erosion(inside, iterations=3, border_value=1)
    try:
        inner, within = _search(nearest_inside(rgb, inside)[window], frames - 1)
    except BusyBackground:
        if frames == FRAMES:
            remark("the object is a rectangle: if it is a photo, cut its object out")
        return None, None
    except ValueError:  # nothing is on it
        return None, None
    inner &= inside[window]
    # Furniture seen from the front is a rectangle, too: what is found on it are
    # drawers and shelves, which are many, rectangles, or all of it.
    part, size = without_specks(inner, 0.15)
    lone = size > 0.85 * inner.sum() and 0.01 < inner.mean() < 0.7
    if not lone or _rectangle(part) is not None:
        return None, None
    found = np.zeros(mask.shape, dtype=bool)
    found[window] = inner
    return found, _within(within, window)


def nearest_inside(rgb: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture whose pixels beside a mask are as the nearest ones within it."""
    if mask.all():
        return rgb
    nearest = ndimage.distance_transform_edt(
        ~mask, return_distances=False, return_indices=True
    )
    return rgb[tuple(nearest)]


def _between_bars(rgb):
    """The window between bars of one colour along whole sides; None without bars."""
    window = list(_whole(rgb[..., 0]))
    for axis in (0, 1):
        lines = np.moveaxis(rgb, axis, 0)
        for end, inward in ((0, 1), (-1, -1)):
            colour = np.median(lines[end], axis=0)
            like = (np.abs(lines - colour).max(-1) < TINT).mean(1)[::inward]
            thick = int((like < 0.97).argmax())
            # A bar ends all along its line, but for a pixel or three that mix; an
            # object that stands on a floor ends it here and there.
            if 0 < thick and like[min(thick + 3, len(like) - 1)] < 0.1:
                cut = thick + 2
                start, stop = window[axis].start, window[axis].stop
                bounds = (start + cut, stop) if inward > 0 else (start, stop - cut)
                window[axis] = slice(*bounds)
    sides = [part.stop - part.start for part in window]
    if min(sides) < 16 or tuple(window) == _whole(rgb[..., 0]):
        return None
    return tuple(window)


def _border(height, width):
    """Rows and columns of the border's pixels, once around from the top left."""
    across, down = np.arange(width - 1), np.arange(height - 1)
    rows = [0 * across, down, 0 * across + height - 1, height - 1 - down]
    columns = [across, 0 * down + width - 1, width - 1 - across, 0 * down]
    return np.concatenate(rows), np.concatenate(columns)


def _foreground(rgb):
    """The mask of what stands on a plain background, which shows at the border."""
    height, width = rgb.shape[:2]
    border = _border(height, width)
    rim = rgb[border]
    plain = _most_alike(rim)
    sides = np.split(plain, np.cumsum([width - 1, height - 1, width - 1]))
    if plain.mean() < LEAST_BORDER:
        raise BusyBackground(_not_plain(plain.mean()))
    if min(side.mean() for side in sides) < 0.02:
        raise BusyBackground(
            "the image's border has one colour along a whole side and another one "
            "elsewhere, as before a wall and a floor, or where the object is cut off: "
            + CUT_IT_OUT
        )
    outer = _with_margin(rgb, border, plain)
    smooth = ndimage.gaussian_filter(outer, (1.5, 1.5, 0))
    change = np.linalg.norm(np.gradient(smooth, axis=(0, 1)), axis=0).max(-1)
    regions, count = ndimage.label(change < EDGE)
    within = (slice(MARGIN, -MARGIN),) * 2
    outside = np.zeros(count + 1, dtype=bool)
    outside[regions[_border(*regions.shape)]] = True
    outside[regions[within][border][plain]] = True  # behind JPEG's ripples, too
    outside[0] = False  # an edge is no region
    background = outside[regions]
    if not background.any():
        raise BusyBackground(_not_plain(0))
    for reach in (np.inf, 4):  # enclosed regions, then pixels beside an edge
        far, nearest = ndimage.distance_transform_edt(~background, return_indices=True)
        unlike = np.abs((smooth if reach > 4 else outer) - smooth[tuple(nearest)])
        unlike = unlike.max(-1)
        if reach > 4:
            means = ndimage.mean(unlike, regions, np.arange(1, count + 1))
            unlike = np.append(1.0, means)[regions]
        background |= (far <= reach) & (unlike < TINT)
    reached = background[within][border]
    # What else is at the border must be of the object, not more of the background.
    own = without_specks(~background[within], 1 - 1e-9)[0][border]
    if reached[plain].mean() < REACHED or (reached | own).mean() < PLAIN:
        raise BusyBackground(_not_plain(reached.mean()))
    found = ndimage.binary_opening(~background)[within]
    faint = _off_an_even_one(rgb, np.median(rim[plain], axis=0), found)
    found |= ndimage.binary_opening(faint & ~found, iterations=2)
    found, largest = without_specks(found, 0.02)
    if largest < SMALLEST * found.size:
        raise ValueError("the image shows nothing on its plain background")
    return found


def _with_margin(rgb, border, plain):
    """A picture within the background's colours: an object may touch its border."""
    rim, place, known = rgb[border], np.arange(len(plain)), np.flatnonzero(plain)
    colours = [np.interp(place, known, c[known], period=len(rim)) for c in rim.T]
    outer = rgb.copy()
    outer[border] = ndimage.gaussian_filter1d(np.array(colours).T, 2, 0, mode="wrap")
    outer = np.pad(outer, [(MARGIN, MARGIN)] * 2 + [(0, 0)], mode="edge")
    outer[MARGIN:-MARGIN, MARGIN:-MARGIN] = rgb
    return outer


def _off_an_even_one(rgb, colour, found):
    """What is faint, too, before a background of one colour all over: no shadow."""
    smooth = ndimage.gaussian_filter(rgb, (1.5, 1.5, 0))
    near = ndimage.binary_dilation(found, iterations=12)
    near &= ~ndimage.binary_dilation(found, iterations=4)
    ripples = np.abs(rgb - smooth).max(-1)[near]
    if near.mean() > 0.01 and np.median(ripples) > EVEN / 8:  # JPEG's
        return np.zeros_like(found)
    unlike = np.abs(smooth - colour).max(-1)
    faint = ndimage.binary_opening(unlike > EVEN / 2, iterations=2)
    outline = faint & ~ndimage.binary_erosion(faint, border_value=1)
    sharp = ndimage.binary_dilation(unlike > EVEN, iterations=4)[outline]
    if sharp.sum() < PLAIN * outline.sum():  # it fades away, as shadows do
        return np.zeros_like(found)
    return (np.abs(rgb - colour).max(-1) > EVEN) & (unlike > EVEN)


def _not_plain(share):
    found = f"its background is not plain ({share:.0%} of the border is)"
    return f"the image has no alpha and {found}: {CUT_IT_OUT}"


def _most_alike(colours):
    """Which of (N, 3) colours belong to the largest group without gaps in it."""
    cells = np.floor(colours / CELL).astype(int)
    counts = np.zeros(cells.max(0) + 1, dtype=int)
    np.add.at(counts, tuple(cells.T), 1)
    groups, _ = ndimage.label(counts > 2, np.ones((3, 3, 3)))  # a few mix two colours
    group = groups[tuple(cells.T)]
    sizes = np.bincount(group)
    sizes[0] = 0
    return (group == sizes.argmax()) & (sizes.max() > 0)


def without_specks(mask: np.ndarray, share: float) -> tuple[np.ndarray, int]:
    """A mask but for its parts smaller than a share of the largest, whose pixels."""
    parts, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0  # what is no part
    return (sizes > share * sizes.max())[parts], int(sizes.max())


def remark_on_shape(mask: np.ndarray, sides: Iterable[str] = SIDES) -> None:
    """Warn of an object that touches the border's sides, and of several objects."""
    ends = {
        "top": mask[0],
        "bottom": mask[-1],
        "left": mask[:, 0],
        "right": mask[:, -1],
    }
    rows, columns = ndimage.find_objects(mask.astype(int))[0]
    extent = max(rows.stop - rows.start, columns.stop - columns.start)
    touched = [side for side in sides if ends[side].sum() > CONTACT * extent]
    if touched:
        remark(
            f"the object touches the picture's border ({', '.join(touched)}): what is "
            "cut off there is missing in the shape"
        )
    gap = np.ones((3, 3))
    parts, count = ndimage.label(ndimage.binary_dilation(mask, gap, 4), gap)
    sizes = ndimage.sum(mask, parts, np.arange(1, count + 1))
    several = int((sizes > SECOND * sizes.max()).sum())
    if several > 1:
        remark(f"{several} separate objects are in the picture: leave only one in it")


def _remark_on_colours(rgb, found):
    """Warn of an object hardly unlike its background, and of a hard shadow."""
    clear = ~ndimage.binary_dilation(found, iterations=3)
    before = nearest_inside(rgb, clear if clear.any() else ~found)
    unlike = np.abs(rgb - before).max(-1)[found]
    if np.quantile(unlike, 0.3) < FAINT:
        remark(
            "the object hardly differs from its background: parts of it may be "
            "missing; light it better, or cut it out and save it with alpha"
        )
        return
    # A shadow with an edge is the background's colour, evenly darker, at the outline.
    ratio = ndimage.gaussian_filter(rgb, (1.5, 1.5, 0)) / np.maximum(before, 0.02)
    darker = ratio.mean(-1)
    steps = np.abs(np.gradient(darker)).max(0)
    grey = np.ptp(ratio, axis=-1) < TINT
    if grey[found].mean() > 0.95:  # so is all of the object
        return
    flat = found & grey & (steps < EDGE)
    parts, count = ndimage.label(flat & (darker > 0.3) & (darker < 0.93))
    sizes = ndimage.sum(parts > 0, parts, np.arange(1, count + 1))
    outline = ~ndimage.binary_erosion(found, iterations=5, border_value=1)
    for part in 1 + np.flatnonzero(sizes > SHADOW * found.sum()):
        here = parts == part
        rim = here & ~ndimage.binary_erosion(here)
        if outline[rim].mean() > 0.4:
            remark("a part of what was cut out may be a hard shadow: use softer light")
            break
