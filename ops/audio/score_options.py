"""Everything that `wav score` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..jobs.job import JobOptions
from .sounds import CONTROLS
from .verdicts import SCALE

WITNESSES = ("random", "acoustic")
HEADS = ("auto", "text", "scalar")


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """Everything `qwench wav score` can be told.

    Attributes:
        model: folder or hub id, random, acoustic; of a server the served name, "" for the only one.
        prompt, prompt_file: see `Prompt.of`. scale: the scores that count.
        samples: draws of every dialogue. temperature: 0 is greedy. max_tokens: of an answer.
        head: auto, text or scalar. controls: see CONTROLS. fit: labelled dialogues for acoustic.
        gap: seconds between question and answer, where a row has no merged wave and does not tell.
        batch: dialogues at a time. audio_part: how a server is given a sound.
        job: which rows, and where they go.
    """

    model: str = ""
    prompt: str = "published"
    prompt_file: str | None = None
    scale: tuple[int, ...] = SCALE
    samples: int = 1
    temperature: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    head: str = "auto"
    controls: tuple[str, ...] = ()
    fit: str | None = None
    gap: float = 1.0
    batch: int = 4
    audio_part: str = "input_audio"
    runtime: Runtime = field(default_factory=Runtime)
    job: JobOptions = field(default_factory=JobOptions)

    @property
    def witness(self) -> bool:
        """The judge is none of audio, but one to be compared with."""
        return self.model in WITNESSES and not self.runtime.server

    def check(self) -> None:
        """Raises:
        QwenchError: a word or number that cannot be, or that does not fit the judge.
        """
        if not self.model and not self.runtime.server:
            raise QwenchError("no judge is named", "add --model: a folder, hub id, random or acoustic", 2)
        if wrong := [c for c in self.controls if c not in CONTROLS]:
            raise QwenchError(f"unknown control: `{wrong[0]}`", f"use {', '.join(CONTROLS)}", 2)
        if not self.scale or set(self.scale) - set(SCALE):
            raise QwenchError(f"--scale is some of {', '.join(map(str, SCALE))}", "write --scale 1,3,5", 2)
        if self.head not in HEADS:
            raise QwenchError(f"unknown --head: `{self.head}`", f"use {', '.join(HEADS)}", 2)
        if not 0 <= self.temperature <= 10:
            raise QwenchError(f"--temperature is 0 to 10, and not {self.temperature:g}", "0 is greedy", 2)
        if not 0 <= self.gap <= 60:
            raise QwenchError(f"--gap is 0 to 60 seconds, and not {self.gap:g}", "1 is the paper's", 2)
        if self.samples > 1 and not (self.temperature or self.model == "random"):
            raise QwenchError("greedy draws are all the same, and --samples asks for several", "add --temperature 1", 2)
        if self.model == "acoustic" and not self.runtime.server and not self.fit:
            raise QwenchError("the acoustic judge is made from labelled dialogues", "name them with --fit", 2)
