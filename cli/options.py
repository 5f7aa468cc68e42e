"""Options that commands share, each declared once, and how they become what ops take."""

import inspect
import os
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from ..ops.base.errors import QwenchError
from ..ops.base.runtime import Runtime
from . import out

PACKAGED = ("minilm", "smollm2")
T = TypeVar("T")


def complete_model(incomplete: str) -> list[str]:
    """Packaged names and what lies in the hub cache; reads directories, never the network."""
    from ..ops.models.hub import hub_cache

    cached = [p.name.removeprefix("models--").replace("--", "/") for p in hub_cache().glob("models--*")]
    return [name for name in [*PACKAGED, *sorted(cached)] if name.startswith(incomplete)]


def choices(*names: str) -> Callable[[str], list[str]]:
    """Completion from a list of words."""
    return lambda incomplete: [n for n in names if n.startswith(incomplete)]


def _path(incomplete: str) -> list[str]:
    folder = Path(os.path.dirname(incomplete) or ".")
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [str(p) + ("/" if p.is_dir() and p.suffix != ".lance" else "") for p in found]
    return [n for n in names if n.startswith(incomplete)]


def _one_of(help: str, *names: str) -> Any:
    return Annotated[str, typer.Option(help=help, autocompletion=choices(*names))]


Model = Annotated[
    str, typer.Option("--model", "-m", help="Folder, hub id, or packaged name.", autocompletion=complete_model)
]
Checkpoint = Annotated[
    str, typer.Argument(help="Folder, weight file, hub id.", show_default=False, autocompletion=complete_model)
]
KeepGoing = Annotated[bool, typer.Option("--keep-going", help="Exit 0 although some inputs failed.")]
Limit = Annotated[int, typer.Option(min=0, help="Rows at most, 0 for all.")]
Force = Annotated[bool, typer.Option("--force", help="Begin anew over what is there.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, do nothing.")]
Index = Annotated[str, typer.Argument(help="A .lance index.", show_default=False, autocompletion=_path)]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON, errors too.")]


@dataclass(frozen=True, slots=True)
class Bundle:
    """Flags that a command takes as one object: name -> annotation and default, and what makes the object of them."""

    flags: Mapping[str, tuple[Any, Any]]
    make: Callable[..., Any]


TALK = Bundle(
    {
        "json": (Json, False),
        "quiet": (Annotated[bool, typer.Option("--quiet", "-q", help="No talk but errors and lost inputs.")], False),
        "verbose": (Annotated[bool, typer.Option("--verbose", "-v", help="Say what was chosen and why.")], False),
    },
    out.start,
)
#: the streams of a command, by --json, --quiet and --verbose
Talk = Annotated[out.Out, TALK]

#: flags that override the published sampling of the mode
SAMPLING: dict[str, Any] = {
    "temperature": Annotated[float | None, typer.Option(help="0 is greedy; default by mode: 0.6 or 0.7.")],
    "top_p": Annotated[float | None, typer.Option(help="Default by mode: 0.95 or 0.8.")],
    "top_k": Annotated[int | None, typer.Option(help="0 for all; default 20.")],
    "min_p": Annotated[float | None, typer.Option(help="Least share of the best token's probability.")],
    "repetition_penalty": Annotated[float | None, typer.Option(help="Divides logits of tokens seen.")],
    "presence_penalty": Annotated[float | None, typer.Option(help="Subtracted once a token was generated.")],
    "frequency_penalty": Annotated[float | None, typer.Option(help="Subtracted per time it was generated.")],
}
WRITING: dict[str, tuple[Any, Any]] = {
    "system": (Annotated[str | None, typer.Option(help="The system message.")], None),
    "think_budget": (
        Annotated[
            str,
            typer.Option(
                help="Tokens of thinking: -1 no limit, 0 none, N; minimal, low, medium, high.",
                autocompletion=choices("minimal", "low", "medium", "high", "-1", "0"),
            ),
        ],
        "-1",
    ),
    "think_stop": (
        Annotated[str, typer.Option(help="At the budget: hard, or sentence (10 % more to end it).")],
        "hard",
    ),
    "think_message": (
        Annotated[str | None, typer.Option(help="What closes a cut thought.", show_default=False)],
        None,
    ),
    "force_think": (
        Annotated[bool, typer.Option("--force-think", help="Open a block whatever the template says.")],
        False,
    ),
    "max_tokens": (Annotated[int, typer.Option(min=1, help="Tokens of the answer; thinking never eats them.")], 1024),
    **{name: (annotation, None) for name, annotation in SAMPLING.items()},
    "stop": (Annotated[list[str] | None, typer.Option(help="A string that ends the answer; repeatable.")], None),
    "logprobs": (Annotated[int | None, typer.Option(min=0, help="In JSON: this many alternatives a token.")], None),
    "context": (Annotated[int, typer.Option(min=0, help="Context in tokens, 0 for the model's; more is YaRN.")], 0),
    "streams": (
        Annotated[int, typer.Option(min=0, help="Parallel streams of a ParScale model; 0 for its own.")],
        0,
    ),
}


def _writing(stop: list[str] | None, **given: Any) -> dict[str, Any]:
    """Fields of `ChatOptions` that are called otherwise than their flags."""
    asked = {name: given[name] for name in SAMPLING if given[name] is not None}
    return {"sampling": tuple(asked.items()), "stops": tuple(stop or ())}


