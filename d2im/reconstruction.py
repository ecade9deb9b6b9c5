"""One picture in, an object out: base and final mesh, displacement maps, fields.

python -m d2im.reconstruction photo.png -o out.glb
"""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import trimesh
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from .camera import Camera
from .fields import base_field, displaced_field
from .meshing import extract_mesh
from .networks import SDF_SCALE, D2IMNet

MODEL = Path(__file__).parents[1] / "data" / "models" / "small"  # the one in the box
SMALLEST_IMAGE, LARGEST_IMAGE = 16, 16_000  # pixels a side
WORKING_SIZE = 640  # pixels of the longer side, at which a picture is cut out
PLAIN = 0.9  # of the border's pixels: the object may touch the rest
EDGE = 0.0095  # change per pixel of a smoothed picture that a background does not have
TINT = 0.04  # by which a background's colour may stray from its neighbours', in [0, 1]
# Over 864 views of procedural shapes as training draws them, in units of the projected
# radius f * 0.5 / distance: how far from the middle of the mask's box its farthest
# pixel lies, and by how much the middle lies below the picture's.
REACH, DROP, RATIO = 1.04, 0.05, 0.9


@dataclass(frozen=True)
class Prediction:
    """The fields that one picture gave.

    Attributes:
        displacement: (2, H, W) tensor on the CPU, world units: 0 front, 1 back. Outside
            the object's mask no Laplacian has taught it anything.
        camera: Camera that was used.
        base_sdf, sdf: the fields f_B and F, (P, 3) -> (P,), world units.
        image: (3, H, W) tensor that the model saw, on the CPU.
        way: of `fields.front_mask`. device: where the fields are evaluated.
        frame: of points and camera: the model's.
    """

    displacement: torch.Tensor
    camera: Camera
    base_sdf: Callable
    sdf: Callable
    image: torch.Tensor
    way: str = field(default="gradient", kw_only=True)
    device: str | torch.device = field(default="cpu", kw_only=True)
    frame: str = field(default="world", kw_only=True)


@dataclass(frozen=True)
class Reconstruction(Prediction):
    """A Prediction and its surfaces.

    Attributes:
        mesh: trimesh.Trimesh of F = f_B + f_D, world frame.
        base_mesh: trimesh.Trimesh of f_B, or None where it was not asked for.
    """

    mesh: trimesh.Trimesh
    base_mesh: trimesh.Trimesh | None

    def colored(self):
        """The final mesh, coloured by its displacement: red outward, blue inward."""
        from matplotlib import colormaps

        points = torch.tensor(self.mesh.vertices, dtype=torch.float32)
        with torch.no_grad():  # on the surface F = 0: it lies f_B outside the base's
            outward = self.base_sdf(points.to(self.device)).cpu().numpy()
        limit = max(np.quantile(np.abs(outward), 0.99), 1e-6)
        mesh = self.mesh.copy()
        colors = colormaps["RdBu_r"](0.5 + outward / limit / 2, bytes=True)
        mesh.visual = trimesh.visual.ColorVisuals(mesh, vertex_colors=colors)
        return mesh

    def export(self, path, which="final"):
        """Write a mesh, whole or not at all.

        Args:
            path: file; its suffix (.glb, .obj or .ply) chooses the format.
            which: "final", "base" or "colored", see `colored`.

        Raises:
            ValueError: another suffix or name, or no base mesh.
        """
        kind = Path(path).suffix.lower()
        if kind not in (".glb", ".obj", ".ply"):
            raise ValueError(f"a mesh is written as .glb, .obj or .ply, not {path}")
        meshes = {"final": self.mesh, "base": self.base_mesh}
        mesh = self.colored() if which == "colored" else meshes.get(which)
        if mesh is None:
            raise ValueError(f"there is no {which!r} mesh to write")
        content = mesh.export(file_type=kind[1:])
        content = content.encode() if isinstance(content, str) else content
        _write(path, lambda file: file.write(content))

    def export_maps(self, folder):
        """Write front.png and back.png (16 bits), displacement.npy and .json.

        The JSON file tells how grey becomes a displacement, and holds the camera.
        """
        maps = self.displacement.numpy()
        scale = max(float(np.abs(maps).max()), 1e-9) / 32767
        for name, values in zip(("front", "back"), maps, strict=True):
            grey = (32768 + np.round(values / scale)).astype(np.uint16)
            _write(Path(folder) / f"{name}.png", Image.fromarray(grey).save, "PNG")
        _write(Path(folder) / "displacement.npy", np.save, maps)
        about = {
            "formula": "displacement = (grey - 32768) * scale",
            "scale": scale,
            "unit": "world; the object has radius 0.5, positive values add to the SDF",
            "frame": self.frame,
            "camera": {k: np.asarray(v).tolist() for k, v in vars(self.camera).items()},
        }
        text = json.dumps(about, indent=1).encode()
        _write(Path(folder) / "displacement.json", lambda file: file.write(text))


