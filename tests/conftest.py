"""What several tests share: a generator, a tiny data set and a tiny model."""

import numpy as np
import pytest
import torch
import trimesh

from d2im.data.dataset import INDEX_COLUMNS, make_example, write_example, write_index
from d2im.networks import D2IMNet

TINY = {
    "image_size": 32,
    "encoder_widths": (4, 4, 8, 8, 8),
    "encoder_blocks": (1, 1, 1, 1),
    "hidden_size": 16,
    "code_size": 8,
    "decoder_widths": (32, 16, 16, 8),
    "displacement_channels": 4,
    "mixing": False,
}


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tiny_model():
    torch.manual_seed(0)
    return D2IMNet(**TINY)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """Three balls, two views each at 32 px."""
    folder = tmp_path_factory.mktemp("tiny")
    rows = []
    for k, radius in enumerate((0.3, 0.4, 0.5)):
        ball = trimesh.creation.icosphere(subdivisions=3, radius=radius)
        example = make_example(
            ball, ball, np.random.default_rng(k), count=4000, views=2, size=32
        )
        write_example(folder / f"ball-{k}.npz", example)
        row = dict.fromkeys(INDEX_COLUMNS, "")
        rows.append({**row, "id": f"ball-{k}", "split": "train", "status": "ok"})
    write_index(folder, rows)
    return folder
