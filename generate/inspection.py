"""How much of the anchor survives, before a long run: at w = 0, the chosen w and w = 1, per site.

In a deep U-Net the skips can pass the bottleneck by, and then positives are no nearer to their
anchor than samples without one. What is near is judged in a feature space at hand: the diffusion
model's own bottleneck, at a low noise level.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..shards.images import ImageSource, load_pixels
from ..shards.preview import contact_sheet
from .bottleneck import encode_to_site, find_site
from .config import GenerateConfig
from .denoiser import DiffusionModel
from .records import BatchSampler

_LOW_NOISE = 0.05  # the share of the noising chain at which features are taken
_SITES = 4  # that are looked at, beside each other
_REFERENCES = 1000  # labelled images that a positive's class is read from


@dataclass(frozen=True)
class Survival:
    """What is left of the anchors in the positives of one site and w.

    own: how often a positive's nearest anchor is its own, in [0, 1].
    gain: how much nearer it is to its own anchor than the same noise's sample without one: mean of
    the cosines' difference, and `error`, its standard error.
    label: how often its nearest image has the anchor's label; None without labels.
    """

    site: str
    w: float
    own: float
    gain: float
    error: float
    label: float | None

    @property
    def differs(self) -> bool:
        """True when positives are surely nearer to their anchors than samples without one."""
        return self.gain > 2 * self.error


def inspect(
    config: GenerateConfig, model: DiffusionModel, source: ImageSource, *, anchors: int, device: str
) -> tuple[list[Survival], bytes]:
    """Return what survives at each site and w, and a sheet of positives as a PNG.

    anchors: how many, spread evenly over the source. config.site comes first, then others of the
    model's blocks; the sheet shows config.site: each anchor with one positive for each w, rising.
    """
    chosen = np.linspace(0, len(source) - 1, min(anchors, len(source)), dtype=int)
    pixels = load_pixels(source, chosen.tolist(), size=model.image_size)
    keys = [source.key(int(index)) for index in chosen]
    labels = None if source.labels is None else source.labels[chosen]
    feature = _Features(model, config, device)
    of_anchors = feature(pixels, labels)
    references = _references(source, chosen, model.image_size)
    of_references = None if references is None else feature(*references)
    shares = sorted({0.0, *config.w_range, 1.0})
    results, columns = [], {}
    given = labels.tolist() if model.label_rows and labels is not None else None
    free = None
    for site in _sites(config.site, model):
        # w = 1 is the same at every site; it comes first, to be compared with.
        for w in reversed(shares):
            if w == 1 and free is not None:
                continue
            setting = replace(config, site=site, w=w, positives=1)
            sampler = BatchSampler(setting, model, torch.device(device), "the model")
            images, _ = sampler.sample(pixels, keys, given)
            found = feature(images[:, 0], labels)
            free = found if free is None else free
            if site == config.site:
                columns[w] = images[:, 0]
            gain = (found * of_anchors).sum(1) - (free * of_anchors).sum(1)
            agree = None
            if references is not None and of_references is not None and labels is not None:
                nearest = (found @ of_references.T).argmax(1).numpy()
                agree = float((references[1][nearest] == labels).mean())
            own = (found @ of_anchors.T).argmax(1) == torch.arange(len(found))
            error = float(gain.std()) / len(gain) ** 0.5 if len(gain) > 1 else float("inf")
            results.append(
                Survival(site, w, float(own.float().mean()), float(gain.mean()), error, agree)
            )
    sheet = np.stack([columns[w] for w in shares], axis=1)
    return results, contact_sheet(pixels, sheet)


def describe(results: list[Survival], config: GenerateConfig) -> str:
    """Return the results as a table, and a warning when the plan's positives forget the anchors."""
    lines = [f"{'site':32} {'w':>6} {'own':>6} {'label':>6} {'gain':>16}"]
    for row in results:
        label = "-" if row.label is None else f"{row.label:.0%}"
        gain = f"{row.gain:.4f} ± {row.error:.4f}"
        lines.append(f"{row.site:32} {row.w:6.3g} {row.own:6.0%} {label:>6} {gain:>16}")
    low, high = config.w_range
    planned = [r for r in results if r.site == config.site and r.w in (low, high) and r.w < 1]
    if not any(row.differs for row in planned):
        lines.append(
            f"warning: positives at site {config.site} and w {config.w} are no nearer to their "
            "anchors than samples without one (w = 1); try another site or a smaller w"
        )
    return "\n".join(lines)


def as_json(results: list[Survival]) -> list[dict[str, Any]]:
    """Return the results as plain values."""
    return [asdict(row) | {"differs": row.differs} for row in results]


def _sites(first: str, model: DiffusionModel) -> list[str]:
    """The chosen site, and up to three other whole blocks, spread evenly."""
    blocks = [path for path in model.sites() if path.count(".") <= 1 and path != first]
    blocks = [path for path in blocks if path.startswith(("mid", "up", "down", "transformer"))]
    picked = np.linspace(0, len(blocks) - 1, min(_SITES - 1, len(blocks)), dtype=int)
    return [first, *(blocks[n] for n in picked)]


def _references(
    source: ImageSource, anchors: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Labelled images that are not among the anchors, with their labels."""
    if source.labels is None:
        return None
    rest = np.setdiff1d(np.arange(len(source)), anchors)
    if not len(rest):
        return None
    rest = rest[np.linspace(0, len(rest) - 1, min(_REFERENCES, len(rest)), dtype=int)]
    return load_pixels(source, rest.tolist(), size=size), source.labels[rest]


class _Features:
    """Images -> the middle block's output at a low noise level, of unit length, (N, F) on the CPU.

    Centred, because what all samples of a model share, and images do not, would outweigh what tells
    them apart. The noise itself is left out: its mean is zero.
    """

    def __init__(self, model: DiffusionModel, config: GenerateConfig, device: str) -> None:
        self.model, self.batch, self.device = model, config.batch, device
        self.site = find_site(model.network, model.site)
        last = model.scheduler_config.get("num_train_timesteps", 1000) - 1
        self.t = torch.tensor(round(_LOW_NOISE * last), device=device)

    @torch.no_grad()
    def __call__(self, pixels: np.ndarray, labels: np.ndarray | None) -> Tensor:
        parts = []
        for start in range(0, len(pixels), self.batch):
            rows = torch.from_numpy(pixels[start : start + self.batch]).to(self.device)
            images = rows.permute(0, 3, 1, 2).float() / 127.5 - 1
            given = None
            if self.model.label_rows and labels is not None:
                # One label for all, so that it tells nothing.
                given = torch.full((len(rows),), self.model.label_rows - 1, device=self.device)
            denoise = self.model.denoiser(given)
            found = encode_to_site(denoise, self.site, self.model.encode(images), self.t)
            parts.append(found.flatten(1).float().cpu())
        features = torch.cat(parts)
        return torch.nn.functional.normalize(features - features.mean(0), dim=1)
