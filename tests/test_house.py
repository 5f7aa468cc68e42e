"""The shared cli: help, streams, exit codes, errors, config, completions, generated files."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qwench.cli import errors, out
from qwench.cli.commands import Command
from qwench.cli.main import COMMANDS
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Kept, Started

from tests import tiny
from tests.conftest import Run

ROOT = Path(__file__).parents[1]
PATHS = [c.path for c in COMMANDS]
NAMES = [c.path[0] for c in COMMANDS]
HEAVY = ["torch", "transformers", "tokenizers", "lancedb", "pyarrow", "numpy", "safetensors", "huggingface_hub", "rich"]


@pytest.mark.parametrize("args", [[], *map(list, PATHS)], ids=["root", *[c.name for c in COMMANDS]])
def test_help_imports_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['qwench', *sys.argv[1:], '--help']\n"
        "from qwench.cli.main import main\n"
        "try: main()\n"
        f"finally: print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules], len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    heavy, count = done.stdout.splitlines()[-1].removeprefix("HEAVY ").rsplit(" ", 1)
    assert heavy == "[]"
    assert int(count) < 500


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: c.name)
def test_every_command_is_documented(qwench: Run, command: Command) -> None:
    name, epilog = command.name, command.epilog
    text = qwench(*command.path, "--help").stdout
    examples = [line for line in epilog.splitlines() if "qwench " in line]
    assert len(examples) == 3
    assert [line.strip() for line in text.splitlines() if line.strip()][-3:] == [line.strip() for line in examples]
    assert "--json" in text
    assert f"`qwench {name}`" in (ROOT / "README.md").read_text("utf-8")


def test_the_root_lists_commands_and_exit_codes(qwench: Run) -> None:
    text = qwench("--help").stdout
    assert all(f"\n  {name} " in text for name in NAMES)
    assert "130 interrupted" in text and "..." not in text.split("Commands:")[1].split("exit codes")[0]
    assert qwench("--version").stdout.startswith("qwench 0.")


def test_exit_codes_and_streams(qwench: Run) -> None:
    for args, code in (([], 2), (["frobnicate"], 2), (["embed", "--nope"], 2), (["search", "no.lance", "x"], 1)):
        done = qwench(*args)
        assert done.returncode == code, args
        assert done.stdout == "" or code == 2
        assert "Traceback" not in done.stderr


def test_errors_in_json(qwench: Run) -> None:
    done = qwench("search", "no.lance", "x", "--json")
    assert done.returncode == 1 and done.stdout == ""
    error = json.loads(done.stderr)
    assert set(error) == {"error", "hint", "code"} and "no.lance" in error["error"] and error["code"] == 1


def test_the_unexpected_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    def fails() -> None:
        raise ZeroDivisionError("a / b")

    out.start()
    monkeypatch.delenv("QWENCH_DEBUG", raising=False)
    with pytest.raises(typer.Exit) as caught:
        errors.boundary(fails)()
    assert caught.value.exit_code == 1
    text = capsys.readouterr().err
    assert "ZeroDivisionError" in text and "QWENCH_DEBUG=1" in text and "Traceback" not in text
    monkeypatch.setenv("QWENCH_DEBUG", "1")
    with pytest.raises(typer.Exit):
        errors.boundary(fails)()
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (QwenchError("no", "do", code=3), 3, "no"),
        (FileNotFoundError(2, "No such file", "a.txt"), 1, "`a.txt`"),
        (OSError(28, "No space left on device"), 1, "no space left"),
        (MemoryError(), 1, "out of memory"),
        (KeyError("x"), 1, "unexpected KeyError"),
    ],
)
def test_exceptions_become_sentences(error: Exception, code: int, text: str) -> None:
    message, _, got = errors.explain(error)
    assert got == code and text in message and not message.endswith(".")


def test_interrupt_is_130() -> None:
    import typer

    def stops() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        errors.boundary(stops)()
    assert caught.value.exit_code == 130


def test_an_interrupt_says_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a run that leaves something says that it can be gone on with."""
    import typer

    def events(event: object, tidied: list[int]) -> Iterator[object]:
        try:
            yield event
            raise KeyboardInterrupt
        finally:
            tidied.append(1)

    for event, said in (
        (Started("prompts"), "interrupted"),
        (Kept(str(tmp_path / "gone.part")), "interrupted"),
        (Kept(str(tmp_path)), f"interrupted; what was written is kept in `{tmp_path}`, and the same command goes on"),
        (Kept(str(tmp_path), "--resume"), f"is kept in `{tmp_path}`, and the same command with --resume goes on"),
    ):
        tidied: list[int] = []
        with pytest.raises(typer.Exit):
            errors.boundary(lambda event=event, tidied=tidied: out.start().run(events(event, tidied)))()
        assert capsys.readouterr().err.rstrip("\n").endswith(said) and tidied
    # What has come to its end has nothing left to go on with.
    out.start().run(iter([Kept(str(tmp_path)), Finished({})]))
    assert out.current.going_on() == ""
    out.start()


