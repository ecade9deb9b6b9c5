"""The written pages name what is there; the reference shows all of it, laid out."""

import inspect
import pkgutil
import re
import runpy
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import d2im
from d2im import camera, fields, losses

ROOT = Path(__file__).parents[1]
DEVIATIONS = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (?!choice)(.*) \|$", DEVIATIONS, flags=re.M)
PLACES = [p for row in ROWS for p in re.findall(r"`([\w.]+)`", row.split(" | ")[-1])]


def test_each_deviation_names_its_choice_reason_and_place():
    assert len(ROWS) == 27
    assert [row for row in ROWS if len(row.split(" | ")) != 4] == []


@pytest.mark.parametrize("place", PLACES)
def test_a_deviations_place_is_there(place):
    module, _, name = place.rpartition(".")
    assert hasattr(import_module(f"d2im.{module}"), name)


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
def test_a_page_links_what_is_there(page):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


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
