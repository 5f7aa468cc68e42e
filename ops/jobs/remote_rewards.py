"""Rewards by a server: vLLM's /pooling and /classify, SGLang's /classify, with the texts rendered here."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.events import Event
from ..base.runtime import Runtime
from ..scoring.reward_texts import TextSettings
from ..writing.http import Client
from ..writing.probe import served

if TYPE_CHECKING:
    from ..scoring.reward import Value
    from ..scoring.reward_texts import Ready

APIS = ("auto", "pooling", "classify")
#: owners of a model's entry whose servers have no reward heads
WITHOUT = {"llamacpp": "llama.cpp", "library": "ollama"}
#: raw numbers, please: the switch has had several names in vLLM's releases
RAW = {"activation": False, "use_activation": False, "softmax": False}
#: how far a pair may be from adding up to 1 and still be probabilities
NEAR = 2e-3


class RewardServer:
    """See the module.

    Args:
        model: the served name, "" for the only one.

    Attributes:
        tokenizer: name of the model whose tokenizer and template the texts are made with.

    Raises:
        QwenchError: an address that cannot be asked; a flag that a server has no use for.
    """

    def __init__(self, model: str, runtime: Runtime, api: str, settings: TextSettings) -> None:
        if api not in APIS:
            raise QwenchError(f"unknown --api: `{api}`", f"use {', '.join(APIS)}", code=2)
        if settings.pool != "last":
            raise QwenchError("a server reads the last token, and --pool asks for another", "use --pool last", code=2)
        self._asked, self._runtime, self.api = model, runtime, api
        self.client = Client(runtime.engine, runtime.api_key_env, runtime.concurrency)
        self._same: bool | None = None

    def begin(self) -> Iterator[Event]:
        """Find out who is asked.

        Raises:
            QwenchError: no such server or model, a server without reward heads, a tokenizer that is not here.
        """
        found = yield from served(self.client, self._asked)
        if found.owner in WITHOUT:
            raise QwenchError(
                f"{WITHOUT[found.owner]} has no reward heads, so it gives no rewards: `{self.client.address}`",
                "serve the model with vLLM or SGLang, or score it here without --engine",
            )
        self.name, self.owner, self.version = found.name, found.owner or "unknown", found.version
        self.tokenizer = self._runtime.tokenizer or found.name
        if not self._runtime.tokenizer and not Path(found.name).expanduser().exists() and "/" not in found.name:
            raise QwenchError(
                f"the texts are rendered here, and there is no tokenizer called `{found.name}`",
                "name the folder or hub id of its model with --tokenizer",
            )

    def check(self, kind: str, config: dict[str, Any]) -> None:
        """Choose the endpoint for a kind of head.

        Raises:
            QwenchError: an encoder of pairs.
        """
        self.kind = kind
        if kind == "pair":
            raise QwenchError("an encoder of question and answer is scored here alone", "leave --engine out", code=2)
        if self.api == "auto":
            self.api = "classify" if self.owner == "sglang" or kind == "linear" else "pooling"
        if kind == "process" and self.api == "classify":
            raise QwenchError("steps are scored by vLLM's /pooling alone", "use --api pooling", code=2)

    @property
    def about(self) -> dict[str, Any]:
        """What a result depends on."""
        return {"server": self.client.address, "owner": self.owner, "version": self.version, "api": self.api}

    def score(self, ready: Ready) -> Value:
        """The reward of a text, or the probability of every step.

        Raises:
            QwenchError: no answer, one of another shape, or the server reads other tokens than were rendered.
        """
        value, tokens = self.client.post(f"../{self.api}", self._body(ready), self._read)
        if tokens is not None and tokens != ready.tokens:
            raise QwenchError(
                f"the server reads {tokens} tokens where {ready.tokens} were rendered: its reward is of another text",
                "let it add no tokens of its own, and name the model's own tokenizer with --tokenizer",
            )
        if self.kind == "process":
            return self._steps(value, len(ready.marks))
        return value

    def _body(self, ready: Ready) -> dict[str, Any]:
        if self.owner == "sglang":
            return {"model": self.name, "text": ready.text}
        return {"model": self.name, "input": ready.text, "add_special_tokens": False} | RAW

    def _read(self, reply: Any) -> tuple[Any, int | None]:
        """(value, tokens that were read); a ValueError for what is no such reply."""
        if isinstance(reply, list) and reply:
            reply = reply[0]
        if not isinstance(reply, dict):
            raise ValueError("it is no object")
        if "embedding" in reply:
            found, tokens = reply["embedding"], (reply.get("meta_info") or {}).get("prompt_tokens")
            return _number(found[0] if isinstance(found, list) and found else found), tokens
        data = reply.get("data")
        if not isinstance(data, list) or not data or not isinstance(data[0], dict):
            raise ValueError("it has no data")
        tokens = (reply.get("usage") or {}).get("prompt_tokens")
        found = data[0].get("probs") if "probs" in data[0] else data[0].get("data")
        if self.kind == "process":
            return found, tokens
        return _number(found), tokens

    def _steps(self, found: Any, count: int) -> list[float]:
        """One pair a step; raw pairs get their softmax here."""
        shaped = isinstance(found, list) and all(isinstance(p, list) and len(p) == 2 for p in found)
        if not shaped or len(found) != count:
            told = f"{len(found)} values" if isinstance(found, list) else "none"
            raise QwenchError(
                f"the server gives {told} for {count} steps",
                "start it with STEP pooling: step_tag_id is that of <extra_0>, returned_token_ids [0, 1]",
            )
        done = all(min(p) >= -NEAR and abs(sum(p) - 1) <= NEAR for p in found)
        return [float(p[1]) if done else 1 / (1 + math.exp(p[0] - p[1])) for p in found]


def _number(value: Any) -> float:
    """The last number of nested lists: a server may give a value for every token."""
    while isinstance(value, list) and value:
        value = value[-1]
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("there is no number in it")
    return float(value)
