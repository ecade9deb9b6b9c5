"""Notebooks in batch: papermill with guards, one folder and one page a run.

papermill alone only warns of undeclared parameters, waits for ever and keeps the state
of all widgets. A run is `reports/<run>/`: executed notebooks, each as HTML too, with
`run.json` and the page `index.html`. Notebooks run in `ROOT`, each with a folder `out`
of its own; the `data` and `model` that one names by `write_outputs` go to later ones.
"""

from __future__ import annotations

import ast
import difflib
import json
import math
import os
import re
import reprlib
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import zlib
from contextlib import nullcontext, suppress
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import yaml

from ..data.files import PACKAGE, working_folder
from . import pages
from .progress import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ROOT = working_folder()
SHIPPED = PACKAGE, PACKAGE.parent  # notebooks of an installed package, or a checkout
TIMEOUT = 3600  # seconds for one cell; of a notebook that trains there is no limit
TRAINS = "steps"  # a parameter of such a notebook
# Parameters that lead to what a notebook reads.
READ = "data model others truths start_from meshes heldout rival picture source target"
READ += " body"
LEAVE = 60  # seconds that an interrupted cell has to end, and save what it did
CHOICES = {  # of parameters that a later notebook would refuse after hours
    "protocol": "d2im occnet disn bspnet".split(),
    "preset": "small base mobile local paper".split(),
    "laplacian_form": "transformed image none".split(),
}
VERSIONS = "k3d torch numpy trimesh manifold3d libigl embreex".split()
ENTRY = dict.fromkeys(("notebook", "title", "error"), str)  # of a record, at least
ENTRY |= dict.fromkeys(("parameters", "defaults", "outputs"), dict)
FIGURE = "file", "caption"
# What reading JSON that is another than expected may raise.
DAMAGE = AttributeError, LookupError, RecursionError, TypeError, ValueError
DAMAGE += (OverflowError,)  # of numbers
LARGEST_PARAMS = 100_000  # bytes of a parameter file; notebooks/params have a few 1000
MOST_ALIASES = 16  # in one: each may stand for all the others


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message names it, its cell and the error."""


def write_outputs(
    out: str | Path,
    *,
    data: str | Path = "",
    model: str | Path = "",
    summary: dict[str, float] | None = None,
    figures: dict[str, str] | None = None,
    note: str = "",
) -> None:
    """Write a notebook's outputs.json: what `run` hands on and shows.

    Args: out: the notebook's folder, made when missing; its `metrics.csv` is shown too.
        data, model: the folders that later notebooks should read.
        summary: {name: number}, the columns of a sweep's table; NaN: not measured.
        figures: {file relative to `out`: caption}: PNG, or a scene's HTML snapshot.
        note: a sentence or two that the page shows first.
    Raises: FileNotFoundError: `data`, `model` or a figure does not exist.
    """
    out, figures = Path(out), figures or {}
    for path in [Path(p) for p in (data, model) if p] + [out / f for f in figures]:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist, so it cannot be handed on")
    outputs = {  # of paths, what is within the project: the same on each machine
        "data": str(data).removeprefix(f"{ROOT}{os.sep}"),
        "model": str(model).removeprefix(f"{ROOT}{os.sep}"),
        "summary": {k: None if v != v else v for k, v in (summary or {}).items()},
        "figures": [{"file": str(f), "caption": c} for f, c in figures.items()],
        "note": note,
    }
    out.mkdir(parents=True, exist_ok=True)
    # default=float: numpy's and torch's scalars are numbers too
    pages.write_text(out / "outputs.json", json.dumps(outputs, indent=1, default=float))


def find_notebook(name: str | Path) -> Path:
    """Find a notebook by number ("03"), stem ("03_train") or path.

    Raises: FileNotFoundError: none or several; the message lists those there are.
    """
    if str(name).endswith(".ipynb") and Path(name).is_file():
        return Path(name)
    folders = (folder.glob("notebooks/*.ipynb") for folder in (ROOT, *SHIPPED))
    known = {path.stem: path for path in next(filter(None, map(sorted, folders)), [])}
    hits = [stem for stem in known if name in (stem, stem.split("_")[0])]
    if len(hits) != 1:
        raise FileNotFoundError(f"no notebook {str(name)!r}{_hint(name, known)}")
    return known[hits[0]]


def declared_parameters(notebook: str | Path) -> dict:
    """Read the {name: literal default} of a notebook's `parameters` cell.

    Raises: ValueError: not a notebook, several such cells, or a line without a literal.
    """
    name = Path(notebook).name
    try:
        text = Path(notebook).read_text(encoding="utf-8")
        whole = nbformat.convert(nbformat.reader.reads(text), 4)
        nbformat.validate(whole)
        cells = whole.cells
        for part in (whole, *cells):  # which no scheme knows
            if not isinstance(part.metadata.get("papermill", {}), dict):
                raise ValueError("papermill's metadata are none")
        tagged = [c.source for c in cells if "parameters" in c.metadata.get("tags", [])]
        source = "".join([*tagged, *(c.source[:0] for c in cells)])  # all are text
    except OSError:
        raise
    except Exception as error:  # of damaged JSON, nbformat raises anything
        cause = " ".join(str(error).split())[:100]
        raise ValueError(f"{name} is not a notebook ({cause})") from error
    if len(tagged) > 1:
        raise ValueError(f"{name} has {len(tagged)} parameters cells, not one")
    try:
        lines = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        what = getattr(error, "msg", error) or "nested too deeply"
        at = f" in line {error.lineno}" if getattr(error, "lineno", 0) else ""
        what = f"its parameters cell is no Python{at}: {what}"
        raise ValueError(f"{name}: {what}") from error
    declared = {}
    for line in lines:
        try:
            (target,) = line.targets
            value = ast.literal_eval(line.value)
            json.dumps(value, allow_nan=False)  # as run.json will hold it
            declared[target.id] = value
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            text = source.splitlines()[line.lineno - 1].strip()
            what = f"only `name = literal`, not `{text:.60}`"
            raise ValueError(f"{name}: its parameters cell holds {what}") from error
    return declared


class _Loader(yaml.SafeLoader):
    """YAML whose aliases are counted before what they stand for is multiplied."""

    aliases = 0

    def compose_node(self, parent, index):
        self.aliases += self.check_event(yaml.AliasEvent)
        if self.aliases > MOST_ALIASES:
            raise ValueError(f"more than {MOST_ALIASES} aliases (*name)")
        return super().compose_node(parent, index)


def read_params(file: str | Path) -> dict:
    """Read a parameter file: YAML, {name: value} or {notebook: {name: value}}.

    Raises: FileNotFoundError, ValueError: no such file, not UTF-8, not YAML or no such
        mapping.
    """
    path = Path(file)
    folders = iter((ROOT, *SHIPPED))  # which have notebooks/params, too
    while not path.is_file() and (folder := next(folders, None)):
        path = folder / file
    if not path.is_file():
        raise FileNotFoundError(f"{file}: no such parameter file")
    try:
        if (size := path.stat().st_size) > LARGEST_PARAMS:
            raise ValueError(f"{size:,} bytes are too many")
        params = yaml.load(path.read_text(encoding="utf-8-sig"), _Loader) or {}
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError(f"{file} is nested too deeply to be read") from error
    except OSError:
        raise
    except Exception as error:  # of numbers and tags, YAML raises anything
        what = str(error).partition("\n")[0]
        raise ValueError(f"{file} is not YAML: {what}") from error
    if not isinstance(params, dict):
        got = reprlib.repr(params)
        raise ValueError(f"{file} must map names to values, got {got}")
    return params


def assign(declared: dict[str, dict], layers: Iterable[dict]) -> dict[str, dict]:
    """Give each notebook the values meant for it; later layers win.

    Args: declared: {notebook stem: {parameter: default}} of the selected notebooks.
        layers: mappings as in a parameter file. A value goes to each notebook that
            declares its name; a section named as a notebook to that one, and wins.
    Returns: {notebook stem: {parameter: value}}, values of the default's type.
    Raises: FileNotFoundError, ValueError: a name that nothing declares, a wrong type.
    """
    given = {stem: {} for stem in declared}
    names = dict.fromkeys(n for defaults in declared.values() for n in defaults)
    for layer in layers:
        # sections last, so that they win over the values for all
        for name, value in sorted(layer.items(), key=lambda x: isinstance(x[1], dict)):
            if type(name) is int:  # of a notebook: YAML reads 03 as 3
                name = f"{name:02}"
            if isinstance(value, dict):
                if any(isinstance(inner, dict) for inner in value.values()):
                    raise ValueError(f"section {name!r} takes values, not sections")
                stem = name if name in declared else find_notebook(name).stem
                if stem in declared:
                    given[stem] |= assign({stem: declared[stem]}, [value])[stem]
            elif name == "out":
                raise ValueError("`out` is set by the run; name its folder by --name")
            elif name not in names:
                missing = f"no parameter {name!r} in {' and '.join(declared)}"
                raise ValueError(missing + _hint(name, names, "declared"))
            for stem, defaults in declared.items():
                if name in defaults:
                    given[stem][name] = _fit(value, defaults[name], f"{stem}: {name}")
    return given


def _fit(value, default, name):
    """Return a value in the type of the parameter's default, or say what is wrong."""
    with suppress(Exception):  # of YAML that is none, any; then its type is wrong
        if isinstance(value, str) and not isinstance(default, str):
            value = yaml.load(value, _Loader)  # the command line gives strings
        if isinstance(default, float) and type(value) in (int, str):
            value = float(value)  # 1 is a fine float; YAML reads 1e-3 as a string
        if type(default) is int and type(value) in (float, str):  # 1e4, the same
            value = int(float(value)) if float(value).is_integer() else value
        if isinstance(default, list) and isinstance(value, str):
            value = [value]  # a single one
    if type(value) is int and value.bit_length() > 64:
        raise ValueError(f"{name} must have 64 bits at most, not {value.bit_length()}")
    choices = CHOICES.get(name.rpartition(": ")[2], [default])
    if default in choices and len(choices) > 1 and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")
    if default is not None and type(value) is not type(default):
        kind = f"of type {type(default).__name__} (default {default!r})"
        raise ValueError(f"{name} must be {kind}, got {reprlib.repr(value)}")
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        kind = "finite numbers, texts and lists of them"
        raise ValueError(f"{name} takes {kind}: {reprlib.repr(value)}") from error
    return value


