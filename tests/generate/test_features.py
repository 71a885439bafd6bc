"""A diffusion model's features are what its middle block gives for a noised image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import DDPMPipeline
from safetensors.torch import load_file

from clsp.generate.denoiser import DiffusionModel
from clsp.generate.diffusion import open_model
from clsp.generate.features import bottleneck_features, main
from clsp.generate.noise import KeyedNoise
from clsp.shards.images import open_images


def test_features_are_the_middle_blocks_of_diffusers_pipeline(
    tiny_model: Path, digit_folder: Path
) -> None:
    source = open_images(f"folder:{digit_folder}")
    found = bottleneck_features(open_model(str(tiny_model)), source, timestep=100)
    assert found.shape == (60, 16)
    pipeline = DDPMPipeline.from_pretrained(tiny_model)
    outputs: list[torch.Tensor] = []
    pipeline.unet.mid_block.register_forward_hook(lambda _, __, output: outputs.append(output))
    image = torch.from_numpy(np.asarray(source.read(7)).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    noise = KeyedNoise(0, [source.key(7)], (3, 8, 8), "cpu").anchor(100)
    t = torch.tensor([100])
    with torch.no_grad():
        pipeline.unet(pipeline.scheduler.add_noise(image, noise, t), t)
    torch.testing.assert_close(found[7:8], outputs[0].mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)


def test_the_command_keeps_them(tiny_model: Path, digit_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "f.safetensors"
    flags = [f"--images=folder:{digit_folder}", f"--model={tiny_model}", f"--out={out}"]
    result = CliRunner().invoke(main, [*flags, "--device=cpu"])
    assert result.exit_code == 0, result.output
    assert "60 features of 16" in result.output
    assert load_file(out)["features"].shape == (60, 16)
    late = CliRunner().invoke(main, [*flags, "--device=cpu", "--timestep=1000"])
    assert late.exit_code == 1
    assert "timestep is 1000, the model knows 0 to 999" in late.output


def test_an_unknown_site_is_named(tiny_model: Path, digit_folder: Path) -> None:
    with pytest.raises(ValueError, match="no module 'mid_blok'"):
        bottleneck_features(
            open_model(str(tiny_model)), open_images(f"folder:{digit_folder}"), site="mid_blok"
        )


def test_a_checkpoint_is_opened_in_the_size_that_was_given(
    tiny_model: Path, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def opened(spec: str, device: str, *, image_size: int) -> DiffusionModel:
        sizes.append(image_size)
        return open_model(str(tiny_model), device)

    monkeypatch.setattr("clsp.generate.features.open_model", opened)
    flags = [f"--images=folder:{digit_folder}", "--model=a.pt", f"--out={tmp_path / 'f'}"]
    result = CliRunner().invoke(main, [*flags, "--device=cpu", "--image-size=8"])
    assert result.exit_code == 0, result.output
    assert sizes == [8]
