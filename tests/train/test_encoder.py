"""Encoders: torchvision's networks, exported so that anyone can open them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from clsp.train import load_encoder
from clsp.train.config import TrainConfig
from clsp.train.encoder import (
    FEATURES,
    ProjectedEncoder,
    build_backbone,
    export_encoder,
    load_projector,
    torchvision_state_dict,
)


@pytest.mark.parametrize("arch", list(FEATURES))
def test_features_have_the_stated_width(arch: str) -> None:
    backbone = build_backbone(arch, "cifar").eval()
    assert backbone(torch.randn(2, 3, 32, 32)).shape == (2, FEATURES[arch])


@pytest.mark.parametrize(("stem", "side"), [("cifar", 32), ("stl", 16), ("imagenet", 8)])
def test_a_stem_scales_the_image_down(stem: str, side: int) -> None:
    sizes = []
    backbone = build_backbone("resnet18", stem)
    backbone.layer1.register_forward_hook(lambda _, inputs, __: sizes.append(inputs[0].shape[-1]))
    backbone.eval()(torch.randn(1, 3, 32, 32))
    assert sizes == [side]


def test_the_imagenet_stem_is_torchvisions_network() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18().eval()
    ours = build_backbone("resnet18", "imagenet").eval()
    weights = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    ours.load_state_dict(weights)
    theirs.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("arch", ["resnet18", "conv-tiny"])
def test_an_export_opens_with_the_same_features(arch: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TrainConfig(arch=arch, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    backbone = build_backbone(arch, "cifar")
    backbone(torch.randn(8, 3, 16, 16))  # so that running statistics are not the default
    export_encoder(tmp_path / "encoder", backbone, config, image_size=16)
    encoder = load_encoder(tmp_path / "encoder")
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(encoder(x), backbone.eval()(x))
    assert (encoder.mean, encoder.std) == (config.mean, config.std)
    assert (encoder.image_size, encoder.feature_dim) == (16, FEATURES[arch])
    assert not encoder.training


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_a_timm_network_is_built_for_the_sets_images(name: str, tmp_path: Path) -> None:
    """One that is built for 160 pixels, and one for any size; both export and open."""
    config = TrainConfig(arch=f"timm:{name}", stem="imagenet", hidden=32, dim=8)
    model = ProjectedEncoder(config, image_size=32)
    x = torch.randn(2, 3, 32, 32)
    assert model([x, x])[0].shape == (2, 8)
    export_encoder(tmp_path, model.backbone, config, image_size=32)
    encoder = load_encoder(tmp_path)
    assert torch.equal(encoder(x), model.backbone.eval()(x))
    assert encoder.feature_dim == encoder(x).shape[1]


@pytest.mark.parametrize(
    ("arch", "stem", "message"),
    [
        ("resnet19", "cifar", "'resnet19' is none of resnet18"),
        ("timm:test_vit", "cifar", "needs stem imagenet"),
        ("timm:resnet_18", "imagenet", "no model 'resnet_18'; did you mean 'resnet18'"),
    ],
)
def test_an_unknown_network_is_refused(arch: str, stem: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(arch, stem)


def test_local_crops_are_refused_where_images_have_one_size() -> None:
    config = TrainConfig(
        arch="timm:test_vit", stem="imagenet", method="dino", local_crops=2, crop_min=0.4
    )
    with pytest.raises(ValueError, match="smaller images, and timm:test_vit takes one size"):
        ProjectedEncoder(config, image_size=32)


def test_the_extra_is_named_where_timm_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as Python marks a module that is not there
    with pytest.raises(ValueError, match=r"pip install 'clsp\[timm\]'"):
        build_backbone("timm:test_vit", "imagenet")


def test_a_state_dict_fits_torchvisions_resnet(tmp_path: Path) -> None:
    backbone = build_backbone("resnet18", "imagenet")
    export_encoder(tmp_path, backbone, TrainConfig(stem="imagenet"), image_size=64)
    theirs = torchvision.models.resnet18()
    fit = theirs.load_state_dict(torchvision_state_dict(tmp_path), strict=False)
    assert fit.unexpected_keys == []
    assert set(fit.missing_keys) == {"fc.weight", "fc.bias"}


def test_a_folder_without_an_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder\.json is missing"):
        load_encoder(tmp_path)
    export_encoder(tmp_path, build_backbone("conv-tiny", "cifar"), TrainConfig(), 8)
    with pytest.raises(ValueError, match="is no exported encoder"):
        load_encoder(tmp_path)  # its JSON says resnet18


def test_a_feature_dim_that_is_not_the_networks_is_refused(tmp_path: Path) -> None:
    config = TrainConfig(arch="conv-tiny")
    export_encoder(tmp_path, build_backbone("conv-tiny", "cifar"), config, 8)
    about = json.loads((tmp_path / "encoder.json").read_text())
    (tmp_path / "encoder.json").write_text(json.dumps({**about, "feature_dim": 5}))
    with pytest.raises(ValueError, match=r"encoder\.json says feature_dim 5, conv-tiny has 512"):
        load_encoder(tmp_path)


def test_the_projector_is_the_papers() -> None:
    model = ProjectedEncoder(TrainConfig(arch="conv-tiny", hidden=32, dim=8))
    assert [type(layer) for layer in model.projector] == [nn.Linear, nn.ReLU, nn.Linear]
    z = model([torch.randn(4, 3, 8, 8)] * 2)
    assert [part.shape for part in z] == [(4, 8)] * 2


@pytest.mark.parametrize(
    ("layers", "norm", "expected"),
    [
        (1, "hidden", "L"),
        (2, "hidden", "LBRL"),
        (2, "centred", "LBRLB"),
        (3, "none", "LRLRL"),
        (3, "all", "LBRLBRLB"),
    ],
)
def test_a_projector_has_the_asked_layers(
    layers: int, norm: str, expected: str, tmp_path: Path
) -> None:
    config = TrainConfig(
        arch="conv-tiny", hidden=32, dim=8, layers=layers, projector_bn=norm, mean=(0.5,) * 3
    )
    model = ProjectedEncoder(config)
    assert "".join(type(layer).__name__[0] for layer in model.projector) == expected
    last = model.projector[-1]
    if isinstance(last, nn.BatchNorm1d):
        assert last.affine == (norm == "all")
    export_encoder(tmp_path, model.backbone, config, 8, model.projector)
    x = torch.randn(4, FEATURES["conv-tiny"])
    torch.testing.assert_close(load_projector(tmp_path)(x), model.eval().projector(x))


@pytest.mark.parametrize("mode", ["joint", "split"])
def test_views_of_several_sizes_come_back_in_their_order(mode: str) -> None:
    """Each size is a batch of its own, and nothing else of another one is seen."""
    torch.manual_seed(0)
    model = ProjectedEncoder(TrainConfig(arch="conv-tiny", hidden=32, dim=8, bn_mode=mode))
    large, small = ([torch.randn(4, 3, side, side) for _ in range(2)] for side in (8, 4))
    together = model([large[0], small[0], small[1], large[1]])
    for places, views in (((0, 3), large), ((1, 2), small)):
        for place, alone in zip(places, model(views), strict=True):
            torch.testing.assert_close(together[place], alone)


def test_bn_mode_says_which_views_share_statistics() -> None:
    def embed(mode: str, views: list[torch.Tensor]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        config = TrainConfig(arch="conv-tiny", hidden=32, dim=8, bn_mode=mode)
        return ProjectedEncoder(config)(views)

    first, second = torch.randn(8, 3, 8, 8), 3 * torch.randn(8, 3, 8, 8) + 1
    for mode, independent in (("split", True), ("joint", False), ("sync", False)):
        together, alone = embed(mode, [first, second])[0], embed(mode, [first])[0]
        assert torch.allclose(together, alone, atol=1e-5) == independent