def _plan(notebooks, name, params, values):
    """Return a run's notebooks, their parameters and the values given to them."""
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ValueError(f"a run's name is of letters, digits, '_', '-', '.': {name!r}")
    _record(ROOT / "reports" / name)  # of an earlier run, to be added to
    paths = {path.stem: path for path in map(find_notebook, notebooks)}
    declared = {stem: declared_parameters(path) for stem, path in paths.items()}
    layers = [p if isinstance(p, dict) else read_params(p) for p in params]
    given = assign(declared, [*layers, dict(values)])
    for stem, own in given.items():
        for key in own.keys() & set(READ.split()):
            places = own[key] if isinstance(own[key], list) else [own[key] or ""]
            if not all(isinstance(place, str) for place in places):
                raise ValueError(f"{stem}: {key} names folders, not {own[key]!r}")
    return paths, declared, given


def _record(folder):
    """The entries of a run's run.json, none where there is no such file."""
    file = folder / "run.json"
    if not file.exists():
        return []
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))["notebooks"]
        for entry in entries:
            if not all(isinstance(entry[key], kind) for key, kind in ENTRY.items()):
                raise ValueError("an entry is not whole")
            if Path(entry["notebook"]).name != entry["notebook"]:
                raise ValueError("a notebook lies elsewhere")
            if not (math.isfinite(entry["seconds"]) and entry["seconds"] >= 0):
                raise ValueError("a time is none")
            if not entry["defaults"].keys() <= entry["parameters"].keys():
                raise ValueError("a parameter has no value")
            _check_outputs(entry["outputs"])
        return list(entries)
    except DAMAGE as error:
        what = f"{type(error).__name__}: {error}"
    advice = "move it away, or give this run another --name"
    raise ValueError(f"{file} is damaged ({what}): {advice}")


