"""The class-conditional checkpoint: a plain reading of its network, weight by weight."""

from __future__ import annotations

import json
import math
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from clsp.generate.__main__ import main
from clsp.generate.bottleneck import encode_to_site, find_site
from clsp.generate.config import GenerateConfig
from clsp.generate.convert import unet_from_reference
from clsp.generate.denoiser import ModelError
from clsp.generate.diffusion import open_model
from clsp.generate.records import BatchSampler

CLASSES, CHANNEL, MULT, BLOCKS, T = 10, 32, (1, 2, 2), 2, 50
Weights = dict[str, Tensor]


def conditional_weights() -> Weights:
    """A state dict with the names and shapes of the reference's conditional U-Net, drawn."""
    shapes: dict[str, tuple[int, ...]] = {}
    wide = 4 * CHANNEL

    def layer(name: str, *shape: int, out: int = 0) -> None:
        shapes[f"{name}.weight"] = shape
        shapes[f"{name}.bias"] = (shape[out],)

    def residual(name: str, given: int, made: int, *, attention: bool) -> None:
        layer(f"{name}.block1.0", given)
        layer(f"{name}.block1.2", made, given, 3, 3)
        layer(f"{name}.temb_proj.1", made, wide)
        layer(f"{name}.cond_proj.1", made, wide)
        layer(f"{name}.block2.0", made)
        layer(f"{name}.block2.3", made, made, 3, 3)
        if given != made:
            layer(f"{name}.shortcut", made, given, 1, 1)
        if attention:
            layer(f"{name}.attn.group_norm", made)
            for part in ("proj_q", "proj_k", "proj_v", "proj"):
                layer(f"{name}.attn.{part}", made, made, 1, 1)

    for place, rows in (("time_embedding.timembedding", T), ("cond_embedding.condEmbedding", 11)):
        shapes[f"{place}.0.weight"] = (rows, CHANNEL)
        layer(f"{place}.1", wide, CHANNEL)
        layer(f"{place}.3", wide, wide)
    layer("head", CHANNEL, 3, 3, 3)
    skips, now, number = [CHANNEL], CHANNEL, 0
    for level, multiple in enumerate(MULT):
        for _ in range(BLOCKS):
            residual(f"downblocks.{number}", now, CHANNEL * multiple, attention=True)
            now, number = CHANNEL * multiple, number + 1
            skips.append(now)
        if level < len(MULT) - 1:
            layer(f"downblocks.{number}.c1", now, now, 3, 3)
            layer(f"downblocks.{number}.c2", now, now, 5, 5)
            number += 1
            skips.append(now)
    residual("middleblocks.0", now, now, attention=True)
    residual("middleblocks.1", now, now, attention=False)
    number = 0
    for level, multiple in reversed(list(enumerate(MULT))):
        for _ in range(BLOCKS + 1):
            made = CHANNEL * multiple
            residual(f"upblocks.{number}", now + skips.pop(), made, attention=False)
            now, number = made, number + 1
        if level:
            layer(f"upblocks.{number}.c", now, now, 3, 3)
            layer(f"upblocks.{number}.t", now, now, 5, 5, out=1)
            number += 1
    layer("tail.0", now)
    layer("tail.2", 3, now, 3, 3)

    random = torch.Generator().manual_seed(0)
    weights = {}
    for name, shape in shapes.items():
        value = torch.randn(shape, generator=random)
        weights[name] = value / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.1 * value
        if len(shape) == 1 and name.endswith("weight"):
            weights[name] += 1
        if name.endswith("mbedding.0.weight"):
            weights[name] = 3 * value  # a table; so large that labels count
    return weights


