"""What goes with a set: read by the Hub's library, by mlcroissant, by sha256sum, and by people."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import yaml
from click.testing import CliRunner
from huggingface_hub import DatasetCard

from clsp.shards.__main__ import main
from clsp.shards.card import prepare_to_share, read_card
from clsp.shards.check import ShardError
from clsp.shards.reader import ShardSet
from clsp.shards.share import push
from clsp.shards.store import index_folder, open_set


@pytest.fixture
def shared(digit_set: ShardSet, tmp_path: Path) -> ShardSet:
    shutil.copytree(digit_set.folder, tmp_path / "set")
    shards = open_set(tmp_path / "set")
    prepare_to_share(shards, "Digits, twice", license="cc-by-4.0", source_license="bsd-3-clause")
    return shards


def test_the_hub_reads_the_card(shared: ShardSet) -> None:
    card = DatasetCard.load(shared.folder / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.size_categories == ["n<1K"]
    assert card.data.pretty_name == "Digits, twice"
    assert card.data.configs[0]["data_files"] == [{"split": "train", "path": "data/train-*.tar"}]
    assert card.data.to_dict()["source_license"] == "bsd-3-clause"
    assert card.data.to_dict()["generator_license"] == "unknown"
    assert read_card(shared.origin) == ("cc-by-4.0", "bsd-3-clause", "unknown", "Digits, twice")
    for words in (shared.id, "preview.png", "webdataset", "load_dataset", "open_set"):
        assert words in card.text
    assert (shared.folder / "preview.png").is_file()


def test_the_card_lists_each_split(make_set, tmp_path: Path) -> None:
    shards = make_set(tmp_path / "set", sizes=(2, 2, 2))
    for old, new in (("train-00001", "val-00000"), ("train-00002", "00002")):
        for suffix in ("tar", "idx"):
            (shards.folder / f"data/{old}.{suffix}").rename(shards.folder / f"data/{new}.{suffix}")
    (shards.folder / "manifest.json").unlink()
    shards = index_folder(shards.folder)
    prepare_to_share(shards, "x", license="mit", source_license="mit")
    card = DatasetCard.load(shards.folder / "README.md")
    assert card.data.configs[0]["data_files"] == [
        {"split": "train", "path": ["data/00002.tar", "data/train-00000.tar"]},
        {"split": "val", "path": "data/val-*.tar"},
    ]
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset(str(shards.folder), cache_dir=cache)
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 4, "val": 2}


def test_mlcroissant_validates_it_and_reads_images(shared: ShardSet) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="needs the extra [test]")
    dataset = mlcroissant.Dataset(jsonld=str(shared.folder / "croissant.json"))
    issues = dataset.metadata.ctx.issues
    assert not issues.errors
    assert dataset.metadata.license == ["cc-by-4.0"]
    files = {file.name: file for file in dataset.metadata.distribution}
    for shard in shared.manifest.shards:
        assert files[shard.name].sha256 == shard.sha256
    assert [r.name for r in dataset.metadata.record_sets] == [
        "anchor_images",
        "p0_images",
        "p1_images",
    ]


def test_mlcroissant_loads_the_records(shared: ShardSet, tmp_path: Path) -> None:
    """In a process of its own: it keeps what it extracts where a variable says at its import."""
    pytest.importorskip("mlcroissant", reason="needs the extra [test]")
    script = (
        "import hashlib, json, mlcroissant, sys\n"
        "dataset, found = mlcroissant.Dataset(jsonld=sys.argv[1]), {}\n"
        "for name in ('anchor_images', 'p0_images', 'p1_images'):\n"
        "    for record in dataset.records(name):\n"
        "        key, image = record[f'{name}/key'].decode(), record[f'{name}/image']\n"
        "        pixels = hashlib.sha256(image.convert('RGB').tobytes()).hexdigest()\n"
        "        found[f'{key}.{name}'] = pixels\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(shared.folder / "croissant.json")],
        env={**os.environ, "CROISSANT_CACHE": str(tmp_path / "cache")},
        check=True,
        capture_output=True,
        text=True,
    )
    names = ("anchor", "p0", "p1")
    assert json.loads(done.stdout) == {
        f"{shared.key(row)}.{name}_images": hashlib.sha256(pixels.tobytes()).hexdigest()
        for row in range(len(shared))
        for name, pixels in zip(names, shared.pixels(row, names), strict=True)
    }


def test_sha256sum_covers_what_was_added(shared: ShardSet) -> None:
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    done = subprocess.run(command, cwd=shared.folder, check=True, capture_output=True, text=True)
    for name in (
        "README.md",
        "LICENSE",
        "croissant.json",
        "CITATION.cff",
        "preview.png",
        "manifest.json",
    ):
        assert f"{name}: OK" in done.stdout


def test_the_citation_is_yaml_and_names_the_set(shared: ShardSet) -> None:
    citation = yaml.safe_load((shared.folder / "CITATION.cff").read_text())
    assert citation["title"] == "Digits, twice"
    assert citation["identifiers"][0]["value"] == shared.id


def test_the_set_stays_the_same(shared: ShardSet, digit_set: ShardSet) -> None:
    assert open_set(shared.folder).id == digit_set.id


@pytest.mark.parametrize("source", ["imagenet", "no-redistribution"])
def test_anchors_that_must_not_be_shared_are_not(
    digit_set: ShardSet, make_set, tmp_path: Path, source: str
) -> None:
    shutil.copytree(digit_set.folder, tmp_path / "set")
    shards = open_set(tmp_path / "set")
    with pytest.raises(ShardError, match="--i-may-redistribute-anchors"):
        prepare_to_share(shards, "x", license="cc0-1.0", source_license=source)
    assert not (shards.folder / "README.md").exists()
    prepare_to_share(
        shards, "x", license="cc0-1.0", source_license=source, may_redistribute_anchors=True
    )
    with pytest.raises(ShardError, match="--i-may-redistribute-anchors"):
        push(shards.folder, str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
    push(shards.folder, str(tmp_path / "there"), may_redistribute_anchors=True)
    bare = make_set(tmp_path / "bare", anchors=False)
    prepare_to_share(bare, "x", license="cc0-1.0", source_license=source)
    assert "The anchors are not in the set" in (bare.folder / "README.md").read_text()
    assert f'are not here; their licence: "{source}"' in (bare.folder / "LICENSE").read_text()
    push(bare.folder, str(tmp_path / "bare there"))


def test_a_push_knows_the_licence_of_the_source(make_set, tmp_path: Path) -> None:
    shards, there = make_set(tmp_path / "set"), str(tmp_path / "there")
    with pytest.raises(
        ShardError, match=r"README\.md does not name the licence of the set's source"
    ):
        push(shards.folder, there)
    with pytest.raises(ShardError, match="'ImageNet' is no licence id"):
        push(shards.folder, there, source_license="ImageNet")
    with pytest.raises(ShardError, match="--i-may-redistribute-anchors"):
        push(shards.folder, there, source_license="imagenet")
    assert not (tmp_path / "there").exists()
    prepare_to_share(
        shards,
        "x",
        license="mit",
        source_license="imagenet",
        may_redistribute_anchors=True,
    )
    with pytest.raises(ShardError, match="--i-may-redistribute-anchors"):
        push(shards.folder, there, source_license="mit")  # the card's own word stands
    bare = make_set(tmp_path / "bare", anchors=False)
    assert push(bare.folder, there, source_license="imagenet").id == bare.id


def test_the_licence_says_where_it_is_to_be_read(shared: ShardSet) -> None:
    text = (shared.folder / "LICENSE").read_text()
    assert "The positives: CC-BY-4.0, https://spdx.org/licenses/CC-BY-4.0.html\n" in text
    assert "source, under its licence: BSD-3-Clause, https://spdx.org" in text
    prepare_to_share(shared, "x", license="other", source_license="mit", model_license="openrail")
    assert 'The positives: "other"\n' in (shared.folder / "LICENSE").read_text()
    assert "generator_license: openrail\n" in (shared.folder / "README.md").read_text()
    (shared.folder / "LICENSE").write_text("Mine.\n")
    prepare_to_share(shared, "x", license="mit", source_license="mit")
    assert (shared.folder / "LICENSE").read_text() == "Mine.\n"


@pytest.mark.parametrize("license", ["", "CC BY", "mit\nconfigs: x", "../x"])
def test_a_licence_that_is_none_is_refused(digit_set: ShardSet, license: str) -> None:
    with pytest.raises(ShardError, match="is no licence id"):
        prepare_to_share(digit_set, "x", license=license, source_license="mit")


def test_a_card_that_somebody_wrote_is_kept(shared: ShardSet) -> None:
    (shared.folder / "README.md").write_text("# Mine\n")
    prepare_to_share(shared, "x", license="mit", source_license="mit")
    assert (shared.folder / "README.md").read_text() == "# Mine\n"
    (shared.folder / "CITATION.cff").write_text("cff-version: 1.2.0\nauthors: [me]\n")
    prepare_to_share(shared, "x", license="mit", source_license="mit")
    assert "authors: [me]" in (shared.folder / "CITATION.cff").read_text()
    assert json.loads((shared.folder / "croissant.json").read_text())["license"] == "mit"


def test_push_asks_for_licences_once(digit_set: ShardSet, tmp_path: Path) -> None:
    shutil.copytree(digit_set.folder, tmp_path / "set")
    command = ["push", str(tmp_path / "set"), str(tmp_path / "there")]
    refused = CliRunner().invoke(main, command, input="cc-by-4.0\nimagenet\n")
    assert refused.exit_code == 1
    assert "--i-may-redistribute-anchors" in refused.output
    assert not (tmp_path / "there").exists()
    asked = CliRunner().invoke(main, command, input="cc-by-4.0\nmit\n")
    assert asked.exit_code == 0, asked.output
    CliRunner().invoke(main, [*command, "--name=Digits, twice", "--model-license=openrail"])
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 0, again.output
    assert read_card(open_set(tmp_path / "there").origin) == (
        "cc-by-4.0",
        "mit",
        "openrail",
        "Digits, twice",
    )
    described = CliRunner().invoke(main, ["info", str(tmp_path / "there")]).output
    assert "cc-by-4.0; of the source: mit" in described
