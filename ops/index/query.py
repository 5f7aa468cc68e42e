"""Reading an index: exact or approximate nearest passages, filters, full text."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ..base.errors import QwenchError
from ..base.paths import local
from ..text.fields import PREFIX
from .errors import lance_errors, retried, sentence
from .fingerprint import Fingerprint
from .names import Names
from .schema import HIT, LANCE, NAMES, OURS
from .table import names_of, open_table, quoted, read_fingerprint

#: columns a hit shows, besides carried ones
SHOWN = ["id", "path", "row", "row_id", "spans", "start_line", "end_line", "start_byte", "end_byte", "text", "tokens"]
#: tokenizer of the full-text index: ICU's dictionaries, and parts of names such as foo_bar
WORDS = "icu/split"
#: below this an exact search is quick, and an approximate index only costs
MANY_ROWS = 100_000


def glob_regex(glob: str) -> str:
    """A path glob as an anchored regular expression: `*` and `?` stay within a folder, `**` does not;
    a glob without `/` is matched against the file name."""
    out, at = "", 0
    while at < len(glob):
        char = glob[at]
        if glob.startswith("**/", at):
            out, at = out + "(?:.*/)?", at + 3
            continue
        if glob.startswith("**", at):
            out, at = out + ".*", at + 2
            continue
        end = glob.find("]", at + 2) if char == "[" else -1
        if end > 0:
            body = glob[at + 1 : end].replace("\\", r"\\").replace("[", r"\[").replace("&", r"\&").replace("~", r"\~")
            out, at = out + "[" + ("^" + body[1:] if body[0] in "!^" else body) + "]", end + 1
            continue
        out += {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char) if char.isascii() else char)
        at += 1
    return "^" + ("" if "/" in glob else "(?:.*/)?") + out + "$"


def open_for_search(index: str) -> SearchIndex:
    """Open a .lance index for reading.

    Raises:
        QwenchError: missing, of another format, damaged, or not made by this program.
    """
    path = Path(local(index, "the index")).expanduser().absolute()
    if path.suffix != ".lance":
        raise QwenchError(
            f"search reads .lance indexes, not: `{index}`", "embed with --out NAME.lance, then search that"
        )
    with lance_errors(index):
        table = open_table(path)
        if table is None:
            raise QwenchError(f"no such index: `{index}`", f"make it with `qwench embed PATHS --out {index}`")
        return SearchIndex(table, read_fingerprint(table, index), index, names_of(table, path))


class SearchIndex:
    """A table opened for reading.

    Attributes:
        fingerprint: how its vectors were made.
        names: what its paths count from.
    """

    def __init__(self, table: Any, fingerprint: Fingerprint, name: str, names: Names) -> None:
        self.table, self.fingerprint, self.name, self.names = table, fingerprint, name, names

    def count(self) -> int:
        """Number of passages."""
        return self.table.count_rows()

    def search(
        self,
        vector: np.ndarray,
        k: int,
        *,
        min_score: float | None = None,
        where: str | None = None,
        path_glob: str | None = None,
        text: str | None = None,
        exact: bool = False,
    ) -> list[dict[str, Any]]:
        """The k passages nearest to a unit vector, best first.

        Args:
            vector: (dim,) float32.
            min_score: least cosine similarity.
            where: SQL condition on columns.
            path_glob: see `glob_regex`; it is held against paths as they are stored.
            text: also search this in full text, and fuse both lists by reciprocal rank.
            exact: do not use an approximate index.

        Returns:
            Hits with `score` (cosine), `fused` (RRF score, with text), and the columns of SHOWN and carried ones.

        Raises:
            QwenchError: bad condition or glob (code 2), damaged table.
        """
        from lancedb.query import MatchQuery

        conditions = [f"({where})"] if where else []
        if path_glob:
            conditions.append(f"regexp_like(path, {quoted(glob_regex(path_glob))})")
        if text is not None:
            self._ensure_full_text()
            query = (
                self.table.search(query_type="hybrid", vector_column_name="vector")
                .vector(vector)
                .text(MatchQuery(text, "text"))
            )
        else:
            query = self.table.search(vector, vector_column_name="vector")
        query = query.distance_type("cosine")
        if conditions:
            query = query.where(" AND ".join(conditions), prefilter=True)
        if exact:
            query = query.bypass_vector_index()
        carried = [n for n in self.table.schema.names if n not in NAMES and n not in LANCE]
        try:
            found = query.select([*SHOWN, "extra", "vector", *carried]).limit(k).to_list()
        except (ValueError, RuntimeError) as error:
            if path_glob and "regex parse error" in str(error) and "regexp" not in (where or "").lower():
                raise QwenchError(f"the glob is not right: `{path_glob}`", "see its ranges in [ ]", code=2) from error
            if where and isinstance(error, ValueError):
                known = ", ".join(n for n in self.table.schema.names if n != "vector")
                line = sentence(error).split(". Valid fields")[0]
                raise QwenchError(
                    f"the filter is not right ({line}): `{where}`", f"columns: {known}", code=2
                ) from error
            with lance_errors(self.name):
                raise
        hits = [self._hit(row, vector) for row in found]
        if text is None:
            hits.sort(key=lambda h: -h["score"])
        return [h for h in hits if min_score is None or h["score"] >= min_score]

    def _ensure_full_text(self) -> None:
        """A full-text index over `text` that covers every row, with words as ICU finds them in any script."""
        from lancedb.index import FTS

        with lance_errors(self.name), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = next((i for i in self.table.list_indices() if list(i.columns) == ["text"]), None)
            if found is None or (found.index_details or {}).get("base_tokenizer") != WORDS:
                config = FTS(with_position=False, base_tokenizer=WORDS)
                retried(self.table, lambda: self.table.create_index("text", config=config, replace=True))
            elif (stats := self.table.index_stats(found.name)) and stats.num_unindexed_rows:
                retried(self.table, self.table.optimize)

    def optimize(self, *, force: bool = False, sample: int = 200) -> dict[str, Any]:
        """Build an approximate index (IVF with HNSW, scalar-quantised, re-ranked by true vectors) and measure it.

        Returns:
            rows, index kind, and recall_at_10: share of the exact ten nearest that it finds, over `sample` rows.

        Raises:
            QwenchError: fewer than 100,000 rows, unless forced; the table cannot be written.
        """
        from lancedb.index import HnswSq

        rows = self.count()
        if rows < MANY_ROWS and not force:
            raise QwenchError(
                f"the index has {rows} passages; exact search is quick up to {MANY_ROWS}: `{self.name}`",
                "use --force to build an approximate index all the same",
            )
        with lance_errors(self.name):
            self.table.create_index("vector", config=HnswSq(distance_type="cosine"))
            picked: list[list[float]] = []
            # Every n-th row, read in batches: the whole matrix may not fit into memory.
            step, at = max(rows // sample, 1), 0
            for batch in self.table.search().select(["vector"]).to_batches(8_192):
                picked += batch.slice(-at % step)["vector"].to_pylist()[::step] if -at % step < len(batch) else []
                at += len(batch)
            picked = picked[:sample]
            found = [len(self._ids(v, True) & self._ids(v, False)) / min(10, rows) for v in picked]
        return {"rows": rows, "index": "IVF_HNSW_SQ", "sample": len(found), "recall_at_10": float(np.mean(found))}

    def _hit(self, row: dict[str, Any], vector: np.ndarray) -> dict[str, Any]:
        own = np.asarray(row.pop("vector"), np.float32)
        score = float(own @ vector / max(float(np.linalg.norm(own)), 1e-12))
        fused = {"fused": row["_relevance_score"]} if "_relevance_score" in row else {}
        ours = {"score": score, **fused} | {n: row[n] for n in SHOWN}
        ours["path"] = self.names.shown(row["path"])
        ours["extra"] = json.loads(row["extra"]) if row["extra"] else {}
        # Older indexes may have columns of our names.
        carried = {n: v for n, v in row.items() if n not in OURS}
        return {PREFIX + n: v for n, v in row.items() if n in HIT} | carried | ours

    def _ids(self, vector: list[float], exact: bool) -> set[str]:
        query = self.table.search(vector, vector_column_name="vector").distance_type("cosine").select(["id"])
        query = query.bypass_vector_index() if exact else query.refine_factor(4)
        return set(query.limit(10).to_arrow()["id"].to_pylist())
