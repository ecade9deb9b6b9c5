"""What each model learns: the loss terms of a batch, unweighted.

Fields and maps are compared times SDF_SCALE, but for L_lap, which takes displacement in
world units (the released code's 49/2 is 245/10).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from .. import losses
from ..camera import project
from ..fields import displaced_sdf, sample_maps
from ..laplacian import laplacian_maps
from ..networks import DISN, SDF_SCALE, CameraNet, D2IMNet
from .distributed import shared_mean
from .patches import paste_patches

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..networks import IMNet
    from .loop import TrainingConfig
    from .patches import Patches

NO_COARSE = (
    "L_rel needs the coarse body, which only our shapes have, and meshes that were "
    "prepared with coarse='levels'"
)
DISN_NEAR = 0.01  # world units: nearer points weigh more in DISN's loss


class Sight(NamedTuple):
    """How a batch's points stand in their pictures."""

    uv: torch.Tensor  # (B, P, 2)
    front: torch.Tensor  # (B, P) bool: p in P_F
    visible: torch.Tensor  # (B, P) bool, see `losses.visible_near`


def batch_losses(
    model: nn.Module, batch: dict[str, Tensor], config: TrainingConfig
) -> dict[str, Tensor]:
    """The loss terms of one batch, unweighted.

    Args: model: D2IMNet, IMNet, DISN or CameraNet. config: TrainingConfig.
        batch: collated items of ShapeDataset on the model's device.
    Returns: dict of scalars, the terms of the model's function below.
    Raises: ValueError: L_rel is wanted of shapes whose coarse body is not known.
    """
    if isinstance(model, CameraNet):
        return camera_losses(model, batch)
    if isinstance(model, DISN):
        return disn_losses(model, batch)
    if isinstance(model, D2IMNet):
        return d2im_losses(model, batch, config)
    return imnet_losses(model, batch, config)


