"""Training on a set that grows meanwhile: shards join at the next epoch, also after a kill."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path

import pytest
import torch

from clsp.shards.check import ShardError
from clsp.shards.files import write_atomic
from clsp.shards.manifest import Receipt
from clsp.shards.reader import ShardSet
from clsp.train import loop
from clsp.train.checkpoint import load_checkpoint
from clsp.train.config import TrainConfig
from clsp.train.loop import train
from clsp.train.options import RunOptions

CONFIG = TrainConfig(
    arch="conv-tiny", positive="synthetic", hidden=16, dim=8, epochs=4, batch=8, save_every=1
)
FOLLOW = RunOptions(follow=True, workers=0)


class Generation:
    """A folder as `clsp generate` leaves it while it works: a plan, shards, and their receipts."""

    def __init__(self, whole: ShardSet, folder: Path) -> None:
        self.whole, self.folder = whole, folder
        (folder / "receipts").mkdir(parents=True)
        (folder / "data").symlink_to(whole.folder / "data")
        plan = {
            "config": {"positives": 2, "image_format": "png"},
            "model": {"image_size": 8},
            "source": {"samples": len(whole), "classes": None},
        }
        text = json.dumps(plan).encode()
        (folder / "plan.json").write_bytes(text)
        self.plan_id = hashlib.sha256(text).hexdigest()

    def finish(self, *numbers: int) -> None:
        for number in numbers:
            shard = self.whole.manifest.shards[number]
            path = self.folder / "receipts" / f"train-{number:05d}.json"
            write_atomic(path, Receipt(shard, self.plan_id, {}).to_json())


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch):
    """A function to be called with the epoch at each step."""
    calls = []
    rate = loop.learning_rate

    def learning_rate(config: TrainConfig, epoch: float) -> float:
        for call in calls:
            call(epoch)
        return rate(config, epoch)

    monkeypatch.setattr(loop, "learning_rate", learning_rate)
    return calls


def test_shards_join_at_the_next_epoch_and_a_resumed_run_sees_the_same(
    make_set, tmp_path: Path, hook: list
) -> None:
    whole = make_set(tmp_path / "whole", sizes=(7, 20, 13, 9))
    states, joined = [], []
    for kill in (False, True):
        place = tmp_path / str(kill)
        generation = Generation(whole, place / "set")
        generation.finish(0, 2)

        def grow(epoch: float, generation: Generation = generation, kill: bool = kill) -> None:
            if epoch >= 1:
                generation.finish(1)
            if epoch > 2.5:
                generation.finish(3)
                if kill:
                    raise InterruptedError

        hook[:] = [grow]
        if kill:
            with pytest.raises(InterruptedError):
                train(CONFIG, generation.folder, place / "out", cache=tmp_path, options=FOLLOW)
            hook.clear()  # all shards are there, but the third epoch began without the last
            with (place / "out/epochs.jsonl").open("a") as file:
                file.write('{"epoch": 3, "sha')  # a kill within the line of an epoch
        train(CONFIG, generation.folder, place / "out", cache=tmp_path, options=FOLLOW)
        states.append(load_checkpoint(place / "out/checkpoints"))
        lines = (place / "out/epochs.jsonl").read_text().splitlines()
        joined.append([json.loads(line)["shards"] for line in lines])
    names = [f"data/train-{number:05d}.tar" for number in range(4)]
    assert joined[0] == joined[1] == [[names[0], names[2]], [], [names[1]], [names[3]]]
    assert states[0][1]["step"] == 2 + 2 + 5 + 6
    assert all(torch.equal(states[0][0][name], states[1][0][name]) for name in states[0][0])


def test_it_waits_for_the_first_batch(
    digit_set: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generation = Generation(digit_set, tmp_path / "set")
    generation.finish(0)  # 7 records, a batch is 8

    def later() -> None:
        time.sleep(1)
        generation.finish(1)

    writer = threading.Thread(target=later)
    writer.start()
    train(CONFIG, generation.folder, tmp_path / "out", cache=tmp_path, options=FOLLOW)
    writer.join()
    assert "waiting for 8 records" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "out/checkpoints")[1]["step"] == 4 * 3


def test_a_folder_that_nobody_generates_into_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"has no plan\.json"):
        train(CONFIG, tmp_path, tmp_path / "out", cache=tmp_path, options=FOLLOW)
