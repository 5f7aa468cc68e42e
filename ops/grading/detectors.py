"""The language of a text: langdetect as PolyMath uses it, and lingua, which knows Malay and finds where one ends."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

from .languages import LANGUAGES


def langdetect(text: str) -> dict[str, Any]:
    """Codes of at least a tenth of the probability, the best first; none where it fails. The seed is 0 every time."""
    from langdetect import DetectorFactory, LangDetectException, detect_langs

    DetectorFactory.seed = 0
    try:
        return {"languages": [found.lang for found in detect_langs(text)]}
    except LangDetectException:
        return {"languages": []}


def warm() -> None:
    """Load the profiles of the languages."""
    langdetect("a text to begin with")


@cache
def _lingua() -> Any:
    """Seconds and hundreds of MB, once."""
    from lingua import IsoCode639_1, LanguageDetectorBuilder

    codes = [getattr(IsoCode639_1, code.upper()) for code in LANGUAGES]
    return LanguageDetectorBuilder.from_iso_codes_639_1(*codes).build()


def lingua(text: str) -> str | None:
    """The likeliest of the benchmark's languages, None where none is."""
    found = _lingua().detect_language_of(text)
    return None if found is None else found.iso_code_639_1.name.lower()


def mix(text: str) -> Counter[str]:
    """Characters by language, by the spans that lingua finds."""
    found: Counter[str] = Counter()
    for span in _lingua().detect_multiple_languages_of(text):
        found[span.language.iso_code_639_1.name.lower()] += span.end_index - span.start_index
    return found
