"""What a plan will cost: floating-point operations counted, bytes and hours from a short probe."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..shards.images import ImageSource
from ..shards.record import members
from .bottleneck import encode_to_site, find_site
from .compiled import compile_blocks
from .config import GenerateConfig
from .denoiser import DiffusionModel
from .records import BatchSampler, make_records
from .sampler import make_scheduler

_TAR = 512  # bytes of a header, and what contents are padded to


@dataclass(frozen=True)
class Cost:
    """What a set will cost on `workers` processes of this device.

    flops: of one positive, its share of the anchor's passes counted in; seconds: of one anchor with
    all its positives in one process; bytes: of one record in its tar.
    """

    anchors: int
    positives: int
    shards: int
    flops: float
    bytes: float
    seconds: float
    workers: int
    device: str

    @property
    def hours(self) -> float:
        """Wall time of the whole set; a GPU-hour or core-hour is one worker's."""
        return self.anchors * self.seconds / self.workers / 3600

    def __str__(self) -> str:
        unit = "GPU" if self.device.startswith("cuda") else "core"
        return "\n".join(
            [
                f"{self.anchors} anchors x {self.positives} positives in {self.shards} shards",
                f"{self.flops / 1e9:.4g} GFLOP a positive, "
                f"{self.flops * self.anchors * self.positives / 1e15:.4g} PFLOP in all",
                f"{self.bytes * self.anchors / 1e9:.4g} GB",
                f"{self.hours:.4g} hours on {self.workers} workers ({self.device}), "
                f"{self.hours * self.workers:.4g} {unit}-hours, at "
                f"{self.positives / self.seconds:.4g} positives a second each",
            ]
        )


@torch.no_grad()
def count_flops(config: GenerateConfig, model: DiffusionModel) -> tuple[int, int]:
    """Return the operations of one row's pass to the site, and through the whole denoiser.

    A multiplication and an addition are two; nothing but matrix products and convolutions counts.
    """
    weight = next(model.network.parameters())
    labels = torch.zeros(1, dtype=torch.long, device=weight.device)
    denoise = model.denoiser(labels if model.label_rows else None, config.guidance)
    x = torch.zeros(1, *model.shape, device=weight.device)
    t = torch.tensor(1, device=weight.device)
    with FlopCounterMode(display=False) as to_site:
        encode_to_site(denoise, find_site(model.network, config.site), x, t)
    with FlopCounterMode(display=False) as whole:
        denoise(x, t)
    return to_site.get_total_flops(), whole.get_total_flops()


def flops_of_positive(config: GenerateConfig, model: DiffusionModel) -> float:
    """Return the operations of one positive, with its share of the anchor's passes."""
    to_site, whole = count_flops(config, model)
    first, last = config.mix_timesteps or (0, float("inf"))
    scheduler = copy.deepcopy(make_scheduler(config.scheduler, model.scheduler_config))
    scheduler.set_timesteps(config.steps)
    mixed = sum(first <= float(t) <= last for t in scheduler.timesteps) if config.w != 1 else 0
    return len(scheduler.timesteps) * whole + mixed * to_site / config.positives


def estimate(
    config: GenerateConfig,
    model: DiffusionModel,
    source: ImageSource,
    *,
    device: str,
    workers: int,
    probe: float = 20.0,
    compiled: str | None = None,
) -> Cost:
    """Return the cost of a set, from making batches of its first anchors for `probe` seconds.

    model: on `device`; compiled: torch.compile's mode for it there. At least one batch is made
    after one that warms the device up; each goes through all that a shard's does but the disk.
    """
    flops = flops_of_positive(config, model)  # first: none is counted in compiled kernels
    if compiled:
        compile_blocks(model.network, config.site, torch.device(device), compiled)
    sampler = BatchSampler(config, model, torch.device(device), "the model")
    rows = range(min(config.batch, len(source)))
    if compiled or device.startswith("cuda"):
        _record_bytes(sampler, source, rows)  # unmeasured: kernels are made at the first batch
    began, made, size = time.perf_counter(), 0, 0
    while not made or time.perf_counter() - began < probe:
        size += _record_bytes(sampler, source, rows)
        made += len(rows)
    return Cost(
        anchors=len(source),
        positives=config.positives,
        shards=-(-len(source) // config.shard_size),
        flops=flops,
        bytes=size / made,
        seconds=(time.perf_counter() - began) / made,
        workers=workers,
        device=device,
    )


def _record_bytes(sampler: BatchSampler, source: ImageSource, rows: range) -> int:
    """Make the records of some anchors; return their size in a tar."""
    records = make_records(sampler, source, rows)
    contents = [content for record in records for _, content in members(record)]
    return sum(_TAR + -(-len(content) // _TAR) * _TAR for content in contents)
