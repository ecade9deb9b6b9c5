"""The gallery: what its maker does to pictures, notebooks, scenes; what is in it."""

import base64
import importlib.util
import io
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import trimesh
from PIL import Image

from d2im import widgets
from d2im.camera import Camera

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
FOLDER = ROOT / "reports/gallery"


@pytest.fixture(scope="module")
def gallery():
    spec = importlib.util.spec_from_file_location(
        "gallery", ROOT / "notebooks/gallery.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def png():
    figure, ax = plt.subplots(figsize=(4, 3))
    ax.imshow(np.add.outer(np.arange(30.0), np.arange(40.0)), cmap="coolwarm")
    page = io.BytesIO()
    figure.savefig(page)
    plt.close(figure)
    return page.getvalue()


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(float)


def test_a_small_picture_keeps_its_colours_and_is_smaller(gallery, png):
    small = gallery.small(png)
    assert len(small) < 0.8 * len(png)
    assert np.abs(pixels(small) - pixels(png)).max() <= 2.5  # of 255
    white = pixels(png).min(-1) == 255
    assert white.any() and (pixels(small)[white] == 255).all()


def test_a_scale_has_no_bands(gallery):
    ramp = plt.get_cmap("coolwarm_r")(np.linspace(0, 1, 1000), bytes=True)[:, :3]
    page = io.BytesIO()
    Image.fromarray(np.tile(ramp, (20, 1, 1))).save(page, "PNG")
    row = pixels(gallery.small(page.getvalue()))[0]
    assert np.abs(np.diff(row, axis=0)).max() <= 9  # two levels
    assert len(np.unique(row, axis=0)) > 128


def test_what_is_too_large_is_scaled_until_it_fits(gallery, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (100, 100, 3), dtype=np.uint8)
    page = io.BytesIO()
    Image.fromarray(noise).save(page, "PNG")
    whole = gallery.small(page.getvalue())
    monkeypatch.setitem(gallery.LIMITS, ".png", len(whole) // 2)
    fitted = gallery.fitting(".png", lambda s: gallery.small(page.getvalue(), s))
    assert len(fitted) <= len(whole) // 2 and len(pixels(fitted)) in (60, 70)


def test_02_is_first_and_03_last_of_all_notebooks(gallery):
    assert sorted(gallery.ORDER) == [path.stem[:2] for path in NOTEBOOKS]
    assert (gallery.ORDER[0], gallery.ORDER[-1]) == ("02", "03")


def test_an_executed_copy_keeps_text_and_pictures_alone(gallery, png, tmp_path):
    output, cell = nbformat.v4.new_output, nbformat.v4.new_code_cell("1")
    picture = {"image/png": base64.b64encode(png).decode(), "text/html": "<b>"}
    picture |= {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "x"}
    about = {"image/png": {"alt": "A ramp", "width": 9}, "text/html": {"a": 1}}
    cell.outputs = [output("display_data", picture, metadata=about)]
    cell.outputs.append(output("stream", text="said"))
    cell.outputs.append(output("stream", name="stderr", text="/home/me: a warning"))
    cell.metadata = {"papermill": {"duration": 1}, "tags": ["parameters"]}
    text = nbformat.v4.new_markdown_cell("[a](../../d2im/a.py), [02](02_a.ipynb)")
    notebook = nbformat.v4.new_notebook(cells=[text, cell])
    nbformat.write(notebook, tmp_path / "a.ipynb")
    made = nbformat.reads(gallery.executed(tmp_path / "a.ipynb").decode(), 4)
    assert made.cells[0].source == "[a](../../d2im/a.py), [02](02_a.ipynb)"
    assert made.cells[1].metadata == {"tags": ["parameters"]}
    shown, said = made.cells[1].outputs
    assert set(shown.data) == {"image/png", "text/plain"} and said.text == "said"
    assert shown.metadata == {"image/png": {"alt": "A ramp"}}
    assert shown.data["text/plain"] == "A ramp"


def test_a_scene_reads_k3d_from_the_file_beside_it(gallery, tmp_path):
    scene = widgets.mesh_scene(trimesh.creation.box(), Camera(30, 20, 1.0, 32))
    widgets.snapshot(scene, tmp_path / "a.html")
    whole = (tmp_path / "a.html").read_text()
    page, script = gallery.shared(whole)
    tag = f'<script src="{gallery.SCRIPT}"></script>\n    <script>'
    assert page.replace(tag, f"<script>\n        {script}") == whole
    assert len(page) < 200_000 and script.startswith("window.k3dCompressed")


needs_gallery = pytest.mark.skipif(
    not (FOLDER / "README.md").is_file(), reason="the gallery is not made yet"
)


@needs_gallery
def test_the_gallery_is_small(gallery):
    for path in FOLDER.iterdir():
        assert path.stat().st_size <= gallery.LIMITS.get(path.suffix, 1_500_000), path


@needs_gallery
def test_the_picture_of_the_idea_moves_and_is_small():
    path = FOLDER / "idea.webp"
    picture = Image.open(path, formats=["WEBP"])
    assert picture.n_frames >= 12 and path.stat().st_size < 1_500_000
    first = np.asarray(picture.convert("RGB")).astype(float)
    picture.seek(picture.n_frames // 4)
    moved = np.abs(np.asarray(picture.convert("RGB")) - first).max(-1) > 24
    parts = [part.mean() for part in np.array_split(moved, 4, axis=1)]
    assert min(parts[1], parts[3]) > 0.02 > 0.002 > max(parts[0], parts[2])


@needs_gallery
@pytest.mark.parametrize("page", [FOLDER / "README.md", ROOT / "README.md"])
def test_pages_link_what_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text())
    assert links and [x for x in links if not (page.parent / x).exists()] == []


@needs_gallery
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_notebook_links_its_executed_copy_of_text_and_pictures(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert f"(../reports/gallery/{path.name})" in first.source
    copy = nbformat.read(FOLDER / path.name, as_version=4)
    outputs = [o for cell in copy.cells for o in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error"]
    kinds = {kind for o in outputs for kind in o.get("data", {})}
    assert "image/png" in kinds <= {"image/png", "text/plain", "text/markdown"}
    drawn = [o.metadata for o in outputs if "image/png" in o.get("data", {})]
    assert [about for about in drawn if not about["image/png"].get("alt")] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_first_picture_comes_after_at_most_40_lines(notebook):
    count, copy = 0, nbformat.read(FOLDER / notebook.name, 4)
    for cell in copy.cells:
        given = "injected-parameters" in cell.metadata.get("tags", ())
        if cell.cell_type != "code" or given:  # papermill's own
            continue
        count += sum(bool(line.strip()) for line in cell.source.splitlines())
        if any("image/png" in output.get("data", {}) for output in cell.outputs):
            break
    else:
        pytest.fail("no cell draws")
    assert 0 < count <= 40
