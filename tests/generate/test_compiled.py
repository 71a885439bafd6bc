"""`--compile`: the same positives up to rounding, a receipt that says so, and clear refusals."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch.utils._pytree import tree_leaves, tree_map_only

from clsp.generate.bottleneck import denoise_with, encode_to_site, find_site
from clsp.generate.compiled import compile_blocks
from clsp.generate.config import GenerateConfig
from clsp.generate.cost import estimate
from clsp.generate.denoiser import DiffusionModel
from clsp.generate.diffusion import open_model
from clsp.generate.families import unet_run
from clsp.generate.job import Job, Worker
from clsp.generate.output import open_output
from clsp.generate.plan import ModelInfo, make_plan
from clsp.shards.images import open_images

CPU = torch.device("cpu")
CONFIG = GenerateConfig(positives=2, steps=2, batch=4, shard_size=4, site="mid_block")


def job(images: Path, model: Path, out: Path, *, compile: str | None) -> Job:
    source, opened = open_images(f"folder:{images}"), open_model(str(model))
    plan = make_plan(CONFIG, ModelInfo(opened.sha256, opened.image_size), source)
    return Job(plan, source.spec, str(model), open_output(str(out)), compile)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without its last stage, which takes seconds a block."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr("clsp.generate.compiled._check_compiler", lambda device: None)


@torch.no_grad()
def positive_of(model: DiffusionModel, site: str) -> torch.Tensor:
    """One step of the method, with an anchor."""
    random = torch.Generator().manual_seed(0)
    x, anchor = (torch.randn(3, *model.shape, generator=random) for _ in range(2))
    denoise, place, t = model.denoiser(), find_site(model.network, site), torch.tensor(300)
    return denoise_with(denoise, place, x, t, 0.1, encode_to_site(denoise, place, anchor, t))


@pytest.mark.parametrize("site", ["mid_block", "up_blocks.0.resnets.1", "down_blocks.1.resnets.0"])
def test_the_method_is_the_same(traced: None, tiny_model: Path, site: str) -> None:
    """At a block, which is compiled itself, and inside one, which is then taken apart."""
    model = open_model(str(tiny_model))
    expected = positive_of(model, site)
    compile_blocks(model.network, site, CPU)
    changed = [path for path, module in model.network.named_modules() if "forward" in vars(module)]
    assert {"mid_block", "down_blocks.0", "up_blocks.1"} <= set(changed)
    assert not any(site.startswith(f"{path}.") for path in changed)
    torch.testing.assert_close(positive_of(model, site), expected)


@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler"
)
def test_compiled_kernels_differ_by_rounding_only() -> None:
    """The real compiler, on two blocks of the smallest of U-Nets."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=4,
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        add_attention=False,
    ).eval()
    model = DiffusionModel(unet, unet_run(unet), {}, "", 4, (3, 4, 4))
    expected = positive_of(model, "mid_block")
    compile_blocks(unet.mid_block, "resnets.1", CPU)
    torch.testing.assert_close(positive_of(model, "mid_block"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", ["mid_block", "up_blocks.0.resnets.1"])
def test_memory_that_cuda_graphs_use_again_reaches_no_positive(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    """A stand-in for them: what one block returned is gone when the next one runs."""
    modes, returned = set(), list[torch.Tensor]()

    def graphed(forward: Any, *, mode: str, dynamic: bool) -> Any:
        modes.add(mode)

        def call(*arguments: Any, **options: Any) -> Any:
            for tensor in returned:
                tensor.fill_(torch.nan)
            result = tree_map_only(torch.Tensor, torch.clone, forward(*arguments, **options))
            returned[:] = tree_leaves(result)
            return result

        return call

    monkeypatch.setattr(torch, "compile", graphed)
    monkeypatch.setattr("clsp.generate.compiled._check_compiler", lambda device: None)
    model = open_model(str(tiny_model))
    expected = positive_of(model, site)
    compile_blocks(model.network, site, torch.device("cuda"), "reduce-overhead")
    torch.testing.assert_close(positive_of(model, site), expected)
    assert modes == {"reduce-overhead"}
    assert returned
    with pytest.raises(ValueError, match="records CUDA graphs, and the device is cpu"):
        compile_blocks(model.network, site, CPU, "reduce-overhead")


def test_a_receipt_says_it_and_the_plan_does_not(
    traced: None, digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    plans = set()
    for compiled in (None, "default"):
        made = job(digit_folder, tiny_model, tmp_path / str(compiled), compile=compiled)
        receipt = Worker(made, "cpu").make(0)
        assert receipt.fingerprint.get("compile") == (compiled and "inductor, default")
        plans.add(made.plan.id)
    assert len(plans) == 1


def test_the_dry_run_counts_what_compiled_kernels_hide(
    traced: None, digit_folder: Path, tiny_model: Path
) -> None:
    source = open_images(f"folder:{digit_folder}")
    plain, compiled = (
        estimate(
            CONFIG,
            open_model(str(tiny_model)),
            source,
            device="cpu",
            workers=1,
            probe=0,
            compiled=compile,
        )
        for compile in (None, "default")
    )
    assert plain.flops == compiled.flops > 0


def test_no_compiler_is_said_at_once(
    digit_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"a C\+\+ compiler: g\+\+ and clang\+\+ not found"):
        Worker(job(digit_folder, tiny_model, tmp_path, compile="default"), "cpu")
    monkeypatch.setattr("clsp.generate.compiled.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="on a GPU needs the package triton"):
        compile_blocks(torch.nn.Module(), "mid_block", torch.device("cuda"))


def test_a_compiler_that_fails_ends_the_run(
    digit_folder: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And does not cost every shard three attempts and its place in the set."""
    from torch._dynamo.exc import TorchDynamoException

    worker = Worker(job(digit_folder, tiny_model, tmp_path, compile=None), "cpu")
    worker.job = replace(worker.job, compile="default")
    attempts = []

    def broken(*_: object) -> None:
        attempts.append(1)
        raise TorchDynamoException("ld: cannot find -lm")

    monkeypatch.setattr(worker.sampler, "sample", broken)
    with pytest.raises(ValueError, match="--compile: ld: cannot find -lm"):
        worker.try_to_make(0)
    assert len(attempts) == 1
    assert not (tmp_path / "data" / "train-00000.tar").exists()
