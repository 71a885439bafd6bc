"""Kill whatever makes a set, hundreds of times, and compare every byte with a calm run's.

    python -m benchmarks.chaos --kills 500

or in pieces, `--kills 100 --engine ray --seed N --add` for several N, all at one commit.

Kills are SIGKILL, at random moments: of workers (starting ones too) and, every twentieth, of the
whole job (local, ray); and of ranks (accelerate), which are forked here with the variables that
the launcher sets, and rerun with another world size each time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, report, tiny_unet
from benchmarks.victims import descendants, kill, title_of, victims_of, workers_left
from clsp.evaluate.about import commit

ANCHORS, SHARD = 120, 5
FLAGS = ["--positives=2", "--steps=3", "--batch=4", f"--shard-size={SHARD}", "--device=cpu"]
# Seconds between two kills at most. A new actor of Ray takes seconds to import torch.
PAUSES = {"local": 0.2, "accelerate": 0.2, "ray": 1.0}
WRONG = ("files_that_differ", "records_lost", "records_twice", "temporaries_left", "workers_left")


def make_inputs(folder: Path) -> list[str]:
    """Write a tiny diffusion model and digits as PNG files; return the arguments that name them."""
    import torch
    from diffusers import DDPMPipeline, DDPMScheduler

    from clsp.shards.images import open_images

    torch.set_num_threads(1)
    DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler()).save_pretrained(folder / "model")
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


def chaos(engine: str, kills: int, inputs: list[str], out: Path, dice: random.Random) -> dict:
    """Make the set at `out`, killing `kills` times on the way; return what it took."""
    arguments = [*inputs, f"--out={out}", "--workers=2"]
    arguments += ["--engine=ray"] if engine == "ray" else []
    log, began = out.with_suffix(".log"), time.monotonic()
    done, runs, codes = 0, 0, [0]
    below: dict[int, str] = {}  # what was below the jobs that were killed, by its title
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
            time.sleep(dice.uniform(0.02, PAUSES[engine]))
            for driver in list(alive):
                ended, status = os.waitpid(driver, os.WNOHANG)
                if ended:
                    alive.remove(driver)
                    codes.append(os.waitstatus_to_exitcode(status))
            if done < kills and alive and (victims := victims_of(engine, alive, done)):
                victim = dice.choice(victims)
                below |= {pid: title_of(pid) for pid in descendants(victim)}
                done += kill(victim)
        print(f"{engine}: run {runs}, {done} kills, exit codes {codes}", file=sys.stderr)
    seconds = round(time.monotonic() - began, 1)
    return {"kills": done, "runs": runs, "seconds": seconds, "workers_left": workers_left(below)}


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


def earlier_pieces(path: Path, engines: Iterable[str], seed: int) -> dict[str, Any]:
    """Return the counts of each engine in the results at `path`; none where there are none.

    Raises ValueError when they are of another commit, or have this seed already.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    if found["commit"] != commit():
        raise ValueError(f"{path} is of commit {found['commit']}, and this is {commit()}")
    for engine in engines:
        if seed in found.get(engine, {}).get("seeds", []):
            raise ValueError(f"{path} has kills of {engine} by seed {seed} already")
    return {name: found[name] for name in PAUSES if name in found}


def add_up(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the sums of two pieces' counts, and the seeds of both."""
    none: dict[str, Any] = {name: [] if name == "seeds" else 0 for name in new}
    both = {name: (old or none)[name] + value for name, value in new.items()}
    return both | {"seconds": round(both["seconds"], 1)}


def main() -> None:
    """Kill until the count is reached, for each engine asked for, and report the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=500, help="for each engine")
    parser.add_argument("--engine", choices=PAUSES, action="append", help="default: all three")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where chaos.json is written")
    parser.add_argument("--add", action="store_true", help="to the counts of other seeds")
    options = parser.parse_args()
    import clsp.generate.job  # noqa: F401  (once, for all forks)

    engines, before = options.engine or list(PAUSES), {}
    if options.add:
        try:
            before = earlier_pieces(options.results / "chaos.json", engines, options.seed)
        except ValueError as error:
            parser.error(str(error))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["RAY_TMPDIR"] = str(folder / "logs")  # Ray's go with it.
        inputs = make_inputs(folder)
        calm = folder / "calm"
        for rank in "01":  # One after the other, undisturbed, and without a fork server to start.
            variables = {"RANK": rank, "WORLD_SIZE": "2"}
            driver = fork([*inputs, f"--out={calm}"], folder / "calm.log", **variables)
            if os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]):
                sys.exit((folder / "calm.log").read_text())
        for engine in engines:
            out, dice = folder / engine, random.Random(options.seed)
            found = {"seeds": [options.seed]}
            found |= chaos(engine, options.kills, inputs, out, dice) | compare(out, calm)
            results[engine] = add_up(before.get(engine, {}), found)
            report("chaos", {"anchors": ANCHORS, **before, **results}, options.results)
    sys.exit(any(result[name] for result in results.values() for name in WRONG))


if __name__ == "__main__":
    main()
