"""A checkpoint's tokenizer, through the `tokenizers` library alone (transformers' own takes seconds to import)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QwenchError
from ..checkpoint.impostors import impostor
from .pretrained import pretrained

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextTokenizer:
    """Content ids of texts, and the special ids the model wants around them.

    Attributes:
        backend: the `tokenizers.Tokenizer`, without truncation and padding.
        before, after: special ids around the content (`[CLS]` and `[SEP]`; nothing and `<|endoftext|>`).
        cut: longest input that tokenizer.json itself states, None where it states none.
        dropped: content ids that count for nothing.
    """

    def __init__(self, backend: Tokenizer) -> None:
        self.cut: int | None = (backend.truncation or {}).get("max_length")
        self.dropped: frozenset[int] = frozenset()
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        empty = list(backend.encode("").ids)
        one = backend.encode("a", add_special_tokens=False).ids
        full = backend.encode("a").ids
        at = next((i for i in range(len(full)) if full[i : i + len(one)] == one), 0)
        self.before: list[int] = empty[:at]
        self.after: list[int] = empty[at:]

    @classmethod
    def load(cls, folder: Path, lowercase: bool = False) -> TextTokenizer:
        """Read tokenizer.json; older layouts go through transformers' converter.

        Raises:
            QwenchError: no tokenizer, or a damaged one.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        from tokenizers import Tokenizer, normalizers

        file = folder / "tokenizer.json"
        try:
            backend = Tokenizer.from_file(str(file)) if file.is_file() else _slow(folder)
        except QwenchError:
            raise
        except Exception as error:  # tokenizers raises bare Exception
            file = file if file.is_file() else _older(folder)[0]
            line = " ".join(str(error).split())[:200]
            raise impostor(file) or QwenchError(
                f"the tokenizer cannot be read ({line}): `{file}`", "download the model again"
            ) from error
        if lowercase:
            parts = [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
            backend.normalizer = normalizers.Sequence(parts)
        return cls(backend)

    @property
    def specials(self) -> int:
        """Number of special ids around the content."""
        return len(self.before) + len(self.after)

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Content ids of each text, without special ids."""
        return [e.ids for e in self.backend.encode_batch_fast(texts, add_special_tokens=False)]

    def wrap(self, content: list[int]) -> list[int]:
        """Content ids with the special ids around them, each exactly once."""
        if self.dropped:
            content = [i for i in content if i not in self.dropped]
        return [*self.before, *content, *self.after]

    def drop_unknown(self) -> None:
        """Let the unknown token count for nothing, where the vocabulary has one."""
        model = json.loads(self.backend.to_str())["model"]
        found = model.get("unk_id")
        if found is None and model.get("unk_token"):
            found = self.token_id(model["unk_token"])
        self.dropped = frozenset() if found is None else frozenset((found,))

    def pair_ids(self) -> tuple[list[int], list[int], list[int], tuple[int, int]]:
        """Special ids before, between and after the two texts of a pair, and the token types of the texts.

        Raises:
            QwenchError: the tokenizer does not know pairs.
        """
        a, b = "a", "b"
        left, right = self.ids([a, b])
        pair = self.backend.encode(a, b)
        ids = list(pair.ids)
        i = next((n for n in range(len(ids)) if ids[n : n + len(left)] == left), -1)
        j = next((n for n in range(i + len(left), len(ids)) if ids[n : n + len(right)] == right), -1)
        if i < 0 or j <= i + len(left):
            raise QwenchError("the tokenizer puts nothing between the texts of a pair", "this is no cross-encoder's")
        types = (pair.type_ids[i], pair.type_ids[j])
        return ids[:i], ids[i + len(left) : j], ids[j + len(right) :], types

    def single_ids(self, words: Sequence[str], folder: Path) -> list[int]:
        """Ids of words that are one token each.

        Raises:
            QwenchError: one of them is not; names it and `folder`.
        """
        found = self.ids(list(words))
        for word, ids in zip(words, found, strict=True):
            if len(ids) != 1:
                raise QwenchError(
                    f"the tokenizer has no single token for `{word}`: `{folder}`",
                    "use a reranker with its own tokenizer, such as Qwen/Qwen3-Reranker-0.6B",
                )
        return [ids[0] for ids in found]

    def token_id(self, token: str) -> int | None:
        """Id of a token by its text, None when the vocabulary lacks it."""
        return self.backend.token_to_id(token)


def _older(folder: Path) -> list[Path]:
    """Files that transformers makes a tokenizer from where there is no tokenizer.json."""
    return [p for n in ("vocab.txt", "vocab.json") if (p := folder / n).is_file()] + sorted(folder.glob("*.model"))


def _slow(folder: Path) -> Tokenizer:
    files = _older(folder)
    if not files:
        raise QwenchError(f"the model folder has no tokenizer: `{folder}`", "copy tokenizer.json beside config.json")
    if error := next(filter(None, map(impostor, files)), None):
        raise error
    for model in (f for f in files if f.suffix == ".model" and "tiktoken" not in f.name):
        _check_sentencepiece(model)
    tokenizer = pretrained("AutoTokenizer", folder)
    if not getattr(tokenizer, "backend_tokenizer", None):
        raise QwenchError(f"the tokenizer has no fast form: `{folder}`", "convert it to tokenizer.json")
    return tokenizer.backend_tokenizer


def _check_sentencepiece(file: Path) -> None:
    """Raise where a SentencePiece model is damaged: transformers would go on with another tokenizer in its place."""
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError as error:
        raise QwenchError(
            f"the tokenizer is a SentencePiece model, and the library for those is missing: `{file}`",
            "pip install sentencepiece protobuf",
        ) from error
    SentencePieceProcessor(model_file=str(file))
