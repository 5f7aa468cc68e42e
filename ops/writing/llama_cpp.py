"""llama.cpp's library as an engine of the decode loop, for .gguf files and where llama-cpp-python is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..models.device import Choice, cpu_has
from ..models.nets.causal import CHUNK

if TYPE_CHECKING:
    from torch import Tensor

ENGINES = ("auto", "torch", "llama.cpp")
INSTALL = "pip install llama-cpp-python, or use --engine torch"
#: tokens of each sequence when nothing is asked: llama.cpp sets the whole cache aside at the start
CONTEXT = 8192
#: what the library said last, for the sentence of an error
_said: list[str] = []
_callbacks: list[Any] = []


def pick_engine(
    engine: str, path: Path, device: str, quantize: str, runs: str | None, slower: str | None = None, asked: str = ""
) -> Choice:
    """torch or llama.cpp.

    Args:
        path: of the checkpoint.
        device: as from `pick_device`.
        runs: None when the torch engine can run the checkpoint, else the reason why not.
        slower: why llama.cpp is the faster one, None where it is not (docs/benchmarks.md).
        asked: flags that only the torch engine heeds.

    Raises:
        QwenchError: an unknown engine; llama.cpp for what it cannot read, or where it is not installed.
    """
    if engine not in ENGINES:
        raise QwenchError(f"unknown engine: `{engine}`", f"use {', '.join(ENGINES)}", code=2)
    there, gguf = find_spec("llama_cpp") is not None, path.suffix == ".gguf"
    if engine == "llama.cpp":
        if not gguf:
            raise QwenchError(
                f"llama.cpp reads .gguf files only: `{path}`", "make one with qwench convert, or use --engine torch"
            )
        if quantize != "none":
            raise QwenchError(f"--quantize {quantize} is for the torch engine", "convert to a quantised .gguf", code=2)
        if not there:
            raise QwenchError("--engine llama.cpp needs the package llama-cpp-python", INSTALL)
        return Choice("llama.cpp", "as asked")
    if engine == "torch":
        return Choice("torch", "as asked")
    if not gguf:
        return Choice("torch", "the checkpoint is not a .gguf file")
    if quantize != "none":
        return Choice("torch", f"--quantize {quantize} is its own")
    if not there:
        return Choice("torch", "llama-cpp-python is not installed")
    if device != "cpu":
        return Choice("torch", f"the device is `{device}`")
    if runs is not None:
        return Choice("llama.cpp", f"torch cannot run {runs}")
    if asked:
        return Choice("torch", f"{asked} is for it")
    if slower is None:
        return Choice("torch", "its C kernels compute from the weights as stored")
    return Choice("llama.cpp", slower)


class LlamaCpp:
    """See Engine. Slots are llama.cpp's sequences; swapping two exchanges their numbers alone.

    Args:
        context: tokens of each sequence, 0 for the model's own up to CONTEXT.
        yarn: rotary settings for a context beyond the model's, as `rope.stretched` makes them.
    """

    def __init__(
        self, path: Path, context: int = 0, slots: int = 1, threads: int = 0, yarn: dict[str, Any] | None = None
    ) -> None:
        """Map the file and set the cache aside.

        Raises:
            QwenchError: a file or an architecture the library refuses, or too little memory for the context.
        """
        import llama_cpp as lib

        self._lib = lib
        if not _callbacks:
            _callbacks.append(
                lib.llama_log_callback(lambda level, text, data: _said.append(text.decode("utf-8", "replace")))
            )
            lib.llama_backend_init()
        lib.llama_log_set(_callbacks[0], lib.ctypes.c_void_p(0))
        _said.clear()
        how = lib.llama_model_default_params()
        # llama.cpp's AMX kernels end the process on more than one row (0.3.36, Q4_1): this leaves them out.
        how.use_extra_bufts = not cpu_has("amx_int8")
        self._model = lib.llama_model_load_from_file(str(path).encode(), how)
        if not self._model:
            raise QwenchError(f"llama.cpp cannot load `{path}`{_last()}", "try --engine torch")
        native = lib.llama_model_n_ctx_train(self._model)
        self.context, self.slots = context or min(native, CONTEXT), slots
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = self.context * slots, slots
        settings.n_batch = max(CHUNK, slots)
        settings.n_threads = settings.n_threads_batch = threads or settings.n_threads
        settings.no_perf = True
        if yarn:
            settings.rope_scaling_type = lib.LLAMA_ROPE_SCALING_TYPE_YARN
            settings.rope_freq_scale = 1.0 / yarn["factor"]
            settings.yarn_orig_ctx = yarn["original_max_position_embeddings"]
        self._ctx = lib.llama_init_from_model(self._model, settings)
        if not self._ctx:
            lib.llama_model_free(self._model)
            raise QwenchError(f"llama.cpp has no room for {self.context} tokens{_last()}", "make --context smaller")
        self._memory = lib.llama_get_memory(self._ctx)
        self.forks = hasattr(lib, "llama_memory_seq_cp")
        self._vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self._model))
        self._size = settings.n_batch
        self._batch = lib.llama_batch_init(self._size, 0, 1)
        self._lengths, self._numbers = [0] * slots, list(range(slots))
        _said.clear()

    def length(self, slot: int) -> int:
        """See Engine."""
        return self._lengths[slot]

    def keep(self, slot: int, length: int) -> None:
        """See Engine."""
        self._lengths[slot] = min(length, self._lengths[slot])
        self._lib.llama_memory_seq_rm(self._memory, self._numbers[slot], self._lengths[slot], -1)

    def swap(self, a: int, b: int) -> None:
        """See Engine."""
        for values in (self._lengths, self._numbers):
            values[a], values[b] = values[b], values[a]

    def fork(self, slot: int, into: int, length: int | None = None) -> None:
        """See Engine."""
        held = self._lengths[slot] if length is None else min(length, self._lengths[slot])
        if slot != into:
            source, target = self._numbers[slot], self._numbers[into]
            self._lib.llama_memory_seq_rm(self._memory, target, -1, -1)
            # Whole: each sequence has a cache of its own, and the library ends the process on part of one.
            self._lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)
            self._lengths[into] = self._lengths[slot]
        self.keep(into, held)

    def feed(self, new: dict[int, list[int]]) -> Tensor:
        """See Engine.

        Raises:
            QwenchError: a sequence outgrows the context, or the library fails.
        """
        import numpy as np
        import torch

        longest = max(self._lengths[s] + len(ids) for s, ids in new.items())
        if longest > self.context:
            raise QwenchError(f"{longest} tokens are more than the context of {self.context}")
        rows = torch.empty(len(new), self._vocab)
        order = {slot: row for row, slot in enumerate(new)}
        queue = [(slot, ids, 0) for slot, ids in sorted(new.items()) if ids]
        while queue:
            b, n, ended = self._batch, 0, []
            while queue and n < self._size:
                slot, ids, at = queue.pop(0)
                piece = ids[at : at + self._size - n]
                for i, token in enumerate(piece):
                    b.token[n], b.pos[n], b.n_seq_id[n] = token, self._lengths[slot] + i, 1
                    b.seq_id[n][0], b.logits[n] = self._numbers[slot], 0
                    n += 1
                self._lengths[slot] += len(piece)
                if at + len(piece) == len(ids):
                    b.logits[n - 1] = 1
                    ended.append((slot, n - 1))
                else:
                    queue.insert(0, (slot, ids, at + len(piece)))
            b.n_tokens = n
            if code := self._lib.llama_decode(self._ctx, b):
                raise QwenchError(f"llama.cpp failed with code {code}{_last()}", "try --engine torch")
            for slot, at in ended:
                found = self._lib.llama_get_logits_ith(self._ctx, at)
                rows[order[slot]] = torch.from_numpy(np.ctypeslib.as_array(found, (self._vocab,)))
        return rows

    def close(self) -> None:
        """Give the memory back; the engine is of no use after it."""
        if self._ctx:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(self._ctx)
            self._lib.llama_model_free(self._model)
            self._ctx = self._model = None


def _last() -> str:
    """The last line the library said about an error, in brackets."""
    lines = [line for line in "".join(_said).splitlines() if line.strip()]
    found = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "")
    return f" ({found.strip()})" if found else ""
