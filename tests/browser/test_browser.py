"""Notebooks and scenes in a real, headless Chromium; run by its own command.

JupyterLab serves a copy of the project on loopback. No page may ask for anything
elsewhere: such a request is cut off, noted, and fails the test.
"""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
import trimesh
from PIL import Image

from d2im import plots, widgets
from d2im.camera import Camera
from d2im.data.dataset import safe_id
from d2im.fields import box

playwright = pytest.importorskip(
    "playwright.sync_api", reason="needs the browser extra"
)

ROOT = Path(__file__).parents[2]
SCENES = {  # with sliders, in each notebook
    "00_quickstart": 1,
    "01_decomposition": 1,
    "04_visualise_fields": 2,
    "06_edit": 1,
    "08_refine": 1,
}
# Those with figures alone.
STILL = sorted({p.stem for p in (ROOT / "notebooks").glob("*.ipynb")} - {*SCENES})
RUN_SECONDS = float(os.environ.get("BROWSER_RUN_SECONDS", 300))  # for one notebook
# WebGL without a GPU is SwiftShader's; --disable-gpu would leave it blank.
FLAGS = ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
FLAGS += ["--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
HERE = {"127.0.0.1", "localhost", None, ""}


def find_chromium():
    names = "chromium", "chromium-browser", "google-chrome"
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="session")
def browser():
    program = find_chromium()
    if program is None and shutil.which("apt-get") and os.geteuid() == 0:
        for step in (
            ["update"],
            ["install", "-y", "--no-install-recommends", "chromium"],
        ):
            subprocess.run(["apt-get", *step], check=True, stdout=subprocess.DEVNULL)
        program = find_chromium()
    if program is None:
        pytest.skip("no Chromium: install it, on Debian with apt-get install chromium")
    with playwright.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A page whose requests to other machines are cut off and fail the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    elsewhere = []

    def check(route):
        if urlparse(route.request.url).hostname in HERE:
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    def check_socket(socket):
        if urlparse(socket.url).hostname not in HERE:
            elsewhere.append(socket.url)

    context.route("**/*", check)
    page = context.new_page()
    page.on("websocket", check_socket)
    yield page
    context.close()
    assert elsewhere == []


