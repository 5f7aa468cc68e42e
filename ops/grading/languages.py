"""What language a text is in, by the rules of PolyMath: formulas go, short texts are never wrong."""

from __future__ import annotations

#: the benchmark's languages, in its order
LANGUAGES = ("en", "zh", "ar", "bn", "de", "es", "fr", "id", "it", "ja", "ko", "ms", "pt", "ru", "sw", "te", "th", "vi")
#: characters up to which a text is taken as consistent
SHORT = 15
#: what opens and closes a formula, in the order in which they go
FORMULAS = (("$$", "$$"), ("\\(", "\\)"), ("\\[", "\\]"), ("$", "$"))


def without_formulas(text: str) -> str:
    r"""A text without `$$...$$`, `\(...\)`, `\[...\]` and `$...$`, which may hold line breaks; one pass for each."""
    for opening, closing in FORMULAS:
        kept, at = [], 0
        while (start := text.find(opening, at)) >= 0:
            end = text.find(closing, start + len(opening))
            if end < 0:
                break
            kept.append(text[at:start])
            at = end + len(closing)
        text = "".join(kept) + text[at:]
    return text


def prose(text: str) -> str | None:
    """What a detector is given, None where a text is too short to tell."""
    plain = without_formulas(text).strip()
    return plain if len(plain) > SHORT else None


def consistent(found: list[str], language: str, any_script: bool = False) -> bool:
    """PolyMath's rule: exactly one language is found, and it is the question's.

    Args:
        found: langdetect's codes of at least a tenth; empty where it failed.
        any_script: traditional Chinese counts as Chinese.
    """
    if language != "zh":
        return found == [language]
    if any_script:
        return len(set(found)) > 0 and {*found} <= {"zh-cn", "zh-tw"}
    return found == ["zh-cn"]
