"""Reference checkpoints -> diffusers' UNet2DModel, weight by weight.

The reference implementation names its blocks in the order in which they run; how many levels
there are, which of them have attention, and how many residual blocks each has is read off the
names and shapes. What plays no part in sampling (`encoder.projector`) is left out. The
class-conditional U-Net is read the same way once `convert_labels` has merged its weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from .convert_labels import LABELS, has_labels, merge_labels, replace_samplers

Weights = Mapping[str, Tensor]

_RESIDUAL = {
    "block1.0": "norm1",
    "block1.2": "conv1",
    "temb_proj.1": "time_emb_proj",
    "block2.0": "norm2",
    "block2.3": "conv2",
    "shortcut": "conv_shortcut",
}
_ATTENTION = {"group_norm": "group_norm", "proj_q": "to_q", "proj_k": "to_k", "proj_v": "to_v"}
_ATTENTION["proj"] = "to_out.0"
_ENDS = {
    "encoder.head": "conv_in",
    "decoder.tail.0": "conv_norm_out",
    "decoder.tail.2": "conv_out",
    "time_embedding.timembedding.1": "time_embedding.linear_1",
    "time_embedding.timembedding.3": "time_embedding.linear_2",
    LABELS.removesuffix(".weight"): "class_embedding",
}
_TABLE = "time_embedding.timembedding.0.weight"
_UNUSED = "encoder.projector."


def unet_from_reference(weights: Weights, image_size: int = 32) -> UNet2DModel:
    """Return the UNet2DModel that computes what the reference's U-Net of these weights does.

    weights: its state dict; any channel count, multipliers, attention levels and block count.
    With labels, its table of classes has one row more, the last, which stands for no class.
    Raises ValueError for a state dict of something else.
    """
    weights = {name.removeprefix("module."): value for name, value in weights.items()}
    labels = has_labels(weights)
    if labels:
        weights = merge_labels(weights)
    ends = ("encoder.head.weight", "decoder.tail.2.weight", "time_embedding.timembedding.3.bias")
    if not all(name in weights for name in ends):
        raise ValueError(
            "not a reference U-Net: its weights have no encoder.head, decoder.tail and "
            f"time_embedding; they begin with {', '.join(sorted(weights)[:3])}"
        )
    downs, ups = _levels(weights, "encoder.downblocks"), _levels(weights, "decoder.upblocks")
    attends = [
        [any(f"{block}.attn.proj.weight" in weights for block in level) for level in side]
        for side in (downs, ups)
    ]
    unet = UNet2DModel(
        sample_size=image_size,
        in_channels=weights["encoder.head.weight"].shape[1],
        out_channels=weights["decoder.tail.2.weight"].shape[0],
        block_out_channels=tuple(_width(weights, down[0]) for down in downs),
        layers_per_block=len(downs[0]),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends[0]),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in attends[1]),
        attention_head_dim=None,  # one head
        time_embedding_dim=len(weights["time_embedding.timembedding.3.bias"]),
        # The conditional one goes on to train its table of sinusoids.
        time_embedding_type="learned" if labels else "positional",
        num_train_timesteps=timesteps_of(weights),
        num_class_embeds=len(weights[LABELS]) if labels else None,
    )
    names = dict(_ENDS)
    if labels:
        replace_samplers(unet)
        names[_TABLE.removesuffix(".weight")] = "time_proj"
    for level, (down, up) in enumerate(zip(downs, ups, strict=True)):
        for side, blocks in (("down", down), ("up", up)):
            for number, block in enumerate(blocks):
                names |= _block(block, f"{side}_blocks.{level}", number, number)
    for kind, side, blocks in (
        ("downsamplers", "down", _samplers(weights, "encoder.downblocks")),
        ("upsamplers", "up", _samplers(weights, "decoder.upblocks")),
    ):
        for level, block in enumerate(blocks):
            for part in ("", ".0", ".1"):  # the last two where a layer has two convolutions
                names[f"{block}.main{part}"] = f"{side}_blocks.{level}.{kind}.0.conv{part}"
    for number in (0, 1):
        names |= _block(f"encoder.middleblocks.{number}", "mid_block", number, 0)
    unet.load_state_dict(_renamed(weights, names, unet.state_dict()))
    return unet.eval()


def timesteps_of(weights: Weights) -> int:
    """Return the length T of the noising chain, from the sinusoid table; 1000 without one."""
    return len(weights[_TABLE]) if _TABLE in weights else 1000


def _numbers(weights: Weights, prefix: str) -> list[int]:
    found = (re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) for name in weights)
    return sorted({int(match[1]) for match in found if match})


def _samplers(weights: Weights, prefix: str) -> list[str]:
    """The down- or upsampling blocks, which end all levels but the last."""
    blocks = (f"{prefix}.{n}" for n in _numbers(weights, prefix))
    return [block for block in blocks if f"{block}.block1.2.weight" not in weights]


def _levels(weights: Weights, prefix: str) -> list[list[str]]:
    """The residual blocks of each level, in the order in which they run."""
    levels: list[list[str]] = [[]]
    for number in _numbers(weights, prefix):
        block = f"{prefix}.{number}"
        if f"{block}.block1.2.weight" in weights:
            levels[-1].append(block)
        else:
            levels.append([])
    return levels


def _width(weights: Weights, block: str) -> int:
    return int(weights[f"{block}.block1.2.weight"].shape[0])


def _block(block: str, target: str, residual: int, attention: int) -> dict[str, str]:
    names = {f"{block}.{a}": f"{target}.resnets.{residual}.{b}" for a, b in _RESIDUAL.items()}
    return names | {
        f"{block}.attn.{a}": f"{target}.attentions.{attention}.{b}" for a, b in _ATTENTION.items()
    }


def _renamed(
    weights: Weights, names: Mapping[str, str], expected: Mapping[str, Any]
) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith(_UNUSED) or (name == _TABLE and "time_proj.weight" not in expected):
            continue
        block, _, kind = name.rpartition(".")
        if block not in names:
            raise ValueError(f"not a reference U-Net: unknown weight {name}")
        target = f"{names[block]}.{kind}"
        if target == "time_embedding.linear_1.weight" and "time_proj.weight" not in expected:
            # The reference's sinusoids alternate sine and cosine; diffusers' are all cosines
            # first (flip_sin_to_cos), then all sines.
            value = torch.cat([value[:, 1::2], value[:, 0::2]], dim=1)
        if ".attentions." in target and value.ndim == 4:
            value = value[:, :, 0, 0]  # 1x1 convolutions there, linear layers here
        result[target] = value
    missing = sorted(set(expected) - set(result))
    if missing:
        raise ValueError(f"not a whole reference U-Net: nothing gives {missing[0]}")
    return result