@pytest.fixture(scope="session")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    for name in ("d2im", "notebooks", "data", "reports/gallery"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


@pytest.fixture(scope="session")
def lab(project, tmp_path_factory):
    """The address of a JupyterLab on loopback over a copy of the project."""
    settings = tmp_path_factory.mktemp("settings")
    for name, text in {
        "notebook-extension/tracker": '{"windowingMode": "none"}',  # all cells stand
        "apputils-extension/notification": '{"fetchNews": "false"}',
    }.items():
        path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1"]
    command += [f"--port={port}", "--IdentityProvider.token=", "--ServerApp.password="]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    command += [f"--LabApp.user_settings_dir={settings}", "--allow-root"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    command += re.search(r"^lab: .*\n\t.* -m jupyterlab (.*)$", makefile, re.M)[
        1
    ].split()
    paths = {
        "PYTHONPATH": str(project),
        "JUPYTERLAB_WORKSPACES_DIR": str(settings / "w"),
    }
    log = open(settings / "lab.log", "w")
    server = subprocess.Popen(
        command, cwd=project, env=os.environ | paths, stdout=log, stderr=log
    )
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            assert server.poll() is None, (settings / "lab.log").read_text()
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5)
                break
            except OSError:
                time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def picture(page, canvas, before=None, change=0.0):
    """What a canvas shows, as an array, once two looks in a row agree: something, and
    where there is a picture of before, a share `change` of its pixels anew."""
    last = None
    for _ in range(60):
        page.wait_for_timeout(400)
        now = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"))
        still = last is not None and last.shape == now.shape
        if still and (last == now).mean() > 0.999 and now.std() > 5:
            if before is None or differ(before, now.astype(float)) > change:
                return now.astype(float)
        last = now
    raise AssertionError("the scene stayed blank or as before, or came not to rest")


def differ(one, other):
    """The share of pixels that changed visibly."""
    return float((np.abs(one - other).max(-1) > 24).mean())


def run_all(page, lab, name):
    page.goto(f"{lab}/lab/tree/notebooks/{name}.ipynb?reset")
    idle = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
    page.wait_for_selector(idle, state="attached", timeout=120_000)
    ready = '.jp-StatusBar-TextItem:has-text("| Idle")'  # idle and connected
    page.wait_for_selector(ready, timeout=120_000)
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    page.wait_for_timeout(1000)
    if (choice := page.locator(".jp-Dialog .jp-mod-accept")).count():
        choice.click()  # "Select Kernel": the notebook's own stands there
        page.click('.lm-MenuBar-itemLabel:text-is("Run")')
        page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    prompts = "Array.from(document.querySelectorAll('.jp-CodeCell .jp-InputPrompt'))"
    done = f"{prompts}.every(p => /\\d/.test(p.textContent))"
    output = ".jp-OutputArea-output"
    trace = "Traceback (most recent call last)"
    outputs = f"Array.from(document.querySelectorAll('{output}'))"
    failed = f"{outputs}.some(o => o.textContent.includes('{trace}'))"
    try:
        page.wait_for_function(f"{done} || {failed}", timeout=1000 * RUN_SECONDS)
    except playwright.TimeoutError as slow:
        last = page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        if keep := os.environ.get("BROWSER_SHOTS"):
            page.screenshot(path=Path(keep) / f"{name}_stuck.png")
        raise AssertionError(f"{name} did not end: its prompts are {last}") from slow
    page.wait_for_selector(idle, state="attached", timeout=60_000)
    errors = page.locator(f'{output}:has-text("{trace}")')
    assert errors.count() == 0, errors.first.inner_text()[-500:]


def test_lab_opens_the_notebooks_and_their_links_lead_out_of_that_folder(page, lab):
    page.goto(lab)
    page.wait_for_selector('.jp-DirListing-itemText:has-text("01_")', timeout=120_000)
    assert page.url.endswith("/lab/tree/notebooks")
    page.goto(f"{lab}/lab/tree/notebooks/01_decomposition.ipynb?reset")
    links = page.locator(".jp-MarkdownOutput a")
    copy = links.and_(page.locator('[href*="reports/gallery"]')).first
    copy.wait_for(timeout=120_000)
    if (choice := page.locator(".jp-Dialog .jp-mod-accept")).count():
        choice.click()
    assert links.and_(page.locator('[href*="/files/d2im/"]')).count() > 0
    copy.click()
    page.wait_for_url("**/lab/tree/reports/gallery/01_decomposition.ipynb")


@pytest.mark.parametrize("name", STILL)
def test_a_notebook_without_scenes_runs(page, lab, name):
    run_all(page, lab, name)
    assert page.locator(".jp-OutputArea-output img").count() > 0


@pytest.mark.parametrize(("name", "count"), SCENES.items())
def test_a_notebook_runs_and_a_slider_moved_by_keyboard_changes_its_scene(
    page, lab, name, count, tmp_path
):
    run_all(page, lab, name)
    scenes = page.locator(".jp-OutputArea-output:has(canvas):has(.noUi-handle)")
    # The kernel is idle before the browser has drawn what came from it.
    playwright.expect(scenes).to_have_count(count, timeout=60_000)
    for k in range(count):
        scene = scenes.nth(k)
        canvas, handle = scene.locator("canvas").first, scene.locator(".noUi-handle")
        canvas.scroll_into_view_if_needed()
        before = picture(page, canvas)
        handle.last.focus()  # iso level, or row: both show with any model
        for _ in range(8):
            page.keyboard.press("ArrowRight")
        picture(page, canvas, before, 0.002)  # a ray is a thin line
        keep = Path(os.environ.get("BROWSER_SHOTS", tmp_path))
        scene.screenshot(path=keep / f"{name}_{k}.png")


def test_a_click_on_06s_picture_moves_a_corner_and_the_button_says_what_it_did(
    page, lab, tmp_path
):
    run_all(page, lab, "06_edit")
    panel = page.locator(".jp-OutputArea-output:has(svg.corner-picker)")
    target = panel.locator("svg.corner-picker").nth(1)
    target.wait_for(timeout=60_000)
    target.scroll_into_view_if_needed()
    size = float(target.get_attribute("viewBox").split()[2])

    def corners():
        points = target.locator("polygon").get_attribute("points")
        return np.reshape([float(v) for v in points.replace(",", " ").split()], (4, 2))

    def place(x, y):
        at = target.bounding_box()
        return at["x"] + x * at["width"], at["y"] + y * at["height"]

    before, pasted = corners(), panel.locator("svg.corner-picker image").nth(2)
    picture = pasted.get_attribute("href")
    page.mouse.click(*place(0.2, 0.2))  # nearest to the first corner, top left
    playwright.expect(pasted).not_to_have_attribute("href", picture, timeout=30_000)
    assert np.allclose(corners()[0], 0.2 * size, atol=1.5)
    assert np.array_equal(corners()[1:], before[1:])
    said = panel.locator(".widget-html").first
    playwright.expect(said).to_have_text("ready to reconstruct")
    target.locator("circle").first.focus()
    page.keyboard.press("ArrowRight")
    assert corners()[0, 0] == np.round(0.2 * size) + 1
    page.mouse.move(*place(*corners()[0] / size))
    page.mouse.down()
    page.mouse.move(*place(0.9, 0.9), steps=5)  # beyond the others: no quadrilateral
    playwright.expect(said).to_contain_text("not possible", timeout=30_000)
    page.mouse.move(*place(0.3, 0.3), steps=5)
    page.mouse.up()
    playwright.expect(said).to_have_text("ready to reconstruct", timeout=30_000)
    button = panel.locator("button.jupyter-button")
    button.click()
    playwright.expect(said).to_contain_text("reconstructed:", timeout=120_000)
    row, words = button.bounding_box(), said.bounding_box()
    assert row["x"] < words["x"] < row["x"] + row["width"] + 20  # beside the button
    assert abs(row["y"] - words["y"]) < row["height"]
    keep = Path(os.environ.get("BROWSER_SHOTS", tmp_path))
    panel.screenshot(path=keep / "06_corners.png")


def turns(page, canvas, name, tmp_path):
    """Turn a scene by the mouse; both pictures show something, not the same."""
    canvas.wait_for(timeout=60_000)
    canvas.scroll_into_view_if_needed()
    before = picture(page, canvas)
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 150, y + 40, steps=8)
    page.mouse.up()
    after = picture(page, canvas, before, 0.005)  # a shape is small on a wide page
    keep = Path(os.environ.get("BROWSER_SHOTS", tmp_path))
    Image.fromarray(after.astype(np.uint8)).save(keep / f"{name}.png")


