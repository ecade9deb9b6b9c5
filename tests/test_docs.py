"""The written pages name what is there; the reference shows all of it, laid out."""

import inspect
import os
import pkgutil
import re
import runpy
import shutil
import tomllib
from importlib import import_module
from pathlib import Path

import nbformat
import pytest
import yaml

import d2im
from d2im import camera, fields, losses

ROOT = Path(__file__).parents[1]
DEVIATIONS = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?!choice)(.*) \|$", DEVIATIONS, flags=re.M)
PLACES = [p for row in ROWS for p in re.findall(r"`([\w.]+)`", row.split(" | ")[-1])]


def test_each_deviation_names_its_choice_reason_and_place():
    assert len(ROWS) == 29
    assert [row for row in ROWS if len(row.split(" | ")) != 4] == []


@pytest.mark.parametrize("place", PLACES)
def test_a_deviations_place_is_there(place):
    module, _, name = place.rpartition(".")
    assert hasattr(import_module(f"d2im.{module}"), name)


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
def test_a_page_links_what_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")])
def test_a_page_names_models_that_come_along(page):
    named = re.findall(r"data/models/([a-z][\w-]*)", page.read_text(encoding="utf-8"))
    there = {path.name for path in ROOT.glob("d2im/models/*")}
    assert [name for name in named if name not in there] == []


README = (ROOT / "README.md").read_text(encoding="utf-8")


def shown(page):
    """The words that a reader of a Markdown page sees."""
    page = re.sub(r"<!--.*?-->|!\[[^]]*\]\([^)]*\)", "", page, flags=re.S)
    page = re.sub(r"\]\([^)]*\)|[#*`|\[]|^[-| ]+$", " ", page, flags=re.M)
    return [word for word in page.split() if re.search(r"\w", word)]


def test_markup_pictures_and_addresses_are_no_words():
    page = (
        "# One [two](a b.md) **three**\n\n![no no](b.png)\n|---|\n<!-- no -->\n| four |"
    )
    assert shown(page) == "One two three four".split()


def test_the_readme_has_at_most_900_words():
    assert 300 < len(shown(README)) <= 900


def test_the_readme_leads_to_every_page_of_the_docs():
    pages = {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")}
    assert pages - {*re.findall(r"\]\(([^)#]+)", README)} == set()


def test_the_readmes_commands_are_there():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^ {4}make ([\w-]+)|`make ([\w-]+)`", README, flags=re.M)
    assert {"demo", "test", "lab"} <= (names := {a or b for a, b in commands})
    assert [name for name in names if f"\n{name}:" not in makefile] == []


def test_the_readmes_results_are_those_of_the_results_page():
    (table,) = re.findall(r"<!-- results.*?<!-- /results -->", README, flags=re.S)
    page = (ROOT / "reports/gallery/results.md").read_text(encoding="utf-8")
    numbers = re.findall(r"\b0\.\d+", table)
    assert len(numbers) > 15
    assert [x for x in numbers if not re.search(rf"\b{re.escape(x)}\b", page)] == []


def test_a_heading_that_is_linked_is_there():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        text = page.read_text(encoding="utf-8")
        for link, name in re.findall(r"\]\(([^)#:]*\.md)?#([\w-]+)\)", text):
            other = (page.parent / link if link else page).read_text(encoding="utf-8")
            heads = re.findall(r"^#+ (.*)$", other, flags=re.M)
            heads = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads]
            assert name in heads, f"{page.name}: #{name}"


