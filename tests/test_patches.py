import pytest
import torch

from d2im.fields import sample_maps
from d2im.laplacian import divergence, gradient, stencil_mask
from d2im.losses import pixel_index
from d2im.training.patches import SCALES, SIDES, paste_patches

SIZE, POINTS = 64, 500


def discs(size=SIZE, reach=(0.9, 0.7)):
    """Two discs that differ in size, each with colours and normals linear in uv."""
    rng = torch.Generator().manual_seed(3)
    line = (torch.arange(size) + 0.5) * (2 / size) - 1
    x, y = line.expand(size, -1), line[:, None].expand(-1, size)
    reach = torch.tensor(reach)[:, None, None]
    slopes = torch.rand(2, 3, 2, 1, 1, generator=rng) / 5
    image = 0.5 + slopes[:, :, 0] * x + slopes[:, :, 1] * y
    views = {"image": image, "normals": 10 * image, "mask": x**2 + y**2 < reach**2}
    views["depth"] = torch.tensor([1.5, 2.0])[:, None, None].expand(-1, size, size)
    points = torch.rand(2, POINTS, 3, generator=rng) - 0.5
    uv = torch.rand(2, POINTS, 2, generator=rng) * 2 - 1
    index, _ = pixel_index(uv, size, size)
    chosen = views["mask"].flatten(1).gather(1, index)
    return views | {"points": points}, uv, chosen


@pytest.fixture
def batch():
    return discs()


def test_without_a_share_nothing_is_pasted(batch):
    views, uv, chosen = batch
    same, patches = paste_patches(*batch, 0.0)
    assert (patches.weight == 0).all() and (patches.at(uv) == 0).all()
    for name, value in views.items():
        assert torch.equal(same[name], value), name
    # nor where one of the two pictures shows no surface
    _, patches = paste_patches(views, uv, chosen & torch.tensor([[True], [False]]), 1)
    assert (patches.weight == 0).all()


def test_the_points_of_a_patch_move_with_its_picture(batch):
    views, uv, chosen = batch
    pasted, patches = paste_patches(*batch, 1.0)
    there = chosen.roll(-1, 0) & (patches.at(patches.uv) > 0.999)
    assert there.sum(1).min() > 5
    for name, atol in (("image", 1e-5), ("normals", 1e-4)):
        was = sample_maps(views[name], uv).roll(-1, 0)  # the next picture's, at its own
        now = sample_maps(pasted[name], patches.uv)
        # one pixel from the border the lookup is not yet mixed with the other picture
        inner = patches.weight[:, None] == 1
        inner = -torch.nn.functional.max_pool2d(-inner.float(), 3, 1, 1)[:, 0]
        index, _ = pixel_index(patches.uv, SIZE, SIZE)
        inner = there & (inner.flatten(1).gather(1, index) == 1)
        assert inner.sum() > 5
        error = (now - was).abs().amax(1)[inner]
        assert error.max() < atol, name
    assert (patches.scale >= SCALES[0]).all() and (patches.scale <= SCALES[1]).all()
    assert patches.scale[0] != patches.scale[1]


def test_a_patch_has_the_divergence_of_its_normals(batch):
    """Sampled at the nearest pixel, normals would have steps where they have slopes."""
    views, *_ = batch
    pasted, patches = paste_patches(*batch, 1.0)
    inner = -torch.nn.functional.max_pool2d(-(patches.weight == 1).float(), 3, 1, 1) > 0
    now, was = (divergence(v["normals"][:, :2]) for v in (pasted, views))
    own = was[:, SIZE // 2, SIZE // 2, None].roll(-1, 0) / patches.scale  # all alike
    for found, wanted, where in zip(now, own, inner, strict=True):
        assert where.sum() > 5
        torch.testing.assert_close(
            found[where], wanted.expand(where.sum()), atol=1e-4, rtol=0
        )


def test_outside_its_patch_a_picture_stays(batch):
    views, *_ = batch
    pasted, patches = paste_patches(*batch, 1.0)
    free = patches.weight == 0
    assert (~free & ~views["mask"]).sum() == 0  # nothing is pasted beside the object
    for name in ("image", "normals"):
        changed = (pasted[name] != views[name]).any(1)
        assert not (changed & free).any()
    # The depth tells whose surface a pixel is.
    other = (pasted["depth"] - views["depth"].roll(-1, 0))[patches.weight > 0.5]
    assert other.abs().max() < 1e-5
    assert (pasted["depth"] == views["depth"])[free].all()
    rows = (patches.weight > 0).any(2).sum(1) / SIZE
    columns = (patches.weight > 0).any(1).sum(1) / SIZE
    for side in (rows, columns):
        assert (side > 0).all() and (side <= SIDES[1] + 2 / SIZE).all()


def test_a_patchs_weight_rises_steepest_in_the_middle_of_its_border():
    _, patches = paste_patches(*discs(512, (2.0, 2.0)), 1.0)
    for weight in patches.weight:
        row = weight[weight.sum(1).argmax()]
        rise = row[: row.argmax() + 1].diff()
        rise = rise[rise > 0]
        assert len(rise) > 5 and max(rise[1], rise[-2]) < 0.6 * rise.max()


def test_nothing_is_pasted_from_beyond_the_other_picture():
    views, uv, chosen = discs(reach=(2.0, 2.0))  # their objects fill the pictures
    rng = torch.Generator().manual_seed(0)
    for _ in range(10):
        views["points"] = torch.rand(2, POINTS, 3, generator=rng) - 0.5
        pasted, patches = paste_patches(views, uv, chosen, 1.0)
        # Away from patches' ends colours change as in the picture where they are from.
        inner = -torch.nn.functional.max_pool2d(-(patches.weight == 1).float(), 5, 1, 2)
        now, was = (gradient(v["image"][:, 0]) for v in (pasted, views))
        own = was[:, :, SIZE // 2, SIZE // 2].roll(-1, 0) / patches.scale
        error = (now - own[:, :, None, None]).abs().amax(1)
        away = (slice(None), *[slice(1, -1)] * 2)  # from the picture's own edge, too
        assert error[away][inner[away] > 0].max() < 1e-4


def test_no_laplacian_is_taken_across_the_border(batch):
    views, *_ = batch
    pasted, patches = paste_patches(*batch, 1.0)
    valid = stencil_mask(pasted["mask"], torch.zeros_like(pasted["depth"]))
    across = (gradient(patches.weight) != 0).any(1)
    assert (across & views["mask"]).any() and not (across & valid).any()
    assert (valid & (patches.weight == 1)).any() and (valid & ~across).any()


def test_what_is_pasted_follows_from_the_points(batch):
    views, uv, chosen = batch
    first, second = (paste_patches(*batch, 0.5)[1] for _ in range(2))
    assert all(map(torch.equal, first, second))
    other = views | {"points": views["points"] + 1e-3}
    assert not torch.equal(paste_patches(other, uv, chosen, 1.0)[1].uv, first.uv)
    many = {
        name: value.repeat(200, *[1] * (value.ndim - 1))
        for name, value in views.items()
    }
    many["points"] = torch.rand(
        400, POINTS, 3, generator=torch.Generator().manual_seed(0)
    )
    _, patches = paste_patches(many, uv.repeat(200, 1, 1), chosen.repeat(200, 1), 0.3)
    share = (patches.weight > 0).flatten(1).any(1).float().mean()
    assert abs(share - 0.3) < 0.08
