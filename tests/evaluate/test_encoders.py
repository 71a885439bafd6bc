"""Encoders of others, each saved as its own trainer saves it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import googlenet, resnet18, resnet34

from clsp.evaluate.encoders import open_encoder
from clsp.train.encoder import build_backbone


@pytest.fixture(scope="module")
def small() -> nn.Module:
    torch.manual_seed(0)
    return build_backbone("resnet18", "cifar").eval()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in state.items()}


def agree(found: nn.Module, expected: nn.Module, size: int = 32) -> None:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(found(x), expected(x))


class _Runs:
    """What a hostile checkpoint holds: a command that unpickling would run."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


class _Settings(dict):
    """A dict of a class of its own, as Lightning keeps hyperparameters."""


@pytest.mark.parametrize("prefix", ["", "module.", "encoder.", "module.encoder_q.", "backbone."])
def test_a_resnet_is_found_under_any_prefix(small: nn.Module, tmp_path: Path, prefix: str) -> None:
    copies = prefixed({n: v + 1 for n, v in small.state_dict().items()}, f"momentum_{prefix}")
    head = {"projector.0.weight": torch.zeros(8, 512)}
    content = {"state_dict": {**copies, **prefixed(small.state_dict(), prefix), **head}}
    torch.save(content, tmp_path / "model.pt")
    found = open_encoder(tmp_path / "model.pt")
    assert (found.image_size, found.feature_dim) == (32, 512)
    agree(found, small)


def test_a_sequential_backbone_is_found_by_its_numbers(tmp_path: Path) -> None:
    model = resnet18(weights=None).eval()
    backbone = nn.Sequential(*list(model.children())[:-1])
    state = prefixed(backbone.state_dict(), "backbone.")
    torch.save({"state_dict": state}, tmp_path / "lightly.ckpt")
    model.fc = nn.Identity()
    found = open_encoder(tmp_path / "lightly.ckpt")
    assert found.image_size == 224
    agree(found, model, 64)


def test_nothing_in_a_checkpoint_is_run(small: nn.Module, tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "hostile.ckpt"
    content = {
        "hyper_parameters": _Settings(lr=1),
        "callbacks": [_Runs(f"touch {mark}")],
        "state_dict": prefixed(small.state_dict(), "backbone."),
    }
    torch.save(content, path)
    agree(open_encoder(path), small)
    assert not mark.exists()


def test_settings_follow_the_address(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small.state_dict(), tmp_path / "a.pth")
    found = open_encoder(f"{tmp_path / 'a.pth'},image_size=96,stem=stl,mean=0.1:0.2:0.3")
    assert (found.image_size, found.mean) == (96, (0.1, 0.2, 0.3))
    stl = build_backbone("resnet18", "stl").eval()
    stl.load_state_dict(small.state_dict())
    agree(found, stl)
    assert found.sha256 != open_encoder(tmp_path / "a.pth").sha256


def test_models_of_torchvision_and_timm(tmp_path: Path) -> None:
    model = resnet34(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "34.pth")
    found = open_encoder(f"torchvision:resnet34:{tmp_path / '34.pth'}")
    model.fc = nn.Identity()
    agree(found, model, 64)
    theirs = timm.create_model("resnet10t", num_classes=0).eval()
    torch.save(theirs.state_dict(), tmp_path / "10t.pth")
    found = open_encoder(f"timm:resnet10t:{tmp_path / '10t.pth'}")
    agree(found, theirs, 64)
    assert found.mean == pytest.approx(theirs.pretrained_cfg["mean"])


def test_inception_gets_the_input_that_its_weights_know(tmp_path: Path) -> None:
    theirs = googlenet(weights=None, transform_input=True, init_weights=False).eval()
    torch.save(theirs.state_dict(), tmp_path / "g.pth")
    found = open_encoder(f"torchvision:googlenet:{tmp_path / 'g.pth'},image_size=64")
    theirs.fc = nn.Identity()
    agree(found, theirs, 64)


def test_what_cannot_be_opened_says_what_was_tried(tmp_path: Path) -> None:
    torch.save({"head.weight": torch.zeros(3, 2)}, tmp_path / "odd.pt")
    torch.save({"lr": 1}, tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    for address, message in {
        "nothing": "is no folder and of no known kind, which are\n  FOLDER",
        f"{tmp_path}/odd.pt": "1 tensors, such as head.weight (3, 2). Tried: resnet152",
        f"{tmp_path}/none.pt": "holds no tensor",
        f"{tmp_path}/text.pt": "neither safetensors nor a file of torch.save",
        f"timm:resnet10t:{tmp_path}/odd.pt": "does not fit: the model wants",
        "torchvision:resnet19": "no model 'resnet19'; near it: resnet18",
        "timm:resnet10x": "no model 'resnet10x'",
        "torchvision:resnet18:V9": "no such weights of resnet18; it has IMAGENET1K_V1",
        "torchvision:resnet18:none,size=3": "no setting 'size'",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            open_encoder(address)
