"""Steps a second of the forty games under random legal messages, beside a game of TextArena where it is installed.

    python benchmarks/games.py                 # 1,000 steps of every game, the last line is one JSON document

A step is a legal message drawn and its reply heard; making rows is counted apart. TextArena (`pip install textarena`)
is stepped through its Mastermind, which needs no data of its own; the nearest of ours is Wordle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from qwench.ops.games.base import LEVELS
from qwench.ops.games.match import Match, Rules, player_stream, settled
from qwench.ops.games.registry import TASKS, game


def measured(name: str, steps: int) -> dict[str, Any]:
    """Steps a second of a game, messages alone and with their drawing, and rows made a second."""
    done, number, spent, replies, making = 0, 0, 0.0, 0.0, 0.0
    while done < steps:
        begun = time.perf_counter()
        row = settled({**game(name).make(LEVELS[number % 3], number), "question_id": number})
        making += time.perf_counter() - begun
        number += 1
        match, rng = Match(row, Rules()), player_stream(row, 0, "random")
        while match.ended is None and done < steps:
            begun = time.perf_counter()
            legal = match.game.legal(rng)
            said = legal[int(rng.random() * len(legal))]
            drawn = time.perf_counter()
            match.hear(said)
            ended = time.perf_counter()
            spent, replies, done = spent + ended - begun, replies + ended - drawn, done + 1
    return {"name": name, "steps": done / spent, "replies": done / replies, "rows": number / making}


def textarena(steps: int) -> float | None:
    """Steps a second of TextArena's Mastermind; None where it is not installed."""
    try:
        import textarena as ta
    except ImportError:
        return None
    done, spent = 0, 0.0
    while done < steps:
        env = ta.make("Mastermind-v0")
        env.reset(num_players=1, seed=done)
        over = False
        while not over and done < steps:
            guess = " ".join(str(1 + (done + i) % 6) for i in range(4))
            begun = time.perf_counter()
            env.get_observation()
            over, _ = env.step(action=f"[{guess}]")
            spent, done = spent + time.perf_counter() - begun, done + 1
    return done / spent


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    steps = parser.parse_args().steps
    found = [measured(task.name, steps) for task in TASKS]
    print(f"{'game':22} steps/s  replies/s  rows/s")
    for row in found:
        print(f"{row['name']:22} {row['steps']:7,.0f}  {row['replies']:9,.0f}  {row['rows']:6,.0f}")
    other = textarena(steps)
    median = statistics.median(row["steps"] for row in found)
    beside = "not installed" if other is None else f"{other:,.0f}"
    print(f"median {median:,.0f} steps/s; TextArena's Mastermind: {beside}")
    print(json.dumps({"games": found, "median": median, "textarena_mastermind": other}))


if __name__ == "__main__":
    main()
