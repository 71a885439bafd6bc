"""Plans: integers and hashes that decide which machine makes what."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from clsp.generate.config import GenerateConfig
from clsp.generate.output import Folder
from clsp.generate.plan import ModelInfo, PlanError, claim, make_plan
from clsp.shards.images import open_images

MODEL = ModelInfo(sha256="0" * 64, image_size=8)


@pytest.mark.parametrize("size", [1, 7, 359, 1000])
def test_every_anchor_is_in_one_shard(size: int) -> None:
    plan = make_plan(GenerateConfig(shard_size=size), MODEL, open_images("digits:test"))
    anchors = [index for shard in range(plan.shards) for index in plan.anchors(shard)]
    assert anchors == list(range(359))
    assert max(len(plan.anchors(shard)) for shard in range(plan.shards)) <= size


def test_the_id_changes_with_all_that_decides_pixels() -> None:
    source, config = open_images("digits:test"), GenerateConfig()
    plans = [
        make_plan(config, MODEL, source),
        make_plan(config, MODEL, open_images("digits:train")),
        make_plan(config, replace(MODEL, sha256="1" * 64), source),
        make_plan(replace(config, w=0.2), MODEL, source),
        make_plan(replace(config, seed=1), MODEL, source),
        make_plan(replace(config, batch=32), MODEL, source),
    ]
    assert len({plan.id for plan in plans}) == len(plans)
    assert plans[0].id == make_plan(config, MODEL, open_images("digits:test")).id


def test_the_id_does_not_change_with_the_folder_the_images_are_in(
    digit_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").symlink_to(digit_folder)
    specs = (f"folder:{digit_folder}", f"folder:{tmp_path / 'elsewhere'}")
    first, second = (make_plan(GenerateConfig(), MODEL, open_images(spec)) for spec in specs)
    assert first.id == second.id
    assert str(digit_folder).encode() not in first.to_json()


def test_a_folder_takes_one_plan(tmp_path: Path) -> None:
    source = open_images("digits:test")
    plan = make_plan(GenerateConfig(), MODEL, source)
    claim(plan, Folder(tmp_path))
    claim(plan, Folder(tmp_path))
    with pytest.raises(PlanError, match=r"config\.seed is 0 there and 3 here"):
        claim(make_plan(GenerateConfig(seed=3), MODEL, source), Folder(tmp_path))
    assert (tmp_path / "plan.json").read_bytes() == plan.to_json()


def test_a_folder_with_a_set_that_has_no_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    plan = make_plan(GenerateConfig(), MODEL, open_images("digits:test"))
    with pytest.raises(PlanError, match=r"no plan\.json"):
        claim(plan, Folder(tmp_path))


class _Many:
    """Ten million images that nobody looks at."""

    spec, labels, classes = "folder:many", None, None

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def key(self, index: int) -> str:
        return f"n{index:08d}-{index:08x}"


def test_a_plan_keeps_no_object_for_an_anchor() -> None:
    """Memory grows by a hash a shard, not by anything an anchor."""
    tracemalloc.start()
    plan = make_plan(GenerateConfig(), MODEL, _Many(50_000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.shards == 50
    assert peak < 50_000  # bytes
