"""Flags: bundles, options from parameters, refusals, groups, variables, and what messages advise."""

from __future__ import annotations

import ast
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from qwench.cli import config
from qwench.cli.commands import Command, register
from qwench.cli.main import COMMANDS, GROUPS, app
from qwench.cli.options import RUNTIME, Talk, expanded, fill, refuse, runtime
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.runtime import Runtime
from typer.main import get_command
from typer.testing import CliRunner

from tests import tiny
from tests.conftest import Run

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Inner:
    include: tuple[str, ...] = ()
    limit: int = 3


@dataclass(frozen=True)
class Asked:
    name: str
    out: str = ""
    read: Inner = field(default_factory=Inner)
    runtime: Runtime = field(default_factory=Runtime)


seen: list[Any] = []


def planted(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument()],
    include: Annotated[list[str] | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option()] = 5,
    offset: Annotated[int, typer.Option()] = 0,
    *,
    runtime: runtime("device", "threads"),
    streams: Talk,
) -> None:
    """A command of a group."""
    if limit == 0:
        refuse(ctx, "nothing is shown", "offset", "name")
    seen[:] = [fill(Asked, ctx.params, runtime=runtime), streams]


def planted_app(**variables: str) -> tuple[typer.Typer, tuple[Command, ...]]:
    made = typer.Typer()
    commands = (
        Command(("judge", "score"), planted, "", "Judge"),
        Command(("judge", "list"), planted, "", "Judge"),
        Command(("flat",), planted, "", "Judge"),
    )

    @made.callback()
    def root(ctx: typer.Context) -> None:
        ctx.default_map = config.defaults(commands, FILE)

    register(made, commands, {"judge": "Judges."})
    return made, commands


FILE = {"threads": 7, "judge": {"limit": 9, "score": {"device": "cuda"}, "list": {"nope": 1}}, "flat": {"x": {}}}


def test_a_group_of_two_words(monkeypatch: pytest.MonkeyPatch) -> None:
    made, commands = planted_app()
    text = CliRunner().invoke(made, ["judge", "--help"]).output
    assert "score" in text and "list" in text and "Judges." in text
    assert "judge" in CliRunner().invoke(made, ["--help"]).output
    done = CliRunner().invoke(made, ["judge", "score", "a", "--include", "x", "--include", "y", "--json"])
    assert done.exit_code == 0, done.output
    options, streams = seen
    assert options == Asked("a", "", Inner(("x", "y"), 9), Runtime(device="cuda", threads=7))
    assert streams.json and not streams.quiet
    assert CliRunner().invoke(made, ["judge", "list", "b", "--threads", "2"]).exit_code == 0
    assert seen[0] == Asked("b", "", Inner((), 9), Runtime(threads=2))
    monkeypatch.setenv("QWENCH_JUDGE_LIMIT", "11")
    monkeypatch.setenv("QWENCH_JUDGE_SCORE_LIMIT", "12")
    monkeypatch.setenv("QWENCH_LIMIT", "13")
    for path, wanted in ((("judge", "score"), 12), (("judge", "list"), 11), (("flat",), 13)):
        assert CliRunner().invoke(made, [*path, "c"]).exit_code == 0
        assert seen[0].read.limit == wanted
    assert config.unknown(commands, FILE) == ["section `flat.x`", "key `judge.list.nope`"]


def test_values_of_repeatable_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = planted_app()
    for value, wanted in (("one two", ("one two",)), ('["a b", "c"]', ("a b", "c")), ("a=1", ("a=1",))):
        monkeypatch.setenv("QWENCH_INCLUDE", value)
        assert CliRunner().invoke(made, ["flat", "n"]).exit_code == 0
        assert seen[0].read.include == wanted
    with pytest.raises(QwenchError, match="not a list"):
        config.many("[1,", "QWENCH_INCLUDE")


def test_flags_without_use_are_refused() -> None:
    made, _ = planted_app()
    done = CliRunner().invoke(made, ["flat", "n", "--limit", "0", "--offset", "1"])
    assert done.exit_code == 2
    for args in (["flat", "n", "--limit", "0"], ["flat", "n", "--offset", "1"]):
        assert CliRunner().invoke(made, args).exit_code in (0, 2)