def _outputs(file):
    """What a notebook's outputs.json says, and what is wrong with it."""
    try:
        made = json.loads(file.read_text(encoding="utf-8"))
        _check_outputs(made)
        return made, ""
    except DAMAGE as error:
        return {}, f"{file} is damaged ({error}): let write_outputs write it"


def _check_outputs(made):
    """Raise one of `DAMAGE` for what `write_outputs` does not write."""
    figures = [figure[key] for figure in made.get("figures", ()) for key in FIGURE]
    texts = [made.get(key, "") for key in ("data", "model", "note")]
    names = list(made.get("summary", {}).keys())
    if not all(isinstance(text, str) for text in (*texts, *figures, *names)):
        raise ValueError("a text is none")
    for path in map(Path, figures[:: len(FIGURE)]):
        if path.is_absolute() or ".." in path.parts:
            raise ValueError("a figure lies elsewhere")


def run_notebooks(
    notebooks: Sequence[str],
    name: str,
    *,
    params: Iterable[str | Path] = (),
    values: dict | Iterable[tuple] = (),
    timeout: float | None = None,
) -> Path:
    """Run notebooks in the given order, each with what the earlier ones made.

    Args: notebooks: numbers, stems or paths.
        name: of the run's folder under reports/; a run that is there is added to.
        params, values: parameter files, and {name: value} that wins over them.
        timeout: seconds that one cell may take; by default an hour, where none trains.
    Returns: The run's folder.
    Raises: FileNotFoundError, ValueError: a wrong name or value, or a damaged run.json,
            before anything has run.
        NotebookFailed: a notebook stopped; the page and its copy so far are written,
            as they are at Ctrl-C, too, for which a training has a minute to save.
        OSError: the disk is full or read-only; the files so far are whole.
    """
    if timeout is not None and not 0 < timeout < math.inf:
        raise ValueError(f"the time limit is a number of seconds, not {timeout}")
    paths, declared, given = _plan(notebooks, name, params, values)
    folder, settings = ROOT / "reports" / name, _settings()
    entries = [e for e in _record(folder) if e["notebook"] not in paths]
    beside = {path.name for path in paths.values()}
    for stem, path in paths.items():
        out, defaults = folder / stem, declared[stem]
        out.mkdir(parents=True, exist_ok=True)
        # those of an earlier run are over
        pages.write_text(out / "outputs.json", "{}")
        chosen = _chosen(out, defaults, given[stem], _before(stem, entries, paths))
        changed = {k: value for k, value in chosen.items() if value != defaults[k]}
        entry = {"notebook": stem, "title": stem, "seconds": 0.0, "error": ""}
        entry |= {"parameters": chosen, "defaults": defaults, "outputs": {}}
        entry |= {"code": _code(path), "read": _read_state(chosen)}
        entries.append(_portable(entry) | {"status": "running"})
        _write_run(folder, settings, entries)
        print(f"{stem:24}", end="", flush=True)
        start, limit = time.perf_counter(), timeout
        if timeout is None and TRAINS not in defaults:
            limit = TIMEOUT
        trains = TRAINS in defaults
        with shown(stem, out, chosen[TRAINS]) if trains else nullcontext():
            given_to = path, folder / path.name, changed, limit, beside
            title, error, interrupted = _execute(*given_to)
        seconds = round(time.perf_counter() - start, 1)
        outputs, damage = _outputs(out / "outputs.json")
        error = _portable(error or damage)
        entry |= {"title": title, "seconds": seconds, "error": error}
        entry |= {"outputs": outputs, "status": "failed" if error else "ok"}
        entries[-1] = _portable(entry)
        _write_run(folder, settings, entries)
        print(f"{pages.duration(seconds):>12}{'  failed' if error else ''}", flush=True)
        if interrupted:
            raise KeyboardInterrupt
        if error:
            raise NotebookFailed(error)
    return folder