def _write(path, save, *arguments):
    """Call `save(file, ...)` on a temporary file, then give it its name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            save(file, *arguments)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_image(source, size, *, camera=None, framed=False, background="white"):
    """Bring a picture into the form that a model takes.

    Args:
        source: path of an image file; PIL image; or uint8 array (H, W, 3) or (H, W, 4).
            Transparency tells the object from its background; without it a plain
            background is found and removed. Or a float array or tensor (3, H, W) in
            [0, 1], square, which is taken as it is: framed, on the model's background.
        size: pixels of the result.
        camera: Camera whose distance the object is framed for; by default a usual one.
        framed: the picture is square and its object stands as in training's already:
            nothing is cut out or moved.
        background: of the model, "white" or "black".

    Returns:
        (3, size, size) f4 tensor in [0, 1].

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an image, too small or large, of wrong range, on a busy
            background, or without an object.
        TypeError: something that is no picture.
    """
    if isinstance(source, str | os.PathLike):
        source = _open_image(Path(source))
    elif isinstance(source, np.ndarray) and source.dtype == np.uint8:
        if source.ndim != 3 or source.shape[2] not in (3, 4):
            raise ValueError(
                f"a uint8 image must be (H, W, 3 or 4), got {source.shape}"
            )
        source = Image.fromarray(source)
    elif isinstance(source, np.ndarray | torch.Tensor):
        return _from_floats(source, size)
    if not isinstance(source, Image.Image):
        raise TypeError(
            "an image must be a path, a PIL image, an array or a tensor, "
            f"not {type(source).__name__}"
        )
    if source.mode.startswith(("I", "F")):
        raise ValueError(
            f"the image has more than 8 bits a channel (mode {source.mode}): "
            "save it with 8 bits"
        )
    if min(source.size) < SMALLEST_IMAGE or max(source.size) > LARGEST_IMAGE:
        raise ValueError(
            f"the image is {source.width} x {source.height} px: its sides must have "
            f"{SMALLEST_IMAGE} to {LARGEST_IMAGE} px"
        )
    if framed and source.width != source.height:
        raise ValueError(
            f"a framed image must be square, got {source.width} x {source.height} px"
        )
    rgba = source.convert("RGBA")
    if not framed:
        rgba = ImageOps.contain(rgba, (WORKING_SIZE, WORKING_SIZE))
    alpha = np.asarray(rgba)[..., 3]
    if not alpha.any():
        raise ValueError("the image is fully transparent: there is no object in it")
    if not framed:
        if alpha.min() == 255:
            rgba.putalpha(Image.fromarray(cut_out(np.asarray(rgba)[..., :3] / 255.0)))
        rgba = _frame(rgba, camera or Camera(0, 0, RATIO, size))
    rgba = rgba.resize((size, size), Image.Resampling.BILINEAR)
    backdrop = Image.new("RGBA", rgba.size, background)
    pixels = np.asarray(Image.alpha_composite(backdrop, rgba).convert("RGB"))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def _from_floats(source, size):
    if isinstance(source, np.ndarray):
        source = torch.from_numpy(np.ascontiguousarray(source))
    image = source.detach().cpu()
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image array must be (3, H, W), got {tuple(image.shape)}")
    if not image.is_floating_point():
        raise ValueError(f"an image array must be float in [0, 1], not {image.dtype}")
    image = image.float()
    if not (image.min() >= 0 and image.max() <= 1):  # also false for NaN
        raise ValueError(
            "an image array must lie in [0, 1], got "
            f"[{image.min():.3g}, {image.max():.3g}]"
        )
    height, width = image.shape[1:]
    if height != width or height < SMALLEST_IMAGE:
        raise ValueError(
            f"an image array must be square, of {SMALLEST_IMAGE} px at least, got "
            f"{width} x {height}"
        )
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
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            return ImageOps.exif_transpose(image)  # which also reads it
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{path} is too large an image: scale it down") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is not a readable image: {error}") from error


def cut_out(rgb):
    """Find the object on a plain background, which may have a soft shadow.

    What can be reached from the picture's border without crossing an edge, and what it
    encloses in the same colour, is background.

    Args:
        rgb: (H, W, 3) in [0, 1].

    Returns:
        (H, W) uint8: 255 on the object, 0 elsewhere.

    Raises:
        ValueError: the background is not plain, or there is nothing on it.
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
    parts, _ = ndimage.label(ndimage.binary_opening(~background), np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    if not len(sizes) or sizes.max() < 0.002 * background.size:
        raise ValueError("the image shows nothing on its plain background")
    keep = np.append(False, sizes > 0.02 * sizes.max())  # specks and dithering go
    return (keep[parts] * 255).astype(np.uint8)


def _frame(rgba, camera):
    """Crop or pad so that the object stands as a camera at that distance sees it."""
    left, top, right, bottom = rgba.getchannel("A").point(lambda a: a > 127).getbbox()
    y, x = np.nonzero(np.asarray(rgba)[..., 3] > 127)
    middle = np.array([left + right, top + bottom]) / 2
    reach = np.hypot(x + 0.5 - middle[0], y + 0.5 - middle[1]).max()
    # of the projected radius 0.5, in parts of the picture's side
    radius = 0.5 * camera.focal / camera.size / np.linalg.norm(camera.translation)
    side = reach / (REACH * radius)
    corner = middle - side * np.array([0.5, 0.5 + DROP * radius])
    box = np.round([*corner, *(corner + side)]).astype(int)
    return rgba.crop(tuple(map(int, box)))


@torch.no_grad()
def predict(model, image, camera=None, *, way="gradient", framed=False):
    """Predict the fields of the object in a picture, without meshing them.

    Args:
        model: D2IMNet, or another model with its method `fields`.
        image, framed: see `load_image`.
        camera: Camera of the picture as the model sees it, in the model's frame, of any
            size in pixels; or a callable (3, size, size) -> Camera, as CameraNet's
            `camera` is.
        way: how front and back are told apart, see `fields.front_mask`.

    Returns:
        Prediction.

    Raises:
        ValueError: no camera, or an unusable picture.
    """
    if camera is None:
        raise ValueError(
            "the picture's camera is needed: pass "
            "camera=Camera(azimuth, elevation, ratio, size), or a net that estimates it"
        )
    image = load_image(
        image,
        model.image_size,
        camera=camera if isinstance(camera, Camera) else None,
        framed=framed,
        background=getattr(model, "background", "white"),
    )
    if not isinstance(camera, Camera):
        camera = camera(image)
    weights, training = next(model.parameters()), model.training
    model.eval()
    base, sdf, displacement = _fields(model, image[None].to(weights), camera, way)
    model.train(training)
    about = {"way": way, "device": weights.device, "frame": model.frame}
    return Prediction(displacement.float().cpu(), camera, base, sdf, image, **about)


def _fields(model, image, camera, way):
    if hasattr(model, "fields"):
        return model.fields(image, camera, way)
    code, features = model.encode(image)
    base = base_field(model.base_decoder, code, SDF_SCALE)
    displacement = model.displacement_decoder(features)[0] / SDF_SCALE
    return base, displaced_field(base, displacement, camera, way), displacement


def triangulate(prediction, resolution=128, *, base_mesh=True):
    """Mesh the surfaces of a Prediction; see `reconstruct`."""
    maps, camera, way = prediction.displacement, prediction.camera, prediction.way
    options = {"device": prediction.device}
    if maps.any():  # a model without displacement has one surface
        options |= {"relief": (maps, camera, way), "both": base_mesh}
    found = extract_mesh(prediction.base_sdf, resolution, **options)
    base, mesh = found if isinstance(found, tuple) else (found, found)
    known = {
        name: getattr(prediction, name) for name in Prediction.__dataclass_fields__
    }
    return Reconstruction(**known, mesh=mesh, base_mesh=base if base_mesh else None)


def reconstruct(
    model, image, camera=None, resolution=128, *, base_mesh=True, **options
):
    """Reconstruct the object in a picture: `predict`, then mesh f_B and F.

    Args:
        model, image, camera, options: see `predict`.
        resolution: grid samples along the box's side.
        base_mesh: whether the surface of f_B is wanted too.

    Returns:
        Reconstruction.

    Raises:
        ValueError: as `predict`, or no surface in the box.
    """
    found = predict(model, image, camera, **options)
    return triangulate(found, resolution, base_mesh=base_mesh)


def main(arguments=None):
    """The command line; returns an error's text, or None."""
    parser = argparse.ArgumentParser(prog="python -m d2im.reconstruction")
    parser.add_argument("image", help="picture of one object")
    parser.add_argument("-o", "--out", required=True, help=".glb, .obj or .ply file")
    parser.add_argument("--model", default=MODEL, help="folder of a model")
    pose = ("AZIMUTH", "ELEVATION", "RATIO")
    parser.add_argument("--camera", type=float, nargs=3, metavar=pose)
    parser.add_argument("--camera-model", help="folder of a CameraNet")
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--mesh", default="final", choices=["final", "base", "colored"])
    parser.add_argument("--maps", help="folder for the displacement maps")
    given = parser.parse_args(arguments)
    try:
        model, camera = D2IMNet.from_pretrained(given.model), None
        if given.camera:
            camera = Camera(*given.camera, model.image_size)
        elif given.camera_model:
            from .networks import CameraNet

            camera = CameraNet.from_pretrained(given.camera_model).camera
        found = reconstruct(model, given.image, camera, given.resolution)
        found.export(given.out, given.mesh)
        if given.maps:
            found.export_maps(given.maps)
    except (OSError, ValueError) as error:
        return str(error)
    print(f"{given.out}: {len(found.mesh.faces):,} faces")


if __name__ == "__main__":
    sys.exit(main())
