"""What language a text is in: PolyMath's rules, langdetect as it was measured, lingua where it is installed."""

from __future__ import annotations

import time

import pytest
from qwench.ops.grading.languages import consistent, prose, without_formulas

ENGLISH = "We add both numbers and then divide the result by two."
SENTENCES = {
    "en": ENGLISH,
    "sw": "Hii ni sentensi ya Kiswahili kuhusu hesabu na namba nyingi.",
    "es": "Sumamos los dos números y luego dividimos el resultado entre dos.",
    "pt": "Somamos os dois números e depois dividimos o resultado por dois.",
    "zh": "我们需要计算这个问题的答案，然后检查结果。",
}
MALAY = "Untuk menyelesaikan masalah ini, kita perlu mencari jumlah keseluruhan."
TRADITIONAL = "這是一個關於數學的問題，我們來計算答案。"


def test_formulas_go():
    assert without_formulas("a $$x$$ b \\(y\\) c \\[z\\] d $w\nv$ e") == "a  b  c  d  e"
    assert without_formulas("costs 5$ here") == "costs 5$ here"
    assert without_formulas("$a$ b $c") == " b $c"
    begun = time.monotonic()
    without_formulas("\\(" * 200_000)
    without_formulas("$" * 400_001)
    assert time.monotonic() - begun < 5


def test_short_texts_and_formulas_alone_are_never_wrong():
    assert prose("fifteen letters") is None and prose("sixteen letters!") is not None
    assert prose("$" + "x + " * 50 + "$") is None
    assert prose("") is None


def test_exactly_one_language_counts():
    assert consistent(["de"], "de") and not consistent(["de", "nl"], "de") and not consistent([], "de")
    assert consistent(["zh-cn"], "zh") and not consistent(["zh-tw"], "zh") and not consistent(["zh-cn", "zh-tw"], "zh")
    assert consistent(["zh-tw"], "zh", True) and not consistent(["ko", "zh-tw"], "zh", True)
    assert not consistent([], "zh", True)


def test_langdetect_as_measured():
    pytest.importorskip("langdetect")
    from qwench.ops.grading.detectors import langdetect

    for language, text in SENTENCES.items():
        found = langdetect(text)["languages"]
        assert consistent(found, language), (language, found)
        assert langdetect(text)["languages"] == found
    assert langdetect(MALAY)["languages"] == ["id"]
    assert not consistent(langdetect(TRADITIONAL)["languages"], "zh")
    assert langdetect("12345 67890 12345 67890")["languages"] == []


def test_lingua_knows_malay_and_where_a_language_ends():
    pytest.importorskip("lingua", reason="lingua-language-detector is 160 MB, and no part of the test extra")
    from qwench.ops.grading.detectors import lingua, mix

    assert lingua(MALAY) == "ms"
    assert all(lingua(text) == language for language, text in SENTENCES.items())
    found = mix(f"{ENGLISH} {SENTENCES['zh']}")
    assert set(found) == {"en", "zh"} and abs(found["zh"] - len(SENTENCES["zh"])) <= 1
