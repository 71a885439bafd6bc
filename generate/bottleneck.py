"""The method: mix a random sample's bottleneck features with an anchor's, and finish the sample.

The site, the module whose output is mixed, is found by its path and hooked, so that any denoiser
will do whose forward runs through one module with one tensor as output.

Zeng et al., 2024, arXiv:2408.16965.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


def interpolate_bottleneck(sample: Tensor, anchor: Tensor, w: float) -> Tensor:
    """Mix two bottleneck features; `w` is the share of `sample`.

    sample, anchor: (B, C, H, W), same shape.
    w: in [0, 1]; 0 keeps the anchor's features, 1 is unconditional sampling.
    Raises ValueError when the shapes differ.
    """
    if sample.shape != anchor.shape:
        raise ValueError(
            f"the sample's feature is {tuple(sample.shape)}, the anchor's {tuple(anchor.shape)}"
        )
    return w * sample + (1 - w) * anchor


def find_site(model: nn.Module, site: str) -> nn.Module:
    """Return the module at a path such as "mid_block" or "up_blocks.0".

    Raises ValueError naming the nearest paths when there is none.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    if not site or site not in modules:
        near = difflib.get_close_matches(site, modules, n=3, cutoff=0.3)
        raise ValueError(f"the model has no module {site!r}; the nearest are {', '.join(near)}")
    return modules[site]


class _SiteReached(Exception):
    """Ends a forward pass at the site; it never leaves this file."""


def encode_to_site(model: nn.Module, site: str, x: Tensor, t: Tensor) -> Tensor:
    """Return the site's output for (x, t); nothing behind the site is computed.

    x: (B, C, H, W) at noise level t, a scalar or (B,).
    """
    reached: list[Tensor] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        reached.append(_tensor(output, site))
        raise _SiteReached

    with _hook(find_site(model, site), stop):
        try:
            model(x, t)
        except _SiteReached:
            return reached[0]
    raise ValueError(f"module {site!r} does not run in the model's forward pass")


def denoise_with(
    model: nn.Module, site: str, x: Tensor, t: Tensor, w: float, anchor_feature: Tensor
) -> Tensor:
    """Return the model's output for (x, t) with the site's output mixed with the anchor's.

    x: (B, C, H, W); anchor_feature: the site's output for the anchors, as `encode_to_site` gives.
    With w = 1 this is a plain call of the model.
    """
    if w == 1:
        output: Tensor = model(x, t).sample
        return output
    met = False

    def mix(_: nn.Module, __: Any, feature: Any) -> Tensor:
        nonlocal met
        met = True
        return interpolate_bottleneck(_tensor(feature, site), anchor_feature, w)

    with _hook(find_site(model, site), mix):
        output = model(x, t).sample
    if not met:
        raise ValueError(f"module {site!r} does not run in the model's forward pass")
    return output


@contextmanager
def _hook(module: nn.Module, hook: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _tensor(output: Any, site: str) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(f"module {site!r} gives {type(output).__name__}, expected one tensor")
    return output
