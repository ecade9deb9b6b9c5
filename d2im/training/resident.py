"""Training data kept whole on one device, and batches drawn there.

A GPU waits for files: at the released batch of 16 reading and drawing on the CPU take
longer than the step. Here all examples of a set are stacked once on the device, and a
batch is a few gathers and one race for the points (`sampling.weighted_draw`, whose
draw this is, with other random numbers).
"""

from __future__ import annotations

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.dataset import VIEW_TYPES, mirrored, recolored

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

    from torch import Tensor

    from ..data.dataset import ShapeDataset

# Added to a draw's number, those of its mirroring and colours.
MIRROR, RECOLOR = 1 << 20, 1 << 21
POINTS = "points", "sdf", "base_sdf", "weights", "gradients"


class ResidentShapes:
    """All examples of a ShapeDataset on a device, for batches without a loader.

    Args: dataset: ShapeDataset; every shape has as many points, and views of one size.
        device: of the batches. room: bytes that they may take.
    Raises: ValueError: the shapes differ in size, or do not fit.
    """

    def __init__(self, dataset, device="cpu", room=float("inf")):
        self.dataset, self.device = dataset, torch.device(device)
        first = dataset.example(0)
        counts = [dataset.view_count(index) for index in range(len(dataset))]
        self.views = torch.tensor(counts, device=self.device)
        self._demand_view(dataset)
        if dataset.knows_coarse():  # of some
            first = {"base_sdf": np.full_like(first["sdf"], np.nan)} | first
        members = {name: [name] for name in POINTS if name in first}
        for name in (*VIEW_TYPES, "camera"):
            members[name] = [f"{name}_{k}" for k in range(max(counts))]
        size = sum(first[own[0]].nbytes * len(own) for own in members.values())
        unlike, places = np.unique(dataset.first, return_inverse=True)
        self.places = torch.from_numpy(places).to(self.device)
        if size * len(unlike) > room:
            raise ValueError(
                f"{len(unlike)} shapes take {size * len(unlike) / 1e9:.1f} GB, more "
                f"than the {room / 1e9:.1f} GB there are: stream them with a loader"
            )
        self.tensors = {}
        for name, own in members.items():
            like = torch.from_numpy(first[own[0]])
            shape = len(unlike), len(own), *like.shape
            kind = torch.float32 if name == "camera" else like.dtype  # for MPS
            self.tensors[name] = torch.empty(shape, dtype=kind, device=device)
        read = _read_all(dataset, unlike.tolist())
        for place, (index, example) in enumerate(zip(unlike, read, strict=True)):
            for name, own in members.items():
                own = own[: counts[index]]  # of points there is one
                rows = self.tensors[name][place][: len(own)]
                for row, member in zip(rows, own, strict=True):
                    value = example.get(member)
                    if value is None and member == "base_sdf":  # not known
                        value = np.full(row.shape, np.nan, np.float32)
                    if value is None or value.shape != row.shape:
                        raise ValueError(
                            f"{dataset.rows[index]['id']} has no {member} of the first "
                            f"shape's {tuple(row.shape)}: stream them with a loader"
                        )
                    row.copy_(torch.from_numpy(value))
        for name in POINTS:  # there are no views of these
            if name in members:
                self.tensors[name] = self.tensors[name][:, 0]

    def drawn_as(self, dataset: ShapeDataset) -> Self:
        """The same tensors, drawn from as another ShapeDataset of the shapes says."""
        if [row["id"] for row in dataset.rows] != [r["id"] for r in self.dataset.rows]:
            raise ValueError(f"{dataset.folders} and the data on the device differ")
        self._demand_view(dataset)
        other = copy.copy(self)
        other.dataset = dataset
        return other

    def _demand_view(self, dataset):
        least = int(self.views.min())
        if dataset.view is not None and dataset.view >= least:
            wrong = f"a shape has {least} views, and no view {dataset.view}"
            raise ValueError(f"{', '.join(map(str, dataset.folders))}: {wrong}")

    def batch(self, keys: Sequence | Tensor) -> dict[str, Tensor]:
        """Draw one view and points of each shape, by (seed, index, draw) alone.

        Args: keys: (index, draw) pairs, B of them, or a tensor (B, 2) on the device.
        Returns: dict of tensors as ShapeDataset's items, stacked.
        """
        data, tensors = self.dataset, self.tensors
        keys = torch.as_tensor(keys, device=self.device)  # (B, 2)
        index, draw = keys.unbind(1)
        row = hashed(hashed(hashed(draw) + index) + data.seed)[:, None]  # (B, 1)
        view = hashed(row[:, 0]) % self.views[index]
        if data.view is not None:
            view = torch.full_like(index, data.view)
        index = self.places[index]
        place = torch.arange(1, tensors["sdf"].shape[1] + 1, device=self.device)
        # (B, P), uniform in (0, 1): as many bits as float32 holds
        share = ((hashed(hashed(row + hashed(place)) + row) >> 9) + 0.5) / 2**23
        clock = -torch.log1p(-share)
        if data.weighted:
            clock /= tensors["weights"][index]
        chosen = _race(clock, tensors["sdf"][index] < 0, data.points)  # (B, points)
        item = {}
        for name, tensor in tensors.items():
            if name in VIEW_TYPES or name == "camera":
                item[name] = tensor[index, view].float()
            elif name != "weights":
                item[name] = tensor[index[:, None], chosen].float()
        item.setdefault("base_sdf", torch.full_like(item["sdf"], torch.nan))
        item["image"] /= 255
        item["mask"] = item["mask"] > 0
        if data.mirror:
            item = mirrored(item, hashed(row[:, 0] + MIRROR) % 2 > 0)
        if data.recolor:
            number = RECOLOR + torch.arange(6, device=self.device)
            chance = (hashed(row + number) >> 8) / 2**24  # (B, 6)
            item["image"] = recolored(item["image"], chance)
        return item


def _read_all(dataset, indices):
    """Examples in turn, a few read ahead by threads."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as readers:
        for start in range(0, len(indices), 32):
            yield from readers.map(dataset.example, indices[start : start + 32])


def hashed(x: Tensor) -> Tensor:
    """Whole numbers (int64) -> as good as random ones in [0, 2^32), on any device.

    The numbers of a counter, hashed, are random without a generator's state (Salmon et
    al., SC 2011); here by two rounds of shift, exclusive or and product.
    """
    x = (x ^ (x >> 16)) * 0x7FEB352D & 0xFFFFFFFF
    x = (x ^ (x >> 15)) * 0x846CA68B & 0xFFFFFFFF
    return x ^ (x >> 16)


def _race(clock, inside, count):
    """The first of each side to come in, half of `count` each, (B, P) -> (B, count)."""
    first = {}
    for side in (True, False):
        late = clock.masked_fill(inside != side, torch.inf)
        first[side] = late.topk(min(count, clock.shape[1]), largest=False).indices
    n_in = inside.sum(1, keepdim=True)
    n_out = clock.shape[1] - n_in
    take_in = torch.minimum(n_in, (count - n_out).clamp(min=count // 2))
    # Where both sides together are too few, points repeat.
    place = torch.arange(count, device=clock.device) % clock.shape[1]  # (count,)
    place = place.expand(len(clock), -1)
    is_in = place < take_in
    last = first[True].shape[1] - 1
    from_in = first[True].gather(1, place.clamp(max=last))
    from_out = first[False].gather(1, (place - take_in).clamp(0, last))
    return torch.where(is_in, from_in, from_out)
