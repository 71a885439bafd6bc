"""Anyone's encoder, opened by its address: ours, torchvision's, timm's, or a checkpoint file."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..train.config import TrainConfig
from ..train.encoder import FEATURES, Encoder, build_backbone, load_encoder, set_stem
from .config import ENCODER_KINDS
from .weights import read_tensors, select_weights

_IMAGENET: dict[str, Any] = {
    "image_size": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
_CIFAR: dict[str, Any] = {"image_size": 32, "mean": TrainConfig.mean, "std": TrainConfig.std}
_RESNETS = ("resnet152", "resnet101", "resnet50", "resnet34", "resnet18")  # deepest first
_FILES = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
# The children of a torchvision ResNet in order, as nn.Sequential(*model.children()) numbers them.
_CHILDREN = {"conv1": 0, "bn1": 1, "layer1": 4, "layer2": 5, "layer3": 6, "layer4": 7}


@dataclass(frozen=True)
class _Opened:
    """A backbone before its settings: image_size, mean and std are what its maker used."""

    backbone: nn.Module
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_encoder(address: str | Path) -> Encoder:
    """Open an encoder, on the CPU and in eval mode.

    address: one of ENCODER_KINDS. Features are what enters the last linear layer of a classifier.
    Raises ValueError for an unknown kind, and for weights that do not fit, saying what was tried.
    """
    place, *rest = str(address).split(",")
    settings = _read_settings(rest)
    kind, _, name = place.partition(":")
    if Path(place).is_dir():
        encoder = load_encoder(place)
        for key, value in settings.items():
            setattr(encoder, key, value)
        return encoder
    if kind == "torchvision":
        opened = _open_torchvision(*_name_and_weights(name))
    elif kind == "timm":
        opened = _open_timm(*_name_and_weights(name))
    elif Path(place).suffix in _FILES:
        opened = _open_file(Path(place), settings.get("stem"))
    else:
        raise ValueError(
            f"encoder {place!r} is no folder and of no known kind, which are\n{ENCODER_KINDS}"
        )
    config = {
        "method": kind if kind in ("torchvision", "timm") else "checkpoint",
        "mean": settings.get("mean", opened.mean),
        "std": settings.get("std", opened.std),
    }
    about = {"config": config, "image_size": settings.get("image_size", opened.image_size)}
    return _finish(opened.backbone.eval(), about, place)


def _finish(backbone: nn.Module, about: dict[str, Any], name: str) -> Encoder:
    size = about["image_size"]
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, size, size))
    if features.ndim != 2:
        raise ValueError(f"{name} gives {tuple(features.shape)} for an image, expected (1, F)")
    digest = hashlib.sha256(str(backbone).encode())  # the weights alone do not show max-pooling
    for key, value in sorted(backbone.state_dict().items()):
        digest.update(key.encode() + value.contiguous().numpy().tobytes())
    about["feature_dim"] = features.shape[1]
    return Encoder(backbone, about, digest.hexdigest(), name).eval()


def _read_settings(parts: list[str]) -> dict[str, Any]:
    readers: dict[str, Any] = {
        "image_size": int,
        "stem": str,
        "mean": lambda text: tuple(float(number) for number in text.split(":")),
        "std": lambda text: tuple(float(number) for number in text.split(":")),
    }
    settings = {}
    for part in parts:
        key, _, value = part.partition("=")
        if key not in readers:
            raise ValueError(f"an encoder has no setting {key!r}, only {', '.join(readers)}")
        try:
            settings[key] = readers[key](value)
        except ValueError as error:
            raise ValueError(f"an encoder's {key} cannot be {value!r}") from error
        if key in ("mean", "std") and len(settings[key]) != 3:
            raise ValueError(f"an encoder's {key} is three numbers, 0.5:0.5:0.5, not {value!r}")
    return settings


def _name_and_weights(text: str) -> tuple[str, str]:
    name, _, weights = text.partition(":")
    return name, weights or "DEFAULT"


def _fill(model: nn.Module, path: Path) -> None:
    """Put a file's weights into a model that has no classifier any more."""
    tensors, wanted = read_tensors(path), model.state_dict()
    found = select_weights(tensors, wanted)
    if found is None:
        raise ValueError(
            f"{path} does not fit: the model wants {_examples(wanted)}, under any prefix; the file "
            f"has {_examples(tensors)}"
        )
    model.load_state_dict(found)