def _before(stem, entries, paths):
    """The entries but those of an earlier call's notebooks of higher numbers."""

    def is_later(name):
        return name[:1].isdigit() and name > stem and name not in paths

    return [entry for entry in entries if not is_later(entry["notebook"])]


def _chosen(out, defaults, given, entries):
    """A notebook's parameters: those given, what earlier ones made, the defaults."""
    made = [entry["outputs"] for entry in entries]
    handed = {k: o[k] for o in made for k in ("data", "model") if o.get(k)}
    handed = {k: os.path.expanduser(at) for k, at in handed.items()}
    handed |= {"out": out.relative_to(ROOT).as_posix()} | given
    return {k: handed.get(k, default) for k, default in defaults.items()}


def _write_run(folder, settings, entries):
    run = settings | {"notebooks": sorted(entries, key=lambda e: e["notebook"])}
    pages.write_text(folder / "run.json", json.dumps(run, indent=1))
    pages.write_page(folder, **run)


def _code(path):
    """A number that tells a notebook's code from another's."""
    cells = nbformat.read(path, as_version=4).cells
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    return zlib.crc32("\0".join(code).encode())


def _read_state(chosen):
    """A number that tells the files which parameters lead to from those of before.

    By their names, sizes and times; an index by what it says, for it is written anew.
    """
    state = []
    for name in READ.split():
        given = chosen.get(name) or []
        for place in [given] if isinstance(given, str) else given:
            path = ROOT / place
            for file in sorted(path.rglob("*") if path.is_dir() else [path]):
                if file.is_file() and file.name[:1] != ".":
                    stat, own = file.stat(), [name, str(file.relative_to(path))]
                    own += [stat.st_size, stat.st_mtime_ns]
                    if file.name == "index.csv":
                        own[2:] = [zlib.crc32(file.read_bytes())]
                    state.append(own)
    return zlib.crc32(json.dumps(state).encode())


