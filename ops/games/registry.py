"""The forty tasks by name; a game's file is imported when it is asked for."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import NamedTuple

from ..base.errors import QwenchError
from .base import KINDS, LEVELS, Game


class Task(NamedTuple):
    """A task: its name, its class, and the folder of the reference."""

    name: str
    kind: str


_NAMES = {
    "ip": "Wordle FindTheImpostors BitCompare BitQuery CircleFinding GuessMax LegendaryTree ListQuery MedianQuery "
    "MinMax",
    "da": "AttendanceCheck BitGuessing FindHidden MahjongDetective MimicHunt PermutationDiscovery RPD RotaryLock "
    "TrainPursuit ZeroFinding",
    "so": "CactusSearch ChemicalSynthesis ColorMagic DarkMaze FindBiggest MagneticField RainbowCandy SafepathFinder "
    "TreasureHunt VladikMaze",
    "sg": "AssiutChess BeeChase GeoGame GridColoring GridGame KnightBattle PaperNumber PizzaSlice XORBreaking "
    "ZigzagGraph",
}
TASKS = tuple(Task(name, kind) for kind, names in _NAMES.items() for name in names.split())
#: titles of the reference that are not its folders' names
TITLES = {"DarkMazeExplorer": "DarkMaze", "GridSum": "GridGame", "AssiutGuess": "AssiutChess"}


def game(name: str) -> type[Game]:
    """The game of a task, by its name or the reference's title.

    Raises:
        QwenchError: there is none of this name.
    """
    name = TITLES.get(name, name)
    if name not in {task.name for task in TASKS}:
        raise unknown("task", name, [task.name for task in TASKS])
    return getattr(import_module(f".{_file(name)}", __package__), name)


def _file(name: str) -> str:
    parts = "".join(
        f"_{c.lower()}" if c.isupper() and name[i - 1 : i].islower() else c.lower() for i, c in enumerate(name)
    )
    return parts.lstrip("_")


def chosen(tasks: tuple[str, ...] = (), kinds: tuple[str, ...] = ()) -> list[Task]:
    """Tasks by name and class, all where neither is told.

    Raises:
        QwenchError: an unknown name.
    """
    names = {task.name.lower(): task.name for task in TASKS}
    for name in tasks:
        if name.lower() not in names:
            raise unknown("task", name, list(names.values()))
    long = {folder: kind for kind, (folder, _) in KINDS.items()}
    for kind in kinds:
        if kind not in KINDS and kind not in long:
            raise unknown("class", kind, [*KINDS, *long])
    wanted, classes = {names[n.lower()] for n in tasks}, {long.get(k, k) for k in kinds}
    return [t for t in TASKS if (not tasks and not kinds) or t.name in wanted or t.kind in classes]


def levels(names: tuple[str, ...]) -> list[str]:
    """Levels by name, all where none is told.

    Raises:
        QwenchError: an unknown one.
    """
    for name in names:
        if name not in LEVELS:
            raise unknown("level", name, list(LEVELS))
    return [level for level in LEVELS if not names or level in names]


def unknown(what: str, name: str, known: list[str]) -> QwenchError:
    """A name that is none, with the nearest that is."""
    lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), lower, 1)
    listed = f"use {', '.join(known)}" if len(known) < 10 else "`qwench mtr list` has them"
    hint = f"did you mean `{lower[near[0]]}`?" if near else listed
    return QwenchError(f"there is no {what} `{name}`", hint, code=2)
