"""`python -m d2im.run` on tiny notebooks: what it refuses, hands on, keeps, shows."""

import base64
import contextlib
import csv
import html
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from d2im import pages, run
from d2im.__main__ import main
from d2im.show import progress

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)
OUTPUTS = "from d2im.show.run import write_outputs\n"


def write(root, stem, parameters, *sources, title="# A title"):
    """Write a notebook into root/notebooks: a title, parameters, code cells."""
    cells = [nbformat.v4.new_markdown_cell(title)]
    tags = {"tags": ["parameters"]}
    cells.append(nbformat.v4.new_code_cell(parameters, metadata=tags))
    cells += [nbformat.v4.new_code_cell(source) for source in sources]
    path = root / "notebooks" / f"{stem}.ipynb"
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def shown(folder):
    """A run's page, without what its cells say of their columns."""
    page = (folder / "index.html").read_text(encoding="utf-8")
    return re.sub(r' data-label="[^"]*"', "", page)


def at(root, function, *args, **options):
    """Call a function of the runner as if root were the project's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "ROOT", root)
        return function(*args, **options)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of two notebooks, the second of which reads what the first made."""
    root = tmp_path_factory.mktemp("project")
    write(
        root,
        "02_make",
        'out = ""\ncount = 2\nseed = 7',
        "import pathlib\npathlib.Path('data/set').mkdir(parents=True)",
        "import ipywidgets\nipywidgets.IntSlider()",
        OUTPUTS + "write_outputs(out, data='data/set', summary={'made': count})",
        title="# Making <shapes>",
    )
    write(
        root,
        "03_use",
        'out = ""\ndata = ""\nrate = 0.1',
        "import base64, pathlib\npathlib.Path(out, 'dot.png').write_bytes("
        f"base64.b64decode('{base64.b64encode(PNG).decode()}'))\n"
        "from IPython.display import Image\nImage(pathlib.Path(out, 'dot.png'))",
        "pathlib.Path(out, 'metrics.csv').write_text('shape,iou\\nchair,0.123456789')",
        "pathlib.Path(out, 'turn.html').write_text('<p title=\"x\">a scene</p>')",
        "pathlib.Path(out, 'table.md').write_text("
        "'### all\\n\\n| <m> | iou |\\n|---|---|\\n| a | 0.5 |\\n\\n### chairs\\n')",
        OUTPUTS + "write_outputs(out, summary={'rate': rate, 'read': len(data)},"
        "\n    figures={'dot.png': 'A <dot>', 'turn.html': 'Turn it'},"
        "\n    note='All & well.')",
    )
    return root


@pytest.fixture(scope="module")
def done(project):
    """The folder of one run of both notebooks, and the lines it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        folder = at(
            *(project, run.run_notebooks, ["02", "03_use"]),
            **{"name": "first", "values": {"rate": "1e-3"}},
        )
    return folder, printed.getvalue().splitlines()


def record(folder):
    return json.loads((folder / "run.json").read_text())


def parameters(folder, stem):
    (entry,) = [e for e in record(folder)["notebooks"] if e["notebook"] == stem]
    return entry["parameters"]


def test_a_run_hands_its_own_data_to_the_next_notebook(done):
    folder, _ = done
    assert parameters(folder, "03_use")["data"] == "data/set"
    assert record(folder)["notebooks"][1]["outputs"]["summary"]["read"] == 8


def test_each_notebook_gets_its_own_folder_relative_to_the_project(done):
    folder, _ = done
    assert parameters(folder, "02_make")["out"] == "reports/first/02_make"
    assert (folder / "02_make" / "outputs.json").exists()


def test_a_value_from_the_command_line_takes_the_type_of_the_default(done):
    assert parameters(done[0], "03_use")["rate"] == 1e-3


def test_a_run_says_one_line_a_notebook_with_its_time(done):
    _, lines = done
    assert [line.split()[0] for line in lines] == ["02_make", "03_use"]
    assert all(re.search(r"\d+\.\d s$", line) for line in lines)


def test_the_record_holds_settings_seed_and_times(done):
    made = record(done[0])
    assert made["versions"]["torch"] != "absent"
    assert parameters(done[0], "02_make")["seed"] == 7
    assert made["python"] and made["device"] and made["date"]
    assert all(entry["seconds"] > 0 for entry in made["notebooks"])


def test_the_page_shows_pictures_numbers_times_and_settings(done):
    folder, _ = done
    page = shown(folder)
    assert base64.b64encode(PNG).decode() in page
    assert "0.1235" in page and "A &lt;dot&gt;" in page and "All &amp; well." in page
    assert re.search(r"<td>\d+\.\d s</td>", page) and "torch 2" in page


def test_the_page_shows_each_setting_with_another_default_and_links_the_copies(done):
    page = shown(done[0])
    rows = re.findall(r"<tr><td>(\w+)</td><td>([^<]*)</td><td>([^<]*)</td></tr>", page)
    assert rows[:2] == [("count", "2", "–"), ("seed", "7", "–")]
    assert rows[2:] == [("data", "data/set", "–"), ("rate", "0.001", "0.1")]
    for copy in ("02_make.html", "02_make.ipynb", "03_use.html", "03_use.ipynb"):
        assert f'href="{copy}"' in page


def test_a_copys_picture_has_its_caption_as_alt_text(done):
    copy = nbformat.read(done[0] / "03_use.ipynb", as_version=4)
    outputs = [output for cell in copy.cells for output in cell.get("outputs", [])]
    (picture,) = [o for o in outputs if "image/png" in o.get("data", {})]
    assert picture.metadata["image/png"]["alt"] == "A <dot>"
    assert 'alt="A &lt;dot&gt;"' in (done[0] / "03_use.html").read_text()


def test_the_page_escapes_what_notebooks_say(done):
    page = (done[0] / "index.html").read_text()
    assert "Making &lt;shapes&gt;" in page and "<shapes>" not in page


def test_the_page_holds_scenes_and_tables_in_itself(done):
    page = shown(done[0])
    frame = re.search(r'<iframe[^>]*title="Turn it"[^>]*srcdoc="([^"]*)"', page)
    assert html.unescape(frame[1]) == '<p title="x">a scene</p>'
    cells = re.findall(r"<t[hd]>([^<]*)</t[hd]>", re.sub(r"\s*\n\s*", "", page))
    assert "&lt;m&gt;" in cells and cells[cells.index("&lt;m&gt;") + 3] == "0.5"
    assert 'id="chairs"' in page[page.index("the same by group") :]


def test_widget_state_is_dropped_from_the_copies(done):
    folder, _ = done
    notebook = nbformat.read(folder / "02_make.ipynb", as_version=4)
    assert "widgets" not in notebook.metadata
    assert "widget-view" not in (folder / "02_make.ipynb").read_text()


def test_a_run_leaves_whole_files_only_and_names_no_machine_path(done, project):
    folder, _ = done
    names = {path.name for path in folder.iterdir()}
    assert names == {
        *("index.html", "run.json", "02_make", "03_use"),
        *("02_make.ipynb", "02_make.html", "03_use.ipynb", "03_use.html"),
    }
    for path in (folder / "run.json", folder / "03_use.ipynb", folder / "index.html"):
        assert str(project) not in path.read_text()


def test_a_notebook_run_again_in_the_same_run_gets_what_the_others_made(done, project):
    folder, _ = done
    at(project, run.run_notebooks, ["03"], name="first")
    assert [e["notebook"] for e in record(folder)["notebooks"]] == ["02_make", "03_use"]
    assert parameters(folder, "03_use") == {
        **{"out": "reports/first/03_use", "data": "data/set", "rate": 0.1}
    }


def test_the_kernel_is_this_python_whatever_kernels_are_registered(
    project, tmp_path, monkeypatch
):
    kernel = tmp_path / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["no-such-python"], "display_name": "old", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    check = f"import sys\nassert sys.executable == {sys.executable!r}"
    path = write(tmp_path, "01_python", "count = 1", check)
    at(project, run.run_notebooks, [path], name="python")


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A project of notebooks that fail, each in its own way."""
    root = tmp_path_factory.mktemp("broken")
    raises = "raise ValueError('points must be (B, P, 3),\\ngot <nothing>')"
    write(root, "01_raises", "count = 1", "print('before')", raises, "print('after')")
    write(root, "02_hangs", "count = 1", "import time\ntime.sleep(60)")
    write(root, "03_dies", "count = 1", "import os\nos._exit(1)")
    return root


