"""What an installation holds: pip's and conda's agree, and importing d2im is free."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import d2im
from d2im.evaluate import decomposition
from d2im.training import objectives

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
EXTRA = {p for own in EXTRAS.values() for p in own if not p.startswith("d2im[")}
RARE = {"playwright", "onnxruntime", "rembg"}  # browser tests, photos on anything
DIRECT = {*PROJECT["dependencies"], *EXTRA} - RARE
PINS = (ROOT / "constraints.txt").read_text().splitlines()


def conda_environment():
    text = (ROOT / "environment.yml").read_text()
    python, _, pip = yaml.safe_load(text)["dependencies"]
    return text, python, pip["pip"]


def test_conda_users_get_the_packages_of_pip_users():
    _, _, lines = conda_environment()
    assert {line for line in lines if not line.startswith("-")} == DIRECT


def test_conda_users_get_the_project_itself_at_the_same_versions():
    _, _, lines = conda_environment()
    assert [x for x in lines if x.startswith("-")] == ["-c constraints.txt", "-e ."]


def test_conda_and_pip_accept_the_same_pythons():
    _, python, _ = conda_environment()
    assert python == f"python {PROJECT['requires-python']}"


def test_each_package_has_its_reason():
    text, _, lines = conda_environment()
    for package in DIRECT & set(lines):
        assert re.search(rf"^ +- {package}  # \w.+", text, re.MULTILINE), package


def test_each_direct_package_is_pinned():
    pins = {line.split("==")[0].lower() for line in PINS}
    assert DIRECT | RARE <= pins


def test_a_pin_names_one_public_version():
    pattern = r"[\w.-]+==[\w.]+(; python_full_version [<>]=? \"[\d.]+\")?"
    pins = [line for line in PINS if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(pattern, line)] == []


def test_the_library_imports_only_declared_packages():
    declared = {*PROJECT["dependencies"]}
    for extra in ("data", "notebooks", "disn", "draco", "imagenet", "makers", "photos"):
        declared |= {*EXTRAS[extra]}
    owners = packages_distributions()
    undeclared = set()
    for path in (ROOT / "d2im").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            for top in {name.split(".")[0] for name in names}:
                owner = {o.lower() for o in owners.get(top, [top])}
                if top not in sys.stdlib_module_names and not owner & declared:
                    undeclared.add(f"{path.name}: {top}")
    assert undeclared == set()


def test_importing_the_package_imports_nothing_heavy():
    heavy = ["torch", "igl", "trimesh", "numpy", "manifold3d", "embreex", "matplotlib"]
    code = f"import sys, d2im; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert done.stdout.decode().strip() == "[]"


def test_the_package_lists_what_it_gives():
    assert {"make_shape", "D2IMNet", "metrics", "__version__"} <= set(dir(d2im))


def test_an_unknown_name_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="'d2im' has no attribute 'make_shap'"):
        _ = d2im.make_shap


# All that the package gave when its modules stood in one folder.
FACE = """DISN CameraNet Camera D2IMNet IMNet ImageModel Reconstruction SDFSamples Shape
ShapeDataset View benchmark camera check_yaw checkpoints cubes dataset distributed
editing extract_mesh fields isolation load_imagenet_weights load_mesh
load_released_checkpoint losses make_shape mesh meshing metrics networks pictures plots
prepare read_disn read_occnet readers reconstruct reconstruction released render
rendering resident run sample_sdf sampling shapes solids split_pairs train training
widgets write_set""".split()


@pytest.mark.parametrize("name", FACE)
def test_each_name_of_the_package_comes_from_its_module(name):
    value = getattr(d2im, name)
    assert getattr(value, "__module__", value.__name__).startswith("d2im.")


@pytest.mark.parametrize("old", d2im.MOVED)
def test_a_module_is_the_same_under_its_old_name(old):
    assert import_module(f"d2im.{old}") is import_module(f"d2im.{d2im.MOVED[old]}")


def test_the_loops_names_are_the_training_packages():
    assert d2im.training.train is d2im.train
    assert d2im.training.batch_losses is objectives.batch_losses
    assert d2im.metrics.disentanglement is decomposition.disentanglement


@pytest.fixture
def copy(tmp_path):
    """The files that a set-up reads, away from this environment."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def failed_set_up(folder, *arguments, **environment):
    done = subprocess.run(
        ["make", "setup", *arguments],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert not (folder / ".venv" / ".ready").exists()
    return done.stderr


def test_a_set_up_without_a_fitting_python_says_what_to_do(copy):
    message = failed_set_up(copy, "PYTHON=false")
    assert "no Python 3.11 to 3.13" in message and "make PYTHON=" in message


def test_a_set_up_without_network_says_what_to_do(copy):
    nowhere = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    message = failed_set_up(copy, f"PYTHON={sys.executable}", **nowhere)
    assert "Is there a network" in message and "run make again" in message
    assert (copy / ".venv" / "setup.log").stat().st_size > 0


@pytest.mark.skipif(not shutil.which("micromamba"), reason="micromamba not installed")
def test_conda_makes_the_environment(tmp_path):
    prefix = tmp_path / "environment"
    create = ["micromamba", "create", "--yes", "--prefix", prefix, "--file"]
    subprocess.run([*create, ROOT / "environment.yml"], check=True)
    code = "import d2im; d2im.make_shape"
    subprocess.run([prefix / "bin" / "python", "-c", code], check=True, cwd=tmp_path)


def test_a_model_at_work_and_a_training_need_the_core_alone():
    extras = "igl embreex manifold3d joblib k3d papermill nbformat jinja2 IPython"
    work = "use.reconstruction use.editing surface.extract training.loop show.plots"
    code = f"import sys\nfor name in {extras.split()}: sys.modules[name] = None\n"
    code += "".join(f"import d2im.{part}\n" for part in work.split())
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
