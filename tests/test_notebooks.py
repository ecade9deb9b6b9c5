"""The rules that every notebook source keeps; each is tried on a notebook without it.

A rule takes a notebook's path and returns its complaints, none when it is kept.
"""

import ast
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from d2im import benchmark, metrics, run
from d2im.data.dataset import ShapeDataset, prepare, read_example, write_example

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PARAMS = sorted(FOLDER.glob("params/*.yaml"))


def cells(path, kind="code"):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def tree(path):
    """Return all code of a notebook as one syntax tree, magics turned into calls."""
    python = TransformerManager().transform_cell
    return ast.parse("\n".join(python(cell.source) for cell in cells(path)))


def opens_with_title_imports_parameters(path):
    notebook = nbformat.read(path, as_version=4)
    kinds = [cell.cell_type for cell in notebook.cells[:3]]
    if kinds != ["markdown", "code", "code"]:
        return [f"opens with {kinds}, not a title, imports and parameters"]
    title, imports, parameters = notebook.cells[:3]
    complaints = []
    if not title.source.startswith("# "):
        complaints.append("has no title")
    if "import " not in imports.source:
        complaints.append("imports nothing in its second cell")
    if "parameters" not in parameters.metadata.get("tags", []):
        complaints.append("has no parameters cell in the third place")
    return complaints


def is_stored_without_outputs(path):
    number = sum(bool(c.outputs) or c.execution_count is not None for c in cells(path))
    complaints = [f"{number} cells with outputs or a count"] if number else []
    if "widgets" in nbformat.read(path, as_version=4).metadata:
        complaints.append("widget state")
    return complaints


def has_one_cell_of_at_most_16_literal_parameters(path):
    try:
        declared = run.declared_parameters(path)
    except ValueError as error:
        return [str(error)]
    return [] if 0 < len(declared) <= 16 else [f"{len(declared)} parameters"]


def gives_each_parameter_its_unit_or_reason(path):
    complaints = []
    for cell in cells(path):
        if "parameters" in cell.metadata.get("tags", []):
            lines = [line for line in cell.source.splitlines() if line.strip()]
            complaints += [f"no comment: {line}" for line in lines if "#" not in line]
    return complaints


def is_short(path):
    lengths = [len(cell.source.splitlines()) for cell in cells(path)]
    complaints = [f"a cell of {n} lines" for n in lengths if n > 25]
    return complaints + ([f"{len(lengths)} code cells"] if len(lengths) > 30 else [])


def defines_no_class_and_no_function_for_the_library(path):
    nodes = list(ast.walk(tree(path)))
    complaints = [f"class {n.name}" for n in nodes if isinstance(n, ast.ClassDef)]
    called = [
        n.func.id for n in nodes if isinstance(n, ast.Call) and hasattr(n.func, "id")
    ]
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and called.count(node.name) > 1:
            complaints.append(f"{node.name} is called twice: it belongs in d2im")
    return complaints


def names_no_absolute_path(path):
    nodes = list(ast.walk(tree(path)))
    pieces = {id(v) for n in nodes if isinstance(n, ast.JoinedStr) for v in n.values}
    texts = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in pieces  # the rest of an f-string may well begin with "/"
    ]
    return [t for t in texts if re.match(r"/\w|~/|[A-Za-z]:[\\/]", t)]


def neither_installs_nor_silences(path):
    pattern = r"[!%]\s*(?:pip|conda|mamba)\b|filterwarnings|simplefilter|%%capture"
    return [m for cell in cells(path) for m in re.findall(pattern, cell.source)]


def asserts_at_least_three_times(path):
    number = sum(isinstance(node, ast.Assert) for node in ast.walk(tree(path)))
    return [f"{number} asserts"] if number < 3 else []


RULES = [
    opens_with_title_imports_parameters,
    is_stored_without_outputs,
    has_one_cell_of_at_most_16_literal_parameters,
    gives_each_parameter_its_unit_or_reason,
    is_short,
    defines_no_class_and_no_function_for_the_library,
    names_no_absolute_path,
    neither_installs_nor_silences,
    asserts_at_least_three_times,
]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_notebook(rule, path):
    assert rule(path) == []


@pytest.mark.parametrize("path", PARAMS, ids=lambda path: path.stem)
def test_parameter_files_set_only_what_notebooks_declare(path):
    declared = {p.stem: run.declared_parameters(p) for p in NOTEBOOKS}
    run.assign(declared, [run.read_params(path)])


GOOD = [
    ("markdown", "# A title\nand a question."),
    ("code", "import math"),
    ("parameters", 'out = ""  # folder of the results\nsteps = 20  # of training'),
    ("code", "assert steps\nassert math.pi > 3"),
    ("code", "def once(x):\n    return x\n\n\nassert once(1) == 1"),
    ("code", 'print(f"{steps}/{out}/x")\n%matplotlib inline'),
]


def write(folder, contents):
    notebook = nbformat.v4.new_notebook()
    for kind, source in contents:
        new = getattr(nbformat.v4, "new_markdown_cell", None)
        new = new if kind == "markdown" else nbformat.v4.new_code_cell
        notebook.cells.append(new(source))
        if kind == "parameters":
            notebook.cells[-1].metadata["tags"] = ["parameters"]
    path = folder / "a_notebook.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_notebook_that_keeps_the_rules_passes(rule, tmp_path):
    assert rule(write(tmp_path, GOOD)) == []


