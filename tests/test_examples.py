"""The scripts of examples/ run as they stand, in any folder."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh
from PIL import Image, ImageDraw

from d2im.data.dataset import read_index

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(tmp_path):
    """Run an example as it stands in an empty folder, warnings being errors."""

    def run(name):
        command = [sys.executable, "-W", "error", ROOT / "examples" / name]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path, env=environment, check=True)
        return tmp_path

    return run


@pytest.fixture
def run_with(tmp_path, monkeypatch):
    """Run an example with an argument, in this process: imports take seconds."""

    def run(name, argument):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, argument])
        runpy.run_path(ROOT / "examples" / name)
        return tmp_path

    return run


def test_a_rendered_chair_becomes_a_mesh(run):
    mesh = trimesh.load_mesh(run("picture_to_mesh.py") / "object.glb")
    assert len(mesh.faces) > 1000
    assert np.linalg.norm(mesh.vertices, axis=1).max() < 0.6  # world units


def test_a_picture_of_ones_own_becomes_a_mesh(run_with, tmp_path):
    picture = Image.new("RGB", (200, 200), "white")
    ImageDraw.Draw(picture).rounded_rectangle((60, 40, 140, 160), 12, (150, 90, 60))
    picture.save(tmp_path / "mine.png")
    mesh = trimesh.load_mesh(run_with("picture_to_mesh.py", "mine.png") / "object.glb")
    assert len(mesh.faces) > 100
    with pytest.raises(FileNotFoundError):
        run_with("picture_to_mesh.py", "none.png")


def test_two_bodies_become_examples(run):
    rows = read_index(run("meshes_to_data.py") / "my_examples")
    assert [(row["id"], row["status"]) for row in rows] == [
        ("box", "ok"),
        ("ring", "ok"),
    ]


def test_a_folder_of_ones_own_becomes_examples(run_with, tmp_path):
    (tmp_path / "own").mkdir()
    trimesh.creation.icosphere().export(tmp_path / "own" / "ball.obj")
    rows = read_index(run_with("meshes_to_data.py", "own") / "my_examples")
    assert [(row["id"], row["status"]) for row in rows] == [("ball", "ok")]


def test_a_field_becomes_a_closed_mesh(run):
    mesh = trimesh.load_mesh(run("field_to_mesh.py") / "object.ply")
    assert mesh.is_watertight
    assert abs(np.linalg.norm(mesh.vertices, axis=1).mean() - 0.4) < 0.01