def test_a_full_disk_promises_no_more_than_there_is(tmp_path: Path) -> None:
    out.start()
    assert errors.explain(OSError(28, "No space left on device"))[1] == "free some space"
    out.current.kept = Kept(str(tmp_path))
    assert "the same command goes on" in (errors.explain(OSError(28, "No space left on device"))[1] or "")
    out.start()


URLS = [
    "embed docs --out s3://b/n.lance",
    "embed docs --out s3://b/n.npy --dry-run",
    "embed s3://b/docs --out n.lance",
    "embed docs --out n.jsonl --model file:///m",
    "search s3://b/n.lance words",
    "rerank words s3://b/docs",
    "rerank --queries s3://b/q.jsonl docs",
    "rerank words docs --out s3://b/o.jsonl",
    "chat hello --continue s3://b/t.jsonl",
    "chat --prompts s3://b/q.jsonl",
    "chat --prompts docs --sweep 0 --plot s3://b/p.png",
    "chat hello --model hf://Qwen/Qwen3-0.6B",
    "chat --prompts docs --out s3://b/a.jsonl",
    "sample s3://b/q.jsonl",
    "sample docs --out s3://b/s.jsonl",
    "sample docs --shots s3://b/s.jsonl",
    "convert none s3://b/out",
    "convert none s3://b/out.gguf --dry-run",
    "convert hf://a/b out",
    "gates none words --plot s3://b/p.png",
    "merge a b --out s3://b/out",
    "merge a b --out s3://b/out --dry-run",
    "merge a b --out out --plot s3://b/p.png",
    "merge s3://b/a s3://b/c --out out",
    "merge --config s3://b/r.yaml --out out",
    "merge --trajectory s3://b/run --out out",
    "merge a b --sweep t=0,1 --eval ppl:s3://b/text",
    "merge a b --sweep t=0,1 --eval ppl:docs --best --out s3://b/out",
    "inspect s3://b/m",
    "diff s3://b/m docs",
    "parscale-recycle none s3://b/out --data docs --steps 1",
    "parscale-recycle s3://b/m out --data docs --steps 1",
    "parscale-recycle none out --config s3://b/o.toml",
    "reward score s3://b/a.jsonl --model m",
    "reward score docs --model m --out s3://b/o.jsonl",
    "reward score docs --model s3://b/m",
    "reward eval s3://b/p.jsonl",
    "reward eval docs --plot s3://b/p.png",
    "reward eval docs --against s3://b/o.jsonl",
    "reward best-of s3://b/r.jsonl",
    "reward train s3://b/p.jsonl --model m --out out",
    "reward train docs --model m --out s3://b/out",
    "reward train docs --model s3://b/m --out out",
    "parscale-law --points s3://b/p.csv",
    "parscale-law --predict s3://b/m",
    "parscale-law --plot s3://b/p.png",
    "polymath run s3://b/d --out out",
    "polymath run docs --out s3://b/out",
    "polymath score s3://b/a",
    "polymath score . --compare s3://b/a",
    "reliability measure s3://b/a.jsonl",
    "reliability fit s3://b/a.jsonl",
    "reliability rationales docs --out s3://b/a.jsonl",
    "bench-kernels --save s3://b/r.json",
    "bench-kernels --baseline s3://b/r.json",
    "bench-kernels --plot s3://b/pictures",
    "bench-kernels --model s3://b/m",
]


def invoked(*args: str) -> tuple[int, str]:
    """Exit code and stderr of a command that is refused before it begins, in this process."""
    from qwench.cli.main import app
    from typer.testing import CliRunner

    done = CliRunner().invoke(app, args)
    return done.exit_code, done.stderr


