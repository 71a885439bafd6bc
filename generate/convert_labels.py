"""The reference's class-conditional weights -> those of its unconditional U-Net, plus a table.

Its conditional U-Net differs in four places. Three of them are other ways to write what the
unconditional one has, so they become weights of that: each block adds a projection of the label's
embedding to the one of the time's, which is one projection of both, end to end; what a label's
embedding is depends on the label alone, so it is a table; and the two convolutions that are summed
to halve an image are one. The fourth, doubling an image by a transposed convolution, stays.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn import functional as F

Weights = Mapping[str, Tensor]

LABELS = "label_embedding.weight"  # the table's name among the merged weights
_EMBEDDING = "cond_embedding.condEmbedding"
_TIME = "time_embedding.timembedding"
_PLACES = {"head": "encoder", "downblocks": "encoder", "middleblocks": "encoder"}
_PLACES |= {"upblocks": "decoder", "tail": "decoder"}
_PARTS = {r"\.c1\.": ".main.", r"(upblocks\.\d+)\.t\.": r"\1.main.0.", r"\.c\.": ".main.1."}


def has_labels(weights: Weights) -> bool:
    """Return whether a state dict is of the class-conditional U-Net."""
    return f"{_EMBEDDING}.0.weight" in weights


def merge_labels(weights: Weights) -> dict[str, Tensor]:
    """Return the weights under the unconditional U-Net's names, the labels' table among them.

    The embedding of the time is as wide as both; its second half is left to the label's, whose
    table has a row a class and then, last, that of no class, which comes first in the reference.
    Raises ValueError when weights are missing.
    """
    rest = dict(weights)

    def take(name: str) -> Tensor:
        if name not in rest:
            raise ValueError(f"not a whole reference U-Net with labels: no weight {name}")
        return rest.pop(name)

    table = take(f"{_EMBEDDING}.0.weight")
    for layer in (1, 3):
        table = F.silu(table) if layer == 3 else table
        table = F.linear(
            table, take(f"{_EMBEDDING}.{layer}.weight"), take(f"{_EMBEDDING}.{layer}.bias")
        )
    width = table.shape[1]
    merged = {LABELS: F.pad(table.roll(-1, dims=0), (width, 0))}
    # The second half comes out as 0 of the time's embedding, and goes in as nothing.
    for layer, inputs in ((1, 0), (3, width)):
        weight, bias = take(f"{_TIME}.{layer}.weight"), take(f"{_TIME}.{layer}.bias")
        merged[f"{_TIME}.{layer}.weight"] = F.pad(weight, (0, inputs, 0, width))
        merged[f"{_TIME}.{layer}.bias"] = F.pad(bias, (0, width))
    for name in [name for name in rest if name.endswith(".temb_proj.1.weight")]:
        block = name.removesuffix(".temb_proj.1.weight")
        time, label = f"{block}.temb_proj.1", f"{block}.cond_proj.1"
        both = torch.cat([take(f"{time}.weight"), take(f"{label}.weight")], dim=1)
        rest |= {
            f"{time}.weight": both,
            f"{time}.bias": take(f"{time}.bias") + take(f"{label}.bias"),
        }
    for name in [name for name in rest if name.endswith(".c1.weight")]:
        block = name.removesuffix(".c1.weight")
        small = F.pad(take(f"{block}.c1.weight"), (1, 1, 1, 1))
        rest[f"{block}.c1.weight"] = take(f"{block}.c2.weight") + small
        rest[f"{block}.c1.bias"] = take(f"{block}.c1.bias") + take(f"{block}.c2.bias")
    return merged | {_renamed(name): value for name, value in rest.items()}


def replace_samplers(unet: UNet2DModel) -> None:
    """Give a U-Net the conditional one's layers between its levels, with fresh weights."""
    for block in unet.down_blocks[:-1]:
        layer = block.downsamplers[0]
        layer.conv = nn.Conv2d(layer.channels, layer.channels, 5, stride=2, padding=2)
    for block in unet.up_blocks[:-1]:
        layer = block.upsamplers[0]
        layer.interpolate = False
        double = nn.ConvTranspose2d(
            layer.channels, layer.channels, 5, stride=2, padding=2, output_padding=1
        )
        layer.conv = nn.Sequential(double, nn.Conv2d(layer.channels, layer.channels, 3, padding=1))


def _renamed(name: str) -> str:
    for found, meant in _PARTS.items():
        name = re.sub(found, meant, name)
    place = _PLACES.get(name.partition(".")[0])
    return f"{place}.{name}" if place else name
