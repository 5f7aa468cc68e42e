"""The prompt of WavReward, and the score in what a judge says.

Source: arXiv 2505.09558 (v2), figure 5. The prompt with thoughts is only a picture there; ours is named `own`.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

SCALE = (1, 2, 3, 4, 5)
OPEN, CLOSE, SCORE, END = "<think>", "</think>", "<score>", "</score>"
#: the paper's text, its missing blank and its final newline included
PUBLISHED = """\
## Dialogue Response Evaluation

**IMPORTANT:** Evaluation must include`<score>` rating.

Listen to the dialogue recording (two sentences, 1-second pause in between). Evaluate the quality of the **second \
sentence** as a response to the first, focusing on **text relevance** and the **appropriateness** of **Linguistic \
information (a range of paralinguistic information such as emotion/age/pitch/speed/volume)**.
**Note:** Focus on evaluating the appropriateness of the second sentence relative to the first, even if the first \
sentence itself contains contradictory information.

## Scoring Criteria

**1 points**: Text content is irrelevant or incorrect or illogical.(low intelligence)
**3 points**: Text is relevant, but paralinguistic information is **inappropriate** for the context.(low emotional \
quotient)
**5 points**: Text is relevant, and paralinguistic information is **appropriate** for the context, resulting in \
effective communication.(High intelligence and emotional intelligence.)

## Evaluation Requirements

Response **MUST** follow this format:

<score>X</score> (**X is 1, 3, or 5**)
"""
THOUGHTS = (
    f"\nThink first, between {OPEN} and {CLOSE}, about the words and about how they are spoken; then give the score.\n"
)
#: name -> text, and whether thoughts are part of the form
PROMPTS = {"published": (PUBLISHED, False), "think": (PUBLISHED + THOUGHTS, True)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was said.

    Attributes:
        score: None where there is none, never a default.
        reason: why there is none, else None.
        thinking: the thoughts, else None.
        form: whether it has the form that was asked for.
    """

    score: int | None
    reason: str | None
    thinking: str | None
    form: bool


def verdict(text: str, scale: tuple[int, ...] = SCALE, think: bool = False) -> Verdict:
    """The last score outside thoughts.

    Args:
        scale: the scores there are.
        think: one closed thought before the score is part of the form.
    """
    thoughts, outside, closed = _parted(text)
    thinking = "\n".join(thoughts) or None
    if not closed:
        return Verdict(None, "the thought is not closed", thinking, False)
    scores = _elements(outside)
    if not scores:
        unclosed = SCORE in outside
        return Verdict(None, "the score is not closed" if unclosed else "no score", thinking, False)
    said = unicodedata.normalize("NFKC", scores[-1]).strip()
    if said not in {str(s) for s in scale}:
        shown = said if len(said) <= 40 else said[:40] + "..."
        return Verdict(None, f"`{shown}` is none of {', '.join(map(str, scale))}", thinking, False)
    before = outside.partition(SCORE)[0]
    form = len(scores) == 1 and outside.count(SCORE) == 1
    if think:
        form &= len(thoughts) == 1 and "\0" in before
    return Verdict(int(said), None, thinking, form)


def _parted(text: str) -> tuple[list[str], str, bool]:
    """Thoughts, what is outside of them with a NUL for each, and whether all are closed.

    A close without an opening ends a thought that the template has opened.
    """
    text = text.replace("\0", " ")
    thoughts, outside, at = list[str](), list[str](), 0
    close, opening = text.find(CLOSE), text.find(OPEN)
    if close >= 0 and not 0 <= opening < close:
        thoughts.append(text[:close].strip())
        outside.append("\0")
        at = close + len(CLOSE)
    while (opening := text.find(OPEN, at)) >= 0:
        outside += [text[at:opening], "\0"]
        close = text.find(CLOSE, opening)
        if close < 0:
            return [*thoughts, text[opening + len(OPEN) :].strip()], "".join(outside), False
        thoughts.append(text[opening + len(OPEN) : close].strip())
        at = close + len(CLOSE)
    return thoughts, "".join([*outside, text[at:]]), True


def _elements(text: str) -> list[str]:
    """What stands in each closed score element, the innermost where they are nested."""
    found = []
    for part in text.split(END)[:-1]:
        _, opened, said = part.rpartition(SCORE)
        if opened:
            found.append(said)
    return found