def plain_reading(w: Weights, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The bottleneck and eps of that network; labels: 0 is none, 1 the first class."""

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, w[f"{name}.weight"], w[f"{name}.bias"])

    def conv(name: str, h: Tensor, padding: int = 1, stride: int = 1) -> Tensor:
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)

    def linear(name: str, h: Tensor) -> Tensor:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def swish(h: Tensor) -> Tensor:
        return h * torch.sigmoid(h)

    def embed(name: str, row: Tensor) -> Tensor:
        return linear(f"{name}.3", swish(linear(f"{name}.1", w[f"{name}.0.weight"][row])))

    def residual(name: str, h: Tensor) -> Tensor:
        inner = conv(f"{name}.block1.2", swish(norm(f"{name}.block1.0", h)))
        inner = inner + linear(f"{name}.temb_proj.1", swish(time))[:, :, None, None]
        inner = inner + linear(f"{name}.cond_proj.1", swish(label))[:, :, None, None]
        inner = conv(f"{name}.block2.3", swish(norm(f"{name}.block2.0", inner)))
        h = inner + (conv(f"{name}.shortcut", h, 0) if f"{name}.shortcut.bias" in w else h)
        if f"{name}.attn.proj.bias" not in w:
            return h
        normed = norm(f"{name}.attn.group_norm", h)
        q, k, v = (conv(f"{name}.attn.proj_{part}", normed, 0).flatten(2) for part in "qkv")
        weights = (q.transpose(1, 2) @ k / math.sqrt(q.shape[1])).softmax(-1)  # (B, HW, HW)
        return h + conv(f"{name}.attn.proj", (v @ weights.transpose(1, 2)).view_as(h), 0)

    time = embed("time_embedding.timembedding", t)
    label = embed("cond_embedding.condEmbedding", labels)
    h = conv("head", x)
    skips = [h]
    for number in range(len(MULT) * (BLOCKS + 1) - 1):
        name = f"downblocks.{number}"
        if f"{name}.c1.bias" in w:
            h = conv(f"{name}.c1", h, 1, 2) + conv(f"{name}.c2", h, 2, 2)
        else:
            h = residual(name, h)
        skips.append(h)
    bottleneck = h = residual("middleblocks.1", residual("middleblocks.0", h))
    for number in range(len(MULT) * (BLOCKS + 2) - 1):
        name = f"upblocks.{number}"
        if f"{name}.t.bias" in w:
            double = F.conv_transpose2d(h, w[f"{name}.t.weight"], w[f"{name}.t.bias"], 2, 2, 1)
            h = conv(f"{name}.c", double)
        else:
            h = residual(name, torch.cat([h, skips.pop()], dim=1))
    assert not skips
    return bottleneck, conv("tail.2", swish(norm("tail.0", h)))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "conditional.pt"
    torch.save(conditional_weights(), path)
    return path


@torch.no_grad()
def test_it_is_the_network_that_was_read(checkpoint: Path) -> None:
    model, weights = open_model(str(checkpoint), image_size=16), conditional_weights()
    random = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 16, 16, generator=random)
    t, labels = torch.tensor([0, 7, 30, T - 1]), torch.tensor([0, 3, 9, 5])
    bottleneck, eps = plain_reading(weights, x, t, labels + 1)
    none = plain_reading(weights, x, t, torch.zeros_like(labels))[1]
    assert (eps - none).abs().mean() > 0.01  # labels count
    denoise = model.denoiser(labels)
    found = encode_to_site(denoise, find_site(model.network, model.site), x, t)
    torch.testing.assert_close(found, bottleneck, atol=1e-4, rtol=0)
    torch.testing.assert_close(denoise(x, t), eps, atol=1e-4, rtol=0)
    guided = model.denoiser(labels, 1.8)(x, t)
    torch.testing.assert_close(guided, 2.8 * eps - 1.8 * none, atol=5e-4, rtol=0)


def test_it_says_its_labels_and_noise_levels(checkpoint: Path) -> None:
    model = open_model(str(checkpoint), image_size=16)
    assert model.label_rows == CLASSES + 1
    model.check_labels(CLASSES, 1.8)
    assert model.scheduler_config["beta_end"] == 0.028
    assert model.scheduler_config["num_train_timesteps"] == T


def test_a_set_has_the_size_that_was_given(
    checkpoint: Path, digit_folder: Path, tmp_path: Path
) -> None:
    """The file does not say it; plan and workers know it."""
    arguments = [f"--images=folder:{digit_folder}", f"--model={checkpoint}", f"--out={tmp_path}"]
    flags = ["--positives=1", "--steps=1", "--shard-size=30", "--shards=0:1", "--image-size=8"]
    result = CliRunner().invoke(main, [*arguments, *flags, "--device=cpu", "--workers=1"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "plan.json").read_text())["model"]["image_size"] == 8
    with tarfile.open(tmp_path / "data" / "train-00000.tar") as tar:
        for member in tar.getmembers():
            if member.name.endswith(".png"):
                assert Image.open(tar.extractfile(member)).size == (8, 8)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])  # timesteps as integers and as floats
def test_positives_are_made_with_it(checkpoint: Path, scheduler: str) -> None:
    model = open_model(str(checkpoint), image_size=16)
    config = GenerateConfig(positives=1, steps=2, scheduler=scheduler, site=model.site)
    anchors = np.zeros((2, 16, 16, 3), np.uint8)
    made = {}
    for guidance in (0.0, 1.8):
        setting = replace(config, guidance=guidance)
        sampler = BatchSampler(setting, model, torch.device("cpu"), "conditional.pt")
        made[guidance], _ = sampler.sample(anchors, ["a", "b"], [3, 7])
    assert (made[0.0] != made[1.8]).any()


@pytest.mark.parametrize(
    "name",
    [
        "cond_embedding.condEmbedding.3.bias",
        "time_embedding.timembedding.1.weight",
        "downblocks.1.cond_proj.1.weight",
        "downblocks.2.c2.bias",
    ],
)
def test_a_missing_weight_is_named(name: str) -> None:
    weights = conditional_weights()
    del weights[name]
    with pytest.raises(ValueError, match=f"no weight {name}"):
        unet_from_reference(weights, 16)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    weights = conditional_weights()
    del weights["upblocks.3.t.weight"]
    torch.save(weights, tmp_path / "cut.pt")
    with pytest.raises(ModelError, match=r"cut\.pt: .*upsamplers\.0\.conv\.0\.weight"):
        open_model(str(tmp_path / "cut.pt"))
