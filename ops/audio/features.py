"""What an audio language model hears: log-mel frames, and how many tokens they become.

Sources: transformers' WhisperFeatureExtractor (numpy alone), and the encoders of qwen2_5_omni, qwen2_audio and
qwen3_omni_moe.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import QwenchError


def halved_tokens(frames: int) -> int:
    """Audio tokens of Qwen2.5-Omni and Qwen2-Audio, 25 a second of 100 frames."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


def windowed_tokens(frames: int) -> int:
    """Audio tokens of Qwen3-Omni: 13 for every whole second, and what is left through three halvings."""
    left = frames % 100
    return (((left - 1) // 2 + 1 - 1) // 2 + 1 - 1) // 2 + 1 + frames // 100 * 13


def frames_of(samples: int, hop: int) -> int:
    """Frames of so many samples: one for each beginning."""
    return -(-samples // hop)


def log_mel(samples: NDArray[np.floating], extractor: Any) -> NDArray[np.float32]:
    """(bands, frames) of a sound at the extractor's rate, as if it were padded to the longest sound it takes.

    The padding itself, up to 300 seconds, is left out: one window of zeros after the sound gives the same frames.

    Raises:
        QwenchError: it is longer than the extractor's longest, which would be cut without a word.
    """
    longest = extractor.n_samples
    if len(samples) > longest:
        rate = extractor.sampling_rate
        raise QwenchError(
            f"the sound is {len(samples) / rate:.1f} s long, and the model hears {longest / rate:.0f} s",
            "make it shorter, or choose a model that hears more",
        )
    frames = frames_of(len(samples), extractor.hop_length)
    whole = min((frames + 4) * extractor.hop_length, longest)
    padded = np.zeros(whole, np.float32)
    padded[: len(samples)] = samples
    found = extractor(padded, sampling_rate=extractor.sampling_rate, padding=False, return_tensors="np")
    return found["input_features"][0][:, :frames].astype(np.float32)
