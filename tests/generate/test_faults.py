"""Faults at every place of a shard's writing: no partial shard is ever visible."""

from __future__ import annotations

import errno
import io
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clsp.generate.output import Folder
from clsp.shards import files, writer
from clsp.shards.images import encode_image
from clsp.shards.record import Record, members

NAME = "data/train-00000.tar"


def records() -> list[Record]:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), np.uint8)
    images = [encode_image(image, "png") for image in pixels]
    return [Record(f"k{n}", images[n], (images[n + 4],), {}, "png") for n in range(4)]


def visible(root: Path) -> dict[str, bytes]:
    """Every file below `root`, temporaries too."""
    return {p.name: p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, bytes]:
    Folder(tmp_path / "whole").add_shard(NAME, records(), positives=1)
    return visible(tmp_path / "whole")


def test_an_error_at_any_member_leaves_nothing(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    total = sum(len(members(record)) for record in records())
    output = Folder(tmp_path / "set")
    for broken in range(total):
        count = itertools.count()

        def failing(record: Record, broken: int = broken, count=count):
            for member in members(record):
                if next(count) == broken:
                    raise RuntimeError("a fault")
                yield member

        monkeypatch.setattr(writer, "members", failing)
        with pytest.raises(RuntimeError, match="a fault"):
            output.add_shard(NAME, records(), positives=1)
        assert visible(output.root) == {}
    monkeypatch.setattr(writer, "members", members)
    output.add_shard(NAME, records(), positives=1)
    assert visible(output.root) == whole


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["ENOSPC", "EIO"])
def test_a_failed_write_anywhere_leaves_no_shard(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """The write that fails has put half of its bytes on the disk, as a full one does."""
    output, codes = Folder(tmp_path / "set"), []
    for broken in itertools.count():
        opened = _failing_open(broken, code)
        for module in (writer, files):
            monkeypatch.setattr(module, "open", opened, raising=False)
        try:
            output.add_shard(NAME, records(), positives=1)
            break
        except OSError as error:
            codes.append(error.errno)
        assert visible(output.root) == {}
    assert set(codes) == {code}
    assert len(codes) > 12  # each member, the end, the index
    assert visible(output.root) == whole


def _failing_open(broken: int, code: int) -> Callable[[Path, str], io.FileIO]:
    count = itertools.count()

    class Failing(io.FileIO):
        def write(self, data: bytes) -> int:
            if next(count) == broken:
                super().write(data[: len(data) // 2])
                raise OSError(code, "a fault")
            return super().write(data)

    return lambda path, mode: Failing(str(path), mode.replace("b", ""))
