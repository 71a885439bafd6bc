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
    Raises ValueError for a batch norm that does more, as timm's do which hold an activation.
    """
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    others = {type(part).__name__ for part in norms} - {"BatchNorm1d", "BatchNorm2d"}
    if others:
        raise ValueError(
            f"bn_mode sync on several ranks is for plain batch norm, but the network has "
            f"{', '.join(sorted(others))}; take --bn-mode joint or split"
        )
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for part in norms:
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
        # Statistics of half-precision values are kept in single, as torch does.
        x = input.float() if input.dtype in (torch.bfloat16, torch.float16) else input
        count = x.new_tensor([x.numel() / x.shape[1]])
        dist.all_reduce(count)
        mean = _Sum.apply(x.sum(axes)) / count
        centred = x - mean.view(shape)
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
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)
