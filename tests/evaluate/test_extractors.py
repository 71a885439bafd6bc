"""What the distances see with: an encoder, and Inception with weights that were drawn."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_fidelity import feature_extractor_inceptionv3 as inception

from clsp.evaluate.extractors import open_extractor
from clsp.evaluate.positives import embed, pair_features
from clsp.shards.reader import ShardSet
from clsp.train import load_encoder

Inception = inception.FeatureExtractorInceptionV3


class _Drawn(Inception):
    """The network as it is built, before weights are loaded."""

    def load_state_dict(self, *_: Any, **__: Any) -> None: ...


@pytest.fixture(scope="module")
def drawn() -> nn.Module:
    torch.manual_seed(0)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    model = _Drawn("drawn", ["2048"], nothing)
    for name, value in model.named_parameters():
        if name.endswith("conv.weight"):
            nn.init.kaiming_normal_(value)  # or nothing of the image would reach the end
    return model


@pytest.fixture
def file(drawn: nn.Module, tmp_path: Path) -> Path:
    torch.save(drawn.state_dict(), tmp_path / "inception.pth")
    return tmp_path / "inception.pth"


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=generator)


def test_inception_is_the_librarys_own(drawn: nn.Module, file: Path) -> None:
    see = open_extractor(f"fid-inception:{file}")
    found = see(images(2))
    assert found.shape == (2, 2048)
    assert float((found[0] - found[1]).std()) > 1e-3
    torch.testing.assert_close(found, drawn(images(2))[0])


def test_a_download_is_checked_and_not_unpickled(
    drawn: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}

    def load(url: str, **settings: Any) -> dict[str, Tensor]:
        asked.update(settings, url=url)
        return dict(drawn.state_dict())

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", load)
    assert callable(open_extractor("fid-inception"))
    assert (asked["url"], asked["check_hash"], asked["weights_only"]) == (
        inception.URL_INCEPTION_V3,
        True,
        True,
    )


def test_other_weights_are_refused_and_nothing_in_a_file_is_run(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)

    path = tmp_path / "hostile.pth"
    torch.save({"fc.weight": torch.zeros(3, 2), "more": Runs()}, path)
    message = f"{path} has not the weights of fid-inception"
    with pytest.raises(ValueError, match=re.escape(message)):
        open_extractor(f"fid-inception:{path}")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match=r"none\.pth is not a file"):
        open_extractor(f"fid-inception:{tmp_path / 'none.pth'}")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ValueError, match=re.escape("pip install 'clsp[fid]'")):
        open_extractor("fid-inception")


def test_pairs_are_of_each_anchor_and_one_positive(run: Path, digit_set: ShardSet) -> None:
    see = open_extractor(str(run / "encoder"))
    anchors, positives = pair_features(digit_set, see)
    encoder = load_encoder(run / "encoder")
    for row in (0, 1, 39):
        pair = digit_set.pixels(row, ["anchor", f"p{row % digit_set.positives}"])
        with torch.no_grad():
            expected = embed(encoder, torch.from_numpy(pair).permute(0, 3, 1, 2))
        found = torch.stack([anchors[row], positives[row]])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
