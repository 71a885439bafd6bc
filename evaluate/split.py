"""Which training images are held out to choose a setting on; what is wrong with labels."""

from __future__ import annotations

import torch

from .features import Features

_VALIDATION = 0.1  # of the training images of each class


def check_labels(features: Features, purpose: str) -> None:
    """Raise ValueError unless there are at least two classes and each has an image.

    purpose: what the features are for, said in the message.
    """
    if len(features.classes) < 2:
        raise ValueError(f"{purpose} needs at least 2 classes, found {list(features.classes)}")
    labels = features.labels
    counts = (labels == 1).sum(dim=0) if labels.ndim == 2 else labels.bincount()
    if len(counts) > len(features.classes):
        raise ValueError(f"{purpose}: label {len(counts) - 1} of {len(features.classes)} classes")
    counts = torch.nn.functional.pad(counts, (0, len(features.classes) - len(counts)))
    missing = [features.classes[n] for n in (counts == 0).nonzero()[:, 0].tolist()]
    if missing:
        raise ValueError(
            f"{purpose}: labels are not contiguous, {len(missing)} of {len(features.classes)} "
            f"classes have no image: {', '.join(missing[:5])}"
        )


def split_validation(train: Features, seed: int = 0) -> tuple[Features, Features]:
    """Split features into a larger part and a validation part of a tenth of each class.

    Of images with several labels, a tenth of all. Raises ValueError for a class that has a single
    image, which one of the parts would miss.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = train.labels.cpu()
    groups = labels if labels.ndim == 1 else torch.zeros(len(labels), dtype=torch.int64)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in groups.unique():
        rows = (groups == label).nonzero()[:, 0]
        if len(rows) < 2:
            raise ValueError(
                f"class {train.classes[label]} has 1 training image, and a setting can only be "
                "chosen when each class has at least 2: one to fit, one to validate"
            )
        chosen = torch.randperm(len(rows), generator=generator)
        held_out[rows[chosen[: max(1, round(_VALIDATION * len(rows)))]]] = True
    return train.select(~held_out), train.select(held_out)
