"""Players: any text has a reply, legal messages are never refused, solvers win, and a seed decides everything."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwench.ops.games.base import LEVELS, Step
from qwench.ops.games.lint import EXAMPLES
from qwench.ops.games.match import Match, Rules, scripted, settled
from qwench.ops.games.registry import game

from .play import NAMES, opened, played, row

#: tasks whose solver always wins
SURE = (
    *("MinMax", "BitQuery", "ListQuery", "GuessMax", "BitCompare", "FindTheImpostors", "LegendaryTree"),
    *("CircleFinding", "MedianQuery", "Wordle", "BitGuessing", "PermutationDiscovery", "TrainPursuit", "ZeroFinding"),
    *("CactusSearch", "ColorMagic", "TreasureHunt", "VladikMaze", "BeeChase", "GridColoring"),
)
PROMPTS = [row(name)["prompt"] for name in NAMES]
SHOWN = sorted({said for prompt in PROMPTS for said in EXAMPLES.findall(prompt)})
ODD = (
    *("", "\0", "My Query: " + "9" * 10**6, "My Query: 1 " + "1" * 5000, "My Answer: \u0661 \u0662", "My Query: ²"),
    *("</think>", "<think>", "My Choice:", "My Move: " * 999, "My Query: + ", "My Query:\n1\n2\n3\n4", "\ud800"),
    *("My Answer: -1 -1 -1", "My Query: 0 0", "My Answer: " + "1 " * 3000, "Choosing: 0 Breaking into: 0 0"),
)


@pytest.mark.parametrize("name", NAMES)
def test_odd_texts_have_a_reply(name: str) -> None:
    for quirks in (frozenset(), game(name).all_quirks()):
        made = opened(name, quirks=quirks)
        for text in (*ODD, *SHOWN[:: 1 + len(SHOWN) // 25], *PROMPTS[::8]):
            step = made.step(text)
            assert isinstance(step, Step) and isinstance(step.feedback, str)
            json.dumps([step.result, step.feedback])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_text_has_a_reply(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    quirks = data.draw(st.sampled_from((frozenset(), game(name).all_quirks())))
    made = opened(name, quirks=quirks)
    number = st.integers(-3, 120) | st.integers(0, 10**40)
    piece = (
        st.sampled_from((*SHOWN, "My Query:", "My Answer:", "My Choice:", "My Move:", "+", "-", "|", ",")) | st.text()
    )
    for _ in range(data.draw(st.integers(1, 5))):
        text = " ".join(map(str, data.draw(st.lists(piece | number, max_size=9))))
        step = made.step(text)
        assert isinstance(step, Step) and (step.valid or step.reason in ("form", "range", "rule"))


@pytest.mark.parametrize("name", NAMES)
def test_random_legal_messages_are_never_refused(name: str) -> None:
    steps = number = 0
    rng = random.Random(name)
    while steps < 60:
        level = LEVELS[number % 3]
        match = Match(row(name, level, number), Rules(opponent=rng.choice(game(name).OPPONENTS or ("random",))))
        number += 1
        while match.ended is None:
            legal = match.game.legal(rng)
            assert (legal and len(legal) <= 64 and len(set(legal)) == len(legal)) or name in ("Wordle", "BeeChase")
            turn = match.hear(rng.choice(legal))
            steps += 1
            assert turn["valid"], (turn, match.row)


@pytest.mark.parametrize("name", SURE)
def test_the_solver_wins_where_it_can(name: str) -> None:
    for level in LEVELS:
        if (name, level) not in (("MedianQuery", "hard"), ("LegendaryTree", "hard")):  # seconds
            assert played("solver", name, level, 1).solved, level


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_ten_thousand_legal_messages(name: str) -> None:
    steps = number = 0
    rng = random.Random(name)
    while steps < 10_000:
        match = Match(row(name, LEVELS[number % 3], number), Rules())
        number += 1
        while match.ended is None:
            assert match.hear(rng.choice(match.game.legal(rng)))["valid"]
            steps += 1


def test_solvers_play_by_the_references_rules_too() -> None:
    """On rows without a seed and without what the reference draws as play begins."""
    for name in NAMES:
        given = {k: v for k, v in row(name).items() if k not in ("rules", "seed", "prompt", *game(name).DRAWN)}
        match = scripted("solver", Match(settled(given), Rules(rules="reference")))
        # There, counts above n cannot be answered, and the first square must not be the king's, which nobody knows.
        refused = match.ended == "refused" and name not in ("MahjongDetective", "AssiutChess")
        assert match.ended not in (None, "stopped") and not refused, (name, match.turns)


@pytest.mark.parametrize("name", NAMES)
def test_spam_answers_alone(name: str) -> None:
    match = played("spam", name)
    assert match.ended != "refused"
    if not match.turns:
        assert match.ended == "stopped"


@pytest.mark.parametrize("name", NAMES)
def test_prompts_teach_what_is_taken(name: str) -> None:
    for level in LEVELS:
        made = row(name, level, 2)
        assert "\n\nReady to start" in made["prompt"]
        shown = EXAMPLES.findall(made["prompt"])
        assert shown
        for said in shown:
            step = opened(name, made).step(said)
            assert step.valid or step.reason != "form" or said.startswith("Choosing:"), (said, step)


def test_replies_come_from_the_row_and_the_messages_alone() -> None:
    for name in NAMES:
        first = played("random", name, "medium", 3)
        again = Match(row(name, "medium", 3), Rules())
        for turn in first.turns:
            assert again.hear(turn["raw_output"]) == turn
        assert again.ended == first.ended


def test_a_refused_message_draws_nothing() -> None:
    for name in NAMES:
        made = opened(name)
        before = made.rng.getstate()
        made.step("no form at all")
        made.step("My Query: 0 0 0")
        if not made.step("My Choice: 999 999").valid:
            assert made.rng.getstate() == before, name


def test_a_seed_makes_the_same_bytes_in_any_process() -> None:
    code = (
        "import json, sys; from qwench.ops.games.registry import TASKS, game\n"
        "print(json.dumps([game(t.name).make(level, 11) for t in TASKS for level in ('easy', 'medium', 'hard')]))"
    )
    found = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True,
                       env=os.environ | {"PYTHONHASHSEED": seed}).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(found) == 1 and len(json.loads(found.pop())) == 120
