"""A loss or a weight that is not finite ends a run before it reaches a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


class NotFiniteError(ValueError):
    """The loss or the state is NaN or infinite; the message says at which step, and what."""


def check_state(checkpoints: Path, step: int, state: dict[str, Tensor]) -> None:
    """Raise NotFiniteError for a weight, a moment or a statistic that is NaN or infinite.

    A step may make one of a loss that was finite; the checkpoint would be good for nothing.
    """
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise NotFiniteError(
                f"step {step}: {name} is not finite after it, though the loss was. "
                + _advice(checkpoints)
            )


def _advice(checkpoints: Path) -> str:
    kept = sorted(path.name for path in checkpoints.glob("step-*"))
    return (
        f"The last checkpoint is {kept[-1] if kept else 'the start'}; "
        "try a smaller --lr, a larger --temperature, or --precision bf16 for fp16"
    )


class FiniteCheck:
    """Collects the terms of every step and looks at them at once, or only when asked.

    checkpoints: where the run's checkpoints lie, for the message; at_once: look at each step, which
    on a GPU would make the CPU wait for it.
    """

    def __init__(self, checkpoints: Path, *, at_once: bool) -> None:
        self.checkpoints, self.at_once = checkpoints, at_once
        self._steps: list[tuple[int, dict[str, Tensor]]] = []

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        """Remember the terms of a step, scalars by name."""
        self._steps.append((step, {name: value.detach() for name, value in terms.items()}))
        if self.at_once:
            self.raise_if_not()

    def raise_if_not(self) -> None:
        """Raise NotFiniteError for the first step that had a NaN or an infinity."""
        steps, self._steps = self._steps, []
        if not steps:
            return
        values = torch.stack([torch.stack(list(terms.values())).float() for _, terms in steps])
        for (step, terms), row in zip(steps, values.cpu(), strict=True):
            if not row.isfinite().all():
                text = ", ".join(
                    f"{name} {float(v):.4g}" for name, v in zip(terms, row, strict=True)
                )
                raise NotFiniteError(
                    f"step {step}: the loss is not finite: {text}. {_advice(self.checkpoints)}"
                )