def _examples(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    shown = ", ".join(f"{name} {tuple(tensors[name].shape)}" for name in names[:3])
    return f"{len(names)} tensors, such as {shown}"


def _open_torchvision(name: str, weights: str) -> _Opened:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known[:3]
        raise ValueError(f"torchvision has no model {name!r}; near it: {', '.join(near)}")
    model, settings = models.get_model(name, weights=None), dict(_IMAGENET)
    choices = models.get_model_weights(name)
    path = Path(weights)
    if weights not in ("none", "DEFAULT", *choices.__members__) and not path.is_file():
        raise ValueError(
            f"{weights!r} is no file, and torchvision has no such weights of {name}; it has "
            f"{', '.join(choices.__members__)}"
        )
    if weights == "DEFAULT" or weights in choices.__members__:
        chosen = choices[weights]
        preset = chosen.transforms()
        settings = {"image_size": preset.crop_size[0], "mean": preset.mean, "std": preset.std}
        model.load_state_dict(chosen.get_state_dict(check_hash=True, weights_only=True))
    _remove_classifier(model)
    if weights != "none" and hasattr(model, "transform_input"):
        # Inception and GoogLeNet were trained on another scale, and turn ImageNet's into it.
        model.transform_input = True
    if path.is_file():
        _fill(model, path)
    return _Opened(model, **settings)


def _remove_classifier(model: nn.Module) -> None:
    *_, last = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    parent, _, child = last.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Identity())


def _open_timm(name: str, weights: str) -> _Opened:
    try:
        import timm
    except ImportError as error:
        raise ValueError("encoder timm:... needs the extra: pip install 'clsp[timm]'") from error
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3) or ["resnet50"]
        raise ValueError(f"timm has no model {name!r}; near it: {', '.join(near)}")
    path = Path(weights)
    if weights not in ("none", "DEFAULT") and not path.is_file():
        raise ValueError(f"{weights!r} is neither DEFAULT, none, nor a file of weights for {name}")
    model = timm.create_model(name, pretrained=weights == "DEFAULT", num_classes=0)
    if path.is_file():
        _fill(model, path)
    data = timm.data.resolve_data_config(model=model)
    return _Opened(model, data["input_size"][1], tuple(data["mean"]), tuple(data["std"]))


def _open_file(path: Path, stem: str | None) -> _Opened:
    """Open a checkpoint that says nothing of its model: try the ResNets that fit its shapes.

    stem: which one a 3x3 first convolution stands for, "cifar" (the default) or "stl": whether
    max-pooling follows it cannot be seen in weights.
    """
    tensors = read_tensors(path)
    for arch in (*_RESNETS, "conv-tiny"):
        for small in (False, True):
            with torch.device("meta"):
                model = _build(arch, "cifar" if small else "imagenet")
                wanted = model.state_dict()
            found = select_weights(tensors, wanted)
            if found is None and arch in _RESNETS:
                numbered = {_number(name): value for name, value in wanted.items()}
                found = select_weights(tensors, numbered)
                found = found and {n: found[_number(n)] for n in wanted}
            if found is not None:
                model = _build(arch, stem or "cifar" if small else "imagenet")
                model.load_state_dict(found)
                return _Opened(model, **(_CIFAR if small else _IMAGENET))
    tried = ", ".join(_RESNETS)
    raise ValueError(
        f"{path} holds the weights of no model known here. Found: {_examples(tensors)}. Tried: "
        f"{tried}, with a 7x7 or a 3x3 first convolution, under any prefix, with torchvision's "
        "names or numbered as children of nn.Sequential. For another architecture say which: "
        f"timm:NAME:{path} or torchvision:NAME:{path}"
    )


def _build(arch: str, stem: str) -> nn.Module:
    if arch in FEATURES:
        return build_backbone(arch, stem)
    from torchvision import models

    model: nn.Module = models.get_model(arch, weights=None)
    model.fc = nn.Identity()
    set_stem(model, stem)
    return model


def _number(name: str) -> str:
    return re.sub(r"^\w+", lambda match: str(_CHILDREN[match[0]]), name)
