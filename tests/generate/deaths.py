"""A folder whose writers kill themselves once, in a given phase of their work.

A worker gets it with its job, imports this module for it, and so has the trap set. Run as a script
it kills a launched rank in every phase, in forks of one process that has imported torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

from clsp.generate import job, output, plan, records
from clsp.shards import writer

# Where each phase begins: what is called then, and whether this call is the one.
PHASES: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "planning": (plan, "make_plan", lambda *_: True),
    "loading": (job, "open_model", lambda *_, **__: True),
    "sampling": (records.BatchSampler, "sample", lambda *_: True),
    "writing": (writer, "members", lambda *_: True),
    "renaming": (os, "replace", lambda _, to: str(to).endswith(".tar")),
    "receipt": (output.Folder, "write", lambda _, name, __: name.startswith("receipts/")),
    "finalising": (output.Folder, "publish", lambda *_: True),
    "manifest": (os, "replace", lambda _, to: str(to).endswith("manifest.json")),
}


def trap(phase: str, mark: Path) -> Any:
    """Return a patch by which the first process to come to `phase` dies there, leaving `mark`."""
    place, name, matches = PHASES[phase]
    real = getattr(place, name)

    def trapped(*arguments: Any, **more: Any) -> Any:
        if matches(*arguments, **more):
            try:
                os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **more)

    return patch.object(place, name, trapped)


class Deadly(output.Folder):
    """A folder that sets the trap in every process it is sent to."""

    def __init__(self, root: Path, phase: str, mark: Path) -> None:
        super().__init__(root)
        self.phase, self.mark = phase, mark

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        trap(self.phase, self.mark).start()


def ranks(folder: Path, arguments: list[str], out: str, world: int) -> list[int]:
    """Run so many ranks side by side; return their exit codes, or kill them after a minute."""
    from benchmarks.chaos import fork

    variables = [{"RANK": str(r), "WORLD_SIZE": str(world)} for r in range(world)]
    flags = [*arguments, f"--out={folder / out}"]
    alive = [fork(flags, folder / "log", **each) for each in variables]
    codes, deadline = [], time.monotonic() + 60
    while alive and time.monotonic() < deadline:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            alive.remove(pid)
            codes.append(os.waitstatus_to_exitcode(status))
        else:
            time.sleep(0.01)
    for pid in alive:
        os.kill(pid, signal.SIGKILL)
    return codes


def main(folder: Path, arguments: list[str]) -> None:
    """Print the exit codes of each phase's ranks, and of those that ran afterwards."""
    found = {"calm": [ranks(folder, arguments, "calm", 2), []]}
    for phase in PHASES:
        with trap(phase, folder / f"{phase}.mark"):
            killed = ranks(folder, arguments, phase, 2)
        found[phase] = [killed, ranks(folder, arguments, phase, 3)]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
