"""Batches from data on a device: the same data, the same draw as the loader's."""

import shutil

import numpy as np
import pytest
import torch

from d2im.data.dataset import (
    ShapeDataset,
    mirrored,
    read_example,
    smoke_set,
    write_example,
)
from d2im.training.resident import ResidentShapes, _race, hashed


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return smoke_set(tmp_path_factory.mktemp("resident"), size=32)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_batch_holds_what_the_examples_hold(data):
    dataset = ShapeDataset(data, None, points=256, view=1)
    batch = ResidentShapes(dataset).batch([(2, 0), (0, 7)])
    expected = dataset[2]
    assert set(batch) == set(expected)
    for name in ("image", "mask", "normals", "depth", "camera"):
        torch.testing.assert_close(batch[name][0], expected[name])
    for row, index in enumerate([2, 0]):
        example = dataset.example(index)
        place = {tuple(p): k for k, p in enumerate(example["points"])}
        found = [place[tuple(p)] for p in batch["points"][row].numpy()]
        assert len(set(found)) == 256
        for name in ("sdf", "base_sdf", "gradients"):
            np.testing.assert_array_equal(batch[name][row], example[name][found])
    assert (batch["sdf"][:, :128] < 0).all() and (batch["sdf"][:, 128:] >= 0).all()


