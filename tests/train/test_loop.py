"""Whole runs: exact after kills, the same for any number of ranks, and clear when they go wrong."""

from __future__ import annotations

import json
import math
import multiprocessing
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clsp.shards.check import ShardError
from clsp.shards.reader import ShardSet
from clsp.train import load_encoder
from clsp.train.checkpoint import CheckpointError, load_checkpoint
from clsp.train.config import TrainConfig
from clsp.train.loop import train
from clsp.train.options import RunOptions

TINY = TrainConfig(
    arch="conv-tiny",
    positive="synthetic",
    hidden=16,
    dim=8,
    epochs=3,
    batch=8,
    lr=0.05,
    lr_warmup=2,
    queue=16,
    save_every=2,
    log_every=1,
)
STEPS = 15  # 40 digits, batch 8, 3 epochs
KILLS = 20


def state(out: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(out / "checkpoints")[0]


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").open()]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(
    digit_set: ShardSet, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A whole run of each method, with saving after every step."""
    outs = {}
    for method in ("simclr", "moco"):
        outs[method] = tmp_path_factory.mktemp(method) / "run"
        config = replace(TINY, method=method, save_every=1)
        train(config, digit_set.folder, outs[method], cache=cache)
    return outs


def test_a_run_leaves_an_encoder_a_config_and_curves(undisturbed: dict[str, Path]) -> None:
    out = undisturbed["simclr"]
    assert load_encoder(out / "encoder")(torch.randn(2, 3, 8, 8)).shape == (2, 512)
    assert json.loads((out / "config.json").read_text())["batch"] == 8
    found = rows(out)
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    assert found[0]["loss"] == pytest.approx(found[0]["contrastive"] + found[0]["positive"])
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    wanted = {"loss", "contrastive", "positive", "lr", "embedding_std", "tuples_per_second"}
    assert wanted <= set(events.Tags()["scalars"])
    logged = [event.value for event in events.Scalars("loss")]
    assert logged == pytest.approx([row["loss"] for row in found])


def test_the_first_steps_loss_is_what_its_parts_say(digit_set: ShardSet, tmp_path: Path) -> None:
    """The loop's first number again, by hand from the parts."""
    from clsp.train.encoder import ProjectedEncoder
    from clsp.train.objectives.objective import unit
    from clsp.train.objectives.positive import positive_term
    from clsp.train.objectives.simclr import nt_xent
    from clsp.train.tuples import TupleBatches
    from clsp.train.views import make_views

    train(replace(TINY, epochs=1, lambda_=0.7), digit_set.folder, tmp_path, cache=tmp_path)
    item = TupleBatches(digit_set, 8, seed=0, positives=1)[0]
    torch.manual_seed(0)
    z = [unit(y) for y in ProjectedEncoder(TINY)(make_views(item, TINY, torch.device("cpu")))]
    loss = nt_xent(z[0], z[1], 0.2) + 0.7 * positive_term(z[0], z[2])
    assert rows(tmp_path)[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["simclr", "moco"])
def test_weights_are_bit_equal_after_kills(
    digit_set: ShardSet,
    cache: Path,
    undisturbed: dict[str, Path],
    tmp_path: Path,
    method: str,
) -> None:
    """SIGKILL at random moments, half of them while a checkpoint is being written."""
    # A fork server that has imported everything: a run then starts in a fraction of a second.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["clsp.train.loop", "accelerate.tracking"])
    config = replace(TINY, method=method, save_every=1)
    dice, kills, whole = random.Random(0), 0, False
    while kills < KILLS // 2:
        run = context.Process(
            target=train, args=(config, digit_set.folder, tmp_path), kwargs={"cache": cache}
        )
        run.start()
        at = time.monotonic() + dice.uniform(0.0, 4.0)
        while_saving = kills % 2 == 0
        while run.is_alive() and (while_saving or time.monotonic() < at):
            if while_saving and list(tmp_path.glob("checkpoints/.step-*.tmp")):
                time.sleep(dice.uniform(0, 0.002))
                break
        if run.is_alive():
            run.kill()
            kills += 1
        run.join()
        found = load_checkpoint(tmp_path / "checkpoints")
        assert found is not None or not whole, "there was a checkpoint, and now there is none"
        whole = found is not None
        if run.exitcode == 0:  # done before it was killed often enough: begin again
            expected, result = state(undisturbed[method]), state(tmp_path)
            assert all(torch.equal(result[name], expected[name]) for name in expected)
            shutil.rmtree(tmp_path / "checkpoints")
            whole = False
    train(config, digit_set.folder, tmp_path, cache=cache)
    expected, result = state(undisturbed[method]), state(tmp_path)
    assert expected.keys() == result.keys()
    assert all(torch.equal(result[name], expected[name]) for name in expected)
    exported = [
        load_file(out / "encoder/encoder.safetensors") for out in (undisturbed[method], tmp_path)
    ]
    assert all(torch.equal(exported[0][name], exported[1][name]) for name in exported[0])
    speed = "tuples_per_second"
    before, after = rows(undisturbed[method]), rows(tmp_path)
    assert [{**row, speed: 0} for row in after] == [{**row, speed: 0} for row in before]


def test_the_gradient_of_gathered_negatives_is_needed() -> None:
    """The control of test_ranks.py: without it, the gradient would be another one."""
    from clsp.train.objectives.simclr import nt_xent

    torch.manual_seed(0)
    z = torch.nn.functional.normalize(torch.randn(16, 4), dim=1).requires_grad_()
    (whole,) = torch.autograd.grad(nt_xent(z[:8], z[8:], 0.2), z)
    own = torch.cat([z[:4], z[4:8].detach(), z[8:12], z[12:].detach()])
    (part,) = torch.autograd.grad(nt_xent(own[:8], own[8:], 0.2), z)
    assert torch.allclose(part[:4], whole[:4], atol=1e-6)
    assert not torch.allclose(part, whole, atol=1e-3)


def test_the_controls_third_view_is_another_view_of_the_anchor(
    digit_set: ShardSet,
) -> None:
    from clsp.train.tuples import TupleBatches
    from clsp.train.views import make_views

    config = replace(TINY, positive="real", crop_min=1.0, jitter_p=0, grey_p=0, flip_p=0)
    plain = replace(config, positive="none")
    item = TupleBatches(digit_set, 8, seed=0, positives=0)[0]
    views = make_views(item, config, torch.device("cpu"))
    assert [len(v) for v in (views, make_views(item, plain, torch.device("cpu")))] == [3, 2]
    torch.testing.assert_close(views[2], views[0])  # nothing is drawn in this config
    views = make_views(item, replace(config, crop_min=0.1), torch.device("cpu"))
    assert not torch.allclose(views[2], views[0])


def test_a_warm_up_of_lambda_alone_avoids_the_collapse(
    digit_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Strong from the first step, the term draws all images to one point, and there they stay."""
    strong = replace(
        TINY,
        positive="real",
        crop_min=0.6,
        jitter_p=0.0,
        grey_p=0.0,
        flip_p=0.0,
        hidden=64,
        dim=16,
        epochs=40,
        batch=20,
        lr=0.03,
        lr_warmup=0,
        lambda_=20.0,
        save_every=80,
    )
    quiet = RunOptions(trackers=())
    train(strong, digit_set.folder, tmp_path / "strong", cache=tmp_path, options=quiet)
    text = capsys.readouterr().err
    assert "the encoder has collapsed: embedding std 0.0" in text
    assert "chance is 3.664" in text  # ln(2 * 20 - 1)
    assert "--lambda-warmup" in text
    end = rows(tmp_path / "strong")[-1]
    assert end["contrastive"] == pytest.approx(math.log(39), abs=1e-2)
    assert max(end["positive"], end["embedding_std"]) < 0.05
    warmed = replace(strong, lambda_warmup=40)
    train(warmed, digit_set.folder, tmp_path / "warmed", cache=tmp_path, options=quiet)
    assert "collapsed" not in capsys.readouterr().err
    end = rows(tmp_path / "warmed")[-1]
    assert end["lambda"] > 19
    assert end["contrastive"] < math.log(39) - 0.3
    assert end["embedding_std"] > 0.2


def test_another_config_or_set_is_refused(
    digit_set: ShardSet, undisturbed: dict[str, Path], cache: Path, make_set, tmp_path: Path
) -> None:
    out = undisturbed["simclr"]
    with pytest.raises(CheckpointError, match=r"with lr = 0\.05, not 0\.3"):
        train(replace(TINY, lr=0.3), digit_set.folder, out, cache=cache)
    other = make_set(tmp_path / "other", sizes=(40,))
    with pytest.raises(
        CheckpointError, match=rf"on set {digit_set.id[:12]}, .* is {other.id[:12]}"
    ):
        train(TINY, other.folder, out, cache=cache)


def test_a_batch_larger_than_the_set_is_refused(digit_set: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch 64 is larger than the set of 40 samples"):
        train(replace(TINY, batch=64), digit_set.folder, tmp_path, cache=tmp_path)


def test_a_set_with_a_missing_shard_is_refused(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set")
    (shards.folder / "data" / "train-00001.tar").unlink()
    with pytest.raises(ShardError, match=r"train-00001\.tar is missing"):
        train(TINY, shards.folder, tmp_path / "out", cache=tmp_path)


def test_a_world_size_that_does_not_divide_the_batch_is_refused(
    digit_set: ShardSet, tmp_path: Path, launch
) -> None:
    places = [f"--set={digit_set.folder}", f"--out={tmp_path / 'out'}", f"--cache={tmp_path}"]
    command = ["-m", "clsp.train", *places, "--batch=8", "--arch=conv-tiny"]
    result = launch(3, *command, check=False)
    assert result.returncode != 0
    assert "batch 8 cannot be divided among 3 ranks" in result.stderr
    assert not (tmp_path / "out").exists()
