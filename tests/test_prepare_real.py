"""Real models, where they are at hand: every one becomes an example."""

from pathlib import Path

import numpy as np
import pytest

from d2im.camera import Camera
from d2im.data.dataset import prepare, read_example, read_index

FOLDER = Path(__file__).parents[2] / "shared" / "meshes"
MODELS = sorted(path.stem for path in FOLDER.glob("*.glb"))
pytestmark = pytest.mark.skipif(not MODELS, reason=f"no models in {FOLDER}")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("real")
    return out, prepare(FOLDER, out, count=3000, views=1, size=64, progress=False)


def test_every_model_is_in_the_index_and_none_failed(prepared):
    out, rows = prepared
    assert [row["id"] for row in rows] == MODELS
    assert {row["id"]: row["reason"] for row in rows if row["status"] != "ok"} == {}
    assert [row["id"] for row in read_index(out)] == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_a_models_example_is_finite_with_both_signs_and_a_picture(prepared, name):
    example = read_example(prepared[0] / f"{name}.npz")
    numbers = {name: values for name, values in example.items() if name != "row"}
    assert all(np.isfinite(values).all() for values in numbers.values())
    assert 100 < (example["sdf"] < 0).sum() < 2900
    gradients = example["gradients"].astype(float)
    assert np.allclose(np.linalg.norm(gradients, axis=1), 1, atol=2e-3)
    mask, image = example["mask_0"] > 0, example["image_0"]
    assert 0.02 < mask.mean() < 0.9
    # Neither black nor as white as the background, and shaded.
    assert 50 < image[:, mask].mean() < 220 and image[:, mask].std() > 5


@pytest.mark.parametrize("name", MODELS)
def test_a_models_inside_points_fall_into_its_picture(prepared, name):
    example = read_example(prepared[0] / f"{name}.npz")
    inside = example["points"][example["sdf"] < 0]
    uv, _ = Camera.from_array(example["camera_0"]).project(inside)
    column, row = ((uv + 1) * 32).astype(int).clip(0, 63).T
    # Strings and rods are thinner than a pixel: look one pixel further.
    mask = np.pad(example["mask_0"] > 0, 1)
    near = [mask[row + i, column + j] for i in range(3) for j in range(3)]
    assert np.any(near, axis=0).mean() > 0.9