@pytest.mark.parametrize("line", URLS)
def test_no_command_takes_a_url_for_a_path(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").write_text("words")
    code, said = invoked(*line.split())
    assert code == 2 and " is a URL, and only files and folders of this machine" in said, said
    assert [p.name for p in tmp_path.iterdir()] == ["docs"]


PICTURES = [
    "chat --prompts docs --sweep 0 --model ./none --plot",
    "gates ./none words --plot",
    "merge ./none ./other --out out --plot",
    "merge ./none ./other --sweep t=0,1 --eval ppl:docs --plot",
    "parscale-law --plot",
    "reward eval docs --plot",
    "polymath score ./none --plot",
    "reliability measure docs --plot",
    "reliability fit docs --plot",
]


@pytest.mark.parametrize("line", PICTURES)
def test_a_picture_is_refused_before_the_work(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The models do not exist: it is the picture that is spoken of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").write_text("words")
    (tmp_path / "folder.png").mkdir()
    for plot, code, said in (
        ("p.gif", 2, "cannot end in `.gif`"),
        ("no/p.png", 1, "the folder of the picture is not there"),
        ("folder.png", 1, "a folder is in its place"),
    ):
        assert invoked(*line.split(), plot)[0] == code and said in invoked(*line.split(), plot)[1]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, told = invoked(*line.split(), "p.png")
    assert code == 1 and "drawing needs matplotlib" in told and "qwench[plot]" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["docs", "folder.png"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("bench-kernels --plot no/pictures", "the folder of the pictures is not there"),
        ("bench-kernels --plot docs", "a file is in its place"),
        ("bench-kernels --save no/r.json", "the folder of the result is not there"),
        ("chat hello --model ./none --continue no/t.jsonl", "the folder of the transcript is not there"),
        ("convert ./none no/out", "the folder of the output is not there"),
        ("merge ./none ./other --out no/out", "the folder of the output is not there"),
        ("parscale-recycle ./none no/out --data docs --steps 1", "the folder of the output is not there"),
        ("polymath run docs --model ./none --out no/out", "the folder of the output is not there"),
        ("reliability rationales docs --model ./none --out no/o.jsonl", "the folder of the output is not there"),
        ("embed docs --model ./none --out docs/n.lance", "cannot lie in a file"),
        ("embed docs --model ./none --out n.xyz", "unknown output format"),
    ],
)
def test_an_output_is_refused_before_the_work(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").write_text("words")
    code, told = invoked(*line.split())
    assert code in (1, 2) and said in told, told
    assert [p.name for p in tmp_path.iterdir()] == ["docs"]


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    command = f"{sys.executable} -m qwench.cli.main models --json | head -0"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


def test_settings_come_from_flags_environment_file_defaults(qwench: Run, tmp_path: Path) -> None:
    config = tmp_path / "home" / "config" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text('model = "from-file"\ndim = 7\nodd = 1\n[embed]\nchunk_tokens = 99\n[nonsense]\na = 1\n')

    def origin(setting: str, **env: str) -> tuple[str, str]:
        rows = json.loads(qwench("config", "--json", env=env).stdout)["settings"]
        return next((str(r["value"]), r["origin"]) for r in rows if r["setting"] == setting)

    assert origin("embed.model") == ("from-file", str(config))
    assert origin("embed.chunk_tokens") == ("99", str(config))
    assert origin("embed.model", QWENCH_MODEL="from-env") == ("from-env", "QWENCH_MODEL")
    assert origin("embed.chunk_tokens", QWENCH_EMBED_CHUNK_TOKENS="5") == ("5", "QWENCH_EMBED_CHUNK_TOKENS")
    assert origin("search.model", QWENCH_MODEL="from-env") == ("None", "default")
    assert origin("embed.device") == ("auto", "default")
    (tmp_path / "a.txt").write_text("text")
    # The command itself sees the same values.
    done = qwench("embed", tmp_path / "a.txt", "--out", tmp_path / "a.lance")
    assert "`from-file`" in done.stderr and done.returncode == 1
    assert "`odd`" in done.stderr and "`nonsense`" in done.stderr
    done = qwench("embed", tmp_path / "a.txt", "--out", tmp_path / "a.lance", "--model", "from-flag")
    assert "`from-flag`" in done.stderr
    config.write_text("model = ")
    done = qwench("config")
    assert done.returncode == 1 and "config.toml" in done.stderr


def test_colours_only_where_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert out.paint("x", "red", Terminal()) != "x"
    assert out.paint("x", "red", sys.__stdin__) == "x" or sys.__stdin__.isatty()
    monkeypatch.setenv("TERM", "dumb")
    assert out.paint("x", "red", Terminal()) == "x"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert out.paint("x", "red", Terminal()) != "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert out.paint("x", "red", Terminal()) == "x"


def test_generated_files_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "scripts" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run `make docs`: {done.stdout}{done.stderr}"


@pytest.mark.parametrize(("shell", "file"), [("bash", "qwench.bash"), ("zsh", "_qwench"), ("fish", "qwench.fish")])
def test_completions_parse(shell: str, file: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n", ROOT / "completions" / file], check=True)


def test_completion_protocol(qwench: Run) -> None:
    def bash(words: str) -> list[str]:
        env = {"_QWENCH_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
        return qwench(env=env).stdout.split()

    assert bash("qwench em") == ["embed"]
    assert bash("qwench embed --model mi") == ["minilm"]
    assert "--chunk-tokens" in bash("qwench embed --ch")
    env = {"_QWENCH_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "qwench search --"}
    assert "--hybrid" in qwench(env=env).stdout


def test_completion_in_a_real_bash(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("qwench")
    if not shutil.which("bash") or not program.exists():
        pytest.skip("bash and an installed qwench are needed")
    script = (
        f"source {ROOT}/completions/qwench.bash; COMP_WORDS=(qwench sea); COMP_CWORD=1; "
        '_qwench_completion qwench; echo "${COMPREPLY[@]}"'
    )
    env = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout.split() == ["search"]


def test_the_demo_finds_the_file_that_holds_each_answer(tmp_path: Path) -> None:
    tiny.minilm()
    for name in ("README.md", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    exe = Path(sys.executable).parent / "qwench"
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "demo.sh", exe], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = re.findall(r"^(\S+):\d+  0\.\d+$", done.stdout, re.MULTILINE)
    assert found == ["docs/embed.md", "README.md", "CONTRIBUTING.md"]
