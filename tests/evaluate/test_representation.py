"""Geometry against its definitions, layers against the whole projector, and the command."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from sklearn.neighbors import KNeighborsClassifier

from clsp.evaluate.__main__ import main
from clsp.evaluate.features import Features
from clsp.evaluate.geometry import alignment, effective_rank, tsne, umap, uniformity
from clsp.evaluate.representation import layers, measure_layers, through
from clsp.train.encoder import (
    build_backbone,
    build_projector,
    load_encoder,
    load_projector,
)


def test_alignment_and_uniformity_are_the_papers() -> None:
    x, y = (torch.randn(30, 4, generator=torch.Generator().manual_seed(n)) for n in (0, 1))
    unit = [[row / row.norm() for row in part] for part in (x, y)]
    expected = np.mean([float(((a - b) ** 2).sum()) for a, b in zip(*unit, strict=True)])
    assert alignment(x, y) == pytest.approx(expected, rel=1e-5)
    pairs = [float(((a - b) ** 2).sum()) for a in unit[0] for b in unit[0] if a is not b]
    assert uniformity(x) == pytest.approx(math.log(np.mean(np.exp(-2 * np.array(pairs)))), rel=1e-4)
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-5)


def test_effective_rank_counts_equal_directions() -> None:
    assert effective_rank(torch.eye(6)[:, :4].repeat(5, 1)) == pytest.approx(4)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-3)
    assert 1 < effective_rank(torch.tensor([[3.0, 0], [0, 1]])) < 2


@pytest.mark.parametrize("lay_out", [tsne, umap])
def test_pictures_keep_neighbours_together(lay_out, train_features: Features) -> None:
    part = train_features.select(slice(0, 90))
    x = part.plain + 3 * torch.eye(3, 8)[part.labels]
    points = lay_out(x)
    assert points.shape == (90, 2)
    reader = KNeighborsClassifier(5).fit(points, part.labels)
    assert reader.score(points, part.labels) > 0.95


def test_umap_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ValueError, match=r"pip install 'clsp\[umap\]'"):
        umap(torch.randn(20, 3))


def test_layers_lead_up_to_the_whole_projector() -> None:
    projector = build_projector(8, 16, 4)
    x = torch.randn(50, 8)
    found = {name: through(module, x) for name, module in layers(projector)}
    assert list(found) == [
        "backbone",
        "projector 1, Linear",
        "projector 2, ReLU",
        "projector 3, Linear",
    ]
    assert torch.equal(found["backbone"], x)
    assert (found["projector 1, Linear"] < 0).any()
    assert (found["projector 2, ReLU"] >= 0).all()
    torch.testing.assert_close(found["projector 3, Linear"], projector(x))


def test_a_layer_that_forgets_the_classes_probes_worse(
    train_features: Features, test_features: Features
) -> None:
    projector = build_projector(8, 16, 4)
    with torch.no_grad():
        projector[2].weight[:] = 0
        projector[2].weight[:, 0] = 1  # one direction is left
    views = test_features.plain[:, None].expand(-1, 2, -1)
    found = measure_layers(train_features, test_features, views, projector, epochs=20)
    assert found["backbone"]["linear_top1"] > found["projector 3, Linear"]["linear_top1"] + 10
    assert found["projector 3, Linear"]["effective_rank"] < 2 < found["backbone"]["effective_rank"]
    assert found["backbone"]["alignment"] == 0
    assert [row["width"] for row in found.values()] == [8, 16, 16, 4]


def test_the_command_looks_into_a_run(run: Path, open_page, tmp_path: Path) -> None:
    encoder, projector = run / "encoder", load_projector(run / "encoder")
    assert projector[0].in_features == load_encoder(encoder).feature_dim
    save_file({"features": torch.randn(359, 5)}, tmp_path / "other.safetensors")
    flags = [f"--encoder={encoder}", "--train=digits:train", "--test=digits:test", "--epochs=10"]
    flags += [f"--out={tmp_path / 'out'}", f"--cache={tmp_path}", "--device=cpu"]
    also = f"--also=diffusion={tmp_path / 'other.safetensors'}"
    result = CliRunner().invoke(main, ["representation", *flags, also])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "representation.json").read_text())["layers"]
    assert found["backbone"]["linear_top1"] > 30  # chance is 10
    assert f"backbone            {found['backbone']['linear_top1']:6.2f}" in result.output
    with open_page(tmp_path / "out" / "report.html", width=390) as (page, wrong):
        assert page.locator("tbody tr").count() == 4
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []
    save_file({"features": torch.randn(3, 5)}, tmp_path / "other.safetensors")
    result = CliRunner().invoke(main, ["representation", *flags, also])
    assert "has features (3, 5), expected (359, F)" in result.output
    (encoder / "projector.safetensors").rename(tmp_path / "away")
    result = CliRunner().invoke(main, ["representation", *flags])
    (tmp_path / "away").rename(encoder / "projector.safetensors")
    assert result.exit_code == 1
    assert "has no projector: projector.safetensors is missing" in result.output


def test_an_encoder_made_elsewhere_is_its_backbone(tmp_path: Path) -> None:
    torch.save(build_backbone("conv-tiny", "cifar").state_dict(), tmp_path / "tiny.pt")
    flags = [f"--encoder={tmp_path / 'tiny.pt'},image_size=8", "--epochs=1", "--device=cpu"]
    places = ["--train=digits:train", "--test=digits:test", f"--out={tmp_path / 'out'}"]
    result = CliRunner().invoke(
        main, ["representation", *flags, *places, f"--cache={tmp_path / 'cache'}"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "representation.json").read_text())["layers"]
    assert list(found) == ["backbone"]
