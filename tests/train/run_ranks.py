"""What test_ranks.py trains on 1, 2 and 4 ranks; all cases in one process a rank.

python run_ranks.py SET OUT CACHE
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn

from clsp.train import encoder, loop
from clsp.train.batchnorm import RankBatchNorm, synchronise_batch_norm
from clsp.train.config import TrainConfig
from clsp.train.options import RunOptions

# 20 steps on 40 digits.
TINY = TrainConfig(
    arch="conv-tiny",
    positive="synthetic",
    hidden=16,
    dim=8,
    epochs=4,
    batch=8,
    lr=0.02,
    lr_warmup=0,
    queue=16,
    prototypes=12,
    log_every=1,
)
CASES = {
    "simclr": TINY,
    "moco": replace(TINY, method="moco"),
    "nnclr": replace(TINY, method="nnclr", positive_as="neighbour"),
    "all4one": replace(TINY, method="all4one", lr=1e-3),
    "dino": replace(TINY, method="dino", positive_as="view"),
    # Where batch norm sees all ranks, it need not be left out. It magnifies what rounding differs
    # by, as All4One's transformer does: hence their small rates.
    "simclr-bn": replace(TINY, lr=1e-3),
    "moco-bn": replace(TINY, method="moco", lr=1e-3),
}


def plain(*_: object) -> nn.Module:
    """A backbone without batch norm."""
    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten())


def run(case: str, shards: str, out: Path, cache: Path) -> None:
    """Train a case into OUT/CASE, and leave beside it what each rank's objective keeps."""
    made: list[nn.Module] = []
    make = loop.make_objective

    def keep(config: TrainConfig, model: nn.Module) -> nn.Module:
        made.append(make(config, model))
        return made[-1]

    build = encoder.build_backbone if case.endswith("-bn") else plain
    with (
        mock.patch.object(encoder, "build_backbone", build),
        mock.patch.object(loop, "make_objective", keep),
    ):
        loop.train(CASES[case], shards, out / case, cache=cache, options=RunOptions(trackers=()))
    kept = {
        name: hashlib.sha256(value.numpy().tobytes()).hexdigest()
        for name, value in made[0].state_dict().items()
        if not name.endswith(("running_mean", "running_var"))  # no loss depends on them
    }
    (out / f"{case}-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(kept))


def check_batch_norm() -> None:
    """A batch norm over all ranks is one rank's on the whole batch: values, gradients, averages."""
    rank, world = dist.get_rank(), dist.get_world_size()
    for shape in ((8, 3, 4, 4), (8, 3)):
        torch.manual_seed(0)
        whole = (3 * torch.randn(shape) + 1).double().requires_grad_()
        part = whole.detach().chunk(world)[rank].clone().requires_grad_()
        for affine in (True, False):
            kind = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
            one, many = (kind(3, affine=affine).double() for _ in range(2))
            assert isinstance(synchronise_batch_norm(many, torch.device("cpu")), RankBatchNorm)
            expected, found = one(whole), many(part)
            torch.testing.assert_close(found, expected.chunk(world)[rank])
            weight = torch.randn(shape).double()
            (wanted,) = torch.autograd.grad((expected * weight).sum(), whole)
            (got,) = torch.autograd.grad((found * weight.chunk(world)[rank]).sum(), part)
            torch.testing.assert_close(got, wanted.chunk(world)[rank])
            for name, value in one.state_dict().items():
                torch.testing.assert_close(many.state_dict()[name], value)
            torch.testing.assert_close(many.eval()(part), one.eval()(part))


def main() -> None:
    shards, out, cache = sys.argv[1:]
    # It would end the process group, which the next case needs.
    with mock.patch.object(Accelerator, "end_training"):
        for case in CASES:
            run(case, shards, Path(out), Path(cache))
    check_batch_norm()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
