"""Transcripts scored: played again, summed up, set beside baselines or another run, drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..base.atomic import write
from ..base.errors import QwenchError
from ..base.events import Advanced, Events, Finished, Produced, Started
from ..base.plots import COLORS, INK, check_plot, figure
from .base import KINDS, Row
from .input import Which, by_key, records
from .match import PLAYERS, RULES, Match, Rules, scripted
from .measures import BY, efficiency, normalised, summary
from .registry import TASKS, unknown
from .score import Replay, replays

__all__ = ["ScoreOptions", "scored", "split", "summary"]
#: differences that are told one by one
TOLD = 20


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Everything `qwench mtr score` can be told.

    Attributes:
        transcripts: files; against: one of another run.
        which: rows, where transcripts do not hold theirs.
        rules: to play by, None for those of each transcript.
        verify: stop at the first reply, result or verdict that is another; trust: take recorded replies.
        baselines: play random, solver and spam on the same rows.
        by: task, class, level or none.
        plot: a bar chart, None for none.
    """

    transcripts: tuple[str, ...] = ()
    against: str | None = None
    which: Which = field(default_factory=Which)
    rules: str | None = None
    verify: bool = False
    trust: bool = False
    baselines: bool = False
    by: str = "task"
    plot: Path | None = None


def scored(options: ScoreOptions, stdin: BinaryIO | None = None) -> Events:
    """Yields Produced differences, then Finished: games, differences, a summary, baselines, efficiency.

    Raises:
        QwenchError: a transcript that cannot be played again.
    """
    o = options
    _check(o)
    rows: dict[tuple[str, str, int], Row] = {}
    if o.which.rows is not None or o.which.reference is not None:
        rows = by_key(o.which, stdin)
    yield Started("score", None)
    done: list[Mapping[str, Any]] = []
    played: list[tuple[Row, Rules]] = []
    differences = 0
    everything = list(records(o.transcripts, stdin))
    done += [counted(record) for _, record in everything if "failed" in record]
    for record, replay in replays(_whole(everything), rows, o.rules, o.trust):
        for difference in replay.differences if not o.trust else ():
            differences += 1
            if differences <= TOLD:
                yield Produced({"kind": "difference", "text": str(difference), **_fields(difference)})
            if o.verify:
                break
        done.append(_told(record, replay))
        played.append((replay.match.row, replay.match.rules))
        yield Advanced("score", 1)
        if o.verify and differences:
            break
    found: dict[str, Any] = {"schema": 1, "games": len(done), "differences": differences}
    found |= {"summary": summary(done, o.by)}
    if o.baselines:
        found["baselines"] = yield from _baselines(done, played, o.by)
    if o.against is not None:
        theirs = [_told(r, p) for r, p in replays(_whole(records((o.against,))), rows, o.rules, o.trust)]
        found["against"] = efficiency(done, theirs) | {"file": o.against}
    if o.plot is not None:
        chart(o.plot, done, found.get("baselines"))
        found["plot"] = str(o.plot)
    yield Finished(found)


def _check(o: ScoreOptions) -> None:
    if not o.transcripts:
        raise QwenchError("there are no transcripts to score", "name files of `qwench mtr run --out`", code=2)
    if o.by not in BY:
        raise unknown("grouping", o.by, list(BY))
    if o.rules is not None and o.rules not in RULES:
        raise unknown("set of rules", o.rules, list(RULES))
    if o.verify and o.trust:
        raise QwenchError("--verify plays every message again, and --trust none", "choose one", code=2)
    if o.plot is not None:
        check_plot(o.plot)