def failure(root, number, **options):
    with pytest.raises(run.NotebookFailed) as caught:
        at(root, run.run_notebooks, [number], name=number, **options)
    return str(caught.value), root / "reports" / number


def test_a_failing_cell_is_named_with_its_error_and_what_ran_is_kept(broken):
    message, folder = failure(broken, "01")
    assert message == (
        "01_raises, cell In [3] `raise ValueError('points must be (B, P, `: "
        "ValueError: points must be (B, P, 3),"
    )
    (entry,) = record(folder)["notebooks"]
    assert entry["status"] == "failed" and entry["error"] == message
    assert "before" in (folder / "01_raises.ipynb").read_text()
    page = (folder / "index.html").read_text()
    assert "cell In [3]" in page and "01_raises.html" in page


def test_a_cell_that_takes_too_long_is_stopped_and_named(broken):
    message, _ = failure(broken, "02", timeout=1)
    assert message == (
        "02_hangs, cell In [2] `import time`: took longer than 1 s (see --timeout)"
    )


def test_a_kernel_that_dies_is_reported_as_any_failure(broken):
    message, folder = failure(broken, "03")
    assert message.startswith("03_dies, cell In [2] `import os`: DeadKernelError")
    assert "DeadKernelError" in (folder / "index.html").read_text()


def refusal(root, *layers, notebooks=("02", "03")):
    paths = [at(root, run.find_notebook, name) for name in notebooks]
    declared = {path.stem: run.declared_parameters(path) for path in paths}
    with pytest.raises(ValueError) as caught:
        at(root, run.assign, declared, layers)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_undeclared_parameter_is_refused_with_the_closest_name(project):
    assert refusal(project, {"ratte": 1}) == (
        "no parameter 'ratte' in 02_make and 03_use; did you mean 'rate'?; "
        "declared: out, count, seed, data, rate"
    )


def test_an_undeclared_parameter_of_a_section_is_refused(project):
    message = refusal(project, {"03_use": {"count": 3}})
    assert message.startswith("no parameter 'count' in 03_use")
    assert message.endswith("declared: out, data, rate")


def test_a_section_named_as_no_notebook_is_refused(project):
    with pytest.raises(FileNotFoundError, match="did you mean '03_use'"):
        at(project, run.assign, {"02_make": {}}, [{"03_usee": {}}])


def test_a_value_of_another_type_is_refused(project):
    message = refusal(project, {"count": "many"})
    assert message == "02_make: count must be of type int (default 2), got 'many'"
    assert "got 2.5" in refusal(project, {"count": 2.5})


def test_the_folder_of_a_notebook_is_not_a_users_parameter(project):
    assert "--name" in refusal(project, {"out": "elsewhere"})


def test_a_section_wins_over_a_value_for_all_and_a_later_layer_over_both():
    declared = {"a": {"steps": 1}, "b": {"steps": 1}}
    given = run.assign(declared, [{"a": {"steps": 3}, "steps": 2}])
    assert given == {"a": {"steps": 3}, "b": {"steps": 2}}
    given = run.assign(declared, [{"a": {"steps": 3}}, {"steps": "4"}])
    assert given == {"a": {"steps": 4}, "b": {"steps": 4}}


