"""The one place that turns a checkpoint into a model in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..checkpoint.adapter import adapter_alone
from ..checkpoint.sidecars import read_json
from ..kernels.choose import bind, for_dtype, pick_kernels
from .device import DTYPES, Choice, cpu_int8_units, pick_device
from .hub import Checkpoint
from .layouts import DECODERS
from .nets.linear import linear_maker, native_maker
from .nets.weights import Weights

if TYPE_CHECKING:
    from torch import dtype

    from .nets.bert import BertEncoder
    from .nets.decoder import DecoderEncoder
    from .nets.generic import GenericEncoder
    from .nets.static import StaticEncoder


#: takes the weights of a head before the account is closed: (weights, config, dtype, device) -> the head
Head = Callable[[Weights, dict[str, Any], "dtype", str], Any]


@dataclass(frozen=True, slots=True)
class Loaded:
    """An encoder with the choices made while loading it.

    Attributes:
        head: what the `head` function of `load_encoder` returned; None for a GenericEncoder, which has its own.
    """

    encoder: BertEncoder | DecoderEncoder | GenericEncoder | StaticEncoder
    config: dict[str, Any]
    device: Choice
    dtype: Choice
    engine: Choice
    kernels: Choice
    head: Any = None


def load_encoder(checkpoint: Checkpoint, runtime: Runtime | None = None, *, head: Head | None = None) -> Loaded:
    """Load a text encoder, with a score head where a `head` function takes one.

    BERT and Qwen/Llama decoders run on this package's packed code; everything else on transformers.

    Raises:
        QwenchError: not a text encoder, damaged, incomplete, or of an unknown architecture.
    """
    import torch

    asked = runtime or Runtime()
    dtype, quantize = asked.dtype, asked.quantize
    folder = model_folder(checkpoint)
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise QwenchError(f"config.json is not an object: `{folder}`", "download or copy the model again")
    kind = config.get("model_type")
    where = pick_device(asked.device)
    if kind == "bert":
        from .nets import bert as family
        from .nets.bert import BertEncoder as Encoder
    elif kind in DECODERS:
        from .nets import decoder as family
        from .nets.decoder import DecoderEncoder as Encoder
    else:
        return _generic(checkpoint, config, where, dtype, quantize, head, f"model_type `{kind}` runs on transformers")
    if reason := family.supports(config):
        return _generic(checkpoint, config, where, dtype, quantize, head, f"{reason} runs on transformers")
    weights = Weights(folder, family.PREFIXES, checkpoint.reader)
    if quantize != "none" and dtype == "auto":
        units = "has int8 units" if cpu_int8_units() else "has no int8 units, and is faster without --quantize"
        numbers = Choice("float32", f"what --quantize {quantize} computes its activations in; this CPU {units}")
    else:
        numbers = weights.numbers(dtype, where.value)
    linear = linear_maker(quantize, where.value)
    fast = for_dtype(pick_kernels(asked.kernels, where.value), numbers.value)
    if quantize == "none" and (found := native_maker(fast.value, numbers.value)):
        linear = found
        # The product widens in registers: exact, at half the memory.
        weights.as_stored = frozenset(DTYPES)
    kind_of_numbers, taken = getattr(torch, numbers.value), None
    steps = bind(fast.value, kind_of_numbers, where.value)
    try:
        if head is not None:
            taken = head(weights, config, kind_of_numbers, where.value)
        encoder = Encoder(config, weights, kind_of_numbers, where.value, linear, steps)
    except KeyError as error:
        raise QwenchError(f"config.json lacks {error}: `{folder}`", "download or copy the model again") from error
    weights.close(family.UNUSED)
    return Loaded(encoder, config, where, numbers, Choice("packed", f"{kind} runs without padding"), fast, taken)


def model_folder(checkpoint: Checkpoint) -> Path:
    """The folder of a checkpoint that can be run as it is.

    Raises:
        QwenchError: a .gguf file, or an adapter, which transformers would put into another model.
    """
    if checkpoint.kind == "gguf" or checkpoint.path.is_file():
        raise QwenchError(
            f"GGUF files cannot be run directly yet: `{checkpoint.name}`",
            f"turn it into a folder first: qwench convert {checkpoint.name} FOLDER",
        )
    if error := adapter_alone(checkpoint.path):
        raise error
    return checkpoint.path


def load_static(folder: Path, runtime: Runtime) -> Loaded:
    """Load a table of static embeddings.

    Raises:
        QwenchError: no such table, or a setting that has nothing to work on.
    """
    import torch

    from .nets.static import StaticEncoder

    if runtime.quantize != "none":
        raise QwenchError("--quantize is for products, and a static embedding has none", "leave it out", code=2)
    where, fast = pick_device(runtime.device), Choice("eager", "a table is looked up in")
    if runtime.kernels not in ("auto", "eager"):
        raise QwenchError("--kernels is for layers, and a static embedding has none", "leave it out", code=2)
    weights = Weights(folder)
    numbers = weights.numbers(runtime.dtype, where.value)
    encoder = StaticEncoder(weights, getattr(torch, numbers.value), where.value)
    return Loaded(encoder, {}, where, numbers, Choice("static", "one vector a token"), fast)


def _generic(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    where: Choice,
    dtype: str,
    quantize: str,
    head: Head | None,
    reason: str,
) -> Loaded:
    import torch

    from .nets.generic import GenericClassifier, GenericEncoder

    if checkpoint.reader:
        raise QwenchError(f"a sweep cannot run this architecture ({reason})", "merge each point, then measure it")
    if quantize != "none":
        raise QwenchError(f"--quantize is not there for this architecture ({reason})", "leave it out")
    numbers = Weights(checkpoint.path).numbers(dtype, where.value)
    model = GenericEncoder if head is None else GenericClassifier
    encoder = model(checkpoint.path, config, getattr(torch, numbers.value), where.value)
    return Loaded(
        encoder, config, where, numbers, Choice("transformers", reason), Choice("eager", "transformers has its own")
    )
