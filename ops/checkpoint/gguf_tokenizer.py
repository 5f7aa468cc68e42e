"""Byte-level BPE tokenizers: tokenizer.json to the lists of a GGUF file and back."""

from __future__ import annotations

import json
import re
from typing import Any

from ..base.errors import QwenchError
from ..base.fields import AGAIN
from .sidecars import as_json, with_end_token

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


def lists_from(
    data: dict[str, Any], own: dict[str, Any], template: str | None, vocab: int, config: dict[str, Any]
) -> dict[str, Any]:
    """`tokenizer.*` of a GGUF file.

    Args:
        data: tokenizer.json.
        own: tokenizer_config.json.
        template: of chats.
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
    last = _appended(data.get("post_processor"), tokens)
    said["tokenizer.ggml.add_bos_token"] = bool(own.get("add_bos_token", False))
    said["tokenizer.ggml.add_eos_token"] = last is not None
    if last is not None:
        # llama.cpp appends its end token, and Qwen3-Embedding ends texts with another one than chats.
        said["tokenizer.ggml.eos_token_id"] = last
    if template:
        said["tokenizer.chat_template"] = template
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


def _appended(post: dict[str, Any] | None, tokens: list[str | None]) -> int | None:
    """The token that ends every text."""
    for part in (post or {}).get("processors", [post] if post else []):
        if part.get("type") == "TemplateProcessing" and part["single"] and "SpecialToken" in part["single"][-1]:
            token = part["single"][-1]["SpecialToken"]["id"]
            if token not in tokens:
                raise QwenchError(f"tokenizer.json ends texts with `{token}`, which is none of its tokens", AGAIN)
            return tokens.index(token)
    return None


def files_of(said: dict[str, Any], file: str) -> dict[str, bytes]:
    """tokenizer.json, tokenizer_config.json and the chat template from a file's metadata; empty without a tokenizer.

    Args:
        said: metadata of a GGUF file.
        file: its name, for what is wrong with it.

    Raises:
        QwenchError: another kind than byte-level BPE, or lists that do not fit each other.
    """
    if "tokenizer.ggml.tokens" not in said:
        return {}
    kind, pre = said.get("tokenizer.ggml.model"), said.get("tokenizer.ggml.pre", "gpt-2")
    pre = ALIASES.get(pre, pre)
    if kind != "gpt2" or pre not in PRE:
        raise QwenchError(
            f"the file's tokenizer (`{kind}`, `{pre}`) cannot be rebuilt here", "get the model in safetensors"
        )
    tokens, types = said["tokenizer.ggml.tokens"], said.get("tokenizer.ggml.token_type")
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
    # In front of the first byte token they are part of the vocabulary, as GPT-2's <|endoftext|> is.
    first = min(vocab.values(), default=0)
    vocab |= {t["content"]: t["id"] for t in added if t["id"] < first}
    merges = [m.split(" ", 1) for m in said.get("tokenizer.ggml.merges", [])]
    if odd := [m for m in merges if len(m) != 2]:
        raise QwenchError(f"`{file}` is damaged: a merge of its tokenizer is not of two parts, {odd[0]}", AGAIN)
    data: dict[str, Any] = {
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
    own: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for key, name in (("bos", "bos"), ("eos", "eos"), ("padding", "pad"), ("unknown", "unk")):
        if (number := said.get(f"tokenizer.ggml.{key}_token_id")) is not None and number < len(tokens):
            own[f"{name}_token"] = tokens[number]
    own["add_bos_token"] = bool(said.get("tokenizer.ggml.add_bos_token", False))
    if said.get("tokenizer.ggml.add_eos_token") and "eos_token" in own:
        data = with_end_token(data, own["eos_token"])
    files = {"tokenizer.json": as_json(data), "tokenizer_config.json": as_json(own)}
    if template := said.get("tokenizer.chat_template"):
        files["chat_template.jinja"] = template.encode("utf-8")
    return files
