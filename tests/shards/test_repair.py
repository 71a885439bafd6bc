"""Repair: only what is damaged is fetched or made again."""

from __future__ import annotations

import shutil
from pathlib import Path

from click.testing import CliRunner

from clsp.shards.__main__ import main
from clsp.shards.reader import ShardSet
from clsp.shards.store import open_set


def repair(*arguments: object):
    return CliRunner().invoke(main, ["repair", *map(str, arguments)])


def test_only_damaged_shards_are_fetched(digit_set: ShardSet, make_set, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(digit_set.folder, tmp_path / "set"))
    tar, whole = folder / "data/train-00001.tar", folder / "data/train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-600])
    (folder / "data/train-00002.idx").unlink()
    before = whole.stat().st_mtime_ns
    (folder / "receipts").mkdir()
    for number in range(3):
        (folder / "receipts" / f"train-0000{number}.json").write_text("{}")
    alone = repair(folder)
    assert alone.exit_code == 1
    assert "data/train-00002.tar: repaired" in alone.output
    assert "data/train-00001.tar: damaged; give --from" in alone.output
    left = sorted(path.name for path in (folder / "receipts").iterdir())
    assert left == ["train-00000.json", "train-00002.json"]
    other = make_set(tmp_path / "other", sizes=(3,))
    assert f"is set {other.id[:12]}" in repair(folder, "--from", other.folder).output
    result = repair(folder, "--from", digit_set.folder)
    assert result.exit_code == 0, result.output
    assert "train-00001.tar: repaired" in result.output
    assert "train-00000" not in result.output
    assert whole.stat().st_mtime_ns == before
    open_set(folder).verify(deep=True)
    assert repair(folder).output == f"{folder}: whole\n"
