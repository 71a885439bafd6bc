"""Evaluated encoders side by side: seeds find each other; what differs too much is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from clsp.evaluate.__main__ import main

SCORES = {("none", 0): 70.0, ("none", 1): 72.0, ("none", 2): 71.0}
SCORES |= {("synthetic", 0): 74.1, ("synthetic", 1): 75.9, ("synthetic", 2): 75.0}


def write_run(folder: Path, score: float, training: dict[str, Any], **about: str) -> Path:
    folder.mkdir(parents=True)
    values = {
        "scores": {"linear_top1": score, "knn": score - 5, "knn_k": 5},
        "confusion": (np.eye(10, dtype=int) * 30 + 1).tolist(),
        "classes": list("0123456789"),
        "about": {
            "encoder": f"runs/{folder.name}/encoder",
            "train": "digits:train",
            "test": "digits:test",
            "settings": json.dumps({"lr": 1.0, "seed": training.get("seed", 0)}),
            "training": json.dumps(training),
            **about,
        },
    }
    (folder / "results.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [
        str(
            write_run(
                tmp_path / f"{kind}-{seed}",
                score,
                {"method": "simclr", "positive": kind, "lambda_": 1.0, "seed": seed},
            )
        )
        for (kind, seed), score in SCORES.items()
    ]


def compare(runs: list[str], out: Path, *more: str):
    return CliRunner().invoke(main, ["compare", *runs, f"--out={out}", *more])


def test_seeds_are_paired_and_tested(runs: list[str], open_page, tmp_path: Path) -> None:
    mixed = [runs[n] for n in (2, 5, 0, 3, 4, 1)]
    result = compare(mixed, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert " 71.00 ± 1.00  positive none\n 75.00 ± 0.90  positive synthetic\n" in result.output
    values = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert values["positive none"]["seeds"] == [0, 1, 2]
    assert [s["linear_top1"] for s in values["positive none"]["scores"]] == [70.0, 72.0, 71.0]
    for width in (390, 1200):
        with open_page(tmp_path / "out" / "report.html", width=width) as (page, wrong):
            text = page.inner_text("body")
            # +4.1, +3.9, +4.0: t = 4 / (0.1 / sqrt 3) = 69.3 with 2 degrees of freedom
            assert "+4.0 points of linear against positive none (+4.1, +3.9, +4.0" in text
            assert "p = 0.000, beyond noise" in text
            assert "paired t-test over seeds" in text
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            shown = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
            assert page.evaluate(shown)
            assert wrong == []
    assert {p.name for p in (tmp_path / "out" / "figures").iterdir()} == {
        f"{name}.{kind}" for name in ("scores", "confusion") for kind in ("png", "svg")
    }


def test_other_seeds_are_no_pairs(runs: list[str], tmp_path: Path) -> None:
    result = compare([*runs[:2], *runs[4:]], tmp_path / "out")
    assert result.exit_code == 0, result.output
    text = (tmp_path / "out" / "report.html").read_text()
    assert "seeds 1, 2 against 0, 1 of positive none: no pairs to test" in text


def test_encoders_made_elsewhere_are_told_by_their_names(tmp_path: Path) -> None:
    names = ["timm:vit", "torchvision:resnet18"]
    made = [str(write_run(tmp_path / n, 50.0, {}, encoder=n)) for n in names]
    result = compare(made, tmp_path / "out")
    assert all(f"encoder {name}" in result.output for name in names)


def test_what_cannot_be_compared_is_refused(runs: list[str], tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", 1.0, {"method": "moco", "seed": 0}, test="cifar10:d:test")
    result = compare([*runs, str(other)], tmp_path / "out")
    assert result.exit_code == 1
    assert "has test cifar10:d:test" in result.output
    twice = compare([runs[0], runs[0]], tmp_path / "out")
    assert "are of one training and one seed" in twice.output
    assert (
        "has no score 'knm': linear_top1, knn" in compare(runs, tmp_path / "o", "--by=knm").output
    )
    assert "results.json is missing" in compare([str(tmp_path)], tmp_path / "out").output
    (tmp_path / "results.json").write_text("{}")
    assert "is not what `clsp evaluate` writes" in compare([str(tmp_path)], tmp_path / "o").output
    assert not (tmp_path / "out").exists()
