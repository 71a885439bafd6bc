"""Reference checkpoints: the numbers of the reference implementation, and any other shape.

data/unet_small.npz holds what the reference implementation computed, with seeded weights.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel

from clsp.generate.bottleneck import Denoise, denoise_with, encode_to_site, find_site
from clsp.generate.convert import timesteps_of, unet_from_reference
from clsp.generate.denoiser import ModelError
from clsp.generate.diffusion import open_model
from clsp.generate.families import unet_run
from clsp.generate.sampler import make_scheduler, sample_positives

DATA = np.load(Path(__file__).parent / "data" / "unet_small.npz")
CONFIG: dict[str, Any] = json.loads(str(DATA["config"]))


def reference_weights() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(int(DATA["seed"]))
    weights = {}
    for name, shape in sorted(json.loads(str(DATA["weights"])).items()):
        value = rng.standard_normal(shape).astype(np.float32)
        value = value / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else value * 0.1
        weights[name] = torch.from_numpy(value + (len(shape) == 1 and name.endswith("weight")))
    return {name: value.float() for name, value in weights.items()}


class GivenNoise:
    """The noises that the reference run drew, in place of keyed ones."""

    def __init__(self, x_T: torch.Tensor, noises: torch.Tensor) -> None:
        self.x_T, self.noises = x_T, noises

    def initial(self, positive: int) -> torch.Tensor:
        return self.x_T

    def anchor(self, step: int) -> torch.Tensor:
        return self.noises[step, 0]

    def step(self, positive: int, step: int) -> torch.Tensor:
        return self.noises[step, 1]

    def generators(self, positive: int, step: int) -> list[torch.Generator]:
        raise AssertionError("DDIM takes its noise as a tensor")


@pytest.fixture(scope="module")
def unet() -> UNet2DModel:
    return unet_from_reference(reference_weights(), CONFIG["img_size"])


@pytest.fixture(scope="module")
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(int(DATA["seed"]) + 1)
    shape = (CONFIG["batch"], 3, CONFIG["img_size"], CONFIG["img_size"])
    x_T, anchor = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    noises = rng.standard_normal((int(DATA["steps"]), 2, *shape)).astype(np.float32)
    return torch.from_numpy(x_T), torch.from_numpy(anchor.clip(-1, 1)), torch.from_numpy(noises)


def denoiser_of(unet: UNet2DModel) -> Denoise:
    run = unet_run(unet)
    return lambda x, t: run(x, t, None)


@torch.no_grad()
def test_one_pass_gives_the_references_numbers(unet: UNet2DModel, inputs: Any) -> None:
    x_T, anchor, _ = inputs
    t = torch.from_numpy(DATA["t"])
    w = float(DATA["w"])
    site, denoise = find_site(unet, "mid_block"), denoiser_of(unet)
    bottleneck = encode_to_site(denoise, site, x_T, t)
    mixed = denoise_with(denoise, site, x_T, t, w, encode_to_site(denoise, site, anchor, t))
    for found, name in (
        (bottleneck, "bottleneck"),
        (unet(x_T, t).sample, "eps"),
        (mixed, "eps_interpolated"),
    ):
        np.testing.assert_allclose(found.numpy(), DATA[name], atol=1e-4, rtol=0)


def test_sampling_gives_the_references_images(unet: UNet2DModel, inputs: Any) -> None:
    x_T, anchor, noises = inputs
    scheduler = make_scheduler(
        "ddim",
        {
            "num_train_timesteps": CONFIG["T"],
            "beta_start": CONFIG["beta_1"],
            "beta_end": CONFIG["beta_T"],
        },
    )
    found = sample_positives(
        denoiser_of(unet),
        find_site(unet, "mid_block"),
        scheduler,
        anchor,
        GivenNoise(x_T, noises),
        positives=1,
        w=float(DATA["w"]),
        steps=int(DATA["steps"]),
        eta=float(DATA["eta"]),
    )[:, 0]
    expected = DATA["x_0_unclipped"]
    assert scheduler.timesteps.tolist() == list(range(999, 0, -100))
    assert np.abs(found.numpy() - expected).max() < 1e-4 * expected.std()


SHAPES = [
    (32, (1,), (), 1),
    (32, (1, 2), (0,), 2),
    (32, (1, 2, 2, 2), (1,), 2),
    (64, (1, 1, 2), (0, 2), 3),
]


@pytest.mark.parametrize(("channel", "mult", "attention", "blocks"), SHAPES)
@torch.no_grad()
def test_any_shape_is_read_off_the_weights(
    channel: int, mult: tuple[int, ...], attention: tuple[int, ...], blocks: int
) -> None:
    """A diffusers model, its weights given the reference's names, comes back the same."""
    torch.manual_seed(0)
    levels = range(len(mult))
    model = UNet2DModel(
        sample_size=8,
        block_out_channels=tuple(channel * m for m in mult),
        layers_per_block=blocks,
        attention_head_dim=None,
        down_block_types=[("Attn" * (i in attention)) + "DownBlock2D" for i in levels],
        up_block_types=[("Attn" * (i in attention)) + "UpBlock2D" for i in reversed(levels)],
    ).eval()
    converted = unet_from_reference(as_reference(model, blocks), 8)
    for name in ("block_out_channels", "layers_per_block", "down_block_types", "up_block_types"):
        found, expected = converted.config[name], model.config[name]
        assert list(np.atleast_1d(found)) == list(np.atleast_1d(expected))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 700])
    assert torch.equal(converted(x, t).sample, model(x, t).sample)


