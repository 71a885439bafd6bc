"""Backbone and projector, and an exported encoder that can be opened anywhere."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torchvision
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ..shards.files import write_atomic
from ..shards.manifest import file_sha256
from .config import Norm, TrainConfig

FEATURES = {"resnet18": 512, "resnet50": 2048, "conv-tiny": 512}  # F of each backbone
_STEMS = ("cifar", "stl", "imagenet")
_TIMM = "timm:"


def build_backbone(arch: str, stem: str, image_size: int | None = None) -> nn.Module:
    """Return a network without its classifier, randomly initialised: (B, 3, H, W) -> (B, F).

    arch: a torchvision ResNet, "conv-tiny", or "timm:NAME"; "conv-tiny" is for 8x8 images and has
    four convolutions of 16, 16, 32 and 32 channels. Its features keep 4x4 places, because where a
    stroke lies tells digits apart.
    stem: "imagenet" is the network's own; of a ResNet, "stl" has a 3x3 convolution of stride 1 and
    keeps the max-pooling; "cifar" has that convolution and no pooling.
    image_size: pixels a side, for the networks of timm that are built for one size.
    """
    if stem not in _STEMS:
        raise ValueError(f"stem {stem!r} is none of {', '.join(_STEMS)}")
    if arch.startswith(_TIMM):
        return _timm(arch.removeprefix(_TIMM), stem, image_size)
    if arch not in FEATURES:
        raise ValueError(f"arch {arch!r} is none of {', '.join(FEATURES)} and {_TIMM}NAME")
    if arch == "conv-tiny":
        return _tiny()
    model: nn.Module = getattr(torchvision.models, arch)(weights=None)
    model.fc = nn.Identity()
    set_stem(model, stem)
    return model


def set_stem(model: nn.Module, stem: str) -> None:
    """Give a torchvision ResNet the first layers that `build_backbone` describes."""
    if stem != "imagenet":
        model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    if stem == "cifar":
        model.maxpool = nn.Identity()


def _timm(name: str, stem: str, image_size: int | None) -> nn.Module:
    if stem != "imagenet":
        raise ValueError(f"stem {stem!r} is for ResNets; {_TIMM}{name} needs stem imagenet")
    try:
        import timm
    except ImportError as error:
        raise ValueError(f"{_TIMM}{name} is timm's: pip install 'clsp[timm]'") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"timm {timm.__version__} has no model {name!r}{hint}")
    more = {"img_size": image_size} if _one_size(name) and image_size else {}
    model: nn.Module = timm.create_model(name, num_classes=0, **more)
    return model


def _one_size(name: str) -> bool:
    import timm

    return bool(timm.get_pretrained_cfg(name, allow_unregistered=True).fixed_input_size)


def feature_dim(arch: str, backbone: nn.Module) -> int:
    """Return F, the width of a backbone's features."""
    return FEATURES.get(arch) or int(backbone.head_hidden_size)  # type: ignore[arg-type]


def _tiny() -> nn.Module:
    parts: list[nn.Module] = []
    for channels, out, stride in ((3, 16, 1), (16, 16, 1), (16, 32, 1), (32, 32, 2)):
        parts.append(nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False))
        parts += [nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(4), nn.Flatten())


def build_projector(
    width: int, hidden: int, dim: int, layers: int = 2, norm: Norm = "none"
) -> nn.Sequential:
    """Return an MLP of so many linear layers: (B, width) -> (B, dim).

    norm: batch norm nowhere, after the "hidden" layers, after "all", or, "centred", after all but
    in the last without a scale and shift of its own.
    """
    parts: list[nn.Module] = []
    for number in range(layers):
        last = number == layers - 1
        out = dim if last else hidden
        parts.append(nn.Linear(width, out))
        if norm != "none" and not (last and norm == "hidden"):
            parts.append(nn.BatchNorm1d(out, affine=not (last and norm == "centred")))
        if not last:
            parts.append(nn.ReLU(inplace=True))
        width = out
    return nn.Sequential(*parts)


