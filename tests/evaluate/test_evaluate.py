"""Whole evaluations of a real encoder on real digits, and the report they end in."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from clsp.evaluate.__main__ import main
from clsp.evaluate.features import compute_features, fuse_batch_norm
from clsp.evaluate.figures import curves_figure
from clsp.evaluate.probe import Result
from clsp.evaluate.report import Arm, Report, score_rows, write_report
from clsp.shards.images import load_pixels, open_images
from clsp.shards.reader import ShardSet
from clsp.train import load_encoder
from clsp.train.encoder import build_backbone


def evaluate(run: Path, out: Path, *more: str, train: str = "digits:train"):
    arguments = [f"--encoder={run / 'encoder'}", f"--train={train}", "--test=digits:test"]
    places = [f"--out={out}", f"--cache={out / 'cache'}", "--device=cpu"]
    return CliRunner().invoke(main, [*arguments, *places, "--epochs=20", "--episodes=5", *more])


class _Pictures(HTMLParser):
    """The pictures of a report, and every address it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: dict[str, Image.Image] = {}
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        for name in ("src", "href"):
            if (address := values.get(name)) and not address.startswith("data:"):
                self.addresses.append(address)
        if tag == "img":
            data = base64.b64decode((values["src"] or "").partition("base64,")[2])
            self.pictures[values["alt"] or ""] = Image.open(io.BytesIO(data))


def test_features_are_the_encoders_of_each_image_and_its_mirror(run: Path, tmp_path: Path) -> None:
    encoder, source = load_encoder(run / "encoder"), open_images("digits:test")
    found = compute_features(encoder, source, keep=tmp_path)
    image = torch.tensor(np.asarray(source.read(7))).permute(2, 0, 1) / 255
    x = ((image - 0.3) / 0.4)[None]
    with torch.no_grad():
        torch.testing.assert_close(found.plain[7:8], encoder(x), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.mirrored[7:8], encoder(x.flip(3)), atol=1e-5, rtol=1e-4)
    assert found.labels.tolist() == source.labels.tolist()


def test_features_are_kept_and_belong_to_encoder_and_pixels(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(run / "encoder")
    first = compute_features(encoder, open_images("digits:test"), keep=tmp_path, mirrored=False)
    (path,) = tmp_path.iterdir()
    compute_features(encoder, open_images("digits:test"), keep=tmp_path)  # adds the mirror images
    assert len(list(tmp_path.iterdir())) == 2
    compute_features(encoder, open_images("digits:train"), keep=tmp_path, mirrored=False)
    assert len(list(tmp_path.iterdir())) == 3
    other = load_encoder(run / "encoder")
    other.mean = (0.5,) * 3
    compute_features(other, open_images("digits:test"), keep=tmp_path, mirrored=False)
    assert len(list(tmp_path.iterdir())) == 4

    def fail(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr("clsp.evaluate.features._forward", fail)
    again = compute_features(encoder, open_images("digits:test"), keep=tmp_path)
    assert torch.equal(again.plain, first.plain)
    assert path.exists()


def test_the_command_prints_saves_and_reports(
    run: Path, digit_set: ShardSet, tmp_path: Path
) -> None:
    result = evaluate(run, tmp_path, f"--set={digit_set.folder}", "--recipe=reference")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "results.json").read_text())
    assert values["scores"]["linear_top1"] > 30  # random features; chance is 10
    assert f"linear_top1  {values['scores']['linear_top1']:5.2f}" in result.output
    assert np.array(values["confusion"]).sum() == 359
    assert json.loads((tmp_path / "config.json").read_text())["epochs"] == 20
    text = (tmp_path / "report.html").read_text()
    found = _Pictures(text)
    assert found.addresses == []
    assert set(found.pictures) == {
        "training curves",
        "Anchors and their positives, one row each",
        "Ten test images and their nearest training images, one row each",
        "confusion matrix",
    }
    for picture in found.pictures.values():
        assert np.asarray(picture.convert("L")).std() > 5  # something is on it
    assert f"<td>{values['scores']['linear_top1']:.1f}</td>" in text


def test_images_without_labels_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    open_images("digits").read(0).save(tmp_path / "flat" / "0.png")
    result = evaluate(run, tmp_path / "out", train=f"folder:{tmp_path / 'flat'}")
    assert result.exit_code == 1
    assert "has no labels, and evaluation needs them" in result.output
    assert not (tmp_path / "out" / "results.json").exists()


def test_files_are_known_by_their_bytes_without_being_decoded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, encoder = tmp_path / "images", load_encoder(run / "encoder")
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
        open_images("digits").read(ord(label)).save(folder / label / "0.png")
    source = open_images(f"folder:{folder}")
    first = compute_features(encoder, source, keep=tmp_path / "kept")
    monkeypatch.setattr(type(source), "read", lambda *_: pytest.fail("decoded again"))
    again = compute_features(encoder, source, keep=tmp_path / "kept")
    assert torch.equal(again.plain, first.plain)
    monkeypatch.undo()
    open_images("digits").read(3).save(folder / "b" / "0.png")
    changed = compute_features(encoder, source, keep=tmp_path / "kept")
    assert torch.equal(changed.plain[0], first.plain[0])
    assert not torch.equal(changed.plain[1], first.plain[1])


