"""Sets written to a bucket: a real S3 server on loopback, kills and broken connections in."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import s3_server
from clsp.generate.config import GenerateConfig
from clsp.generate.output import Bucket, Folder, open_output
from clsp.generate.run import generate
from clsp.generate.status import read_status
from clsp.shards.check import ShardError
from clsp.shards.images import encode_image
from clsp.shards.record import Record
from clsp.shards.store import open_set

TINY = GenerateConfig(positives=2, steps=3, batch=4, shard_size=20)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of moto's S3 server, with the bucket `sets` in it."""
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return Bucket(f"s3://sets/{tmp_path.name}")


def records(count: int, seed: int = 0) -> list[Record]:
    draw = np.random.default_rng(seed).integers(0, 256, (count, 2, 8, 8, 3), np.uint8)
    return [
        Record(f"key-{n}", encode_image(a, "png"), (encode_image(p, "png"),), {}, "png")
        for n, (a, p) in enumerate(draw)
    ]


def test_a_set_in_a_bucket_is_the_set_in_a_folder(
    bucket: Bucket, digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    images, model, local = f"folder:{digit_folder}", str(tiny_model), tmp_path / "local"
    generate(TINY, images, model, local, device="cpu", workers=1)
    generate(TINY, images, model, bucket.url, device="cpu", workers=2, shards=slice(0, 1))
    assert bucket.read("manifest.json") is None
    status = read_status(bucket)
    assert (status.done, status.missing, status.finished) == ((0,), (1, 2), False)
    generate(TINY, images, model, bucket.url, device="cpu", workers=1)
    fetched = tmp_path / "fetched"
    bucket._files.get(bucket.url, str(fetched), recursive=True)

    def content(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    assert content(fetched) == content(local)
    open_set(fetched).verify(deep=True)


def test_folder_and_bucket_behave_alike(bucket: Bucket, tmp_path: Path) -> None:
    shards = []
    for output in (Folder(tmp_path), bucket):
        assert output.read("receipts/a.json") is None
        assert output.entries("receipts") == {}
        output.write("receipts/a.json", b"1")
        output.write("receipts/a.json", b"22")
        output.write("receipts/b.json", b"3")
        assert output.read_all("receipts") == {"a.json": b"22", "b.json": b"3"}
        entry = output.entries("receipts")["a.json"]
        assert entry.size == 2
        assert abs(entry.modified - time.time()) < 60
        output.remove("receipts/a.json")
        output.remove("receipts/a.json")
        assert set(output.entries("receipts")) == {"b.json"}
        shards.append(output.add_shard("data/train-00000.tar", records(3), positives=1))
        output.check_shard(shards[-1])
        assert set(output.entries("data")) == {"train-00000.tar", "train-00000.idx"}
        with output.local_shard(shards[-1]) as folder:
            assert (folder / "data" / "train-00000.tar").stat().st_size == shards[-1].bytes
    assert shards[0] == shards[1]


def test_an_object_is_never_replaced(bucket: Bucket) -> None:
    shard = bucket.add_shard("data/train-00000.tar", records(3), positives=1)
    # A worker that died after its upload: the next one makes the same bytes and goes on.
    assert bucket.add_shard("data/train-00000.tar", records(3), positives=1) == shard
    with pytest.raises(ShardError, match=r"train-00000\.idx is there with other bytes"):
        bucket.add_shard("data/train-00000.tar", records(4), positives=1)
    bucket.check_shard(shard)


def test_a_raising_record_uploads_nothing(bucket: Bucket) -> None:
    def broken() -> Iterator[Record]:
        yield from records(2)
        raise ValueError("an image is broken")

    with pytest.raises(ValueError, match="an image is broken"):
        bucket.add_shard("data/train-00000.tar", broken(), positives=1)
    assert bucket.entries("data") == {}


class _Torn:
    """A proxy before the server that cuts each of the first `cuts` connections after `bytes_`."""

    def __init__(self, server: str, bytes_: int, cuts: int) -> None:
        self._server = ("127.0.0.1", int(server.rpartition(":")[2]))
        self._bytes, self.cuts = bytes_, cuts
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(self._server)
            left = self._bytes if self.cuts > 0 else 1 << 60
            self.cuts -= 1
            for source, sink, most in ((client, upstream, left), (upstream, client, 1 << 60)):
                threading.Thread(target=self._pump, args=(source, sink, most), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, left: int) -> None:
        with contextlib.suppress(OSError):
            while left > 0 and (data := source.recv(min(left, 1 << 16))):
                sink.sendall(data)
                left -= len(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


def test_a_cut_upload_is_sent_again(
    server: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = _Torn(server, bytes_=3000, cuts=2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.address)
    through = Bucket(bucket.url)
    shard = through.add_shard("data/train-00000.tar", records(9), positives=1)
    assert proxy.cuts <= 0
    assert bucket.entries("data")["train-00000.tar"].size == shard.bytes
    bucket.check_shard(shard)
    proxy.close()


def test_no_killed_upload_is_visible(server: str, bucket: Bucket) -> None:
    """A process is killed again and again while its upload hangs half-way."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from clsp.generate.output import Bucket\n"
        "from test_output import records\n"
        "Bucket(sys.argv[1]).add_shard('data/train-00000.tar', records(40), positives=1)\n"
    )
    listener = socket.create_server(("127.0.0.1", 0))  # takes a part and never answers
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    uploader = subprocess.Popen(
        [sys.executable, "-c", script, bucket.url, str(Path(__file__).parent)],
        env={**os.environ, "AWS_ENDPOINT_URL": address},
    )
    half, _ = listener.accept()
    upstream = socket.create_connection(("127.0.0.1", int(server.rpartition(":")[2])))
    upstream.sendall(half.recv(2000))
    uploader.send_signal(signal.SIGKILL)
    assert uploader.wait() == -signal.SIGKILL
    for end in (upstream, half, listener):
        end.close()
    assert bucket.entries("data") == {}
    bucket.add_shard("data/train-00000.tar", records(40), positives=1)  # sweeps, and succeeds
    left = [
        p for p in Path(tempfile.gettempdir()).glob("clsp-shard-*") if f"-{uploader.pid}-" in p.name
    ]
    assert left == []


def test_other_stores_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a path or s3://BUCKET/PREFIX"):
        open_output("gs://bucket/set")
