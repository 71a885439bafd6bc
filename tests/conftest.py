"""Shared by all tests: one thread a process, and shard sets of real digits."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "*"  # every server of the tests is on loopback

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from clsp.shards.images import encode_image
from clsp.shards.reader import ShardSet
from clsp.shards.record import Record
from clsp.shards.store import index_folder
from clsp.shards.writer import write_shard

MakeSet = Callable[..., ShardSet]

# As root and without a network, as on a machine of CI.
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_set() -> MakeSet:
    """A function that writes a set of digits whose positives are the digits that follow."""
    pixels = (load_digits().images * 255 / 16).round().astype(np.uint8)
    pixels = pixels[..., None].repeat(3, axis=3)

    def make(
        folder: Path,
        sizes: Sequence[int] = (7, 20, 13),
        positives: int = 2,
        image_format: str = "png",
        anchors: bool = True,
    ) -> ShardSet:
        (folder / "data").mkdir(parents=True)
        first = 0
        for number, size in enumerate(sizes):
            records = [
                Record(
                    f"digit-{n:04d}",
                    encode_image(pixels[n], image_format) if anchors else None,
                    tuple(encode_image(pixels[n + 1 + j], image_format) for j in range(positives)),
                    {"label": n % 10},
                    image_format,
                )
                for n in range(first, first + size)
            ]
            write_shard(folder / "data" / f"train-{number:05d}.tar", records, positives)
            first += size
        return index_folder(folder)

    return make


@pytest.fixture(scope="session")
def digit_set(make_set: MakeSet, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """40 digits in shards of 7, 20 and 13, with 2 positives each."""
    return make_set(tmp_path_factory.mktemp("sets") / "digits")


@pytest.fixture(scope="session")
def launch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a module or script in N ranks on the CPU.

    By torchrun, because `accelerate launch` starts several ranks on GPUs only. Either sets the
    variables that Accelerate reads.
    """

    def run(world: int, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        result = subprocess.run(
            [*torchrun, f"--nproc-per-node={world}", *command],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        )
        assert not check or result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def open_page() -> Callable[..., AbstractContextManager[tuple[Any, list[str]]]]:
    """A function that opens a file as a page in headless Chromium, by Playwright.

    It yields the page, and a list that collects what went wrong: console errors, exceptions, and
    requests that leave the file.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")

    @contextmanager
    def open_file(path: Path, width: int = 1200, height: int = 900) -> Iterator[Any]:
        from playwright.sync_api import sync_playwright

        own, wrong = path.resolve().as_uri(), []
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
            page = browser.new_page(viewport={"width": width, "height": height})
            page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
            page.on(
                "request",
                lambda r: r.url.startswith((own, "data:", "blob:")) or wrong.append(r.url),
            )
            page.goto(own)
            yield page, wrong
            browser.close()

    return open_file
