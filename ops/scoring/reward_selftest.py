"""The two answers that WorldPM's README scores, as a test of any reward model."""

from __future__ import annotations

from typing import Any

from .reward_rows import Conversation

QUESTION = "Tips for better sleep?"
GOOD = (
    "Three key tips for better sleep:\n1. Set a consistent bedtime and wake-up schedule\n2. Avoid screens 1 hour "
    "before bed\n3. Keep your bedroom cool and dark\n\nStart with these habits and you should notice improvement "
    "within a week."
)
BAD = "just try sleeping earlier or take some pills if u cant sleep lol. maybe watch tv until u get tired idk"
#: what WorldPM-72B gives them
ANCHORS = (0.6298332214355469, -1.6425328254699707)
ANCHORED = "WorldPM-72B"


def conversations() -> list[Conversation]:
    """The good answer and the bad one."""
    user = {"role": "user", "content": QUESTION}
    return [Conversation((user, {"role": "assistant", "content": text})) for text in (GOOD, BAD)]


def verdict(name: str, rewards: tuple[float, float]) -> dict[str, Any]:
    """`right` where the good answer is ahead; for the checkpoint itself also the distance to its published numbers."""
    own = name.rstrip("/").endswith(ANCHORED)
    rows = [
        {"answer": text, "reward": r, "published": a if own else None, "difference": r - a if own else None}
        for text, r, a in zip((GOOD, BAD), rewards, ANCHORS, strict=True)
    ]
    return {"question": QUESTION, "right": rewards[0] > rewards[1], "rows": rows}
