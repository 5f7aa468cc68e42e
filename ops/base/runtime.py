"""Where and how a model runs: one frozen object, made once from the flags and handed on whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Runtime:
    """What can be asked of any command that loads a model; names equal the flags.

    Attributes:
        device: auto, cpu, cuda, cuda:N or mps.
        dtype: auto, float32, bfloat16 or float16.
        kernels: auto, eager, native, triton or compiled.
        quantize: none, int8 or int4.
        engine: auto, torch or llama.cpp.
        threads: of the CPU, 0 for all.
        revision: branch, tag or commit of a hub id; None for its newest.
        offline: never ask the hub.
    """

    device: str = "auto"
    dtype: str = "auto"
    kernels: str = "auto"
    quantize: str = "none"
    engine: str = "auto"
    threads: int = 0
    revision: str | None = None
    offline: bool = False


#: nothing asked for
PLAIN = Runtime()
