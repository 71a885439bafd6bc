"""Augmentation of a whole batch on its device, with parameters of its own for each image.

Each transform gives what torchvision's transform of that name gives for the same parameters. The
parameters are drawn on the CPU from `shards.order.uniforms`, so a view is a function of (seed,
epoch, key, view) and of nothing else in the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..shards.order import F64, I64, uniforms
from .config import LOCAL_MIN, TrainConfig
from .tuples import Tuples

_TRIES = 10  # of drawing a crop that fits, as torchvision does
_RATIO = (3 / 4, 4 / 3)  # width to height of a crop
_SIGMA = (0.1, 2.0)  # of the blur, in pixels
DRAWS = 2 * _TRIES + 16  # uniform numbers that one view of one image takes

Bool = np.ndarray[tuple[int], np.dtype[np.bool_]]


@dataclass(frozen=True)
class ViewParameters:
    """What was drawn for one view of B images, on the CPU.

    box: (B, 4) crop as top, left, height, width in pixels; factors: (B, 4) of brightness,
    contrast, saturation and hue; order: (B, 4), the order in which those are applied; flip,
    jitter, grey, solarize, blur: (B,) whether to; sigma: (B,) of the blur.
    """

    box: I64
    flip: Bool
    jitter: Bool
    factors: F64
    order: I64
    grey: Bool
    solarize: Bool
    blur: Bool
    sigma: F64


def draw_parameters(
    config: TrainConfig, uniform: F64, size: int, *, local: bool = False, second: bool = False
) -> ViewParameters:
    """Turn uniform numbers (B, DRAWS) into the parameters of a view of images of `size` pixels.

    local: a small crop; second: the anchor's second view.
    """
    crop, rest = uniform[:, : 2 * _TRIES + 2], uniform[:, 2 * _TRIES + 2 :]
    reach = np.array(config.jitter)
    low = np.concatenate([np.maximum(0, 1 - reach[:3]), -reach[3:]])
    high = np.concatenate([1 + reach[:3], reach[3:]])
    areas = (LOCAL_MIN, config.crop_min) if local else (config.crop_min, 1.0)
    solarizes = second or config.solarize_views == "all"
    return ViewParameters(
        box=_draw_boxes(crop, areas, size),
        flip=rest[:, 0] < config.flip_p,
        jitter=rest[:, 1] < config.jitter_p,
        factors=low + (high - low) * rest[:, 2:6],
        order=np.argsort(rest[:, 6:10], axis=1, kind="stable"),
        grey=rest[:, 10] < config.grey_p,
        solarize=rest[:, 11] < (config.solarize_p if solarizes else 0.0),
        blur=rest[:, 12] < config.blur_p,
        sigma=_SIGMA[0] + (_SIGMA[1] - _SIGMA[0]) * rest[:, 13],
    )


def _draw_boxes(uniform: F64, areas: tuple[float, float], size: int) -> I64:
    """Crops of a random area and shape: the first of the tries that fits, else the whole image."""
    least, most = areas
    area = size * size * (least + (most - least) * uniform[:, :_TRIES])
    log_low, log_high = np.log(_RATIO)
    ratio = np.exp(log_low + (log_high - log_low) * uniform[:, _TRIES : 2 * _TRIES])
    width = np.round(np.sqrt(area * ratio)).astype(np.int64)
    height = np.round(np.sqrt(area / ratio)).astype(np.int64)
    fits = (width >= 1) & (width <= size) & (height >= 1) & (height <= size)
    rows, first = np.arange(len(uniform)), fits.argmax(axis=1)
    found = fits.any(axis=1)
    height = np.where(found, height[rows, first], size)
    width = np.where(found, width[rows, first], size)
    top = (uniform[:, -2] * (size - height + 1)).astype(np.int64)
    left = (uniform[:, -1] * (size - width + 1)).astype(np.int64)
    return np.stack([top, left, height, width], axis=1)


def make_view(
    images: Tensor, drawn: ViewParameters, config: TrainConfig, side: int | None = None
) -> Tensor:
    """Return one view of each image, (B, 3, side, side) float32, normalised.

    images: (B, 3, S, S) uint8 on any device; side: pixels a side of the view, S by default.
    """
    x = resized_crop(images.float() / 255, drawn.box, drawn.flip, side)
    for place in range(4):
        for number, operation in enumerate(_JITTER):
            chosen = drawn.jitter & (drawn.order[:, place] == number)
            _apply(x, chosen, operation, drawn.factors[:, number])
    _apply(x, drawn.grey, lambda part, _: grey(part).expand_as(part))
    _apply(x, drawn.blur, blur, drawn.sigma)
    _apply(x, drawn.solarize, lambda part, _: solarize(part))
    return _normalise(x, config)


def _normalise(x: Tensor, config: TrainConfig) -> Tensor:
    mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (config.mean, config.std))
    return x.sub_(mean).div_(std)


def make_views(item: Tuples, config: TrainConfig, device: torch.device) -> list[Tensor]:
    """Return the views of a batch: two of the anchors, then, if the config has them, local crops
    of the anchors, and M positives.

    Each (b, 3, S, S) float32 on `device`, S smaller for local crops. All are augmented alike, but
    for what the config excepts, every draw a function of (seed, epoch, key, view).
    """
    anchor = item.anchor.to(device, non_blocking=True)
    size = anchor.shape[-1]
    images = [anchor, anchor]
    if config.positive == "real":
        images += [anchor] * config.positives
    images += item.positives.to(device, non_blocking=True).unbind(1)

    def draws(view: str) -> F64:
        return uniforms(config.seed, int(item.epoch), item.keys, view, DRAWS)

    views = []
    for number, image in enumerate(images):
        if number >= 2 and not config.augment_positives:
            views.append(_normalise(image.float() / 255, config))
            continue
        drawn = draw_parameters(config, draws(f"view{number}"), size, second=number == 1)
        views.append(make_view(image, drawn, config))
    for number in range(config.local_crops):
        drawn = draw_parameters(config, draws(f"local{number}"), size, local=True)
        views.insert(2 + number, make_view(anchor, drawn, config, config.local_size or size // 2))
    return views


def _apply(
    x: Tensor,
    chosen: Bool,
    operation: Callable[[Tensor, Tensor], Tensor],
    factors: F64 | None = None,
) -> None:
    """Replace the chosen images of `x`. Chosen on the CPU, so no device has to be waited for."""
    rows = np.flatnonzero(chosen)
    if len(rows):
        factor = np.zeros(len(rows)) if factors is None else factors[rows]
        on_device = torch.from_numpy(rows).to(x.device, non_blocking=True)
        amount = torch.from_numpy(factor).to(x.device, x.dtype, non_blocking=True)
        x[on_device] = operation(x[on_device], amount.view(-1, 1, 1, 1))


def resized_crop(images: Tensor, box: I64, flip: Bool, side: int | None = None) -> Tensor:
    """Cut a box out of each image, scale it to (side, side), and mirror it where asked.

    images: (B, C, S, S) float; box: (B, 4) top, left, height, width; flip: (B,); side: S if None.
    Antialiased bilinear: two products with resampling matrices, one of them with its rows
    reversed to mirror.
    """
    size = images.shape[-1]
    rows = _resampling(box[:, 0], box[:, 2], size, side or size)
    columns = _resampling(box[:, 1], box[:, 3], size, side or size)
    columns = np.where(flip[:, None, None], columns[:, ::-1], columns)
    down, across = (
        torch.from_numpy(m).to(images.device, images.dtype, non_blocking=True)[:, None]
        for m in (rows, columns)
    )
    return down @ images @ across.transpose(2, 3)


def _resampling(start: I64, length: I64, size: int, side: int) -> F64:
    """(B, side, S) matrices that scale pixels start..start+length of a line of S to `side`."""
    scale = (length / side)[:, None, None]
    centre = (np.arange(side)[:, None] + 0.5) * scale  # (B, side, 1), in pixels of the crop
    pixel = np.arange(size) - start[:, None, None] + 0.5  # (B, 1, S)
    weight = np.maximum(0, 1 - np.abs(pixel - centre) / np.maximum(scale, 1))
    weight *= (pixel > 0) & (pixel < length[:, None, None])
    return np.asarray(weight / weight.sum(axis=2, keepdims=True))


def grey(x: Tensor) -> Tensor:
    """Return the luma of (B, 3, H, W) as (B, 1, H, W), with ITU-R 601's weights."""
    red, green, blue = x.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue).unsqueeze(1)


