"""Embeddings of all ranks, with gradient."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Every rank computes the same loss of the global batch, so its own slice of the gradient
        # is complete. Data-parallel training averages over ranks, hence the factor.
        world, rank = dist.get_world_size(), dist.get_rank()
        return gradients[0].chunk(world)[rank] * world


def gather(x: Tensor) -> Tensor:
    """Return the rows of all ranks, (world * b, D), in the order of the ranks; x: (b, D).

    For a loss that every rank computes from the same gathered rows, while gradients are averaged
    over ranks: then the gradients are those of one rank with the whole batch.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered
