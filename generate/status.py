"""How far a set is, read off its output alone: at any time, from any machine that sees it."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from .marks import Failure, busy, failures, shard_number
from .output import Output

_WINDOW = 3600.0  # seconds of work the rate is taken from


@dataclass(frozen=True)
class Status:
    """How far a set is. Shard numbers, but for counts of anchors.

    rate: anchors a second over the last hour of work, or None before two shards are done;
    eta: seconds to the end at that rate, or None while nobody works.
    """

    plan_id: str
    shards: int
    anchors: int
    anchors_done: int
    done: tuple[int, ...]
    running: tuple[int, ...]
    failed: tuple[Failure, ...]
    missing: tuple[int, ...]
    finished: bool
    rate: float | None
    eta: float | None


def read_status(output: Output, now: float | None = None) -> Status:
    """Return how far the set at `output` is. Raises ValueError when no set was begun there.

    now: seconds since 1970; the machine's clock by default. The workers' signs of life are
    compared with it, so the clocks should agree to a minute.
    """
    data = output.read("plan.json")
    if data is None:
        raise ValueError(f"{output} has no plan.json: no set was begun there")
    plan = json.loads(data)
    shards, samples = len(plan["key_hashes"]), plan["source"]["samples"]
    size = plan["config"]["shard_size"]

    def anchors(shard: int) -> int:
        return int(min(size, samples - shard * size))

    receipts = {
        shard_number(name): entry.modified for name, entry in output.entries("receipts").items()
    }
    working = busy(output, now)
    failed = [f for s, f in failures(output).items() if s not in receipts and s not in working]
    rest = set(range(shards)) - receipts.keys()
    done = sum(anchors(shard) for shard in receipts)
    rate = _rate([(modified, anchors(shard)) for shard, modified in receipts.items()])
    return Status(
        plan_id=hashlib.sha256(data).hexdigest(),
        shards=shards,
        anchors=samples,
        anchors_done=done,
        done=tuple(sorted(receipts)),
        running=tuple(sorted(working & rest)),
        failed=tuple(failed),
        missing=tuple(sorted(rest - working - {f.shard for f in failed})),
        finished=output.read("manifest.json") is not None,
        rate=rate,
        eta=(samples - done) / rate if rate and working & rest else None,
    )


def _rate(done: Sequence[tuple[float, int]]) -> float | None:
    """Anchors a second from (time, anchors) of each shard; the first one only starts the clock."""
    recent = sorted(item for item in done if item[0] > max(done)[0] - _WINDOW)
    if len(recent) < 2 or recent[-1][0] == recent[0][0]:
        return None
    return sum(anchors for _, anchors in recent[1:]) / (recent[-1][0] - recent[0][0])


def describe(output: Output, status: Status) -> str:
    """Return the lines that `clsp generate --status` prints."""
    lines = [
        f"{output}: plan {status.plan_id[:12]}, {status.anchors} anchors, {status.shards} shards"
        + (", finished" if status.finished else ""),
        f"  done     {len(status.done)} ({status.anchors_done} anchors)",
        f"  running  {len(status.running)}{_numbers(status.running)}",
        f"  failed   {len(status.failed)}",
        *(f"    shard {failure.shard}: {failure.error}" for failure in status.failed),
        f"  missing  {len(status.missing)}{_numbers(status.missing)}",
    ]
    if status.rate:
        lines.append(f"  rate     {status.rate:.3g} anchors/s in the last hour of work")
    if status.eta is not None:
        lines.append(f"  ETA      {datetime.timedelta(seconds=round(status.eta))}")
    return "\n".join(lines)


def _numbers(shards: Sequence[int], most: int = 8) -> str:
    if not shards:
        return ""
    return f": {', '.join(map(str, shards[:most]))}{', ...' if len(shards) > most else ''}"
