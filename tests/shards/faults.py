"""A web server on the loopback that breaks its answers in the ways that real ones do."""

from __future__ import annotations

import http.server
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

PERMANENT = ("404", "403", "410", "other bytes")
TRANSIENT = (
    "500", "502", "503", "429", "html", "416", "closed at once",
    "cut, length", "cut, chunked", "cut, close", "slow", "stalled",
    "range shifted", "range lies", "range ignored", "stale", "flipped", "too long",
)  # fmt: skip
HTML = b"<!doctype html><title>Sign in</title><p>Please sign in to this network.</p>\n"


class FaultServer:
    """Serves a folder. `choose(name, count)` names the fault of a file's count-th request, or None.

    Used as a context manager; `address` is where the folder is, `requests` counts by file name.
    """

    def __init__(
        self,
        folder: Path,
        choose: Callable[[str, int], str | None] = lambda name, count: None,
        older: Path | None = None,
        stall: float = 5.0,
        seed: int = 0,
    ) -> None:
        """older: the files of a stale answer; stall: seconds that a stalled one waits."""
        self.folder, self.choose = folder, choose
        self.older, self.stall = older or folder, stall
        self.requests: Counter[str] = Counter()
        self._dice, self._lock = random.Random(seed), threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/set"

    def __enter__(self) -> FaultServer:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def next_fault(self, name: str) -> tuple[str | None, float]:
        """Return the fault of a request, and a number in [0, 1) for where it strikes."""
        with self._lock:
            self.requests[name] += 1
            return self.choose(name, self.requests[name]), self._dice.random()


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: FaultServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        name = self.path.removeprefix("/set/")
        fault, where = self.owner.next_fault(name)
        self.close_connection = True
        try:
            data = (self.owner.folder / name).read_bytes()
        except OSError:
            fault, data = "404", b""
        try:
            self._answer(fault or "none", where, data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def _answer(self, fault: str, where: float, data: bytes) -> None:
        if fault == "closed at once":
            return
        if fault.isdigit():
            return self._send(int(fault), b"no\n", {"Content-Type": "text/plain"})
        if fault == "html":
            return self._send(200, HTML, {"Content-Type": "text/html"})
        if fault in ("other bytes", "flipped") and data:
            place = int(where * len(data))
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        elif fault == "stale":
            data = (self.owner.older / self.path.removeprefix("/set/")).read_bytes()
        elif fault == "too long":
            data += b"more"
        status, headers = 200, {"ETag": f'"{fault}"'}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and fault != "range ignored":
            start = int(wanted[1])
            if start >= len(data):
                return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            sent = start // 2 if fault in ("range shifted", "range lies") else start
            told = start if fault == "range lies" else sent
            headers["Content-Range"] = f"bytes {told}-{len(data) - 1}/{len(data)}"
            status, data = 206, data[sent:]
        cut = int(where * len(data))
        if fault == "cut, length":
            return self._send(status, data, headers, cut)
        if fault == "cut, close":
            return self._send(status, data[:cut], headers | {"Connection": "close"}, framed=False)
        if fault == "cut, chunked":
            return self._send_chunked(status, data, headers, cut)
        if fault == "stalled":
            self._send(status, data, headers, cut)
            self.wfile.flush()
            time.sleep(self.owner.stall)
            return None
        if fault == "slow":
            self._send(status, data, headers, cut)
            self.wfile.flush()
            time.sleep(0.02)
            self.wfile.write(data[cut:])
            return None
        return self._send(status, data, headers)

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str],
        cut: int | None = None,
        framed: bool = True,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if framed:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[:cut])

    def _send_chunked(self, status: int, data: bytes, headers: dict[str, str], cut: int) -> None:
        self.send_response(status)
        for name, value in {**headers, "Transfer-Encoding": "chunked"}.items():
            self.send_header(name, value)
        self.end_headers()
        for start in range(0, cut, 700):
            piece = data[start : min(start + 700, cut)]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
