"""Kill whatever makes a set, hundreds of times, and compare every byte with a calm run's.

    python -m benchmarks.chaos --kills 500

Kills are SIGKILL, at random moments: of workers and of whole jobs (local, ray), and of ranks
(accelerate), which are forked here with the variables that the launcher sets, and rerun with
another world size each time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, report

ANCHORS, SHARD = 60, 5
FLAGS = ["--positives=2", "--steps=3", "--batch=4", f"--shard-size={SHARD}", "--device=cpu"]
ENGINES = ("local", "accelerate", "ray")


def make_inputs(folder: Path) -> list[str]:
    """Write a tiny diffusion model and digits as PNG files; return the arguments that name them."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    from clsp.shards.images import open_images

    torch.set_num_threads(1)
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(folder / "model")
    digits = open_images("digits")
    (folder / "images").mkdir()
    for index in range(ANCHORS):
        digits.read(index).save(folder / "images" / f"{index:04d}.png")
    return [f"--images=folder:{folder / 'images'}", f"--model={folder / 'model'}", *FLAGS]


def fork(arguments: list[str], log: Path, **variables: str) -> int:
    """Run `clsp generate` in a fork of this process, which has imported it; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(variables)
        from clsp.generate.__main__ import main

        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def descendants(pid: int) -> list[int]:
    """Return the living processes below `pid`."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found, front = [], [pid]
    while front:
        front = [child for child, parent in parents.items() if parent in front]
        found += front
    return found


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def workers_of(engine: str, driver: int) -> list[int]:
    """Return the processes that make shards for `driver`."""
    below = descendants(driver)
    if engine == "ray":
        return [pid for pid in below if _title(pid).startswith("ray::_Actor")]
    servers = [pid for pid in below if "forkserver" in _title(pid)]
    # The fork server's forks keep its title; they are the ones it is the parent of.
    return [pid for server in servers for pid in descendants(server)]


def kill(pid: int) -> bool:
    """Kill a process; False when it was gone already."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def chaos(engine: str, kills: int, inputs: list[str], out: Path, dice: random.Random) -> dict:
    """Make the set at `out`, killing `kills` times on the way; return what it took."""
    arguments = [*inputs, f"--out={out}", "--workers=2"]
    arguments += ["--engine=ray"] if engine == "ray" else []
    log, began = out.with_suffix(".log"), time.monotonic()
    done, runs, codes = 0, 0, [0]
    while done < kills or any(codes) or not (out / "manifest.json").exists():
        if (out / "manifest.json").exists() and not any(codes):
            _undo(out, dice)  # done too early to have been killed often enough
        runs += 1
        world = dice.choice([2, 3]) if engine == "accelerate" else 1
        ranks = [
            {"RANK": str(r), "WORLD_SIZE": str(world)} if world > 1 else {} for r in range(world)
        ]
        alive = [fork(arguments, log, **variables) for variables in ranks]
        codes = []
        while alive:
            time.sleep(dice.uniform(0.02, 0.5))
            for driver in list(alive):
                ended, status = os.waitpid(driver, os.WNOHANG)
                if ended:
                    alive.remove(driver)
                    codes.append(os.waitstatus_to_exitcode(status))
            if done < kills and alive:
                victims = alive if world > 1 else workers_of(engine, alive[0])
                # A whole job now and then, but not while it starts for the tenth time.
                if dice.random() < (0.1 if victims else 0.005 / runs):
                    victims = alive
                done += bool(victims) and kill(dice.choice(victims))
        print(f"{engine}: run {runs}, {done} kills, exit codes {codes}", file=sys.stderr)
    return {"kills": done, "runs": runs, "seconds": round(time.monotonic() - began, 1)}


def _undo(out: Path, dice: random.Random) -> None:
    (out / "manifest.json").unlink()
    receipts = sorted((out / "receipts").iterdir())
    for receipt in dice.sample(receipts, len(receipts) // 2):
        receipt.unlink()


def compare(out: Path, calm: Path) -> dict[str, int]:
    """Count what is not as it should be in `out`; all zero when it is the calm run's set."""
    from clsp.shards.store import open_set

    def content(folder: Path) -> dict[str, bytes]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    found, expected = content(out), content(calm)
    shards = open_set(out)
    shards.verify(deep=True)
    keys = list(shards.keys)
    return {
        "files_that_differ": sum(
            found.get(name) != expected.get(name) for name in found.keys() | expected.keys()
        ),
        "records_lost": ANCHORS - len(set(keys)),
        "records_twice": len(keys) - len(set(keys)),
        "temporaries_left": sum(name.endswith(".tmp") for name in found),
    }


def main() -> None:
    """Kill until the count is reached, for each engine asked for, and report the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500, help="for each engine")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="default: all three")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where chaos.json is written")
    options = parser.parse_args()
    import clsp.generate.job  # noqa: F401  (once, for all forks)

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = make_inputs(folder)
        calm = folder / "calm"
        driver = fork([*inputs, f"--out={calm}", "--workers=1"], folder / "calm.log")
        if os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]):
            sys.exit((folder / "calm.log").read_text())
        for engine in (options.engine or ENGINES) if options.kills else ():
            out, dice = folder / engine, random.Random(options.seed)
            results[engine] = chaos(engine, options.kills, inputs, out, dice) | compare(out, calm)
    report("chaos", {"anchors": ANCHORS, **results}, options.results)
    wrong = ("files_that_differ", "records_lost", "records_twice", "temporaries_left", "partial")
    sys.exit(any(result.get(name) for result in results.values() for name in wrong))


if __name__ == "__main__":
    main()
