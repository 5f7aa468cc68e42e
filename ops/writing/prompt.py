"""Messages become the text of a prompt, ready for a budget of thinking."""

from __future__ import annotations

from ..models.template import ChatTemplate
from .thinking import NON_THINKING
from .writer import Ask


def rendered(template: ChatTemplate, tagged: bool, ask: Ask, thinks: bool, said: str) -> tuple[str, bool]:
    """(messages by the template, whether it leaves a thought open).

    Args:
        tagged: the model's thinking tags are tokens.
        thinks: a thought is wanted.
        said: the text that comes right after.

    Raises:
        QwenchError: see `ChatTemplate.render`.
    """
    own = "<think>" in said
    # A prefix with a thought of its own comes after no empty one.
    thinking = (thinks or own) if tagged else None
    text, opening = template.render(list(ask.messages or ()), thinking=thinking)
    opened = left_open(opening)
    if ask.budget == 0 and tagged and "</think>" not in opening and not own:
        text = text.removesuffix("<think>\n") + NON_THINKING if opened else text + NON_THINKING
        opened = False
    if opened and said.lstrip().startswith("<think>"):
        # The prefix brings the tag that the template would open the answer with.
        text, opened = text[: text.rindex("<think>")], False
    if ask.force_think and thinks and not opened and not said:
        text, opened = text + "<think>\n", True
    return text, opened


def left_open(text: str) -> bool:
    """Whether the last tag of a text opens a thought."""
    return text.rfind("<think>") > text.rfind("</think>")


def ends_open(text: str) -> bool:
    """Whether a prompt that is given ends inside a thought: tags further up may be a user's."""
    return text.rstrip().endswith("<think>")
