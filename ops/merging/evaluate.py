"""How good a checkpoint is: retrieval over pairs of texts, or the loss of a text. For the sweeps of `qwench merge`."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.paths import local
from ..base.runtime import Runtime
from ..text.rows import Malformed, json_lines

if TYPE_CHECKING:
    import numpy as np

    from ..models.hub import Checkpoint

KINDS = ("retrieval", "ppl")
#: tokens of a window of text
WINDOW = 512
CUTOFF = 10


@dataclass(slots=True)
class Pairs:
    """Queries, all passages, and which of them answer which query."""

    queries: list[str] = field(default_factory=list)
    passages: list[str] = field(default_factory=list)
    relevant: list[set[int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Measure:
    """What is measured.

    Attributes:
        kind: retrieval or ppl.
        metric: the one that points are compared by.
        lower: less is better.
        data: pairs, or the text.
    """

    kind: str
    metric: str
    lower: bool
    data: Pairs | str

    def of(self, checkpoint: Checkpoint, threads: int = 0) -> dict[str, float]:
        """All metrics of a checkpoint, computed in float32 from its stored values.

        Raises:
            QwenchError: it is no embedding model, or no language model; see the loaders.
        """
        found = _retrieval if isinstance(self.data, Pairs) else _loss
        return found(checkpoint, self.data, threads)

    def better(self, a: float, b: float) -> bool:
        """a is better than b; what is not a number is never better."""
        return a < b if self.lower else a > b


def parse_eval(text: str) -> Measure:
    """`retrieval:PAIRS.jsonl` or `ppl:TEXT`, with the file read.

    Raises:
        QwenchError: neither, or a file that cannot be read; names line and field.
    """
    kind, _, name = text.partition(":")
    if kind not in KINDS or not name:
        raise QwenchError(f"not a measure: `{text}`", "use retrieval:PAIRS.jsonl or ppl:TEXT", code=2)
    path = Path(local(name, "the text to measure with")).expanduser()
    try:
        content = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise QwenchError(f"the texts to measure with cannot be read ({error}): `{path}`") from error
    if kind == "ppl":
        return Measure(kind, "nats_per_token", True, content)
    return Measure(kind, f"ndcg@{CUTOFF}", False, read_pairs(content, path))


def read_pairs(content: str, path: Path) -> Pairs:
    """Lines of JSON with query, positive (or passage) and, where there are any, negatives; equal texts are one.

    Raises:
        QwenchError: a line is something else, or there is none.
    """
    pairs = Pairs()
    queries: dict[str, int] = {}
    passages: dict[str, int] = {}
    for number, row in json_lines(io.BytesIO(content.encode())):
        where = f"line {number} of `{path}`"
        if isinstance(row, Malformed):
            raise QwenchError(f"{where} {row}")
        texts = row if isinstance(row, dict) else {}
        positives = _texts(texts.get("positive", texts.get("passage")))
        negatives = _texts(texts.get("negatives", texts.get("negative", [])))
        query = texts.get("query")
        if not isinstance(query, str) or not positives or negatives is None:
            raise QwenchError(
                f"{where} is no pair of texts", '{"query": "...", "positive": "...", "negatives": ["...", ...]}'
            )
        at = queries.setdefault(query, len(queries))
        if at == len(pairs.relevant):
            pairs.relevant.append(set())
        for passage in (*positives, *negatives):
            passages.setdefault(passage, len(passages))
        pairs.relevant[at].update(passages[p] for p in positives)
    pairs.queries, pairs.passages = list(queries), list(passages)
    if len(pairs.passages) < 2:
        raise QwenchError(f"there are no pairs to measure with: `{path}`", "two passages are the least")
    return pairs


def _texts(value: Any) -> list[str] | None:
    found = [value] if isinstance(value, str) else value
    return found if isinstance(found, list) and all(isinstance(t, str) for t in found) else None


def _retrieval(checkpoint: Checkpoint, pairs: Pairs, threads: int) -> dict[str, float]:
    from ..scoring.embedder import Embedder, EmbedSettings

    model = Embedder(checkpoint, EmbedSettings(runtime=Runtime(dtype="float32", threads=threads)))
    limit = model.max_tokens - model.tokenizer.specials
    vectors = []
    for role, texts in (("query", pairs.queries), ("document", pairs.passages)):
        prompt = model.layout.prompt(role)
        rows = model.tokenizer.ids([prompt + t for t in texts])
        vectors.append(model.embed([model.tokenizer.wrap(ids[:limit]) for ids in rows]))
    return ranking(*vectors, pairs.relevant)


def ranking(queries: np.ndarray, passages: np.ndarray, relevant: list[set[int]]) -> dict[str, float]:
    """nDCG, recall at 1 and mean reciprocal rank by cosine; among equal scores what is relevant comes last.

    Args:
        queries, passages: (n, dim) and (m, dim).
        relevant: passages that answer each query, one at least.
    """
    import numpy as np

    a, b = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12) for v in (queries, passages))
    ndcg, recall, mrr = [], [], []
    for vector, wanted in zip(a, relevant, strict=True):
        scores = b @ vector
        own = np.sort(scores[list(wanted)])[::-1]
        others = np.delete(scores, list(wanted))
        ranks = [i + 1 + int(np.count_nonzero(others >= score)) for i, score in enumerate(own)]
        ideal = sum(1 / math.log2(i + 2) for i in range(min(len(own), CUTOFF)))
        ndcg.append(sum(1 / math.log2(r + 1) for r in ranks if r <= CUTOFF) / ideal)
        recall.append(float(ranks[0] == 1))
        mrr.append(1 / ranks[0])
    return {f"ndcg@{CUTOFF}": _mean(ndcg), "recall@1": _mean(recall), "mrr": _mean(mrr)}


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _loss(checkpoint: Checkpoint, text: str, threads: int) -> dict[str, float]:
    """Loss of every token but the first, each seen after the part of its window that is before it."""
    import torch

    from ..base.runtime import Runtime
    from ..checkpoint.sidecars import read_json
    from ..models.load_decoder import unknown
    from ..models.tokenizer import TextTokenizer
    from ..writing.likelihood import ROWS
    from ..writing.local import LocalWriter
    from ..writing.writer import Text

    if reason := unknown(read_json(checkpoint.path / "config.json")):
        raise QwenchError(f"ppl cannot run {reason}: `{checkpoint.name}`", "measure a decoder")
    ids = TextTokenizer.load(checkpoint.path).ids([text])[0]
    if len(ids) < 2:
        raise QwenchError("the text to measure with is shorter than two tokens")
    writer = LocalWriter(checkpoint, Runtime(dtype="float32", kernels="eager", engine="torch", threads=threads))
    for _ in writer.load():
        pass
    [found] = writer.score([Text(ids=ids, window=WINDOW)])
    values, total = torch.tensor(found.logprobs), 0.0
    # By windows and the rows that a head computes at a time, added up as cross_entropy does.
    for window in values.split(min(WINDOW, writer.context) - 1):
        for part in window.split(ROWS):
            nothing = torch.zeros(len(part), dtype=torch.int64)
            total += float(torch.nn.functional.nll_loss(part[:, None], nothing, reduction="sum"))
    nats = total / (len(ids) - 1)
    return {"nats_per_token": nats, "perplexity": math.exp(nats) if nats < 700 else math.inf}
