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
        engine: auto, torch, llama.cpp, or the address of a server.
        threads: of the CPU, 0 for all.
        revision: branch, tag or commit of a hub id; None for its newest.
        offline: never ask the hub.
        api: how a server is asked: completions, with our own template, or chat.
        tokenizer: of what a server runs, a name or a folder; None for the served name where it is on this machine.
        api_key_env: the variable that holds a server's key.
        concurrency: requests to a server at a time.
    """

    device: str = "auto"
    dtype: str = "auto"
    kernels: str = "auto"
    quantize: str = "none"
    engine: str = "auto"
    threads: int = 0
    revision: str | None = None
    offline: bool = False
    api: str = "completions"
    tokenizer: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8

    @property
    def server(self) -> bool:
        """The engine is a server, named by its address."""
        return self.engine.startswith(("http://", "https://"))


#: nothing asked for
PLAIN = Runtime()
