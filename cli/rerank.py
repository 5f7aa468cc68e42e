"""`qwench rerank`: candidates in, best first out."""

import sys
from typing import Annotated, Any

import typer

from . import hits
from . import out as out_
from .errors import ExitCode
from .options import RUNTIME, TALK, KeepGoing, Model, Talk, fill, refuse, runtime

EPILOG = """\b
examples:
  rg -l TODO . | qwench rerank "error handling" - --top 5
  qwench rerank "what is qwench?" README.md docs --scores
  qwench rerank "refund policy" tickets.jsonl --text-field body --min-score 0.5 --json
"""

#: what --selftest listens to
SELFTEST = (*("model", "kind", "instruction", "selftest", "max_tokens", "long", "batch_tokens"), *RUNTIME, *TALK.flags)
FORMATS = ("text", "json", "trec")
Words = Annotated[str, typer.Argument(help="The question.", show_default=False)]
Files = Annotated[list[str] | None, typer.Argument(help="Files, folders, or - for standard input.", show_default=False)]


def rerank(
    ctx: typer.Context,
    query: Words = "",
    files: Files = None,
    model: Model = "Qwen/Qwen3-Reranker-0.6B",
    kind: Annotated[str, typer.Option(help="auto, lm, classifier or cross-encoder.")] = "auto",
    instruction: Annotated[str | None, typer.Option(help="What counts as relevant, for models with a prompt.")] = None,
    queries: Annotated[str | None, typer.Option(help="File of queries: id TAB text, or JSON lines.")] = None,
    run: Annotated[str | None, typer.Option(help="TREC run to rank anew; FILES are its corpus.")] = None,
    input: Annotated[str, typer.Option(help="Standard input holds lines, paths or json; auto looks.")] = "auto",
    nul: Annotated[bool, typer.Option("-0", help="Standard input names files, NUL-separated.")] = False,
    text_field: Annotated[str | None, typer.Option(help="Column with the text, for rows.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Column that names a row.")] = None,
    whole: Annotated[
        bool | None,
        typer.Option(
            "--whole/--passages", help="One candidate per file, or passages; folders are cut.", show_default=False
        ),
    ] = None,
    chunk_tokens: Annotated[int, typer.Option(min=0, help="Tokens per passage, 0 for 512.")] = 0,
    include: Annotated[list[str] | None, typer.Option(help="Only files that match this glob; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No files that match this glob; repeatable.")] = None,
    top: Annotated[int, typer.Option("--top", "-n", min=0, help="Most results per query, 0 for all.")] = 0,
    min_score: Annotated[float | None, typer.Option(help="Least score; exit 3 when nothing has it.")] = None,
    stable: Annotated[bool, typer.Option("--stable", help="Keep the order of the input.")] = False,
    format: Annotated[str, typer.Option(help="text, json or trec.")] = "text",
    scores: Annotated[bool, typer.Option("--scores", help="Text format: the score before each line.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Also margin, tokens and time of each document.")] = False,
    max_tokens: Annotated[int | None, typer.Option(help="Longest input, prompt included.", show_default=False)] = None,
    long: Annotated[str, typer.Option(help="Longer documents: truncate, max (best window) or error.")] = "truncate",
    batch_tokens: Annotated[int, typer.Option(min=0, help="Tokens per batch, 0 for auto.")] = 0,
    selftest: Annotated[bool, typer.Option("--selftest", help="Test the model on the published pairs.")] = False,
    keep_going: KeepGoing = False,
    out: Annotated[str, typer.Option(help=".jsonl or .parquet to keep rows in; the same command goes on.")] = "-",
    force: Annotated[bool, typer.Option("--force", help="With --out: begin anew over what is there.")] = False,
    *,
    runtime: runtime("revision", "offline", "device", "dtype", "kernels", "quantize", "threads"),
    streams: Talk,
) -> None:
    """Rank lines, files, passages or rows by a query.

    Prints the candidates best first, as they came; exit code 3 when nothing passes.
    """
    from ..ops import rerank as op
    from ..ops.base.errors import QwenchError

    if selftest:
        refuse(ctx, "--selftest scores the published pairs", *(n for n in ctx.params if n not in SELFTEST))
    if format not in FORMATS:
        raise QwenchError(f"unknown --format: `{format}`", f"use {', '.join(FORMATS)}", ExitCode.USAGE)
    paths = list(files or ())
    if queries is not None and query:
        # With a file of queries, the first argument is a candidate too.
        paths.insert(0, query)
        query = ""
    if not paths and not nul and not selftest and sys.stdin.isatty():
        raise QwenchError(
            "no candidates given", "name files or folders, or pipe lines into standard input", ExitCode.USAGE
        )
    if format == "trec":
        refuse(ctx, "lines of a TREC run have no room for it", "explain")
    if nul:
        refuse(ctx, "-0 reads file names", "input")
    if out == "-":
        refuse(ctx, "standard output is no file to write over", "force")
    else:
        refuse(ctx, "--out keeps rows", "format", "scores")
    options = fill(op.RerankOptions, ctx.params, query=query, paths=tuple(paths) or ("-",), runtime=runtime)
    if selftest:
        _selftest(streams, op.selftest(options))
        return
    many = queries is not None
    show = {
        "json": lambda row: streams.document(op.row_of(row, options)),
        "trec": lambda row: streams.raw(_trec(row)),
        "text": lambda row: _text(streams, row, many, scores, explain),
    }["json" if streams.json and format == "text" else format]
    result = streams.run(op.rerank(options, sys.stdin.buffer), show)
    if out != "-" and streams.json:
        streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
    if result["pairs"]:
        streams.talk(_done(result))
    if result["failed"] and not keep_going:
        raise typer.Exit(ExitCode.FAILED)
    if not result["passed"]:
        streams.talk("nothing passes" if result["documents"] else "nothing to rank: the input is empty")
        raise typer.Exit(ExitCode.NO)


def _trec(row: dict[str, Any]) -> str:
    return f"{row['query_id']} Q0 {'_'.join(row['doc_id'].split())} {row['rank']} {row['score']:.6f} qwench"


def _text(streams: out_.Out, row: dict[str, Any], many: bool, scores: bool, explain: bool) -> None:
    columns = [row["query_id"]] if many else []
    if scores or explain:
        columns.append(f"{row['score']:.4f}")
    if explain:
        columns += [f"{row['margin']:+.3f}", str(row["tokens"]), f"{row['seconds'] * 1000:.0f}ms"]
        columns.append("cut" if row["truncated"] else "whole")
    if row["kind"] == "passage" and not columns:
        hits.show(streams, {"row": None, "score": row["score"], **row["record"]}, False, set())
    else:
        streams.raw("\t".join([*columns, row["label"]]))


def _done(result: dict[str, Any]) -> str:
    line = (
        f"{result['pairs']} ranked in {out_.clock(result['seconds'])}, {result['documents_per_second']:.1f} documents/s"
    )
    return line + (f", {result['failed']} inputs left out" if result["failed"] else "")


def _selftest(streams: out_.Out, events: Any) -> None:
    result = streams.run(events)
    if streams.json:
        streams.document(result)
    else:
        for row in result["rows"]:
            verdict = "right" if row["right"] else "WRONG"
            streams.data(f"{verdict}\t{row['own']:.4f} > {row['other']:.4f}\t{row['how']}\t{row['query']}")
    if not result["right"]:
        streams.talk(
            f"`{result['model']}` ranks the published pairs in the wrong order: a wrong template, a damaged head, "
            "or not a reranker"
        )
        raise typer.Exit(ExitCode.NO)
