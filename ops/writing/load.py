"""A checkpoint becomes an engine for the decode loop, with its tokenizer, template and ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..checkpoint.adapter import adapter_alone
from ..checkpoint.gguf_reader import GgufReader
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import json_of
from ..kernels.choose import for_dtype, pick_kernels
from ..models.device import Choice, pick_device
from ..models.hub import Checkpoint
from ..models.load_decoder import AS_STORED, FAMILIES, load_decoder, texts_of, unknown
from ..models.nets.causal import Engine
from ..models.nets.parallel import base_config
from ..models.nets.rope import stretched
from ..models.template import ChatTemplate
from ..models.tokenizer import TextTokenizer
from .llama_cpp import LlamaCpp, pick_engine


@dataclass(frozen=True, slots=True)
class Chatty:
    """All that a conversation needs.

    Attributes:
        ends: ids that end a turn.
        runner: torch or llama.cpp.
        stretched: factor of the YaRN that `context` asked for, 0 for none.
    """

    runner: Choice
    engine: Engine
    tokenizer: TextTokenizer
    template: ChatTemplate
    ends: list[int]
    device: Choice
    dtype: Choice
    kernels: Choice
    stretched: float = 0


def load_causal(
    checkpoint: Checkpoint,
    runtime: Runtime | None = None,
    *,
    context: int = 0,
    slots: int = 1,
    streams: int = 0,
) -> Chatty:
    """Load a decoder for writing.

    Args:
        context: longer than the model's own: static YaRN; 0 for its own.
        slots: sequences at a time.
        streams: of a ParScale checkpoint, 0 for its own number, 1 for the decoder without them.

    Raises:
        QwenchError: an architecture, a rotary kind or a setting that is not known, gates, an adapter, a damaged or
            incomplete checkpoint.
    """
    r = runtime or Runtime()
    if error := adapter_alone(checkpoint.path):
        raise error
    source = Source(checkpoint.path, checkpoint.reader)
    # The head of a GGUF file is parsed once.
    checkpoint = replace(checkpoint, reader=checkpoint.reader or source.reader)
    parallel = source.config()
    config = base_config(parallel)
    if streams > 1 and config is parallel:
        raise QwenchError(
            f"the model has one stream, and {streams} are asked for: `{checkpoint.name}`",
            f"make them: qwench parscale-recycle {checkpoint.name} OUT --streams {streams}",
        )
    reason = unknown(config)
    where = pick_device(r.device)
    # With llama.cpp the C kernels need not be built.
    fast = Choice("eager", "") if r.engine == "llama.cpp" else pick_kernels(r.kernels, where.value)
    asked = [f"--{name} {value}" for name, value in (("kernels", r.kernels), ("dtype", r.dtype)) if value != "auto"]
    runner = pick_engine(
        r.engine, checkpoint.path, where.value, r.quantize, reason, _slower(source, config, fast.value), " ".join(asked)
    )
    if runner.value != "llama.cpp" and isinstance(source.reader, GgufReader):
        source.reader.unheard()
    long = stretched(config, context) if context > config["max_position_embeddings"] else None
    tokenizer, files = texts_of(source)
    running: Engine
    if runner.value == "llama.cpp":
        running = LlamaCpp(checkpoint.path, context, slots, r.threads, long and long["rope_parameters"])
        where = where if where.value == "cpu" else Choice("cpu", "llama.cpp's library is used on the CPU here")
        numbers = Choice("float32", "llama.cpp computes from the file's own blocks")
        fast = Choice("llama.cpp", "its library has its own")
    elif reason:
        raise QwenchError(f"chat cannot run {reason} yet: `{checkpoint.name}`", f"it runs {', '.join(FAMILIES)}")
    else:
        running, numbers = load_decoder(
            checkpoint, long or config, where.value, r.dtype, r.quantize, slots, streams, fast.value
        )
        fast = for_dtype(fast, numbers.value)
    ends = ends_of(config, files, tokenizer)
    factor = long["rope_parameters"]["factor"] if long else 0
    return Chatty(runner, running, tokenizer, ChatTemplate.read(files), ends, where, numbers, fast, factor)


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


def ends_of(config: dict[str, Any], files: dict[str, bytes], tokenizer: TextTokenizer) -> list[int]:
    """eos of the generation config, else of the config, and the end-of-turn token of ChatML."""
    own = json_of(files.get("generation_config.json", b"{}"), "generation_config.json")
    said = own.get("eos_token_id", config.get("eos_token_id"))
    found = said if isinstance(said, list) else [] if said is None else [said]
    extra = tokenizer.token_id("<|im_end|>")
    return sorted({*found, *([] if extra is None else [extra])})
