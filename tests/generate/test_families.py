"""Each family of diffusion models: a tiny one that diffusers saved comes back as what it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    LDMPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)

from benchmarks.common import tiny_unet
from clsp.generate.__main__ import main
from clsp.generate.config import GenerateConfig
from clsp.generate.denoiser import ModelError
from clsp.generate.diffusion import open_model
from clsp.generate.run import generate
from clsp.generate.sampler import make_scheduler
from clsp.shards.store import open_set

TINY = GenerateConfig(positives=2, steps=2, batch=4, shard_size=4)


def autoencoder(kind: type) -> AutoencoderKL | VQModel:
    torch.manual_seed(1)
    blocks = {"VQModel": {"num_vq_embeddings": 16}}.get(kind.__name__, {})
    return kind(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        **blocks,
    ).eval()


def ddpm(folder: Path) -> None:
    DDPMPipeline(tiny_unet(), DDPMScheduler()).save_pretrained(folder)


def ddim(folder: Path) -> None:
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    DDIMPipeline(tiny_unet(), scheduler).save_pretrained(folder)


def edm(folder: Path) -> None:
    DDPMPipeline(tiny_unet(), EDMEulerScheduler()).save_pretrained(folder)


def with_labels(folder: Path) -> None:
    DDPMPipeline(tiny_unet(num_class_embeds=11), DDPMScheduler()).save_pretrained(folder)


def latent_vq(folder: Path) -> None:
    pipeline = LDMPipeline(autoencoder(VQModel), tiny_unet(4, 4), DDIMScheduler())
    pipeline.save_pretrained(folder)


def latent_kl(folder: Path) -> None:
    pipeline = LDMPipeline(autoencoder(AutoencoderKL), tiny_unet(4, 4), DDIMScheduler())
    pipeline.save_pretrained(folder)


def dit(folder: Path) -> None:
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=3,
        sample_size=4,
        num_embeds_ada_norm=10,
    )
    DiTPipeline(transformer, autoencoder(AutoencoderKL), DDIMScheduler()).save_pretrained(folder)


def stable_diffusion(folder: Path) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    words = folder.parent / "words"
    words.mkdir()
    vocabulary = ["a", "a</w>", "<|startoftext|>", "<|endoftext|>"]
    (words / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}))
    (words / "merges.txt").write_text("#version: 0.2\n")
    text = CLIPTextConfig(
        vocab_size=4,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=7,
        bos_token_id=2,
        eos_token_id=3,
    )
    network = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
    )
    StableDiffusionPipeline(
        vae=autoencoder(AutoencoderKL),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer.from_pretrained(words, model_max_length=7),
        unet=network,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


FAMILIES = [ddpm, ddim, edm, with_labels, latent_vq, latent_kl, dit, stable_diffusion]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Callable[[Path], None]], Path]:
    """A function that saves the pipeline of a family, once."""
    root, made = tmp_path_factory.mktemp("families"), set()

    def save(family: Callable[[Path], None]) -> Path:
        path = root / family.__name__
        if family not in made:
            family(path)
            made.add(family)
        return path

    return save


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_a_set_is_made_with_it(
    folder: Callable[..., Path],
    digit_folder: Path,
    tmp_path: Path,
    family: Callable[[Path], None],
) -> None:
    """From the folder alone; and mixing at its own middle block changes the positives."""
    images = tmp_path / "images"
    for label in range(10):  # the model with labels knows ten classes
        (images / str(label)).mkdir(parents=True)
    for path in sorted(digit_folder.rglob("*.png"))[:4]:
        shutil.copy(path, images / path.parent.name / path.name)
    for label in range(10):
        if not any((images / str(label)).iterdir()):
            shutil.copy(path, images / str(label) / "x.png")
    made = {}
    for w in (0.2, 1.0):
        out = tmp_path / str(w)
        config = replace(TINY, w=w, shard_size=20)
        generate(config, f"folder:{images}", str(folder(family)), out, device="cpu", workers=1)
        made[w] = open_set(out)
    model = open_model(str(folder(family)))
    assert made[0.2].manifest.plan["config"]["site"] == model.site
    assert made[0.2].manifest.image_size == model.image_size == 8
    assert made[0.2].record(0).positives != made[1.0].record(0).positives


@pytest.mark.parametrize(
    ("family", "line"),
    [
        (ddpm, "mid_block 16 x 4 x 4 (middle)"),
        (with_labels, "up_blocks.0 16 x 8 x 8"),
        (dit, "transformer_blocks.1 4 x 16 (middle)"),
    ],
)
def test_the_sites_are_printed(
    folder: Callable[..., Path], family: Callable[[Path], None], line: str
) -> None:
    arguments = ["--images=digits", "--out=unused", f"--model={folder(family)}", "--site=list"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert line in [" ".join(printed.split()) for printed in result.output.splitlines()]


@torch.no_grad()
@pytest.mark.parametrize("family", [latent_vq, latent_kl, dit], ids=lambda f: f.__name__)
def test_it_samples_what_diffusers_pipeline_samples(
    folder: Callable[..., Path], family: Callable[[Path], None]
) -> None:
    """With w = 1 and the pipeline's own noise, its own images."""
    path = folder(family)
    model = open_model(str(path))
    kind = DiTPipeline if family is dit else LDMPipeline
    pipeline = kind.from_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    arguments = {"class_labels": [10, 10], "guidance_scale": 1.0} if family is dit else {}
    if family is not dit:
        arguments["batch_size"] = 2
    expected = pipeline(
        generator=torch.Generator().manual_seed(0),
        num_inference_steps=5,
        output_type="np",
        **arguments,
    ).images
    x = torch.randn(2, *model.shape, generator=torch.Generator().manual_seed(0))
    denoise = model.denoiser()
    for t in pipeline.scheduler.timesteps:
        x = pipeline.scheduler.step(denoise(x, t), t, x).prev_sample
    found = (model.decode(x) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert abs(found - expected).max() < 1e-5


@torch.no_grad()
def test_the_empty_prompt_is_the_pipelines_own(folder: Callable[..., Path]) -> None:
    path = folder(stable_diffusion)
    model = open_model(str(path))
    pipeline = StableDiffusionPipeline.from_pretrained(path)
    prompt, _ = pipeline.encode_prompt("", "cpu", 1, False)
    x, t = torch.randn(2, 4, 4, 4), torch.tensor(300)
    expected = pipeline.unet(x, t, prompt.expand(2, -1, -1)).sample
    torch.testing.assert_close(model.denoiser()(x, t), expected)


@torch.no_grad()
def test_edm_coefficients_are_diffusers(folder: Callable[..., Path]) -> None:
    """At every noise level the x_0 of diffusers' own EDM scheduler."""
    model = open_model(str(folder(edm)))
    theirs = EDMEulerScheduler()
    sigmas = make_scheduler("euler", model.scheduler_config)
    sigmas.set_timesteps(1000)
    assert float(sigmas.sigmas[0]) == pytest.approx(80.0, rel=1e-3)
    assert float(sigmas.sigmas[-2]) == pytest.approx(0.002, rel=0.05)
    clean = torch.rand(2, 3, 8, 8) * 2 - 1
    for t in (5, 300, 700, 999):
        sigma = sigmas.sigmas[999 - t]
        noisy = clean + sigma * torch.randn(2, 3, 8, 8)
        output = model.network(
            theirs.precondition_inputs(noisy, sigma), theirs.precondition_noise(sigma)
        ).sample
        expected = theirs.precondition_outputs(noisy, output, sigma)
        found = model.denoiser()(noisy / (1 + sigma**2).sqrt(), torch.tensor(t))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_guidance_goes_beyond_the_label(folder: Callable[..., Path]) -> None:
    """(1 + g) eps(label) - g eps(null), from one pass over both."""
    model = open_model(str(folder(with_labels)))
    x, t, labels = torch.randn(3, 3, 8, 8), torch.tensor(500), torch.tensor([4, 0, 9])
    of_label = model.network(x, t, labels).sample
    of_none = model.network(x, t, torch.full((3,), 10)).sample
    torch.testing.assert_close(model.denoiser(labels, 0.0)(x, t), of_label)
    guided = model.denoiser(labels, 1.8)(x, t)
    torch.testing.assert_close(guided, 2.8 * of_label - 1.8 * of_none, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", [latent_vq, latent_kl], ids=lambda f: f.__name__)
def test_anchors_are_encoded_to_scaled_latents(
    folder: Callable[..., Path], kind: Callable[[Path], None]
) -> None:
    model = open_model(str(folder(kind)))
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    coder = model.autoencoder
    moments = coder.quant_conv(coder.encoder(images))
    expected = moments[:, :4] * coder.config.scaling_factor  # the mean, where there is a variance
    assert model.encode(images).shape == (2, *model.shape)
    torch.testing.assert_close(model.encode(images), expected)


@pytest.mark.parametrize(
    ("classes", "guidance", "message"),
    [
        (None, 0.0, "the images have no labels, the model takes labels of 10 classes"),
        (7, 0.0, "the images have 7 classes"),
        (11, 1.0, "11 labels for 11 classes"),
        (10, 1.8, None),
        (11, 0.0, None),
    ],
)
def test_labels_must_suit_the_model(
    folder: Callable[..., Path], classes: int | None, guidance: float, message: str | None
) -> None:
    model = open_model(str(folder(with_labels)))
    if message is None:
        model.check_labels(classes, guidance)
        return
    with pytest.raises(ModelError, match=message):
        model.check_labels(classes, guidance)


def test_guidance_needs_a_model_with_labels(folder: Callable[..., Path]) -> None:
    with pytest.raises(ModelError, match=r"guidance is 1\.0, but the model takes no class labels"):
        open_model(str(folder(ddpm))).check_labels(10, 1.0)


def test_an_old_pipeline_without_subfolders_is_the_same_model(
    folder: Callable[..., Path], tmp_path: Path
) -> None:
    for part in ("unet", "scheduler"):
        for file in (folder(ddpm) / part).iterdir():
            shutil.copy(file, tmp_path / file.name)
    shutil.copy(folder(ddpm) / "model_index.json", tmp_path)
    assert open_model(str(tmp_path)).sha256 == open_model(str(folder(ddpm))).sha256


def change(folder: Path, file: str, **values: object) -> None:
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: change(f, "model_index.json", _class_name="WuerstchenPipeline"),
            "is a WuerstchenPipeline, which has no adapter; supported: DDPMPipeline, DDIMPipeline",
        ),
        (
            lambda f: change(f, "model_index.json", unet=["diffusers", "UNet1DModel"]),
            "its unet is a UNet1DModel, expected UNet2DModel",
        ),
        (lambda f: (f / "model_index.json").unlink(), "no diffusers pipeline is there"),
        (lambda f: shutil.rmtree(f / "scheduler"), "scheduler/scheduler_config.json cannot be"),
        (
            lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
            r"unet has no weights in \*\.safetensors",
        ),
        (lambda f: change(f, "unet/config.json", sample_size=[8, 16]), r"sample_size is \[8, 16\]"),
        (lambda f: change(f, "unet/config.json", class_embed_type="timestep"), "of type .timestep"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    folder: Callable[..., Path],
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    shutil.copytree(folder(ddpm), tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(ModelError, match=message):
        open_model(str(tmp_path / "model"))


@pytest.mark.parametrize("channels", [(4, 4), (6, 3)])
def test_what_is_no_denoiser_of_rgb_is_refused(tmp_path: Path, channels: tuple[int, int]) -> None:
    network = UNet2DModel(
        sample_size=8,
        in_channels=channels[0],
        out_channels=channels[1],
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    DDPMPipeline(network, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no denoiser, since it maps 6|have 4 channels"):
        open_model(str(tmp_path))
