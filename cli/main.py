"""The qwench command: the table of commands, and what they share."""

import gc
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from ..ops.base import settings
from . import (
    bench_kernels,
    chat,
    config,
    convert,
    diff,
    embed,
    explore,
    explore_train,
    gates,
    inspect,
    merge,
    models,
    mtr,
    out,
    parscale_law,
    parscale_recycle,
    polymath,
    reliability,
    rerank,
    reward,
    reward_train,
    sample,
    search,
    wav,
    wav_score,
)
from .commands import Command, register
from .errors import boundary, complete_streams

EPILOG = """\b
exit codes: 0 done, 1 failed, 2 usage, 3 ran and the answer is no, 130 interrupted
\b
  qwench models
  qwench embed docs --out notes.lance --model minilm
  qwench search notes.lance "how do I rebuild an index?"
"""

COMMANDS = (
    Command(("embed",), embed.embed, embed.EPILOG, "Find things"),
    Command(("search",), search.search, search.EPILOG, "Find things"),
    Command(("rerank",), rerank.rerank, rerank.EPILOG, "Find things"),
    Command(("chat",), chat.chat, chat.EPILOG, "Write"),
    Command(("sample",), sample.sample, sample.EPILOG, "Write"),
    Command(("convert",), convert.convert, convert.EPILOG, "Checkpoints"),
    Command(("merge",), merge.merge, merge.EPILOG, "Checkpoints"),
    Command(("inspect",), inspect.inspect, inspect.EPILOG, "Checkpoints"),
    Command(("diff",), diff.diff, diff.EPILOG, "Checkpoints"),
    Command(("gates",), gates.gates, gates.EPILOG, "Checkpoints"),
    Command(("parscale-recycle",), parscale_recycle.parscale_recycle, parscale_recycle.EPILOG, "Train"),
    Command(("parscale-law",), parscale_law.parscale_law, parscale_law.EPILOG, "Train"),
    Command(("explore", "run"), explore.run, explore.RUN_EPILOG, "Train"),
    Command(("explore", "rows"), explore.rows, explore.ROWS_EPILOG, "Train"),
    Command(("explore", "train"), explore_train.train, explore_train.EPILOG, "Train"),
    Command(("reward", "score"), reward.score, reward.SCORE_EPILOG, "Judge"),
    Command(("reward", "eval"), reward.evaluate, reward.EVAL_EPILOG, "Judge"),
    Command(("reward", "best-of"), reward.best_of, reward.BEST_EPILOG, "Judge"),
    Command(("polymath", "run"), polymath.run, polymath.RUN_EPILOG, "Judge"),
    Command(("polymath", "score"), polymath.score, polymath.SCORE_EPILOG, "Judge"),
    Command(("polymath", "prompts"), polymath.prompts, polymath.PROMPTS_EPILOG, "Judge"),
    Command(("reliability", "measure"), reliability.measure, reliability.MEASURE_EPILOG, "Judge"),
    Command(("reliability", "fit"), reliability.fit, reliability.FIT_EPILOG, "Judge"),
    Command(("reliability", "rationales"), reliability.rationales, reliability.RATIONALES_EPILOG, "Judge"),
    Command(("mtr", "list"), mtr.list_tasks, mtr.LIST_EPILOG, "Judge"),
    Command(("mtr", "make"), mtr.make, mtr.MAKE_EPILOG, "Judge"),
    Command(("mtr", "run"), mtr.run, mtr.RUN_EPILOG, "Judge"),
    Command(("mtr", "score"), mtr.score, mtr.SCORE_EPILOG, "Judge"),
    Command(("mtr", "lint"), mtr.lint, mtr.LINT_EPILOG, "Judge"),
    Command(("reward", "train"), reward_train.train, reward_train.EPILOG, "Judge"),
    Command(("wav", "build"), wav.build, wav.BUILD_EPILOG, "Judge"),
    Command(("wav", "score"), wav_score.score, wav_score.EPILOG, "Judge"),
    Command(("wav", "reward"), wav.reward, wav.REWARD_EPILOG, "Judge"),
    Command(("bench-kernels",), bench_kernels.bench_kernels, bench_kernels.EPILOG, "This machine"),
    Command(("models",), models.models, models.EPILOG, "This machine"),
    Command(("config",), config.config, config.EPILOG, "This machine"),
)
#: what --help says of a group of commands, by its name
GROUPS: dict[str, str] = {
    "reward": "Reward models: scored, measured, trained.",
    "explore": "MARGE: explore from hits, make rows, train.",
    "polymath": "Maths in 18 languages: ask, score, show the prompts.",
    "reliability": "How far sampled answers can be believed.",
    "mtr": "Forty games of many turns: made, played, scored.",
    "wav": "Spoken dialogues and their judges, after WavReward.",
}

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
    if not ctx.resilient_parsing:
        ctx.obj = COMMANDS
        boundary(_apply_config)(ctx)


def _apply_config(ctx: typer.Context) -> None:
    """Give the environment's and the config file's values to click as defaults, and name the keys nobody knows."""
    found = settings.read_config()
    for key in config.unknown(COMMANDS, found):
        out.current.warn(f"unknown {key} in the config file `{settings.config_file()}`")
    ctx.default_map = config.defaults(COMMANDS, found)


register(app, COMMANDS, GROUPS)


#: what typer raises for a command line that cannot be understood
USAGE = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")


def _told(error: Any) -> int:
    """Tell of a wrong command line, in JSON where it asks for that; the exit code."""
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    origin = None
    if parameter is not None and str(context.get_parameter_source(parameter.name)).endswith("DEFAULT_MAP"):
        path = tuple(context.command_path.split()[1:])
        _, origin = config.setting(path, parameter.name, settings.read_config()) or (None, None)
    if origin:
        out.start("--json" in sys.argv).error(f"`{origin}`: {error.format_message()}", None, error.exit_code)
    elif "--json" in sys.argv and error.format_message():
        hint = f"{context.command_path} --help" if context else None
        out.start(True).error(error.format_message(), hint, error.exit_code)
    else:
        error.show()
    return error.exit_code


def main() -> None:
    """Entry point of the console script."""
    complete_streams()
    code: Any = 0
    try:
        code = app(prog_name="qwench", standalone_mode=False)
    except USAGE as error:
        code = _told(error)
    except typer.Abort:
        code = 1
    finally:
        # The end of a process looks for garbage three times over; with torch loaded that took 0.4 s.
        gc.freeze()
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
