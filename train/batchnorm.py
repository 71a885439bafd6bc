"""Batch norm whose statistics are those of the batches of all ranks together."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> Any:
    """Return `module` with every batch norm in it made one over all ranks; names stay.

    On a GPU by torch's SyncBatchNorm. On a CPU, where torch has none, by this file's, in place.
    """
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.__class__ = RankBatchNorm  # of the same attributes, so copies and states work
    return module


class _Sum(torch.autograd.Function):
    """The sum over ranks; what comes back is summed too, since every rank used it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class RankBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d` or `2d` in training on several ranks: x (b, C) or (b, C, H, W)."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not dist.is_initialized():
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1, *[1] * (input.ndim - 2)]
        count = input.new_tensor([input.numel() / input.shape[1]])
        dist.all_reduce(count)
        mean = _Sum.apply(input.sum(axes)) / count
        centred = input - mean.view(shape)
        var = _Sum.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            assert self.num_batches_tracked is not None
            assert self.running_mean is not None
            assert self.running_var is not None
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                share = self.momentum or 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean, share)
                self.running_var.lerp_(var * count / (count - 1), share)
        normal: Tensor = centred * (var + self.eps).rsqrt().view(shape)
        if not self.affine:
            return normal
        return normal * self.weight.view(shape) + self.bias.view(shape)
