"""Train an encoder on a shard set: one step a few lines, on one device or on all ranks.

A step is a function of the state and the step's number alone: what it reads, draws and computes
does not depend on when the run was last started.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ..shards.cache import DEFAULT_LIMIT
from ..shards.order import check_batch, hash_key, uniforms
from ..shards.reader import ShardSet
from ..shards.scores import load_hardness
from ..shards.store import open_set
from .checkpoint import (
    CheckpointError,
    collect_state,
    load_checkpoint,
    restore_state,
    save_checkpoint,
)
from .config import TrainConfig, learning_rate, positive_weight
from .encoder import ProjectedEncoder, export_encoder
from .gather import gather
from .hardness import HardnessRange, parse_range
from .log import TrainingLog
from .objectives import make_objective
from .objectives.positive import positive_term
from .optimizers import build_optimizer
from .tuples import TupleBatches, Tuples, decoded_set, load_tuples
from .views import DRAWS, draw_parameters, make_view
from .watch import watch_ranks

# What a rerun may change without changing the encoder.
_FREE = ("save_every", "log_every")


def train(
    config: TrainConfig,
    address: str | Path,
    out: Path,
    *,
    cache: Path,
    cache_limit: int = DEFAULT_LIMIT,
    workers: int | None = None,
) -> Path:
    """Pretrain an encoder on the shard set at `address`; return the exported encoder's folder.

    Goes on from the last checkpoint in `out`. Runs on whatever Accelerate finds: one device, or
    each rank of `accelerate launch`. The global batches do not depend on how many ranks there are.
    cache: where decoded pixels and up to `cache_limit` bytes of fetched shards are kept; workers:
    loader processes, by default none when the pixels are in the cache and one for each core, up
    to 8, when they are not.
    Raises ValueError (a set, batch or folder that does not fit) and OSError (disk full).
    """
    accelerator = Accelerator(log_with="tensorboard", project_dir=out)
    with watch_ranks():
        shards = open_set(address, cache=cache, cache_limit=cache_limit)
        return _train(config, shards, out, cache, workers, accelerator)


def _train(
    config: TrainConfig,
    shards: ShardSet,
    out: Path,
    cache: Path,
    workers: int | None,
    accelerator: Accelerator,
) -> Path:
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    check_batch(len(shards), config.batch, world)
    with accelerator.local_main_process_first():
        pixels = decoded_set(shards, cache)
    batches = TupleBatches(
        shards,
        config.batch,
        config.seed,
        positive=config.positive == "synthetic",
        pixels=pixels,
        hardness=_hardness_range(config, shards),
        rank=rank,
        world=world,
    )
    total = config.epochs * batches.per_epoch

    torch.manual_seed(config.seed)
    encoder = ProjectedEncoder(config, shards.manifest.image_size)
    if device.type == "cuda" and world > 1:  # there is no such thing for CPUs
        encoder = nn.SyncBatchNorm.convert_sync_batchnorm(encoder)
    objective = make_objective(config, encoder)
    modules: dict[str, nn.Module] = {"encoder": encoder, "objective": objective}
    for module in modules.values():
        module.to(device)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    encoder.to(memory_format=layout)
    optimizer = build_optimizer(config, encoder)
    start = _resume(out / "checkpoints", config, shards, modules, optimizer, accelerator)
    model, prepared = accelerator.prepare(encoder, optimizer)
    log = TrainingLog(
        accelerator, config, out, start=start, total=total, chance=objective.chance(config.batch)
    )
    loader = load_tuples(
        batches,
        start,
        total,
        workers=_workers(workers, pixels is not None),
        pin_memory=device.type == "cuda",
    )
    for item in loader:
        step, epoch = item.step, item.epoch
        torch.manual_seed(hash_key(f"{config.seed}/{step}/{rank}"))
        for group in prepared.param_groups:
            group["lr"] = learning_rate(config, epoch)
        views = [view.contiguous(memory_format=layout) for view in make_views(item, config, device)]
        with accelerator.autocast():
            targets = [gather(target) for target in objective.targets(views[:2])]
        z = [gather(part) for part in model(views)]  # each (batch, dim)
        terms = {"contrastive": objective.loss(z[:2], targets)}
        loss = terms["contrastive"]
        if len(z) == 3:
            terms["positive"] = positive_term(z[0], z[2])
            loss = loss + positive_weight(config, epoch) * terms["positive"]
        prepared.zero_grad()
        accelerator.backward(loss)
        prepared.step()
        objective.after_step(encoder, targets, step / total)
        log.step(step + 1, z[0], {"loss": loss, **terms})
        if accelerator.is_main_process and (
            (step + 1) % config.save_every == 0 or step + 1 == total
        ):
            about = {"config": asdict(config), "set": shards.id, "scaler": _scaler(accelerator)}
            state = collect_state(modules, optimizer)
            save_checkpoint(out / "checkpoints", step + 1, state, about)
    if accelerator.is_main_process:
        export_encoder(out / "encoder", encoder.backbone, config, shards.manifest.image_size)
    accelerator.wait_for_everyone()
    log.close()  # ends the process group too
    return out / "encoder"


def _hardness_range(config: TrainConfig, shards: ShardSet) -> HardnessRange | None:
    low, high = parse_range(config.hardness)
    if (low, high) == (0, 1) and not config.hardness_curriculum:
        return None
    values, _ = load_hardness(shards)
    return HardnessRange(values, low, high, config.hardness_curriculum)


def make_views(item: Tuples, config: TrainConfig, device: torch.device) -> list[Tensor]:
    """Return the views of a batch: two of the anchors and, if the config has one, the third.

    Each (b, 3, S, S) float32 on `device`, augmented alike, every draw a function of (seed, epoch,
    key, view).
    """
    anchor = item.anchor.to(device, non_blocking=True)
    images = [anchor, anchor]
    if config.positive == "real":
        images.append(anchor)
    elif item.positive is not None:
        images.append(item.positive.to(device, non_blocking=True))
    views = []
    for number, image in enumerate(images):
        draws = uniforms(config.seed, int(item.epoch), item.keys, f"view{number}", DRAWS)
        views.append(make_view(image, draw_parameters(config, draws, image.shape[-1]), config))
    return views


def _resume(
    folder: Path,
    config: TrainConfig,
    shards: ShardSet,
    modules: dict[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> int:
    """Put the newest checkpoint's state back; return the steps done."""
    with accelerator.main_process_first():
        found = load_checkpoint(folder)
    if found is None:
        return 0
    tensors, about = found
    if about["set"] != shards.id:
        raise CheckpointError(
            f"{folder} is of a run on set {about['set'][:12]}, {shards.address} is {shards.id[:12]}"
        )
    for name, value in asdict(config).items():
        before = about["config"].get(name)
        now = list(value) if isinstance(value, tuple) else value
        if name not in _FREE and before != now:
            raise CheckpointError(
                f"{folder} is of a run with {name} = {before}, not {now}; give another --out or "
                "the same settings"
            )
    restore_state(tensors, modules, optimizer)
    if accelerator.scaler is not None and about["scaler"]:
        accelerator.scaler.load_state_dict(about["scaler"])
    step: int = about["step"]
    return step


def _scaler(accelerator: Accelerator) -> dict[str, Any] | None:
    return accelerator.scaler.state_dict() if accelerator.scaler is not None else None


def _workers(asked: int | None, cached: bool) -> int:
    if asked is not None:
        return asked
    return 0 if cached else min(8, len(os.sched_getaffinity(0)))