def test_a_feature_that_is_not_finite_names_encoder_and_image(run: Path) -> None:
    encoder, source = load_encoder(run / "encoder"), open_images("digits:test")
    inner = encoder.backbone.forward

    def broken(images: torch.Tensor) -> torch.Tensor:
        features = inner(images)
        dark = images.mean(dim=(1, 2, 3)) == darkest
        return features.masked_fill(dark[:, None], torch.nan)

    x = torch.from_numpy(load_pixels(source)).permute(0, 3, 1, 2).float()
    means = ((x / 255 - 0.3) / 0.4).mean(dim=(1, 2, 3))
    darkest, index = means.min(), int(means.argmin())
    encoder.backbone.forward = broken
    with pytest.raises(ValueError, match=rf"{encoder.name}.*not finite for {source.path(index)} "):
        compute_features(encoder, source)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_fused_batch_norm_is_the_same_function(arch: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(arch, "cifar")
    x = torch.randn(4, 3, 16, 16)
    backbone(x)  # so that batch norm is not the identity
    backbone.eval()
    fused = fuse_batch_norm(backbone)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    torch.testing.assert_close(fused(x), backbone(x), atol=1e-5, rtol=1e-4)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())


@pytest.mark.parametrize("missing", ["encoder", "set"])
def test_what_is_not_there_is_named(run: Path, tmp_path: Path, missing: str) -> None:
    if missing == "encoder":
        (tmp_path / "encoder").mkdir()
        result = evaluate(tmp_path, tmp_path / "out")
        assert "encoder.json is missing" in result.output
    else:
        result = evaluate(run, tmp_path / "out", f"--set={tmp_path}")
        assert "has no manifest.json" in result.output
    assert result.exit_code == 1


def test_arms_are_compared_seed_by_seed(tmp_path: Path) -> None:
    def result(score: float) -> Result:
        return Result({"linear_top1": score}, np.eye(2, dtype=np.int64))

    arms = [
        Arm("base <1>", (result(70.0), result(72.0), result(71.0))),
        Arm("better", (result(72.0), result(73.0), result(70.5))),
    ]
    report = Report("A & B", "lead", arms, ("x", "y"), {"command": "clsp demo"})
    write_report(tmp_path / "r.html", replace(report, notes=("a note",)))
    text = (tmp_path / "r.html").read_text()
    plain = re.sub(r"<[^>]+>", "", text)
    assert "71.0 ± 1.0" in plain  # mean and deviation of 70, 72, 71
    assert "+0.8 points of linear against base &lt;1&gt; (+2.0, +1.0, -0.5" in plain
    assert "better in 2 of 3" in plain
    assert "base <1>" not in text
    assert "<title>A &amp; B</title>" in text


def test_what_probes_chose_is_a_table_of_its_own(tmp_path: Path) -> None:
    """Three seeds of three settings beside the scores were wider than a page."""
    chosen = [{"linear_top1": 90.0 + n, "knn_k": 5.0 + n, "lbfgs_l2": 10.0**-n} for n in range(3)]
    arm = Arm(
        "way", tuple(Result(scores, np.eye(2, dtype=np.int64)) for scores in chosen), (0, 1, 2)
    )
    assert score_rows([arm]) == (["", "linear"], [["way", "91.0 ± 1.0"]])
    write_report(tmp_path / "report.html", Report("A", "B", [arm], ("a", "b"), {}))
    plain = re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text())
    assert "Chosen on a validation split" in plain
    assert "5, 6, 7" in plain
    assert "1, 0.1, 0.01" in plain


def test_what_was_logged_once_is_seen_as_a_dot() -> None:
    """A line through one point draws nothing."""
    row = {"epoch": 1.0, "contrastive": 2.0}
    long = [row | {"epoch": float(n)} for n in range(40)]
    lines = curves_figure({"short": [row], "long": long}).axes[0].lines
    assert [line.get_marker() for line in lines] == ["o", "None"]


def test_the_report_is_a_page_for_screens_phones_and_paper(
    run: Path, digit_set: ShardSet, open_page, tmp_path: Path
) -> None:
    result = evaluate(run, tmp_path, f"--set={digit_set.folder}", "--no-lbfgs")
    assert result.exit_code == 0, result.output
    for width in (390, 1200):
        with open_page(tmp_path / "report.html", width=width) as (page, wrong):
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            shown = "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
            assert page.evaluate(shown)
            assert page.locator("img").count() == 4
            assert "How it was made" in page.inner_text("body")
            page.emulate_media(media="print")
            assert page.pdf(format="A4")[:5] == b"%PDF-"
            # On paper nothing can be scrolled: no picture may be wider than the page.
            wide = "[...document.images].some(i => i.getBoundingClientRect().right > innerWidth)"
            assert not page.evaluate(wide)
            assert wrong == []
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"curves.png", "curves.svg", "confusion.png", "confusion.svg", "sheet0.png"} <= names
