"""`qwench chat`: questions in, answers out; thinking has a budget and goes to stderr."""

import os
import signal
import stat
import sys
from io import UnsupportedOperation
from pathlib import Path
from typing import Annotated, Any

import typer

from . import out as out_
from . import screen
from .errors import ExitCode
from .options import KeepGoing, Model, Talk, Writer, Writing, fill, refuse, served

EPILOG = """\b
examples:
  qwench chat --model smollm2 "What is the capital of France?"
  git diff | qwench chat "Write a commit message:" - --think-budget 512 > message.txt
  qwench chat --prompts questions.jsonl --think-budget low --batch 8 > answers.jsonl
"""

HELP = (
    "/help /reset /undo /retry /save FILE /load FILE /system TEXT /budget N "
    '/model NAME /stats /quit; end a line with \\ to go on below, or write many between lines of """'
)


#: what keeps answers to rows
JOB = ("out", "limit", "keep_going", "force")


def chat(
    ctx: typer.Context,
    prompt: Annotated[
        list[str] | None, typer.Argument(help="The question; - is standard input.", show_default=False)
    ] = None,
    model: Model = "Qwen/Qwen3-0.6B",
    *,
    writing: Writing,
    hide_thinking: Annotated[bool, typer.Option("--hide-thinking", help="Do not show the thinking.")] = False,
    seed: Annotated[int | None, typer.Option(help="For the same answer again.", show_default=False)] = None,
    prompts: Annotated[str | None, typer.Option(help="Rows of prompt, question or messages, - for stdin.")] = None,
    out: Annotated[str, typer.Option(help="With --prompts: .jsonl or .parquet to keep the answers in.")] = "-",
    limit: Annotated[int, typer.Option(min=0, help="With --prompts: rows at most, 0 for all.")] = 0,
    keep_going: KeepGoing = False,
    force: Annotated[bool, typer.Option("--force", help="With --out: begin anew over what is there.")] = False,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 4,
    sweep: Annotated[str | None, typer.Option(help="Budgets, as 0,256,1024: --prompts at each of them.")] = None,
    answer_field: Annotated[str, typer.Option(help="With --sweep: the field with the right answer.")] = "answer",
    plot: Annotated[str | None, typer.Option(help="With --sweep: draw the curves into this .png.")] = None,
    continue_: Annotated[str | None, typer.Option("--continue", help="Transcript to go on with and to keep.")] = None,
    runtime: Writer,
    shown: Talk,
) -> None:
    """Talk to a model, with a budget for its thinking.

    The answer goes to stdout, the thinking to stderr; without a prompt a terminal becomes a session.
    """
    from ..ops import chat as op
    from ..ops.base.errors import QwenchError
    from ..ops.base.paths import check_output

    if prompts is None:
        refuse(ctx, "there is no --prompts", "batch", "sweep", "plot", "answer_field", *JOB)
    else:
        refuse(ctx, "--prompts writes rows", "continue_", "hide_thinking")
    if sweep is None:
        refuse(ctx, "there is no --sweep", "plot", "answer_field")
    else:
        refuse(ctx, "--sweep sets the budgets", "think_budget")
        refuse(ctx, "--sweep prints a table of all rows", *JOB)
    if out == "-":
        refuse(ctx, "standard output is no file to write over", "force")
    if not (shown.json or prompts):
        refuse(ctx, "only JSON has room for them", "logprobs")
    own = {"slots": batch if prompts else 1, "model": served(ctx, runtime, model)}
    options = fill(op.ChatOptions, ctx.params, runtime=runtime, **own, **writing)
    if prompts is None and (sweep or plot):
        raise QwenchError(f"{'--sweep' if sweep else '--plot'} needs questions", "name them: --prompts FILE", 2)
    if prompts is not None:
        if prompt:
            raise QwenchError("--prompts and a prompt do not go together", "leave one out", ExitCode.USAGE)
        if sweep is None:
            _many(
                shown,
                op.many(options, fill(op.JobOptions, ctx.params, rows=prompts), sys.stdin.buffer),
                out,
                keep_going,
            )
            return
        where = Path(plot) if plot else None
        budgets = [b.strip() for b in sweep.split(",") if b.strip()]
        if not shown.json:
            shown.data(SWEEP)
        events = op.sweep(options, prompts, budgets, answer_field, where, sys.stdin.buffer)
        result = shown.run(events, None if shown.json else lambda row: shown.data(_point(row)))
        if shown.json:
            shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
        elif where:
            shown.talk(f"drawn: {where}")
        return
    transcript = Path(continue_) if continue_ else None
    if transcript:
        check_output(transcript, "the transcript")
    session = op.Chat(options)
    words = list(prompt or ())
    if not words and not sys.stdin.isatty():
        words = ["-"]
    elif words and "-" not in words and _is_piped():
        words.append("-")
    text = "\n".join(_piped(shown) if w == "-" else w for w in words).strip("\n") if words else None
    if text is not None and not text.strip():
        raise QwenchError("the prompt is empty", "give a prompt, or pipe one in", ExitCode.USAGE)
    shown.run(session.load())
    if transcript and transcript.exists():
        session.open(transcript)
    show = _Show(shown, not hide_thinking)
    if text is not None:
        show.turn(session, text)
        if transcript:
            session.save(transcript)
        return
    _session(shown, session, show, transcript)


