"""Arms side by side: the runs are those of the single command, the table is what they logged."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
from click.testing import CliRunner

from clsp.shards.images import decode_image
from clsp.shards.reader import ShardSet
from clsp.train.__main__ import main
from clsp.train.compare import write_comparison

FLAGS = ["--arch=conv-tiny", "--hidden=16", "--dim=8", "--epochs=2", "--batch=8", "--log-every=5"]


def run(shards: ShardSet, out: Path, *flags: str):
    places = [f"--set={shards.folder}", f"--out={out}", f"--cache={out.parent}", "--trackers="]
    return CliRunner().invoke(main, [*places, *FLAGS, *flags])


def test_arms_and_seeds_end_in_one_table_and_one_plot(digit_set: ShardSet, tmp_path: Path) -> None:
    out = tmp_path / "compared"
    compare = ["--compare=simclr,clsp-simclr", "--seeds=2", "--knn=digits:test", "--knn-every=1"]
    result = run(digit_set, out, *compare, "--seed=3")
    assert result.exit_code == 0, result.output
    configs = {path.parent.name: json.loads(path.read_text()) for path in out.glob("*/config.json")}
    assert set(configs) == {"simclr-3", "simclr-4", "clsp-simclr-3", "clsp-simclr-4"}
    assert configs["clsp-simclr-4"]["positive"] == "synthetic"  # the recipe's
    assert configs["clsp-simclr-4"]["arch"] == "conv-tiny"  # the flag's, above the recipe's
    assert configs["clsp-simclr-4"]["seed"] == 4
    found = [
        json.loads((out / f"simclr-{seed}/knn.jsonl").read_text().splitlines()[-1])["online_knn"]
        for seed in (3, 4)
    ]
    rows = (out / "compare.md").read_text().splitlines()
    assert len(rows) == 4
    cell = f"{statistics.fmean(found):.1f} ± {statistics.stdev(found):.1f}"
    assert rows[2].startswith(f"| simclr | 2 | {cell} |")
    assert rows[2] in result.output
    image = decode_image((out / "compare.png").read_bytes())
    assert len({tuple(color) for color in image[::3, ::3].reshape(-1, 3)}) > 20
    single = run(digit_set, tmp_path / "single", "--recipe=simclr", "--seed=4")
    assert single.exit_code == 0, single.output
    rows = [
        json.loads((place / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
        for place in (tmp_path / "single", out / "simclr-4")
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--compare=simclr,clsp-simclrr"], "'clsp-simclrr' is neither a TOML file nor one of"),
        (["--compare=simclr", "--recipe=moco"], "leave out --recipe"),
        (["--compare=simclr", "--batch=1"], "batch is 1"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(
    digit_set: ShardSet, tmp_path: Path, flags: list[str], message: str
) -> None:
    result = run(digit_set, tmp_path / "out", *flags)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_run_that_logged_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="logged nothing"):
        write_comparison(tmp_path, {"a": [tmp_path / "a-0"]})
