"""Rows of `explore rows --form dpo|pairs` as ids to train on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Started, Warned
from ..jobs.rows import Table
from ..models.template import ChatTemplate
from ..models.tokenizer import TextTokenizer
from ..text.rows import Malformed
from .preference import Pair

#: bad rows that are told one by one
TOLD = 20


@dataclass(slots=True)
class Pairs:
    """What is trained on.

    Attributes:
        long: rows that are longer than there is room for; bad: rows that are none; both are left out.
    """

    rows: list[Pair] = field(default_factory=list)
    long: int = 0
    bad: int = 0

    @property
    def digest(self) -> str:
        """Of all ids and advantages, in their order."""
        seen = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            seen.update(json.dumps([row.prompt, row.completions, row.advantages]).encode())
        return seen.hexdigest()


def end_of_turn(tokenizer: TextTokenizer, template: ChatTemplate, ends: list[int]) -> int:
    """The token that a model's answer ends with: what its template puts there, else the one of its config.

    Raises:
        QwenchError: there is none.
    """
    if template.source is not None:
        said = "an answer"
        closed = template.closed([{"role": "user", "content": "a"}, {"role": "assistant", "content": said}])
        after = tokenizer.ids([closed.rpartition(said)[2]])[0]
        if (found := next((i for i in after if i in ends), None)) is not None:
            return found
    if not ends:
        raise QwenchError("neither config nor template tells what ends an answer", "set eos_token_id in config.json")
    return ends[0]


def read(name: str, loss: str, tokenizer: TextTokenizer, end: int, room: int, keep_going: bool, stdin: Any = None
) -> Iterator[Event | Pairs]:  # fmt: skip
    """Events, and the pairs last.

    Args:
        room: longest prompt and completion together, in tokens.

    Raises:
        QwenchError: a row of another form, unless keep_going; none is left.
    """
    found = Pairs()
    yield Started("rows")
    for row in Table(name, stdin):
        try:
            if isinstance(row.value, Malformed):
                raise QwenchError(str(row.value))
            pair = _pair(row.value, loss, tokenizer, end)
        except QwenchError as error:
            said = f"{row.place}{'' if isinstance(row.value, Malformed) else ':'} {error.message}"
            if not keep_going:
                raise QwenchError(said, error.hint, error.code) from error
            found.bad += 1
            if found.bad <= TOLD:
                yield Warned("rows", f"left out: {said}", row.key, True)
        else:
            fits = len(pair.prompt) + max(map(len, pair.completions)) <= room
            found.long += not fits
            if fits:
                found.rows.append(pair)
        yield Advanced("rows", 1)
    if found.long:
        yield Warned("rows", f"{found.long} rows are longer than {room} tokens, and left out", None, True)
    if not found.rows:
        raise QwenchError(f"there is nothing to train on: `{name}`", f"give rows of explore rows --form {loss}")
    yield found


def _pair(row: dict[str, Any], loss: str, tokenizer: TextTokenizer, end: int) -> Pair:
    """A row's ids: prompt and completions each by itself, as they were generated."""
    if loss == "dpo":
        prompt, texts, scores = row.get("prompt"), [row.get("chosen"), row.get("rejected")], [1.0, -1.0]
        names = "`prompt`, `chosen` and `rejected`"
    else:
        prompt, texts, scores = row.get("rendered"), row.get("response"), row.get("advantage")
        names = "`rendered`, `advantage` and `response`"
    two = isinstance(texts, list) and isinstance(scores, list) and len(texts) == len(scores) == 2
    good = two and all(isinstance(t, str) for t in (prompt, *texts))
    if not good or not all(isinstance(s, int | float) and not isinstance(s, bool) for s in scores):
        raise QwenchError(
            f"there are no {names} of one pair", f"--loss {loss} takes rows of explore rows --form {loss}"
        )
    if not prompt:
        raise QwenchError("the prompt is empty", "give what explore rows made")
    # Completions that were cut at their limit do not end there.
    cut = row.get("truncated") or [False, False]
    ids = tokenizer.ids([prompt, *texts])
    said = [i if c else [*i, end] for i, c in zip(ids[1:], cut, strict=True)]
    if not all(said):
        raise QwenchError("a completion is empty", "leave the row out")
    return Pair(ids[0], (said[0], said[1]), (float(scores[0]), float(scores[1])))
