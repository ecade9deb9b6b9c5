"""Make reports/gallery/, what readers without a kernel see.

    python notebooks/gallery.py        # `... gallery.py 07` runs that one alone again

All notebooks run with the package's models. Their pictures, scenes and executed copies
go to reports/gallery/, made small, with a page that code hosts show.
"""

import base64
import io
import json
import re
import runpy
import shutil
import sys
from functools import partial

import matplotlib.pyplot as plt
import nbformat
import numpy as np
from PIL import Image

from d2im.show.pages import escape, write_text
from d2im.show.plots import draw_curves
from d2im.show.run import ROOT, run_notebooks
from d2im.training.records import read_records
from d2im.use.reconstruction import MODEL

GALLERY = ROOT / "reports/gallery"
NUMBERS = {path.stem[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
# 02's shapes go to those after it, 03's to none.
ORDER = ["02", *sorted(NUMBERS - {"02", "03"}), "03"]
RIVALS = [MODEL.parent / name for name in ("imnet-small", "disn-small")]
CURVES = ("base", "sdf", "laplacian", "relief", "camera")
LIMITS = {".png": 300_000, ".html": 1_000_000, ".ipynb": 1_000_000}  # bytes
LEVELS = 64  # of each channel: steps of 4 of 255, which no scale shows as bands
SCALES = 1, 0.9, 0.8, 0.7, 0.6  # the first whose bytes fit
SCRIPT = "k3d.js"  # all scenes' own program, 1.2 MB, stands in one file beside them


def small(png, scale=1):
    """A PNG in full colour, but for the last bits of each channel, and scaled."""
    page = io.BytesIO()
    image = Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB")
    image = image.resize([round(scale * side) for side in image.size], Image.LANCZOS)
    levels = np.round(np.asarray(image) * ((LEVELS - 1) / 255))
    rounded = np.round(levels * (255 / (LEVELS - 1))).astype(np.uint8)
    Image.fromarray(rounded).save(page, "PNG", optimize=True)
    return page.getvalue()


def fitting(suffix, make):
    """The bytes that `make` gives at the largest scale at which they are few enough."""
    for scale in SCALES:
        if len(data := make(scale)) <= LIMITS[suffix]:
            break
    return data


def executed(path, scale=1):
    """An executed notebook with text and pictures alone, its links those of a run.

    A picture's alt text is its plain text, too, for readers that look for it there.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.get("tags", [])}
        outputs = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        for output in [output for output in outputs if "data" in output]:
            data, about = output["data"], output["metadata"].get("image/png", {})
            if "image/png" in data:
                png = small(base64.b64decode(data["image/png"]), scale)
                data["image/png"] = base64.b64encode(png).decode()
                data["text/plain"] = about.get("alt", data.get("text/plain", ""))
            for kind in set(data) - {"image/png", "text/plain", "text/markdown"}:
                del data[kind]
            alt = {"alt": about["alt"]} if "alt" in about else {}
            output["metadata"] = {"image/png": alt} if "image/png" in data else {}
        if cell.cell_type == "code":
            cell.outputs = outputs
    return nbformat.writes(notebook).encode()


def shared(scene):
    """A scene's page that reads k3d from the file beside it, and that file."""
    script = re.search(r"window\.k3dCompressed = '[^']*';", scene)[0]
    tag = f'<script src="{SCRIPT}"></script>\n    <script>'
    return scene.replace(f"<script>\n        {script}", tag), script


def training_curves(target):
    """Draw how the package's models were trained, where they have their records."""
    logs = sorted(MODEL.parent.glob("*/metrics.csv"))
    if not logs:
        return ""
    high = -(-len(logs) // 3)
    size = dict(figsize=(9.6, 3 * high), layout="constrained", squeeze=False)
    fig, axes = plt.subplots(high, 3, sharey=True, **size)
    for ax in axes.flat[len(logs) :]:
        ax.axis("off")
    for ax, log in zip(axes.flat, logs, strict=False):
        rows = read_records(log.parent)
        draw_curves(ax, rows, CURVES)
        seen = [(r["step"], r["validation"]) for r in rows if "validation" in r]
        ax.plot(*zip(*seen, strict=True), "k.-", label="all, unseen shapes")
        ax.set_title(log.parent.name)
        ax.set_ylim(top=30)  # room for the legend
        ax.legend(fontsize=7, loc="upper right")
    fig.savefig(target, dpi=100)
    target.write_bytes(fitting(".png", partial(small, target.read_bytes())))
    caption = "The losses of the package's models by step; of d2im-base the last two "
    caption += "of its base's trainings alone, its maps' not at all"
    return f"## How they were trained\n\n![{caption}]({target.name})\n"


def main():
    there = [path.relative_to(ROOT).as_posix() for path in RIVALS if path.is_dir()]
    model = MODEL.relative_to(ROOT).as_posix() if MODEL.is_dir() else ""
    values = {"05_evaluate": {"model": model, "others": there}}
    names, params = sys.argv[1:] or ORDER, [ROOT / "notebooks/params/gallery.yaml"]
    run = run_notebooks(names, "for_gallery", params=params, values=values)
    new = run / "gallery"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    text = ["# Gallery\n\nMade by `make gallery` from the package's models: pictures,"]
    text.append("executed notebooks, and scenes that turn in a browser")
    text.append("(download the folder, open them from there; k3d.js is K3D-jupyter's,")
    text.append("MIT licence).\n")
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for entry in record["notebooks"]:
        name, outputs = entry["notebook"], entry["outputs"]
        title, note = escape(entry["title"]), escape(outputs["note"])
        copy = fitting(".ipynb", partial(executed, run / f"{name}.ipynb"))
        (new / f"{name}.ipynb").write_bytes(copy)
        text.append(f"## [{title}]({name}.ipynb)\n\n{note}\n")
        for figure in outputs["figures"]:
            source, caption = run / name / figure["file"], escape(figure["caption"])
            target = new / f"{name[:2]}_{source.name}"
            if source.suffix == ".html":
                page, script = shared(source.read_text(encoding="utf-8"))
                write_text(target, page)
                write_text(new / SCRIPT, script)
                text.append(f"[{caption}, in a browser]({target.name})\n")
            else:
                png = fitting(".png", partial(small, source.read_bytes()))
                target.write_bytes(png)
                text.append(f"![{caption}]({target.name})\n\n*{caption}*\n")
    text.append(training_curves(new / "training.png"))
    runpy.run_path(ROOT / "notebooks/idea.py")["draw_idea"](new / "idea.webp")
    kinds = "results.md", "maps*.png", "*.webp"  # of a campaign and benchmarks' scripts
    for path in (path for kind in kinds for path in GALLERY.glob(kind)):
        if not (new / path.name).exists():
            shutil.copy(path, new)
    if (new / "results.md").is_file():
        text.append("[How good the models are](results.md)\n")
    if (new / "refined.webp").is_file():
        text.append("[Twenty bodies with the relief of pictures](refined.webp)\n")
    write_text(new / "README.md", "\n".join(text))
    copies = ({p.name for p in at.glob("*.ipynb")} for at in (GALLERY, new))
    if lost := set.difference(*copies):  # 07 alone, where no run of all is at hand
        raise ValueError(f"would lose {', '.join(sorted(lost))}: run `make gallery`")
    for path in new.iterdir():
        size, limit = path.stat().st_size, LIMITS.get(path.suffix, 1_500_000)
        if size > limit:
            raise ValueError(f"{path} has {size:,} of {limit:,} bytes")
    shutil.rmtree(GALLERY, ignore_errors=True)
    shutil.move(new, GALLERY)
    print(f"{GALLERY.relative_to(ROOT)}: {len(list(GALLERY.iterdir()))} files")


if __name__ == "__main__":
    main()
