"""Read sets in a process that may use 1 GiB, and say what happened: one JSON line a set.

Each set is read in a fork of its own, so that one set's crash is not another's. What Python does
meanwhile is watched: code run from a set, a process started, a socket opened, or a file written
or read outside the set is reported as "ran".
"""

from __future__ import annotations

import codecs
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

import numpy as np

from clsp.shards.check import ShardError
from clsp.shards.images import decode_image, encode_image
from clsp.shards.store import index_folder, open_set

FORBIDDEN = ("subprocess", "os.system", "os.exec", "os.posix_spawn", "os.fork", "pickle.find_class")
SECONDS = 30  # of wall clock, on a machine that may be busy; the test looks at the CPU's


def read_all(folder: Path) -> None:
    shards = open_set(folder)
    shards.verify(deep=True)
    for number in range(len(shards)):
        shards.record(number)


def index_again(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    index_folder(folder)


def outcome(action, folder: Path) -> dict[str, str]:
    try:
        action(folder)
    except ShardError as error:
        return {"kind": "ShardError", "message": str(error)}
    except BaseException as error:
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": "nothing", "message": ""}


def probe(folder: Path) -> dict[str, object]:
    ran: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if event.startswith((*FORBIDDEN, "socket.connect")):
            ran.append(event)
        if event == "open" and isinstance(arguments[0], (str, os.PathLike)):
            path = os.path.abspath(os.fspath(arguments[0]))
            if not path.startswith(str(folder)):
                ran.append(f"open {path}")

    sys.addaudithook(watch)
    began = time.process_time()
    found: dict[str, object] = outcome(read_all, folder)
    found["seconds"] = time.process_time() - began
    if (folder / "manifest.json").is_file():
        found["index"] = outcome(index_again, folder)
    found["ran"] = ran
    return found


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    # What imports a part of itself when first asked for it.
    np.unique(np.zeros(2))
    codecs.lookup("ascii")
    for image_format in ("png", "webp", "jpeg"):
        decode_image(encode_image(np.zeros((8, 8, 3), np.uint8), image_format))
    for folder in map(Path, sys.stdin.read().splitlines()):
        readable, writable = os.pipe()
        if (child := os.fork()) == 0:
            signal.alarm(SECONDS)
            os.write(writable, json.dumps(probe(folder)).encode()[:60000])
            os._exit(0)
        os.close(writable)
        with open(readable, "rb") as pipe:
            text = pipe.read()
        status = os.waitpid(child, 0)[1]
        found = json.loads(text) if text else {"kind": f"died {status}", "message": ""}
        print(json.dumps({"set": folder.name, **found}), flush=True)


if __name__ == "__main__":
    main()
