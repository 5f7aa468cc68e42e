"""Option types that commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

PACKAGED = ("minilm", "smollm2")


def complete_model(incomplete: str) -> list[str]:
    """Packaged names and what lies in the hub cache; reads directories, never the network."""
    from ..ops.models.hub import hub_cache

    cached = [p.name.removeprefix("models--").replace("--", "/") for p in hub_cache().glob("models--*")]
    return [name for name in [*PACKAGED, *sorted(cached)] if name.startswith(incomplete)]


def _choices(*names: str):
    return lambda incomplete: [n for n in names if n.startswith(incomplete)]


def _path(incomplete: str) -> list[str]:
    folder = Path(os.path.dirname(incomplete) or ".")
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [str(p) + ("/" if p.is_dir() and p.suffix != ".lance" else "") for p in found]
    return [n for n in names if n.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Folder, hub id, or packaged name.", envvar="QWENCH_MODEL", autocompletion=complete_model
    ),
]
Checkpoint = Annotated[
    str, typer.Argument(help="Folder, weight file, hub id.", show_default=False, autocompletion=complete_model)
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]
Offline = Annotated[bool, typer.Option("--offline", help="Never ask the hub.", envvar="QWENCH_OFFLINE")]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, cuda:N or mps.",
        envvar="QWENCH_DEVICE",
        autocompletion=_choices("auto", "cpu", "cuda", "mps"),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help="auto, float32, bfloat16 or float16; auto looks at weights and hardware.",
        envvar="QWENCH_DTYPE",
        autocompletion=_choices("auto", "float32", "bfloat16", "float16"),
    ),
]
Kernels = Annotated[
    str,
    typer.Option(
        help="auto, eager, native (C, on the CPU), triton or compiled.",
        envvar="QWENCH_KERNELS",
        autocompletion=_choices("auto", "eager", "native", "triton", "compiled"),
    ),
]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads, 0 for all.", envvar="QWENCH_THREADS")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, errors too.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk but errors and lost inputs.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what was chosen and why.")]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Exit 0 although some inputs failed.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")]
Index = Annotated[str, typer.Argument(help="A .lance index.", show_default=False, autocompletion=_path)]
