"""What is said of positives: laws, slow loops, other people's distances, and the whole command."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from clsp.evaluate.__main__ import main
from clsp.evaluate.copies import nearest_training, training_features
from clsp.evaluate.distances import frechet_distance, kernel_distance
from clsp.evaluate.neighbours import nearest
from clsp.evaluate.positives import (
    SetFeatures,
    hardness,
    measure_positives,
    set_features,
)
from clsp.shards.images import encode_image, open_images
from clsp.shards.reader import ShardSet
from clsp.shards.record import Record
from clsp.shards.scores import load_hardness
from clsp.shards.store import index_folder
from clsp.shards.writer import write_shard
from clsp.train import load_encoder
from clsp.train.encoder import build_backbone


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(noise: float, count: int = 60, positives: int = 3) -> SetFeatures:
    """Anchors of three classes; positives and views are anchors with some noise."""
    labels = torch.arange(count) % 3
    anchors = 4 * torch.eye(3, 16)[labels] + 0.5 * draw(count, 16)
    synthetic = anchors[:, None] + noise * draw(count, positives, 16, seed=1)
    return SetFeatures(anchors, synthetic, anchors[:, None] + 0.1 * draw(count, 2, 16), labels)


def test_distances_are_those_of_torchmetrics() -> None:
    a, b = draw(200, 12).double(), draw(150, 12, seed=1).double() * 1.5 + 0.3
    moments = (a.mean(0), a.T.cov(), b.mean(0), b.T.cov())
    assert frechet_distance(a, b).value == pytest.approx(float(_compute_fid(*moments)), rel=1e-6)
    same = b[:100], a[:100]  # theirs wants equal numbers
    assert kernel_distance(*same).value == pytest.approx(float(poly_mmd(*same)), rel=1e-6)


def test_distances_of_equal_and_of_moved_gaussians() -> None:
    a, b = draw(4000, 4), draw(4000, 4, seed=1)
    assert frechet_distance(a, b).value == pytest.approx(0, abs=0.02)
    assert frechet_distance(a, b + 1).value == pytest.approx(4, rel=0.1)
    assert frechet_distance(a, 2 * b).value == pytest.approx(4, rel=0.1)  # (2 - 1)^2 in 4 axes
    near, far = kernel_distance(a[:500], b[:500]), kernel_distance(a[:500], b[:500] + 1)
    assert near.low < 0 < near.high < far.low


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """The kernel distance of one distribution to itself is 0 in the mean."""
    found = [
        kernel_distance(draw(60, 4, seed=2 * n), draw(60, 4, seed=2 * n + 1)) for n in range(60)
    ]
    held = np.mean([distance.low <= 0 <= distance.high for distance in found])
    assert 0.85 <= held <= 1


def test_few_images_have_no_distance() -> None:
    with pytest.raises(ValueError, match="a distance of 19 images was asked for, expected 20"):
        frechet_distance(draw(19, 4), draw(40, 4))


def test_neighbours_are_those_of_a_slow_loop() -> None:
    queries, bank = draw(7, 5), draw(9, 5, seed=1)
    own = torch.tensor([0, 1, 2, 3, 4, 5, 6])
    cosines, found = nearest(queries, bank, 3, own)
    for row, query in enumerate(queries):
        each = {
            n: float(query @ other / query.norm() / other.norm())
            for n, other in enumerate(bank)
            if n != row
        }
        expected = sorted(each, key=each.__getitem__, reverse=True)[:3]
        assert found[row].tolist() == expected
        assert cosines[row].tolist() == pytest.approx([each[n] for n in expected], abs=1e-6)
    with pytest.raises(ValueError, match="9 nearest neighbours were asked for, there are 8"):
        nearest(queries, bank, 9, own)


def test_hardness_is_one_minus_the_cosine() -> None:
    found = features(0.5)
    values = hardness(found)
    a, p = found.anchors[7], found.positives[7, 2]
    assert values.shape == (60, 3)
    assert values[7, 2] == pytest.approx(1 - float(a @ p / a.norm() / p.norm()), abs=1e-6)


def test_measures_know_good_positives_from_bad_ones() -> None:
    good = measure_positives(features(0.5))
    wrong = features(0.5)
    wrong = measure_positives(wrong._replace(positives=wrong.positives.roll(1, dims=0)))
    noisy = measure_positives(features(3.0))
    copied = features(0.5)
    copies = copied.anchors.roll(3, dims=0)[:, None].expand(-1, 3, -1)
    copied = measure_positives(copied._replace(positives=copies))
    assert good["agreement"] == good["anchor_agreement"] == 100
    assert wrong["agreement"] < 5  # each is another class's
    assert good["easy"] > good["positive"] > noisy["positive"]
    assert noisy["diversity"] > good["diversity"] > 0
    assert (copied["copies"], copied["diversity"]) == (100, pytest.approx(0, abs=1e-6))
    assert copied["nearest_training"] == pytest.approx(1, abs=1e-6)
    assert good["copies"] < 50
    assert noisy["frechet"] > good["frechet_high"]


def test_without_labels_there_is_no_agreement() -> None:
    found = measure_positives(features(0.5, positives=1)._replace(labels=None))
    assert not {"agreement", "anchor_agreement", "diversity"} & set(found)
    assert math.isfinite(found["kernel"])


def test_features_are_the_encoders_of_each_image(run: Path, digit_set: ShardSet) -> None:
    encoder = load_encoder(run / "encoder")
    found = set_features(digit_set, encoder)
    assert found.labels.tolist() == [n % 10 for n in range(40)]
    # The positives of this set are the two digits that follow the anchor.
    torch.testing.assert_close(found.positives[:-1, 0], found.anchors[1:], atol=1e-5, rtol=1e-4)
    image = torch.from_numpy(digit_set.pixels(5, ["p1"])).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        torch.testing.assert_close(
            found.positives[5, 1:], encoder((image - 0.3) / 0.4), atol=1e-5, rtol=1e-4
        )
    assert not torch.equal(found.views[:, 0], found.views[:, 1])


def test_the_command_scores_and_reports(
    run: Path, make_set, open_page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_set(tmp_path / "set")
    out = tmp_path / "out"
    flags = [str(shards.folder), f"--encoder={run / 'encoder'}", f"--out={out}", "--score"]
    result = CliRunner().invoke(main, ["positives", *flags, "--device=cpu"])
    assert result.exit_code == 0, result.output
    scores = json.loads((out / "positives.json").read_text())["scores"]
    values, about = load_hardness(shards)
    assert scores["positive"] == pytest.approx(1 - values.mean(), abs=1e-6)
    assert about.encoder == load_encoder(run / "encoder").sha256
    assert f"positive          {scores['positive']:9.4f}" in result.output
    assert (out / "figures" / "cosines.svg").read_text().startswith("<?xml")
    with open_page(out / "report.html", width=390) as (page, wrong):
        assert page.title() == "Positives"
        assert page.locator("img").count() == 4  # histogram, sample, hardest, easiest
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []


def test_a_set_without_anchors_is_refused(run: Path, make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", anchors=False)
    flags = [str(shards.folder), f"--encoder={run / 'encoder'}"]
    result = CliRunner().invoke(main, ["positives", *flags])
    assert result.exit_code == 1
    assert "carries no anchors to measure its positives against" in result.output


def test_distances_may_be_in_any_encoders_features(run: Path, make_set, tmp_path: Path) -> None:
    torch.save(build_backbone("conv-tiny", "cifar").state_dict(), tmp_path / "tiny.pt")
    shards = make_set(tmp_path / "set")
    flags = [f"--encoder={run / 'encoder'}", f"--out={tmp_path / 'out'}", "--device=cpu"]
    other = f"{tmp_path / 'tiny.pt'},image_size=8"
    found = []
    for more in ([], [f"--extractor={other}"]):
        result = CliRunner().invoke(main, ["positives", str(shards.folder), *flags, *more])
        assert result.exit_code == 0, result.output
        found.append(json.loads((tmp_path / "out" / "positives.json").read_text()))
    own, theirs = (values["scores"] for values in found)
    assert own["positive"] == theirs["positive"]  # the encoder sees these as ever
    assert own["frechet"] != theirs["frechet"]
    assert theirs["frechet_low"] < theirs["frechet"] < theirs["frechet_high"]
    assert found[1]["about"]["distances in the features of"] == other


def test_copies_of_training_images_are_found(run: Path, make_set, tmp_path: Path) -> None:
    """The positives of this set are digits, so each is an image of the training source."""
    shards = make_set(tmp_path / "set")
    flags = [str(shards.folder), f"--encoder={run / 'encoder'}", "--train=digits", "--device=cpu"]
    result = CliRunner().invoke(main, ["positives", *flags, f"--out={tmp_path / 'out'}"])
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "out" / "positives.json").read_text())
    assert values["scores"]["nearest_training"] == pytest.approx(1, abs=1e-4)
    assert values["scores"]["copies"] == 100
    assert values["about"]["copies looked for in"] == "digits"
    text = (tmp_path / "out" / "report.html").read_text()
    assert "positives nearest to a training image" in text


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_an_anchor_is_known_by_its_pixels_before_they_were_stored(
    run: Path, tmp_path: Path, image_format: str
) -> None:
    """The source's files are JPEG, and a set may store its anchors as JPEG once more."""
    rng = np.random.default_rng(0)
    for n in range(4):
        (tmp_path / "images").mkdir(exist_ok=True)
        path = tmp_path / "images" / f"{n}.jpg"
        path.write_bytes(encode_image(rng.integers(0, 256, (8, 8, 3), np.uint8), "jpeg"))
    source = open_images(f"folder:{tmp_path / 'images'}")
    records = []
    for n in (2, 0, 3):
        pixels = np.asarray(source.read(n))
        stored = encode_image(pixels, image_format)
        meta = {"rgb_sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}
        records.append(Record(f"image-{n}", stored, (stored,), meta, image_format))
    (tmp_path / "set" / "data").mkdir(parents=True)
    write_shard(tmp_path / "set" / "data" / "train-00000.tar", records, 1)
    shards = index_folder(tmp_path / "set")
    same = (shards.pixels(0, ["anchor"])[0] == np.asarray(source.read(2))).all()
    assert same == (image_format == "png")
    training = training_features(shards, source, load_encoder(run / "encoder"))
    assert training.own.tolist() == [2, 0, 3]


def test_an_anchor_is_no_training_image_of_its_own(run: Path, make_set, tmp_path: Path) -> None:
    shards, source = make_set(tmp_path / "set"), open_images("digits:train")
    encoder = load_encoder(run / "encoder")
    training = training_features(shards, source, encoder)
    # Every fifth digit is in the test part.
    expected = [-1 if n % 5 == 4 else n - n // 5 for n in range(40)]
    assert training.own.tolist() == expected
    found = set_features(shards, encoder)
    same = found._replace(positives=found.anchors[:, None])
    cosines, rows = nearest_training(same, training)
    assert (rows[:, 0] != training.own).all()
    bank = torch.nn.functional.normalize(training.features, dim=1)
    for n in (0, 3, 4, 39):
        each = torch.nn.functional.normalize(found.anchors[n], dim=0) @ bank.T
        if expected[n] >= 0:
            each[expected[n]] = -2
        assert int(rows[n, 0]) == int(each.argmax())
        assert float(cosines[n, 0]) == pytest.approx(float(each.max()), abs=1e-5)
