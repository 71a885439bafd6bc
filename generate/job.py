"""One shard: a pure function of (plan, shard number), run by any engine in any process."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import PIL
import torch

from ..shards.files import sweep_temporaries, write_atomic
from ..shards.images import open_images
from ..shards.manifest import Manifest, Receipt, load_receipt, save_manifest, save_receipt
from ..shards.preview import preview_png
from ..shards.reader import ShardSet
from ..shards.store import open_set
from ..shards.writer import write_shard
from .diffusion import open_model
from .plan import Plan, hash_keys
from .records import BatchSampler, make_records

# One thread a process: the sums inside a convolution, and with them the last bit of a sample, may
# depend on the number of threads, and N processes of one thread fill N cores better anyway.
THREADS = 1


@dataclass(frozen=True)
class Job:
    """What a worker needs to make any shard of a plan; small and picklable.

    images, model: the specs as the user gave them; out: the set's folder.
    """

    plan: Plan
    images: str
    model: str
    out: Path

    def receipt_path(self, shard: int) -> Path:
        """Return where the proof that `shard` is done lies."""
        return self.out / "receipts" / f"train-{shard:05d}.json"

    def is_done(self, shard: int) -> bool:
        """True when a receipt of this plan names a shard file of the right size."""
        receipt = load_receipt(self.receipt_path(shard))
        if receipt is None or receipt.plan_id != self.plan.id:
            return False
        path = self.out / receipt.shard.name
        return path.exists() and path.stat().st_size == receipt.shard.bytes

    def todo(self) -> list[int]:
        """Return the shards that have no valid receipt yet."""
        return [shard for shard in range(self.plan.shards) if not self.is_done(shard)]


class Worker:
    """A process that has the images and the model open and makes shards one after the other."""

    def __init__(self, job: Job, device: str) -> None:
        torch.set_num_threads(THREADS)
        config = job.plan.config
        self.job, self.device = job, torch.device(device)
        self.source = open_images(job.images)
        model = open_model(
            job.model, device, getattr(torch, config.dtype), channels_last=config.channels_last
        )
        if model.sha256 != job.plan.model.sha256:
            raise ValueError(f"model {job.model} changed since the set was planned")
        self.sampler = BatchSampler(config, model, self.device, job.model)

    def make(self, shard: int, progress: Callable[[int], None] = lambda anchors: None) -> Receipt:
        """Write shard number `shard` and its receipt; `progress` is told of anchors as they end.

        Raises ValueError when the images are no longer those of the plan, ImageError for an
        image that cannot be read, OSError when the disk is full; then no file is left behind.
        """
        job, plan = self.job, self.job.plan
        anchors = plan.anchors(shard)
        if hash_keys(self.source, anchors) != plan.key_hashes[shard]:
            raise ValueError(f"the images of {job.images} changed since the set was planned")
        records = make_records(self.sampler, self.source, anchors, progress)
        written = write_shard(job.out / plan.shard_name(shard), records, plan.config.positives)
        receipt = Receipt(written, plan.id, fingerprint(self.device) | self.sampler.layout())
        save_receipt(job.receipt_path(shard), receipt)
        return receipt


def fingerprint(device: torch.device) -> dict[str, str]:
    """Return the hardware and software on which the same plan gives the same bytes."""
    if device.type == "cuda":
        hardware = (torch.cuda.get_device_name(device), f"CUDA {torch.version.cuda}")
    else:
        hardware = (platform.machine(), torch.backends.cpu.get_cpu_capability())
    return {
        "device": hardware[0],
        "kernels": hardware[1],
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "pillow": PIL.__version__,
    }


def finalise(job: Job) -> ShardSet:
    """Turn a folder in which every shard is done into a shard set: manifest, checksums, preview.

    Every shard is hashed against its receipt. Any number of processes may do this at once: they
    write the same bytes. Raises ShardError naming a shard that is not what its receipt says.
    """
    plan, config = job.plan, job.plan.config
    receipts = [load_receipt(job.receipt_path(shard)) for shard in range(plan.shards)]
    done = [receipt for receipt in receipts if receipt is not None]
    prints = sorted({tuple(sorted(receipt.fingerprint.items())) for receipt in done})
    manifest = Manifest(
        positives=config.positives,
        image_format=config.image_format,
        image_size=plan.model.image_size,
        samples=plan.source["samples"],
        shards=tuple(receipt.shard for receipt in done),
        source=plan.source,
        plan_id=plan.id,
        plan=json.loads(plan.to_json()),
        classes=tuple(plan.source["classes"]) if plan.source["classes"] else None,
        fingerprints=tuple(dict(items) for items in prints),
    )
    for folder in (job.out, job.out / "data", job.out / "receipts"):
        sweep_temporaries(folder)
    save_manifest(job.out, manifest)
    shards = open_set(job.out)
    shards.verify(deep=False)
    write_atomic(job.out / "preview.png", preview_png(shards))
    return shards