def _is_done(name, notebooks, params, values):
    """Whether a run has ended well with these notebooks, parameters, code and data."""
    paths, declared, given = _plan(notebooks, name, params, values)
    folder = ROOT / "reports" / name
    record = {entry["notebook"]: entry for entry in _record(folder)}
    made = [entry for stem, entry in record.items() if stem not in paths]
    for stem in paths:
        first = _before(stem, made, paths)
        wanted = _chosen(folder / stem, declared[stem], given[stem], first)
        entry = record.get(stem, {})
        if entry.get("status") != "ok" or entry["parameters"] != _portable(wanted):
            return False
        if entry.get("code") != _code(paths[stem]):
            return False
        state = _read_state(wanted)
        if entry.get("read", state) != state:  # older records do not say it
            return False
        made.append(entry)
    return True


def sweep(
    notebooks: Sequence[str],
    files: Sequence[str | Path],
    name: str,
    *,
    seeds: Sequence[int] = (),
    params: Iterable[str | Path] = (),
    values: dict | Iterable[tuple] = (),
    timeout: float | None = None,
) -> Path:
    """Run the notebooks once a parameter file and seed; one table of their summaries.

    A row that ended well before, with the same code, parameters and files that these
    lead to, is not run again.

    Args: files: the parameter files; each wins over `params`, `values` over all.
        seeds: of each file's trainings (of the notebooks that train, not of the data),
            whatever `values` say; the table `seeds` tells means and deviations over
            them. The other arguments, and what is refused, are as in `run_notebooks`.
    Returns: Folder of `sweep.csv`, `sweep.md` and `index.html`; in `a`, `a.yaml`'s run,
        or in `a-seed0` that with seed 0.
    Raises: NotebookFailed: some rows failed, as the table says; the others have run.
    """
    params, values = list(params), dict(values)  # each run takes them
    runs = {Path(file).stem: [*params, file] for file in files}
    if len(runs) < len(files):
        raise ValueError(f"a sweep's files need different names, got {', '.join(runs)}")
    if seeds:
        runs = {
            stem: [*given, values] for stem, given in (runs or {"": params}).items()
        }
        runs, values = _seeded(notebooks, runs, seeds), {}
    for stem, given in runs.items():  # each is checked before the first one runs
        _plan(notebooks, f"{name}/{stem}", given, values)
    folder, rows = ROOT / "reports" / name, []
    options = {"values": values, "timeout": timeout}
    for stem, given in runs.items():
        row, stopped = {"run": stem, "status": "ok", "seconds": 0.0}, False
        done = _is_done(f"{name}/{stem}", notebooks, given, values)
        print(f"{stem}: {'done before' if done else ''}")
        try:
            if not done:
                run_notebooks(notebooks, f"{name}/{stem}", params=given, **options)
        except NotebookFailed as error:
            print(error)
            row["status"] = f"failed in {str(error).partition(',')[0]}"
        except KeyboardInterrupt:
            row["status"], stopped = "interrupted", True
        for entry in _record(folder / stem):
            row["seconds"] = round(row["seconds"] + entry["seconds"], 1)
            for key, value in entry["outputs"].get("summary", {}).items():
                row[f"{entry['notebook']}.{key}" if key in row else key] = value
        rows.append(row)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = columns, [[row.get(column) for column in columns] for row in rows]
        pages.write_text(folder / "sweep.csv", pages.csv_table(*table))
        pages.write_text(folder / "sweep.md", pages.markdown_table(*table))
        pages.write_page(folder, columns=columns, rows=table[1])
        if seeds:
            of_seeds = _over_seeds(rows, columns)
            pages.write_text(folder / "seeds.csv", pages.csv_table(*of_seeds))
            pages.write_text(folder / "seeds.md", pages.markdown_table(*of_seeds))
        if stopped:
            raise KeyboardInterrupt
    failed = [row["run"] for row in rows if row["status"] != "ok"]
    if failed:
        names = ", ".join(failed)
        raise NotebookFailed(f"{len(failed)} of {len(rows)} failed: {names}")
    return folder


