"""Answers in several spellings, wrong ones, and no answer before a try."""

import ast
import math
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from d2im.show import exercises
from d2im.show.exercises import EXERCISES, check

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
KEY = (ROOT / "docs/teachers.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def no_misses(monkeypatch):
    monkeypatch.setattr(exercises, "_misses", exercises.Counter())


def code(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


def checks(source):
    """The names that a cell's calls of `check` have."""
    nodes = ast.walk(ast.parse(source))
    calls = [n for n in nodes if isinstance(n, ast.Call)]
    mine = [n for n in calls if getattr(n.func, "id", "") == "check"]
    return [n.args[0].value for n in mine]


CHECKING = [
    (path.stem, source) for path in NOTEBOOKS for source in code(path) if checks(source)
]


@pytest.mark.parametrize("name", EXERCISES)
def test_an_exercises_own_answer_is_right_in_any_case(name):
    truth = EXERCISES[name].truth
    for answer in (truth, str(truth), f" {truth}. ", f'"{truth}"'.upper()):
        assert check(name, answer).right is True


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        *[
            ("period", a)
            for a in ("4.", " 4. ", 4.1, "4", "4.0", "4,0", "×4", "4 times", "about 4")
        ],
        *[("period", a) for a in (np.float32(4), torch.tensor(4.0), np.array([4])[0])],
        *[("tilt", a) for a in ("1/4", "25 %", ".25", "A quarter", "0,25")],
        *[("half a wave", a) for a in ("26.6°", "27 degrees", 26, "26.57 deg")],
        *[("ridge", a) for a in ("Positive", " POSITIVE!", "+", "> 0")],
        *[("back map", a) for a in ("The last", "second", "LAST")],
        *[("wrong camera", a) for a in ("No", "no.", False)],
        *[("constant", a) for a in (0, "0.0", "-0", "Nothing")],
    ],
)
def test_a_right_answer_passes_in_its_spellings(name, answer):
    assert check(name, answer).right is True


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        *[("period", a) for a in (2, "5", "4 or 5", "four-ish", "1/0", math.nan, [4])],
        *[
            ("period", a)
            for a in (".4", ".4 times", True, "nan", -4, "-4", "4 %", {}, 4j, "inf")
        ],
        *[("bound", a) for a in (True, 1.1, "amplitudes")],
        *[("ridge", a) for a in ("negative", "positive or negative", 1, True)],
        *[("wrong camera", a) for a in ("yes", True, 0)],
        *[("half a wave", a) for a in (0.46, "63.4°")],
    ],
)
def test_a_wrong_answer_does_not(name, answer):
    assert check(name, answer).right is False


@pytest.mark.parametrize("name", EXERCISES)
def test_before_a_try_neither_hint_nor_answer_is_said(name):
    exercise = EXERCISES[name]
    for answer in (None, ""):
        verdict = check(name, answer, exercise.truth)
        shown = repr(verdict) + verdict._repr_html_()
        assert verdict.right is None and not verdict.solution
        assert exercise.hint not in shown and "<details" not in shown
        assert not re.search(r"\d", shown)


def test_the_hint_comes_at_the_first_miss_and_the_solution_is_folded():
    verdict, exercise = check("period", 2), EXERCISES["period"]
    assert repr(verdict) == f"Not yet. Hint: {exercise.hint}"
    page = verdict._repr_html_()
    assert "<details><summary>the solution</summary><p>Answer: 4." in page
    assert exercise.why in repr(check("period", 3))  # plain text, the second miss


def test_a_notebooks_own_value_is_told_after_a_try_and_must_agree():
    assert "Measured here: 3.97." in repr(check("period", 4, measured=3.97))
    with pytest.raises(
        ValueError, match="'period': measured here is 2.0, which its key"
    ):
        check("period", None, measured=2.0)
    assert check("bound", 1, measured=0.7).right  # a bound may be missed, one way
    with pytest.raises(ValueError, match="contradicts"):
        check("bound", 1, measured=1.3)


def test_an_unknown_exercise_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"no exercise is called 'perid': .* period,"):
        check("perid", 4)


def test_answers_cannot_act_in_a_page():
    assert "<b>" not in check("ridge", "<b>x</b>")._repr_html_()


def test_each_exercise_stands_once_in_a_notebook():
    names = [name for _, source in CHECKING for name in checks(source)]
    assert sorted(names) == sorted(EXERCISES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_something_to_predict_and_something_to_change(path):
    cells = nbformat.read(path, as_version=4).cells
    texts = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    assert "Predict, then run" in texts and "Change this" in texts
    sources = code(path)
    assert any(checks(source) for source in sources)
    assert any("# change this" in source for source in sources)


@pytest.mark.parametrize(("notebook", "source"), CHECKING)
def test_no_exercises_cell_shows_its_answer_or_hint(notebook, source):
    (name,) = checks(source)
    exercise = EXERCISES[name]
    assert source.startswith("answer = None  # ")
    assert exercise.hint not in source and exercise.why not in source
    first = source.splitlines()[0]
    if isinstance(exercise.truth, str):  # the comment may list what can be chosen
        assert f'answer = "{exercise.truth}"' not in source
    else:
        numbers = [float(n) for n in re.findall(r"\d+(?:\.\d+)?", first)]
        assert [n for n in numbers if check(name, n).right] == []
    assert "print(measured" not in source and "assert" not in source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_notebook_prints_a_hint_or_a_solution(path):
    cells = nbformat.read(path, as_version=4).cells
    text = "\n".join(cell.source for cell in cells)
    said = [part for e in EXERCISES.values() for part in (e.hint, e.why)]
    assert [part for part in said if part in text] == [] and "Hint:" not in text


@pytest.mark.parametrize("name", EXERCISES)
def test_the_teachers_key_has_answer_and_reason(name):
    exercise = EXERCISES[name]
    (row,) = [r for r in KEY.splitlines() if r.startswith(f"| {name} |")]
    assert f"| {exercises._shown(exercise.truth)} |" in row and exercise.why in row


def test_numbers_of_the_key_follow_from_what_they_are_about():
    a = 0.5  # the boxes' side in 05
    s = EXERCISES["half the union"].truth
    assert (a - s) / (a + s) == pytest.approx(0.5)
    assert math.cos(math.radians(60)) ** 2 == pytest.approx(EXERCISES["tilt"].truth)
    angle = math.degrees(math.atan(0.075 / 0.15))
    assert angle == pytest.approx(EXERCISES["half a wave"].truth, abs=0.01)