def test_nothing_runs_when_a_name_is_wrong(project):
    with pytest.raises(ValueError, match="no parameter 'coutn'"):
        at(project, run.run_notebooks, ["02"], name="no", values={"coutn": "1"})
    assert not (project / "reports" / "no").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("04", "no notebook '04'.*02_make, 03_use"),
        ("03_uze", "did you mean '03_use'"),
        ("elsewhere/x.ipynb", "no notebook 'elsewhere/x.ipynb'.*02_make"),
    ],
)
def test_a_notebook_that_is_not_there_is_named(project, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        at(project, run.find_notebook, name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n- 2", "must map names to values"),
        ("a: [1", "is not YAML"),
    ],
)
def test_a_parameter_file_that_is_none_is_named(tmp_path, text, message):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"p.yaml {message}"):
        run.read_params(tmp_path / "p.yaml")


def test_a_missing_parameter_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="p.yaml: no such parameter file"):
        run.read_params(tmp_path / "p.yaml")


def test_an_empty_parameter_file_sets_nothing(tmp_path):
    (tmp_path / "p.yaml").write_text("# nothing yet\n")
    assert run.read_params(tmp_path / "p.yaml") == {}


def test_a_parameters_cell_with_a_computed_value_is_refused(tmp_path):
    path = write(tmp_path, "01_a", "steps = 2 * 10")
    with pytest.raises(ValueError, match="not `steps = 2 \\* 10`"):
        run.declared_parameters(path)


def test_a_file_that_is_no_notebook_is_named(tmp_path):
    (tmp_path / "a.ipynb").write_text("hello")
    with pytest.raises(ValueError, match="a.ipynb is not a notebook"):
        run.declared_parameters(tmp_path / "a.ipynb")


@pytest.mark.parametrize("name", ["../out", "/out", "a/b/c", ""])
def test_a_run_stays_inside_the_reports_folder(project, name):
    with pytest.raises(ValueError, match="a run's name"):
        at(project, run.run_notebooks, ["02"], name=name)


def test_a_run_without_a_name_is_named_after_the_time(monkeypatch, capsys):
    def folder(notebooks, name, **options):
        return run.ROOT / "reports" / name

    monkeypatch.setattr(run, "run_notebooks", folder)
    assert main(["run", "03"]) == 0
    pattern = r"report: reports/\d{4}-\d\d-\d\d_\d{6}/index.html\n"
    assert re.fullmatch(pattern, capsys.readouterr().out)


