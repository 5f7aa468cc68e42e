"""Texts become blocks of tokens: packed end to end, some documents held out, the same for the same seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Started, Warned
from ..base.paths import local
from ..models.hub import HUB_ID
from ..models.tokenizer import TextTokenizer
from ..text.documents import ReadOptions, find_files, read_documents

if TYPE_CHECKING:
    from torch import Tensor

#: one document in this many is held out where no evaluation data is given
HOLD_OUT = 20
#: sequences that are held out at least: a gain has its standard error over them
HELD_LEAST = 2
#: beginnings of documents that prefixes may be seeded with
HEADS = 64
#: what most base models end a document with
END_OF_TEXT = "<|endoftext|>"
SHUFFLE = 10_000


@dataclass(frozen=True, slots=True)
class DataOptions:
    """What is read and how it is cut.

    Attributes:
        data: files, folders, or one hub data set, `org/name` or `org/name:split`.
        eval_data: the same for the held-out part; without it one document in HOLD_OUT is held out.
        seq_len: tokens of a block.
        head: tokens of a document's beginning, see Blocks.heads.
        tokens: of training that are wanted; reading stops there.
        eval_tokens: most tokens held out, but HELD_LEAST sequences at least.
        end: token put between documents, None for `<|endoftext|>` or the model's own.
    """

    data: tuple[str, ...]
    eval_data: tuple[str, ...] = ()
    read: ReadOptions = field(default_factory=ReadOptions)
    seq_len: int = 512
    head: int = 48
    tokens: int = 0
    eval_tokens: int = 32768
    end: str | None = None
    seed: int = 0


@dataclass(slots=True)
class Blocks:
    """Tokens for training.

    Attributes:
        train, held_out: (n, seq_len) int32.
        heads: (k, head) int32: an end-of-text token and the beginning of a document, or of a block where these are few.
        documents, held_documents: how many were read.
        note: how the held-out part was chosen.
    """

    train: Tensor
    held_out: Tensor
    heads: Tensor
    documents: int
    held_documents: int
    note: str

    def save(self, path: Path) -> None:
        """Beside the training state, so that a resumed run has the very same."""
        from safetensors.torch import save_file

        said = {"documents": str(self.documents), "held_documents": str(self.held_documents), "note": self.note}
        save_file({"train": self.train, "held_out": self.held_out, "heads": self.heads}, path, said)

    @classmethod
    def load(cls, path: Path) -> Blocks:
        """What `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            said = file.metadata()
            parts = (file.get_tensor(n) for n in ("train", "held_out", "heads"))
            return cls(*parts, int(said["documents"]), int(said["held_documents"]), said["note"])


def end_of(tokenizer: TextTokenizer, config: dict[str, Any], wanted: str | None) -> int:
    """Id of the token between documents.

    Raises:
        QwenchError: there is none, or the wanted one is not in the vocabulary.
    """
    if wanted is not None:
        if (found := tokenizer.token_id(wanted)) is None:
            raise QwenchError(f"the tokenizer has no such token: `{wanted}`", "name one of its own with --end-token")
        return found
    if (found := tokenizer.token_id(END_OF_TEXT)) is not None:
        return found
    eos = config.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if not isinstance(eos, int):
        raise QwenchError("neither tokenizer nor config has an end-of-text token", "name one with --end-token TOKEN")
    return eos


def read_blocks(options: DataOptions, tokenizer: TextTokenizer, end: int) -> Iterator[Event | Blocks]:
    """Read, tokenize and pack; yields warnings and progress, and the Blocks last.

    Raises:
        QwenchError: nothing to read, or less than one block to train on or two to hold out.
    """
    import torch

    yield Started("read", float(options.tokens) or None, "tokens")
    train, held, heads, counts = [], [], [], [0, 0]
    length = options.seq_len
    most = room = max(options.eval_tokens, HELD_LEAST * length)
    enough = options.tokens + length if options.tokens else float("inf")
    size = 0
    own = not options.eval_data
    for item in _documents(options, options.data, tokenizer):
        if isinstance(item, Warned):
            yield item
            continue
        text, ids = item
        ids = [*ids, end]
        if own and room > 0 and _number(text, options.seed) % HOLD_OUT == 0:
            held += ids
            counts[1] += 1
            room -= len(ids)
            continue
        if len(heads) < HEADS and len(ids) >= options.head:
            heads.append([end, *ids[: options.head - 1]])
        if size < enough:
            counts[0] += 1
            train += ids
            size += len(ids)
            yield Advanced("read", len(ids), detail=f"{size:,} tokens")
        if size >= enough and (not own or room <= 0) and len(heads) >= HEADS:
            break
    for item in _documents(options, options.eval_data, tokenizer) if options.eval_data else ():
        if isinstance(item, Warned):
            yield item
            continue
        held += [*item[1], end]
        counts[1] += 1
        if len(held) >= most:
            break
    note = "from --eval-data" if options.eval_data else f"one document in {HOLD_OUT}, by a hash of its text"
    if own and (len(held) < HELD_LEAST * length or len(train) < length):
        train += held
        cut = max(len(train) // HOLD_OUT, HELD_LEAST * length)
        held, train = train[-cut:], train[:-cut]
        note = "the end of the text, since there are too few documents to hold some out"

    def blocks(ids: list[int]) -> Tensor:
        return torch.tensor(ids[: len(ids) // length * length], dtype=torch.int32).view(-1, length)

    found = Blocks(blocks(train), blocks(held[:most]), torch.tensor(heads, dtype=torch.int32), *counts, note)
    for part, least, said in ((found.train, 1, "one sequence"), (found.held_out, HELD_LEAST, "two held-out sequences")):
        if len(part) < least:
            raise QwenchError(
                f"the data is shorter than {said} of {length} tokens", "give more, or a smaller --seq-len"
            )
    # Few documents: sequences from their middle are as good a beginning.
    more = found.train[: HEADS - len(heads), : options.head]
    found.heads = torch.cat((found.heads.view(-1, options.head), more))
    yield found


def _number(text: str, seed: int) -> int:
    """The same wherever the text lies, so that the same data elsewhere is parted the same way."""
    return int.from_bytes(hashlib.blake2b(f"{seed}:{text}".encode("utf-8", "replace"), digest_size=8).digest())


def _documents(
    options: DataOptions, names: tuple[str, ...], tokenizer: TextTokenizer
) -> Iterator[Warned | tuple[str, list[int]]]:
    """(text, token ids) of every document, in an order of the seed; files that cannot be read are told."""
    if not names:
        raise QwenchError("there is no data to train on", "name files, folders or a hub data set: --data docs")
    for name in names:
        local(name, "the data")
    hub = [n for n in names if not Path(n).exists() and n != "-" and HUB_ID.fullmatch(n.partition(":")[0])]
    if hub:
        if len(names) > 1:
            raise QwenchError(f"a hub data set goes alone, and there is more: `{hub[0]}`", "give one --data", code=2)
        yield from _rows(options, hub[0], tokenizer)
        return
    if missing := [n for n in names if n != "-" and not Path(n).exists()]:
        raise QwenchError(f"no such data: `{missing[0]}`", "give files, folders or a hub data set such as org/name")
    found = list(find_files(names, options.read))
    random.Random(options.seed).shuffle(found)
    for item in read_documents(found, options.read):
        if isinstance(item, Warned):
            yield item
        else:
            text = "".join(s.text for s in item.segments())
            yield text, tokenizer.ids([text])[0]


def _rows(options: DataOptions, name: str, tokenizer: TextTokenizer) -> Iterator[tuple[str, list[int]]]:
    """Rows of a hub data set, streamed."""
    try:
        import datasets
    except ImportError:
        raise QwenchError(
            "hub data sets need the `datasets` library", "pip install 'qwench[train]', or give files"
        ) from None
    repo, _, split = name.partition(":")
    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(repo, split=split or "train", streaming=True)
        rows = rows.shuffle(seed=options.seed, buffer_size=SHUFFLE)  # type: ignore[attr-defined]
    except Exception as error:  # the library raises many kinds
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise QwenchError(f"the data set cannot be opened ({line}): `{name}`", "check its name and split") from error
    column = options.read.text_field or "text"
    for row in rows:
        if not isinstance(row.get(column), str):
            raise QwenchError(
                f"the data set has no text column `{column}`, only {', '.join(row)}: `{name}`", "name it: --text-field"
            )
        yield row[column], tokenizer.ids([row[column]])[0]
