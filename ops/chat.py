"""The door of `qwench chat`: a conversation, many prompts, and the same prompts at several budgets."""

from __future__ import annotations

from .writing.many import many, sweep
from .writing.right import right
from .writing.session import Chat, ChatOptions

__all__ = ["Chat", "ChatOptions", "many", "right", "sweep"]