def changed(index, kind, source):
    return [*GOOD[:index], (kind, source), *GOOD[index + 1 :]]


BAD = [
    (opens_with_title_imports_parameters, changed(0, "markdown", "No title.")),
    (opens_with_title_imports_parameters, changed(1, "code", "x = 1")),
    (opens_with_title_imports_parameters, GOOD[1:]),
    (has_one_cell_of_at_most_16_literal_parameters, GOOD[:2] + GOOD[3:]),
    (has_one_cell_of_at_most_16_literal_parameters, [*GOOD, GOOD[2]]),
    (
        has_one_cell_of_at_most_16_literal_parameters,
        changed(2, "parameters", "steps = 2 * 10  # of training"),
    ),
    (
        has_one_cell_of_at_most_16_literal_parameters,
        changed(2, "parameters", "\n".join(f"p{i} = {i}  # m" for i in range(17))),
    ),
    (gives_each_parameter_its_unit_or_reason, changed(2, "parameters", "steps = 2")),
    (is_short, [*GOOD, ("code", "x = 1\n" * 26)]),
    (is_short, [*GOOD, *[("code", "x = 1")] * 30]),
    (
        defines_no_class_and_no_function_for_the_library,
        [*GOOD, ("code", "class Net:\n    pass")],
    ),
    (defines_no_class_and_no_function_for_the_library, [*GOOD, ("code", "once(2)")]),
    (names_no_absolute_path, [*GOOD, ("code", 'open("/home/me/chair.obj")')]),
    (names_no_absolute_path, [*GOOD, ("code", 'open("C:/me/chair.obj")')]),
    (neither_installs_nor_silences, [*GOOD, ("code", "!pip install d2im")]),
    (
        neither_installs_nor_silences,
        [*GOOD, ("code", 'import warnings\nwarnings.filterwarnings("ignore")')],
    ),
    (asserts_at_least_three_times, GOOD[:4]),
]


@pytest.mark.parametrize(("rule", "contents"), BAD)
def test_a_notebook_that_breaks_a_rule_is_found(rule, contents, tmp_path):
    assert rule(write(tmp_path, contents)) != []


def test_a_notebook_stored_with_outputs_is_found(tmp_path):
    path = write(tmp_path, GOOD)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", text="hello")]
    nbformat.write(notebook, path)
    assert is_stored_without_outputs(path) == ["1 cells with outputs or a count"]


def test_a_notebook_stored_with_widget_state_is_found(tmp_path):
    path = write(tmp_path, GOOD)
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["widgets"] = {}
    nbformat.write(notebook, path)
    assert is_stored_without_outputs(path) == ["widget state"]


def run_cells(name, stop, **parameters):
    """Run a notebook's cells up to one that holds a text; return its variables."""
    scope = {}
    for cell in cells(FOLDER / name):
        if stop in cell.source:
            return scope
        exec(cell.source, scope)
        if "parameters" in cell.metadata.get("tags", []):
            scope |= parameters
    raise ValueError(f"{name} has no {stop}")


def test_training_goes_on_where_a_shape_has_few_points_inside_and_names_it(
    tmp_path, capsys
):
    small = {"count": 600, "views": 1, "size": 112, "timeout": None, "progress": False}
    prepare([("stool", 0)], tmp_path / "data", **small)
    given = {"data": str(tmp_path / "data"), "out": str(tmp_path / "out")}
    made = run_cells("03_train.ipynb", "D2IMNet.preset(preset, maps", **given)
    assert (made["batch"]["sdf"] < 0).sum() != 1024
    assert "stool-000000: " in (told := capsys.readouterr().out)
    assert "points are inside, not half" in told


def test_05_takes_the_views_by_the_numbers_of_the_source(tmp_path, capsys):
    small = {"count": 600, "views": 2, "size": 32, "timeout": None, "progress": False}
    prepare([("stool", 0), ("stool", 1)], tmp_path, **small)
    path = tmp_path / "stool-000000.npz"  # as if its view 0 of three were left out
    write_example(path, {**read_example(path), "left_out": np.array([[0, 0.4, 0]])})
    (cell,) = [c for c in cells(FOLDER / "05_evaluate.ipynb") if "gone = " in c.source]
    known = {"benchmark": benchmark, "metrics": metrics, "protocol": "d2im"}
    known |= {"dataset": ShapeDataset(tmp_path, None), "others_frame": "world"}
    known |= {"split": "", "shapes": 0}
    for pictures, cases in {
        "0": [(1, 0)],
        "1": [(0, 0), (1, 1)],
        "2": [(0, 1)],
        "-1": [(0, 0), (0, 1), (1, 0), (1, 1)],
    }.items():
        exec(cell.source, scope := known | {"pictures": pictures})
        assert scope["cases"] == cases
        left_out = len(scope["gone"])
        assert (f"{left_out} shapes left out" in capsys.readouterr().out) == left_out
    with pytest.raises(ValueError, match=r"stool-000000 has no view 7 among \[1, 2\]"):
        exec(cell.source, known | {"pictures": "7"})
