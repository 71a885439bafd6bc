"""The method: mix a random sample's bottleneck features with an anchor's, and finish the sample.

The site, the module whose output is mixed, is found by its path and hooked, so that any denoiser
will do whose forward runs once through one module with one tensor as output.

Zeng et al., 2024, arXiv:2408.16965.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

# (x_t, t) -> the model's output: x (B, C, H, W), t a scalar or (B,).
Denoise = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Site:
    """A module inside a denoiser, and its path there."""

    path: str
    module: nn.Module


def interpolate_bottleneck(sample: Tensor, anchor: Tensor, w: float | Tensor) -> Tensor:
    """Mix two bottleneck features; `w` is the share of `sample`.

    sample, anchor: (B, ...), same shape.
    w: in [0, 1], for all rows or (B,) for each; 0 keeps the anchor's features, 1 is unconditional
    sampling. A denoiser that runs each row several times, as guidance does, has a multiple of B.
    Raises ValueError when the shapes differ.
    """
    if sample.shape != anchor.shape:
        raise ValueError(
            f"the sample's feature is {tuple(sample.shape)}, the anchor's {tuple(anchor.shape)}"
        )
    if isinstance(w, Tensor):
        rows = w.repeat(len(sample) // len(w)).to(sample.dtype)
        w = rows.reshape(-1, *[1] * (sample.ndim - 1))
    return w * sample + (1 - w) * anchor


def find_site(model: nn.Module, path: str) -> Site:
    """Return the module at a path such as "mid_block" or "up_blocks.0".

    Raises ValueError naming the nearest paths when there is none.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not path or path not in modules:
        near = difflib.get_close_matches(path, modules, n=3, cutoff=0.3)
        raise ValueError(
            f"the model has no module {path!r}; the nearest are {', '.join(near)} "
            "(`clsp generate --site list` prints all that can be mixed)"
        )
    return Site(path, modules[path])


def list_sites(
    denoise: Denoise, model: nn.Module, x: Tensor, t: Tensor
) -> dict[str, tuple[int, ...]]:
    """Return the paths that can be mixed, in the order in which they run, with one row's shape.

    Those are blocks of `model` that run once in `denoise(x, t)` and give one tensor with at least
    two axes a row; x: (B, C, H, W).
    """
    runs: dict[str, list[Any]] = {}
    blocks = [(path, m) for path, m in model.named_modules() if path and any(m.children())]
    handles = [
        module.register_forward_hook(
            lambda _, __, output, path=path: runs.setdefault(path, []).append(output)
        )
        for path, module in blocks
    ]
    try:
        denoise(x, t)
    finally:
        for handle in handles:
            handle.remove()
    return {
        path: tuple(outputs[0].shape[1:])
        for path, outputs in runs.items()
        if len(outputs) == 1 and isinstance(outputs[0], Tensor) and outputs[0].ndim > 2
    }


class _SiteReached(Exception):
    """Ends a forward pass at the site; it never leaves this file."""


def encode_to_site(denoise: Denoise, site: Site, x: Tensor, t: Tensor) -> Tensor:
    """Return the site's output in `denoise(x, t)`; nothing behind the site is computed."""
    reached: list[Tensor] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        reached.append(_tensor(output, site))
        raise _SiteReached

    with _hook(site.module, stop):
        try:
            denoise(x, t)
        except _SiteReached:
            return reached[0]
    raise ValueError(f"module {site.path!r} does not run in the model's forward pass")


def denoise_with(
    denoise: Denoise, site: Site, x: Tensor, t: Tensor, w: float | Tensor, anchor_feature: Tensor
) -> Tensor:
    """Return `denoise(x, t)` with the site's output mixed with the anchor's.

    w: as in `interpolate_bottleneck`; anchor_feature: as `encode_to_site` gives it.
    """
    runs = 0

    def mix(_: nn.Module, __: Any, feature: Any) -> Tensor:
        nonlocal runs
        runs += 1
        if runs > 1:
            raise ValueError(f"module {site.path!r} runs more than once in the forward pass")
        return interpolate_bottleneck(_tensor(feature, site), anchor_feature, w)

    with _hook(site.module, mix):
        output = denoise(x, t)
    if not runs:
        raise ValueError(f"module {site.path!r} does not run in the model's forward pass")
    return output


@contextmanager
def _hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _tensor(output: Any, site: Site) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(f"module {site.path!r} gives {type(output).__name__}, expected one tensor")
    return output