MAKE_REPORT = """
from pathlib import Path
from d2im import Camera, make_shape, plots, run, widgets
from d2im.show.pages import write_page
from d2im.sampling import signed_distance
shape, eye = make_shape("cabinet", 5), Camera(30, 20, 1.0, 300)
F, B = (plots.grid_values(lambda p, m=m: signed_distance(m, p)[0], 32)
        for m in (shape.detailed, shape.coarse))
out = Path("01_scenes")
out.mkdir()
widgets.snapshot(widgets.field_explorer(F, B, eye).plot, out / "fields.html")
widgets.snapshot(widgets.mesh_scene(shape.detailed, eye), out / "mesh.html")
names = {"fields.html": "slices", "mesh.html": "a mesh"}
figures = [{"file": f, "caption": c} for f, c in names.items()]
entry = dict(notebook=out.name, title="Scenes", seconds=1.0, error="", status="ok")
entry |= dict(parameters={"out": ""}, defaults={"out": ""})
entry |= dict(outputs=dict(summary={}, figures=figures, note=""))
write_page(Path.cwd(), notebooks=[entry], **run._settings())
"""


def test_scenes_of_a_report_render_and_turn_without_a_kernel(page, project, tmp_path):
    code = [sys.executable, "-c", MAKE_REPORT]
    paths = os.environ | {"PYTHONPATH": str(project)}
    subprocess.run(code, check=True, env=paths, cwd=tmp_path)
    page.goto((tmp_path / "index.html").as_uri())
    assert page.locator("iframe").count() == 2
    for k in range(2):
        page.locator("iframe").nth(k).scroll_into_view_if_needed()  # it loads lazily
        canvas = page.frame_locator("iframe").nth(k).locator("canvas").first
        turns(page, canvas, f"report_{k}", tmp_path)