def test_outputs_name_only_what_exists(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        run.write_outputs(tmp_path, model=tmp_path / "nowhere")


def test_outputs_take_numpy_scalars(tmp_path, rng):
    number = rng.standard_normal(dtype="float32")
    run.write_outputs(tmp_path, summary={"x": number})
    outputs = json.loads((tmp_path / "outputs.json").read_text())
    assert outputs["summary"] == {"x": float(number)}


def test_outputs_name_the_folders_of_the_project_from_it(tmp_path):
    (tmp_path / "set").mkdir()
    at(tmp_path, run.write_outputs, tmp_path / "out", data=tmp_path / "set")
    outputs = json.loads((tmp_path / "out" / "outputs.json").read_text())
    assert outputs["data"] == "set"


def test_a_number_that_was_not_measured_is_shown_as_a_dash(tmp_path):
    source = OUTPUTS + (
        "import pathlib\npathlib.Path(out, 'metrics.csv').write_text('iou\\nnan')\n"
        "write_outputs(out, summary={'ecd': float('nan'), 'iou': 0.5})"
    )
    write(tmp_path, "05_e", 'out = ""\nn = 1', source)
    (tmp_path / "a.yaml").write_text("n: 2")
    folder = at(tmp_path, run.sweep, ["05"], [tmp_path / "a.yaml"], name="s")
    page = shown(folder / "a")
    assert "<td>ecd</td><td>–</td>" in page and "nan" not in page
    assert re.search(r"<th>iou</th></tr>\s*<tr><td>–</td></tr>", page)
    assert (folder / "sweep.csv").read_text().endswith(",,0.5\n")
    assert "| – | 0.5 |" in (folder / "sweep.md").read_text()


def test_a_sweep_makes_one_table_with_a_row_a_file(tmp_path, capsys):
    source = OUTPUTS + "write_outputs(out, summary={'inverse': 1 / (3 * rate)})"
    write(tmp_path, "03_t", 'out = ""\nrate = 1.0', source)
    files = [tmp_path / "three.yaml", tmp_path / "zero.yaml"]
    files[0].write_text("rate: 1.0")
    files[1].write_text("03_t:\n  rate: 0.0")
    with pytest.raises(run.NotebookFailed, match="1 of 2 failed: zero"):
        at(tmp_path, run.sweep, ["03"], files, name="s")
    folder = tmp_path / "reports" / "s"
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [row["run"] for row in rows] == ["three", "zero"]
    assert [row["status"] for row in rows] == ["ok", "failed in 03_t"]
    assert [row["inverse"] for row in rows] == [str(1 / 3), ""]
    assert "| three | ok |" in (folder / "sweep.md").read_text()
    assert 'href="zero/index.html"' in (folder / "index.html").read_text()
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_a_repeated_sweep_runs_only_what_has_not_ended_well(tmp_path, capsys):
    log = tmp_path / "log"
    source = f"open({str(log)!r}, 'a').write(f'{{rate}} ')\n1 / rate"
    write(tmp_path, "03_t", 'out = ""\nrate = 1.0', source)
    files = [tmp_path / f"{name}.yaml" for name in "ab"]
    files[0].write_text("rate: 2.0")
    files[1].write_text("rate: 0.0")
    for _ in range(2):
        with pytest.raises(run.NotebookFailed, match="1 of 2 failed: b"):
            at(tmp_path, run.sweep, ["03"], files, name="s")
    assert log.read_text() == "2.0 0.0 0.0 "
    assert "a: done before" in capsys.readouterr().out
    files[0].write_text("rate: 3.0")  # other parameters
    files[1].write_text("rate: 4.0")
    at(tmp_path, run.sweep, ["03"], files, name="s")
    assert log.read_text() == "2.0 0.0 0.0 3.0 4.0 "
    write(tmp_path, "03_t", 'out = ""\nrate = 1.0', f"open({str(log)!r}, 'w')")
    at(tmp_path, run.sweep, ["03"], files[:1], name="s")  # other code
    assert log.read_text() == ""


def test_a_notebook_that_trains_without_a_limit_fails_as_any_other(tmp_path):
    write(tmp_path, "03_t", 'out = ""\nsteps = 1', "1 / 0")
    with pytest.raises(run.NotebookFailed, match="ZeroDivisionError"):
        at(tmp_path, run.run_notebooks, ["03"], name="t")
    assert record(tmp_path / "reports/t")["notebooks"][0]["status"] == "failed"


def test_a_sweeps_row_is_done_until_what_it_reads_is_another(tmp_path):
    write(tmp_path, "02_d", 'out = ""', OUTPUTS + "write_outputs(out, data='set')")
    write(tmp_path, "03_t", 'out = ""\ndata = ""', "assert data")
    (tmp_path / "set").mkdir()
    index, example = (tmp_path / "set" / name for name in ("index.csv", "a.npz"))
    index.write_text("id\na"), example.write_text("1")
    at(tmp_path, run.run_notebooks, ["02", "03"], name="s/a")

    def is_done(*notebooks):
        return at(tmp_path, run._is_done, "s/a", notebooks, [], {})

    assert is_done("02", "03")
    assert is_done("03")  # what 02 has made before is what it reads
    index.write_text("id\na")  # as when it is written anew
    assert is_done("03")
    index.write_text("id\nb")
    assert not is_done("03") and is_done("02")
    index.write_text("id\na"), os.utime(example, ns=(1, 1))
    assert not is_done("02", "03")


def test_seeds_are_an_axis_of_a_sweep_for_what_trains_with_mean_and_deviation(tmp_path):
    source = OUTPUTS + "write_outputs(out, summary={'score': 10 * rate + seed})"
    write(tmp_path, "02_data", 'out = ""\nseed = 7', OUTPUTS + "assert seed == 7")
    write(tmp_path, "03_t", 'out = ""\nsteps = 1\nrate = 1.0\nseed = 0', source)
    files = [tmp_path / f"{name}.yaml" for name in "ab"]
    for rate, file in enumerate(files, 1):
        file.write_text(f"rate: {rate}")
    given = {"seeds": [1, 2, 6], "name": "s"}
    given |= {"params": iter([{"seed": 3}]), "values": iter([("seed", 7)])}
    folder = at(tmp_path, run.sweep, ["02", "03"], files, **given)
    table = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert [row["run"] for row in table[:3]] == ["a-seed1", "a-seed2", "a-seed6"]
    assert [float(row["score"]) for row in table] == [11, 12, 16, 21, 22, 26]
    means = list(csv.DictReader((folder / "seeds.csv").read_text().splitlines()))
    assert [(row["run"], row["seeds"]) for row in means] == [("a", "3"), ("b", "3")]
    assert [float(row["score mean"]) for row in means] == [13, 23]
    assert float(means[0]["score sd"]) == pytest.approx(7**0.5)
    with pytest.raises(ValueError, match="no notebook of 02_data trains by a seed"):
        at(tmp_path, run.sweep, ["02"], files, seeds=[1], name="t")


def test_a_section_may_be_a_notebooks_number(tmp_path):
    (tmp_path / "p.yaml").write_text("03:\n  steps: 4\n")
    write(tmp_path, "03_t", "steps = 1")
    layers = [at(tmp_path, run.read_params, tmp_path / "p.yaml")]
    given = at(tmp_path, run.assign, {"03_t": {"steps": 1}}, layers)
    assert given == {"03_t": {"steps": 4}}


def test_seeds_go_to_a_notebook_given_by_its_path(tmp_path):
    source = OUTPUTS + "write_outputs(out, summary={'score': seed})"
    path = write(tmp_path / "x", "own", 'out = ""\nsteps = 1\nseed = 0', source)
    folder = at(tmp_path, run.sweep, [str(path)], [], seeds=[4, 6], name="s")
    means = list(csv.DictReader((folder / "seeds.csv").read_text().splitlines()))
    assert [float(row["score mean"]) for row in means] == [5]


def test_a_notebook_of_before_gets_nothing_of_a_later_one(tmp_path):
    write(tmp_path, "03_t", 'out = ""\ndata = "own"', OUTPUTS + "write_outputs(out)")
    write(
        tmp_path,
        "05_e",
        'out = ""\ndata = ""',
        OUTPUTS + "write_outputs(out, data='notebooks')",
    )
    at(tmp_path, run.run_notebooks, ["03", "05"], name="a")
    folder = at(tmp_path, run.run_notebooks, ["03"], name="a")
    assert parameters(folder, "03_t")["data"] == "own"
    folder = at(tmp_path, run.run_notebooks, ["05", "03"], name="b")  # in this order
    assert parameters(folder, "03_t")["data"] == "notebooks"
    path = write(
        tmp_path / "x", "prep", 'out = ""', OUTPUTS + "write_outputs(out, data='x')"
    )
    at(tmp_path, run.run_notebooks, [str(path)], name="c")  # of no number: it stays
    folder = at(tmp_path, run.run_notebooks, ["03"], name="c")
    assert parameters(folder, "03_t")["data"] == "x"


def test_a_list_of_no_folders_is_refused_before_a_run(tmp_path):
    write(tmp_path, "05_e", 'out = ""\nothers = []', OUTPUTS + "write_outputs(out)")
    given = {"values": {"others": [1, 2]}, "name": "a"}
    with pytest.raises(ValueError, match=r"05_e: others names folders, not \[1, 2\]"):
        at(tmp_path, run.run_notebooks, ["05"], **given)
    assert not (tmp_path / "reports").exists()


def test_another_folder_takes_the_checkouts_notebooks(tmp_path):
    found = at(tmp_path, run.find_notebook, "03")
    assert found == run.PACKAGE.parent / "notebooks/03_train.ipynb"
    params = at(tmp_path, run.read_params, "notebooks/params/benchmark.yaml")
    assert "05_evaluate" in params
    write(tmp_path, "03_own", 'out = ""')
    assert at(tmp_path, run.find_notebook, "03").parent == tmp_path / "notebooks"


def test_ctrl_c_leaves_a_page_a_row_and_time_to_save(tmp_path):
    cell = """
        import pathlib, time
        try:
            pathlib.Path("begun").touch()
            time.sleep(60)
        except KeyboardInterrupt:
            time.sleep(2.5)  # of 4
            pathlib.Path("saved").touch()
            raise"""
    write(tmp_path, "03_t", 'out = ""\nsteps = 5', inspect.cleandoc(cell))
    (tmp_path / "a.yaml").write_text("steps: 6")
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "import sys; from d2im.__main__ import main; from d2im.show import run; "
        "run.LEAVE = 4; "
        "sys.exit(main(['run', '03', '--sweep', 'a.yaml', '--name', 's']))"
    )
    environment = os.environ | {"D2IM_HOME": str(tmp_path)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, **pipes
    ) as process:
        while not (tmp_path / "begun").exists():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        record = json.loads((tmp_path / "reports/s/a/run.json").read_text())
        assert record["notebooks"][0]["status"] == "running"
        assert "03_t is running" in (tmp_path / "reports/s/a/index.html").read_text()
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "error: interrupted" in errors
    assert (tmp_path / "saved").exists()
    assert "interrupted" in (tmp_path / "reports/s/sweep.md").read_text()
    page = (tmp_path / "reports/s/a/index.html").read_text()
    assert "interrupted" in page and "is running" not in page


