"""A checkpoint becomes a decoder of our own, with its tokenizer and the files that say how to chat."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ..base.choice import Choice
from ..base.errors import QwenchError
from ..checkpoint.gates import STOCK
from ..checkpoint.gguf_reader import IN_BLOCKS, GgufReader
from ..checkpoint.reader import Source
from ..kernels.choose import bind
from .device import DTYPES
from .hub import Checkpoint
from .nets import decoder
from .nets.causal import CausalDecoder
from .nets.linear import native_maker
from .nets.parallel import ParallelDecoder, choose_streams
from .nets.weight_only import weight_only
from .nets.weights import Weights
from .template import chat_files
from .tokenizer import TextTokenizer

#: formats of .gguf files that the C kernels compute from
AS_STORED = {*IN_BLOCKS, *DTYPES}
FAMILIES = ("qwen2", "qwen3", "qwen3_moe", "llama", STOCK)


def unknown(config: dict[str, Any]) -> str | None:
    """Why the torch engine cannot run a checkpoint, None when it can."""
    if config.get("model_type") not in FAMILIES:
        return f"model_type `{config.get('model_type')}`"
    if config.get("is_causal") is False:
        return "attention to both sides (is_causal: false), as in an embedding model"
    return decoder.supports(config)


def load_decoder(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    device: str,
    dtype: str = "auto",
    quantize: str = "none",
    slots: int = 1,
    streams: int = 0,
    kernels: str = "eager",
) -> tuple[CausalDecoder, Choice]:
    """The torch engine of a checkpoint, and the dtype it computes in.

    Args:
        config: of the decoder (see `base_config`); others as in `load_causal`.

    Raises:
        QwenchError: see `load_causal`.
    """
    import torch

    native = kernels == "native" and dtype in ("auto", "float32")
    weights = Weights(checkpoint.path, decoder.PREFIXES, checkpoint.reader)
    config = choose_streams(checkpoint.path, config, weights, streams)
    linear = weight_only(quantize, device, native)
    numbers = weights.numbers("float32" if native else dtype, device)
    if native:
        # The product widens in registers, so that narrow weights are exact and cost less to read.
        weights.as_stored = frozenset(AS_STORED if quantize == "none" else DTYPES)
    if quantize != "none" and dtype == "auto":
        numbers = Choice("float32", f"what --quantize {quantize} keeps its activations in")
    linear = (quantize == "none" and native_maker(kernels, numbers.value)) or linear
    computed = getattr(torch, numbers.value)
    try:
        kind = ParallelDecoder if config.get("parscale_n", 1) > 1 else CausalDecoder
        engine = kind(config, weights, computed, device, linear, slots, bind(kernels, computed, device))
    except KeyError as error:
        raise QwenchError(f"the config lacks {error}: `{checkpoint.path}`", "download or copy it again") from error
    weights.close(decoder.UNUSED)
    reason = numbers.reason
    if native and quantize == "none":
        parts = {"kept as stored": weights.kept, "widened to float32": weights.widened}
        told = [f"{' and '.join(sorted(kinds))} weights {what}" for what, kinds in parts.items() if kinds]
        reason = ", ".join([*told, "float32 arithmetic in the C kernels"]) + weights.dequantised
    if left := getattr(linear, "left", 0):
        reason += f"; {left} matrices are not packed, their rows being no whole blocks of 32"
    return engine, Choice(numbers.value, reason)


def texts_of(source: Source) -> tuple[TextTokenizer, dict[str, bytes]]:
    """The tokenizer of a folder or a GGUF file, and the files that say how to chat, by name."""
    if not isinstance(source.reader, GgufReader):
        return TextTokenizer.load(source.folder), chat_files(source.folder)
    files = source.reader.sides()
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return TextTokenizer.load(Path(folder)), files
