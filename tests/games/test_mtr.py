"""`qwench mtr` through a process, its work on a loopback server, kills in the middle of a game, and faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from qwench.ops import mtr
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.events import Finished, Produced
from qwench.ops.base.runtime import Runtime
from qwench.ops.games.measures import efficiency, normalised, share
from qwench.ops.games.registry import TASKS

from ..conftest import KERNELS
from ..writing.stub import Stub, serving
from .play import ORACLES, played, row

Run = Callable[..., subprocess.CompletedProcess[str]]


def made(path: Path, **options: Any) -> Path:
    """A file of rows."""
    rows = [e.row for e in mtr.make(mtr.MakeOptions(**options)) if isinstance(e, Produced)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def finished(events: Any) -> dict[str, Any]:
    return [e for e in events if isinstance(e, Finished)][-1].result


def test_all_verbs_end_to_end(qwench: Run, tmp_path: Path) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    names = ("MinMax", "TrainPursuit", "DarkMaze", "GeoGame")
    flags = [part for name in names for part in ("--task", name)]
    assert qwench("mtr", "make", *flags, "--per", 2, "--out", rows).returncode == 0
    assert len(lines(rows)) == 24
    played = qwench("mtr", "run", rows, "--player", "solver", "--out", out, "--split", tmp_path / "split")
    assert played.returncode == 0, played.stderr
    assert "mean over tasks" in played.stdout
    scored = qwench("mtr", "score", out, "--verify", "--baselines", "--json")
    assert scored.returncode == 0, scored.stderr
    result = json.loads(scored.stdout)
    assert (result["games"], result["differences"]) == (24, 0)
    assert {row["name"] for row in result["baselines"]} == set(names)
    reader = lines(tmp_path / "split" / "information_query" / "MinMax" / "easy" / "15" / "solver.jsonl")
    assert all(isinstance(r["question_id"], int) for r in reader)
    assert set(reader[0]["turns"][0]) == {"round", "raw_output", "output", "result", "feedback"}
    assert qwench("mtr", "lint", rows).returncode == 0
    assert len(mtr.tasks()) == len(TASKS) == 40


def test_verify_finds_one_changed_reply(qwench: Run, tmp_path: Path) -> None:
    rows, out = made(tmp_path / "rows.jsonl", tasks=("MinMax",), levels=("easy",), per=2), tmp_path / "out.jsonl"
    assert finished(mtr.run(options(rows, out, "solver")))["failed"] == 0
    records = lines(out)
    records[1]["turns"][2]["feedback"] = "!"
    out.write_text("".join(json.dumps(r) + "\n" for r in records))
    found = qwench("mtr", "score", out, "--verify")
    assert found.returncode == 3
    assert "MinMax/easy/2, round 3: feedback is" in found.stderr


@pytest.mark.skipif(not ORACLES.exists(), reason="no oracles")
def test_oracles_through_the_command(qwench: Run) -> None:
    found = qwench("mtr", "score", ORACLES, "--rules", "reference", "--verify", "--json")
    assert found.returncode == 0, found.stdout + found.stderr
    assert json.loads(found.stdout)["games"] == 45


def options(rows: Path, out: Path, player: str, **more: Any) -> mtr.RunOptions:
    chat = more.pop("chat", mtr.ChatOptions())
    return mtr.RunOptions(
        player=player, rules=mtr.Rules(**more), which=mtr.Which(str(rows)), chat=chat, job=mtr.JobOptions(out=str(out))
    )


def brain(body: dict[str, Any]) -> str:
    """Plays MinMax badly: asks about places by its seed, and answers now and then."""
    seed = body.get("seed") or 0
    a, b = 1 + seed % 5, 1 + seed // 5 % 5
    if a == b:
        b = a % 5 + 1
    return f"I think.\nMy {'Answer' if seed % 4 == 0 else 'Query'}: {a} {b}"


def served(stub: Stub, parallel: int = 4) -> mtr.ChatOptions:
    runtime = Runtime(engine=stub.address, api="chat", concurrency=parallel)
    return mtr.ChatOptions(model="tiny", runtime=runtime, slots=parallel, max_tokens=64)


def test_a_model_plays_many_games_at_once(tmp_path: Path) -> None:
    rows = made(tmp_path / "rows.jsonl", tasks=("MinMax",), levels=("easy",), per=12)

    def patient(body: dict[str, Any]) -> str:
        stub.meet(2)
        return brain(body)

    with serving(Stub(patient)) as stub:
        result = finished(mtr.run(options(rows, tmp_path / "out.jsonl", "write", chat=served(stub))))
        assert stub.most > 1
    records = lines(tmp_path / "out.jsonl")
    assert [r["question_id"] for r in records] == list(range(1, 13))
    assert result["summary"]["all"]["games"] == 12
    for record in records:
        assert record["ended"] in ("solved", "limit") and record["model"] == "tiny"
        assert all("answer_tokens" in turn for turn in record["turns"])
    assert not (tmp_path / ".out.jsonl.turns").exists()
    assert finished(mtr.score(mtr.ScoreOptions((str(tmp_path / "out.jsonl"),))))["differences"] == 0


def test_the_history_leaves_thoughts_out(tmp_path: Path) -> None:
    rows = made(tmp_path / "rows.jsonl", tasks=("MinMax",), levels=("easy",), per=1)
    with serving(Stub(lambda body: "<think>\nMy Answer: 1 2\n</think>\n\nMy Query: 1 2")) as stub:
        finished(mtr.run(options(rows, tmp_path / "out.jsonl", "write", chat=served(stub), max_round=3)))
        bodies = [body for _, _, body in stub.requests if len(body.get("messages", ())) > 1]
    assert bodies
    assert all("think" not in m["content"] for body in bodies for m in body["messages"])
    turns = lines(tmp_path / "out.jsonl")[0]["turns"]
    assert turns[0]["output"] == "My Query: 1 2" and turns[0]["raw_output"].startswith("<think>")


def test_a_run_that_fails_goes_on_in_the_middle_of_a_game(tmp_path: Path) -> None:
    rows = made(tmp_path / "rows.jsonl", tasks=("MinMax",), levels=("easy",), per=4)
    with serving(Stub(brain)) as stub:
        finished(mtr.run(options(rows, tmp_path / "whole.jsonl", "write", chat=served(stub, 1))))
        asked = len(stub.requests)
    out = tmp_path / "cut.jsonl"
    with serving(Stub(brain)) as stub:
        events = mtr.run(options(rows, out, "write", chat=served(stub, 1)))
        while len(stub.requests) < asked // 2:
            next(events)
        events.close()
        first = len(stub.requests)
    kept = lines(tmp_path / ".cut.jsonl.turns")
    assert len(kept) > 1 and kept[1]["round"] == 1
    with serving(Stub(brain)) as stub:
        finished(mtr.run(options(rows, out, "write", chat=served(stub, 1))))
        again = len(stub.requests)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert first + again <= asked + 8  # probes, and the message in flight


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    rows = made(tmp_path / "rows.jsonl", tasks=("FindTheImpostors",), per=6)
    finished(mtr.run(options(rows, tmp_path / "whole.jsonl", "solver")))
    env = {k: v for k, v in os.environ.items() if not k.startswith("QWENCH")} | KERNELS
    out = tmp_path / "cut.jsonl"
    command = [
        sys.executable,
        "-m",
        "qwench.cli.main",
        "mtr",
        "run",
        str(rows),
        "--player",
        "solver",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / ".cut.jsonl.job"
    while process.poll() is None and (not journal.exists() or len(journal.read_text().splitlines()) < 3):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_other_settings_are_refused(tmp_path: Path) -> None:
    rows = made(tmp_path / "rows.jsonl", tasks=("MinMax",), levels=("easy",), per=1)
    finished(mtr.run(options(rows, tmp_path / "out.jsonl", "solver")))
    with pytest.raises(QwenchError, match="max_round was 15, is 9"):
        finished(mtr.run(options(rows, tmp_path / "out.jsonl", "solver", max_round=9)))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("no json", "line 1"),
        ('{"question_id": 1}', "neither `task` nor `title`"),
        ('{"task": "Minmax", "question_id": 1}', "there is no task `Minmax`"),
        ('{"task": "MinMax", "question_id": "x"}', "no number"),
        ('{"task": "MinMax", "question_id": 1}', "no field `answer`"),
        ('{"task": "MinMax", "question_id": 1, "answer": 5, "min_pos": 1, "max_pos": 2}', "wrong type"),
        ('{"task": "MinMax", "question_id": 1, "answer": "x", "min_pos": 1, "max_pos": 2}', "no row of MinMax"),
    ],
)
def test_bad_rows_are_named(line: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(QwenchError) as error:
        finished(mtr.run(options(path, tmp_path / "out.jsonl", "solver")))
    assert told in error.value.message and "line 1" in error.value.message


def test_usage(qwench: Run, tmp_path: Path) -> None:
    rows = made(tmp_path / "rows.jsonl", tasks=("MinMax",), levels=("easy",), per=1)
    for arguments, told in (
        (("make", "--task", "Wordel"), "did you mean `Wordle`?"),
        (("run", rows, "--player", "solver", "--temperature", 1), "has no model"),
    ):
        found = qwench("mtr", *arguments)
        assert found.returncode == 2 and told in found.stderr, found.stderr
    with pytest.raises(QwenchError, match="line 1: there are no `turns`"):
        finished(mtr.score(mtr.ScoreOptions((str(rows),))))
    with pytest.raises(QwenchError, match="no problem/information_query"):
        finished(mtr.lint(mtr.Which(None, tmp_path)))


def planted(tmp_path: Path) -> dict[str, str]:
    """Check -> a row with this defect, beside a good one."""
    good = lines(made(tmp_path / "good.jsonl", tasks=("MinMax", "BitQuery"), levels=("easy",), per=1))
    query, minmax = good
    rows = {
        "string id": minmax | {"question_id": "7"},
        "level label": minmax | {"difficulty": "hard"},
        "no scale": {k: v for k, v in minmax.items() if k != "scale"},
        "unsolvable": query | {"answer": [9, 0, 0, 0]},
        "refused example": minmax | {"prompt": "Say `My Query: [i] [j]`.\n\nReady to start?"},
        "answer in prompt": minmax
        | {"prompt": f"Say `My Answer: {minmax['min_pos']} {minmax['max_pos']}`.\n\nReady to start?"},
        "no ready": minmax | {"prompt": "Begin."},
        "row": {k: v for k, v in minmax.items() if k != "answer"},
    }
    texts = {check: json.dumps(row) for check, row in rows.items()}
    texts["repeated row"] = json.dumps(minmax) + "\n" + json.dumps(minmax | {"question_id": 2})
    texts["repeated id"] = (
        json.dumps(minmax) + "\n" + json.dumps(minmax | {"answer": "13456", "min_pos": 1, "max_pos": 5})
    )
    return texts


def test_lint_finds_planted_defects(tmp_path: Path) -> None:
    for check, text in planted(tmp_path).items():
        path = tmp_path / "bad.jsonl"
        path.write_text(text + "\n")
        found = [e.row["check"] for e in mtr.lint(mtr.Which(str(path))) if isinstance(e, Produced)]
        assert found == [check], (check, found)


def test_own_rows_have_no_fault(tmp_path: Path) -> None:
    rows = made(tmp_path / "rows.jsonl", per=3)
    assert [e.row for e in mtr.lint(mtr.Which(str(rows))) if isinstance(e, Produced)] == []


@pytest.mark.skipif(not os.environ.get("QWENCH_MTR_REFERENCE"), reason="no clone of the reference")
def test_lint_of_the_reference() -> None:
    """The counts of the published rows, with the user's own clone."""
    result = finished(mtr.lint(mtr.Which(None, Path(os.environ["QWENCH_MTR_REFERENCE"]))))
    assert result["rows"] == 3600
    found = {(c["check"], c["task"], c["level"]): c["rows"] for c in result["checks"]}
    levels = ("easy", "medium", "hard")
    for task in ("BitGuessing", "BitQuery", "LegendaryTree", "RPD", "GeoGame"):
        assert [found.get(("string id", task, level)) for level in levels] == [30] * 3
    wanted = {
        ("level label", "BitGuessing"): (0, 30, 0),
        ("unsolvable", "BitQuery"): (0, 24, 0),
        ("unsolvable", "RainbowCandy"): (7, 30, 30),
        ("unsolvable", "MagneticField"): (18, 10, 8),
        ("unsolvable by the prompt", "RainbowCandy"): (5, 0, 0),
        ("unsolvable by the prompt", "MagneticField"): (5, 3, 4),
        ("undecidable", "MahjongDetective"): (19, 17, 21),
        ("refused form", "MinMax"): (0, 30, 30),
        ("never ends", "LegendaryTree"): (30, 30, 30),
        ("structure", "PizzaSlice"): (9, 14, 22),
        ("structure", "DarkMaze"): (8, 11, 13),
        ("lost against perfect play", "XORBreaking"): (15, 10, 15),
    }
    for (check, task), counts in wanted.items():
        assert tuple(found.get((check, task, level), 0) for level in levels) == counts, (check, task)
    assert sum(found.get(("structure", "CactusSearch", level), 0) for level in levels) == 89
    assert sum(found.get(("refused form", "RPD", level), 0) for level in levels) == 90
    different = {(d["task"], d["level"]): d for d in result["levels"]}
    assert different["PermutationDiscovery", "easy"]["ids"] == 24
    assert [different["AssiutChess", level]["different"] for level in levels] == [14, 20, 24]
    assert [different["DarkMaze", level]["different"] for level in levels][:2] == [8, 29]
    for task in ("RPD", "BitGuessing", "GeoGame"):
        assert sum(found.get(("no scale", task, level), 0) for level in levels) == 90