#: how is asked; the flags that are fields themselves are filled from click's parameters
Writing = Annotated[dict[str, Any], Bundle(WRITING, _writing)]

RUNTIME: dict[str, Any] = {
    "revision": Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")],
    "offline": Annotated[bool, typer.Option("--offline", help="Never ask the hub.")],
    "engine": _one_of(
        "auto, torch, llama.cpp (for .gguf files), or a server: http://HOST:PORT/v1.", "auto", "torch", "llama.cpp"
    ),
    "api": _one_of("Of a server: completions (our template, budgets) or chat (its own).", "completions", "chat"),
    "tokenizer": Annotated[
        str | None, typer.Option(help="Of a server's model: folder, .gguf or hub id.", autocompletion=complete_model)
    ],
    "api_key_env": Annotated[str, typer.Option(help="The variable that holds a server's key.")],
    "concurrency": Annotated[int, typer.Option(min=1, help="Requests to a server at a time.")],
    "device": _one_of("auto, cpu, cuda, cuda:N or mps.", "auto", "cpu", "cuda", "mps"),
    "dtype": _one_of(
        "auto, float32, bfloat16 or float16; auto looks at weights and hardware.",
        *("auto", "float32", "bfloat16", "float16"),
    ),
    "quantize": _one_of(
        "none, int8, or for chat int4: smaller weights on the CPU, less exact.", "none", "int8", "int4"
    ),
    "kernels": _one_of(
        "auto, eager, native (C, on the CPU), triton or compiled.", "auto", "eager", "native", "triton", "compiled"
    ),
    "threads": Annotated[int, typer.Option(min=0, help="CPU threads, 0 for all.")],
}


def runtime(*names: str) -> Any:
    """The annotation of a parameter that holds a `Runtime`, made of these flags of it."""
    default = Runtime()
    return Annotated[Runtime, Bundle({n: (RUNTIME[n], getattr(default, n)) for n in names}, Runtime)]


#: where and how a model writes, here or on a server
Writer = runtime(
    *("revision", "offline", "device", "dtype", "quantize", "engine", "kernels", "threads"),
    *("api", "tokenizer", "api_key_env", "concurrency"),
)


def expanded(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command as click sees it: each parameter that is a `Bundle` has become its flags."""
    signature = inspect.signature(command, eval_str=True)
    bundles: dict[str, Bundle] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        marks = getattr(parameter.annotation, "__metadata__", ())
        bundle = next((m for m in marks if isinstance(m, Bundle)), None)
        if bundle is None:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        bundles[parameter.name] = bundle
        for name, (annotation, default) in bundle.flags.items():
            parameters.append(
                inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            )

    @wraps(command)
    def run(**given: Any) -> Any:
        # Streams first, so that trouble with the rest is told as --json asks.
        for name, bundle in sorted(bundles.items(), key=lambda b: b[1] is not TALK):
            given[name] = bundle.make(**{flag: given.pop(flag) for flag in bundle.flags})
        return command(**given)

    del run.__wrapped__
    run.__signature__ = signature.replace(parameters=parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def fill(kind: type[T], given: Mapping[str, Any], **own: Any) -> T:
    """An options dataclass from click's parameters of the same names; fields that `own` names are taken from there.

    Fields that are dataclasses themselves are filled alike, but for the `Runtime`, which is handed on whole; lists
    become tuples.
    """
    values = {}
    for field in fields(kind):  # type: ignore[arg-type]
        nested = field.default_factory if field.default_factory is not MISSING else None
        if field.name in own:
            values[field.name] = own[field.name]
        elif isinstance(nested, type) and is_dataclass(nested):
            values[field.name] = nested() if nested is Runtime else fill(nested, given, **own)
        elif field.name in given:
            value = given[field.name]
            wants_tuple = isinstance(value, list) or (value is None and field.default == ())
            values[field.name] = tuple(value or ()) if wants_tuple else value
    return kind(**values)


def given_flags(ctx: typer.Context, *names: str) -> list[str]:
    """Those of the parameters that stand on the command line, as flags."""
    flags = {p.name: max(p.opts, key=len) for p in ctx.command.params}
    stood = [n for n in names if str(ctx.get_parameter_source(n)).endswith("COMMANDLINE")]
    return [flags[n] if flags[n].startswith("-") else n.upper() for n in stood]


def refuse(ctx: typer.Context, why: str, *names: str) -> None:
    """Refuse flags that the chosen mode has no use for.

    Args:
        why: what has no use for them, such as "--query keeps no index".

    Raises:
        QwenchError: one of the parameters stands on the command line.
    """
    if found := given_flags(ctx, *names):
        raise QwenchError(f"{why}, so {' and '.join(found)} would do nothing", "leave it out", code=2)


#: flags that only a model on this machine has a use for, and those that only a server has
LOCAL = ("revision", "offline", "device", "dtype", "quantize", "kernels", "threads", "context", "streams", "batch")
SERVER = ("api", "tokenizer", "api_key_env", "concurrency")


def served(ctx: typer.Context, runtime: Runtime, model: str) -> str:
    """The model's name for a command that may ask a server: "" where the server is to say.

    Raises:
        QwenchError: a flag that the engine has no use for.
    """
    there = {p.name for p in ctx.command.params}
    why = "the engine is a server" if runtime.server else "--engine is no server"
    refuse(ctx, why, *(n for n in (LOCAL if runtime.server else SERVER) if n in there))
    default = str(ctx.get_parameter_source("model")).endswith("DEFAULT")
    return "" if runtime.server and default else model
