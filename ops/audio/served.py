"""A judge on a server that takes sounds: OpenAI's `input_audio`, or vLLM's `audio_url`."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

from ..base.errors import QwenchError
from ..base.events import Event
from ..base.runtime import Runtime
from ..writing.http import Client
from ..writing.probe import PATHS, served
from ..writing.reply import Part, parts_of
from . import riff
from .judge import Asking, Draw, Judge
from .sounds import Sound

AUDIO_PARTS = ("input_audio", "audio_url")


class ServedJudge(Judge):
    """See the module.

    Args:
        model: the served name, "" for the only one.
        part: how the sound is sent; the other way is not tried.

    Raises:
        QwenchError: an unknown part, or an address that cannot be asked.
    """

    kind = "text"
    alone = True

    def __init__(self, model: str, runtime: Runtime, part: str, asking: Asking) -> None:
        if part not in AUDIO_PARTS:
            raise QwenchError(f"unknown --audio-part: `{part}`", f"use {' or '.join(AUDIO_PARTS)}", 2)
        self._asked, self.part, self.asking = model, part, asking
        self.client = Client(runtime.engine, runtime.api_key_env, runtime.concurrency)

    def begin(self) -> Iterator[Event]:
        """Find out who is asked.

        Raises:
            QwenchError: no such server or model.
        """
        found = yield from served(self.client, self._asked)
        self.name, self.owner, self.version = found.name, found.owner or "unknown", found.version

    @property
    def settings(self) -> dict[str, Any]:
        """See Judge."""
        return {"served": self.name, "server": self.owner, "version": self.version, "audio_part": self.part}

    def close(self) -> None:
        """See Judge."""
        self.client.close()

    def ready(self, sound: Sound) -> dict[str, Any]:
        """See Judge: the part of the message. A WAV file is sent to the byte, everything else as one."""
        data = base64.b64encode(sound.data or riff.encode(sound.whole, sound.rate)).decode()
        if self.part == "input_audio":
            return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
        return {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{data}"}}

    def draws(self, ready: Sequence[dict[str, Any]], seeds: Sequence[Sequence[int]]) -> list[list[Draw]]:
        """See Judge.

        Raises:
            QwenchError: no answer, or a refusal with the server's words.
        """
        return [[self._one(part, seed) for seed in row] for part, row in zip(ready, seeds, strict=True)]

    def _one(self, part: dict[str, Any], seed: int) -> Draw:
        a = self.asking
        content = [part, {"type": "text", "text": a.prompt.text}]
        body = {"model": self.name, "messages": [{"role": "user", "content": content}], "max_tokens": a.max_tokens}
        body |= {"temperature": a.temperature, "top_p": 1, "seed": seed}
        said: Part = self.client.post(PATHS["chat"], body, lambda value: parts_of(value)[0])
        return a.draw(said.text, said.finish == "length", seed, said.thought or None)
