"""A checkpoint's tokenizer, through the `tokenizers` library alone (transformers' own takes seconds to import)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..base.errors import QwenchError
from .pretrained import pretrained

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextTokenizer:
    """Content ids of texts, and the special ids the model wants around them.

    Attributes:
        backend: the `tokenizers.Tokenizer`, without truncation and padding.
        before, after: special ids around the content (`[CLS]` and `[SEP]`; nothing and `<|endoftext|>`).
    """

    def __init__(self, backend: Tokenizer) -> None:
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
            raise QwenchError(
                f"the tokenizer cannot be read ({error}): `{file}`", "download the model again"
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
        return [*self.before, *content, *self.after]

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


def _slow(folder: Path) -> Tokenizer:
    if not any((folder / n).exists() for n in ("vocab.txt", "vocab.json", "tokenizer.model", "spiece.model")):
        raise QwenchError(f"the model folder has no tokenizer: `{folder}`", "copy tokenizer.json beside config.json")
    tokenizer = pretrained("AutoTokenizer", folder)
    if not getattr(tokenizer, "backend_tokenizer", None):
        raise QwenchError(f"the tokenizer has no fast form: `{folder}`", "convert it to tokenizer.json")
    return tokenizer.backend_tokenizer