def test_numbers_lists_and_choices_are_understood_or_refused_before_work():
    declared = {
        "05_e": {"steps": 5, "others": [], "protocol": "d2im", "learning_rate": 0.1}
    }
    given = run.assign(declared, [{"steps": "1e4", "others": "models/a"}])["05_e"]
    assert given == {"steps": 10_000, "others": ["models/a"]}
    for wrong, said in (
        ({"steps": "1.5"}, "steps must be of type int"),
        ({"protocol": "disnn"}, "protocol must be one of d2im, occnet"),
        ({"lr": 1}, "no parameter 'lr'.*did you mean 'learning_rate'"),
    ):
        with pytest.raises(ValueError, match=said):
            run.assign(declared, [wrong])


def test_progress_tells_step_loss_rate_and_time_left(tmp_path):
    folder = tmp_path / "03_train"
    (folder / "D2IMNet").mkdir(parents=True)
    assert progress.progress(folder, 500) == ""
    rows = "".join(f"{k},{10 / k},0.5\n" for k in range(1, 301))
    file = folder / "D2IMNet/metrics.csv"
    file.write_text("step,loss,seconds\n" + rows + "301,0.0")  # one under way
    line = progress.progress(folder, 500)
    assert line == "D2IMNet: step 300 of 500, loss 0.03333, 2 steps/s, 1 min 40 s left"
    assert progress.progress(folder, 500, begun=time.time() + 60) == ""
    (folder / ".d2im-1").mkdir()  # a checkpoint that is being written
    (folder / ".d2im-1/metrics.csv").write_text("step,loss,seconds\n1,1,1\n")
    assert progress.progress(folder, 500) == line
    file.write_text("step,loss,seconds\n1,0.5")
    assert progress.progress(folder, 500) == ""
    (folder / "metrics.csv").write_text("id,family\na,b\n")  # newer, of 05
    assert progress.progress(folder) == ""


def test_progress_stays_within_a_narrow_terminal(tmp_path, monkeypatch):
    text = "step,loss,seconds\n" + "1,0.5,0.5\n" * 3
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(progress, "RENEWED", 0.01)
    with progress.shown("03_train", tmp_path, 500):
        (tmp_path / "net").mkdir()
        (tmp_path / "net/metrics.csv").write_text(text)
        os.utime(tmp_path / "net/metrics.csv", (time.time() + 9,) * 2)
        end = time.monotonic() + 20
        while "step" not in shown.getvalue() and time.monotonic() < end:
            time.sleep(0.01)
    lines = shown.getvalue().split("\r")
    assert any("step 1" in line for line in lines)
    assert max(map(len, lines)) < 40


def test_a_sweep_checks_every_file_before_the_first_runs(project, tmp_path):
    (tmp_path / "a.yaml").write_text("rate: 0.5")
    (tmp_path / "b.yaml").write_text("rat: 0.5")
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    with pytest.raises(ValueError, match="no parameter 'rat'"):
        at(project, run.sweep, ["03"], files, name="none")
    assert not (project / "reports" / "none").exists()


