"""The paper's panels (a) to (e) of prepared shapes, on one sheet to look at.

    python benchmarks/panels.py --data TEST data/real --shapes 5 3 --out panels.webp

Beside each shape's first picture F, f_B and f_D on the plane of one of its rows of
pixels, the one where relief changes most, and their values and Laplacians along the
base's front there (`plots.decompose`). F is the true mesh's, f_B and f_D a model's.
"""

import common

# ruff: isort: split
import io

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from d2im.data.dataset import ShapeDataset
from d2im.evaluate import benchmark
from d2im.evaluate.decomposition import true_displacement
from d2im.networks import D2IMNet
from d2im.sampling import signed_distance
from d2im.show import plots
from d2im.use.reconstruction import MODEL, predict

COLUMNS = 2


def main():
    parser = common.arguments(__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="folders")
    parser.add_argument("--shapes", nargs="+", type=int, default=[5], help="of each")
    parser.add_argument("--model", default=str(MODEL), help="folder")
    parser.add_argument("--resolution", type=int, default=200)
    parser.add_argument("--out", default="panels.webp")
    options = common.opening(parser)
    model, made = D2IMNet.from_pretrained(options.model).eval(), []
    for folder, count in zip(options.data, options.shapes, strict=True):
        shapes = ShapeDataset(folder, None)
        for index in benchmark.spread(len(shapes), count):
            made.append(drawn(model, shapes, index, options.resolution))
            print(shapes.rows[index]["id"], flush=True)
    width, height = made[0].size
    page = (width * COLUMNS, height * -(-len(made) // COLUMNS))
    sheet = Image.new("RGB", page, "white")
    for k, picture in enumerate(made):
        sheet.paste(picture, (k % COLUMNS * width, k // COLUMNS * height))
    sheet.save(options.out)


def drawn(model, shapes, index, resolution):
    """The panels of a shape, the picture beside them."""
    row, example = shapes.rows[index], shapes.example(index)
    truth, coarse = benchmark.true_meshes(row, example)
    camera, picture = shapes.camera(index, 0), example["image_0"] / np.float32(255)
    found = predict(model, picture, camera, framed=True)
    relief = true_displacement(camera, example["depth_0"].astype(float), coarse)
    relief = example["normals_0"][0] if coarse is None else relief
    line = np.abs(np.diff(relief.astype(float), axis=1)).sum(1).argmax()
    fields = [
        lambda p: signed_distance(truth, p)[0],
        found.base_sdf,
        lambda p: found.sdf(p) - found.base_sdf(p),
    ]
    step = np.median(example["depth_0"][example["mask_0"] > 0]) / camera.focal
    look = {"step": float(step), "resolution": resolution}
    fig = plt.figure(figsize=(10, 4.6), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=(1, 3.6))
    ax = left.subplots()
    plots.draw_image(ax, picture)
    ax.axhline(line, color="black", linewidth=0.8)
    ax.set_title(row["id"].rpartition("__")[2], fontsize=10)
    plots.draw_decomposition(right, plots.decompose(fields, camera, line, **look))
    page = io.BytesIO()
    fig.savefig(page, format="png", dpi=75)
    plt.close(fig)
    return Image.open(page, formats=["PNG"]).convert("RGB")


if __name__ == "__main__":
    main()
