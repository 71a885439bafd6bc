"""Tensors of anyone's checkpoint file, read without running anything that the file names."""

from __future__ import annotations

import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

# What a pickle needs to hold tensors. torch itself resolves the names of storages.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class WeightsError(ValueError):
    """A file that holds no readable weights; the message names it."""


class _Inert:
    """Stands for whatever else a checkpoint holds: takes any call or state, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *_: Any, **__: Any) -> _Inert:
        return self

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, _: Any, __: Any) -> None: ...

    def append(self, _: Any) -> None: ...

    def extend(self, _: Any) -> None: ...

    def add(self, _: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    """Trainers store configs, callbacks and schedulers beside the weights; those become inert."""

    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), _Inert)


def _load(file: Any, **settings: Any) -> Any:
    return _Unpickler(file, **settings).load()


_PICKLE = types.SimpleNamespace(
    __name__="clsp_inert_pickle", Unpickler=_Unpickler, load=_load, UnpicklingError=Exception
)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint on the CPU, by the path of its keys joined with dots.

    path: a safetensors file, or what `torch.save` wrote (`.pt`, `.pth`, `.ckpt`, `.bin`), of which
    nested dicts are searched. Only tensors are rebuilt: of no other class in the file is anything
    imported or called. Raises WeightsError for what is neither, and for a TorchScript archive,
    which is a program.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is not a file")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise WeightsError(f"{path} is a TorchScript program, not weights")
        found = torch.load(path, "cpu", _PICKLE, weights_only=False)
    except WeightsError:
        raise
    except Exception as error:  # a broken pickle may raise anything
        raise WeightsError(
            f"{path} is neither safetensors nor a file of torch.save: {error!r}"
        ) from error
    tensors = dict(_walk(found, ""))
    if not tensors:
        raise WeightsError(f"{path} holds no tensor")
    return tensors


def _walk(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _walk(part, f"{name}.{key}" if name else str(key))


def select_weights(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Any:
    """Return the tensors that fill `wanted`, a state dict, under its names; None if there are none.

    They may lie under any prefix ("state_dict.backbone."); shapes must agree. Of several copies,
    the one that gradients reach is taken: not a momentum, key, teacher or averaged one; then the
    one of the shortest prefix.
    """
    # Checkpoints of old releases have no batch counters, and nothing reads them in eval mode.
    needed = [name for name in wanted if not name.endswith("num_batches_tracked")]
    first = needed[0]
    prefixes = [n.removesuffix(first) for n in tensors if n == first or n.endswith(f".{first}")]
    for prefix in sorted(prefixes, key=lambda prefix: (_is_copy(prefix), len(prefix), prefix)):
        if all(
            (tensor := tensors.get(prefix + name)) is not None
            and tensor.shape == wanted[name].shape
            for name in needed
        ):
            zeros = {name: torch.zeros_like(wanted[name], device="cpu") for name in wanted}
            return zeros | {name: tensors[prefix + name] for name in needed}
    return None


def _is_copy(prefix: str) -> bool:
    words = ("momentum", "encoder_k", "key_", "teacher", "target", "ema")
    return any(part.startswith(words) for part in prefix.split("."))
