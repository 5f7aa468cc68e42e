"""Byte-level BPE tokenizers: tokenizer.json to the lists of a GGUF file and back."""

from __future__ import annotations

import json
import re
from typing import Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN, TEXT, unfit
from .account import Account
from .sidecars import TEMPLATES, as_json

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_GPT2 = _BYTES | {"trim_offsets": True, "use_regex": True}


def _split(numbers: str) -> dict[str, Any]:
    regex = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_LETTERS}|{numbers}|{_REST}"
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, _BYTES]}


#: `tokenizer.ggml.pre` -> how tokenizer.json says the same
PRE: dict[str, dict[str, Any]] = {
    "qwen2": _split(r"\p{N}"),
    "llama-bpe": _split(r"\p{N}{1,3}"),
    "smollm": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]},
    "gpt-2": _GPT2,
}
#: names that llama.cpp treats alike
ALIASES = {"deepseek-r1-qwen": "qwen2", "llama3": "llama-bpe", "llama-v3": "llama-bpe", "smaug-bpe": "llama-bpe"}
#: tokenizers that normalise first
_NFC = ("qwen2",)
_PAD = re.compile(r"\[PAD\d+\]")
_FILE = re.compile(r"\w[\w .+-]*")


def lists_from(
    data: dict[str, Any], own: dict[str, Any], templates: dict[str, str], vocab: int, config: dict[str, Any]
) -> dict[str, Any]:
    """`tokenizer.*` of a GGUF file.

    Args:
        data: tokenizer.json.
        own: tokenizer_config.json.
        templates: of chats, by name; `default` is the one without a name.
        vocab: rows of the embedding; rows without a token are filled up with unused ones.
        config: names the end tokens where the tokenizer's own files do not.

    Raises:
        QwenchError: another kind than byte-level BPE, an unknown way to split, or more tokens than rows.
    """
    model = data["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise QwenchError(
            f"only byte-level BPE tokenizers can be written to GGUF here, and this is {model.get('type')}",
            "use llama.cpp's own converter for it",
        )
    if not isinstance(model["vocab"], dict):
        raise QwenchError("the vocabulary of tokenizer.json is a list, and byte-level BPE has an object", AGAIN)
    tokens: list[str | None] = [None] * vocab
    types = [UNUSED] * vocab
    added = {t["id"]: t for t in data.get("added_tokens", [])}
    entries = [*((i, t, NORMAL) for t, i in model["vocab"].items())]
    entries += [(i, t["content"], CONTROL if t["special"] else USER_DEFINED) for i, t in added.items()]
    for number, text, kind in entries:
        if number >= vocab:
            raise QwenchError(f"token {number} (`{text}`) has no row in the embedding, which has {vocab}")
        tokens[number], types[number] = text, kind
    said: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _pre(data),
        "tokenizer.ggml.tokens": [f"[PAD{i}]" if t is None else t for i, t in enumerate(tokens)],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in model["merges"]],
    }
    numbers = {t: i for i, t in enumerate(tokens) if t is not None}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")):
        token = own.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        number = numbers.get(token) if token is not None else config.get(f"{name}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int) and 0 <= number < vocab:
            said[f"tokenizer.ggml.{key}_token_id"] = number
    first, last = _around(data.get("post_processor"), tokens)
    said["tokenizer.ggml.add_bos_token"] = first is not None or bool(own.get("add_bos_token", False))
    said["tokenizer.ggml.add_eos_token"] = last is not None
    if first is not None:
        said["tokenizer.ggml.bos_token_id"] = first
    if last is not None:
        # llama.cpp appends its end token, and Qwen3-Embedding ends texts with another one than chats.
        said["tokenizer.ggml.eos_token_id"] = last
    if said["tokenizer.ggml.add_bos_token"] and "tokenizer.ggml.bos_token_id" not in said:
        raise QwenchError("the tokenizer adds a begin token and names none", "set bos_token in tokenizer_config.json")
    return said | templates_to(templates)


def templates_to(templates: dict[str, str]) -> dict[str, Any]:
    """`tokenizer.chat_template*` of named templates."""
    named = {k: v for k, v in templates.items() if k != "default"}
    said: dict[str, Any] = {"tokenizer.chat_template": templates["default"]} if "default" in templates else {}
    if named:
        said |= {"tokenizer.chat_templates": sorted(named)}
        said |= {f"tokenizer.chat_template.{name}": text for name, text in named.items()}
    return said


def _pre(data: dict[str, Any]) -> str:
    def plain(value: dict[str, Any] | None) -> str:
        # Offsets do not change the tokens.
        return re.sub(r'"trim_offsets": (true|false), ', "", json.dumps(value, sort_keys=True))

    own = plain(data.get("pre_tokenizer"))
    for name, wanted in PRE.items():
        if own == plain(wanted):
            return name
    raise QwenchError(
        "llama.cpp's name for this tokenizer's way to split text is not known here",
        "known: " + ", ".join(PRE) + "; use llama.cpp's own converter for it",
    )


def _around(post: dict[str, Any] | None, tokens: list[str | None]) -> tuple[int | None, int | None]:
    """The tokens that begin and end every text.

    Raises:
        QwenchError: it puts more than one at a side, which llama.cpp does not.
    """
    for part in (post or {}).get("processors", [post] if post else []):
        if part.get("type") != "TemplateProcessing":
            continue
        names = [p["SpecialToken"]["id"] if "SpecialToken" in p else None for p in part["single"]]
        if None not in names:
            raise QwenchError("tokenizer.json's post_processor has no place for the text itself", AGAIN)
        at = names.index(None)
        if at > 1 or len(names) - at > 2:
            raise QwenchError("the tokenizer puts several tokens around a text, which cannot be said in GGUF")
        first, last = names[0] if at else None, names[-1] if at + 1 < len(names) else None
        for token, does in ((first, "begins"), (last, "ends")):
            if token is not None and token not in tokens:
                raise QwenchError(f"tokenizer.json {does} texts with `{token}`, which is none of its tokens", AGAIN)
        return tuple(None if n is None else tokens.index(n) for n in (first, last))
    return None, None


def files_of(said: Account, file: str) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and the chat template from a file's metadata; empty without a tokenizer.

    Args:
        said: metadata of a GGUF file.
        file: its name, for what is wrong with it.

    Raises:
        QwenchError: another kind than byte-level BPE, or lists that do not fit each other.
    """
    if said.get("tokenizer.ggml.tokens") is None:
        said.read.add("tokenizer.ggml.model")
        return {}
    kind, pre = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre", "gpt-2")
    pre = ALIASES.get(pre, pre)
    if kind != "gpt2" or pre not in PRE:
        raise QwenchError(
            f"the file's tokenizer (`{kind}`, `{pre}`) cannot be rebuilt here", "get the model in safetensors"
        )
    tokens, types = said.need("tokenizer.ggml.tokens"), said.get("tokenizer.ggml.token_type")
    types = types or [NORMAL] * len(tokens)
    if len(types) != len(tokens):
        raise QwenchError(f"`{file}` is damaged: it has {len(tokens)} tokens and the types of {len(types)}", AGAIN)
    vocab: dict[str, int] = {}
    added: list[dict[str, Any]] = []
    for number, (token, type_) in enumerate(zip(tokens, types, strict=True)):
        if type_ in (CONTROL, USER_DEFINED):
            plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            added.append({"id": number, "content": token, **plain, "special": type_ == CONTROL})
        elif type_ != UNUSED or not _PAD.fullmatch(token):
            vocab[token] = number
    data = _data(said, file, pre, vocab, added)
    own: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")):
        if (number := said.get(f"tokenizer.ggml.{key}_token_id")) is not None and number < len(tokens):
            own[f"{name}_token"] = tokens[number]
    # llama.cpp's own default for Llama 3's.
    begins = bool(said.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"))
    ends = bool(said.get("tokenizer.ggml.add_eos_token"))
    own["add_bos_token"] = begins and "bos_token" in own
    around = [own.get("bos_token") if begins else None, own.get("eos_token") if ends else None]
    if any(around):
        data["post_processor"] = _template(data["post_processor"], *around, tokens)
    files = {"tokenizer.json": as_json(data), "tokenizer_config.json": as_json(own)}
    if template := said.get("tokenizer.chat_template"):
        files["chat_template.jinja"] = template.encode("utf-8")
    for name in said.get("tokenizer.chat_templates", []):
        if not _FILE.fullmatch(name):
            raise QwenchError(f"`{file}` is damaged: it has a chat template by the name of {name!r}", AGAIN)
        if text := said.get(key := f"tokenizer.chat_template.{name}"):
            if not TEXT.fits(text):
                raise unfit(file, key, TEXT, text)
            files[f"{TEMPLATES}/{name}.jinja"] = text.encode("utf-8")
    keys = [f"tokenizer.ggml.{k}_token_id" for k in ("eos", "eot", "eom")]
    stops = list(dict.fromkeys(n for n in map(said.get, keys) if n is not None and n < len(tokens)))
    if len(stops) > 1:
        # transformers ends an answer at what its generation config names.
        files["generation_config.json"] = as_json({"eos_token_id": stops})
    return files


def _data(said: Account, file: str, pre: str, vocab: dict[str, int], added: list[dict[str, Any]]) -> dict[str, Any]:
    """tokenizer.json, nothing around texts."""
    # In front of the first byte token they are part of the vocabulary, as GPT-2's <|endoftext|> is.
    first = min(vocab.values(), default=0)
    vocab |= {t["content"]: t["id"] for t in added if t["id"] < first}
    merges = [m.split(" ", 1) for m in said.get("tokenizer.ggml.merges", [])]
    if odd := [m for m in merges if len(m) != 2]:
        raise QwenchError(f"`{file}` is damaged: a merge of its tokenizer is not of two parts, {odd[0]}", AGAIN)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in _NFC else None,
        "pre_tokenizer": PRE[pre],
        "post_processor": _BYTES if pre in _NFC else None,
        "decoder": _BYTES | {"add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre == "llama-bpe",
            "vocab": vocab,
            "merges": merges,
        },
    }


def _template(before: dict[str, Any] | None, first: str | None, last: str | None, tokens: list[str]) -> dict[str, Any]:
    """A post-processor that puts tokens around every text, and around both of a pair."""

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        begin = [{"SpecialToken": {"id": first, "type_id": kind}}] if first else []
        return [*begin, {"Sequence": {"id": name, "type_id": kind}}]

    end = [{"SpecialToken": {"id": last, "type_id": 0}}] if last else []
    names = [t for t in dict.fromkeys((first, last)) if t]
    template = {
        "type": "TemplateProcessing",
        "single": [*around("A", 0), *end],
        "pair": [*around("A", 0), *around("B", 1 if first else 0), *end],
        "special_tokens": {t: {"id": t, "ids": [tokens.index(t)], "tokens": [t]} for t in names},
    }
    return {"type": "Sequence", "processors": [*([before] if before else []), template]}
