"""One shard: a pure function of (plan, shard number), run by any engine in any process."""

from __future__ import annotations

import errno
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace

import diffusers
import PIL
import torch

from ..shards.check import ShardError
from ..shards.images import open_images
from ..shards.manifest import Manifest, Receipt, parse_receipt
from ..shards.preview import preview_png
from ..shards.reader import ShardSet
from .compiled import compile_blocks, failed_to_compile
from .diffusion import open_model
from .marks import quarantine, running, shard_number
from .output import Output
from .plan import Plan, hash_keys
from .records import BatchSampler, make_records

# One thread a process: the sums inside a convolution, and with them the last bit of a sample, may
# depend on the number of threads, and N processes of one thread fill N cores better anyway.
THREADS = 1
ATTEMPTS = 3  # at a shard that raises, before it is left out
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Job:
    """What a worker needs to make any shard of a plan; small and picklable.

    images, model: the specs as the user gave them; output: where the set is written; compile:
    torch.compile's mode for the denoiser's blocks, for speed; None leaves them as they are.
    """

    plan: Plan
    images: str
    model: str
    output: Output
    compile: str | None = None

    def receipts(self) -> dict[int, Receipt]:
        """Return the receipts of the shards that are done, by shard number.

        A receipt counts when it is of this plan and its shard file is there in the right size;
        `finalise` also compares the bytes. Raises ShardError for a garbled receipt.
        """
        files, found = self.output.entries("data"), {}
        for name, data in self.output.read_all("receipts").items():
            receipt = parse_receipt(data, f"{self.output}/receipts/{name}")
            file = files.get(receipt.shard.name.removeprefix("data/"))
            if receipt.plan_id == self.plan.id and file and file.size == receipt.shard.bytes:
                found[shard_number(name)] = receipt
        return found

    def todo(self) -> list[int]:
        """Return the shards that have no valid receipt yet."""
        done = self.receipts()
        return [shard for shard in range(self.plan.shards) if shard not in done]


class Worker:
    """A process that has the images and the model open and makes shards one after the other."""

    def __init__(self, job: Job, device: str) -> None:
        torch.set_num_threads(THREADS)
        config = job.plan.config
        self.job, self.device = job, torch.device(device)
        self.source = open_images(job.images)
        model = open_model(
            job.model,
            device,
            getattr(torch, config.dtype),
            job.plan.model.image_size,
            channels_last=config.channels_last,
        )
        if model.sha256 != job.plan.model.sha256:
            raise ValueError(f"model {job.model} changed since the set was planned")
        if job.compile:
            compile_blocks(model.network, config.site, self.device, job.compile)
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
        with running(job.output, shard):
            written = job.output.add_shard(plan.shard_name(shard), records, plan.config.positives)
            made_by = fingerprint(self.device) | self.sampler.layout()
            if job.compile:
                made_by["compile"] = f"inductor, {job.compile}"
            receipt = Receipt(written, plan.id, made_by)
            job.output.write(plan.receipt_name(shard), receipt.to_json())
        return receipt

    def try_to_make(
        self, shard: int, progress: Callable[[int], None] = lambda anchors: None
    ) -> bool:
        """Make a shard: True when it is done, False when it failed three times.

        Then the last error and its traceback are kept beside the set, and other shards can go on.
        Errors that the next shard would meet too are raised: a full disk, a GPU in disorder, a
        compiler that does not work.
        """
        counted = 0

        def count(anchors: int) -> None:
            nonlocal counted
            counted += anchors
            progress(anchors)

        for attempt in range(1, ATTEMPTS + 1):
            try:
                self.make(shard, count)
                return True
            except torch.AcceleratorError:
                raise
            except Exception as error:
                count(-counted)
                if isinstance(error, OSError) and error.errno in _NO_SPACE:
                    raise
                if self.job.compile and failed_to_compile(error):
                    raise ValueError(f"--compile: {error}") from error
                if attempt == ATTEMPTS:
                    quarantine(self.job.output, shard, error)
        return False


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


def finalise(job: Job) -> Manifest:
    """Turn an output in which every shard is done into a shard set: preview, checksums, manifest.

    Every shard is compared with its receipt. Any number of processes may do this at once: they
    write the same bytes. Raises ShardError naming a shard that is not what its receipt says, and
    removes that receipt, so that a rerun makes the shard.
    """
    plan, config, output = job.plan, job.plan.config, job.output
    receipts = dict(sorted(job.receipts().items()))
    for shard, receipt in receipts.items():
        try:
            output.check_shard(receipt.shard)
        except ShardError as error:
            output.remove(plan.receipt_name(shard))
            raise ShardError(f"{error}; its receipt is removed: run again to make it") from error
    prints = sorted({tuple(sorted(receipt.fingerprint.items())) for receipt in receipts.values()})
    manifest = Manifest(
        positives=config.positives,
        image_format=config.image_format,
        image_size=plan.model.image_size,
        samples=plan.source["samples"],
        shards=tuple(receipt.shard for receipt in receipts.values()),
        anchors=config.anchors,
        source=plan.source,
        plan_id=plan.id,
        plan=json.loads(plan.to_json()),
        classes=tuple(plan.source["classes"]) if plan.source["classes"] else None,
        fingerprints=tuple(dict(items) for items in prints),
    )
    first = manifest.shards[0]
    with output.local_shard(first) as folder:
        shown = ShardSet(folder, replace(manifest, shards=(first,), samples=first.samples))
        output.write("preview.png", preview_png(shown))
    output.publish(manifest)
    return manifest
