"""Fine-tuning: balanced draws, the whole network, results that are kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from clsp.evaluate.__main__ import main
from clsp.evaluate.finetune import _facts
from clsp.evaluate.tuning import FinetuneConfig, balanced_rows, finetune
from clsp.shards.images import load_pixels, open_images
from clsp.train.encoder import load_encoder


def command(run: Path, out: Path, *more: str):
    places = ["--train=digits:train", "--test=digits:test", f"--out={out}", "--device=cpu"]
    flags = ["--batch=64", "--lr=0.4", "--crop-min=0.7", "--no-flip"]
    return CliRunner().invoke(main, ["finetune", str(run / "encoder"), *places, *flags, *more])


def test_as_many_labels_of_each_class_are_drawn_by_seed() -> None:
    labels = np.repeat([0, 1, 2], [400, 500, 100])
    rows = balanced_rows(labels, 3, 30, seed=1)
    assert np.bincount(labels[rows]).tolist() == [100, 100, 100]
    assert len(set(rows.tolist())) == 300
    assert rows.tolist() == balanced_rows(labels, 3, 30, seed=1).tolist()
    assert rows.tolist() != balanced_rows(labels, 3, 30, seed=2).tolist()
    assert np.bincount(labels[balanced_rows(labels, 3, 60, seed=1)]).tolist() == [200, 200, 100]
    assert np.bincount(labels[balanced_rows(labels, 3, 0.01, seed=1)]).tolist() == [1, 1, 1]
    assert balanced_rows(labels, 3, 100, seed=1).tolist() == list(range(1000))
    with pytest.raises(ValueError, match="class 3 of 4 has no image"):
        balanced_rows(labels, 4, 10, seed=1)


def test_fine_tuning_learns_with_the_labels_it_gets_and_does_nothing_twice(
    run: Path, open_page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    flags = ("--percents=10,100", "--epochs=12,4")
    result = command(run, out, *flags)
    assert result.exit_code == 0, result.output
    values = json.loads((out / "finetune.json").read_text())
    (scores,) = values["arms"]["simclr"]["scores"]
    assert scores["100 %"] > 80  # chance is 10
    assert scores["100 %"] > scores["10 %"] > 20
    assert (out / "finetune.md").read_text() in result.output
    kept = [json.loads(path.read_bytes()) for path in (out / "results").iterdir()]
    assert sorted(value["result"]["images"] for value in kept) == [140, 1438]
    with open_page(out / "report.html", width=390) as (page, wrong):
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []
    monkeypatch.setattr("clsp.evaluate.finetune.finetune", None)
    again = command(run, out, *flags)
    assert again.exit_code == 0, again.output
    assert json.loads((out / "finetune.json").read_text())["arms"] == values["arms"]


def test_a_kept_result_is_of_the_images_and_labels_not_of_their_path(
    run: Path, tmp_path: Path
) -> None:
    encoder = load_encoder(run / "encoder")
    for number, label in enumerate("abab"):
        (tmp_path / label).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / label / f"{number}.png")
    spec = f"folder:{tmp_path}"
    before = _facts(encoder, open_images(spec))
    assert _facts(encoder, open_images(spec)) == before
    Image.new("RGB", (8, 8), (9, 0, 0)).save(tmp_path / "b" / "3.png")
    after = _facts(encoder, open_images(spec))
    assert after["content"] != before["content"]
    (tmp_path / "b" / "1.png").rename(tmp_path / "a" / "3.png")
    assert _facts(encoder, open_images(spec))["labels"] != after["labels"]


def test_the_whole_network_moves_and_the_encoder_stays(run: Path) -> None:
    encoder = load_encoder(run / "encoder")
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    source = open_images("digits:test")
    images = torch.from_numpy(load_pixels(source, range(64))).permute(0, 3, 1, 2)
    labels = torch.from_numpy(source.labels[:64])
    config = FinetuneConfig(batch=32)
    models = [finetune(encoder, images, labels, 10, config, epochs=1, seed=s) for s in (3, 3, 4)]
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name])
    first, same, other = (model.state_dict() for model in models)
    weights = [n for n, _ in models[0].named_parameters()]
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])
    moved = [
        name
        for name in weights
        if not torch.equal(
            first[name],
            before.get(name.replace("0.", "backbone.", 1), torch.zeros_like(first[name])),
        )
    ]
    assert moved == weights


def test_what_cannot_be_is_refused(run: Path, tmp_path: Path) -> None:
    for flags, code, message in (
        (["--percents=1,10"], 2, "one number of at least 1 for each"),
        (["--percents=0", "--epochs=1"], 2, "expected numbers in (0, 100]"),
        (["--percents=1", "--epochs=9", "--lr=1e30"], 1, "diverged at lr 1e+30"),
        (["--test=cifar10:/no/such:test"], 1, "cifar10:/no/such:test"),
    ):
        result = command(run, tmp_path / "out", *flags)
        assert result.exit_code == code, result.output
        assert message in " ".join(result.output.split())
    (tmp_path / "flat").mkdir()
    open_images("digits").read(0).save(tmp_path / "flat" / "0.png")
    result = command(run, tmp_path / "out", f"--train=folder:{tmp_path / 'flat'}")
    assert "has no labels, and fine-tuning needs them" in result.output