def test_rows_of_a_clone(tmp_path: Path) -> None:
    """A folder laid out as the reference's, with leftovers beside the file that counts."""
    folder = tmp_path / "problem" / "information_query" / "BitQuery" / "easy"
    folder.mkdir(parents=True)
    text = {"question_id": "3", "prompt": "Find it.\n\nReady to start?", "title": "BitQuery", "difficulty": "easy"}
    text |= {"answer": "3021", "scale": 4, "type": "information_query"}
    (folder / "problem.jsonl").write_text(json.dumps(text) + "\n")
    (folder / "problem_old.jsonl").write_text("leftover")
    which = mtr.Which(None, tmp_path, ("BitQuery",), (), ("easy",))
    plan = mtr.RunOptions("solver", rules=mtr.Rules(rules="reference"), which=which, job=mtr.JobOptions())
    events = list(mtr.run(plan))
    (record,) = [e.row for e in events if isinstance(e, Produced)]
    assert (record["question_id"], record["solved"], record["rounds"]) == (3, True, 7)
    assert any("texts for ids" in getattr(e, "message", "") for e in events)
    from qwench.ops.games.match import Match, settled

    shown = Match(settled(text), mtr.Rules(rules="reference", max_round=9)).messages[0]["content"]
    sentence = (
        "- You have 9 attempts to find the answer, which means you need to output your answer in the 9-th round or"
    )
    assert f"Find it.\n{sentence} before this round.\n\nReady to start?" in shown