def _blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (factor * x + (1 - factor) * other).clamp_(0, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Scale (B, 3, H, W) in [0, 1] by factor (B, 1, 1, 1); 1 changes nothing."""
    return (x * factor).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from the image's mean luma; 1 changes nothing."""
    return _blend(x, grey(x).mean(dim=(2, 3), keepdim=True), factor)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from each pixel's luma; 0 is a grey image, 1 changes nothing."""
    return _blend(x, grey(x), factor)


def adjust_hue(x: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue by a share of the colour circle, `turn` (B, 1, 1, 1) in [-0.5, 0.5]."""
    value, at = x.max(dim=1)
    chroma = value - x.min(dim=1).values
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    red, green, blue = x.unbind(1)
    # The sector of the colour circle, in sixths, counted from the largest channel's own.
    from_red, from_green, from_blue = (
        (green - blue),
        (blue - red) + 2 * safe,
        (red - green) + 4 * safe,
    )
    sixths = torch.where(at == 0, from_red, torch.where(at == 1, from_green, from_blue)) / safe
    sixths = (torch.where(chroma > 0, sixths, torch.zeros_like(sixths)) + 6 * turn[:, 0]) % 6
    # A channel is V - C * clamp(min(k, 4 - k), 0, 1) with k its distance on the circle.
    offset = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(3, 1, 1)
    k = (offset + sixths.unsqueeze(1)) % 6
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Blur (B, 3, H, H) by a Gaussian of deviation `sigma` (B, 1, 1, 1); edges are repeated."""
    reach, side = int(4 * _SIGMA[1]), x.shape[-1]
    offset = torch.arange(-reach, reach + 1, device=x.device)
    weight = (-0.5 * (offset / sigma.view(-1, 1)).square()).exp()
    weight = weight / weight.sum(dim=1, keepdim=True)  # (B, 17)
    source = (torch.arange(side, device=x.device)[:, None] + offset).clamp(0, side - 1)
    kernel = x.new_zeros(len(x), side, side)
    kernel.scatter_add_(2, source.expand(len(x), -1, -1), weight[:, None].expand(-1, side, -1))
    return kernel[:, None] @ x @ kernel[:, None].transpose(2, 3)


def solarize(x: Tensor) -> Tensor:
    """Invert every value of at least one half."""
    return torch.where(x >= 0.5, 1 - x, x)


_JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)
