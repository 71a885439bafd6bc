"""Noise as a function of (seed, anchor key, positive, step), and of nothing else.

It is drawn on the CPU in float32, one generator a row, and then moved: so it is the same on any
device, in any batch, and for any number of positives.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

INITIAL, SHARE = -1, -2  # the "steps" of x_T and of a positive's w


class Noise(Protocol):
    """The noise of one batch of anchors; every tensor is (B, C, H, W)."""

    def initial(self, positive: int) -> Tensor:
        """Return x_T of positive number `positive` of each anchor."""

    def anchor(self, step: int) -> Tensor:
        """Return what noises the anchors at sampling step `step`, shared by their positives."""

    def step(self, positive: int, step: int) -> Tensor:
        """Return the scheduler's own noise at sampling step `step`."""

    def generators(self, positive: int, step: int) -> list[torch.Generator]:
        """Return generators, one a row, that draw `step`: for schedulers that take no tensor."""


def keyed_generator(seed: int, key: str, positive: int | None, step: int) -> torch.Generator:
    """Return the CPU generator of one row; `positive` None is the anchor's own noise."""
    return torch.Generator().manual_seed(_number(seed, key, positive, step))


def _number(seed: int, key: str, positive: int | None, step: int) -> int:
    name = json.dumps([seed, key, positive, step]).encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "little", signed=True)


class KeyedNoise:
    """The noise that a set is made with.

    keys: the anchors' keys (B); shape: (C, H, W) of one image; device: where it is needed.
    """

    def __init__(
        self, seed: int, keys: Sequence[str], shape: tuple[int, ...], device: torch.device | str
    ) -> None:
        self.seed, self.keys, self.shape, self.device = seed, tuple(keys), shape, device

    def initial(self, positive: int) -> Tensor:
        return self._draw(positive, INITIAL)

    def anchor(self, step: int) -> Tensor:
        return self._draw(None, step)

    def step(self, positive: int, step: int) -> Tensor:
        return self._draw(positive, step)

    def generators(self, positive: int | None, step: int) -> list[torch.Generator]:
        return [keyed_generator(self.seed, key, positive, step) for key in self.keys]

    def shares(self, positives: int, low: float, high: float) -> Tensor:
        """Return w of each positive, (B, K), uniform in [low, high] and keyed like the noise."""
        rows = [
            [
                torch.rand((), generator=keyed_generator(self.seed, key, j, SHARE))
                for j in range(positives)
            ]
            for key in self.keys
        ]
        shares = torch.tensor(rows, dtype=torch.float32)
        return (low + (high - low) * shares).to(self.device)

    def _draw(self, positive: int | None, step: int) -> Tensor:
        # What keyed_generator's generators draw, but in half the time: a fast GPU waits for this.
        drawn, generator = torch.empty(len(self.keys), *self.shape), torch.Generator()
        for key, row in zip(self.keys, drawn, strict=True):
            generator.manual_seed(_number(self.seed, key, positive, step))
            torch.randn(self.shape, generator=generator, out=row)
        return drawn.to(self.device)