def as_reference(model: UNet2DModel, blocks: int) -> dict[str, torch.Tensor]:
    """Give a model's weights the names and layouts of a reference checkpoint."""
    inner = {
        "norm1": "block1.0",
        "conv1": "block1.2",
        "time_emb_proj": "temb_proj.1",
        "norm2": "block2.0",
        "conv2": "block2.3",
        "conv_shortcut": "shortcut",
    }
    heads = {"to_q": "proj_q", "to_k": "proj_k", "to_v": "proj_v", "to_out.0": "proj"}
    ends = {
        "conv_in": "encoder.head",
        "conv_norm_out": "decoder.tail.0",
        "conv_out": "decoder.tail.2",
        "time_embedding.linear_1": "time_embedding.timembedding.1",
        "time_embedding.linear_2": "time_embedding.timembedding.3",
    }
    result = {"encoder.projector.0.weight": torch.zeros(1)}
    for name, value in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        parts = module.split(".")
        if module in ends:
            target = ends[module]
            if module == "time_embedding.linear_1" and kind == "weight":
                half = value.shape[1] // 2
                value = torch.stack([value[:, half:], value[:, :half]], dim=2).flatten(1)
        else:
            side, level = parts[0], int(parts[1]) if parts[0] != "mid_block" else 0
            rest = parts[1:] if side == "mid_block" else parts[2:]
            number, leaf = int(rest[1]), ".".join(rest[2:])
            per_level = blocks + 1 if side == "down_blocks" else blocks + 2
            root = {
                "mid_block": f"encoder.middleblocks.{number}",
                "down_blocks": f"encoder.downblocks.{level * per_level + number}",
                "up_blocks": f"decoder.upblocks.{level * per_level + number}",
            }[side]
            if rest[0] == "resnets":
                target = f"{root}.{inner[leaf]}"
            elif rest[0] == "attentions":
                target = f"{root}.attn.{heads.get(leaf, leaf)}"
                value = value[:, :, None, None] if value.ndim == 2 else value
            else:
                place = level * per_level + per_level - 1
                side = "encoder.down" if rest[0][0] == "d" else "decoder.up"
                target = f"{side}blocks.{place}.main"
        result[f"{target}.{kind}"] = value
    return result


def test_the_sinusoid_table_says_how_long_the_chain_is() -> None:
    weights = {**reference_weights(), "time_embedding.timembedding.0.weight": torch.zeros(400, 32)}
    assert timesteps_of(weights) == 400
    assert timesteps_of(reference_weights()) == 1000
    unet_from_reference(weights, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {"layer.weight": torch.zeros(1)}, "no encoder.head"),
        (lambda w: {**w, "encoder.extra.weight": torch.zeros(1)}, "unknown weight encoder.extra"),
        (
            lambda w: {k: v for k, v in w.items() if k != "encoder.middleblocks.1.block1.2.bias"},
            "nothing gives mid_block.resnets.1.conv1.bias",
        ),
    ],
)
def test_another_state_dict_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unet_from_reference(change(reference_weights()), 16)


def test_a_file_that_is_no_checkpoint_is_refused_without_bad_advice(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_text("import this")
    with pytest.raises(ModelError, match=r"file of tensors only, and it cannot be") as e:
        open_model(str(path))
    assert "weights_only" not in str(e.value)  # torch advises to switch the check off
