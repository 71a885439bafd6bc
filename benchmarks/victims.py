"""Which processes a campaign of kills may choose from, and what it left alive."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """Return the living processes below `pid`."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found, front = [], [pid]
    while front:
        front = [child for child, parent in parents.items() if parent in front]
        found += front
    return found


def title_of(pid: int) -> str:
    """Return a process's command line; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def workers_of(engine: str, driver: int) -> list[int]:
    """Return the processes that make shards for `driver`, or will when they have started."""
    below = descendants(driver)
    if engine == "ray":
        return [pid for pid in below if title_of(pid).startswith(("ray::_Actor", "ray::IDLE"))]
    servers = [pid for pid in below if "forkserver" in title_of(pid)]
    # The fork server's forks keep its title; they are the ones it is the parent of.
    return [pid for server in servers for pid in descendants(server)]


def victims_of(engine: str, alive: list[int], done: int) -> list[int]:
    """Return the processes of which the next is killed, after `done` kills; none for not yet."""
    if engine == "accelerate":
        return alive
    workers = workers_of(engine, alive[0])
    if done % 20 == 10:
        return alive if workers else []
    if engine == "ray" and done % 7 == 0:  # else none would live long enough to make anything
        return [pid for pid in workers if title_of(pid).startswith("ray::_Actor.make")]
    return workers


def kill(pid: int) -> bool:
    """Kill a process; False when it was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def workers_left(below: dict[int, str]) -> int:
    """Return how many workers outlived their killed jobs; end whatever else of them did."""

    def left() -> list[int]:
        return [pid for pid, title in below.items() if title and title_of(pid) == title]

    deadline = time.monotonic() + 10
    while left() and time.monotonic() < deadline:
        time.sleep(0.1)
    ended = left()
    for pid in ended:  # Ray's agents take their time.
        kill(pid)
    return sum(not below[pid].endswith("Agent") for pid in ended)
