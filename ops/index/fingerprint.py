"""How the vectors of an index were made, stored with them, so that nothing else is mixed in."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..base.errors import QwenchError

#: key of the fingerprint in Arrow, Parquet and safetensors metadata
META_KEY = "qwench"
#: fields that may differ: they name things, and do not change a vector
LOOSE = ("version", "schema", "model", "model_kind", "prompt_query", "former")


def tool_version() -> str:
    """Version of the installed qwench."""
    try:
        return version("qwench")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Everything that decides the vectors of an index.

    Attributes:
        model, model_kind, revision: which checkpoint (see `Checkpoint`); the revision is what counts.
        prompt_query, prompt_document: texts put before a query and before what is indexed.
        chunk_tokens, chunk_overlap: 0 where on_long is not `chunk`.
        former: what earlier versions called the same revision; known at run time alone, never stored.
    """

    model: str
    model_kind: str
    revision: str
    pooling: str
    normalize: bool
    dim: int
    dtype: str
    quantize: str
    max_tokens: int
    prompt_query: str
    prompt_document: str
    chunk_tokens: int
    chunk_overlap: int
    on_long: str
    version: str = ""
    schema: int = 1
    former: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with this program's version."""
        stored = {name: value for name, value in asdict(self).items() if name != "former"}
        return stored | {"version": self.version or tool_version()}

    def to_json(self) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Fingerprint:
        """Read what `to_json` wrote; fields of a later version are ignored.

        Raises:
            ValueError: not a fingerprint.
        """
        found = json.loads(text)
        names = {f.name for f in fields(cls)}
        try:
            return cls(**{k: v for k, v in found.items() if k in names})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"not a fingerprint: {error}") from error


def differences(old: Fingerprint, new: Fingerprint) -> list[tuple[str, Any, Any]]:
    """(field, old, new) of every field that makes vectors incomparable."""
    pairs = ((f.name, getattr(old, f.name), getattr(new, f.name)) for f in fields(Fingerprint))
    known = (new.revision, new.former or new.revision)
    return [
        (name, a, b) for name, a, b in pairs if name not in LOOSE and a != b and not (name == "revision" and a in known)
    ]


def refuse_other(old: Fingerprint, new: Fingerprint, where: str) -> None:
    """Raise QwenchError, naming each difference, unless the vectors are made the same way."""
    if found := differences(old, new):
        listed = "; ".join(f"{name} was `{a}` and is now `{b}`" for name, a, b in found)
        model = f" (model was `{old.model}`, is now `{new.model}`)" if old.model != new.model else ""
        raise QwenchError(
            f"the index was made differently{model}: {listed}: `{where}`",
            "use the old settings, another --out, or --rebuild to embed everything again",
        )
