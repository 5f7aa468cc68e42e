"""Real pseudo-terminals: where rows go while a bar is up, and what a terminal is never sent."""

from __future__ import annotations

import ast
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest
import torch
from qwench.cli import screen
from safetensors.torch import save_file

from tests import tiny
from tests.conftest import Run
from tests.forks import Forks

ROOT = Path(__file__).parents[2]
#: the command with a bar from the first unit of work on
PROGRAM = "import sys; from qwench.cli import out; from qwench.cli.main import main; out.PATIENCE = -1.0; main()"
BAR = "\x1b[?25l"  # rich hides the cursor while a bar is up
Terminal = Callable[..., tuple[int, str]]


@pytest.fixture
def terminal(tmp_path: Path, forks: Forks) -> Terminal:
    """`terminal("{} embed ... > file")`: a line of bash on a pseudo-terminal; its exit code and what the screen got."""

    def run(line: str, **env: str) -> tuple[int, str]:
        program = shlex.join(forks.asking(PROGRAM))
        own = {k: v for k, v in os.environ.items() if not k.startswith("QWENCH")}
        own |= {"QWENCH_HOME": str(tmp_path / "home"), "TERM": "xterm", "NO_COLOR": "1"} | env
        own["QWENCH_NATIVE_CACHE"] = os.environ["QWENCH_NATIVE_CACHE"]
        script = f"set -o pipefail; {line.format(program)}"
        child = pexpect.spawn("bash", ["-c", script], env=own, cwd=str(tmp_path), timeout=180, dimensions=(24, 100))
        screen_text = child.read().decode("utf-8", "replace")
        child.close()
        return child.exitstatus if child.exitstatus is not None else -1, screen_text

    return run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and files of every command that streams rows."""
    folder = tmp_path_factory.mktemp("inputs")
    tiny.cross_encoder(folder / "cross")
    tiny.qwen3_embedding(folder / "embedding")
    tiny.byte_decoder(folder / "chat")
    (folder / "docs").mkdir()
    for i in range(12):
        (folder / "docs" / f"{i:02}.txt").write_text(f"Document {i} tells of rivers.\n" * 12)
    (folder / "lines.txt").write_text("".join(f"line {i} about rivers\n" for i in range(40)))
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(6)))
    for name, factor in (("a", 1.0), ("b", 2.0)):
        (folder / name).mkdir()
        save_file({f"w{i}": torch.ones(4) * factor for i in range(9)}, folder / name / "model.safetensors")
    return folder


#: command -> (its words, exit code, how much of a row does not change from run to run)
STREAMING = {
    "embed --out -": ("embed docs -m embedding --out - --chunk-tokens 32", 0),
    "embed --query": ("embed docs -m embedding --query rivers -k 9 --chunk-tokens 32", 0),
    "rerank": ("rerank rivers docs -m cross", 0),
    "rerank --stable": ("rerank rivers - -m cross --stable < lines.txt", 0),
    "chat --prompts": ("chat -m chat --prompts prompts.jsonl --max-tokens 4 --seed 1", 0),
    "diff": ("diff a b", 3),
}


def steady(text: str) -> list[object]:
    """Lines without what a clock put into them."""

    def rows() -> list[object]:
        clocks = ("seconds", "first_token_seconds", "tokens_per_second")
        return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in text.splitlines()]

    return rows() if text.startswith("{") else list(text.splitlines())


@pytest.mark.parametrize("words", STREAMING.values(), ids=STREAMING)
def test_rows_go_where_stdout_goes(words: tuple[str, int], inputs: Path, terminal: Terminal, qwench: Run) -> None:
    line, code = words
    where = f"cd {shlex.quote(str(inputs))}; "
    args, _, stdin = line.partition(" < ")
    plain = qwench(*shlex.split(args), input=(inputs / stdin).read_bytes() if stdin else None, cwd=inputs)
    assert plain.returncode == code, plain.stderr
    wanted = steady(plain.stdout)
    assert len(wanted) > 5
    target = inputs.parent / f"{inputs.name}.out"
    for redirected, env in (
        (f"> {target}", {}),
        (f"| cat > {target}", {}),
        (f"> {target}", {"QWENCH_NO_PROGRESS": "1"}),
    ):
        target.unlink(missing_ok=True)
        status, shown = terminal(f"{where}{{}} {line} {redirected}", **env)
        assert status == code, shown
        assert (BAR in shown) is (not env)
        assert steady(target.read_text("utf-8")) == wanted
        assert not any(row in shown for row in plain.stdout.splitlines() if row.strip())
    status, shown = terminal(f"{where}{{}} {line} | head -1 > {target}")
    assert status in (code, 1) and "Traceback" not in shown and "rror" not in shown
    assert steady(target.read_text("utf-8")) == wanted[:1]


def test_rows_on_the_terminal_stand_above_the_bar(inputs: Path, terminal: Terminal) -> None:
    status, shown = terminal(f"cd {shlex.quote(str(inputs))}; {{}} diff a b")
    assert status == 3 and BAR in shown
    assert all(f"~ w{i}  " in shown for i in range(9))


def test_only_out_writes_to_the_streams() -> None:
    for path in (ROOT / "cli").rglob("*.py"):
        if path.name == "out.py":
            continue
        used = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(n, ast.Call)}
        assert not used & {"print", "sys.stdout.write", "sys.stderr.write", "sys.stdout.buffer.write"}, path


EVIL = "x\x1b]0;owned\x07\x1b[31m\x9b2J\x7fy"


def test_nobody_elses_escapes() -> None:
    assert screen.visible(EVIL + "\tä\n") == "x\\x1b]0;owned\\x07\\x1b[31m\\x9b2J\\x7fy\tä\n"
    assert screen.one_line("a\nhint: b\t\r") == "a\\nhint: b\\t\\x0d"
    assert json.loads(screen.json_safe(json.dumps(EVIL, ensure_ascii=False))) == EVIL
    assert not set(screen.json_safe(json.dumps(EVIL, ensure_ascii=False))) & {"\x1b", "\x9b", "\x7f"}


def test_tensor_names_paths_and_passages_are_escaped(tmp_path: Path, qwench: Run, terminal: Terminal) -> None:
    name = "w\x1b[31m\nhint: rm -rf /"
    for folder, factor in (("a", 1.0), ("b", 2.0)):
        (tmp_path / folder).mkdir()
        save_file({name: torch.ones(4) * factor}, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text("{}")
    model = tiny.cross_encoder(tmp_path / "cross")
    encoder = tiny.qwen3_embedding(tmp_path / "embedding")
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "n\x1b[2Jame.txt").write_text("The passage says \x1b]0;owned\x07 and \x9b2J.")
    missing = "no\x1b[2Jthing"
    runs = [
        qwench("inspect", tmp_path / "a", "--tensors"),
        qwench("diff", tmp_path / "a", tmp_path / "b"),
        qwench("convert", tmp_path / "a", tmp_path / "c", "--dry-run"),
        qwench("inspect", missing),
        qwench("embed", docs, "--query", "passage", "-m", encoder),
        qwench("embed", docs, "--query", "passage", "-m", encoder, "--json"),
        qwench("embed", docs, "--out", tmp_path / "i.lance", "-m", encoder),
        qwench("search", tmp_path / "i.lance", "passage"),
        qwench("rerank", "passage", docs, "-m", model),
    ]
    for done in runs:
        assert "Traceback" not in done.stderr
        assert not set(done.stdout + done.stderr) & {"\x1b", "\x9b", "\x07"}, done.args
        assert "\nhint: rm" not in done.stdout + done.stderr
    assert all(r.returncode in (0, 3) for i, r in enumerate(runs) if i != 3), [r.stderr for r in runs]
    assert "\\x1b[31m\\nhint" in runs[0].stdout and "\\x1b[2J" in runs[3].stderr
    # Lines and paths for programs stay as they came, except on a terminal.
    evil = "about \x1b]0;owned\x07 passages"
    done = qwench("rerank", "passage", "-", "-m", model, input=evil)
    assert done.stdout == evil + "\n"
    (tmp_path / "line").write_text(evil)
    status, shown = terminal(f"{{}} rerank passage - -m {shlex.quote(str(model))} < line", QWENCH_NO_PROGRESS="1")
    assert status == 0 and "\\x1b]0;owned\\x07" in shown and "\x1b]0" not in shown
    listed = qwench("search", tmp_path / "i.lance", "passage", "--files-only")
    assert "n\x1b[2Jame.txt" in listed.stdout


@pytest.mark.parametrize("command", ["embed", "rerank", "tokenizer", "gates"])
def test_code_of_a_model_folder_never_runs(tmp_path: Path, qwench: Run, command: str) -> None:
    make = tiny.tiny_bert if command in ("embed", "tokenizer") else tiny.cross_encoder
    folder = make(tmp_path / "model")
    ran = tmp_path / "ran"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "never_heard_of", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    config["auto_map"]["AutoModelForSequenceClassification"] = "own.M"
    config["auto_map"]["AutoModelForCausalLM"] = "own.M"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import PretrainedConfig, PreTrainedModel\n"
        "class C(PretrainedConfig):\n    model_type = 'never_heard_of'\n"
        "class M(PreTrainedModel):\n    config_class = C\n"
    )
    if command == "tokenizer":
        (folder / "tokenizer.json").unlink(missing_ok=True)
        (folder / "vocab.txt").write_text("[PAD]\n[UNK]\na\n")
        made = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.T", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(made))
    words = {
        "embed": ("embed", "-", "--model", folder, "--out", "-"),
        "rerank": ("rerank", "q", "-", "--model", folder, "--kind", "cross-encoder"),
        "tokenizer": ("embed", "-", "--model", folder, "--out", "-"),
        "gates": ("gates", folder, "out.txt"),
    }[command]
    (tmp_path / "out.txt").write_text("a text of some words")
    done = qwench(*words, input="y\n" * 9, cwd=tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert not ran.exists()
    assert "unexpected" not in done.stderr and len(done.stderr.strip().splitlines()) <= 3
    assert "never runs a model's code" in done.stderr


def test_usage_errors_are_json_too_and_name_where_a_value_comes_from(qwench: Run, tmp_path: Path) -> None:
    for args in (("embed", "--nope"), ("embed", "--dim", "x"), ("frobnicate",)):
        done = qwench(*args, "--json")
        told = json.loads(done.stderr)
        assert done.returncode == told["code"] == 2 and done.stdout == "" and told["error"]
    done = qwench("embed", "x", "--out", "-", env={"QWENCH_DIM": "abc"})
    assert done.returncode == 2 and "`QWENCH_DIM`" in done.stderr
    config = tmp_path / "home" / "config" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('[embed]\ndim = "abc"\n')
    done = qwench("embed", "x", "--out", "-")
    assert done.returncode == 2 and "config.toml" in done.stderr


def test_streams_that_are_closed(terminal: Terminal) -> None:
    status, shown = terminal("{} models --json >&-")
    assert status == 1 and "standard output is closed" in shown
    status, shown = terminal("{} models --json <&- > found; wc -l < found")
    assert status == 0 and int(shown.split()[0]) >= 2
    assert terminal("{} models --json 2>&- > found")[0] == 0


def test_json_is_json_on_any_stdout(tmp_path: Path) -> None:
    code = "from qwench.cli import out; out.Out(True).document({'a': 'é\u2028中'})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True
    )
    assert json.loads(done.stdout) == {"a": "é\u2028中"}
