"""`clsp generate --inspect`: does the anchor survive, and is one told when it does not?"""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from clsp.generate.__main__ import main
from clsp.generate.config import FitConfig, GenerateConfig
from clsp.generate.diffusion import open_model
from clsp.generate.fit import fit
from clsp.generate.inspection import Survival, describe, inspect
from clsp.shards.images import open_images

SAMPLING = GenerateConfig(scheduler="ddpm", steps=20, batch=40, site="mid_block")


@pytest.fixture(scope="module")
def digit_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the digits, trained for seconds: its samples are strokes."""
    config = FitConfig(
        images="digits:train",
        image_size=8,
        channels=16,
        channel_mult=(1, 2),
        attention=(),
        mid_attention=False,
        blocks=1,
        groups=8,
        dropout=0.0,
        steps=400,
        batch=32,
        lr=2e-3,
        warmup=50,
        ema=0.98,
        flip=False,
    )
    return fit(config, tmp_path_factory.mktemp("inspection") / "model")


def test_anchors_survive_at_a_small_w_and_not_at_1(digit_model: Path) -> None:
    source = open_images("digits:test")
    model = open_model(str(digit_model))
    results, sheet = inspect(SAMPLING, model, source, anchors=40, device="cpu")
    at = {(row.site, row.w): row for row in results}
    middle, free, later = (
        at[key] for key in (("mid_block", 0.1), ("mid_block", 1.0), ("up_blocks.0", 0.1))
    )
    # Measured: a gain of 0.185 with an error of 0.026; labels of 38 % at the later site, 18 % free.
    assert middle.differs
    assert middle.gain > 4 * middle.error
    assert free.gain == 0
    assert not free.differs
    assert later.label is not None
    assert free.label is not None
    assert later.label > free.label + 0.1
    assert later.own > free.own
    assert {(site, w) for site in ("mid_block", "up_blocks.1") for w in (0.0, 0.1)} <= set(at)
    assert Image.open(io.BytesIO(sheet)).size > (200, 200)


def test_the_command_writes_a_table_and_a_sheet(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    arguments = ["--images=digits:test", f"--model={tiny_model}", f"--out={out}", "--device=cpu"]
    flags = ["--inspect=6", "--steps=2", "--w=0.05:0.3"]
    result = CliRunner().invoke(main, [*arguments, *flags])
    assert result.exit_code == 0, result.output
    rows = json.loads((out / "inspect.json").read_text())
    assert {row["w"] for row in rows} == {0.0, 0.05, 0.3, 1.0}
    assert Image.open(out / "inspect.png").size > (100, 100)
    assert not (out / "plan.json").exists()


def test_a_plan_that_forgets_its_anchors_is_warned_about() -> None:
    def row(gain: float) -> Survival:
        return Survival("mid_block", 0.1, 0.1, gain, 0.01, None)

    warning = "warning: positives at site mid_block and w 0.1 are no nearer to their anchors"
    assert warning in describe([row(0.015)], SAMPLING)
    assert "warning" not in describe([row(0.03)], SAMPLING)
