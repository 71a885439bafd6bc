"""The online kNN: right where one can count, and without a trace in the training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from clsp.shards.images import ImageError
from clsp.shards.reader import ShardSet
from clsp.train.checkpoint import load_checkpoint
from clsp.train.config import TrainConfig
from clsp.train.loop import train
from clsp.train.online import OnlineKNN
from clsp.train.options import RunOptions

TINY = TrainConfig(arch="conv-tiny", hidden=16, dim=8, epochs=4, batch=8, save_every=5)


def test_it_is_a_leave_one_out_vote() -> None:
    """Against a loop over images; the backbone gives the pixels themselves."""
    probe = OnlineKNN("digits:test", TINY, image_size=8)
    x = ((probe.images.float() / 255 - probe.mean) / probe.std).flatten(1)
    similarity, right = cosine_similarity(x.numpy()), 0
    for n, label in enumerate(probe.labels.tolist()):
        similarity[n, n] = -1
        votes = [0.0] * 10
        for other in similarity[n].argsort()[-20:]:
            votes[int(probe.labels[other])] += (
                torch.tensor(similarity[n, other] / 0.07).exp().item()
            )
        right += votes.index(max(votes)) == label
    found = probe.accuracy(nn.Flatten(), torch.device("cpu"))
    assert found == pytest.approx(100 * right / len(probe.labels), abs=0.3)
    assert found > 90
    assert len(load_digits().target) > len(probe.labels)


def test_training_does_not_notice_it(digit_set: ShardSet, tmp_path: Path) -> None:
    states = []
    for spec in ("", "digits:test"):
        options = RunOptions(knn=spec, knn_every=2)
        out = tmp_path / (spec or "none")
        train(TINY, digit_set.folder, out, cache=tmp_path, options=options)
        states.append(load_checkpoint(out / "checkpoints")[0])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    rows = [json.loads(line) for line in (tmp_path / "digits:test/knn.jsonl").open()]
    assert [(row["step"], row["epoch"]) for row in rows] == [(10, 2), (20, 4)]
    assert all(10 < row["online_knn"] <= 100 for row in rows)


def test_a_source_without_labels_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    with pytest.raises(ImageError, match="has no labels"):
        OnlineKNN(f"folder:{tmp_path}", TINY, image_size=8)
