"""How a hit is shown: path:line, score, passage with its best sentence marked."""

from typing import Any

from . import out, screen

#: lines of a passage shown around its best sentence
LINES = 8


def show(streams: out.Out, hit: dict[str, Any], files_only: bool, seen: set[str]) -> None:
    """Print one hit: JSON line, path alone, or text for a reader."""
    if files_only:
        if hit["path"] not in seen:
            seen.add(hit["path"])
            streams.document({"schema": 1, "path": hit["path"]}) if streams.json else streams.raw(hit["path"])
    elif streams.json:
        streams.document({"schema": 1} | hit)
    else:
        streams.data(_text(hit))


def _text(hit: dict[str, Any]) -> str:
    import sys

    place = f"{hit['path']}:{hit['start_line']}"
    if hit["row"] is not None:
        place = f"{hit['path']}#{hit['row_id'] if hit['row_id'] is not None else hit['row']}"
    head = f"{screen.paint(screen.one_line(place), 'cyan', sys.stdout)}  {hit['score']:.3f}"
    return head + "\n" + "\n".join("  " + line for line in _passage(hit)) + "\n"


def _passage(hit: dict[str, Any]) -> list[str]:
    """The passage's lines; the best sentence bold on a terminal, between » and « elsewhere."""
    import sys

    text, start, stop = hit["text"], hit.get("best_start"), hit.get("best_end")
    if start is None:
        return _around(_lines(text), 0)
    marked = screen.paint(text[start:stop], "bold", sys.stdout)
    if marked == text[start:stop]:
        marked = f"»{marked}«"
    elif "\n" in marked:
        marked = "\n".join(screen.paint(line, "bold", sys.stdout) for line in text[start:stop].split("\n"))
    return _around(_lines(text[:start] + marked + text[stop:]), len(_lines(text[:start])) - 1)


def _lines(text: str) -> list[str]:
    """Lines as `start_line` counts them; the last one may be empty."""
    import re

    return re.split(r"\r\n|\n|\r", text.removesuffix("\n"))


def _around(lines: list[str], at: int) -> list[str]:
    first = max(0, min(at - LINES // 2, len(lines) - LINES))
    cut = lines[first : first + LINES]
    return ["…"] * (first > 0) + cut + ["…"] * (first + LINES < len(lines))
