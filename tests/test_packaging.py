"""The built wheel has every file, and runs in an environment with nothing but typer."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import shutil

    source = tmp_path_factory.mktemp("source")
    for name in ("cli", "ops", "completions"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation", "-q", "-w", out]
    subprocess.run(command, check=True)
    return next(out.glob("*.whl"))


def test_every_file_is_in_the_wheel(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for wing in ("cli", "ops"):
        for path in [*(ROOT / wing).rglob("*.py"), *(ROOT / wing).rglob("data/*")]:
            assert f"qwench/{path.relative_to(ROOT)}" in names
    for completion in ("completions/qwench", "site-functions/_qwench", "vendor_completions.d/qwench.fish"):
        assert any(completion in name for name in names)
    assert {n.split("/")[0] for n in names if ".dist-info" not in n and ".data" not in n} == {"qwench"}


def test_the_wheel_runs_with_typer_alone(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    site = Path(
        sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv"), "platbase": str(tmp_path / "venv")})
    )
    zipfile.ZipFile(wheel).extractall(site)
    here = Path(sysconfig.get_path("purelib"))
    pydantic = ("pydantic", "pydantic_core", "typing_inspection", "annotated_types")
    for name in ("typer", "shellingham", "annotated_doc", "typing_extensions.py", *pydantic):
        if (here / name).exists():
            (site / name).symlink_to(here / name)
    for args in (["--help"], ["--version"], ["embed", "--help"]):
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / "python", "-m", "qwench.cli.main", *args], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "qwench" in done.stdout