def camera_losses(model: CameraNet, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a CameraNet: camera."""
    found = model(batch["image"]).float()
    with _exact(found):
        return {"camera": losses.camera_loss(found, batch["camera"], batch["points"])}


def imnet_losses(
    model: IMNet, batch: dict[str, Tensor], config: TrainingConfig
) -> dict[str, Tensor]:
    """Of an IMNet: base."""
    code, _ = model.encode(batch["image"])
    base = model.base_decoder(code, batch["points"])
    sdf = batch["sdf"] * SDF_SCALE
    return {"base": losses.base_loss(base, sdf, config.base_quantile)}


def disn_losses(model: DISN, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a DISN: sdf."""
    points, sdf = batch["points"], batch["sdf"]
    uv, _ = project(points, batch["camera"])
    field = model.decode(*model.encode(batch["image"]), points, uv)
    near = sdf.abs() < DISN_NEAR
    return {"sdf": losses.near_loss(field, sdf * SDF_SCALE, near)}


def d2im_losses(
    model: D2IMNet, batch: dict[str, Tensor], config: TrainingConfig
) -> dict[str, Tensor]:
    """Of a D2IMNet: base and laplacian, with `field_terms` or `relief_terms` between.

    A share of the pictures get a patch of the next one, where `patch_share` says so.
    Where `learn` names the base or the maps, the other's terms are left out.
    """
    if config.learn == "base":
        code, _ = model.encode(batch["image"], "base", batch["mask"])
        uv, _ = project(batch["points"], batch["camera"])
        base = model.base(code, batch["points"], uv)
        body = batch["sdf"]
        if config.relief_weight:
            body = torch.where(batch["base_sdf"].isnan(), body, batch["base_sdf"])
        body = body * SDF_SCALE
        return {"base": losses.base_loss(base, body, config.base_quantile)}
    sight, patches = _sight(batch), None
    silhouette = batch["mask"]  # pasting takes a patch's border out of it, for L_lap
    if config.patch_share:
        with _exact(sight.uv):
            pasted = paste_patches(batch, sight.uv, sight.visible, config.patch_share)
        batch, patches = pasted
    code, features = model.encode(batch["image"], config.learn, silhouette)
    base = None
    if config.learn == "all":
        base = model.base(code, batch["points"], sight.uv)  # (B, P), scaled
    # (B, 2, H, W), scaled; differences of neighbours need more than half precision
    displacement = model.displacement_decoder(features).float()
    if config.relief_weight:
        terms = relief_terms(base, displacement, batch, sight, config, patches)
    else:
        terms = field_terms(base, displacement, batch, sight, config)
    maps = laplacian_maps(displacement[:, 0] / SDF_SCALE, batch, config.laplacian_form)
    terms["laplacian"] = losses.laplacian_loss(
        *maps, sight.uv, sight.visible, shared_mean
    )
    return terms


def field_terms(
    base: Tensor,
    displacement: Tensor,
    batch: dict[str, Tensor],
    sight: Sight,
    config: TrainingConfig,
) -> dict[str, Tensor]:
    """The paper's: base, f_B against F; sdf, f against F; visible if it has a weight.

    Args: base: f_B, (B, P), scaled. displacement: (B, 2, H, W), scaled. sight: Sight.
    """
    sdf = batch["sdf"] * SDF_SCALE
    displaced = displaced_sdf(base, displacement, sight.uv, sight.front)
    terms = {"base": losses.base_loss(base, sdf, config.base_quantile)}
    terms["sdf"] = losses.sdf_loss(displaced, sdf)
    if config.visible_weight:  # for the maps: the base would go flat at the surface
        fixed = displaced - base + base.detach()
        terms["visible"] = losses.visible_loss(fixed, sdf, sight.visible, shared_mean)
    return terms


def relief_terms(
    base: Tensor | None,
    displacement: Tensor,
    batch: dict[str, Tensor],
    sight: Sight,
    config: TrainingConfig,
    patches: Patches | None = None,
) -> dict[str, Tensor]:
    """Ours, F_coarse known: base, f_B against it; relief, f_D against F - F_coarse.

    Of shapes where it is not known (NaN): base, f_B against F; sdf, f against F.

    Args: see `field_terms`, but without a base there are its terms neither. patches:
        Patches that the pictures got, or None.
    """
    if "base_sdf" not in batch:
        raise ValueError(NO_COARSE)
    sdf, coarse = batch["sdf"] * SDF_SCALE, batch["base_sdf"] * SDF_SCALE
    known = ~coarse.isnan()
    coarse = torch.where(known, coarse, sdf)
    relief = sdf - coarse  # (B, P)
    found = displaced_sdf(torch.zeros_like(sdf), displacement, sight.uv, sight.front)
    terms = {}
    if base is not None:
        terms["base"] = losses.base_loss(base, coarse, config.base_quantile)
        # Shapes whose coarse body nobody knows learn by the paper's losses.
        terms["sdf"] = shared_mean((base + found - sdf).abs(), ~known)
    back = ~sight.front & known & (batch["sdf"].abs() < losses.DELTA)
    # Two means: the unseen back has more points, and less to learn.
    term = losses.relief_loss(found, relief, back, shared_mean)
    seen = sight.visible & known
    if patches:  # inside one the next picture's points are the truth
        brought = sample_maps(displacement[:, :1], patches.uv)[:, 0]
        kept = seen & (patches.at(sight.uv) == 0)
        there = seen.roll(-1, 0) & (patches.at(patches.uv) > 0.999)
        seen, found = torch.cat([kept, there], 1), torch.cat([found, brought], 1)
        relief = torch.cat([relief, patches.scale * relief.roll(-1, 0)], 1)
    term = term + losses.relief_loss(found, relief, seen, shared_mean)
    return terms | {"relief": term}


def _sight(batch):
    points, cameras = batch["points"], batch["camera"]
    uv, camera_points = project(points, cameras)
    # P_F: the true SDF falls along the camera's z axis (third row of the rotation)
    front = (batch["gradients"] * cameras[:, None, 6:9]).sum(-1) < 0
    visible = losses.visible_near(
        uv, camera_points[..., 2], front, batch["sdf"], batch["mask"], batch["depth"]
    )
    return Sight(uv, front, visible)


def _exact(tensor):
    """No half precision: its 8 bits miss the pixel."""
    return torch.autocast(tensor.device.type, enabled=False)
