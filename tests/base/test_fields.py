"""Values of files that others wrote: what does not fit is one sentence with file, key and value."""

from __future__ import annotations

import copy
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.base.fields import FLAG, TEXT, Fields, either, listed, mapped, number, one_of, table, whole
from qwench.ops.base.parse import parse_json, parse_toml, parse_yaml

KINDS = {
    "heads": whole(1),
    "limit": whole(0, None),
    "eps": number(above=0),
    "tied": FLAG,
    "eos": either(whole(0), listed(whole(0))),
    "vocab": mapped(whole(0)),
    "kind": one_of("a", "b"),
    "rope": table({"factor": number(above=0)}),
    "added": listed(table({"id": whole(0), "content": TEXT})),
}

#: forty lines that stand for 2^40 lists
BOMB = b"".join(b"y%d: &x%d [*x%d, *x%d]\n" % (i, i, i - 1, i - 1) for i in range(1, 41))


def said(**values: object) -> Fields:
    return Fields(values, "config.json", KINDS)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"heads": "x"}, '`config.json`: `heads` must be a whole number above 0, and is `"x"`'),
        ({"heads": 0}, "`config.json`: `heads` must be a whole number above 0, and is `0`"),
        ({"heads": True}, "`config.json`: `heads` must be a whole number above 0, and is `true`"),
        ({"heads": 1 << 31}, "`heads` must be a whole number above 0, and is `2147483648`"),
        ({"heads": None}, "`config.json` does not say `heads`"),
        ({}, "`config.json` does not say `heads`"),
        ({"eps": float("nan")}, "`eps` must be a number above 0, and is `nan`"),
        ({"eps": 10**400}, "`eps` must be a number above 0, and is `a number of very many digits`"),
        ({"tied": "false"}, '`tied` must be true or false, and is `"false"`'),
        ({"eos": [1, -1]}, "`eos` must be a whole number of at least 0 or a list, each a whole number of at least 0"),
        ({"vocab": {"a": None}}, "`vocab` must be an object, each value a whole number of at least 0"),
        ({"kind": [1]}, '`kind` must be one of "a", "b", and is `[1]`'),
        ({"rope": []}, "`rope` must be an object, and is `[]`"),
        ({"added": [{"id": 1}, 3]}, "`added` must be a list, each an object"),
    ],
)
def test_what_does_not_fit_is_named(value: dict, sentence: str) -> None:
    key = next(iter(value), "heads")
    with pytest.raises(QwenchError) as caught:
        said(**value)[key]
    assert sentence in caught.value.message and caught.value.hint


def test_only_what_is_asked_for_is_checked_and_copies_check_too() -> None:
    odd = said(heads="x", eps=1.0, rope={"factor": -1}, added=[{"id": 0, "content": 7}], other={"any": None})
    assert odd["eps"] == 1.0 and odd["other"] == {"any": None}
    for same in (odd, odd | {"more": 1}, odd.copy(), copy.deepcopy(odd)):
        with pytest.raises(QwenchError, match="`heads`"):
            same.get("heads", 3)
    with pytest.raises(QwenchError, match=r"`rope\.factor` must be a number above 0, and is `-1`"):
        odd["rope"]["factor"]
    with pytest.raises(QwenchError, match=r"`added\[0\]\.content` must be text, and is `7`"):
        odd["added"][0]["content"]
    assert json.loads(json.dumps(odd)) == {**odd}


def test_null_is_absent_and_zero_is_not() -> None:
    assert said(limit=None).get("limit", 5) == 5
    assert said(limit=0).get("limit", 5) == 0 and said().get("limit") is None


@settings(max_examples=40, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_any_value_is_taken_or_refused_in_one_line(value: object) -> None:
    for key in KINDS:
        try:
            said(**{key: value}).get(key)
        except QwenchError as error:
            assert "\n" not in error.message and len(error.message) < 300


@pytest.mark.parametrize(
    ("parse", "data", "reason"),
    [
        (parse_json, b"[" * 100_000, "nested too deep"),
        (parse_json, b'{"a":' * 200 + b"1" + b"}" * 200, "nested too deep"),
        (parse_json, b'{"a": 1, "a": 2}', 'the key "a" is there twice'),
        (parse_json, b"9" * 5000, "4300 digits"),
        (parse_json, b'{"\xff": 1}', "byte 2 is not UTF-8"),
        (parse_json, b"\xef\xbb\xbf{}", "BOM"),
        (parse_json, b'"\\ud800"', "surrogate"),
        (parse_toml, b"a = " + b"[" * 5000, "nested too deep"),
        (parse_toml, b"a = 1\na = 2", "Cannot overwrite"),
        (parse_toml, b"a = " + b"9" * 5000, "4300 digits"),
        (parse_toml, b"\xff", "not UTF-8"),
        (parse_yaml, b"a: &a [*a]", "nested too deep"),
        (parse_yaml, b"[" * 3000, "nested too deep"),
        (parse_yaml, b"x: &x0 [[], []]\n" + BOMB, "by its aliases"),
        (parse_yaml, b"a: 1\na: 2", 'the key "a" is there twice'),
        (parse_yaml, b"a: 2023-99-99", "month"),
        (parse_yaml, b'a: !!int ""', "index"),
        (parse_yaml, b"a: " + b"9" * 5000, "4300 digits"),
        (parse_yaml, b"!!python/object/apply:os.system [x]", "could not determine a constructor"),
    ],
)
def test_what_cannot_be_parsed_is_named(parse: object, data: bytes, reason: str) -> None:
    with pytest.raises(QwenchError, match=r"^cannot be read as") as caught:
        parse(data, "the file")
    assert reason in caught.value.message and "`the file`" in caught.value.message


def test_what_can_is_the_same_as_the_library_says() -> None:
    text = '{"a": [1, 2.5, null, "\\ud83d\\ude00"], "b": {"a": 1}, "b": {"a": 1}}'
    assert parse_json(text, "f") == json.loads(text)
    assert parse_yaml(b"a: &a [1, 2]\nb: *a\n<<: {c: 3}\n", "f") == {"a": [1, 2], "b": [1, 2], "c": 3}


def test_a_damaged_config_file_is_one_sentence(qwench: Callable[..., Any], tmp_path: Path) -> None:
    for data in (b"a = " + b"[" * 4000, b"\xff\xfe"):
        (tmp_path / "config").mkdir(exist_ok=True)
        (tmp_path / "config" / "config.toml").write_bytes(data)
        done = qwench("config", env={"QWENCH_HOME": str(tmp_path)})
        assert done.returncode == 1 and re.match(r"error: cannot be read as", done.stderr), done.stderr


@pytest.mark.parametrize("line", ["[" * 50_000, '{"a":' * 50_000, "3", "[1]", '{"a": 1, "a": 2}', "9" * 5000])
def test_lines_of_requests_queries_and_points_end_in_one_sentence(line: str, tmp_path: Path) -> None:
    from qwench.ops.streams.points import read_points
    from qwench.ops.text.candidates import read_queries
    from qwench.ops.text.rows import json_lines
    from qwench.ops.writing.many import _objects

    file = tmp_path / "a.jsonl"
    file.write_text(line + "\n")
    reads: list[Callable[[], object]] = [
        lambda: _objects(list(json_lines(io.BytesIO(line.encode())))),
        lambda: read_points(file),
    ]
    # Other lines of a file of queries are texts.
    reads += [lambda: read_queries(str(file))] if line.startswith("{") else []
    for read in reads:
        with pytest.raises(QwenchError) as caught:
            read()
        assert "\n" not in caught.value.message
