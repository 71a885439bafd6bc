"""A shard's anchors -> its records: read, sampled and encoded, each while the others go on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shards.images import ImageSource, encode_image, fit_square
from ..shards.pairing import pixels_sha256
from ..shards.record import Record
from .bottleneck import find_site
from .config import GenerateConfig
from .denoiser import DiffusionModel
from .noise import KeyedNoise
from .sampler import NotFinite, make_scheduler, sample_positives

_log = logging.getLogger(__name__)


class BatchSampler:
    """Batches of anchors -> their positives, by one model on one device.

    name: of the model, for errors. When memory is short, batches are cut in halves for good.
    """

    def __init__(
        self, config: GenerateConfig, model: DiffusionModel, device: torch.device, name: str
    ) -> None:
        self.config, self.model, self.device, self.name = config, model, device, name
        self.site = find_site(model.network, config.site)
        self.rows = config.batch

    def layout(self) -> dict[str, str]:
        """Return what a receipt says of batches that had to be cut; it may change a last bit."""
        return {} if self.rows == self.config.batch else {"rows": str(self.rows)}

    def sample(
        self, pixels: np.ndarray, keys: Sequence[str], labels: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the positives (B, K, S, S, 3) uint8 of anchors (B, S, S, 3), and w (B, K).

        labels: the anchors' classes, for a model that takes them.
        Raises ValueError naming anchor, step and model when a sample is not finite.
        """
        while True:
            try:
                parts = [
                    self._sample(pixels[part], keys[part], None if labels is None else labels[part])
                    for part in (slice(n, n + self.rows) for n in range(0, len(pixels), self.rows))
                ]
                images, shares = zip(*parts, strict=True)
                return np.concatenate(images), np.concatenate(shares)
            except RuntimeError as error:
                if not _short_of_memory(error) or self.rows == 1:
                    raise
            # Outside of the handler, whose traceback would keep the tensors alive.
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.rows = -(-self.rows // 2)
            _log.warning("out of memory on %s: going on with %d rows", self.device, self.rows)

    def _sample(
        self, pixels: np.ndarray, keys: Sequence[str], labels: Sequence[int] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        config, model, device = self.config, self.model, self.device
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 127.5 - 1
        noise = KeyedNoise(config.seed, keys, model.shape, device)
        of_rows = None if labels is None else torch.tensor(labels, device=device)
        w = config.w
        shares = noise.shares(config.positives, *config.w_range)
        try:
            latents = sample_positives(
                model.denoiser(of_rows, config.guidance),
                self.site,
                make_scheduler(
                    config.scheduler, model.scheduler_config, clip=model.autoencoder is None
                ),
                model.encode(images),
                noise,
                positives=config.positives,
                w=shares if isinstance(w, tuple) else w,
                steps=config.steps,
                eta=config.eta,
                mix_timesteps=config.mix_timesteps,
            )
        except NotFinite as error:
            raise ValueError(
                f"model {self.name}: positive {error.positive} of anchor {keys[error.rows[0]]} is "
                f"not finite after step {error.step + 1} of {config.steps}"
            ) from error
        decoded = [model.decode(positive) for positive in latents.unbind(1)]
        levels = torch.stack([_levels(image) for image in decoded], dim=1)
        return levels.permute(0, 1, 3, 4, 2).cpu().numpy(), shares.cpu().numpy()


def make_records(
    sampler: BatchSampler,
    source: ImageSource,
    anchors: range,
    progress: Callable[[int], None] = lambda anchors: None,
) -> Iterator[Record]:
    """Yield the records of `anchors`, in order; `progress` is told of each batch sampled.

    A thread reads the next batch's images and encodes the last one's while one is sampled. It
    computes with numpy and Pillow only, so it takes no part of torch's threads.
    """
    size = sampler.config.batch
    batches = [anchors[start : start + size] for start in range(0, len(anchors), size)]
    side = sampler.model.image_size
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(_read, source, batches[0], side)
        encoding: Future[list[Record]] | None = None
        for number, batch in enumerate(batches):
            pixels = reading.result()
            if number + 1 < len(batches):
                reading = pool.submit(_read, source, batches[number + 1], side)
            keys = [source.key(index) for index in batch]
            labels = None
            if sampler.model.label_rows and source.labels is not None:
                labels = [int(source.labels[index]) for index in batch]
            positives, shares = sampler.sample(pixels, keys, labels)
            last, encoding = (
                encoding,
                pool.submit(_encode, sampler.config, source, batch, pixels, positives, shares),
            )
            if last is not None:
                yield from last.result()
            progress(len(batch))
        if encoding is not None:
            yield from encoding.result()


def _read(source: ImageSource, batch: range, side: int) -> np.ndarray:
    return np.stack([np.asarray(fit_square(source.read(index), side)) for index in batch])


def _encode(
    config: GenerateConfig,
    source: ImageSource,
    batch: range,
    pixels: np.ndarray,
    positives: np.ndarray,
    shares: np.ndarray,
) -> list[Record]:
    rows = zip(batch, pixels, positives, shares, strict=True)
    return [_record(config, source, *row) for row in rows]


def _record(
    config: GenerateConfig,
    source: ImageSource,
    index: int,
    anchor: np.ndarray,
    positives: np.ndarray,
    shares: np.ndarray,
) -> Record:
    meta: dict[str, Any] = {
        "source": source.path(index),
        "source_sha256": source.file_sha256(index),
        "rgb_sha256": pixels_sha256(anchor),
        # Six decimals: what float32 holds of a share.
        "w": [round(float(w), 6) for w in shares] if isinstance(config.w, tuple) else config.w,
        "seed": config.seed,
    }
    if source.labels is not None:
        meta["label"] = int(source.labels[index])
        if source.classes is not None:
            meta["class"] = source.classes[meta["label"]]
    return Record(
        source.key(index),
        encode_image(anchor, config.image_format) if config.anchors else None,
        tuple(encode_image(image, config.image_format) for image in positives),
        meta,
        config.image_format,
    )


def _levels(images: Tensor) -> Tensor:
    # Rounded, not truncated: truncation would darken every positive by half a level.
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def _short_of_memory(error: RuntimeError) -> bool:
    # On a CPU torch raises a plain RuntimeError.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
