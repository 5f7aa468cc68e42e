"""The report of `qwench wav score` as lines for a reader."""

from collections.abc import Iterator
from typing import Any


def report(found: dict[str, Any]) -> Iterator[str]:
    """What a judge is worth; nothing where no row has a label, a control or several draws."""
    if found["witness"]:
        yield f"the judge is {found['model']}: a witness to compare with, no audio language model"
    if whole := found["agreement"]:
        yield f"exact        {_share(whole['accuracy'], whole['accuracy_interval'])} of {whole['n']:,} labelled"
        yield f"majority     {_number(whole['majority'])} (always the commonest label)"
        if whole["parsed"] < whole["n"]:
            yield f"parsed       {whole['parsed']:,}; exact of these {_number(whole['accuracy_parsed'])}"
        yield f"apart        {_number(whole['error'])} on average; quadratic kappa {_number(whole['kappa'])}"
    if order := found["ranking"]:
        yield _ranked(order)
    for name, row in found["attributes"].items():
        yield f"  {name:11}{_share(row['accuracy'], row['interval'])} of {row['n']:,}"
    if len(found["attributes"]) > 1:
        yield f"  {'mean':11}{_number(found['attribute_mean'])}"
    if draws := found["stability"]:
        changed = _number(draws["changed"])
        yield f"draws        spread {_number(draws['spread'])}; the majority is not the first draw in {changed}"
    if whole:
        yield from _confusion(whole["confusion"])
    if found["controls"]:
        yield from _controls(found)


def _ranked(order: dict[str, Any]) -> str:
    if not order["pairs"]:
        return "ranking      no question has answers with different labels"
    parts = "; ".join(
        f"{what} {_number(order[name]['share'])} of {order[name]['pairs']:,}"
        for name, what in (("content", "by words"), ("form", "by form"))
        if order[name]["pairs"]
    )
    lack = f"; {order['unscored']:,} lack a score and count half" if order["unscored"] else ""
    return f"ranking      {_share(order['share'], order['interval'])} of {order['pairs']:,} pairs ({parts}{lack})"


def _confusion(rows: dict[str, dict[str, int]]) -> Iterator[str]:
    names = sorted({name for row in rows.values() for name in row})
    yield "label" + "".join(f"{name:>8}" for name in names)
    for label, row in rows.items():
        yield f"{label:5}" + "".join(f"{row.get(name, 0):8,}" for name in names)


def _controls(found: dict[str, Any]) -> Iterator[str]:
    yield f"{'control':10}{'rows':>7}{'exact':>9}{'ranking':>9}{'words':>9}{'form':>9}{'same':>9}"
    plain = {"rows": found["rows"] - found["bad"] - found["failed"], "same": None}
    for name, row in {"none": found | plain, **found["controls"]}.items():
        order = row["ranking"] or {"share": None, "content": {"share": None}, "form": {"share": None}}
        values = ((row["agreement"] or {}).get("accuracy"), order["share"], order["content"]["share"])
        values = (*values, order["form"]["share"], row["same"])
        yield f"{name:10}{row['rows']:7,}" + "".join(f"{_number(v):>9}" for v in values)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _share(value: float | None, ends: Any) -> str:
    return _number(value) + ("" if ends is None else f" [{ends[0]:.4f}, {ends[1]:.4f}]")
