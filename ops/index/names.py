"""What a document is called in an index: its path from a folder that the index knows, wherever the command runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

#: key of the folder in Arrow metadata and in the metadata of files
BASE_KEY = "qwench.base"


@dataclass(frozen=True, slots=True)
class Names:
    """Paths of an index.

    Attributes:
        base: absolute folder without links that stored paths count from; None where it is not known: then new paths
            are stored whole.
    """

    base: str | None

    @classmethod
    def here(cls) -> Names:
        """Those of a new index: from the working directory."""
        return cls(os.path.realpath(os.getcwd()))

    @classmethod
    def found(cls, said: str | None, index: Path, stored: Iterable[str]) -> Names:
        """Those of an index that is there.

        Its folder is the first below which something that it stores is found: the one that lies to the index as it did
        (both may have been moved or copied together), the one that was written down, and, for an index that says
        nothing or whose folder is gone, the working directory.

        Args:
            said: what `to_json` wrote, None in older indexes.
            index: where it lies now.
            stored: some of its paths.
        """
        paths = [p for p in stored if p != "-" and not os.path.isabs(p)]
        known = json.loads(said) if said else {}
        folders = [os.path.join(index.parent, known["from_index"]), known["folder"]] if known else []
        folders = [os.path.realpath(f) for f in folders]
        here = os.path.realpath(os.getcwd())
        for folder in [*folders, *([] if folders and os.path.isdir(folders[-1]) else [here])]:
            if any(os.path.lexists(os.path.join(folder, p)) for p in paths):
                return cls(folder)
        if folders and os.path.isdir(folders[-1]):
            return cls(folders[-1])
        return cls(None if paths else here)

    def to_json(self, index: Path) -> str:
        """For the metadata of an index that lies at `index`."""
        if self.base is None:
            return "{}"
        return json.dumps(
            {"folder": self.base, "from_index": os.path.relpath(self.base, os.path.realpath(index.parent))}
        )

    def stored(self, path: str) -> str:
        """A path from the working directory as the index stores it; one file has one path, through links too."""
        if path == "-":
            return path
        spelled = os.path.abspath(path)
        real = os.path.join(_real(os.path.dirname(spelled)), os.path.basename(spelled))
        if self.base is None:
            return real
        # A link from the folder to the outside keeps its name: that is where the file is looked for.
        for full in (real, spelled):
            if full.startswith(self.base.rstrip("/") + "/"):
                return os.path.relpath(full, self.base)
        return real

    def full(self, stored: str) -> str | None:
        """Absolute path of a stored one, None where its folder is not known."""
        if os.path.isabs(stored) or self.base is not None:
            return os.path.normpath(os.path.join(self.base or "/", stored))
        return None

    def shown(self, stored: str) -> str:
        """A stored path as the user finds it: from the working directory when below it, else absolute."""
        full = self.full(stored)
        if stored == "-" or full is None:
            return stored
        below = _real(os.getcwd()).rstrip("/") + "/"
        return full.removeprefix(below)


@lru_cache(4096)
def _real(folder: str) -> str:
    return os.path.realpath(folder)
