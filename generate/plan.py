"""Images -> shard jobs: integers and hashes only, no pixel and no model.

A plan holds everything that decides the bytes of a set. Its id is the sha256 of its canonical
JSON: two machines that agree on the id make the same set, and an output folder accepts one id.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from ..shards.images import ImageSource
from .config import GenerateConfig
from .output import Output


class PlanError(ValueError):
    """The output folder belongs to another plan."""


@dataclass(frozen=True)
class ModelInfo:
    """The diffusion model as far as it decides pixels."""

    sha256: str
    image_size: int


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a set.

    source: kind of image source, number of anchors, class names. No path: the same images mounted
    elsewhere give the same plan.
    key_hashes: one sha256 a shard, over its ordered keys.
    """

    config: GenerateConfig
    model: ModelInfo
    source: dict[str, Any]
    key_hashes: tuple[str, ...]

    def to_json(self) -> bytes:
        """Return the canonical form: sorted keys, no spaces, UTF-8."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def id(self) -> str:
        """The plan's sha256, in hex."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @property
    def shards(self) -> int:
        """How many shards the set has."""
        return len(self.key_hashes)

    def shard_name(self, shard: int) -> str:
        """Return the shard's path inside the set."""
        return f"data/train-{shard:05d}.tar"

    def receipt_name(self, shard: int) -> str:
        """Return where in the set the proof lies that the shard is done."""
        return f"receipts/train-{shard:05d}.json"

    def anchors(self, shard: int) -> range:
        """Return the shard's anchors as indices into the image source."""
        start = shard * self.config.shard_size
        return range(start, min(start + self.config.shard_size, self.source["samples"]))


def hash_keys(source: ImageSource, anchors: range) -> str:
    """Return the sha256 over the anchors' ordered keys, each ended by a line feed."""
    digest = hashlib.sha256()
    for index in anchors:
        digest.update(f"{source.key(index)}\n".encode())
    return digest.hexdigest()


def make_plan(config: GenerateConfig, model: ModelInfo, source: ImageSource) -> Plan:
    """Split an image source into shards of `config.shard_size` anchors, in the source's order."""
    size, samples = config.shard_size, len(source)
    return Plan(
        config,
        model,
        {
            "kind": source.spec.partition(":")[0],
            "samples": samples,
            "classes": list(source.classes) if source.classes else None,
        },
        tuple(
            hash_keys(source, range(start, min(start + size, samples)))
            for start in range(0, samples, size)
        ),
    )


def claim(plan: Plan, output: Output) -> None:
    """Make `output` this plan's. Raises PlanError when it already is another plan's."""
    there = output.read("plan.json")
    if there is None:
        if output.read("manifest.json") is not None:
            raise PlanError(f"{output} holds a set with no plan.json, so it cannot be extended")
        output.write("plan.json", plan.to_json())
        return
    found = json.loads(there)
    wanted = json.loads(plan.to_json())
    if found != wanted:
        raise PlanError(f"{output} was made with another plan: {_difference(found, wanted)}")


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    for part in ("config", "model", "source"):
        for name in wanted[part]:
            before, now = found.get(part, {}).get(name), wanted[part][name]
            if before != now:
                return f"{part}.{name} is {before!r} there and {now!r} here"
    return "the anchors' keys differ"
