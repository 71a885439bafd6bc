"""A set that is still being written, epoch by epoch."""

from __future__ import annotations

import hashlib
import json
import os
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import click
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ..shards.check import ShardError
from ..shards.files import write_atomic
from ..shards.manifest import Manifest, ShardFile, parse_receipt
from ..shards.reader import ShardSet

_WAIT = 2.0  # seconds between looks at a set that is still too small


class FollowedSet:
    """A folder that `clsp generate` is filling: an epoch sees the shards done as it began.

    Which shards those were is written to `record` before the epoch's first step, a line an epoch
    with the shards that joined, so that a resumed run sees the same.
    """

    def __init__(self, folder: Path, record: Path, accelerator: Accelerator) -> None:
        """Raises ShardError when nothing is being generated into `folder`."""
        path = folder / "plan.json"
        if not path.is_file():
            raise ShardError(f"{folder} has no plan.json: `clsp generate` makes it as it begins")
        text = path.read_bytes()
        self.folder, self.record, self.accelerator = folder, record, accelerator
        self.id, self.plan = hashlib.sha256(text).hexdigest(), json.loads(text)
        self.samples: int = self.plan["source"]["samples"]
        self._joined: dict[int, list[str]] = {}  # epoch -> shards
        if accelerator.is_main_process and record.exists():
            lines = record.read_text().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith("\n")]  # else its epoch never began
            write_atomic(record, "".join(whole).encode())
            entries = map(json.loads, whole)
            self._joined = {entry["epoch"]: entry["shards"] for entry in entries}

    @cached_property
    def image_size(self) -> int:
        """Pixels a side of the set's images."""
        return int(self.plan["model"]["image_size"])

    def at(self, epoch: int, least: int) -> ShardSet:
        """Return the set as epoch number `epoch` sees it, on all ranks alike.

        Waits until there are `least` records. Epochs must be asked for in order.
        """
        waited = False
        while True:
            agreed = [self._decide(epoch, least) if self.accelerator.is_main_process else None]
            broadcast_object_list(agreed)
            if agreed[0] is not None:
                return ShardSet(self.folder, self._manifest(agreed[0]))
            if not waited and self.accelerator.is_main_process:
                click.echo(f"waiting for {least} records in {self.folder}", err=True)
            waited = True
            time.sleep(_WAIT)

    def _decide(self, epoch: int, least: int) -> list[str] | None:
        """The names of the epoch's shards, or None while there are too few records."""
        before = [name for e, names in self._joined.items() if e < epoch for name in names]
        if epoch not in self._joined:
            done = self._done()
            if sum(shard.samples for shard in done.values()) < least:
                return None
            self._joined[epoch] = sorted(done.keys() - set(before))
            self.record.parent.mkdir(parents=True, exist_ok=True)
            with open(self.record, "a") as file:
                file.write(json.dumps({"epoch": epoch, "shards": self._joined[epoch]}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        return sorted(before + self._joined[epoch])

    def _done(self) -> dict[str, ShardFile]:
        """The shards that have a receipt of this plan."""
        found = {}
        for path in (self.folder / "receipts").glob("*.json"):
            receipt = parse_receipt(path.read_bytes(), str(path))
            if receipt.plan_id == self.id:
                found[receipt.shard.name] = receipt.shard
        return found

    def _manifest(self, names: list[str]) -> Manifest:
        config: dict[str, Any] = self.plan["config"]
        done = self._done()
        missing = [name for name in names if name not in done]
        if missing:
            raise ShardError(f"{self.folder}: {missing[0]} was trained on, its receipt is gone")
        shards = tuple(done[name] for name in names)
        return Manifest(
            positives=config["positives"],
            image_format=config["image_format"],
            image_size=self.image_size,
            samples=sum(shard.samples for shard in shards),
            shards=shards,
            plan_id=self.id,
        )
