"""Reports of `qwench reward` as lines for a reader."""

from collections.abc import Iterator
from typing import Any


def report(found: dict[str, Any]) -> Iterator[str]:
    """The report of `reward eval`."""
    yield f"pairs       {found['n']:,}" + "".join(
        f", {found[name]:,} {name}" for name in ("ties", "identical", "skipped", "failed") if found[name]
    )
    if not found["n"]:
        return
    yield f"accuracy    {share(found)}, strict {found['strict_accuracy']:.4f}"
    yield f"BT loss     {found['bt_loss']:.4f}{_ends(found['bt_loss_interval'])} (0.6931 knows nothing)"
    for name, row in found["rulers"].items():
        yield f"ruler       {name:9}{share(row)}"
    unit, length = found["length_unit"], found["length"]
    for name in ("longer", "shorter", "equal"):
        if length[name]["n"]:
            yield f"chosen {name:8} {share(length[name])}  ({length[name]['n']:,} pairs, by {unit})"
    phi = "none" if found["phi_length"] is None else f"{found['phi_length']:+.3f}"
    yield f"phi         {phi} between the model's and the label's taste for length"
    yield from _style(found["style"])
    yield from _cells(found)
    if bench := found.get("benchmark"):
        yield ""
        yield f"{bench['name']}  overall {_number(bench['overall'])}"
        yield from (f"  {name:12} {_number(value)}" for name, value in bench["sections"].items())
        if bench["missing"]:
            yield f"  missing: {', '.join(bench['missing'])}"
    if curve := found.get("scaling"):
        yield ""
        fitted = f"loss = {curve['a']:.3g} N^-{curve['b']:.3f} + {curve['c']:.3g}, b{_ends(curve['b_interval'])}"
        yield "loss against size: " + ("too noisy to fit" if curve["noisy"] else fitted)
        yield f"  left by the curve {curve['error']:.4f}, by a constant {curve['constant_error']:.4f}"
        yield from (
            f"  N {p['size']:<8g} loss {p['bt_loss']:.4f}  accuracy {p['accuracy']:.4f}" for p in curve["points"]
        )
    if other := found.get("against"):
        yield ""
        yield f"against {other['model'] or 'the other'}: {_against(other)}"
        yield from (f"  {name:20} {_against(row)}" for name, row in other["by"].items())


def _style(style: dict[str, Any]) -> Iterator[str]:
    for name in ("style", "reward", "both"):
        if style[name]:
            yield f"fit {name:8} held-out BT loss {style[name]['bt_loss']:.4f}, accuracy {style[name]['accuracy']:.4f}"
    if style["reward_adds_nats"] is not None:
        yield f"the reward adds {style['reward_adds_nats']:.4f} nats over style ({style['folds']} folds by prompt)"
    weights = {"reward": style["alpha"], **style["beta"]}
    yield "weights     " + ", ".join(f"{n} {w['value']:+.2f}{_ends(w['interval'], 2)}" for n, w in weights.items())
    if style["matched"]["n"]:
        yield f"equally long {share(style['matched'])}  ({style['matched']['n']:,} pairs)"


def _cells(found: dict[str, Any]) -> Iterator[str]:
    if found["by"]:
        yield ""
        width = max(len(name) for name in [*found["by"], found["by_field"]])
        yield f"{found['by_field']:{width}}      n  accuracy  (95 %)            BT loss"
        for name, row in found["by"].items():
            yield f"{name:{width}}  {row['n']:5,}  {share(row):28}{row['bt_loss']:.4f}"


def share(row: dict[str, Any]) -> str:
    """Accuracy with its interval."""
    return f"{row['accuracy']:.4f}{_ends(row['accuracy_interval'])}"


def _ends(ends: list[float] | None, digits: int = 4) -> str:
    return "" if ends is None else f" ({ends[0]:.{digits}f} to {ends[1]:.{digits}f})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _against(row: dict[str, Any]) -> str:
    line = f"{row['difference']:+.4f}{_ends(row['interval'])}, right alone {row['only_this']} and {row['only_other']}"
    line += f" of {row['n']:,}, McNemar p {row['p']:.4g}"
    return line + (f", Holm {row['p_holm']:.4g}" if "p_holm" in row else "")


def sizes(found: dict[str, Any]) -> Iterator[str]:
    """The table of `reward best-of`."""
    first = found["sizes"][0]
    rules = [name for name in ("reward", "majority", "weighted", "oracle") if name in first]
    yield "n     rows  " + "".join(f"{name:26}" for name in rules).rstrip()
    for row in found["sizes"]:
        cells = [f"{row[name]:.4f}{_ends(row[f'{name}_interval'])}" for name in rules]
        yield f"{row['n']:<5} {row['rows']:<5} " + "".join(f"{cell:26}" for cell in cells).rstrip()
    if "weighted" in rules:
        yield f"votes of `weighted` weigh the {found['weights']}"
    if not all(row["exact"] for row in found["sizes"]):
        yield "majorities of large n are over 10,000 seeded draws"
    if found["without_answer"]:
        yield f"{found['without_answer']:,} answers have no final answer, and no vote"
