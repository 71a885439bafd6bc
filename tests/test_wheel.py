"""The wheel holds every package under `clsp`, and nothing else at the top level."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("shards", "generate", "train", "evaluate")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, target = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    # A copy, so that the build leaves nothing in the checkout and takes nothing stale from it.
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "runs")
    shutil.copytree(ROOT, source / "clsp", ignore=skip)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        f"--wheel-dir={target}",
    ]
    subprocess.run([*command, str(source / "clsp")], check=True, timeout=300)
    (path,) = target.iterdir()
    return path


def test_the_wheel_has_every_module_and_recipe(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [p for name in PACKAGES for p in (ROOT / name).rglob("*") if p.suffix != ".pyc"]
    expected = {f"clsp/{p.relative_to(ROOT)}" for p in files if p.suffix in (".py", ".toml")}
    expected |= {f"clsp/{p.name}" for p in ROOT.glob("*.py")} | {"clsp/py.typed"}
    found = {name for name in names if ".dist-info/" not in name}
    assert found == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_nothing_leaks_to_the_top_level(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(tmp_path / "env")}))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    subprocess.run([*command, f"--target={site}", str(wheel)], check=True, timeout=300)
    top = {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")} - {"bin"}
    assert top == {"clsp"}

    # The dependencies come from this environment, the package from the empty one.
    python = tmp_path / "env" / "bin" / "python"
    script = (
        "import importlib.util as u, sys; "
        f"assert not any(u.find_spec(n) for n in {PACKAGES}), 'leaked'; "
        f"sys.path.append({sysconfig.get_path('purelib')!r}); "
        "import clsp.cli, clsp.generate.config; print(clsp.generate.config.__file__)"
    )
    command = [python, "-I", "-c", script]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    assert result.stdout.strip() == str(site / "clsp" / "generate" / "config.py")