class ProjectedEncoder(nn.Module):
    """Backbone and projector: V views, each (B, 3, H, W) -> V projections (B, D), of any length.

    All views go through in one call, because a distributed wrapper wants one forward a step; those
    of one size together, unless batch norm is to see each by itself.
    """

    def __init__(self, config: TrainConfig, image_size: int | None = None) -> None:
        super().__init__()
        self.backbone = build_backbone(config.arch, config.stem, image_size)
        timm_name = config.arch.partition(_TIMM)[2]
        if config.local_crops and timm_name and _one_size(timm_name):
            raise ValueError(f"local crops are smaller images, and {config.arch} takes one size")
        self.split = config.bn_mode == "split"
        width = feature_dim(config.arch, self.backbone)
        self.projector = build_projector(
            width, config.hidden, config.dim, config.layers, config.projector_bn
        )

    def forward(self, views: Sequence[Tensor]) -> list[Tensor]:
        sizes = {view.shape: [v for v in views if v.shape == view.shape] for view in views}
        batches = list(views) if self.split else [torch.cat(same) for same in sizes.values()]
        z = [self.projector(self.backbone(batch)).float() for batch in batches]
        parts = iter(torch.cat(z).split(len(views[0])))
        if self.split:
            return list(parts)
        found = {shape: [next(parts) for _ in same] for shape, same in sizes.items()}
        return [found[view.shape].pop(0) for view in views]


class Encoder(nn.Module):
    """A backbone with what it takes to use it: normalised images (B, 3, H, W) -> features (B, F).

    mean, std: the normalisation it was trained with; image_size: pixels a side; sha256: of its
    weights; config: the TrainConfig it came from, as a dict; name: where it was opened.
    """

    def __init__(self, backbone: nn.Module, about: dict[str, Any], sha256: str, name: str) -> None:
        super().__init__()
        self.backbone, self.config, self.sha256 = backbone, about["config"], sha256
        self.name = name
        self.mean = tuple(self.config["mean"])
        self.std = tuple(self.config["std"])
        self.image_size = int(about["image_size"])
        self.feature_dim = int(about["feature_dim"])

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.backbone(images)
        return features


def export_encoder(
    folder: Path,
    backbone: nn.Module,
    config: TrainConfig,
    image_size: int,
    projector: nn.Module | None = None,
) -> Path:
    """Write `encoder.safetensors`, the backbone's state dict, and `encoder.json`; return `folder`.

    For resnet18 and resnet50 the names are torchvision's own. The projector, which features do not
    need, is written beside them for who wants to look into it, as `projector.safetensors`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "format": "clsp-encoder",
        "arch": config.arch,
        "stem": config.stem,
        "feature_dim": feature_dim(config.arch, backbone),
        "image_size": image_size,
        "config": asdict(config),
    }
    tensors = {name: value.contiguous().cpu() for name, value in backbone.state_dict().items()}
    write_atomic(folder / "encoder.safetensors", save(tensors))
    if projector is not None:
        layers = {name: value.contiguous().cpu() for name, value in projector.state_dict().items()}
        write_atomic(folder / "projector.safetensors", save(layers))
    write_atomic(folder / "encoder.json", (json.dumps(about, indent=2) + "\n").encode())
    return folder


def load_encoder(path: str | Path) -> Encoder:
    """Open an exported encoder, on the CPU and in eval mode.

    Raises ValueError for a folder that holds none, saying what is missing or does not fit.
    """
    folder = Path(path)
    weights = folder / "encoder.safetensors"
    for file in (folder / "encoder.json", weights):
        if not file.is_file():
            raise ValueError(f"{folder} is no exported encoder: {file.name} is missing")
    try:
        about = json.loads((folder / "encoder.json").read_text())
        backbone = build_backbone(about["arch"], about["stem"], about["image_size"])
        width = feature_dim(about["arch"], backbone)
        if about["feature_dim"] != width:
            raise ValueError(
                f"encoder.json says feature_dim {about['feature_dim']!r}, "
                f"{about['arch']} has {width}"
            )
        backbone.load_state_dict(load_file(weights))
        encoder = Encoder(backbone, about, file_sha256(weights), str(folder))
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{folder} is no exported encoder: {error}") from error
    return encoder.eval()


def load_projector(path: str | Path) -> nn.Sequential:
    """Open the projector that was exported beside an encoder, on the CPU and in eval mode.

    Raises ValueError for a folder that holds none.
    """
    folder = Path(path)
    weights = folder / "projector.safetensors"
    if not weights.is_file():
        raise ValueError(f"{folder} has no projector: {weights.name} is missing")
    try:
        about = json.loads((folder / "encoder.json").read_text())
        config = about["config"]
        more = {"layers": config.get("layers", 2), "norm": config.get("projector_bn", "none")}
        projector = build_projector(about["feature_dim"], config["hidden"], config["dim"], **more)
        projector.load_state_dict(load_file(weights))
    except (ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{weights} is no projector of its encoder: {error}") from error
    return projector.eval()


def torchvision_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Return an exported ResNet's weights by torchvision's names, without the classifier."""
    weights: dict[str, Tensor] = load_file(Path(path) / "encoder.safetensors")
    return weights
