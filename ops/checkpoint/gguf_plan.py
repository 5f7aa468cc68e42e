"""A plan under transformers' names becomes the plan of one GGUF file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.parse import decoded
from .cast import EXACT, PIECE, Losses
from .gguf_arch import BIASES, PERMUTED, POOLING, gguf_name, names_of, settings_of
from .gguf_blocks import BLOCKS, PLAIN, decode, encode
from .gguf_file import header
from .gguf_reader import GgufReader, permuted
from .gguf_tokenizer import lists_from
from .layout import EMBEDDING, PREFIX
from .plan import Output, Plan, Shard
from .reader import Source
from .rope_factors import NAME as DIVISORS
from .rope_factors import factors
from .schemas import fields_of
from .sidecars import TEMPLATES, json_of
from .tensors import torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

#: matrices that decide which token comes next keep 8 bits in a 4- or 5-bit file
_DELICATE = ("token_embd.weight", "output.weight")
_CAST = "convert to bfloat16 or float32 first"
_AGAIN = "download or copy the model again"
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_INSIDE = (
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "chat_template.json",
)


def to_gguf(source: Source, config: dict[str, Any], plan: Plan, dtype: str, file: str, rerank_template: str) -> None:
    """Replace the outputs, shards and side files of a plan by those of one GGUF file.

    Args:
        source: where the tensors come from.
        config: of the model as planned.
        plan: under transformers' names; changed.
        dtype: auto, a float dtype or a key of BLOCKS.
        file: name of the GGUF file.
        rerank_template: with {query} and {document}, for models that rank.

    Raises:
        QwenchError: a tensor, setting or tokenizer that GGUF has no name for here.
    """
    config = fields_of(config, source.folder / "config.json")
    reader = source.reader if isinstance(source.reader, GgufReader) else None
    embedding = next((o for o in plan.outputs if o.name.removeprefix(PREFIX) == EMBEDDING), None)
    if embedding is None or len(embedding.shape) != 2:
        raise QwenchError(
            f"no matrix `{PREFIX}{EMBEDDING}` among the tensors, without which llama.cpp loads no model: "
            f"`{source.path}`"
        )
    said = settings_of(config, embedding.shape[0], plan.notes)
    arch = said["general.architecture"]
    stacks: dict[str, dict[int, Output]] = {}
    for output in plan.outputs:
        name = output.name if output.name.startswith((PREFIX, "lm_head.", "score.")) else PREFIX + output.name
        found = gguf_name(name)
        if found is None:
            raise QwenchError(f"llama.cpp has no name for a tensor of this model: `{output.name}`")
        _fits(arch, found[0], output, config)
        stacks.setdefault(found[0], {})[found[1] or 0] = output
    _complete(stacks, config)
    heads = {"attn_q": config["num_attention_heads"]}
    heads["attn_k"] = config.get("num_key_value_heads") or heads["attn_q"]
    plan.outputs = [
        _output(name, [parts[i] for i in sorted(parts)], "_exps." in name, dtype, plan.notes, _heads(arch, name, heads))
        for name, parts in stacks.items()
    ]
    plan.outputs += _divisors(config, said, arch)
    said |= {
        "general.type": "model",
        "general.name": source.path.resolve().stem if source.path.is_file() else source.path.resolve().name,
        "general.quantization_version": 2,
    }
    # float64 and whole numbers have no file type.
    if (number := _file_type(plan.outputs)) is not None:
        said["general.file_type"] = number
    if not reader:
        said |= _text(source, config, plan, stacks)
    if pooling := _pooling(source, plan):
        said[f"{arch}.pooling_type"] = POOLING[pooling]
    if "cls.output.weight" in stacks:
        said |= {
            f"{arch}.pooling_type": POOLING["rank"],
            f"{arch}.classifier.output_labels": ["yes", "no"],
            "tokenizer.chat_templates": sorted({*said.get("tokenizer.chat_templates", []), "rerank"}),
            "tokenizer.chat_template.rerank": rerank_template,
        }
    if reader:
        said |= _kept(reader.file.said, said, arch, plan.notes)
    plan.side = {}
    inside = (*_TOKENIZER, *_INSIDE)
    plan.left = sorted({*plan.left, *(n for n in plan.copies if n not in inside and not n.startswith(TEMPLATES))})
    plan.copies = []
    plan.shards = [Shard(file, plan.outputs, said)]


def _divisors(config: dict[str, Any], said: dict[str, Any], arch: str) -> list[Output]:
    """Llama 3's rotary scaling as the tensor that llama.cpp reads; nothing for another one."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) != "llama3":
        return []
    made = factors(rope, said[f"{arch}.rope.dimension_count"], said[f"{arch}.rope.freq_base"])
    words = "made of the rope scaling of config.json"
    return [Output(DIVISORS, tuple(made.shape), "float32", (), words, lambda losses: iter([made]))]