def _many(shown: out_.Out, events: Any, out: str, keep_going: bool) -> None:
    """Rows with their answers: printed, or kept in a file."""
    result = shown.run(events, shown.document if out == "-" else None)
    if out != "-" and shown.json:
        shown.document(result | {"choices": shown.choices, "warnings": shown.warnings})
    elif out != "-":
        shown.talk(out_.rows_done(result))
    if result["failed"] + result["bad"] and not keep_going:
        raise typer.Exit(ExitCode.FAILED)


#: head of the table that --sweep prints
SWEEP = "  budget  accuracy  thinking  answer   cut  seconds  tokens/s"


def _point(row: dict[str, Any]) -> str:
    return (
        f"{row['budget']:8d} {row['accuracy']:8.1%} {row['thinking_tokens']:10.1f} {row['answer_tokens']:7.1f}"
        f" {row['cut']:5.0%} {row['seconds']:8.1f} {row['tokens_per_second']:9.1f}"
    )


def _is_piped() -> bool:
    """Somebody sends something: standard input is a pipe or a file, no terminal and no /dev/null."""
    try:
        mode = os.fstat(sys.stdin.fileno()).st_mode
    except UnsupportedOperation:  # of a program that calls this one, and has no descriptor
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _piped(streams: out_.Out) -> str:
    """Standard input as text; of bytes that are not UTF-8 it is said how they are read."""
    from ..ops.base.errors import QwenchError
    from ..ops.base.events import Warned
    from ..ops.text.decode import Undecodable, read_text

    try:
        text, note = read_text(sys.stdin.buffer.read())
    except Undecodable as error:
        raise QwenchError(f"standard input {error}".partition(", `--encoding`")[0], "give UTF-8") from error
    if note:
        streams.run(iter([Warned("encoding", f"standard input {note}".partition(" that `--encoding`")[0])]))
    return text


class _Show:
    """Pieces as they come: thinking dim on stderr, the answer on stdout."""

    def __init__(self, streams: out_.Out, thinking: bool) -> None:
        self.streams, self.thinking = streams, thinking and not streams.quiet

    def turn(self, session: Any, text: str) -> None:
        """One question and its answer; Ctrl-C ends the answer and keeps it, a second one leaves."""
        pressed = 0

        def interrupted(*_: Any) -> None:
            nonlocal pressed
            pressed += 1
            if pressed > 1:
                raise KeyboardInterrupt
            session.stop()

        before = signal.signal(signal.SIGINT, interrupted)
        self.kind = ""
        try:
            result = self.streams.run(session.turn(text), None if self.streams.json else self._piece)
        finally:
            signal.signal(signal.SIGINT, before)
        if self.streams.json:
            self.streams.document(result | {"choices": self.streams.choices, "warnings": self.streams.warnings})
            return
        self.streams.piece("\n")
        self.streams.talk(screen.paint(_footer(result), "dim"))

    def _piece(self, row: dict[str, Any]) -> None:
        if row["kind"] == "thinking":
            if self.thinking:
                self.streams.thought(row["text"], "dim")
        else:
            if self.kind == "thinking" and self.thinking:
                self.streams.thought("\n\n")
            self.streams.piece(row["text"])
        self.kind = row["kind"]


