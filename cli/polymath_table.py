"""How scores of PolyMath look on a terminal."""

from typing import Any

from . import out as out_

LEVELS = ("low", "medium", "high", "top")
#: differences between languages that are told
PAIRS = 3


def show(streams: out_.Out, result: dict[str, Any], by: str) -> None:
    """All models, and how two compare."""
    for number, model in enumerate(result["models"]):
        if number:
            streams.data("")
        _model(streams, model, by, len(result["models"]) > 1)
    if result["compare"]:
        _compared(streams, result["compare"])


def _model(streams: out_.Out, model: dict[str, Any], by: str, named: bool) -> None:
    if named:
        streams.data(model["model"])
    if by == "lang":
        _languages(streams, model)
    else:
        for row in model["by"][by]:
            streams.data(f"{row[by]:16}{row['accuracy']:7.1f}{row['answers']:8,}")
    total = model["total"]
    if total["complete"]:
        interval = _interval(total["dw_acc_interval"])
        streams.data(f"mean of 18 languages: DW-ACC {total['dw_acc']:.1f} {interval}".rstrip())
    else:
        missing = total["missing"]
        streams.data(f"no total: {len(missing)} of 72 pairs of language and level are missing, {missing[0]} first")
    if agreement := model["agreement"]:
        _agreement(streams, agreement)
    _notes(streams, model)


def _languages(streams: out_.Out, model: dict[str, Any]) -> None:
    lingua = any("answer_lingua_consistency" in row for row in model["languages"].values())
    heads = ["lang", *LEVELS, "DW-ACC", "95 %", "thought in", "compat", "answer in"]
    heads += ["lingua t", "lingua a"] if lingua else []
    heads += ["thinking", "cut", "no box"]
    rows = []
    for language, row in model["languages"].items():
        cells = [_shown(row["levels"].get(level, {}).get("accuracy")) for level in LEVELS]
        names = ["thinking_consistency", "thinking_compat", "answer_consistency"]
        names += ["thinking_lingua_consistency", "answer_lingua_consistency"] if lingua else []
        names += ["thinking_tokens", "cut", "without_box"]
        interval = _interval(row["dw_acc_interval"])
        rows.append([language, *cells, _shown(row["dw_acc"]), interval, *(_shown(row.get(n)) for n in names)])
    table(streams, [heads, *rows])


def table(streams: out_.Out, rows: list[list[str]]) -> None:
    """Columns as wide as they need, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        streams.data("  ".join(cells).rstrip())


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _interval(ends: list[float] | None) -> str:
    return "" if ends is None else f"[{ends[0]:.1f}, {ends[1]:.1f}]"


def _agreement(streams: out_.Out, found: dict[str, Any]) -> None:
    if not found["questions"]:
        streams.data("no question has an answer in every language")
        return
    streams.data(
        f"{found['questions']} questions in every language: {found['all_right']:.1f} % right in all, "
        f"{found['none_right']:.1f} % in none"
    )
    pairs = sorted(found["pairs"], key=lambda p: -abs(p["difference"]))
    for pair in pairs[:PAIRS]:
        if pair["difference"]:
            streams.data(f"  {pair['b']} - {pair['a']}: {_difference(pair)}")


def _difference(row: dict[str, Any]) -> str:
    told = f"{row['difference']:+.1f} {_interval(row['interval'])}".rstrip()
    return told + (f", p {row['p']:.3g}, corrected {row['p_holm']:.3g}" if row["p"] is not None else "")


def _compared(streams: out_.Out, found: dict[str, Any]) -> None:
    streams.data(f"{found['b']} - {found['a']}, by question")
    for row in found["languages"]:
        told = f"  {row['lang']}  {_difference(row)}"
        if row["dw_acc"] is not None:
            told += f"; DW-ACC {row['dw_acc']:+.1f} {_interval(row['dw_acc_interval'])}".rstrip()
        streams.data(told)


def _notes(streams: out_.Out, model: dict[str, Any]) -> None:
    """What a reader of the numbers must know."""
    if model["several_boxes"]:
        streams.talk(f"{model['several_boxes']} answers have several different boxes; see --box")
    short = [row["short"] for row in model["languages"].values() if row["short"] is not None]
    if short and max(short):
        streams.talk(
            f"up to {max(short):.1f} % of a language's texts are too short to tell, which counts as consistent"
        )
    if model["timeouts"] or model["died"]:
        lost = model["timeouts"] + model["died"]
        streams.talk(f"{lost} comparisons came to no end, and count as wrong: {model['timeouts']} over the limit")
    if model["digits"]:
        streams.talk(f"{model['digits']} answers are right once digits of other scripts are read as 0-9")
    if model["unread"]:
        streams.talk(f"{len(model['unread'])} right answers are no formulas and were compared as text")
    for name in ("math-verify", "compat"):
        if name in model:
            streams.talk(f"{name} differs on {len(model['disagreements'])} answers; --json lists them")
    if "mix" in model:
        for row in model["mix"]:
            others = {n: s for n, s in row["share"].items() if s >= 0.01}
            told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in others.items())
            streams.data(f"{row['lang']} {row['text']} in {told}")
