"""Transfer: torchvision's own classes read small sets in the real layouts; one resumable table."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from clsp.evaluate.__main__ import main
from clsp.evaluate.datasets import DATA_SETS, VOC_CLASSES, draw_split, open_task, there
from clsp.evaluate.encoders import open_encoder
from clsp.evaluate.features import compute_features
from clsp.evaluate.linear import lbfgs_probe

from . import layouts

# name: classes, images of each part, metric
EXPECTED = {
    "cifar10": (3, (30, None, 6), "accuracy"),
    "cifar100": (3, (30, None, 30), "accuracy"),
    "stl10": (3, (12, None, 12), "accuracy"),
    "pets": (3, (12, None, 12), "mean per class"),
    "flowers": (102, (102, 102, 102), "mean per class"),
    "dtd": (3, (9, 9, 9), "accuracy"),
    "caltech101": (3, (90, None, 12), "mean per class"),
    "food101": (3, (9, None, 9), "accuracy"),
    "cars": (3, (9, None, 9), "accuracy"),
    "aircraft": (3, (9, 9, 9), "mean per class"),
    "sun397": (3, (12, None, 12), "accuracy"),
    "voc2007": (20, (40, 40, 40), "mAP"),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    layouts.cifar(folder)
    layouts.cifar(folder, hundred=True)
    for name in list(EXPECTED)[2:]:
        getattr(layouts, name)(folder)
    return folder


@pytest.fixture(autouse=True)
def _checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.accept_checksums(monkeypatch)


def transfer(run: Path, root: Path, out: Path, *more: str):
    places = [f"--data={root}", f"--out={out}", f"--cache={out.parent / 'cache'}", "--device=cpu"]
    return CliRunner().invoke(main, ["transfer", str(run / "encoder"), *places, *more])


@pytest.mark.parametrize("name", EXPECTED)
def test_torchvision_reads_each_set_as_it_lies_on_disk(root: Path, name: str) -> None:
    classes, counts, metric = EXPECTED[name]
    task = open_task(name, root)
    parts = (task.train, task.validation, task.test)
    assert tuple(part and len(part) for part in parts) == counts
    assert task.metric == metric
    assert task.split
    for part in parts:
        if part is None:
            continue
        assert len(part.classes) == classes
        row = len(part) - 1
        pixels = np.asarray(part.read(row)).astype(int).mean(axis=(1, 2))
        bright = int(np.argmax([band.mean() for band in np.array_split(pixels, 3)]))
        if name == "voc2007":
            assert part.labels[row].tolist().index(1) == row % 20
        elif name == "flowers":
            assert part.labels[row] % 3 == bright  # 102 is a multiple of 3
        else:
            assert part.labels[row] == bright
        assert part.path(row)


def test_the_parts_of_a_set_share_no_image(root: Path) -> None:
    for name in EXPECTED:
        task = open_task(name, root)
        paths = [
            p.path(n) for p in (task.train, task.validation, task.test) if p for n in range(len(p))
        ]
        assert len(set(paths)) == len(paths), name


def test_voc_leaves_out_what_is_only_difficult(root: Path) -> None:
    labels = open_task("voc2007", root).train.labels
    person = VOC_CLASSES.index("person")
    expected = [1 if n % 20 == person else -1 if n % 3 == 0 else 0 for n in range(40)]
    assert labels[:, person].tolist() == expected


def test_sun_without_its_partition_says_what_it_drew(tmp_path: Path) -> None:
    layouts.sun397(tmp_path, each=101, partition=False)
    task = open_task("sun397", tmp_path, seed=3)
    assert task.split == "no partition file there: 50 + 50 a class, drawn with seed 3"
    assert (len(task.train), len(task.test)) == (150, 150)
    assert np.bincount(task.test.labels).tolist() == [50, 50, 50]
    other = open_task("sun397", tmp_path, seed=4)
    assert {task.train.path(n) for n in range(150)} != {other.train.path(n) for n in range(150)}


def test_caltech_draws_thirty_a_class_by_seed(root: Path) -> None:
    task = open_task("caltech101", root, seed=5)
    assert np.bincount(task.train.labels).tolist() == [30, 30, 30]
    assert np.bincount(task.test.labels).tolist() == [3, 4, 5]  # all others; no background
    assert task.split.endswith("without the background class; drawn with seed 5")
    with pytest.raises(ValueError, match="class 1 has 2 images, and its split takes 2 to train"):
        draw_split(np.array([0, 0, 0, 1, 1]), 2, None, 0)


def test_one_command_gives_the_table_and_does_nothing_twice(
    run: Path, root: Path, open_page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    # Three penalties instead of 45, for speed; the protocol is tested below.
    few = partial(lbfgs_probe, strengths=(1e-3, 1e-1, 10.0))
    monkeypatch.setattr("clsp.evaluate.transfer.lbfgs_probe", few)
    result = transfer(run, root, out)
    assert result.exit_code == 0, result.output
    values = json.loads((out / "transfer.json").read_text())
    ((arm, found),) = values["arms"].items()
    assert arm == "simclr"
    (scores,) = found["scores"]
    assert list(scores) == [*EXPECTED, "mean"]
    assert scores["mean"] == pytest.approx(np.mean([scores[name] for name in EXPECTED]))
    assert scores["caltech101"] > 60  # chance is 33
    assert {name: task["metric"] for name, task in values["data sets"].items()} == {
        name: metric for name, (_, _, metric) in EXPECTED.items()
    }
    table = (out / "transfer.md").read_text()
    assert table in result.output
    assert f"{scores['voc2007']:.1f}" in table.splitlines()[2]
    with open_page(out / "report.html", width=390) as (page, wrong):
        assert page.locator("tbody tr").count() == 1 + len(EXPECTED)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert wrong == []
    # All that is done is found again, even where the data is gone.
    monkeypatch.setattr("clsp.evaluate.transfer.open_task", None)
    again = transfer(run, root, out)
    assert again.exit_code == 0, again.output
    assert json.loads((out / "transfer.json").read_text())["arms"] == values["arms"]


def test_the_score_is_scikit_learns_on_both_parts(run: Path, root: Path, tmp_path: Path) -> None:
    result = transfer(run, root, tmp_path / "out", "--datasets=aircraft")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "out" / "transfer.json").read_text())
    task, encoder = open_task("aircraft", root), open_encoder(run / "encoder")
    fit, held_out, test = (
        compute_features(encoder, part, mirrored=False)
        for part in (task.train, task.validation, task.test)
    )
    x, y = torch.cat([fit.plain, held_out.plain]), torch.cat([fit.labels, held_out.labels])
    (strength,) = values["data sets"]["aircraft"]["l2"].values()
    theirs = LogisticRegression(C=1 / (len(y) * strength), max_iter=2000, tol=1e-6).fit(x, y)
    (scores,) = values["arms"]["simclr"]["scores"]
    assert scores["aircraft"] == pytest.approx(100 * theirs.score(test.plain, test.labels))


def test_a_set_that_fails_is_named_and_the_others_go_on(
    run: Path, root: Path, tmp_path: Path
) -> None:
    layouts.dtd(tmp_path)
    layouts.food101(tmp_path)
    broken = next((tmp_path / "dtd").rglob("*.jpg"))
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    result = transfer(run, tmp_path, tmp_path / "out")
    assert result.exit_code == 1
    assert f"{broken} cannot be read as an image" in result.output
    values = json.loads((tmp_path / "out" / "transfer.json").read_text())
    assert list(values["arms"]["simclr"]["scores"][0]) == ["food101"]
    assert "dtd" in next(iter(values["failures"]))
    broken.write_bytes(whole)
    result = transfer(run, tmp_path, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "| mean" in result.output


def test_what_is_not_there_is_named(run: Path, root: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for flag, message in {
        "--datasets=dtd,imagnet": "data set 'imagnet' is none of cifar10, cifar100",
        "--datasets=pets": "OxfordIIITPet in .*empty: Dataset not found",
        "--datasets=caltech101": "no folder caltech101",
        "--seed=0": "holds none of the folders cifar-10-batches-py, cifar-100-python",
    }.items():
        place = root if "imagnet" in flag else empty
        result = transfer(run, place, tmp_path / "out", flag)
        assert result.exit_code == 1
        assert re.search(message, result.output), result.output
    assert list(empty.iterdir()) == []
    assert not (tmp_path / "out").exists()
    assert there(root) == list(DATA_SETS) == list(EXPECTED)
