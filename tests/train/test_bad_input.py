"""What cannot be trained is refused by the command: with what was found, and before it starts."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from clsp.shards.reader import ShardSet
from clsp.shards.record import Record
from clsp.shards.store import index_folder
from clsp.shards.writer import write_shard
from clsp.train.__main__ import main

TINY = ["--arch=conv-tiny", "--hidden=16", "--dim=8", "--epochs=1", "--batch=8", "--trackers="]


def refusal(shards: ShardSet, out: Path, *flags: str) -> str:
    where = [f"--set={shards.folder}", f"--out={out}", f"--cache={out.parent / 'cache'}"]
    result = CliRunner().invoke(main, [*where, *TINY, *flags])
    assert result.exit_code in (1, 2), result.output
    assert isinstance(result.exception, SystemExit)  # no traceback
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--positive=synthetic --positives=3", "has 2 positives an anchor, 3 are asked for"),
        ("--batch=1", "batch is 1, but a contrastive loss needs at least 2 anchors"),
        ("--batch=41", "batch 41 is larger than the set of 40 samples"),
        ("--method=moco --queue=100", "queue 100 is not a multiple of batch 8"),
        ("--method=nnclr --queue=100", "queue 100 is not a multiple of batch 8"),
        ("--method=all4one --queue=100", "queue 100 is not a multiple of batch 8"),
        ("--lambda=-1", "lambda is -1.0, expected at least 0"),
        ("--lambda-warmup=-1", "lambda_warmup is -1, expected at least 0"),
        ("--method=simcrl", "'simcrl' is not one of 'simclr'"),
        ("--positive=synthetic --positive-as=view", "in simclr a positive enters as term"),
        ("--local-crops=2", "local_crops is 2, but simclr takes two views only"),
        ("--method=dino --local-crops=2 --crop-min=0.05", "from 0.05 to crop_min, and that is"),
        ("--no-augment-positives", "is about synthetic positives, but positive is none"),
        ("--blur-p=2", "blur_p is 2.0, expected a value in [0, 1]"),
        ("--layers=0", "layers is 0, expected at least 1"),
        ("--recipe=simclrr", "'simclrr' is neither a TOML file nor one of"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(
    digit_set: ShardSet, tmp_path: Path, flags: str, message: str
) -> None:
    assert message in refusal(digit_set, tmp_path / "out", *flags.split())
    assert not (tmp_path / "out").exists()


def test_an_unknown_key_of_a_recipe_is_named_and_the_nearest_suggested(
    digit_set: ShardSet, tmp_path: Path
) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text('method = "moco"\ntemprature = 0.1\n')
    message = refusal(digit_set, tmp_path / "out", f"--recipe={recipe}")
    assert "unknown key 'temprature'; did you mean 'temperature'?" in message
    assert not (tmp_path / "out").exists()


def test_a_method_of_labels_refuses_a_set_without_them(digit_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "set/data").mkdir(parents=True)
    members = [digit_set.read(n, ["anchor", "p0"]) for n in range(16)]
    records = [
        Record(f"digit-{n}", found["anchor"], (found["p0"],), {}, "png")
        for n, found in enumerate(members)
    ]
    write_shard(tmp_path / "set/data/train-00000.tar", records, 1)
    shards = index_folder(tmp_path / "set")
    message = refusal(shards, tmp_path / "out", "--method=supcon")
    assert "record digit-0 has label None, expected an integer" in message
    assert "the method needs a set made of labelled images" in message
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_other_settings_or_another_set_is_refused(
    digit_set: ShardSet, make_set, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    where = [f"--out={out}", f"--cache={tmp_path / 'cache'}", *TINY]
    result = CliRunner().invoke(main, [f"--set={digit_set.folder}", *where])
    assert result.exit_code == 0, result.output
    message = refusal(digit_set, out, "--method=dcl")
    assert "is of a run with method = simclr, not dcl" in message
    other = make_set(tmp_path / "other", sizes=(40,))
    message = refusal(other, out)
    assert f"is of a run on set {digit_set.id[:12]}, this set is {other.id[:12]}" in message