def _seeded(notebooks, runs, seeds):
    """Each run once a seed, which goes to the notebooks that train."""
    paths = map(find_notebook, notebooks)
    known = {path.stem: declared_parameters(path) for path in paths}
    train = [stem for stem, own in known.items() if {TRAINS, "seed"} <= own.keys()]
    if not train:
        raise ValueError(f"no notebook of {', '.join(known)} trains by a seed")
    return {
        f"{name}-seed{seed}".lstrip("-"): [*given, {s: {"seed": seed} for s in train}]
        for name, given in runs.items()
        for seed in seeds
    }


def _over_seeds(rows, columns):
    """Columns and rows of means and standard deviations over a sweep's seeds."""
    groups = {}
    for row in (row for row in rows if row["status"] == "ok"):
        groups.setdefault(re.sub("-?seed[0-9]+$", "", row["run"]), []).append(row)
    names = [c for c in columns if c not in ("run", "status", "seconds")]
    heads, lines = ["run", "seeds"], []
    heads += [f"{name} {of}" for name in names for of in ("mean", "sd")]
    for run, mine in groups.items():
        line = [run or "all", len(mine)]
        for name in names:
            known = [row[name] for row in mine if row.get(name) is not None]
            several = len(known) > 1
            line += [statistics.fmean(known) if known else None]
            line += [statistics.stdev(known) if several else None]
        lines.append(line)
    return heads, lines


def _execute(path, copy, parameters, timeout, beside):
    """Run a notebook into its two copies.

    Returns: its title, what went wrong, and whether that was an interrupt.
    """
    import papermill  # seconds to import, and notebooks import this module
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager, kernelspec
    from papermill.iorw import LocalHandler, papermill_io

    class Kernel(AsyncKernelManager):  # whatever kernels the user has registered
        kernel_spec = kernelspec.KernelSpec(**get_kernel_dict())
        shutdown_wait_time = 2 * LEAVE  # it is interrupted, and terminated amid this

    class Whole(LocalHandler):  # a copy grows by cells, and is whole at any moment
        def write(self, buf, path):
            notebook = _portable(nbformat.reads(buf, as_version=4))
            pages.write_text(path, nbformat.writes(notebook) + "\n")

    papermill_io.register(str(copy), Whole())
    Whole().write(path.read_text(encoding="utf-8"), copy)  # not an earlier run's
    options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    options |= {"execution_timeout": timeout, "store_widget_state": False, "cwd": ROOT}
    # a kernel logs its own orderly end as an error on the terminal
    options |= {"kernel_manager_class": Kernel, "extra_arguments": ["--log-level=50"]}
    error = ""
    try:  # papermill would fill in names in braces, which a folder may have
        files = (re.sub(r"[{}]", r"\g<0>\g<0>", str(file)) for file in (path, copy))
        papermill.execute_notebook(*files, parameters, **options)
    except KeyboardInterrupt:
        error = "interrupted"
    except Exception as failure:  # papermill's own error carries the one of the cell
        name = getattr(failure, "ename", type(failure).__name__)
        text = str(getattr(failure, "evalue", failure)).strip().partition("\n")[0]
        error = f"{name}: {text}"
        if name == "CellTimeoutError":
            error = f"took longer than {timeout:g} s (see --timeout)"
    notebook = nbformat.read(copy, as_version=4)
    names = {"input_path": path.name, "output_path": path.name}
    notebook.metadata["papermill"] = notebook.metadata.get("papermill", {}) | names
    for cell in (c for c in notebook.cells if c.cell_type == "markdown"):
        cell.source = _moved_links(cell.source, path.parent, copy.parent, beside)
    for output in [o for cell in notebook.cells for o in cell.get("outputs", [])]:
        output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    made = _outputs(copy.with_suffix("") / "outputs.json")[0].get("figures", [])
    pages.describe_pictures(notebook, {f["file"]: f["caption"] for f in made})
    Whole().write(nbformat.writes(notebook), copy)
    pages.write_text(copy.with_suffix(".html"), pages.notebook_html(notebook))
    if error:
        codes = [cell for cell in notebook.cells if cell.cell_type == "code"]
        timed = [(c.source, c.metadata.get("papermill", {})) for c in codes]
        begun = [source for source, times in timed if times.get("start_time")]
        line = begun[-1].partition("\n")[0] if begun else "the kernel's start"
        error = f"{path.stem}, cell In [{len(begun)}] `{line:.40}`: {error}"
    titles = [c.source.split("\n")[0] for c in notebook.cells if c.source[:2] == "# "]
    interrupted = error.endswith("interrupted")
    return titles[0][2:] if titles else path.stem, error, interrupted


