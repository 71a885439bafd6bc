"""Whole runs of `clsp generate`: the same bytes whoever makes them, and however often they die."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from clsp.generate.__main__ import main
from clsp.generate.config import GenerateConfig
from clsp.generate.plan import PlanError
from clsp.generate.run import generate
from clsp.shards.__main__ import main as shards_main
from clsp.shards.edit import strip
from clsp.shards.images import decode_image, open_images
from clsp.shards.store import open_set

TINY = GenerateConfig(positives=2, steps=3, batch=4, shard_size=5)


def content(out: Path) -> dict[str, bytes]:
    """Every file below `out`, hidden ones too, by its relative path."""
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def command(images: Path, model: Path, out: Path, *more: str) -> list[str]:
    flags = ["--positives=2", "--steps=3", "--batch=4", "--shard-size=5", "--device=cpu"]
    places = [f"--images=folder:{images}", f"--model={model}", f"--out={out}"]
    return [*places, *flags, *more]


@pytest.fixture(scope="module")
def undisturbed(digit_folder: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("undisturbed") / "set"
    generate(TINY, f"folder:{digit_folder}", str(tiny_model), out, device="cpu", workers=1)
    return out


def test_a_set_holds_every_anchor_and_its_positives(undisturbed: Path, digit_folder: Path) -> None:
    shards = open_set(undisturbed)
    shards.verify(deep=True)
    source = open_images(f"folder:{digit_folder}")
    assert len(shards) == len(source) == 60
    assert shards.shard_sizes == (5,) * 12
    for index in range(60):
        record = shards.record(index)
        assert record.key == source.key(index)
        assert record.meta["label"] == source.labels[index]
        np.testing.assert_array_equal(decode_image(record.anchor), np.asarray(source.read(index)))
        assert [decode_image(p).shape for p in record.positives] == [(8, 8, 3)] * 2
    assert Image.open(undisturbed / "preview.png").size > (100, 100)


@pytest.mark.parametrize("workers", [2, 3])
def test_the_number_of_workers_does_not_change_a_byte(
    undisturbed: Path, digit_folder: Path, tiny_model: Path, tmp_path: Path, workers: int
) -> None:
    out = tmp_path / "set"
    generate(TINY, f"folder:{digit_folder}", str(tiny_model), out, device="cpu", workers=workers)
    assert content(out) == content(undisturbed)


def test_positive_j_does_not_depend_on_k(
    undisturbed: Path, digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    more = replace(TINY, positives=3, shard_size=60)
    generate(more, f"folder:{digit_folder}", str(tiny_model), tmp_path, device="cpu", workers=1)
    few, many = open_set(undisturbed), open_set(tmp_path)
    # Batches of 4 within shards of 5 and of 60 differ, and a last bit with them; the first do not.
    for index in range(4):
        assert few.record(index).positives == many.record(index).positives[:2]


def test_a_finished_set_is_left_alone(
    undisturbed: Path, digit_folder: Path, tiny_model: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (undisturbed / "data").iterdir()}
    generate(TINY, f"folder:{digit_folder}", str(tiny_model), undisturbed, device="cpu", workers=1)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_folder_of_another_plan_is_refused(
    undisturbed: Path, digit_folder: Path, tiny_model: Path
) -> None:
    other = replace(TINY, w=0.5)
    with pytest.raises(PlanError, match=r"config\.w is 0\.1 there and 0\.5 here"):
        generate(other, f"folder:{digit_folder}", str(tiny_model), undisturbed, device="cpu")


def test_a_shard_that_fails_is_left_out_and_named(
    digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """One unreadable image: its shard fails three times, the others are done; a rerun mends it."""
    images, out = tmp_path / "images", tmp_path / "set"
    images.mkdir()
    for index, path in enumerate(sorted(digit_folder.rglob("*.png"))[:15]):
        (images / f"{index:02d}.png").write_bytes(path.read_bytes())
    broken = images / "07.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:60])
    failed = CliRunner().invoke(main, command(images, tiny_model, out, "--workers=2"))
    assert failed.exit_code == 3
    last = failed.stderr.splitlines()[-1]
    assert re.search(r"shard 1: ImageError: .*07\.png.*failures/train-00001\.json", last)
    failure = json.loads((out / "failures" / "train-00001.json").read_text())
    assert "Traceback" in failure["traceback"]
    assert "images.py" in failure["traceback"]
    assert {path.name for path in (out / "data").glob("*.tar")} == {
        "train-00000.tar",
        "train-00002.tar",
    }
    assert list((out / "running").iterdir()) == []
    assert not (out / "manifest.json").exists()
    shown = CliRunner().invoke(main, ["--status", str(out)])
    assert shown.exit_code == 0
    assert re.search(r"done +2 \(10 anchors\)", shown.output)
    assert re.search(r"failed +1\n +shard 1: ImageError", shown.output)
    broken.write_bytes(whole)
    assert CliRunner().invoke(main, command(images, tiny_model, out)).exit_code == 0
    open_set(out).verify(deep=True)
    assert not (out / "failures").exists()


def test_tasks_of_an_array_make_the_same_set(
    undisturbed: Path, digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """`--shards A:B` in any order, beyond the end too; the last one finishes the set."""
    arguments = command(digit_folder, tiny_model, tmp_path, "--workers=1")
    for part in ("8:16", ":4", "4:8"):
        assert not (tmp_path / "manifest.json").exists()
        assert CliRunner().invoke(main, [*arguments, f"--shards={part}"]).exit_code == 0
    assert content(tmp_path) == content(undisturbed)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--shards=3", "'3' is not A:B"),
        ("--engine=slurm", "'slurm' is not one of 'local', 'ray'"),
        ("--out=gs://bucket/set", "expected a path or s3://BUCKET/PREFIX"),
        ("--out=s3://bucket", "expected s3://BUCKET/PREFIX"),
        ("--status=/nowhere", "no set was begun there"),
    ],
)
def test_a_bad_option_is_named(
    digit_folder: Path, tiny_model: Path, tmp_path: Path, option: str, message: str
) -> None:
    result = CliRunner().invoke(main, command(digit_folder, tiny_model, tmp_path, option))
    assert result.exit_code in (1, 2)
    assert message in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named(
    digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"--device cuda: .* no GPU .*use --device cpu"):
        generate(TINY, f"folder:{digit_folder}", str(tiny_model), tmp_path, device="cuda")


@pytest.mark.parametrize(("package", "extra"), [("ray", "ray"), ("s3fs", "s3")])
def test_a_missing_package_names_its_extra(
    digit_folder: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what an import sees without the package
    out = "s3://bucket/set" if extra == "s3" else str(tmp_path)
    with pytest.raises(ValueError, match=rf"pip install 'clsp\[{extra}\]'"):
        generate(TINY, f"folder:{digit_folder}", str(tiny_model), out, engine="ray")


def test_a_receipt_that_lies_is_found_and_its_shard_made_again(
    undisturbed: Path, digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "set"
    shutil.copytree(undisturbed, out)
    shard, cut = (out / "data" / f"train-0000{n}.tar" for n in (3, 5))
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-512])
    arguments = command(digit_folder, tiny_model, out, "--workers=1")
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 1
    assert re.search(r"data/train-00003\.tar: its sha256 is .* run again to make it", found.stderr)
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert content(out) == content(undisturbed)


def test_a_damaged_shard_is_repaired_by_making_it_again(
    undisturbed: Path, digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    out = Path(shutil.copytree(undisturbed, tmp_path / "set"))
    tar = out / "data" / "train-00003.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    times = {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    result = CliRunner().invoke(shards_main, ["repair", str(out)])
    assert result.exit_code == 1
    assert "data/train-00003.tar: damaged; give --from, or run again" in result.output
    assert CliRunner().invoke(main, command(digit_folder, tiny_model, out)).exit_code == 0
    assert content(out) == content(undisturbed)
    made = {p.name for p in (out / "data").iterdir() if p.stat().st_mtime_ns != times[p.name]}
    assert made == {"train-00003.tar", "train-00003.idx"}
    assert CliRunner().invoke(shards_main, ["repair", str(out)]).output == f"{out}: whole\n"


def test_a_full_disk_is_named_and_a_rerun_goes_on(
    undisturbed: Path, digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    """A limit on file size stands for the full disk: writes fail half-way through a shard."""
    out = tmp_path / "set"
    arguments = command(digit_folder, tiny_model, out, "--workers=1")
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "from clsp.generate.__main__ import main\n"
        "main(sys.argv[1:])\n"
    )
    failed = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300
    )
    assert failed.returncode == 3
    assert "File too large" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert list((out / "data").iterdir()) == []
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert content(out) == content(undisturbed)


def test_a_changed_model_is_refused(
    digit_folder: Path, tiny_model: Path, undisturbed: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.03}))
    with pytest.raises(PlanError, match=r"model\.sha256"):
        generate(TINY, f"folder:{digit_folder}", str(other), undisturbed, device="cpu")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"positives": 0}, "positives is 0"),
        ({"w": -0.1}, r"w is -0\.1"),
        ({"w": 1.01}, r"w is 1\.01"),
        ({"eta": 2.0}, r"eta is 2\.0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_a_config_out_of_range_is_refused(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GenerateConfig(**setting)


def test_a_set_without_anchors_is_the_stripped_set(
    undisturbed: Path, digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    config = replace(TINY, anchors=False)
    generate(config, f"folder:{digit_folder}", str(tiny_model), bare, device="cpu", workers=1)
    stripped = strip(open_set(undisturbed), tmp_path / "stripped")
    assert not open_set(bare).manifest.anchors
    assert open_set(bare).manifest.shards == stripped.manifest.shards
