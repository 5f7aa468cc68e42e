"""Who may import whom, read from the import statements."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"models": {"text", "checkpoint", "kernels"}, "merging": {"checkpoint"}}
FLOORS |= {"recycling": {"models", "checkpoint", "text"}}
FLOORS |= {"checkpoint": set(), "text": set(), "index": set(), "kernels": set()}
#: modules of ops that anyone may use
SHARED = {"choice", "errors", "events", "settings"}


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """(absolute module name, whether at the top of the file) of everything a file imports."""
    tree = ast.parse(path.read_text("utf-8"))
    top = {id(n) for n in ast.walk(tree)} - {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef) for n in ast.walk(f)
    }
    package = ["qwench", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module] if node.module else [f"{module}.{a.name}" for a in node.names]
            yield from ((name, id(node) in top) for name in names)


def violations(path: Path) -> list[str]:
    """What a file imports against the rules of the house."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    found = []
    for name, top in imported(path):
        first, *rest = name.split(".")
        wing = rest[0] if first == "qwench" and rest else ""
        bad = wing == "cli" and parts[0] != "cli"
        if parts[0] == "cli":
            bad |= top and first not in sys.stdlib_module_names and first not in ("typer", "qwench")
            bad |= top and wing == "ops" and len(rest) > 1 and rest[1] not in SHARED
        elif parts[0] == "ops":
            bad |= first in ("typer", "rich", "click")
            target = rest[1] if wing == "ops" and len(rest) > 1 else ""
            if len(parts) > 2 and target and target not in SHARED:
                bad |= target != parts[1] and target not in FLOORS[parts[1]]
            elif target and target not in SHARED | set(FLOORS):
                bad |= target in {n for n, *_ in commands()}
        if bad:
            found.append(f"{'/'.join(parts)} imports {name}")
    return found


def commands() -> list[tuple]:
    from qwench.cli.main import COMMANDS

    return COMMANDS


def files() -> list[Path]:
    return sorted([*(ROOT / "cli").rglob("*.py"), *(ROOT / "ops").rglob("*.py")])


def test_import_rules() -> None:
    assert len(files()) > 20
    assert [v for path in files() for v in violations(path)] == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("ops/planted.py", "import typer"),
        ("ops/planted.py", "from qwench.cli import out"),
        ("ops/planted.py", "from .embed import embed"),
        ("ops/text/planted.py", "from ..models.hub import resolve"),
        ("ops/text/planted.py", "from .. import search"),
        ("cli/planted.py", "import numpy"),
        ("cli/planted.py", "from ..ops.models import hub"),
    ],
)
def test_a_planted_violation_is_found(place: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(line)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert len(violations(path)) == 1


def test_ops_neither_print_nor_exit() -> None:
    for path in (ROOT / "ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "sys.exit", "exit", "input"), path


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text("utf-8").splitlines())) > 400}
    assert long == {}