def test_a_map_stands_upright_with_the_chosen_pixel_on_it(page, tmp_path):
    camera = Camera(0, 10, 0.9, 112)
    volume = plots.grid_values(box((0.3, 0.2, 0.1)), 32)
    maps = np.zeros((2, 112, 112))
    maps[:, 10:40, 10:40] = -0.02  # red, at the top left of the picture
    explorer = widgets.displacement_explorer(volume, volume, maps, camera)
    explorer.controls["column"].value = explorer.controls["row"].value = 25
    explorer.plot.camera = [*camera.position, 0, 0, 0, *-camera.rotation[1]]
    widgets.snapshot(explorer.plot, tmp_path / "map.html")
    page.goto((tmp_path / "map.html").as_uri())
    canvas = page.locator("canvas").first
    canvas.wait_for(timeout=60_000)
    red, green, blue = np.moveaxis(picture(page, canvas), -1, 0)
    seen = (red > 130) & (green < 60) & (blue < 80)
    dot = (red > 120) & (green > 90) & (blue < 40)
    places = [np.median(np.argwhere(mask), axis=0) for mask in (seen, dot)]
    assert (places[0] < np.array(red.shape) / 2).all()
    assert np.abs(places[0] - places[1]).max() < 20  # of hundreds


def test_a_scene_without_webgl_is_its_still_on_a_phone_too(page, tmp_path):
    eye = Camera(30, 20, 1.0, 224)
    body = trimesh.creation.box((0.5, 0.5, 0.5))
    scene = widgets.mesh_scene(body, eye)
    still = plots.image_grid([[plots.shade(body, eye)]])
    widgets.snapshot(scene, tmp_path / "a.html", "A box", still=still)
    page.add_init_script("HTMLCanvasElement.prototype.getContext = () => null")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 844})
        page.goto((tmp_path / "a.html").as_uri())
        page.wait_for_timeout(500)
        seen = np.asarray(Image.open(io.BytesIO(page.locator("main").screenshot())))
        assert seen.std() > 5 and page.locator("p").bounding_box()["x"] == 0
        assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(
    ("corners", "ring"),
    [
        ([], ""),
        ([[1, 2]], "1,2"),
        ([[1, 2], [5, 6]], "1,2 5,2 5,6 1,6"),
        ([[1, 2], [5, 6], [3, 4]], "1,2 5,6 3,4"),
    ],
)
def test_a_picker_draws_any_number_of_corners(page, corners, ring):
    draw = """async ([code, corners]) => {
        const script = "data:text/javascript," + encodeURIComponent(code);
        const about = { size: 8, picture: "data:,", corners };
        const model = { get: (name) => about[name], on: () => {} };
        (await import(script)).default.render({ model, el: document.body });
        const place = (dot) => ["cx", "cy"].map((name) => +dot.getAttribute(name));
        const dots = [...document.querySelectorAll("circle")].map(place);
        const line = document.querySelector("polygon").getAttribute("points");
        return [line, dots];
    }"""
    found, dots = page.evaluate(draw, [widgets.PICKER, corners])
    assert dots == corners
    assert found.replace(",", " ") == ring.replace(",", " ")


def test_a_scenes_page_is_dark_where_the_reader_asks_for_it(page, tmp_path):
    scene = widgets.mesh_scene(trimesh.creation.box((0.5,) * 3), Camera(30, 20, 1, 224))
    widgets.snapshot(scene, tmp_path / "a.html")
    for scheme, low, high in (("light", 240, 255), ("dark", 0, 60)):
        page.emulate_media(color_scheme=scheme)
        page.goto((tmp_path / "a.html").as_uri())
        page.locator("canvas").first.wait_for(timeout=60_000)
        picture(page, page.locator("canvas").first)  # once it has come to rest
        shot = Image.open(io.BytesIO(page.screenshot())).convert("L")
        around = np.asarray(shot)[[100, 200, -5], 5]  # of the scene
        assert (around >= low).all() and (around <= high).all(), scheme


GALLERY = sorted((ROOT / "reports/gallery").glob("*.html"))


@pytest.mark.parametrize("scene", GALLERY, ids=lambda path: path.stem)
def test_scenes_of_the_gallery_render_and_turn(page, scene, tmp_path):
    page.goto(scene.as_uri())
    turns(page, page.locator("canvas").first, scene.stem, tmp_path)


MARK = "document.documentElement.dataset.ran=1"  # what a script would leave behind
NAMES = (
    f"<img src=x onerror={MARK}>chair",
    f"[x](javascript:{MARK})",
    f"\"'><svg onload={MARK}>",
    f"![y](JaVaScRiPt&#58;{MARK}) <javascript:{MARK}> $\\frac$ `a` |b| *c*",
    "[r]: data:text,x <https:&#47;&#47;example.com>",
)
STRANGE = """Array.from(document.querySelectorAll("*")).flatMap(element =>
    Array.from(element.attributes).filter(a => /^on/.test(a.name) ||
        /^(href|src|action)$/.test(a.name) && !/^(data:image|https?:)/.test(a.value) &&
        !/^(file|https?):$/.test(new URL(a.value, document.baseURI).protocol))
    .map(a => a.name + "=" + a.value)).concat(
    "ran" in document.documentElement.dataset ? "a script ran" : [],
    Array.from(document.scripts).map(script => script.src || script.text))"""