def test_the_command_refuses_a_mistyped_name_in_one_line(project):
    command = [sys.executable, "-m", "d2im.run", project / "notebooks/03_use.ipynb"]
    done = subprocess.run(
        [*command, "-p", "rat", "1"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == (
        "error: no parameter 'rat' in 03_use; did you mean 'rate'?; "
        "declared: out, data, rate\n"
    )


def test_the_command_tells_a_failing_cell_in_one_line(broken, capsys):
    out = broken / "reports" / "again" / "01_raises"
    run.write_outputs(out, note="Fine.")
    assert at(broken, main, ["run", "01", "--name", "again"]) == 1
    assert capsys.readouterr().err.splitlines() == [
        "error: 01_raises, cell In [3] `raise ValueError('points must be (B, P, `: "
        "ValueError: points must be (B, P, 3),"
    ]
    # nothing of its former run is left
    assert "Fine." not in (out.parent / "index.html").read_text()


def test_a_sweeps_files_have_different_names(project, tmp_path):
    files = [tmp_path / "a.yaml", tmp_path / "b" / "a.yaml"]
    with pytest.raises(ValueError, match="different names"):
        at(project, run.sweep, ["03"], files, name="none")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (185.4, "3 min 05 s"), (7800, "2 h 10 min"), (59.99, "60.0 s")],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert pages.duration(seconds) == text


def test_a_copys_links_lead_to_the_files_that_the_notebooks_do(tmp_path):
    old, new = tmp_path / "notebooks", tmp_path / "reports/sweep/one"
    there = [old / "01_a.ipynb", old / "02_b.ipynb", tmp_path / "d2im/fields.py"]
    for path in [*there, new / "02_b.ipynb"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    text = "[a](01_a.ipynb), [b](02_b.ipynb#x), [c](../d2im/fields.py), [d](https://e.f/g.py)"
    moved = run._moved_links(text, old, new)
    a, b, c = re.findall(r"\]\((?!https)([^)#]+)", moved)
    assert (new / a).samefile(there[0]) and (new / c).samefile(there[2])
    assert b == "02_b.ipynb" and "02_b.ipynb#x" in moved  # its copy, which is there
    assert "[d](https://e.f/g.py)" in moved
    later = run._moved_links(text, old, new, {"01_a.ipynb"})  # its copy is yet to come
    assert later == moved.replace(a, "01_a.ipynb")


def refused(root, capsys, *arguments, code=2):
    """The one line in which the command refuses its arguments."""
    assert at(root, main, ["run", *arguments]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("9" * 401, "rate must have 64 bits at most"),
        ("9" * 5000, "rate must be of type float"),
        ("0x" + "f" * 5000, "rate must have 64 bits at most"),
        ("[" * 5000, "rate must be of type float"),
        ("1e400", "rate takes finite numbers"),
        (".nan", "rate takes finite numbers"),
        ("!!int ''", "rate must be of type float"),
    ],
)
def test_a_value_that_is_no_number_is_refused_in_a_short_line(
    project, capsys, value, message
):
    line = refused(project, capsys, "03", "-p", "rate", value, "--name", "no")
    assert message in line and len(line) < 160
    assert not (project / "reports/no").exists()


@pytest.mark.parametrize(
    "value", ["[2024-01-01]", "[.inf]", "[1, [.nan]]", "[!!set {}]"]
)
def test_a_list_of_what_is_no_parameter_is_refused(tmp_path, capsys, value):
    write(tmp_path, "01_a", "others = []")
    line = refused(tmp_path, capsys, "01", "-p", "others", value)
    assert "others takes finite numbers, texts and lists" in line


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("rate: 0.5 # é".encode("latin-1"), "is not UTF-8 text: save it as UTF-8"),
        ("rate: 0.5 # é".encode("utf-16"), "is not UTF-8 text: save it as UTF-8"),
        (b"rate: " + b"[" * 5000 + b"]" * 5000, "is nested too deeply"),
        (b"rate: " + b"9" * 5000, "is not YAML: Exceeds the limit"),
        (b"rate: " + b"9" * 401, "rate must have 64 bits at most"),
        (b"rate: !!timestamp x", "is not YAML"),
        (b"rate: [\na: {", "is not YAML"),
    ],
)
def test_a_parameter_file_that_cannot_be_used_is_one_line(
    project, tmp_path, capsys, data, message
):
    (tmp_path / "p.yaml").write_bytes(data)
    line = refused(project, capsys, "03", "--params", str(tmp_path / "p.yaml"))
    assert message in line and len(line) < 240


def test_a_parameter_file_may_begin_with_a_byte_order_mark(tmp_path):
    (tmp_path / "p.yaml").write_text("rate: 1", encoding="utf-8-sig")
    assert run.read_params(tmp_path / "p.yaml") == {"rate": 1}


@pytest.mark.parametrize(
    "source", ["rate = = 1", "a = " + "[" * 5000, "a = {[]: 1}", "a = " + "9" * 5000]
)
def test_a_parameters_cell_that_is_no_python_is_one_line(tmp_path, capsys, source):
    write(tmp_path, "01_a", source)
    assert "01_a.ipynb: its parameters cell" in refused(tmp_path, capsys, "01")


@pytest.mark.parametrize("text", ["[]", "[" * 5000, '{"nbformat": 4}', "\x00"])
def test_damaged_json_is_no_notebook(tmp_path, text):
    (tmp_path / "a.ipynb").write_text(text)
    with pytest.raises(ValueError, match="a.ipynb is not a notebook"):
        run.declared_parameters(tmp_path / "a.ipynb")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e400"])
def test_a_time_limit_is_a_positive_number(project, capsys, seconds):
    line = refused(project, capsys, "03", "--name", "no", "--timeout", seconds)
    assert "the time limit is a number of seconds" in line


@pytest.mark.parametrize(
    "text", ['{"date": "x"', "[]", '{"notebooks": [{}]}', '{"notebooks": 1}']
)
def test_a_damaged_record_is_named_before_anything_runs(project, capsys, text):
    file = project / "reports/damaged/one/run.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    line = refused(project, capsys, "03", "--name", "damaged/one")
    assert f"{file} is damaged" in line and "move it away" in line
    (project / "one.yaml").write_text("")
    sweep = ["03", "--sweep", str(project / "one.yaml"), "--name", "damaged"]
    assert f"{file} is damaged" in refused(project, capsys, *sweep)
    assert file.read_text() == text and len([*file.parent.iterdir()]) == 1


@pytest.mark.parametrize("made", [{"summary": []}, {"summary": ""}, {"note": 1}, []])
def test_outputs_of_other_kinds_are_damaged(tmp_path, made):
    (tmp_path / "outputs.json").write_text(json.dumps(made))
    found, why = run._outputs(tmp_path / "outputs.json")
    assert found == {} and "outputs.json is damaged" in why


def test_damaged_outputs_of_a_notebook_are_named_and_the_run_is_recorded(tmp_path):
    source = "import pathlib\npathlib.Path(out, 'outputs.json').write_text('{\"data\"')"
    write(tmp_path, "01_a", 'out = ""', source)
    message, folder = failure(tmp_path, "01")
    assert "reports/01/01_a/outputs.json is damaged" in message
    assert record(folder)["notebooks"][0]["error"] == message
    assert "is damaged" in (folder / "index.html").read_text()


def test_a_read_only_disk_is_one_line(tmp_path, capsys):
    write(tmp_path, "01_a", 'out = ""')
    (tmp_path / "reports").touch()  # no folder can be made there, whoever asks
    line = refused(tmp_path, capsys, "01", "--name", "a", code=1)
    assert "Not a directory" in line and "reports/a" in line


