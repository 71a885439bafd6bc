"""The scripts of docs/cluster.md, run as they stand, by a shell with a small Slurm of our own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clsp.generate.config import GenerateConfig
from clsp.generate.run import generate
from clsp.shards.store import open_set

MANUAL = Path(__file__).parents[2] / "docs" / "cluster.md"
TINY = GenerateConfig(positives=1, steps=2, batch=4, shard_size=3)  # 20 shards
RECIPE = 'positives = 1\nsteps = 2\nbatch = 4\nshard-size = 3\ndevice = "cpu"\nworkers = 1\n'

# What Slurm would do: note what is asked of it; run a command once a task, side by side.
SCONTROL = '#!/bin/bash\necho "$*" >> "$LOG"\n'
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=0
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!)
done
code=0; for task in "${tasks[@]}"; do wait "$task" || code=1; done; exit $code
"""


@pytest.fixture
def slurm(tmp_path: Path, digit_folder: Path, tiny_model: Path) -> dict[str, str]:
    """An environment with Slurm's commands, clsp's and Accelerate's, and the scripts' inputs."""
    bin_, recipe = tmp_path / "bin", tmp_path / "tiny.toml"
    bin_.mkdir()
    recipe.write_text(RECIPE)
    commands = {"scontrol": SCONTROL, "srun": SRUN}
    for name, module in (
        ("clsp", "clsp.cli"),
        ("accelerate", "accelerate.commands.accelerate_cli"),
    ):
        call = f"from {module} import main; main()"
        commands[name] = f'#!/bin/bash\nexec {sys.executable} -c "{call}" "$@"\n'
    for name, text in commands.items():
        (bin_ / name).write_text(text)
        (bin_ / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{bin_}:{os.environ['PATH']}",
        "LOG": str(tmp_path / "scontrol.log"),
        "RECIPE": str(recipe),
        "IMAGES": f"folder:{digit_folder}",
        "MODEL": str(tiny_model),
        "OUT": str(tmp_path / "set"),
        "SLURM_ARRAY_JOB_ID": "77",
    }


def script(number: int) -> str:
    return re.findall(r"^```bash\n(.*?)^```$", MANUAL.read_text(), re.M | re.S)[number]


def test_a_slurm_array_is_requeued_and_completes(slurm: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "set"

    def task(number: int) -> subprocess.Popen[bytes]:
        variables = {**slurm, "SLURM_ARRAY_TASK_ID": str(number)}
        return subprocess.Popen(["bash", "-c", script(0)], env=variables)

    first = task(0)
    deadline = time.monotonic() + 120
    while not list(out.glob("receipts/*.json")):
        assert first.poll() is None, "the task ended before it made a shard"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.send_signal(signal.SIGUSR1)  # its time is nearly up
    assert first.wait(timeout=60) == 0
    assert (tmp_path / "scontrol.log").read_text() == "requeue 77_0\n"
    assert not (out / "manifest.json").exists()
    both = [task(0), task(1)]
    assert [each.wait(timeout=300) for each in both] == [0, 0]
    assert len(open_set(out)) == 60


def test_accelerate_on_many_nodes_completes(
    slurm: dict[str, str], digit_folder: Path, tiny_model: Path, tmp_path: Path
) -> None:
    variables = {**slurm, "SLURM_NTASKS": "2"}
    subprocess.run(["bash", "-c", script(1)], env=variables, check=True, timeout=300)
    calm = tmp_path / "calm"
    generate(TINY, f"folder:{digit_folder}", str(tiny_model), calm, device="cpu", workers=1)
    assert open_set(tmp_path / "set").id == open_set(calm).id
