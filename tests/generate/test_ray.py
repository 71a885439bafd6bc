"""The driver of Ray's actors: what it does when they die, are lost, or never come up."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clsp.generate.config import GenerateConfig
from clsp.generate.engines import ray as engine
from clsp.generate.job import Job
from clsp.generate.marks import JobError, failures
from clsp.generate.output import Folder
from clsp.generate.plan import ModelInfo, Plan


class ActorDied(Exception):
    actor_init_failed = False


class FakeRay:
    """A Ray of no processes. `act(actor, shard)` is what becomes of a task: done by default.

    It returns "lost" for a task that never ends, or an exception for one that Ray gives up. A task
    takes `pace` seconds.
    """

    exceptions = SimpleNamespace(ActorDiedError=ActorDied)

    def __init__(self, act: Callable[[int, int], object], pace: float) -> None:
        self.pace = pace
        self.act, self.hired, self.killed = act, 0, list[int]()
        self.results: dict[int, object] = {}
        self.clock = 0.0

    def hire(self) -> Any:
        number, self.hired = self.hired, self.hired + 1
        return SimpleNamespace(
            number=number, make=SimpleNamespace(remote=lambda shard: self._start(number, shard))
        )

    def _start(self, actor: int, shard: int) -> int:
        self.results[len(self.results)] = self.act(actor, shard)
        return len(self.results) - 1

    def wait(self, results: Sequence[int], timeout: float) -> tuple[list[int], list[int]]:
        ready = [result for result in results if self.results[result] != "lost"][:1]
        assert results, "it waits for nothing"
        self.clock += self.pace if ready else timeout
        return ready, []

    def get(self, result: int) -> None:
        if isinstance(self.results[result], Exception):
            raise self.results[result]

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.number)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    source = {"kind": "folder", "samples": 100, "classes": None}
    plan = Plan(GenerateConfig(shard_size=1), ModelInfo("0" * 64, 8), source, ("",) * 100)
    return Job(plan, "", "", Folder(tmp_path))


def spread(
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    act: Callable[[int, int], object],
    shards: int = 6,
    pace: float = 0.0,
) -> tuple[FakeRay, list[int]]:
    """Make shards with two actors; return the fake, and the anchors that were counted."""
    fake, counted = FakeRay(act, pace), list[int]()
    monkeypatch.setattr(engine.time, "monotonic", lambda: fake.clock)
    engine._spread(fake, job, fake.hire, 2, list(range(shards)), counted.append)
    return fake, counted


def test_what_a_lost_actor_had_is_made_by_another(job: Job, monkeypatch: Any) -> None:
    """Its node is gone, and no other has room for it: its shard shows no sign of life."""
    fake, counted = spread(job, monkeypatch, lambda actor, shard: "lost" if actor == 0 else None)
    assert counted == [1] * 6
    assert engine.ALIVE < fake.clock < engine.ALIVE + 2 * engine._POLL


def test_an_actor_that_died_for_good_is_replaced(job: Job, monkeypatch: Any) -> None:
    died = iter([ActorDied("killed"), ActorDied("killed")])
    fake, counted = spread(job, monkeypatch, lambda actor, shard: next(died, None))
    assert (fake.hired, counted) == (4, [1] * 6)


def test_an_actor_that_cannot_start_ends_the_run(job: Job, monkeypatch: Any) -> None:
    error = ActorDied("no such model")
    error.actor_init_failed = True
    with pytest.raises(ActorDied, match="no such model"):
        spread(job, monkeypatch, lambda actor, shard: error)


def test_a_shard_that_kills_its_processes_is_left_out(job: Job, monkeypatch: Any) -> None:
    """Ray tries for ever; the marks of the processes that come and go tell it."""
    pids = itertools.count()
    monkeypatch.setattr(engine, "at_work", lambda output: {3: b"process %d" % next(pids)})
    fake, counted = spread(job, monkeypatch, lambda actor, shard: "lost" if shard == 3 else None)
    assert counted == [1] * 5
    assert "its process died 20 times" in failures(job.output)[3].error
    assert (fake.hired, len(fake.killed)) == (3, 1)


def test_it_is_left_out_while_others_are_made(job: Job, monkeypatch: Any) -> None:
    """Results that never cease do not keep the driver from the marks."""
    pids = itertools.count()
    monkeypatch.setattr(engine, "at_work", lambda output: {3: b"process %d" % next(pids)})
    act = lambda actor, shard: "lost" if shard == 3 else None  # noqa: E731
    fake, counted = spread(job, monkeypatch, act, shards=100, pace=2.0)
    assert counted == [1] * 99
    assert failures(job.output).keys() == {3}
    assert fake.clock == 99 * 2.0, "it waited for nobody"


def test_a_cluster_without_room_ends_the_run(job: Job, monkeypatch: Any) -> None:
    with pytest.raises(JobError, match=r"no Ray actor has shown a sign of life for 30 minutes"):
        spread(job, monkeypatch, lambda actor, shard: "lost")
    assert failures(job.output) == {}


def test_without_ray_the_extra_is_named(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs the extra ray: pip install 'clsp\[ray\]'"):
        engine.run_ray(job, [0], "cpu", 1, None)
