"""A training's records for TensorBoard or W&B, by accelerate's trackers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
import torch
from accelerate import tracking

from ..networks import SDF_SCALE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from ..data.dataset import ShapeDataset

TRACKERS = {"tensorboard": tracking.TensorBoardTracker, "wandb": tracking.WandBTracker}
SHOWN = 4  # shapes whose maps stand in a strip
LIMIT = 0.02  # world units at which its colours end


def logged(
    records: Iterator[dict],
    model: nn.Module,
    dataset: ShapeDataset,
    folder: str | Path,
    kind: str = "",
) -> Iterator[dict]:
    """Pass a training's records on, and write them for a tracker: curves and maps.

    Args: records: of `train`; they are closed with this. model: that is trained.
        dataset: of whose first shapes the front maps are drawn at each checkpoint by
            `checkpoint_every`. folder: of the tracker's files.
        kind: "tensorboard" or "wandb", which has to be installed; "": none.
    Raises: ValueError: another kind. ModuleNotFoundError: it is not installed.
    """
    if kind and kind not in TRACKERS:
        raise ValueError(f"log is {' or '.join(TRACKERS)}, not {kind!r}")
    with closing(records):
        if not kind:
            yield from records
            return
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            place = "dir" if kind == "wandb" else "logging_dir"
            tracker = TRACKERS[kind](Path(folder).parent.name, **{place: str(folder)})
            tracker.start()
        except ModuleNotFoundError as error:
            wrong = f"log={kind!r} needs {kind}: pip install {kind}"
            raise ModuleNotFoundError(wrong) from error
        layout = {"dataformats": "NHWC"} if kind == "tensorboard" else {}
        try:
            for record in records:
                step = record["step"]
                tracker.log({k: v for k, v in record.items() if k != "step"}, step)
                if "validation" in record and hasattr(model, "displacement_decoder"):
                    strips = {"front map": front_maps(model, dataset)[None]}
                    tracker.log_images(strips, step, **layout)
                yield record
        finally:
            tracker.finish()


@torch.no_grad()
def front_maps(model: nn.Module, dataset: ShapeDataset) -> np.ndarray:
    """The pictures of some shapes over their front maps, red outward: (H, W, 3) f4."""
    training, device = model.training, next(model.parameters()).device
    images = [dataset[k]["image"] for k in range(min(SHOWN, len(dataset)))]
    model.eval()
    _, features = model.encode(torch.stack(images).to(device))
    maps = model.displacement_decoder(features)[:, 0].cpu().numpy() / SDF_SCALE
    model.train(training)
    # Outward is negative: it adds to a distance that is negative inside.
    colors = matplotlib.colormaps["RdBu"](0.5 + maps / (2 * LIMIT))[..., :3]
    pictures = torch.stack(images).permute(0, 2, 3, 1).numpy()
    return np.concatenate([np.concatenate([*x], 1) for x in (pictures, colors)])
