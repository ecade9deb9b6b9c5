"""What several training processes share, so that they equal one with their batches.

Each process takes its part of a batch. Batch norms and gradients are those of the whole
batch; `torchrun` or accelerate's `notebook_launcher` starts the processes.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import nn

from ..losses import chosen_mean

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor


def process_count() -> int:
    """How many processes train together; 1 outside torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


@atexit.register  # else the group's threads now and then abort Python's end
def _leave_group():
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


class _Sum(torch.autograd.Function):
    """The sum of the processes' tensors; gradients are summed, too."""

    @staticmethod
    def forward(ctx, tensor):
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)


def mean_over_processes(tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes; gradients flow through it."""
    if process_count() == 1:
        return tensor
    return _Sum.apply(tensor) / process_count()


def shared_mean(error: Tensor, chosen: Tensor) -> Tensor:
    """A part of the mean over all processes' chosen points: the parts' mean is it."""
    count = chosen.sum().float()
    share = count / mean_over_processes(count).clamp(min=1e-6)
    return chosen_mean(error, chosen) * share


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace the gradients by their mean over the processes, in one message."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if process_count() == 1 or not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    parts = (flat / process_count()).split([g.numel() for g in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


class SharedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes (torch's own needs a GPU)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if not self.training or process_count() == 1:
            return super().forward(x)
        exact = x.float()  # as torch's own: bf16 has no digits for the variance
        moments = torch.stack([exact.mean((0, 2, 3)), (exact**2).mean((0, 2, 3))])
        mean, square = mean_over_processes(moments)  # (C,), processes have equal shares
        variance = square - mean**2
        count = x.numel() / x.shape[1] * process_count()
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = self.momentum or 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return (exact * scale[:, None, None] + shift[:, None, None]).to(x.dtype)


def share_batch_norms(model: nn.Module) -> None:
    """Let the batch norms of a model see the batches of all processes."""
    for module in [*model.modules()]:
        for name, norm in module.named_children():
            if type(norm) is nn.BatchNorm2d:
                shared = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
                for own, tensor in (*norm.named_parameters(), *norm.named_buffers()):
                    setattr(shared, own, tensor)  # the same tensors, not copies
                setattr(module, name, shared.train(norm.training))
