"""The tree of commands: flat verbs, and groups of two words."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import typer

from .errors import boundary
from .options import expanded


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the table of commands.

    Attributes:
        path: its words, `("embed",)` or `("reward", "score")`; config sections, variables and docs follow it.
        run: the function whose parameters are its flags.
        epilog: three examples.
        panel: where `--help` lists it, or its group.
    """

    path: tuple[str, ...]
    run: Callable[..., Any]
    epilog: str
    panel: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "run", expanded(self.run))

    @property
    def name(self) -> str:
        """The words in a row."""
        return " ".join(self.path)


def register(app: typer.Typer, commands: Iterable[Command], groups: Mapping[str, str]) -> None:
    """Put commands into the app, those of two words below a group that `groups` describes."""
    made: dict[str, typer.Typer] = {}
    for command in commands:
        *above, word = command.path
        place = app
        if above:
            group = above[0]
            if group not in made:
                made[group] = typer.Typer(
                    no_args_is_help=True,
                    rich_markup_mode=None,
                    context_settings={"help_option_names": ["-h", "--help"]},
                )
                app.add_typer(made[group], name=group, help=groups[group], rich_help_panel=command.panel)
            place = made[group]
        place.command(word, epilog=command.epilog, rich_help_panel=command.panel)(boundary(command.run))
