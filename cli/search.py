"""`qwench search`: a question becomes passages."""

from typing import Annotated

import typer

from . import hits
from .errors import ExitCode
from .options import Index, Talk, complete_model, fill, refuse, runtime

EPILOG = """\b
examples:
  qwench search notes.lance "how do I rebuild an index?"
  qwench search notes.lance "error handling" --where-path 'src/**/*.py' --files-only | xargs $EDITOR
  qwench search notes.lance "ENOSPC" --hybrid -k 3 --json | jq -r '"\\(.path):\\(.start_line)"'
"""

#: what --optimize without a question listens to
OPTIMIZE = ("index", "optimize", "force", "query", "json", "quiet", "verbose")


def search(
    ctx: typer.Context,
    index: Index,
    query: Annotated[str, typer.Argument(help="The question.", show_default=False)] = "",
    k: Annotated[int, typer.Option("-k", min=1, help="Most hits.")] = 10,
    min_score: Annotated[float | None, typer.Option(help="Least cosine similarity.")] = None,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Full text and vectors, fused by rank.")] = False,
    filter: Annotated[str | None, typer.Option(help="SQL condition on columns, such as \"lang = 'en'\".")] = None,
    where_path: Annotated[str | None, typer.Option(help="Glob on the path; ** spans folders.")] = None,
    files_only: Annotated[bool, typer.Option("--files-only", "-l", help="Paths alone, each once.")] = False,
    mark: Annotated[bool, typer.Option(help="Mark the sentence that fits best.")] = True,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Refuse any other than this model.", autocompletion=complete_model),
    ] = None,
    task: Annotated[str | None, typer.Option(help="Instruction for the query, for models that take one.")] = None,
    rerank: Annotated[
        str | None, typer.Option(help="Put the best hits in order with this reranker.", autocompletion=complete_model)
    ] = None,
    rerank_from: Annotated[int, typer.Option(min=1, help="With --rerank: hits it is given.")] = 50,
    optimize: Annotated[bool, typer.Option("--optimize", help="Build an approximate index first.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --optimize: also below 100,000 passages.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="Do not use an approximate index.")] = False,
    *,
    runtime: runtime("offline", "device", "dtype", "kernels", "threads"),
    streams: Talk,
) -> None:
    """Answer a question from an index.

    Prints path:line, score and passage, best first; exit code 3 when nothing passes.
    """
    from ..ops import search as op

    if rerank is None:
        refuse(ctx, "there is no --rerank", "rerank_from")
    if not optimize:
        refuse(ctx, "there is no --optimize", "force")
    elif not query:
        refuse(ctx, "no question is asked", *(p.name for p in ctx.command.params if p.name not in OPTIMIZE))
    if optimize:
        report = streams.run(op.optimize(index, force))
        if streams.json:
            streams.document(report)
        else:
            streams.talk(
                f"{report['index']} over {report['rows']} passages; "
                f"finds {report['recall_at_10']:.1%} of the exact top 10 ({report['sample']} queries)"
            )
        if not query:
            return
    options = fill(op.SearchOptions, ctx.params, mark=mark and not files_only, runtime=runtime)
    seen: set[str] = set()
    result = streams.run(op.search(options), lambda hit: hits.show(streams, hit, files_only, seen))
    if not result["hits"]:
        streams.talk("nothing passes")
        raise typer.Exit(ExitCode.NO)