def test_a_game_that_fails_is_not_won() -> None:
    from qwench.ops.games.report import counted, summary

    failed = {"id": "MinMax/easy/1", "row": row("MinMax"), "failed": "the prompt does not fit"}
    found = summary([counted(failed), counted(played("solver", "MinMax").told())])["all"]
    assert (found["games"], found["solved"], found["ended"]["error"]) == (2, 1, 1)


def test_measures() -> None:
    records = [played("solver", "MinMax", "easy", n).told() for n in range(4)]
    found = share(records)
    assert (found["games"], found["solved"], found["invalid_games"]) == (4, 4, 0)
    assert normalised(0.5, 0.25, 0.75) == 0.5 and normalised(0.5, 1, 1) is None
    slower = [r | {"rounds": r["rounds"] + 2} for r in records]
    told = efficiency(records, slower)
    assert (told["common"], told["difference"], told["fewer"]) == (4, -2, 1.0)
    bad = played("spam", "MinMax").told()
    bad["turns"] = [{"valid": False, "reason": "range"}]
    assert share([bad])["reasons"]["range"] == 1 and share([bad])["invalid_games"] == 1


def test_transcripts_of_the_chooser(tmp_path: Path) -> None:
    """A model that prefers one message; its replies come from a writer that compares."""
    from qwench.ops.games import play

    rows = made(tmp_path / "rows.jsonl", tasks=("DarkMaze",), levels=("easy",), per=2)
    work = play.work_of(options(rows, tmp_path / "out.jsonl", "choose"))

    class Chooser:
        name, about = "prefers", {}

        def choose(self, ask: Any, continuations: list[str]) -> list[Any]:
            assert ask.budget == 0 and all(c.startswith("My Choice: ") for c in continuations)
            return [type("Scored", (), {"mean": -float(c[-1] not in "SE")})() for c in continuations]

    work._chooser, work.chat.writer = Chooser(), Chooser()
    for one in lines(rows):
        match = work.begin({"row": one | {"question_id": 1}}, None)()
        assert match.ended in ("solved", "limit") and all(t["output"][-1] in "SENW" for t in match.turns)
        assert work.finish({"row": one}, [match])["model"] == "prefers"
