"""Sets made of sets: what goes in comes out, whole and once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from clsp.shards.__main__ import main
from clsp.shards.check import ShardError
from clsp.shards.edit import diff, merge, split, subset, write_rows, write_set
from clsp.shards.reader import ShardSet
from clsp.shards.share import pull
from clsp.shards.store import open_set


def clsp_shards(*arguments: object):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def records(shards: ShardSet) -> list[object]:
    return [shards.record(row) for row in range(len(shards))]


def test_a_subset_has_so_many_of_each_class(digit_set: ShardSet, tmp_path: Path) -> None:
    result = clsp_shards("subset", digit_set.folder, tmp_path / "s", "--per-class", 3)
    assert "30 records in 2 shards" in result.output
    shards = open_set(tmp_path / "s")
    shards.verify(deep=True)
    found = records(shards)
    assert sorted(r.meta["label"] for r in found) == sorted(3 * list(range(10)))
    assert found == [r for r in records(digit_set) if r.key in set(shards.keys)]
    again = subset(digit_set, tmp_path / "again", 3)
    assert again.id == shards.id
    assert subset(digit_set, tmp_path / "other", 3, seed=1).keys != shards.keys
    fewer = set(subset(digit_set, tmp_path / "fewer", 2).keys)
    assert fewer < set(shards.keys)  # a smaller subset is a part of a larger one
    assert "subset" in clsp_shards("info", tmp_path / "s").output


def test_too_few_of_a_class_is_an_error(digit_set: ShardSet, tmp_path: Path) -> None:
    result = clsp_shards("subset", digit_set.folder, tmp_path / "s", "--per-class", 5)
    assert result.exit_code == 1
    assert "class 0 has 4 records, 5 are asked for" in result.output
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.5, 0.3, 0.2), (1 / 3,) * 3])
def test_parts_are_disjoint_and_make_up_the_set(
    digit_set: ShardSet, tmp_path: Path, shares: tuple[float, ...]
) -> None:
    parts = split(digit_set, tmp_path, {f"part{n}": share for n, share in enumerate(shares)})
    for part, share in zip(parts, shares, strict=True):
        part.verify(deep=True)
        assert abs(len(part) - share * 40) <= 1
    keys = [key for part in parts for key in part.keys]
    assert sorted(keys) == digit_set.keys
    merged = merge(parts, tmp_path / "merged")
    assert {shard.split for shard in merged.manifest.shards} == {
        f"part{n}" for n in range(len(shares))
    }
    last = pull(str(merged.folder), tmp_path / "last", split=f"part{len(shares) - 1}")
    assert records(last) == records(parts[-1])
    assert {r.key: r for r in records(merged)} == {r.key: r for r in records(digit_set)}


@pytest.mark.parametrize("part", ["a=0.5", "a=x", "../a=1", "a=0"])
def test_shares_that_make_no_sense_are_refused(
    digit_set: ShardSet, tmp_path: Path, part: str
) -> None:
    assert clsp_shards("split", digit_set.folder, tmp_path / "o", "--part", part).exit_code != 0
    assert not (tmp_path / "o").exists()


def positives_of(shards: ShardSet, out: Path, slots: list[int]) -> ShardSet:
    """The set with some of its positives."""
    chosen = (
        replace(
            r, positives=tuple(r.positives[n] for n in slots), meta={**r.meta, "seed": slots[0]}
        )
        for r in records(shards)
    )
    like = replace(shards.manifest, positives=len(slots))
    return write_set(out, like, [chosen], "test")


def test_more_positives_of_the_same_anchors(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", sizes=(6,), positives=3)
    one, two = (
        positives_of(shards, tmp_path / "1", [0]),
        positives_of(shards, tmp_path / "2", [1, 2]),
    )
    result = clsp_shards("merge", one.folder, two.folder, "--out", tmp_path / "m")
    assert result.exit_code == 0, result.output
    merged = open_set(tmp_path / "m")
    merged.verify(deep=True)
    assert merged.positives == 3
    for before, after in zip(records(shards), records(merged), strict=True):
        assert (after.anchor, after.positives) == (before.anchor, before.positives)
        assert after.meta == {**before.meta, "seed": [0, 1]}


def test_sets_that_do_not_fit_are_not_merged(make_set, tmp_path: Path) -> None:
    a = make_set(tmp_path / "a", sizes=(6,))
    webp = make_set(tmp_path / "webp", sizes=(6,), image_format="webp")
    part = write_rows(a, tmp_path / "part", [0, 1], "test")
    others = make_set(tmp_path / "b", sizes=(9,), positives=3)
    rest = write_rows(others, tmp_path / "rest", [7, 8], "test")
    bare = make_set(tmp_path / "bare", sizes=(6,), anchors=False)
    for other, message in (
        (webp, "image_format is png in"),
        (part, "share 2 of 6 keys"),
        (rest, "has 2 positives a record, .* 3: their anchors differ"),
        (bare, "anchors is True in"),
        (a, "record digit-0000: the sets have a positive in common"),
    ):
        with pytest.raises(ShardError, match=message):
            merge([a, other], tmp_path / "m")
        assert not (tmp_path / "m").exists()


def test_a_set_does_not_differ_from_its_copy(digit_set: ShardSet, tmp_path: Path) -> None:
    shutil.copytree(digit_set.folder, tmp_path / "copy")
    result = clsp_shards("diff", digit_set.folder, tmp_path / "copy")
    assert (result.exit_code, result.output) == (0, "")


def test_what_differs_is_named(digit_set: ShardSet, make_set, tmp_path: Path) -> None:
    found = records(digit_set)
    swapped = replace(found[3], positives=found[3].positives[::-1])
    edited = write_set(
        tmp_path / "e", digit_set.manifest, [[*found[:3], swapped, *found[4:39]]], "by hand"
    )
    result = diff(digit_set, edited)
    assert result.changed == ("digit-0003",)
    assert (result.only_first, result.only_second) == (("digit-0039",), ())
    output = clsp_shards("diff", digit_set.folder, edited.folder)
    assert output.exit_code == 1
    assert "plan.derived: None | ['by hand']" in output.output
    assert "other images: 1 records: digit-0003" in output.output
    # More positives of the same are no other images.
    more = make_set(tmp_path / "more", positives=3)
    assert diff(digit_set, more).changed == ()
    assert diff(digit_set, more).made == ("positives: 2 | 3",)


def test_a_folder_that_holds_something_is_left_alone(digit_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("precious")
    result = clsp_shards("strip", digit_set.folder, tmp_path / "out")
    assert result.exit_code == 1
    assert "is not empty" in result.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]
