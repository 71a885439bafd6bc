"""What distances are measured with: any encoder, or the network of published FIDs."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .encoders import open_encoder
from .positives import embed
from .weights import read_tensors

FID = "fid-inception"
Extractor: TypeAlias = Callable[[Tensor], Tensor]


def open_extractor(address: str, *, device: str = "cpu") -> Extractor:
    """Return a function from images (B, 3, S, S) uint8 on `device` to features (B, F) on the CPU.

    address: an encoder as `open_encoder` takes it, or "fid-inception[:FILE]": Inception as
    Heusel et al. (2017, arXiv:1706.08500) used it, 2,048 features after the last pooling, which
    enlarges the images itself; FILE: its weights as torch-fidelity names them, else they are
    downloaded once. Raises ValueError for what cannot be opened, and OSError for no network.
    """
    kind, _, file = address.partition(":")
    if kind != FID:
        encoder = open_encoder(address).to(device)
        return lambda images: embed(encoder, images)
    model = _open_inception(Path(file) if file else None).to(device)

    def see(images: Tensor) -> Tensor:
        features: Tensor = model(images)[0]
        return features.cpu()

    return see


def _open_inception(file: Path | None) -> nn.Module:
    try:
        from torch_fidelity import feature_extractor_inceptionv3 as inception
    except ImportError as error:
        raise ValueError(f"{FID} needs the extra: pip install 'clsp[fid]'") from error
    if file is None:
        source = inception.URL_INCEPTION_V3
        state = torch.hub.load_state_dict_from_url(
            source, map_location="cpu", check_hash=True, weights_only=True
        )
    else:
        source, state = str(file), read_tensors(file)
    # The class unpickles whatever file it is given: let it be one of tensors, written here.
    tensors = io.BytesIO()
    torch.save(dict(state), tensors)
    tensors.seek(0)
    try:
        model: nn.Module = inception.FeatureExtractorInceptionV3(FID, ["2048"], tensors)
    except RuntimeError as error:
        first = "\n".join(str(error).splitlines()[:3])
        raise ValueError(f"{source} has not the weights of {FID}: {first}") from error
    return model.eval()