def test_a_coarse_body_that_no_shape_knows_takes_no_room(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    for path in folder.glob("*.npz"):
        example = read_example(path)
        del example["base_sdf"]
        write_example(path, example)
    dataset = ShapeDataset(folder, None, points=64)
    resident = ResidentShapes(dataset)
    assert "base_sdf" not in resident.tensors
    batch = resident.batch([(0, 0)])
    assert set(batch) == set(dataset[0]) and batch["base_sdf"].isnan().all()


def test_a_folder_named_twice_is_held_once_and_drawn_as_two_are(data, tmp_path):
    copy, settings = shutil.copytree(data, tmp_path / "data"), {"points": 64}
    twice, two = (
        ResidentShapes(ShapeDataset([data, other], None, **settings))
        for other in (data, copy)
    )
    count = len(two.dataset)
    assert len(two.tensors["sdf"]) == count == 2 * len(twice.tensors["sdf"])
    keys = [(index, 0) for index in range(count)]
    for name, value in two.batch(keys).items():
        assert torch.equal(twice.batch(keys)[name], value), name


def test_an_item_depends_on_its_key_and_not_on_its_batch(data):
    resident = ResidentShapes(ShapeDataset(data, None, points=64))
    keys = [(0, draw) for draw in range(16)]
    together = resident.batch(keys)
    alone = resident.batch(keys[5:6])
    for name in together:
        assert torch.equal(together[name][5:6], alone[name])
    assert len(together["camera"].unique(dim=0)) == 2
    assert not torch.equal(together["points"][0], together["points"][1])


def test_half_of_a_batch_is_mirrored_where_asked(data):
    plain, both = (
        ResidentShapes(ShapeDataset(data, None, points=64, mirror=mirror))
        for mirror in (False, True)
    )
    keys = [(0, draw) for draw in range(40)]
    first, second = plain.batch(keys), both.batch(keys)
    turned = (first["points"] != second["points"]).any(-1).any(-1)
    wanted = mirrored(first, turned)
    assert all(torch.equal(second[name], wanted[name]) for name in wanted)
    assert 10 < turned.sum() < 30


def test_colors_of_a_batch_are_changed_where_asked(data):
    plain, other = (
        ResidentShapes(ShapeDataset(data, None, points=64, recolor=recolor))
        for recolor in (False, True)
    )
    keys = [(0, draw) for draw in range(8)]
    first, second = plain.batch(keys), other.batch(keys)
    assert all(torch.equal(first[k], second[k]) for k in first if k != "image")
    changed = (first["image"] - second["image"]).abs().flatten(1).amax(1)
    assert (changed > 0.02).all()
    assert torch.equal(second["image"][3:4], other.batch(keys[3:4])["image"])


def test_a_shape_with_fewer_views_is_drawn_from_those_it_has(data, tmp_path):
    folder = shutil.copytree(data, tmp_path / "data")
    dataset = ShapeDataset(folder, None, points=64)
    path = folder / f"{dataset.rows[1]['id']}.npz"
    example = read_example(path)
    fewer = {name: a for name, a in example.items() if not name.endswith("_1")}
    write_example(path, fewer)
    resident = ResidentShapes(dataset)
    keys = [(index, draw) for index in (1, 2) for draw in range(16)]
    cameras = resident.batch(keys)["camera"]
    assert torch.equal(cameras[:16], cameras[:1].expand(16, -1)) and cameras[0].any()
    whole = ResidentShapes(ShapeDataset(data, None, points=64)).batch(keys[16:])
    for name, value in resident.batch(keys[16:]).items():
        assert torch.equal(value, whole[name])
    with pytest.raises(ValueError, match="data: a shape has 1 views, and no view 1"):
        resident.drawn_as(ShapeDataset(folder, None, view=1))


def test_hashed_counters_are_as_good_as_random():
    # rows and places are both counters, as in a batch
    rows, places = hashed(torch.arange(300))[:, None], hashed(torch.arange(2000))
    share = (hashed(hashed(rows + places) + rows) / 2**32).numpy()  # (300, 2000)
    counts = np.histogram(share, 100, (0, 1))[0]
    chi2 = ((counts - share.size / 100) ** 2 / (share.size / 100)).sum()
    assert 60 < chi2 < 145  # 99 degrees of freedom: beyond it one in 1000
    for one, other in ((share[1:], share[:-1]), (share[:, 1:], share[:, :-1])):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.005
    bits = hashed(torch.arange(2000)) ^ hashed(torch.arange(2000) ^ 1)
    flipped = sum(((bits >> k) & 1).float().mean() for k in range(32)) / 32
    assert abs(flipped - 0.5) < 0.01  # one bit in changes half of those out


def test_data_on_a_device_serve_several_trainings(data):
    resident = ResidentShapes(ShapeDataset(data, None, points=64))
    other = ShapeDataset(data, None, points=32, weighted=False, seed=1, view=1)
    keys = [(0, 0), (3, 1)]
    shared, own = resident.drawn_as(other), ResidentShapes(other)
    for name, value in own.batch(keys).items():
        assert torch.equal(shared.batch(keys)[name], value)
    assert resident.batch(keys)["sdf"].shape == (2, 64)
    fewer = ShapeDataset(data, None)
    fewer.rows = fewer.rows[1:]
    with pytest.raises(ValueError, match="differ"):
        resident.drawn_as(fewer)


def test_light_points_are_drawn_by_their_weight():
    weights = torch.tensor([1.0, 2.0, 4.0, 1.0, 2.0, 4.0])
    inside = torch.tensor([True] * 3 + [False] * 3).expand(20_000, -1)
    clock = torch.empty(inside.shape).exponential_(generator=generator()) / weights
    chosen = _race(clock, inside, 2)
    share = torch.bincount(chosen[:, 0], minlength=3)[:3] / 20_000
    np.testing.assert_allclose(share, np.array([1, 2, 4]) / 7, atol=0.012)
    assert (chosen[:, 1] > 2).all()


@pytest.mark.parametrize("n_inside", [0, 3, 20, 37, 40])
def test_lopsided_shapes_fill_up_from_the_other_side(n_inside):
    inside = torch.arange(40)[None] < n_inside
    clock = torch.empty(1, 40).exponential_(generator=generator())
    chosen = _race(clock, inside, 30)[0]
    assert len(chosen.unique()) == 30
    expected = min(n_inside, max(15, 30 - (40 - n_inside)))
    assert (chosen < n_inside).sum() == expected


def test_too_few_points_repeat():
    chosen = _race(torch.rand(1, 5), torch.tensor([[True] * 2 + [False] * 3]), 12)[0]
    assert sorted(chosen.unique().tolist()) == [0, 1, 2, 3, 4]


def test_shapes_that_do_not_fit_are_refused(data):
    with pytest.raises(ValueError, match="stream them"):
        ResidentShapes(ShapeDataset(data, None), room=1000)
