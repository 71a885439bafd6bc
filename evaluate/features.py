"""Features of labelled images, computed once for each image and its mirror image, and kept."""

from __future__ import annotations

import copy
import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader, Dataset
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock, Bottleneck

from ..recipes import progress
from ..shards.files import write_atomic
from ..shards.images import ImageSource, fit_square
from ..train.encoder import Encoder

_BATCH = 128
_BATCH_CPU = 32  # what fits the cache is faster


@dataclass(frozen=True)
class Features:
    """Backbone outputs of N labelled images.

    plain, mirrored: (N, F) float32, of each image and of its mirror image (None where it was not
    asked for); labels: (N,) int64 in 0..C-1, or (N, C) int8 where an image has several labels: 1
    yes, 0 no, -1 left out of the measurement; classes: C names.
    """

    plain: Tensor
    mirrored: Tensor | None
    labels: Tensor
    classes: tuple[str, ...]

    def select(self, rows: Any) -> Features:
        """Return the features of some images: rows, an index or mask of them."""
        mirrored = None if self.mirrored is None else self.mirrored[rows]
        return Features(self.plain[rows], mirrored, self.labels[rows], self.classes)

    def to(self, device: str) -> Features:
        """Return them on a device."""
        mirrored = None if self.mirrored is None else self.mirrored.to(device)
        return replace(
            self, plain=self.plain.to(device), mirrored=mirrored, labels=self.labels.to(device)
        )

    def join(self, other: Features) -> Features:
        """Return these images followed by those of another part of the same data set."""
        mirrored = None
        if self.mirrored is not None and other.mirrored is not None:
            mirrored = torch.cat([self.mirrored, other.mirrored])
        plain, labels = (
            torch.cat([self.plain, other.plain]),
            torch.cat([self.labels, other.labels]),
        )
        return Features(plain, mirrored, labels, self.classes)


def compute_features(
    encoder: Encoder,
    source: ImageSource,
    *,
    device: str = "cpu",
    keep: Path | None = None,
    mirrored: bool = True,
    workers: int | None = None,
) -> Features:
    """Return the features of every image of a source, resized to the encoder's image size.

    keep: a folder where they are stored and found again, by the encoder's weights and the images'
    bytes. mirrored: also of the mirror images. workers: processes that decode, by default none on
    a CPU, whose cores the encoder needs, and one a core, up to 8, beside a GPU.
    Raises ImageError for an image that cannot be read, and ValueError for a source without labels
    and for an image whose features are not finite.
    """
    if source.labels is None:
        raise ValueError(
            f"{source.spec} has no labels, and evaluation needs them: a folder is labelled when "
            "every image lies in one level of class folders"
        )
    kinds = ("plain", "mirrored") if mirrored else ("plain",)
    if keep is None:
        found = _forward(encoder, source, kinds, device, workers)
    else:
        stem = f"features-{content_hash(encoder, source)}"
        paths = {kind: keep / f"{stem}-{kind}.safetensors" for kind in kinds}
        missing = tuple(kind for kind in kinds if not paths[kind].exists())
        if missing:
            keep.mkdir(parents=True, exist_ok=True)
            for kind, tensor in _forward(encoder, source, missing, device, workers).items():
                write_atomic(paths[kind], save({"features": tensor}))
        found = {kind: load_file(path)["features"] for kind, path in paths.items()}
    labels = torch.from_numpy(np.asarray(source.labels))
    names = source.classes or tuple(str(n) for n in range(int(labels.max()) + 1))
    return Features(found["plain"], found.get("mirrored"), labels, names)


def content_hash(encoder: Encoder, source: ImageSource) -> str:
    """Return a hash of all that decides an encoder's features of a source's images."""
    # Mean and deviation are part of the function that the encoder is.
    about = (encoder.sha256, encoder.mean, encoder.std, encoder.image_size, len(source))
    digest = hashlib.sha256(repr(about).encode())
    for index in range(len(source)):
        of_file = source.file_sha256(index)  # without decoding it
        digest.update(of_file.encode() if of_file else np.asarray(source.read(index)).tobytes())
    return digest.hexdigest()[:32]


class _Squares(Dataset[Tensor]):
    """The images of a source, each as (3, S, S) uint8."""

    def __init__(self, source: ImageSource, size: int) -> None:
        self.source, self.size = source, size

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        square = np.array(fit_square(self.source.read(index), self.size))
        return torch.from_numpy(square).permute(2, 0, 1)


@torch.no_grad()
def _forward(
    encoder: Encoder,
    source: ImageSource,
    kinds: tuple[str, ...],
    device: str,
    workers: int | None,
) -> dict[str, Tensor]:
    on_gpu = device.startswith("cuda")
    if workers is None:
        workers = min(8, len(os.sched_getaffinity(0))) if on_gpu else 0
    batch_size = _BATCH if on_gpu else _BATCH_CPU
    model = fuse_batch_norm(encoder).to(device).to(memory_format=torch.channels_last)
    mean, std = (
        torch.tensor(value, device=device).view(3, 1, 1) for value in (encoder.mean, encoder.std)
    )
    loader = DataLoader(
        _Squares(source, encoder.image_size), batch_size, num_workers=workers, pin_memory=on_gpu
    )
    parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    with progress(len(source), "features", "image") as bar:
        for start, batch in zip(range(0, len(source), batch_size), loader, strict=True):
            images = (batch.to(device, non_blocking=True).float() / 255 - mean) / std
            images = images.contiguous(memory_format=torch.channels_last)
            for kind in kinds:
                features = model(images if kind == "plain" else images.flip(3)).float().cpu()
                finite = features.isfinite().all(dim=1)
                if not finite.all():
                    index = start + int((~finite).nonzero()[0, 0])
                    raise ValueError(
                        f"encoder {encoder.name} gives a feature that is not finite for "
                        f"{source.path(index)} of {source.spec}"
                    )
                parts[kind].append(features)
            bar.update(len(batch))
    return {kind: torch.cat(part) for kind, part in parts.items()}


def fuse_batch_norm(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode whose ResNets apply each batch norm in the convolution before it.

    The function is the same up to rounding. What is no
    torchvision ResNet is copied as it is.
    """
    copied = copy.deepcopy(model).eval()
    for block in copied.modules():
        if not isinstance(block, ResNet | BasicBlock | Bottleneck):
            continue
        for number in ("1", "2", "3"):
            convolution: Any = getattr(block, f"conv{number}", None)
            if isinstance(norm := getattr(block, f"bn{number}", None), nn.BatchNorm2d):
                setattr(block, f"conv{number}", fuse_conv_bn_eval(convolution, norm))
                setattr(block, f"bn{number}", nn.Identity())
        shortcut = getattr(block, "downsample", None)
        if shortcut is not None and isinstance(shortcut[1], nn.BatchNorm2d):
            block.downsample = fuse_conv_bn_eval(*shortcut)
    return copied
