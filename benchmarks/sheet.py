"""Pictures and what is made of them, on one sheet to look at.

    python benchmarks/sheet.py FOLDER photo.png --rendered 5 --out sheet.png
    python benchmarks/sheet.py --rendered 20 --refine --out sheet.webp
    python benchmarks/sheet.py FOLDER --data data/real --shapes 20
    python benchmarks/sheet.py --icons FILES.sh3f --shapes 20 --fit-camera

A row a picture: as it is given; cut out and framed; the overlay; the result from the
same side, and turned by 60° and 180°; the base. Of prepared examples (--data) the
camera is known. Elsewhere it is the camera network's guess, with --fit-camera moved
until the base's outline is the picture's. Rendered are shapes that no model was trained
on, of families that are, and of those that never are, in turn; --refine takes the
coarse body of each and finds the camera by that. Icons are those that Sweet Home 3D's
libraries show of pieces that no model was trained on. Printed are the camera and the
IoU of the object's mask in the picture with that of the result.
"""

import common

# ruff: isort: split
import tempfile
import warnings
import zipfile
from contextlib import suppress
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from d2im.camera import random_camera
from d2im.data.dataset import ShapeDataset
from d2im.data.files import one_line
from d2im.data.rendering import Renderer, render
from d2im.data.shapes import make_shape, split_pairs
from d2im.data.sweethome import fixed_list, read_library
from d2im.evaluate.benchmark import spread
from d2im.networks import CameraNet, D2IMNet
from d2im.use.overlay import SIDE, strip, turned
from d2im.use.pictures import PictureWarning, find_pictures
from d2im.use.reconstruction import CAMERA_MODEL, MODEL, reconstruct
from d2im.use.refinement import RefineOptions, refine

NAMES = "picture", "cut out, framed", "overlay", "result"
NAMES += "turned by 60°", "by 180°", "base"
LINE = 18  # pixels of a line of text


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("pictures", nargs="*", help="files, or folders of them")
    parser.add_argument("--rendered", type=int, default=0, metavar="COUNT")
    parser.add_argument("--data", nargs="+", default=[], help="prepared examples")
    about = "Sweet Home 3D's libraries, for their icons"
    parser.add_argument("--icons", nargs="+", default=[], metavar="FILE", help=about)
    about = "of each folder, and icons, spread (all)"
    parser.add_argument("--shapes", type=int, help=about)
    parser.add_argument("--model", default=str(MODEL), help="folder")
    parser.add_argument("--camera-model", default=str(CAMERA_MODEL), help="folder")
    parser.add_argument("--fit-camera", action="store_true")
    about = "put the rendered shapes' relief on their coarse bodies"
    parser.add_argument("--refine", action="store_true", help=about)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--out", default="sheet.png")
    options = common.opening(parser)
    model = D2IMNet.from_pretrained(options.model).eval()
    guess = CameraNet.from_pretrained(options.camera_model).camera
    known = {"resolution": options.resolution, "fit": options.fit_camera}
    settings = RefineOptions(resolution=options.resolution)

    def work(path, body=None):
        if options.refine and body is not None:
            return refine(model, body, path, options=settings)
        return reconstruct(model, path, guess, **known)

    def seen(image, camera):  # framed already
        return lambda _: reconstruct(model, image, camera, options.resolution)

    rows = [row(path, work) for path in find_pictures(options.pictures)]
    with tempfile.TemporaryDirectory() as folder:
        for path, shape in rendered(options.rendered, Path(folder)):
            rows.append(row(path, lambda p, s=shape: work(p, s.coarse)))
        for path in icons(options.icons, options.shapes, Path(folder)):
            rows.append(row(path, work))
        for data in options.data:
            for path, image, camera in prepared(data, options.shapes, Path(folder)):
                rows.append(row(path, seen(image, camera)))
    sheet = Image.new(
        "RGB", (len(NAMES) * SIDE, LINE + sum(r.height for r in rows)), "white"
    )
    for k, name in enumerate(NAMES):
        write(sheet, k * SIDE, 0, name)
    top = LINE
    for made in rows:
        sheet.paste(made, (0, top))
        top += made.height
    sheet.save(options.out)
    print(f"{options.out}: {len(rows)} rows")


def rendered(count, folder):
    """Picture files of so many shapes, each from a random camera, and the shapes."""
    each = -(-count // 2)
    pairs = zip(
        split_pairs("test", 10)[:each], split_pairs("unseen", 10)[:each], strict=True
    )
    for family, seed in list(chain(*pairs))[:count]:
        rng = np.random.default_rng(seed)
        shape = make_shape(family, seed)
        view = render(shape.detailed, random_camera(rng, 400), rng)
        pixels = np.dstack([np.moveaxis(view.image, 0, 2), view.mask])
        path = folder / f"{family}-{seed}.png"
        Image.fromarray((255 * pixels).round().astype(np.uint8)).save(path)
        yield path, shape


def icons(files, count, folder):
    """Picture files of pieces of the libraries' test set, as their makers drew them."""
    test = set(fixed_list()["test"])
    pieces = [p for file in files for p in read_library(file)]
    pieces = [p for p in pieces if p.icon and p.name in test]
    for piece in (pieces[k] for k in spread(len(pieces), count or 0)):
        path = folder / f"{piece.name}{Path(piece.icon).suffix}"
        with zipfile.ZipFile(piece.archive) as archive, suppress(KeyError):
            path.write_bytes(archive.read(piece.icon))
        yield path  # its row says so where there is none


def prepared(data, count, folder):
    """Picture files of prepared examples, the pictures and their cameras."""
    shapes = ShapeDataset(data, None)
    for index in spread(len(shapes), count or 0):
        image = shapes.example(index)["image_0"]
        path = folder / f"{shapes.rows[index]['id']}.png"
        Image.fromarray(np.moveaxis(image, 0, 2)).save(path)
        yield path, torch.from_numpy(image / 255).float(), shapes.camera(index, 0)


def row(path, work):
    """A picture of a row: what is given, and what `work` makes of it, or why not."""
    made = Image.new("RGB", (len(NAMES) * SIDE, SIDE + LINE), "white")
    with warnings.catch_warnings(record=True, action="always") as noticed:
        try:
            with Image.open(path) as file:
                given = ImageOps.pad(file.convert("RGBA"), (SIDE, SIDE), color="white")
            made.paste(given, (0, LINE), given)
            found = work(path)
            made.paste(strip(found), (SIDE, LINE))
            if found.base_mesh is not None:
                base = turned(found.base_mesh, [found.camera.resized(SIDE)])[0]
                made.paste(base, ((len(NAMES) - 1) * SIDE, LINE))
            said = ["camera {:.0f}, {:.0f}, {:.2f}".format(*found.camera.pose)]
            mask = found.mask.numpy()
            camera = found.camera.resized(len(mask))  # a network's picture is its own
            hit = Renderer(found.mesh).cast(camera)[0]
            said.append(f"IoU {(hit & mask).sum() / (hit | mask).sum():.2f}")
        except (ValueError, OSError, RuntimeError) as error:
            said = [f"failed: {one_line(error)}"]
    said += [one_line(w.message) for w in noticed if w.category is PictureWarning]
    said = f"{path.stem}: {'; '.join(said)}"
    print(said, flush=True)
    write(made, 0, 0, said)
    return made


def write(page, x, y, text):
    ImageDraw.Draw(page).text((x + 4, y + 1), text, "black", ImageFont.load_default(13))


if __name__ == "__main__":
    main()
