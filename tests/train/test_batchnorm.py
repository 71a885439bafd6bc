"""Batch norm over ranks, as far as one rank shows it; tests of several are in test_ranks.py."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from clsp.train.batchnorm import RankBatchNorm, synchronise_batch_norm

CPU = torch.device("cpu")


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("group")
def test_one_rank_has_torchs_batch_norm(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    assert isinstance(synchronise_batch_norm(ours, CPU), RankBatchNorm)
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight)
    ours.load_state_dict(theirs.state_dict())
    x = (3 + 2 * torch.randn(300, 3, 2, 2)).to(dtype)  # 1,200 values: more than bf16 can count
    found, expected = ours(x), theirs(x)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found, expected)
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)


def test_a_norm_that_holds_an_activation_is_refused() -> None:
    timm = pytest.importorskip("timm", reason="its norms are the ones that hold activations")
    network = timm.layers.BatchNormAct2d(4)
    before = copy.deepcopy(network)
    with pytest.raises(ValueError, match="has BatchNormAct2d; take --bn-mode joint"):
        synchronise_batch_norm(network, CPU)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(network(x), before(x))
