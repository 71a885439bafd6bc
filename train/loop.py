"""Train an encoder on a shard set: one step a few lines, on one device or on all ranks.

A step is a function of the state and the step's number alone: what it reads, draws and computes
does not depend on when the run was last started.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from ..shards.cache import DEFAULT_LIMIT
from ..shards.order import hash_key
from .batchnorm import synchronise_batch_norm
from .checkpoint import collect_state, resume_run, save_checkpoint, scaler_state
from .chunks import ChunkedForward, in_chunks
from .config import TrainConfig, learning_rate, positive_weight
from .encoder import ProjectedEncoder, export_encoder
from .finite import FiniteCheck, check_state
from .gather import gather
from .log import TrainingLog
from .objectives import Beside, loss_terms, make_objective, unit
from .online import OnlineKNN
from .optimizers import build_optimizer
from .options import RunOptions
from .stream import Stream
from .views import make_views
from .watch import watch_ranks

DEFAULTS = RunOptions()
# One rank decodes a set while the others wait; who is dead `watch` finds out, and not this.
_PATIENCE = timedelta(hours=6)


def train(
    config: TrainConfig,
    address: str | Path,
    out: Path,
    *,
    cache: Path,
    cache_limit: int = DEFAULT_LIMIT,
    options: RunOptions = DEFAULTS,
) -> Path:
    """Pretrain an encoder on the shard set at `address`; return the exported encoder's folder.

    Goes on from the last checkpoint in `out`. Runs on whatever Accelerate finds: one device, or
    each rank of `accelerate launch`. The global batches do not depend on how many ranks there are.
    cache: where decoded pixels and up to `cache_limit` bytes of fetched shards are kept.
    Raises ValueError (a set, batch or folder that does not fit, a loss that is not finite) and
    OSError (disk full). Of several ranks, every one raises or exits when one does.
    """
    if options.precision == "fp16" and not torch.cuda.is_available():
        raise ValueError("precision fp16 needs a GPU; bf16 works on a CPU too")
    accelerator = Accelerator(
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
        mixed_precision=None if options.precision == "launch" else options.precision,
        project_dir=out,
    )
    with watch_ranks():
        stream = Stream(config, address, out, cache, cache_limit, options, accelerator)
        return _train(config, stream, out, options, accelerator)


def _train(
    config: TrainConfig,
    stream: Stream,
    out: Path,
    options: RunOptions,
    accelerator: Accelerator,
) -> Path:
    rank, device, main = accelerator.process_index, accelerator.device, accelerator.is_main_process
    probe = OnlineKNN(options.knn, config, stream.image_size) if options.knn and main else None

    torch.manual_seed(config.seed)
    encoder = ProjectedEncoder(config, stream.image_size)
    if config.bn_mode == "sync" and accelerator.num_processes > 1:
        encoder = synchronise_batch_norm(encoder, device)
    objective = make_objective(config, encoder)
    modules: dict[str, nn.Module] = {"encoder": encoder, "objective": objective}
    for module in modules.values():
        module.to(device)
    layout = _layout(options, device)
    encoder.to(memory_format=layout)
    optimizer = build_optimizer(config, nn.ModuleList(modules.values()))
    checkpoints = out / "checkpoints"
    start = resume_run(checkpoints, config, stream.sources, modules, optimizer, accelerator)
    if options.compile:
        encoder.backbone.compile()  # in place: its parameters keep their names
    model, prepared = accelerator.prepare(encoder, optimizer)
    chance = objective.chance(config.batch)
    log = TrainingLog(accelerator, config, options, out, start=start, stream=stream, chance=chance)
    check = FiniteCheck(checkpoints, at_once=device.type == "cpu")
    size, of_anchors = config.chunk or config.batch, 2 + config.local_crops
    for item in stream.batches(start):
        step, epoch, done = item.step, item.epoch, item.step + 1
        ends = item.ends_epoch and int(epoch) + 1 == config.epochs
        torch.manual_seed(hash_key(f"{config.seed}/{step}/{rank}"))
        for group in prepared.param_groups:
            group["lr"] = learning_rate(config, epoch)
        views = [view.contiguous(memory_format=layout) for view in make_views(item, config, device)]
        to_target = views[:2]
        if config.positive_as == "target":  # the encoder that is trained never sees them
            views, to_target = views[:of_anchors], to_target + views[of_anchors:]
        with accelerator.autocast():
            targets = [gather(target) for target in in_chunks(objective.targets, to_target, size)]
        chunks = ChunkedForward(model, views, size) if config.chunk else None
        z = [gather(part) for part in (chunks.embed() if chunks else model(views))]  # (batch, dim)
        labels = None if item.labels is None else gather(item.labels.to(device))
        beside = Beside(targets, labels=labels)
        torch.manual_seed(hash_key(f"{config.seed}/{step}"))  # what a loss draws, all ranks draw
        terms = loss_terms(objective, z[:of_anchors], z[of_anchors:], config.positive_as, beside)
        loss = terms["contrastive"]
        if "positive" in terms:
            loss = loss + positive_weight(config, epoch) * terms["positive"]
        terms["loss"] = loss
        check.add(done, terms)
        accelerator.backward(loss / config.accumulate)
        if chunks:
            chunks.backward(lambda: accelerator.no_sync(model))
        if done % config.accumulate == 0 or ends:
            prepared.step()
            prepared.zero_grad()
        objective.after_step(encoder, beside, epoch / config.epochs)
        saves = done % config.save_every == 0 or ends
        if done % config.log_every == 0 or saves:
            check.raise_if_not()  # a checkpoint must not hold what it would have raised for
        log.step(done, epoch, unit(z[0]), terms)
        if probe and item.ends_epoch and int(epoch + 1) % options.knn_every == 0:
            log.knn(done, int(epoch) + 1, probe.accuracy(encoder.backbone, device))
        if saves:
            state = collect_state(modules, optimizer)
            check_state(checkpoints, done, state)
            about = {"config": asdict(config), "scaler": scaler_state(accelerator)}
            if main:
                save_checkpoint(checkpoints, done, state, {**about, **stream.sources})
    if main:
        export_encoder(
            out / "encoder", encoder.backbone, config, stream.image_size, encoder.projector
        )
    accelerator.wait_for_everyone()
    log.close()  # ends the process group too
    return out / "encoder"


def _layout(options: RunOptions, device: torch.device) -> torch.memory_format:
    if options.layout == "auto":
        return torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return torch.channels_last if options.layout == "channels_last" else torch.contiguous_format