REFUSED = [
    ("embed x --query q --out y.lance --model m", "--out"),
    ("embed x --query q --precision int8", "--precision"),
    ("embed x --query q --rebuild --prune", "--rebuild and --prune"),
    ("embed x --out y.lance -k 3", "-k"),
    ("embed x --out - --prune", "--prune"),
    ("search i q --rerank-from 3", "--rerank-from"),
    ("search i q --force", "--force"),
    ("search i --optimize --min-score 0.5", "--min-score"),
    ("rerank q f --selftest --top 3", "--top"),
    ("rerank q -0 --input json", "--input"),
    ("rerank q f --out o.jsonl --scores", "--scores"),
    ("rerank q f --force", "--force"),
    ("chat hi --batch 2", "--batch"),
    ("chat hi --answer-field a", "--answer-field"),
    ("chat hi --logprobs 2", "--logprobs"),
    ("chat --prompts f --continue t", "--continue"),
    ("chat --prompts f --sweep 0,1 --think-budget 3", "--think-budget"),
    ("chat --prompts f --sweep 0,1 --limit 3", "--limit"),
    ("chat hello --out a.jsonl", "--out"),
    ("chat --prompts f --force", "--force"),
    ("sample f --force", "--force"),
    ("convert a b --labels 2", "--labels"),
    ("convert a b --dry-run --verify bits", "--verify"),
    ("merge a b --out c --last 2", "--last"),
    ("merge a b --sweep t=0:1:0.5 --eval ppl:x --out c", "--out"),
    ("parscale-law --points p.csv --corpus pile", "--corpus"),
    ("parscale-law --device h100", "--device"),
    ("bench-kernels --model m --save s.json", "--save"),
    ("bench-kernels --model m --baseline b.json --plot p --fail-over 2%", "--baseline"),
    ("bench-kernels rms_norm --model m", "NAMES"),
    ("bench-kernels --model m --providers eager", "--providers"),
    ("bench-kernels --fail-over 3%", "--fail-over"),
]


@pytest.mark.parametrize(("line", "flag"), REFUSED, ids=[line for line, _ in REFUSED])
def test_a_mode_refuses_what_it_does_not_use(line: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 2, done.output
    assert "would do nothing" in done.output and flag in done.output


def test_every_flag_lands_somewhere() -> None:
    """A parameter that a command's function never reads, and no bundle or dataclass takes, would be dropped."""
    for command in COMMANDS:
        source = Path(sys.modules[command.run.__module__].__file__).read_text("utf-8")
        function = next(
            n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == command.run.__name__
        )
        read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
        filled = "ctx.params" in source
        for arg in [*function.args.args, *function.args.kwonlyargs]:
            assert arg.arg in read or filled, f"{command.name}: {arg.arg}"


def test_own_variables_beat_shared_ones(qwench: Run, tmp_path: Path) -> None:
    env = {"QWENCH_MODEL": "shared-model", "QWENCH_EMBED_MODEL": "own-model"}
    (tmp_path / "a.txt").write_text("text")
    done = qwench("embed", tmp_path / "a.txt", "--out", "-", env=env)
    assert "`own-model`" in done.stderr
    done = qwench("bench-kernels", "--list", "--json", env=env)
    assert done.returncode == 0 and "rms_norm" in json.loads(done.stdout)["kernels"]


def test_list_settings_of_the_environment(qwench: Run, tmp_path: Path) -> None:
    model = tiny.byte_decoder(tmp_path / "m")
    done = qwench("chat", "hi", "-m", model, "--max-tokens", "2", env={"QWENCH_STOP": "END"})
    assert done.returncode == 0, done.stderr
    done = qwench("convert", model, tmp_path / "o", "--dry-run", env={"QWENCH_LORA": str(tmp_path / "no-adapter")})
    assert done.returncode == 1 and "no-adapter" in done.stderr
    args = ("merge", model, model, "--out", tmp_path / "o", "--method", "linear", "--dry-run")
    done = qwench(*args, env={"QWENCH_MERGE_PARAM": "nonsense=1"})
    assert done.returncode in (1, 2) and "nonsense" in done.stderr


def test_runtime_is_declared_once() -> None:
    assert set(RUNTIME) == set(Runtime.__dataclass_fields__)
    for path in [*(ROOT / "cli").glob("*.py")]:
        if path.name in ("options.py", "parscale_law.py", "convert.py", "merge.py", "bench_kernels.py"):
            continue  # these have a --device or --dtype of another meaning
        for name in ("device", "dtype", "kernels", "threads", "quantize", "engine"):
            assert not re.search(rf"^    {name}: ", path.read_text("utf-8"), re.M), f"{path.name}: {name}"


def known_flags() -> set[str]:
    found = {"--help", "--version", "--install-completion", "--show-completion"}

    def walk(command: Any) -> None:
        for parameter in command.params:
            found.update(o for o in (*parameter.opts, *parameter.secondary_opts) if o.startswith("--"))
        for below in getattr(command, "commands", {}).values():
            walk(below)

    walk(get_command(app))
    return found


#: flags of other programs that messages and docs rightly name
FOREIGN = {"--no-deps", "--force-reinstall", "--merge", "--query-gpu", "--repo-type"}


def test_every_flag_that_a_message_names_exists() -> None:
    known = known_flags() | FOREIGN
    for path in [*(ROOT / "ops").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", node.value):
                    assert flag in known, f"{path.relative_to(ROOT)}:{node.lineno}: {flag}"


def test_groups_are_described() -> None:
    assert set(GROUPS) == {c.path[0] for c in COMMANDS if len(c.path) > 1}
    assert all(len(c.path) <= 2 for c in COMMANDS)
    assert expanded(planted).__signature__.parameters["device"].default == "auto"
