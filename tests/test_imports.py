"""Who may import whom, read from the import statements."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: the floors of ops from the ground up: each may import those before it
FLOORS = (
    *("base", "checkpoint", "text", "kernels", "index", "models", "conversion", "scoring", "writing", "merging"),
    *("jobs", "training", "grading", "games", "audio", "bench", "streams", "serving"),
)


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
            # `from package import module`: the module is what is imported
            inside = module in ("qwench", "qwench.ops") or not node.module
            names = [f"{module}.{a.name}" for a in node.names] if inside else [module]
            yield from ((name, id(node) in top) for name in names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_module", "importlib.import_module"):
            literal = node.args[0] if node.args else None
            if isinstance(literal, ast.Constant) and isinstance(literal.value, str):
                yield literal.value, False


def violations(path: Path) -> list[str]:
    """What a file imports against the rules of the house."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    wing, place = parts[0], parts[1]
    found = []
    for name, top in imported(path):
        first, *rest = name.replace("-", "_").split(".")
        ours = first == "qwench"
        target = rest[1] if ours and len(rest) > 1 and rest[0] == "ops" else None
        bad = ours and rest[:1] == ["cli"] and wing != "cli"
        if wing == "cli":
            bad |= top and first not in sys.stdlib_module_names and first not in ("typer", "qwench")
            bad |= top and target is not None and target != "base"
        elif first in ("typer", "rich", "click"):
            bad = True
        elif target is not None and target != place:
            bad |= target not in FLOORS  # a door
            if len(parts) > 2:
                bad |= target in FLOORS and FLOORS.index(target) > FLOORS.index(place)
        if bad:
            found.append(f"{'/'.join(parts)} imports {name}")
    return found


def files() -> list[Path]:
    return sorted([*(ROOT / "cli").rglob("*.py"), *(ROOT / "ops").rglob("*.py")])


def test_import_rules() -> None:
    assert len(files()) > 20
    assert [v for path in files() for v in violations(path)] == []


def test_every_room_has_its_place() -> None:
    """A file at the top of ops is the door of a command; a folder is a floor."""
    from qwench.cli.main import COMMANDS

    doors = {p.stem for p in (ROOT / "ops").glob("*.py")} - {"__init__"}
    assert doors <= {path[0].replace("-", "_") for path in (c.path for c in COMMANDS)}
    assert {p.name for p in (ROOT / "ops").iterdir() if p.is_dir() and p.name != "__pycache__"} <= set(FLOORS)
    rooms = {*FLOORS, "cli", "__pycache__"}
    assert {p.name for p in (ROOT / "tests").iterdir() if p.is_dir()} <= rooms


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("ops/planted.py", "import typer"),
        ("ops/planted.py", "from qwench.cli import out"),
        ("ops/planted.py", "from .embed import embed"),
        ("ops/planted.py", "from . import parscale_recycle"),
        ("ops/planted.py", "from .parscale_recycle import recycle"),
        ("ops/planted.py", "from qwench.ops import bench_kernels"),
        ("ops/planted.py", "import qwench.ops.bench_kernels"),
        ("ops/planted.py", "import importlib\nimportlib.import_module('qwench.ops.bench-kernels')"),
        ("ops/planted.py", "def f():\n    from .helper_at_the_top import x"),
        ("ops/text/planted.py", "from ..models.hub import resolve"),
        ("ops/text/planted.py", "from .. import search"),
        ("ops/base/planted.py", "from ..checkpoint import reader"),
        ("ops/models/nets/planted.py", "from ...writing.generate import Generator"),
        ("ops/models/nets/planted.py", "from ... import writing"),
        ("ops/models/nets/planted.py", "def f():\n    from ...parscale_law import parscale_law"),
        ("ops/scoring/planted.py", "from ..writing import generate"),
        ("cli/planted.py", "import numpy"),
        ("cli/planted.py", "from ..ops.models import hub"),
        ("cli/planted.py", "from ..ops import embed"),
    ],
)
def test_a_planted_violation_is_found(place: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(line)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert len(violations(path)) == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("ops/planted.py", "from .models.hub import resolve\nfrom .base import events"),
        (
            "ops/models/nets/planted.py",
            "from ...kernels.choose import bind\nfrom ..hub import resolve\nfrom . import causal",
        ),
        ("ops/writing/planted.py", "from ..scoring import embedder"),
        ("cli/planted.py", "from ..ops.base.errors import QwenchError\ndef f():\n    from ..ops import embed"),
    ],
)
def test_what_is_allowed_is_not_found(place: str, line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    test_a = tmp_path / place
    test_a.parent.mkdir(parents=True)
    test_a.write_text(line)
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    assert violations(test_a) == []


def test_no_circle_runs() -> None:
    """No two modules import each other when they run; for annotations alone they may."""
    graph: dict[str, set[str]] = {}
    for path in files():
        name = ".".join(["qwench", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
        graph[name] = _running(path)
    known = set(graph)
    edges = {a: {b for b in targets if b in known and b != a} for a, targets in graph.items()}
    done: set[str] = set()

    def walk(at: str, way: list[str]) -> None:
        assert at not in way, " -> ".join([*way[way.index(at) :], at])
        if at not in done:
            for following in sorted(edges[at]):
                walk(following, [*way, at])
            done.add(at)

    for module in sorted(edges):
        walk(module, [])


def _running(path: Path) -> set[str]:
    """Modules a file imports at any time but for type checkers."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    package = ["qwench", *path.relative_to(ROOT).with_suffix("").parts[:-1]]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{a.name}" for a in node.names)}
    packages = {p.parent for p in files() if p.name == "__init__.py"}
    return {f for f in found if (ROOT / Path(*f.split(".")[1:])) not in packages}


def test_ops_neither_print_nor_exit() -> None:
    for path in (ROOT / "ops").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("print", "sys.exit", "exit", "input"), path


def test_files_stay_readable() -> None:
    long = {str(p.relative_to(ROOT)): n for p in files() if (n := len(p.read_text("utf-8").splitlines())) > 400}
    assert long == {}