def command(root, *arguments, before="", **environment):
    """Start a process that runs notebooks of root, by this worktree's code."""
    code = "import sys, pathlib\nfrom d2im import run\nfrom d2im.__main__ import main\n"
    code += f"{before}\n"
    code += f"run.ROOT = pathlib.Path({str(root)!r})\n"
    code += f"sys.exit(main({['run', *arguments]!r}))"
    paths = {"IPYTHONDIR": str(root / "ipython"), "PYTHONPATH": str(Path.cwd())}
    pipe = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    environment = os.environ | paths | environment
    return subprocess.Popen([sys.executable, "-c", code], env=environment, **pipe)


@pytest.mark.parametrize(
    ("limit", "size", "name"),
    [(10**6, 2 * 10**6, "01_a.ipynb"), (10**5, 4, "01_a.html")],
)
def test_a_full_disk_is_one_line_and_leaves_whole_files(tmp_path, limit, size, name):
    write(tmp_path, "01_a", "size = 3", "print('x' * size)")
    folder = at(tmp_path, run.run_notebooks, ["01"], name="a")
    page = (folder / "01_a.html").read_text()
    full = f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, 2 * ({limit},))"
    again = command(tmp_path, "01", "--name", "a", "-p", "size", str(size), before=full)
    said = again.communicate(timeout=120)[1]
    # A kernel may say on its own that its history has no room or its end was slow.
    kernel = re.compile("history|IOStream", re.IGNORECASE)
    lines = [line for line in said.splitlines() if not kernel.search(line)]
    assert again.returncode == 1 and len(lines) == 1, said
    assert lines[0].startswith("error: ") and f"{name} was not written" in lines[0]
    assert [entry["notebook"] for entry in record(folder)["notebooks"]] == ["01_a"]
    assert nbformat.read(folder / "01_a.ipynb", as_version=4).cells
    assert name != "01_a.html" or (folder / name).read_text() == page
    assert not [*folder.glob(".*")]


def test_a_killed_run_leaves_its_copy_so_far(tmp_path):
    wait = "import pathlib, time\npathlib.Path('begun').touch()\ntime.sleep(60)"
    where = "import os\nprint('before', os.getcwd())"
    write(tmp_path, "01_a", "count = 1", where, wait)
    killed = command(tmp_path, "01", "--name", "a")
    for _ in range(600):
        if (tmp_path / "begun").exists() or killed.poll() is not None:
            break
        time.sleep(0.1)
    killed.kill()
    killed.communicate()
    copy = tmp_path / "reports/a/01_a.ipynb"
    cells = nbformat.read(copy, as_version=4).cells
    assert cells[2].outputs[0].text == "before .\n"
    assert str(tmp_path) not in copy.read_text()


def test_copies_and_pages_name_no_folder_of_this_machine(tmp_path, monkeypatch):
    home = tmp_path / "home"
    root = home / "project"
    root.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    write(
        root,
        "01_a",
        'out = ""\nmeshes = ""',
        "import os, warnings\nprint(os.getcwd(), os.path.expanduser('~/meshes'))",
        "warnings.warn('careful')",
        OUTPUTS + "write_outputs(out, data=meshes, note=f'From {meshes}.')",
        "import json\njson.loads('{')",
    )
    (home / "meshes").mkdir()
    with pytest.raises(run.NotebookFailed):
        values = {"meshes": str(home / "meshes")}
        at(root, run.run_notebooks, ["01"], name="a", values=values)
    folder = root / "reports/a"
    (entry,) = record(folder)["notebooks"]
    assert entry["parameters"]["meshes"] == entry["outputs"]["data"] == "~/meshes"
    copy = (folder / "01_a.ipynb").read_text()
    assert "json/decoder.py" in copy and "ipykernel_" in copy
    for file in folder.glob("*.*"):
        text = file.read_text()
        assert not re.search(r"/(tmp/ipy|usr/|work/|root/|opt/|home/)", text), file
        assert str(home) not in text and "From ~/meshes." in text or file.name[0] == "0"


def test_data_in_the_home_folder_are_handed_on(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home/set").mkdir(parents=True)
    root = tmp_path / "project"
    given = OUTPUTS + "import pathlib\nhome = pathlib.Path.home()\n"
    write(root, "01_a", 'out = ""', given + "write_outputs(out, data=home / 'set')")
    write(root, "02_b", 'data = ""', "import os\nassert os.path.isdir(data)")
    folder = at(root, run.run_notebooks, ["01", "02"], name="a")
    assert parameters(folder, "02_b")["data"] == "~/set"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{root}/data/a.npz", "data/a.npz"),
        ("in {root}: {root}/a and {home}/b", "in .: a and ~/b"),
        ("\x1b[32m{root}/a.py\x1b[0m", "\x1b[32ma.py\x1b[0m"),
        ("/srv{home}/b {root}-old/c", "/srv{home}/b {root}-old/c"),
        ("{home}", "~"),
    ],
)
def test_a_path_loses_the_folders_of_this_machine(monkeypatch, tmp_path, text, shown):
    monkeypatch.setenv("HOME", "/homes/me")
    names = {"root": tmp_path / "p", "home": "/homes/me"}
    found = at(tmp_path / "p", run._portable, text.format(**names))
    assert found == shown.format(**names)


def test_a_project_folders_name_is_no_command_and_no_pattern(tmp_path, monkeypatch):
    root = tmp_path / "a$(touch hacked)`touch hacked`;{b} c"
    root.mkdir()
    monkeypatch.chdir(tmp_path)
    write(root, "01_a", "count = 1", "print('done')")
    folder = at(root, run.run_notebooks, ["01"], name="a")
    assert "done" in (folder / "01_a.ipynb").read_text()
    assert [*tmp_path.rglob("hacked")] == []


