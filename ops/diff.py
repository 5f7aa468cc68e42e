"""Two checkpoints, tensor by tensor: the work behind `qwench diff`."""

from __future__ import annotations

from .base.events import Advanced, Chose, Events, Finished, Produced, Started
from .base.runtime import PLAIN, Runtime
from .checkpoint.layout import layout_of, renamed
from .conversion.compare import compare_tensor
from .models.hub import open_source


def diff(a: str, b: str, tolerance: float = 0.0, runtime: Runtime = PLAIN) -> Events:
    """Compare names, shapes, dtypes and values.

    Where one layout is flat and the other prefixed, names are compared without the prefix. Yields Produced for every
    difference (name, kind: only_a | only_b | shape | dtype | values, and for values largest absolute and relative
    difference), then Finished with counts and `same`. Values differ when their relative difference
    |a - b|_max / |a|_max is above `tolerance`; dtypes alone are no difference when a tolerance is given.

    Raises:
        QwenchError: one of them is no checkpoint, or damaged.
    """
    one, two = (open_source(name, None, runtime.offline) for name in (a, b))
    layouts = layout_of(one.infos), layout_of(two.infos)
    bare = None not in layouts and layouts[0] != layouts[1]
    if bare:
        yield Chose("names", "bare", f"`{a}` is {layouts[0]} and `{b}` {layouts[1]}")
    left, right = ({renamed(n, "flat") if bare else n: n for n in s.infos} for s in (one, two))
    shared = [n for n in left if n in right]
    counts = {"equal": 0, "only_a": 0, "only_b": 0, "shape": 0, "dtype": 0, "values": 0}
    for kind, names in (
        ("only_a", [n for n in left if n not in right]),
        ("only_b", [n for n in right if n not in left]),
    ):
        for name in names:
            counts[kind] += 1
            yield Produced({"name": name, "kind": kind})
    yield Started("compare", sum(one.infos[left[n]].nbytes for n in shared), "B")
    for name in shared:
        found = compare_tensor(one, left[name], two, right[name], tolerance)
        counts[found["kind"]] += 1
        if found["kind"] != "equal":
            yield Produced({"name": name, **found})
        yield Advanced("compare", one.infos[left[name]].nbytes)
    same = sum(counts.values()) == counts["equal"]
    yield Finished({"schema": 1, "a": a, "b": b, "tolerance": tolerance, **counts, "same": same})
