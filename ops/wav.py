"""The door of `qwench wav`: spoken dialogues, and what a judge of them is worth."""

from __future__ import annotations

from .audio.build import BuildOptions, build
from .audio.reward import wav_reward
from .audio.reward_rows import RewardOptions, reward
from .audio.score_options import ScoreOptions
from .audio.scores import score
from .jobs.job import JobOptions

__all__ = ["BuildOptions", "JobOptions", "RewardOptions", "ScoreOptions", "build", "reward", "score", "wav_reward"]
