"""The door of `qwench wav`: spoken dialogues, and what a judge of them is worth."""

from __future__ import annotations

from .audio.build import BuildOptions, build
from .audio.reward import wav_reward
from .audio.reward_rows import RewardOptions, reward

__all__ = ["BuildOptions", "RewardOptions", "build", "reward", "wav_reward"]
