"""`qwench search`: a question becomes passages."""

from typing import Annotated

import typer

from . import hits, out
from .errors import ExitCode
from .options import Device, Dtype, Index, Json, Kernels, Offline, Quiet, Threads, Verbose, complete_model

EPILOG = """\b
examples:
  qwench search notes.lance "how do I rebuild an index?"
  qwench search notes.lance "error handling" --where-path 'src/**/*.py' --files-only | xargs $EDITOR
  qwench search notes.lance "ENOSPC" --hybrid -k 3 --json | jq -r '"\\(.path):\\(.start_line)"'
"""


def search(
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
    offline: Offline = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    kernels: Kernels = "auto",
    threads: Threads = 0,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Answer a question from an index.

    Prints path:line, score and passage, best first; exit code 3 when nothing passes.
    """
    from ..ops import search as op

    streams = out.start(json, quiet, verbose)
    if optimize:
        report = streams.run(op.optimize(index, force))
        if json:
            streams.document(report)
        else:
            streams.talk(
                f"{report['index']} over {report['rows']} passages; "
                f"finds {report['recall_at_10']:.1%} of the exact top 10 ({report['sample']} queries)"
            )
        if not query:
            return
    options = op.SearchOptions(
        index=index,
        query=query,
        k=k,
        min_score=min_score,
        hybrid=hybrid,
        filter=filter,
        where_path=where_path,
        model=model,
        offline=offline,
        task=task,
        device=device,
        dtype=dtype,
        kernels=kernels,
        threads=threads,
        mark=mark and not files_only,
        exact=exact,
        rerank=rerank,
        rerank_from=rerank_from,
    )
    seen: set[str] = set()
    result = streams.run(op.search(options), lambda hit: hits.show(streams, hit, files_only, seen))
    if not result["hits"]:
        streams.talk("nothing passes")
        raise typer.Exit(ExitCode.NO)