def _whole(found: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Transcripts of games that were played: a game that failed is none."""
    return ((place, record) for place, record in found if "failed" not in record)


def _fields(difference: Any) -> dict[str, Any]:
    names = ("game", "round", "what", "expected", "found")
    return {name: getattr(difference, name) for name in names}


def _told(record: Mapping[str, Any], replay: Replay) -> dict[str, Any]:
    """A record by what its replay has found."""
    row, match = replay.match.row, replay.match
    found = {"task": row["task"], "level": row["level"], "question_id": row["question_id"]}
    found |= {"solved": replay.solved, "rounds": len(replay.turns), "ended": match.ended or record.get("ended")}
    old = record["turns"]
    tokens = ("answer_tokens", "thinking_tokens", "prompt_tokens")
    turns = [t | {n: o[n] for n in tokens if n in o} for t, o in zip(replay.turns, old, strict=False)]
    return found | {"turns": turns}


def _baselines(done: Sequence[Mapping[str, Any]], played: Sequence[tuple[Row, Rules]], by: str) -> Any:
    """Shares of random, solver and spam on the same rows by the same rules, by group, and normalised accuracy."""
    results: dict[str, list[dict[str, Any]]] = {}
    yield Started("baselines", len(PLAYERS) * len(played))
    for player in PLAYERS:
        results[player] = []
        for row, rules in played:
            match = scripted(player, Match(row, rules))
            results[player].append(match.told())
            yield Advanced("baselines", 1)
    rows = []
    sums = {player: {r["name"]: r for r in summary(results[player], by)["rows"]} for player in PLAYERS}
    for row in summary(done, by)["rows"]:
        if row["name"] not in sums["random"]:
            continue  # all of its games have failed
        near = {player: sums[player][row["name"]]["accuracy"] for player in PLAYERS}
        if set(sums["spam"][row["name"]]["ended"]) == {"stopped"} and not near["spam"]:
            near["spam"] = None  # there is nothing to answer
        rows.append(
            {"name": row["name"], **near, "normalised": normalised(row["accuracy"], near["random"], near["solver"])}
        )
    return rows


def counted(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A game as it counts: one that failed is not won."""
    if "failed" not in record:
        return record
    row = record["row"]
    found = {"task": row["task"], "level": row["level"], "question_id": row["question_id"]}
    return found | {"solved": False, "rounds": 0, "ended": "error", "turns": []}


def split(folder: Path, played: Sequence[Mapping[str, Any]]) -> None:
    """Files as the reference's evaluator reads them, one a task and level: `CLASS/TASK/LEVEL/ROUNDS/MODEL.jsonl`.

    Raises:
        QwenchError: they cannot be written.
    """
    files: dict[Path, list[str]] = {}
    for record in played:
        kind = next(task.kind for task in TASKS if task.name == record["task"])
        model = str(record.get("model") or record.get("player") or "player").rstrip("/").rpartition("/")[2]
        path = folder / KINDS[kind][0] / record["task"] / record["level"] / str(record["max_round"]) / f"{model}.jsonl"
        names = ("round", "raw_output", "output", "result", "feedback")
        turns = [{name: turn[name] for name in names} for turn in record["turns"]]
        line = json.dumps({"question_id": record["question_id"], "turns": turns}, ensure_ascii=False)
        files.setdefault(path, []).append(line)
    for path, lines in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QwenchError(f"the folder cannot be made ({error.strerror}): `{path.parent}`") from error
        write(path, "".join(f"{line}\n" for line in lines), "the transcripts")


def chart(path: Path, done: Sequence[Mapping[str, Any]], baselines: Sequence[Mapping[str, Any]] | None) -> None:
    """Share of games won by task, with baselines beside it where they were played; see `figure`."""
    own = {row["name"]: row for row in summary(done, "task")["rows"]}
    near = {row["name"]: row for row in baselines or () if row["name"] in own}
    names = list(own)
    with figure(path, 1, (7.5, 0.24 * max(len(names), 6) + 1.2)) as (axis,):
        places = range(len(names))
        axis.barh(places, [100 * own[n]["accuracy"] for n in names], height=0.62, color=COLORS[0], label="this run")
        for player, marker, color in (("solver", "|", COLORS[2]), ("random", "o", COLORS[1]), ("spam", "x", COLORS[5])):
            marked = [(100 * near[n][player], i) for i, n in enumerate(names) if near and near[n][player] is not None]
            if marked:
                xs, ys = zip(*marked, strict=True)
                axis.scatter(
                    xs,
                    ys,
                    marker=marker,
                    s=160 if player == "solver" else 40,
                    color=color,
                    label=player,
                    zorder=3,
                    linewidths=1.6,
                )
        axis.set_yticks(list(places), names, fontsize=8)
        axis.set_ylim(len(names) - 0.4, -0.6)
        axis.set_xlim(-2, 102)
        axis.set_xlabel("games won, %")
        axis.set_title("own environments after MTR-Bench", color=INK, fontsize=10)
        axis.legend(frameon=False, labelcolor=INK, loc="upper center", bbox_to_anchor=(0.45, -0.06), ncols=4)
