"""Is a completion right: its last answer against the question's, by one of several verifiers.

The order in which an answer is looked for is that of Qwen2.5-Math's evaluation, which MARGE takes over.
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shlex
import shutil
import subprocess
from functools import lru_cache
from typing import Any

from ...base.errors import QwenchError
from ..boxes import boxes
from ..equality import quick
from ..numbers import close, number, plain_digits
from ..worker import Workers

VERIFIERS = ("number", "boxed", "choice", "exact", "math-verify", "command:PROG")
VERDICTS = ("right", "wrong", "unparsed", "timeout", "truncated")
_HOPE = re.compile(r"final answer is \$(.*?)\$\. I hope", re.DOTALL)
_SAID = (re.compile(r"he answer is:?\s*(.*)"), re.compile(r"final answer is:?\s*(.*)"))
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?%?")
_FRACTION = re.compile(r"([-+]?)\s*\\[dt]?frac\{?(-?[\d.]+)\}?\{?(-?[\d.]+)\}?|([-+]?[\d.]+)\s*/\s*([-+]?[\d.]+)")
_LETTER = re.compile(r"(?<![A-Za-z])([A-E])(?![A-Za-z'])")
_BOX = "boxed{"


class Unparsed(Exception):
    """There is no answer in it."""


def answer_in(text: str) -> tuple[str, bool]:
    r"""(the answer that a completion ends with, whether it stands in a box or a sentence that announces it)

    A box that never closes is no answer, and no earlier one stands in for it.

    Raises:
        Unparsed: such a box.
    """
    if found := _HOPE.findall(text):
        return found[-1].strip(), True
    if (at := text.replace(" ", "").rfind(_BOX)) >= 0:
        found = boxes(text.replace(" ", "")[at:])
        if not found:
            raise Unparsed
        return found[0], True
    for pattern in _SAID:
        if found := pattern.findall(text):
            return found[-1].strip().rstrip(".").strip(" $*"), True
    return text.strip(), False


def value_of(text: str) -> float | None:
    """A whole text as a number: a fraction too, without currency, commas, `$` and a final dot."""
    bare = plain_digits(text).strip().strip("$").strip().rstrip(".").replace("\u2212", "-").lstrip("€£¥₹")
    if m := _FRACTION.fullmatch(bare):
        sign = -1 if m[1] == "-" else 1
        try:
            above, below = (float(m[2]), float(m[3])) if m[2] else (float(m[4]), float(m[5]))
        except ValueError:
            return None
        return sign * above / below if below else None
    found = number(bare)
    return found if found is not None and math.isfinite(found) else None


def number_in(text: str) -> float:
    """The number a completion ends with.

    Raises:
        Unparsed: none.
    """
    said, announced = answer_in(text)
    if announced and (found := value_of(said)) is not None:
        return found
    numbers = _NUMBER.findall(plain_digits(said))
    found = value_of(numbers[0 if announced else -1]) if numbers else None
    if found is None:
        raise Unparsed
    return found


class Verifier:
    """Verdicts by one of VERIFIERS; ends its processes with the block.

    Args:
        percent: a number also equals the hundredfold and a hundredth of the right one.
        limit: seconds of a comparison by algebra or a command.

    Raises:
        QwenchError: no such verifier, no such program, or a library that is not installed.
    """

    def __init__(self, name: str, percent: bool = False, limit: float = 5.0) -> None:
        self.name, self.percent, self.limit = name, percent, limit
        self.command = shlex.split(name.removeprefix("command:")) if name.startswith("command:") else []
        if not self.command and name not in VERIFIERS[:-1]:
            raise QwenchError(f"unknown verifier: `{name}`", f"use {', '.join(VERIFIERS)}", code=2)
        if self.command and shutil.which(self.command[0]) is None:
            raise QwenchError(f"no such program: `{self.command[0]}`", "name one that is on PATH", code=2)
        if percent and name not in ("number", "boxed"):
            raise QwenchError(f"equal per cent is no rule of the verifier {name}", "leave it out", code=2)
        call = {"boxed": "compat", "math-verify": "math-verify"}.get(name)
        if call and importlib.util.find_spec("math_verify") is None:
            raise QwenchError(f"the verifier {name} needs math-verify", "pip install 'qwench[grading]'")
        self._workers = Workers([call], most=1, limit=limit) if call else None
        self.verdict = lru_cache(1 << 14)(self._verdict)

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *error: object) -> None:
        if self._workers is not None:
            self._workers.__exit__(*error)

    def gold(self, given: Any) -> str:
        """A question's right answer as it is compared: of a solution its last number, letter or box.

        Raises:
            QwenchError: there is none, or none that can be read.
        """
        if given is None or isinstance(given, dict | list | bool) or not str(given).strip():
            raise QwenchError("there is no answer", "every row needs a field `answer` or `gt`")
        text = str(given).strip()
        text = text.rpartition("####")[2].strip() if "####" in text else text
        try:
            if self.name == "number":
                number_in(text)
            elif self.name == "choice":
                text = self._letter(text)
            elif self.name in ("boxed", "math-verify") and _BOX in text:
                text = answer_in(text)[0]
        except Unparsed as error:
            hint = "correct it, or choose another verifier"
            raise QwenchError(f"the answer cannot be read by the verifier {self.name}: `{text[:60]}`", hint) from error
        return text

    def _verdict(self, text: str, gold: str, finish: str) -> str:
        """One of VERDICTS; an answer that was cut at its limit is truncated whatever it says."""
        if finish == "length":
            return "truncated"
        try:
            return self._judged(text, gold)
        except Unparsed:
            return "unparsed"

    def _judged(self, text: str, gold: str) -> str:
        if self.command:
            return self._told(text, gold)
        if self.name == "number":
            ours, theirs = number_in(text), number_in(gold)
            rates = (1, 100, 0.01) if self.percent else (1,)
            return _word(any(close(ours, theirs * rate) for rate in rates))
        if self.name == "choice":
            return _word(self._letter(text) == gold)
        said, announced = answer_in(text)
        if self.name == "exact":
            if not said:
                raise Unparsed
            return _word(" ".join(said.casefold().split()) == " ".join(gold.casefold().split()))
        if not announced:
            raise Unparsed
        return self._algebra(said, gold)

    def _algebra(self, said: str, gold: str) -> str:
        assert self._workers is not None
        texts = plain_digits(said).replace(" ", ""), plain_digits(gold).replace(" ", "")
        call, own = ("compat", (self.percent,)) if self.name == "boxed" else ("math-verify", ())
        found = quick(*texts, self.percent) if self.name == "boxed" else None
        if found is not None:
            return _word(found)
        reply = self._workers.call(call, *texts, *own)
        if reply.found is None:
            return "timeout" if reply.trouble in ("late", "died") else "unparsed"
        return _word(bool(reply.found["equal"]))

    def _told(self, text: str, gold: str) -> str:
        """What a program says of `{"text", "answer"}` by its exit code: 0 right, 1 wrong, 2 unparsed."""
        try:
            told = json.dumps({"text": text, "answer": gold}).encode()
            done = subprocess.run(self.command, input=told, capture_output=True, timeout=self.limit)
        except (subprocess.TimeoutExpired, OSError):
            return "timeout"
        return {0: "right", 1: "wrong", 2: "unparsed"}.get(done.returncode, "timeout")

    @staticmethod
    def _letter(text: str) -> str:
        said, announced = answer_in(text)
        letters = _LETTER.findall(said)
        if not letters:
            raise Unparsed
        return letters[0 if announced else -1]


def _word(right: bool) -> str:
    return "right" if right else "wrong"