def test_binder_gets_an_environment_and_a_step_that_repo2docker_takes():
    made = yaml.safe_load((ROOT / ".binder/environment.yml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    (python,) = [x for x in made["dependencies"] if x.startswith("python=")]
    low, high = (int(x) for x in re.findall(r"3\.(\d+)", project["requires-python"]))
    assert low <= int(python.removeprefix("python=3.")) < high
    step = ROOT / ".binder/postBuild"
    text = step.read_text(encoding="utf-8")
    assert text.startswith("#!") and (os.name == "nt" or os.access(step, os.X_OK))
    (extra,) = re.findall(r'-e "\.\[(\w+)\]"', text)
    assert extra in project["optional-dependencies"]


@pytest.fixture(scope="module")
def publish():
    return runpy.run_path(ROOT / "docs" / "publish.py")


@pytest.fixture
def published(publish, tmp_path):
    """A copy of what an address is written into, with that address."""
    (tmp_path / "notebooks").mkdir()
    for name in ("README.md", "pyproject.toml", "notebooks/00_quickstart.ipynb"):
        shutil.copy(ROOT / name, tmp_path / name)
    address = "https://github.com/someone/d2im"
    publish["publish"]("https://example.org/a/b", tmp_path)  # then another one
    assert not (tmp_path / "colab").exists()  # Colab reads GitHub's alone
    publish["publish"](address, tmp_path)
    return tmp_path, address


def test_the_badges_and_copies_are_those_of_the_projects_address(publish):
    address = publish["repository"]()
    (shown,) = publish["BADGES"].findall(README)
    assert shown == publish["badges"](address)
    assert (ROOT / "colab").is_dir() == bool(publish["in_colab"](address, ""))
    for path in ROOT.glob("colab/*.ipynb"):
        fresh = publish["colab"](address, ROOT / "notebooks" / path.name)
        assert path.read_text(encoding="utf-8") == fresh, "run `make publish`"


def test_an_address_is_written_once_and_badges_lead_to_notebooks(publish, published):
    folder, address = published
    assert publish["repository"](folder) == address
    readme = (folder / "README.md").read_text(encoding="utf-8")
    badges = re.findall(r"\]\((https://(?:mybinder|colab)[^)]*)\)", readme)
    places = [link for link in badges if link.endswith(".ipynb")]
    assert [link.split("/")[2] for link in places] == [
        "mybinder.org",
        "colab.research.google.com",
    ]
    assert "/gh/someone/d2im/" in places[0]
    for link in places:
        assert (
            folder / re.search(r"(?:notebooks|colab)/\w+\.ipynb$", link)[0]
        ).is_file()
    assert "example.org" not in readme + (folder / "pyproject.toml").read_text("utf-8")


def test_colabs_copy_installs_the_package_first_and_links_the_repository(published):
    folder, address = published
    notebook = nbformat.read(folder / "colab/00_quickstart.ipynb", as_version=4)
    nbformat.validate(notebook)
    first = notebook.cells[0].source
    assert f'%pip install -q "d2im[notebooks] @ git+{address}"' in first
    own = nbformat.read(ROOT / "notebooks/00_quickstart.ipynb", as_version=4)
    assert len(notebook.cells) == len(own.cells) + 1
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert links and all(link.startswith(("https:", "#")) for link in links)
    for path in re.findall(rf"{address}/blob/HEAD/([^)#\s]+)", text):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "address", ["", "github.com/a/b", "https://github.com/a/b.git"]
)
def test_what_is_no_address_is_refused_and_nothing_written(publish, tmp_path, address):
    with pytest.raises(ValueError, match="an address is https://HOST/OWNER/NAME, not"):
        publish["publish"](address, tmp_path)


def test_the_workflow_tries_each_python_and_extra_that_the_package_has():
    text = (ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    matrix = yaml.safe_load(text)["jobs"]["unit"]["strategy"]["matrix"]
    low, high = re.findall(r"3\.(\d+)", project["requires-python"])
    assert matrix["python"] == [f"3.{k}" for k in range(int(low), int(high))]
    (extras,) = re.findall(r'-e "\.\[([\w,]+)\]"', text)
    assert {*extras.split(",")} <= {*project["optional-dependencies"]}


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == d2im.__version__
    assert citation["preferred-citation"]["start"] == 10246


@pytest.fixture(scope="module")
def reference():
    return runpy.run_path(ROOT / "docs" / "reference.py")


def test_the_reference_opens_with_the_method_and_then_the_wings(reference):
    first = reference["pages"]()["d2im"]
    wings = {r.name for r in pkgutil.iter_modules(d2im.__path__) if r.ispkg}
    assert first[:6] == "networks fields laplacian losses sampling camera".split()
    assert {*first[6:]} == wings - {"notebooks"}


def test_the_reference_leads_to_every_module(reference):
    found = {
        f"{p}.{name}" for p, names in reference["pages"]().items() for name in names
    }
    walked = {m.name for m in pkgutil.walk_packages(d2im.__path__, "d2im.")}
    assert found == walked - {"d2im.__main__", "d2im.notebooks"}


def test_sections_of_one_line_get_a_line_an_item(reference):
    text = inspect.getdoc(fields.front_mask)
    assert "Returns: (P,) bool. Raises: ValueError: an unknown way." in text
    assert reference["spread"](text).endswith(
        "\n\nReturns:\n    (P,) bool.\n\nRaises:\n    ValueError: an unknown way.\n"
    )


def test_an_item_keeps_the_lines_that_belong_to_it(reference):
    text = "About.\n\nArgs:\n    a: (B, P),\n        world: yes. b, c: two.\n\nMore."
    spread = "About.\n\nArgs:\n    a: (B, P), world: yes.\n    b, c: two.\n\n\nMore."
    assert reference["spread"](text) == spread


def test_a_text_without_sections_stays_as_it_is(reference):
    text = inspect.getdoc(losses.base_loss)
    assert reference["spread"](text) == text


def test_pdoc_sees_each_argument_of_a_docstring(reference):
    google = pytest.importorskip("pdoc").docstrings.google
    shown = google(reference["spread"](inspect.getdoc(camera.Camera)))
    for name in ("azimuth", "elevation", "ratio", "size", "ValueError"):
        assert f" - **{name}:**" in shown
