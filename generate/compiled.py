"""`--compile`: a denoiser's blocks as kernels that torch.compile makes for this machine.

Speed only: it is no part of the plan. But sums may be taken in another order, so a receipt says it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

_VERSIONS = 200


def compile_blocks(
    network: nn.Module, site: str, device: torch.device, mode: str = "default"
) -> None:
    """Have each block of a denoiser compiled at its first call for every shape that it meets.

    Blocks are compiled one by one, not the whole, because hooks at the site and an end there are
    what the method is made of; a block around the site is taken apart. Shapes are not generalised:
    then a shard's bytes would depend on which shapes a process met before it.
    mode: torch.compile's; "reduce-overhead" records each block as a CUDA graph, which helps where
    kernels are so short that starting them is what takes time.
    Raises ValueError when there is no compiler for this device, and for graphs without a GPU.
    """
    _check_compiler(device)
    if mode == "reduce-overhead" and device.type != "cuda":
        raise ValueError(f"--compile {mode} records CUDA graphs, and the device is {device.type}")
    import torch._dynamo as dynamo

    # Blocks of a kind share their code, and with it one count of versions; beyond the limit it
    # would run uncompiled, with other last bits.
    dynamo.config.recompile_limit = _VERSIONS
    dynamo.config.fail_on_recompile_limit_hit = True
    for block in list(_blocks(network, site)):
        forward = torch.compile(block.forward, dynamic=False, mode=mode)
        block.forward = forward if mode == "default" else _copied(forward)


def _copied(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Give copies of what a graph returns, whose memory the next graph overwrites.

    A block's output is needed long after: by the skips, and the anchor's by all its positives.
    """

    def call(*arguments: Any, **options: Any) -> Any:
        return tree_map_only(Tensor, torch.clone, forward(*arguments, **options))

    return call


def failed_to_compile(error: Exception) -> bool:
    """Return whether an error is the compiler's, which every shard would meet."""
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    return isinstance(error, (TorchDynamoException, FailOnRecompileLimitHit))


def _blocks(module: nn.Module, site: str) -> Iterator[nn.Module]:
    """The outermost blocks without a hook inside; site: its path from `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) or site.startswith(f"{name}."):
            yield from _blocks(child, site.removeprefix(f"{name}."))
        elif any(child.children()):
            yield child


def _check_compiler(device: torch.device) -> None:
    if device.type == "cuda":
        if find_spec("triton") is None:
            raise ValueError("--compile on a GPU needs the package triton, which is not installed")
        return
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++"]
    if not any(map(shutil.which, names)):
        raise ValueError(
            f"--compile on a CPU needs a C++ compiler: {' and '.join(names)} not found; install "
            "one, or name it in CXX"
        )