def _footer(turn: dict[str, Any]) -> str:
    parts = [f"{turn['answer_tokens']} tokens"]
    if turn["closed_by"]:
        parts.append(f"{turn['thinking_tokens']} of thinking, closed by {turn['closed_by']}")
    if turn["finish"] == "length":
        parts.append("cut at --max-tokens")
    if turn["tokens_per_second"]:
        parts.append(f"{turn['tokens_per_second']:.1f} tokens/s")
    return f"[{', '.join(parts)}]"


def _session(streams: out_.Out, session: Any, show: _Show, transcript: Path | None) -> None:
    """Questions from the terminal until its end."""
    from contextlib import suppress

    from ..ops.base.errors import QwenchError

    with suppress(ImportError):
        # Line editing and history come with the import.
        import readline  # noqa: F401
    streams.talk(f"{HELP}\nCtrl-C stops an answer, Ctrl-D leaves")
    cleared = False
    while True:
        try:
            line = _line(streams, "> ")
            while line.endswith("\\"):
                line = line[:-1] + "\n" + _line(streams, "... ")
            if line.strip() == '"""':
                line = ""
                while (more := _line(streams, "... ")).strip() != '"""':
                    line += more + "\n"
        except EOFError:
            streams.thought("\n")
            return
        except KeyboardInterrupt:
            streams.thought("\n")
            if cleared:
                return
            cleared = True
            streams.talk("Ctrl-C once more leaves")
            continue
        cleared = False
        if not line.strip():
            continue
        try:
            if line.startswith("/") and line.split()[0] not in ("/think", "/no_think"):
                if _command(streams, session, show, *line.split(maxsplit=1)):
                    return
            else:
                show.turn(session, line)
            if transcript:
                session.save(transcript)
        except QwenchError as error:
            streams.error(error.message, error.hint, error.code)


def _line(streams: out_.Out, prompt: str) -> str:
    """A line from the terminal; where stdout is a file or a pipe, the prompt is talk."""
    if sys.stdout.isatty():
        return input(prompt)
    streams.thought(prompt)
    return input()


def _command(streams: out_.Out, session: Any, show: _Show, name: str, rest: str = "") -> bool:
    """A line that begins with a slash; True leaves the session."""
    if name in ("/quit", "/exit", "/bye"):
        return True
    if name == "/reset":
        session.reset()
    elif name == "/undo":
        question = session.undo()
        streams.talk(f"taken back: {question}" if question else "nothing to take back")
    elif name == "/retry":
        question = session.undo()
        if question is None:
            streams.talk("nothing to try again")
        else:
            session.seed += 1
            show.turn(session, question)
    elif name in ("/save", "/load") and rest:
        (session.save if name == "/save" else session.open)(Path(rest.strip()))
        streams.talk(f"{len(session.messages)} messages")
    elif name == "/system":
        session.instruct(rest or None)
    elif name == "/budget":
        from ..ops.writing.thinking import budget_of

        session.budget = budget_of(rest.strip() or "-1")
    elif name == "/model" and rest:
        streams.run(session.switch(rest.strip()))
    elif name == "/model":
        for one in session.writer.models:
            streams.talk(one + (" (this one)" if one == session.writer.name else ""))
    elif name == "/stats":
        for turn in session.turns:
            streams.talk(_footer(turn))
    else:
        if name != "/help":
            streams.talk(f"unknown command: `{screen.one_line(name)}`")
        streams.talk(HELP)
    return False
