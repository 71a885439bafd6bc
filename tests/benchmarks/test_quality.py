"""Quality against steps: a small sweep, and what its measures say of images known to be good."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.common import tiny_unet
from benchmarks.quality import as_table, plot, sweep
from clsp.generate.config import FitConfig, GenerateConfig
from clsp.generate.ddpm import noise_schedule
from clsp.generate.denoiser import DiffusionModel
from clsp.generate.families import unet_run


@pytest.fixture(scope="module")
def model() -> DiffusionModel:
    unet = tiny_unet()
    schedule = dict(noise_schedule(FitConfig(images="")).config)
    return DiffusionModel(unet, unet_run(unet), schedule, "", 8, (3, 8, 8))


def test_every_setting_is_measured_against_real_images(model: DiffusionModel) -> None:
    config = GenerateConfig(positives=1, batch=360, site="mid_block")
    found = sweep(config, model, "digits:test", "digits:train", ["ddpm", "dpm"], [1, 2], "cpu")
    anchors, rows = found["anchors"], found["rows"]
    assert [(row["scheduler"], row["steps"]) for row in rows] == [
        ("ddpm", 1),
        ("ddpm", 2),
        ("dpm", 1),
        ("dpm", 2),
    ]
    # Other digits of the same hands, against what an untrained model makes.
    assert abs(anchors["kernel"]) <= anchors["kernel_error"]
    assert anchors["agreement"] > 95
    for row in rows:
        assert row["kernel"] - row["kernel_error"] > anchors["kernel"] + anchors["kernel_error"]
        assert row["agreement"] < 50
    table = as_table(rows).splitlines()
    assert table[0] == "| | 1 | 2 |"
    assert table[3].startswith(f"| dpm | {rows[2]['kernel']:.4f}, {rows[2]['agreement']:.0f} % | ")
    lines = plot(rows, anchors).axes[0].lines
    np.testing.assert_allclose(lines[1].get_ydata(), [row["kernel"] for row in rows[2:]])


def test_images_without_labels_are_refused(model: DiffusionModel, tmp_path: object) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(f"{tmp_path}/a.png")
    config = GenerateConfig(site="mid_block")
    with pytest.raises(ValueError, match="both need labels"):
        sweep(config, model, f"folder:{tmp_path}", "digits:train", ["ddim"], [1], "cpu")
