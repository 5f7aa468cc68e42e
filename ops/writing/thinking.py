"""Thinking tags and the budget between them (Qwen3 technical report, arXiv 2505.09388, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

from ..base.errors import QwenchError
from ..models.tokenizer import TextTokenizer

#: the closing message of Qwen's documentation: 24 tokens in Qwen3's vocabulary
THINK_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    "</think>\n\n"
)
#: what closes a thought that a model has left by ending its turn
END = "\n</think>\n\n"
NON_THINKING = "<think>\n\n</think>\n\n"
#: effort -> tokens
EFFORTS = {"minimal": 512, "low": 1024, "medium": 8192, "high": 24576}
STOPS = ("hard", "sentence")


#: how a sentence ends
SENTENCE = ("\n", ".", "!", "?", "。", "！", "？")


def budget_of(text: str) -> int:
    """Tokens from a number or the name of an effort; -1 is no limit.

    Raises:
        QwenchError: neither.
    """
    if text in EFFORTS:
        return EFFORTS[text]
    try:
        number = int(text)
    except ValueError:
        number = -2
    if number < -1:
        raise QwenchError(
            f"not a thinking budget: `{text}`", f"give -1, 0, a number of tokens, or {', '.join(EFFORTS)}", code=2
        )
    return number


def closing(message: str | None = None) -> str:
    """What ends a thought by force; `message` replaces the words of THINK_STOP, and "" cuts without a word."""
    return THINK_STOP if message is None else f"\n\n{message}{END}" if message else END


@dataclass(frozen=True, slots=True)
class Think:
    """How a model's thinking begins and ends.

    Attributes:
        open, close: ids of `<think>` and `</think>`; None for a model that writes them as plain text.
        message: ids that end a thought by force, the close among them.
        end: ids that close a thought the model left by ending its turn.
    """

    open: int | None
    close: int | None
    message: list[int]
    end: list[int]

    @classmethod
    def of(cls, tokenizer: TextTokenizer, message: str | None = None) -> Think:
        """Ids from the tokenizer; `message` as in `closing`."""
        said, end = tokenizer.ids([closing(message), END])
        return cls(tokenizer.token_id("<think>"), tokenizer.token_id("</think>"), said, end)

    @property
    def tagged(self) -> bool:
        """The tags are single tokens."""
        return self.open is not None and self.close is not None


class Words:
    """A text as it comes, and nothing of it that may be the start of a stop string.

    Args:
        stops: strings that end the text, not part of it.
        strip: leave out white space at the beginning.

    Attributes:
        text: what has been shown; stopped: the string that has ended it.
    """

    def __init__(self, stops: tuple[str, ...] = (), strip: bool = True) -> None:
        self._stops, self._strip = stops, strip
        self._held = ""
        self.text = ""
        self.stopped: str | None = None

    def show(self, text: str) -> str:
        """What can be shown now."""
        self._held += text
        found = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            text, self._held = self._held[:at], ""
            return self.say(text)
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return self.say(text)

    def say(self, text: str) -> str:
        """Text that no stop string ends."""
        if self._strip and not self.text:
            text = text.lstrip()
        self.text += text
        return text

    def rest(self) -> str:
        """What was held back, at the end."""
        held, self._held = self._held, ""
        return self.say(held)


class Stream(Words):
    """Ids become text, piece by piece: whole characters only, and nothing that may be the start of a stop string.

    Args:
        stops, strip: see Words.
        after: ids that the text goes on from; a character that they leave open is told whole.
    """

    def __init__(
        self, tokenizer: TextTokenizer, stops: tuple[str, ...] = (), strip: bool = True, after: list[int] | None = None
    ) -> None:
        super().__init__(stops, strip)
        self._decode = tokenizer.backend.decode
        self._ids: list[int] = list(after or ())
        self._given = self._to = len(self._ids)
        self._from = 0
        while self._to and self._decode(self._ids[: self._to]).endswith("�"):
            self._to -= 1

    @property
    def partial(self) -> bool:
        """The last token ends inside a character."""
        return self._to < len(self._ids) and self._decode(self._ids[self._from :]).endswith("�")

    def drop(self) -> None:
        """Take the last token back; only while `partial`."""
        self._ids.pop()

    def push(self, token: int) -> str:
        """What can be shown now."""
        self._ids.append(token)
        before = self._decode(self._ids[self._from : self._to])
        now = self._decode(self._ids[self._from :])
        if now.endswith("�") and len(self._ids) - self._to < 8:
            return ""
        # Some tokenizers decode a token differently at the start, so one token of context stays in front.
        self._from, self._to = self._to, len(self._ids)
        return self.show(now[len(before) :])

    def flush(self) -> str:
        """What was held back, at the end."""
        rest = ""
        if len(self._ids) > self._given:
            rest = self._decode(self._ids[self._from :])[len(self._decode(self._ids[self._from : self._to])) :]
        self._from, self._to = self._to, len(self._ids)
        self._held += rest
        return self.rest()