def _file_type(outputs: list[Output]) -> int | None:
    """`general.file_type` of the format that most bytes of matrices are in."""
    counts: dict[str, int] = {}
    for output in outputs:
        if len(output.shape) > 1:
            counts[output.dtype] = counts.get(output.dtype, 0) + output.nbytes
    most = max(counts, key=counts.__getitem__)
    return (BLOCKS.get(most) or PLAIN[most])[-1]


def _fits(arch: str, name: str, output: Output, config: dict[str, Any]) -> None:
    """llama.cpp has a place for a tensor of this kind and shape.

    Raises:
        QwenchError: it has none.
    """
    part = name.split(".")[2] if name.startswith("blk.") else name
    if name.endswith(".bias") and part not in BIASES.get(arch, ()):
        raise QwenchError(f"llama.cpp reads no bias there in a model of type {arch}: `{output.name}`")
    if output.dtype not in PLAIN and output.dtype not in BLOCKS:
        raise QwenchError(f"`{output.name}` is stored as {output.dtype}, which GGUF does not have", _CAST)
    heads = config["num_attention_heads"]
    wide = heads * (config.get("head_dim") or config["hidden_size"] // heads)
    if part == "attn_q" and output.shape[:1] != (wide,):
        raise QwenchError(
            f"`{output.name}` is of shape {list(output.shape)} and config.json's heads are {wide} rows: gates of "
            "attention, or another model's config",
            "llama.cpp knows no gates of attention",
        )


def _complete(stacks: dict[str, dict[int, Output]], config: dict[str, Any]) -> None:
    """Every expert of every stack is there."""
    wanted = config.get("num_experts") or config.get("num_local_experts")
    for name, parts in stacks.items():
        if "_exps." in name and len(parts) != wanted:
            raise QwenchError(f"config.json has {wanted} experts and `{name}` would have {len(parts)}", _AGAIN)


def _kept(old: dict[str, Any], said: dict[str, Any], arch: str, notes: list[str]) -> dict[str, Any]:
    """Metadata of a GGUF input that goes along as it is, its tokenizer too: all that the output does not say itself."""
    gone = ("split.", "general.alignment", "general.quantization_version", f"{arch}.rope.scale_linear")
    more = {k: v for k, v in old.items() if k not in said and not k.startswith(gone)}
    nested = [k for k, v in more.items() if isinstance(v, list) and any(isinstance(e, list) for e in v)]
    if nested:
        notes.append(f"lists of lists in the GGUF file's metadata are left behind: {names_of(nested)}")
    own = {k: old[k] for k in ("general.name", "general.type") if k in old}
    return {k: v for k, v in more.items() if k not in nested} | own


def place(shard: Shard) -> tuple[bytes, dict[str, int]]:
    """(header, name -> first byte) of the file."""
    numbers = {k: v[0] for k, v in (PLAIN | BLOCKS).items()}
    return header(shard.said, [(o.name, o.shape, numbers[o.dtype], o.nbytes) for o in shard.outputs])


def _heads(arch: str, name: str, heads: dict[str, int]) -> int:
    """By how many heads the rows are to be put in llama.cpp's order; 0 for not at all."""
    return heads.get(name.split(".")[2], 0) if arch in PERMUTED and name.startswith("blk.") else 0


def _output(name: str, parts: list[Output], stacked: bool, dtype: str, notes: list[str], heads: int) -> Output:
    first = parts[0]
    if any(p.shape != first.shape for p in parts):
        raise QwenchError(f"experts of different shapes cannot be stacked: `{first.name}`")
    shape = (len(parts), *first.shape) if stacked else first.shape
    if name == "cls.output.weight" and (len(shape) != 2 or 0 in shape):
        raise QwenchError(f"`{first.name}` is no matrix but of shape {list(shape)}")
    kind = _kind(name, first, dtype, notes)
    if heads and (not shape or 0 in shape or shape[0] % (2 * heads)):
        raise QwenchError(f"`{first.name}` is of shape {list(shape)}, which is not of {heads} heads")
    if name == "cls.output.weight" and shape[0] == 1:
        # llama.cpp takes a softmax over (yes, no): with a row of zeros for no it is the sigmoid of the score.
        shape = (2, *shape[1:])
    did = [f"from `{first.name}`" if len(parts) == 1 else f"{len(parts)} experts stacked"]
    did += [f"{first.dtype} to {kind}"] if kind != first.dtype else []
    did += ["rows in llama.cpp's order"] if heads else []
    sources = tuple(n for p in parts for n in p.sources)

    def made(losses: Losses | None) -> Iterator[Tensor]:
        for part in parts:
            stream: Iterable[Tensor] = part.pieces(losses)
            if heads:
                stream = permuted(_joined(stream).view(part.shape), heads).view(-1).split(PIECE)
            elif name == "cls.output.weight":
                stream = [_yes_no(_joined(stream).view(part.shape))]
            yield from _encoded(name, stream, kind, losses)

    return Output(name, shape, kind, sources, ", ".join(did), made)


def _kind(name: str, first: Output, dtype: str, notes: list[str]) -> str:
    """Vectors, routers and ranking heads stay float32, which llama.cpp's kernels want."""
    if len(first.shape) < 2 or "ffn_gate_inp" in name or name.startswith("cls."):
        return "float32"
    if dtype not in BLOCKS:
        kind = first.dtype if dtype == "auto" else dtype
        return "float32" if kind == "float64" else kind
    if first.shape[-1] % BLOCKS[dtype][1]:
        notes.append(f"rows of `{first.name}` are not whole blocks of {dtype}; it is written as float16")
        return "float16"
    return "q8_0" if name in _DELICATE else dtype


def _encoded(name: str, stream: Iterable[Tensor], kind: str, losses: Losses | None) -> Iterator[Tensor]:
    import torch

    size = BLOCKS[kind][1] if kind in BLOCKS else 1
    rest: Tensor | None = None
    for piece in stream:
        piece = piece if rest is None else torch.cat((rest, piece))
        whole = piece.numel() // size * size
        rest = piece[whole:] if whole < piece.numel() else None
        piece = piece[:whole]
        if kind in BLOCKS:
            yield _blocks(name, piece, kind, losses)
            continue
        own, cast = str(piece.dtype).removeprefix("torch."), piece.to(torch_dtype(kind))
        if losses is not None and own != kind and (own, kind) not in EXACT:
            losses.seen(name, piece, cast)
        yield cast


def _blocks(name: str, piece: Tensor, kind: str, losses: Losses | None) -> Tensor:
    """Values in blocks; what they lose is told, and what their float16 scales cannot hold is refused.

    Raises:
        QwenchError: a finite value would be read back as NaN or infinite.
    """
    import torch

    data = encode(piece, kind)
    if losses is not None and piece.numel():
        after = decode(data, kind, tuple(piece.shape))
        if not torch.isfinite(after.sum()) and torch.isfinite(piece).all():
            raise QwenchError(
                f"values of `{name}` as large as {piece.abs().max().item():.3g} do not fit into {kind}, whose scales "
                "are float16",
                "write bfloat16 or float32 instead",
            )
        losses.seen(name, piece, after)
    return data


def _joined(stream: Iterable[Tensor]) -> Tensor:
    import torch

    return torch.cat(list(stream))


def _yes_no(score: Tensor) -> Tensor:
    """transformers' classifier rows, (score) or (no, yes), as (yes, no)."""
    import torch

    return (torch.cat((score, torch.zeros_like(score))) if len(score) == 1 else score.flip(0)).reshape(-1)


def _file(source: Source, plan: Plan, name: str) -> str | None:
    """A side file as it would be written."""
    content = plan.side.get(name)
    if content is None and name in plan.copies:
        content = (source.folder / name).read_bytes()
    return decoded(content, str(source.folder / name)) if content is not None else None


def _text(source: Source, config: dict[str, Any], plan: Plan, stacks: dict[str, dict[int, Output]]) -> dict[str, Any]:
    data, own, template = (_file(source, plan, name) for name in _TOKENIZER)
    if data is None:
        plan.notes.append("no tokenizer.json: the GGUF file has no tokenizer")
        return {"tokenizer.ggml.model": "none"}
    settings = json_of(own or "{}", source.folder / "tokenizer_config.json")
    found = settings.get("chat_template")
    named = {t["name"]: t["template"] for t in found} if isinstance(found, list) else {"default": found}
    older = source.folder / "chat_template.json"
    names = [n for n in {*plan.copies, *plan.side} if n.startswith(f"{TEMPLATES}/") and n.endswith(".jinja")]
    named |= {PurePath(n).stem: _file(source, plan, n) for n in names}
    older_text = json_of(_file(source, plan, older.name) or "{}", older).get("chat_template")
    named |= {"default": template or older_text or named.get("default")}
    rows = stacks["token_embd.weight"][0].shape[0]
    templates = {k: v for k, v in named.items() if v}
    return lists_from(json_of(data, source.folder / "tokenizer.json"), settings, templates, rows, config)


def _pooling(source: Source, plan: Plan) -> str | None:
    name = "1_Pooling/config.json"
    said = json_of(_file(source, plan, name) or "{}", source.folder / name)
    modes = {"lasttoken": "last", "mean_tokens": "mean", "cls_token": "cls"}
    return next((ours for theirs, ours in modes.items() if said.get(f"pooling_mode_{theirs}")), None)
