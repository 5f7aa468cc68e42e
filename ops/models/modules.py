"""The modules of sentence-transformers that this program knows, and every key that their configs may have.

A module reads one feature and writes one: `token_embeddings` (one row a token) or `sentence_embedding` (one a text).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base.errors import QwenchError
from ..checkpoint.sidecars import read_json

TOKENS, SENTENCE = "token_embeddings", "sentence_embedding"
POOLINGS = ("mean", "cls", "lasttoken", "max", "mean_sqrt_len_tokens", "weightedmean")
#: old boolean names of 1_Pooling/config.json -> pooling, in the order in which several are laid side by side
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_FEATURES = {"module_input_name", "module_output_name"}
#: module -> keys of its config.json
KEYS = {
    "Pooling": {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt", *OLD_POOLING},
    "Dense": {"in_features", "out_features", "bias", "activation_function", "use_residual"} | _FEATURES,
    "Normalize": _FEATURES,
    "LayerNorm": {"dimension"},
    "Dropout": {"dropout"},
}
#: what makes the first features of a text
ENCODERS = ("Transformer", "StaticEmbedding")
#: where Transformer keeps its settings: the first of these that is there
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
#: settings of Transformer that leave the vectors as they are, or that loading takes care of
_ARGUMENTS = {"trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "padding_side", "model_max_length"}
_TEXT = {"method": "forward", "method_output_name": "last_hidden_state"}


@dataclass(frozen=True, slots=True)
class Step:
    """One module after the encoder.

    Attributes:
        kind: Pooling, Dense, Normalize or LayerNorm.
        folder: where its weights are.
        reads, writes: features.
        modes: of Pooling, laid side by side in this order.
        config: as its file says.
    """

    kind: str
    folder: Path
    reads: str = SENTENCE
    writes: str = SENTENCE
    modes: tuple[str, ...] = ()
    config: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """Its name in reports and fingerprints."""
        name = "+".join(self.modes) or self.kind.lower()
        odd = [
            word
            for word, on in (("tokens", self.reads == TOKENS), ("residual", (self.config or {}).get("use_residual")))
            if on
        ]
        return name if self.modes or not odd else f"{name} ({', '.join(odd)})"


def read_modules(folder: Path) -> tuple[str, Path, list[Step]]:
    """(kind of the encoder, its folder, the steps after it) by modules.json, in its order.

    Raises:
        QwenchError: a module, a key or an order of modules that this program does not know; names it.
    """
    file = folder / "modules.json"
    listed = read_json(file)
    if not isinstance(listed, list) or not listed or not all(isinstance(m, dict) and "type" in m for m in listed):
        raise QwenchError(f"not a list of modules: `{file}`", "download or copy the model again")
    for module in listed:
        if odd := sorted(set(module) - {"idx", "name", "path", "type", "kwargs"}):
            raise QwenchError(f"a module has a key this program does not know: `{odd[0]}` in `{file}`", _HINT)
        if module.get("kwargs"):
            raise QwenchError(f"a module takes arguments of its own (kwargs {module['kwargs']}): `{file}`", _HINT)
        path = Path(str(module.get("path") or "."))
        if path.is_absolute() or ".." in path.parts:
            raise QwenchError(f"a module lies outside of the model folder: `{path}` in `{file}`", _HINT)
    kinds = [_kind(m["type"], file) for m in listed]
    if kinds[0] not in ENCODERS:
        raise QwenchError(f"the first module is no encoder: `{listed[0]['type']}` in `{file}`", _HINT)
    places = [folder / (m.get("path") or ".") for m in listed]
    there = {TOKENS} if kinds[0] == "Transformer" else {SENTENCE}
    steps = []
    for kind, place in zip(kinds[1:], places[1:], strict=True):
        if kind in ENCODERS:
            raise QwenchError(f"the model has two encoders, one after the other: `{file}`", _HINT)
        step = _step(kind, place)
        if step is None or (kind == "Normalize" and step.reads not in there):
            continue  # it changes nothing
        if step.reads not in there:
            raise QwenchError(f"{kind} reads `{step.reads}`, which no module before it makes: `{file}`", _HINT)
        there.add(step.writes)
        steps.append(step)
    if SENTENCE not in there:
        raise QwenchError(f"the model has no pooling module: `{file}`", "its vectors are undefined")
    return kinds[0], places[0], steps


_HINT = f"known are {', '.join((*ENCODERS, *KEYS))} of sentence-transformers; a model's own code is never run"


def _kind(dotted: str, file: Path) -> str:
    kind = str(dotted).rsplit(".", 1)[-1]
    known = str(dotted).startswith("sentence_transformers.") and kind in (*ENCODERS, *KEYS)
    other = any(part in dotted for part in (".sparse_encoder.", ".cross_encoder.", ".multi_vector_encoder."))
    if not known or other:
        raise QwenchError(f"the model has a module this program does not know: `{dotted}` in `{file}`", _HINT)
    return kind


def _step(kind: str, place: Path) -> Step | None:
    """The step of a module; None for one that does nothing once training is over."""
    config = read_json(place / "config.json", {} if kind in ("Normalize", "Dropout") else None)
    known(config, KEYS[kind], place / "config.json", kind)
    if kind == "Dropout":
        return None
    if kind == "Pooling":
        return Step(kind, place, TOKENS, SENTENCE, _modes(config, place), config)
    reads = config.get("module_input_name", SENTENCE)
    writes = config.get("module_output_name") or reads
    for name in (reads, writes):
        if name not in (TOKENS, SENTENCE):
            raise QwenchError(f"{kind} works on a feature this program does not know: `{name}` in `{place}`", _HINT)
    if reads != writes:
        raise QwenchError(f"{kind} makes `{writes}` of `{reads}`, which only pooling does here: `{place}`", _HINT)
    return Step(kind, place, reads, writes, (), config)


def known(config: Any, keys: set[str], file: Path, what: str) -> None:
    """Raise QwenchError for a key that is not understood: vectors would be others than the model means."""
    if not isinstance(config, dict):
        raise QwenchError(f"not an object: `{file}`", "download or copy the model again")
    if odd := sorted(set(config) - keys):
        raise QwenchError(
            f"{what} has a setting this program does not know: `{odd[0]}` in `{file}`",
            "its vectors could be others than the model means; a newer qwench may know it",
        )


def _modes(config: dict[str, Any], place: Path) -> tuple[str, ...]:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [new for old, new in OLD_POOLING.items() if config.get(old)] or ["mean"]
    modes = (modes,) if isinstance(modes, str) else tuple(modes)
    if not modes or any(m not in POOLINGS for m in modes):
        raise QwenchError(f"pooling of this kind is not supported: `{modes}` in `{place / 'config.json'}`", _HINT)
    return modes


def transformer_settings(folder: Path) -> dict[str, Any]:
    """max_seq_length and do_lower_case of a Transformer module, by whichever of its file names is there.

    Raises:
        QwenchError: a setting that would make other vectors.
    """
    file = next((folder / name for name in TRANSFORMER_FILES if (folder / name).is_file()), None)
    if file is None:
        return {}
    config = read_json(file)
    inner = {"model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs"}
    fixed = {"transformer_task": "feature-extraction", "module_output_name": TOKENS, "processing_kwargs": {}}
    unset = {"query_length", "document_length", "query_expansion"}
    known(
        config,
        {"max_seq_length", "do_lower_case", "unpad_inputs", "modality_config", *inner, *fixed, *unset},
        file,
        "Transformer",
    )
    wrong = [name for name, value in fixed.items() if config.get(name, value) != value]
    wrong += [name for name in unset if config.get(name) is not None]
    if (config.get("modality_config") or {"text": _TEXT}).get("text") != _TEXT:
        wrong.append("modality_config")
    if wrong:
        raise QwenchError(
            f"Transformer has a setting this program does not follow: `{wrong[0]}` is `{config[wrong[0]]}` in `{file}`",
            "its vectors would be others than the model means",
        )
    limit = config.get("max_seq_length")
    for name in sorted(inner & set(config)):
        known(config[name] or {}, _ARGUMENTS, file, f"Transformer's {name}")
        limit = (config[name] or {}).get("model_max_length") or limit
    return config | {"max_seq_length": limit}
