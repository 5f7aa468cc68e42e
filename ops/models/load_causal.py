"""A checkpoint becomes an engine for the decode loop, with its tokenizer, template and ends."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.gates import STOCK
from ..checkpoint.gguf_reader import IN_BLOCKS, GgufReader
from ..checkpoint.reader import Source
from ..errors import QwenchError
from ..kernels.choose import pick_kernels, use
from . import decoder
from .causal import CausalDecoder, Engine
from .chat_template import ChatTemplate, chat_files
from .device import DTYPES, Choice, pick_device, pick_dtype
from .hub import Checkpoint
from .linear import native_maker
from .llama_cpp import LlamaCpp, pick_engine
from .parallel import ParallelDecoder, base_config, choose_streams
from .rope import stretched
from .tokenizer import TextTokenizer
from .weight_only import weight_only
from .weights import Weights

#: formats of .gguf files that the C kernels compute from
AS_STORED = {*IN_BLOCKS, *DTYPES}
FAMILIES = ("qwen2", "qwen3", "qwen3_moe", "llama", STOCK)


@dataclass(frozen=True, slots=True)
class Chatty:
    """All that a conversation needs.

    Attributes:
        ends: ids that end a turn.
        runner: torch or llama.cpp.
    """

    runner: Choice
    engine: Engine
    tokenizer: TextTokenizer
    template: ChatTemplate
    ends: list[int]
    device: Choice
    dtype: Choice
    kernels: Choice


def load_causal(
    checkpoint: Checkpoint,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str = "none",
    context: int = 0,
    slots: int = 1,
    engine: str = "auto",
    threads: int = 0,
    streams: int = 0,
    kernels: str = "auto",
) -> Chatty:
    """Load a decoder for writing.

    Args:
        context: longer than the model's own: static YaRN; 0 for its own.
        slots: sequences at a time.
        engine: torch, llama.cpp or auto.
        streams: of a ParScale checkpoint, 0 for its own number, 1 for the decoder without them.
        kernels: see `pick_kernels`.

    Raises:
        QwenchError: an architecture or a rotary kind that is not known, gates, a damaged or incomplete checkpoint.
    """
    source = Source(checkpoint.path)
    parallel = source.config()
    config = base_config(parallel)
    if streams > 1 and config is parallel:
        raise QwenchError(
            f"the model has one stream, and {streams} are asked for: `{checkpoint.name}`",
            f"make them: qwench parscale-recycle {checkpoint.name} OUT --streams {streams}",
        )
    reason = unknown(config)
    where = pick_device(device)
    # With llama.cpp the C kernels need not be built.
    fast = Choice("eager", "") if engine == "llama.cpp" else pick_kernels(kernels, where.value)
    asked = [f"--{name} {value}" for name, value in (("kernels", kernels), ("dtype", dtype)) if value != "auto"]
    runner = pick_engine(
        engine, checkpoint.path, where.value, quantize, reason, _slower(source, config, fast.value), " ".join(asked)
    )
    long = stretched(config, context) if context > config["max_position_embeddings"] else None
    tokenizer, files = texts_of(source)
    running: Engine
    if runner.value == "llama.cpp":
        running = LlamaCpp(checkpoint.path, context, slots, threads, long and long["rope_parameters"])
        where = where if where.value == "cpu" else Choice("cpu", "llama.cpp's library is used on the CPU here")
        numbers = Choice("float32", "llama.cpp computes from the file's own blocks")
        fast = Choice("llama.cpp", "its library has its own")
    elif reason:
        raise QwenchError(f"chat cannot run {reason} yet: `{checkpoint.name}`", f"it runs {', '.join(FAMILIES)}")
    else:
        running, numbers = load_decoder(
            checkpoint, long or config, where.value, dtype, quantize, slots, streams, fast.value
        )
    ends = _ends(config, files, tokenizer)
    return Chatty(runner, running, tokenizer, ChatTemplate.read(files), ends, where, numbers, fast)


def _slower(source: Source, config: dict[str, Any], kernels: str) -> str | None:
    """Why llama.cpp runs a .gguf file faster than the torch engine, None where that one is faster."""
    if not isinstance(source.reader, GgufReader):
        return None
    if kernels != "native":
        return "the torch engine has no C kernels here"
    if config.get("model_type") == "qwen3_moe":
        return "the torch engine runs experts one by one"
    kinds = {source.reader.stored[name] for name, info in source.reader.infos.items() if len(info.shape) > 1}
    if widened := " and ".join(sorted(kinds - AS_STORED)):
        return f"computes from the stored {widened}, which the torch engine would widen"
    return None


def unknown(config: dict[str, Any]) -> str | None:
    """Why the torch engine cannot run a checkpoint, None when it can."""
    if config.get("model_type") not in FAMILIES:
        return f"model_type `{config.get('model_type')}`"
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
    numbers = pick_dtype("float32" if native else dtype, device, weights.stored_dtype)
    if native:
        # The product widens in registers, so that narrow weights are exact and cost less to read.
        weights.as_stored = frozenset(AS_STORED if quantize == "none" else DTYPES)
    if quantize != "none" and dtype == "auto":
        numbers = Choice("float32", f"what --quantize {quantize} keeps its activations in")
    linear = (quantize == "none" and native_maker(kernels, numbers.value)) or linear
    use(kernels)
    try:
        kind = ParallelDecoder if config.get("parscale_n", 1) > 1 else CausalDecoder
        engine = kind(config, weights, getattr(torch, numbers.value), device, linear, slots)
    except KeyError as error:
        raise QwenchError(f"the config lacks {error}: `{checkpoint.path}`", "download or copy it again") from error
    weights.close(decoder.UNUSED)
    reason = numbers.reason
    if native and quantize == "none":
        parts = {"kept as stored": weights.kept, "widened to float32": weights.widened}
        told = [f"{' and '.join(sorted(kinds))} weights {what}" for what, kinds in parts.items() if kinds]
        reason = ", ".join([*told, "float32 arithmetic in the C kernels"])
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


def _ends(config: dict[str, Any], files: dict[str, bytes], tokenizer: TextTokenizer) -> list[int]:
    """eos of the generation config, else of the config, and the end-of-turn token of ChatML."""
    said = json.loads(files.get("generation_config.json", b"{}")).get("eos_token_id", config.get("eos_token_id"))
    found = said if isinstance(said, list) else [] if said is None else [said]
    extra = tokenizer.token_id("<|im_end|>")
    return sorted({*found, *([] if extra is None else [extra])})