def test_a_notebooks_name_is_no_link_to_a_script(tmp_path):
    stem = "javascript:alert(1)"
    write(tmp_path, stem, "count = 1", title="# [x](javascript:alert(1)) <img src=x>")
    folder = at(tmp_path, run.run_notebooks, [stem], name="a")
    links = re.findall('href="([^"]*)"', (folder / "index.html").read_text())
    assert links and [x for x in links if ":" in x] == []
    for kind in (".html", ".ipynb"):
        assert f"javascript%3Aalert%281%29{kind}" in links
        assert (folder / (stem + kind)).is_file()


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{k + 1}: &a{k + 1} [{', '.join([f'*a{k}'] * 9)}]\n" for k in range(12)
)
MERGES = "m0: &m0 {k: 1}\n" + "".join(
    f"m{k + 1}: &m{k + 1} {{<<: [{', '.join([f'*m{k}'] * 9)}]}}\n" for k in range(12)
)


@pytest.mark.parametrize("text", [BOMB, MERGES], ids=["lists", "merges"])
def test_aliases_that_grow_without_end_are_refused_at_once(project, tmp_path, text):
    (tmp_path / "p.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="p.yaml is not YAML: more than 16 aliases"):
        run.read_params(tmp_path / "p.yaml")
    assert time.perf_counter() - start < 5


def test_a_few_aliases_are_read_and_one_of_itself_is_refused(tmp_path, capsys):
    path = tmp_path / "p.yaml"
    path.write_text("rate: &r 0.5\n03_use: {rate: *r}\n")
    assert run.read_params(path) == {"rate": 0.5, "03_use": {"rate": 0.5}}
    write(tmp_path, "01_a", "others = []")
    for text in ("others: &a [*a]", "01_a: &a {01_a: *a}"):
        path.write_text(text)
        line = refused(tmp_path, capsys, "01", "--params", str(path))
        assert "others takes finite" in line or "takes values, not sections" in line


def test_a_file_too_long_for_parameters_is_not_read(tmp_path):
    (tmp_path / "p.yaml").write_text("a: 1\n" * 30_000)
    with pytest.raises(ValueError, match="p.yaml is not YAML: 150,000 bytes"):
        run.read_params(tmp_path / "p.yaml")


@pytest.mark.parametrize("source", [5, None, {}, [{}], [1, 2], True])
def test_a_cell_that_is_no_text_is_no_notebook(tmp_path, source):
    path = write(tmp_path, "01_a", "rate = 1")
    for place in (0, 1):
        tree = json.loads(path.read_text())
        tree["cells"][place]["source"] = source
        (tmp_path / "b.ipynb").write_text(json.dumps(tree))
        with pytest.raises(ValueError, match="^b.ipynb is not a notebook"):
            run.declared_parameters(tmp_path / "b.ipynb")


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ([], {"nbformat_minor": "x"}),
        (["metadata"], {"kernelspec": []}),
        (["metadata"], {"papermill": []}),
        (["cells", 2], {"cell_type": None}),
        (["cells", 2], {"cell_type": "odd"}),
        (["cells", 2], {"outputs": None}),
        (["cells", 2], {"outputs": [{}]}),
        (["cells", 2], {"id": 5}),
        (["cells", 2, "metadata"], {"papermill": [1]}),
    ],
    ids=str,
)
def test_a_notebook_that_cannot_be_run_is_told_before(tmp_path, place, change):
    path = write(tmp_path, "01_a", "rate = 1", "print(rate)")
    part = tree = json.loads(path.read_text())
    for key in place:
        part = part[key]
    part |= change
    for key in [key for key, value in change.items() if value is None]:
        del part[key]
    path.write_text(json.dumps(tree))
    with pytest.raises(ValueError, match=r"01_a.ipynb is not a notebook \(") as error:
        at(tmp_path, run.run_notebooks, ["01"], "a")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "reports").exists()


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    return 1",
        "a = " + "+".join(["1"] * 500),
        "a = {1, 2}",
        "a = b''",
    ],
    ids=["two lines", "deep", "a set", "bytes"],
)
def test_a_parameter_that_no_record_can_hold_is_one_short_line(tmp_path, source):
    path = write(tmp_path, "01_a", source)
    with pytest.raises(ValueError, match="only `name = literal`, not `") as error:
        run.declared_parameters(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


WHOLE = {
    "notebook": "03_use",
    "title": "Use",
    "seconds": 1.0,
    "error": "",
    "parameters": {"rate": 1},
    "defaults": {"rate": 1},
    "outputs": {},
}


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": 10**400},
        {"seconds": float("nan")},
        {"seconds": "1"},
        {"seconds": -1},
        {"title": None},
        {"notebook": ["a"]},
        {"parameters": {}},
        {"outputs": []},
        {"outputs": {"data": 5}},
        {"outputs": {"note": {}}},
        {"outputs": {"figures": [{"file": "a"}]}},
        {"outputs": {"figures": [{"file": 1, "caption": "a"}]}},
        {"outputs": {"figures": 7}},
        {"outputs": {"figures": [{"file": "../a.png", "caption": "a"}]}},
        {"notebook": "../03_use"},
        {"outputs": {"summary": [1]}},
    ],
    ids=str,
)
def test_an_entry_of_other_kinds_is_a_damaged_record(tmp_path, change):
    (tmp_path / "run.json").write_text(json.dumps({"notebooks": [WHOLE]}))
    assert run._record(tmp_path) == [WHOLE]
    (tmp_path / "run.json").write_text(json.dumps({"notebooks": [WHOLE | change]}))
    with pytest.raises(ValueError, match="run.json is damaged .*move it away") as error:
        run._record(tmp_path)
    assert "\n" not in str(error.value)


def test_tables_that_are_no_utf_8_are_shown(tmp_path):
    folder = tmp_path / "03_use"
    folder.mkdir()
    (folder / "metrics.csv").write_bytes("name,iou\nsiège,0.5\n".encode("latin-1"))
    (folder / "long.csv").write_text("a" * 200_000)
    (folder / "table.md").write_bytes("| siège |\n|---|\n| 1 |\n".encode("latin-1"))
    about = {"date": "", "device": "", "python": "", "versions": {}, "commit": ""}
    pages.write_page(tmp_path, notebooks=[WHOLE], **about)
    page = shown(tmp_path)
    assert "<td>0.5</td>" in page and page.count("si�ge") == 2
    assert "long.csv is no table: field larger than" in page
