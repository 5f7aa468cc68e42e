"""The qwench command: the table of commands, and what they share."""

import gc
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from ..ops import settings
from . import (
    bench_kernels,
    chat,
    config,
    convert,
    diff,
    embed,
    inspect,
    merge,
    models,
    out,
    parscale_law,
    parscale_recycle,
    rerank,
    search,
)
from .errors import boundary

EPILOG = """\b
exit codes: 0 done, 1 failed, 2 usage, 3 ran and the answer is no, 130 interrupted
\b
  qwench models
  qwench embed docs --out notes.lance --model minilm
  qwench search notes.lance "how do I rebuild an index?"
"""

#: name, module (its function of the same stem is the command), group in --help
COMMANDS = [
    ("embed", embed.embed, embed.EPILOG, "Find things"),
    ("search", search.search, search.EPILOG, "Find things"),
    ("rerank", rerank.rerank, rerank.EPILOG, "Find things"),
    ("chat", chat.chat, chat.EPILOG, "Talk"),
    ("convert", convert.convert, convert.EPILOG, "Checkpoints"),
    ("merge", merge.merge, merge.EPILOG, "Checkpoints"),
    ("inspect", inspect.inspect, inspect.EPILOG, "Checkpoints"),
    ("diff", diff.diff, diff.EPILOG, "Checkpoints"),
    ("parscale-recycle", parscale_recycle.parscale_recycle, parscale_recycle.EPILOG, "Streams"),
    ("parscale-law", parscale_law.parscale_law, parscale_law.EPILOG, "Streams"),
    ("bench-kernels", bench_kernels.bench_kernels, bench_kernels.EPILOG, "This machine"),
    ("models", models.models, models.EPILOG, "This machine"),
    ("config", config.config, config.EPILOG, "This machine"),
]

app = typer.Typer(
    name="qwench",
    help="One command for the whole life of a Qwen-family checkpoint on a workstation.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        try:
            out.current.data(f"qwench {version('qwench')}")
        except PackageNotFoundError:
            out.current.data("qwench (not installed)")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    if ctx.resilient_parsing:
        return
    boundary(_apply_config)(ctx)


def _apply_config(ctx: typer.Context) -> None:
    """Give the environment's and the config file's values to click as defaults, and name the keys nobody knows."""
    known = {name: set(config.parameters(command)) for name, command, *_ in COMMANDS}
    found = settings.read_config()
    shared = {k: v for k, v in found.items() if not isinstance(v, dict)}
    for key in sorted(shared):
        if not any(key in names for names in known.values()):
            out.current.warn(f"unknown key in the config file: `{key}` in `{settings.config_file()}`")
    defaults: dict[str, dict] = {}
    for name, names in known.items():
        own = found.get(name, {})
        for key in sorted(set(own) - names):
            out.current.warn(f"unknown key in the config file: `{name}.{key}` in `{settings.config_file()}`")
        # `search` takes its model from the index; a shared default would only contradict it.
        usable = {k: v for k, v in shared.items() if k in names and not (name == "search" and k == "model")}
        defaults[name] = usable | {k: v for k, v in own.items() if k in names} | config.from_environment(name, names)
    for section in sorted(k for k, v in found.items() if isinstance(v, dict) and k not in known):
        out.current.warn(f"unknown section in the config file: `{section}` in `{settings.config_file()}`")
    ctx.default_map = defaults


for _name, _command, _epilog, _group in COMMANDS:
    app.command(_name, epilog=_epilog, rich_help_panel=_group)(boundary(_command))


def main() -> None:
    """Entry point of the console script."""
    try:
        app(prog_name="qwench")
    finally:
        # The end of a process looks for garbage three times over; with torch loaded that took 0.4 s.
        gc.freeze()


if __name__ == "__main__":
    main()