@pytest.fixture(scope="module")
def hostile(project):
    """A sweep of 02 and 05 over meshes and methods of hostile names, one row failed."""
    for name in ("meshes", "broken", NAMES[0]):
        (project / "data" / name).mkdir(parents=True)
    for name in NAMES:
        (project / "data/broken" / f"{name}.off").write_text(f"OFF {name}")
    shutil.copy(project / "data/broken" / f"{NAMES[0]}.off", project / "data/meshes")
    for name in NAMES[1:]:
        body = trimesh.creation.box((1, 0.5, 0.5))
        body.export(project / "data/meshes" / f"{name}.off")
        body.export(project / "data" / NAMES[0] / f"{name}.off")
    given = {"02": {"meshes": "data/meshes", "count": 4000, "views": 1}}
    given["05"] = {"others": [f"data/{NAMES[0]}"], "shapes": 1, "protocol": "bspnet"}
    given["02"]["split"] = given["05"]["split"] = NAMES[2]
    text = json.dumps(given)  # YAML too
    (project / "javascript.fine-1.yaml").write_text(text)
    (project / "broken.yaml").write_text("meshes: data/broken\n")
    command = [sys.executable, "-m", "d2im.run", "02", "05", "--name", "hostile"]
    command += ["--sweep", "javascript.fine-1.yaml", "broken.yaml"]
    paths = os.environ | {"PYTHONPATH": str(project)}
    done = subprocess.run(command, cwd=project, env=paths, capture_output=True)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 1 and "1 of 2 failed: broken" in said, said
    return project / "reports/hostile"


def test_no_name_runs_a_script_or_sends_a_request(page, hostile):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("dialog", lambda dialog: asked.append(dialog.message))
    shown = sorted(hostile.rglob("*.html"))
    assert len(shown) == 6  # the sweep's, two runs', three notebooks'
    for file in shown:
        page.goto(file.as_uri())
        page.wait_for_timeout(300)  # for what would run later
        assert page.evaluate(STRANGE) == [], file
    pages = {file.as_uri() for file in shown}
    assert [x for x in asked if x not in pages and not x.startswith("data:image")] == []


CUT = """[...document.querySelectorAll("body *")].filter(e =>
    e.scrollWidth > e.clientWidth + 1 && e.clientWidth && getComputedStyle(e).display
    != "inline").map(e => e.tagName + "." + e.className)"""


def test_a_runs_page_fits_a_phone_and_enlarges_its_figures(page, hostile):
    page.goto((hostile / "javascript.fine-1/index.html").as_uri())
    page.set_viewport_size({"width": 390, "height": 844})
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert page.evaluate(CUT) == []
    assert page.locator("th").first.is_hidden()
    figure = page.locator(".zoom img").first
    small = figure.bounding_box()["width"]
    assert small <= 390
    figure.click()
    natural = figure.evaluate("image => image.naturalWidth")
    assert figure.bounding_box()["width"] == pytest.approx(natural, abs=1)
    assert natural > small and page.evaluate("document.body.scrollWidth") <= 390


def test_a_runs_page_is_dark_where_the_reader_asks_for_it(page, hostile):
    light = "c => getComputedStyle(document.body)[c].match(/\\d+/g).slice(0, 3)"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto((hostile / "javascript.fine-1/index.html").as_uri())
        back, text = (
            np.mean([int(x) for x in page.evaluate(light, name)])
            for name in ("backgroundColor", "color")
        )
        assert (
            (back < 60 < 200 < text) if scheme == "dark" else (text < 60 < 200 < back)
        )


def test_a_hostile_name_is_shown_as_it_is(page, hostile):
    page.goto((hostile / "javascript.fine-1/02_prepare_data.html").as_uri())
    cells = page.locator("table td").all_inner_texts()
    assert {" ".join(safe_id(name).split()) for name in NAMES} <= set(cells)
    page.goto((hostile / "javascript.fine-1/05_evaluate.html").as_uri())
    heads = page.locator("table th").all_inner_texts()
    assert NAMES[0] in heads