def _portable(value):
    """Return text, or lists and mappings of it, without the folders of this machine.

    Paths start at the project's folder, at that of the packages, or with "~".
    """
    home = os.path.expanduser("~")
    folders = {home: "~", os.path.realpath(home): "~"}
    packages = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    folders |= dict.fromkeys([str(ROOT), *packages], ".")
    folders.pop("/", None)  # some have no other home
    names = "|".join(map(re.escape, sorted(folders, key=len, reverse=True)))
    cells = re.escape(tempfile.gettempdir())  # where warnings say that a cell stands
    before = r"(^|[^\w.~-]|\x1b\[[\d;]*m)"  # a colour's code may stand before a path
    path = rf"{before}(?:({names})(/|(?![\w.-]))|{cells}/(?=ipykernel_\d))"

    def replace(match):
        new, slash = folders.get(match[2], ""), match[3] or ""
        return match[1] + (new + slash).removeprefix("./")

    def walk(value):
        if isinstance(value, dict):
            return type(value)({key: walk(part) for key, part in value.items()})
        if isinstance(value, list | tuple):
            return [walk(part) for part in value]
        return re.sub(path, replace, value) if isinstance(value, str) else value

    return walk(value)


def _moved_links(text, old, new, beside=()):
    """Markdown moved from one folder to another, its links to files with it.

    Notebooks whose copies lie in the new folder, too, or will (`beside`), are linked
    there.
    """

    def move(link):
        if link[1] in beside or (new / link[1]).is_file():
            return link[0]
        return "](" + Path(os.path.relpath(old / link[1], new)).as_posix()

    return re.sub(r"\]\(((?:\.\./|\w)[\w./-]*\.(?:ipynb|py|md))", move, text)


def _settings():
    """Return when, where and with what a run is made."""
    import torch  # seconds, wanted by runs only

    gpu = torch.cuda.is_available() and torch.cuda.get_device_name()
    mps = torch.backends.mps.is_available() and "mps"
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    commit = ""
    with suppress(OSError):  # no git
        text = {"encoding": "utf-8", "errors": "replace"}
        git = subprocess.run(command, capture_output=True, **text)
        commit = git.stdout.strip() if git.returncode == 0 else ""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "device": f"{gpu or mps or 'cpu'}, {os.cpu_count()} cores",
        "python": f"{sys.version.split()[0]} on {sys.platform}",
        "versions": {d.name: d.version for d in distributions() if d.name in VERSIONS},
        "commit": commit,
    }


def _hint(name, names, label="there are"):
    match = difflib.get_close_matches(str(name), list(names), 1)
    initials = {"".join(word[:1] for word in str(n).split("_")): n for n in names}
    if not match and name in initials:  # lr
        match = [initials[name]]
    meant = f"; did you mean {match[0]!r}?" if match else ""
    return f"{meant}; {label}: {', '.join(names) or 'none'}"


def run(
    notebooks: Sequence[str],
    name: str | None = None,
    *,
    sweep_files: Sequence[str | Path] = (),
    seeds: Sequence[int] = (),
    **given,
) -> Path:
    """Run or sweep notebooks, as the command line asks; return the page's path.

    Args: name: of the run, by default the time. sweep_files: parameter files, one run
        each. seeds: of the trainings, one run each. The others, and what is refused:
        see `run_notebooks`.
    """
    name = name or time.strftime("%Y-%m-%d_%H%M%S")
    if sweep_files or seeds:
        folder = sweep(notebooks, sweep_files, name, seeds=seeds, **given)
    else:
        folder = run_notebooks(notebooks, name, **given)
    return (folder / "index.html").relative_to(ROOT)
