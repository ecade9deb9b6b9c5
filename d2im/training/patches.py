"""Patches of other pictures in training pictures, as paste-n-reconstruct makes them.

An edited picture shows what no object does: another's relief, colour and light on a
plain front. Where base and maps are taught apart (L_rel) its truth is known: the base
stays, and inside the patch the map is the other object's. As CutMix (Yun et al., ICCV
2019), with a target that moves along instead of being mixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from ..fields import sample_maps
from .resident import hashed

if TYPE_CHECKING:
    from torch import Tensor

SIDES = 0.08, 0.4  # of a patch, in sides of the picture
SCALES = 0.7, 1.4  # of a patch, and of its relief
BORDER = 0.08  # width of its soft border, in its own sides


class Patches(NamedTuple):
    """Where the patches are, and what they brought along."""

    weight: torch.Tensor  # (B, H, W): 1 inside, 0 outside, between at the border
    uv: torch.Tensor  # (B, P, 2): where the next picture's points came to lie
    scale: torch.Tensor  # (B, 1): of the patch's size and relief to the next picture's

    def at(self, uv: Tensor) -> Tensor:
        """The weight at uv (B, P, 2), bilinear like the maps; 0 outside the picture."""
        weight = sample_maps(self.weight[:, None], uv)[:, 0]
        return torch.where(uv.abs().amax(-1) <= 1, weight, 0.0)


def paste_patches(
    batch: dict[str, Tensor], uv: Tensor, chosen: Tensor, share: float
) -> tuple[dict[str, Tensor], Patches]:
    """Paste into some pictures a patch of the batch's next one, a ring.

    The patch's middle, a visible surface point, comes to lie on one of the picture's;
    only pixels of both objects change. All that is random is hashed from the points.

    Args: batch: items of ShapeDataset, collated. uv: (B, P, 2) of its points.
        chosen: (B, P) bool, those of the visible surface (`losses.visible_near`).
        share: of the pictures that get one, 0 to 1.
    Returns: the batch with other pictures, normals and depth, whose mask lacks the
        patches' borders; and Patches.
    """
    bits = batch["points"].contiguous().view(torch.int32).long()
    chance = (hashed(hashed(bits) + 1) >> 8) / 2**24  # (B, P, 3) in [0, 1)
    wide, high, scale, lot = chance[:, :2].flatten(1)[:, :4].split(1, 1)  # (B, 1)
    sides = SIDES[0] + (SIDES[1] - SIDES[0]) * torch.cat([wide, high], 1)[:, None]
    scale = SCALES[0] * (SCALES[1] / SCALES[0]) ** scale
    lot = torch.where(chosen.any(1, True) & chosen.roll(-1, 0).any(1, True), lot, 1.0)
    here = _one_of(uv, chosen, chance[..., 2])
    there = _one_of(uv, chosen, hashed(bits[..., 2])).roll(-1, 0)
    moved = here + scale[:, None] * (uv.roll(-1, 0) - there)

    size = batch["mask"].shape[1:]
    y, x = ((torch.arange(n, device=uv.device) + 0.5) * (2 / n) - 1 for n in size)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)  # (HW, 2)
    source = there + (grid - here) / scale[:, None]  # (B, HW, 2)
    names = "image", "normals", "depth", "mask"
    views = [batch[name].float().reshape(len(uv), -1, *size) for name in names]
    views = sample_maps(torch.cat(views, 1).roll(-1, 0), source).unflatten(2, size)
    image, normals, depth, mask = views.split([3, 3, 1, 1], 1)
    # From the patch's edge inward: 0 to 1, in units of the border's width.
    edge = (0.5 - ((grid - here) / (2 * sides)).abs().amax(-1)) / BORDER
    edge = edge.clamp(0, 1).unflatten(1, size)
    both = batch["mask"] & (mask[:, 0] > 0.999) & (lot < share)[..., None]
    both &= (source.abs() <= 1).all(-1).unflatten(1, size)
    weight = torch.where(both, edge**2 * (3 - 2 * edge), 0.0)
    image = torch.lerp(batch["image"], image, weight[:, None])
    normals = torch.where(weight[:, None] > 0.5, normals, batch["normals"])
    depth = torch.where(weight > 0.5, depth[:, 0], batch["depth"])
    # No Laplacian across the border: there the mask ends.
    low, high = (-F.max_pool2d(-weight, 3, 1, 1), F.max_pool2d(weight, 3, 1, 1))
    pasted = {"image": image, "normals": normals, "depth": depth}
    pasted["mask"] = batch["mask"] & (low == high)
    return batch | pasted, Patches(weight, moved, scale)


def _one_of(uv, chosen, chance):
    """One of the chosen points' uv, (B, 1, 2)."""
    first = torch.where(chosen, chance, -1).argmax(1)
    return uv[torch.arange(len(uv), device=uv.device), first][:, None]
