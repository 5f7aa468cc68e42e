"""`qwench embed`: files become vectors."""

import sys
from typing import Annotated, Any

import typer

from . import hits
from .errors import ExitCode
from .options import DryRun, KeepGoing, Model, Talk, fill, refuse, runtime
from .out import clock, size

EPILOG = """\b
examples:
  qwench embed docs README.md --out notes.lance --model minilm
  git ls-files -z | qwench embed -0 --out code.lance --chunk-tokens 256 --prune
  qwench embed tickets.jsonl --text-field body --id-field id --out tickets.parquet --dim 256
"""

Paths = Annotated[list[str] | None, typer.Argument(help="Files, folders, or - for standard input.", show_default=False)]


def embed(
    ctx: typer.Context,
    paths: Paths = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help=".lance, .parquet, .jsonl, .npy, .safetensors; - writes JSON lines."),
    ] = None,
    query: Annotated[str | None, typer.Option(help="Answer this at once, keep no index.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="With --query: most hits.")] = 5,
    model: Model = "Qwen/Qwen3-Embedding-0.6B",
    include: Annotated[list[str] | None, typer.Option(help="Only files that match this glob; repeatable.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="No files that match this glob; repeatable.")] = None,
    hidden: Annotated[bool, typer.Option("--hidden", help="Hidden files too.")] = False,
    ignore_files: Annotated[bool, typer.Option(help="Honour .gitignore.")] = True,
    nul: Annotated[bool, typer.Option("-0", help="File names come on standard input, NUL-separated.")] = False,
    encoding: Annotated[str | None, typer.Option(help="Encoding of files that are not UTF-8.")] = None,
    text_field: Annotated[str | None, typer.Option(help="Column with the text, for rows.")] = None,
    id_field: Annotated[str | None, typer.Option(help="Column that names a row.")] = None,
    chunk_tokens: Annotated[int, typer.Option(min=0, help="Tokens per passage, 0 for 512 or the model's limit.")] = 0,
    chunk_overlap: Annotated[int, typer.Option(min=0, help="Tokens a passage repeats of the one before.")] = 0,
    on_long: Annotated[str, typer.Option(help="chunk; or one vector per file: truncate or error.")] = "chunk",
    role: Annotated[str, typer.Option(help="document or query: which prompt the texts get.")] = "document",
    task: Annotated[str | None, typer.Option(help="Instruction for queries, for models that take one.")] = None,
    prompt_name: Annotated[str | None, typer.Option(help="A prompt of the model, by name.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest input of the model.", show_default=False)] = None,
    dim: Annotated[int | None, typer.Option(help="Keep this many coordinates.", show_default=False)] = None,
    precision: Annotated[str, typer.Option(help="float32, float16, int8 or binary.")] = "float32",
    batch_tokens: Annotated[int, typer.Option(min=0, help="Tokens per batch, 0 for auto.")] = 0,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Make the output anew.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Drop what is gone.")] = False,
    keep_going: KeepGoing = False,
    dry_run: DryRun = False,
    *,
    runtime: runtime("revision", "offline", "device", "dtype", "kernels", "quantize", "threads"),
    streams: Talk,
) -> None:
    """Embed files into an index or a file of vectors.

    Runs again embed only what is new or changed; a killed run is completed by the next.
    """
    from ..ops import embed as op

    if not paths and not nul:
        raise _usage("no paths given", "name files or folders, or - for standard input")
    if out is None and query is None and not dry_run:
        raise _usage("no output given", "add --out NAME.lance, --out - for JSON lines, or --query TEXT")
    if on_long not in ("chunk", "truncate", "error"):
        raise _usage(f"unknown --on-long: `{on_long}`", "use chunk, truncate or error")
    if query is not None:
        refuse(ctx, "--query answers at once and keeps nothing", "out", "precision", "rebuild", "prune")
    else:
        refuse(ctx, "there is no --query", "k")
    if out == "-":
        refuse(ctx, "--out - writes rows and keeps nothing", "rebuild", "prune")
    options = fill(op.EmbedOptions, ctx.params, paths=tuple(paths or ()), runtime=runtime)
    names = sys.stdin.buffer if nul else None
    stdin = None if nul else sys.stdin.buffer
    if dry_run:
        result = streams.run(op.dry_run(options, stdin, names))
        streams.document(result) if streams.json else streams.data(_planned(result))
    elif query is not None:
        result = streams.run(op.answer(options, query, k, stdin, names), lambda h: hits.show(streams, h, False, set()))
        if not result["hits"]:
            raise typer.Exit(ExitCode.NO)
    else:
        result = streams.run(op.embed(options, stdin, names), streams.document)
        if streams.json and out != "-":
            streams.document(result | {"choices": streams.choices, "warnings": streams.warnings})
        streams.talk(_done(result))
    if result["failed"] and not keep_going:
        raise typer.Exit(ExitCode.FAILED)


def _usage(message: str, hint: str) -> Exception:
    from ..ops.base.errors import QwenchError

    return QwenchError(message, hint, ExitCode.USAGE)


def _done(result: dict[str, Any]) -> str:
    speed = f", {result['tokens_per_second']:,.0f} tokens/s" if result["tokens_per_second"] else ""
    parts = [f"{result['embedded']} embedded"]
    parts += [f"{result[n]} {n}" for n in ("unchanged", "pruned", "skipped", "failed") if result[n]]
    line = f"{', '.join(parts)}: {result['chunks']} passages in {clock(result['seconds'])}{speed}"
    if result["truncated"]:
        first = ", ".join(f"`{p}`" for p in result["truncated_paths"][:3])
        line += f"\n{result['truncated']} texts were cut to the model's length: {first}"
        line += ", ... (all of them with --json)" if len(result["truncated_paths"]) > 3 else ""
    if "rows" in result:
        line += f"\n{result['out']}: {result['rows']} passages, {size(result['bytes'])}"
    return line


def _planned(result: dict[str, Any]) -> str:
    seconds = "unknown" if result["seconds"] is None else clock(result["seconds"])
    return (
        f"{result['documents']} files, {result['chunks']} passages, {result['tokens']:,} tokens\n"
        f"about {seconds}, {size(result['bytes'])} on disk; {result['failed']} inputs cannot be read"
    )
