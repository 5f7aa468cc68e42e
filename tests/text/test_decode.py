"""Bytes become text: encodings settled, segments that re-read exactly, cuts where text breaks."""

from __future__ import annotations

import codecs
import encodings.aliases
import hashlib
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.text.decode import Undecodable, check_codec, looks_binary, read_text, settle
from qwench.ops.text.segments import cut_point, cut_segments, text_segments

# name -> (declared, BOM, Python codec); the codec writes the file and is the oracle for what is read back
FORMS = {
    "utf-8": (None, b"", "utf-8"),
    "utf-8 declared": ("utf8", b"", "utf-8"),
    "utf-8 BOM": (None, codecs.BOM_UTF8, "utf-8"),
    "utf-16-le BOM": (None, codecs.BOM_UTF16_LE, "utf-16-le"),
    "utf-16-be BOM": (None, codecs.BOM_UTF16_BE, "utf-16-be"),
    "utf-32-le BOM": (None, codecs.BOM_UTF32_LE, "utf-32-le"),
    "utf-32-be BOM": (None, codecs.BOM_UTF32_BE, "utf-32-be"),
    "utf-16-be declared": ("utf-16-be", b"", "utf-16-be"),
    "latin-1": ("latin-1", b"", "iso8859-1"),
    "cp1252": ("cp1252", b"", "cp1252"),
    "gb18030": ("gb18030", b"", "gb18030"),
    "euc-jp": ("euc-jp", b"", "euc_jp"),
}
PIECES = st.one_of(
    st.sampled_from(
        ["\n", "\r\n", "\r", "\n\n", "\r\n\r\n", " ", "\t", "a", "word ", "é", "ß", "你好", "\u3000", "。"]
    ),
    st.sampled_from(["👩‍👩‍👧‍👦", "🇨🇳🇫🇷", "👍🏽", "e\u0301\u0327", "\u1112\u1161\u11ab", "𝄞", "\x00", "\x0c", "\u2028"]),
    st.text(max_size=6),
)
# Repeated, so that most are long enough to be cut many times.
TEXTS = st.builds(lambda pieces, times: "".join(pieces) * times, st.lists(PIECES, max_size=30), st.integers(1, 30))


def in_blocks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def encodable(text: str, codec: str) -> str:
    """The characters of `text` that a strict round trip keeps."""
    return "".join(c for c in text if codecs.encode(c, codec, "ignore").decode(codec, "replace") == c)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(FORMS)), TEXTS, st.integers(1, 40), st.integers(1, 50))
def test_segments_join_to_the_file_and_reread_from_its_bytes(form: str, text: str, block: int, size: int) -> None:
    declared, bom, codec = FORMS[form]
    text = encodable(text, codec)
    if not bom and text.startswith("\ufeff"):
        return  # that is a BOM
    data = bom + text.encode(codec)
    if data.startswith(codecs.BOM_UTF32_LE) and codec == "utf-16-le":
        return  # a UTF-16 file that begins with U+0000 cannot be told from UTF-32
    if codec != "utf-8" and not bom and b"\0" not in data and not data.isascii() and is_utf8(data):
        return  # what is good UTF-8 is read as that, whatever was declared

    settled = settle(lambda: in_blocks(data, block), data[:8192], declared)
    assert (settled.codec, settled.bom, settled.exact, settled.note) == (codec, len(bom), True, None)
    assert settled.content_hash == hashlib.blake2b(data, digest_size=16).hexdigest()
    assert settled.size == len(data)

    segments = list(cut_segments(in_blocks(data, block), settled.codec, settled.bom, True, segment_chars=size))
    assert "".join(segment.text for segment in segments) == text
    read = len(bom)
    for segment in segments:
        end = segment.start_byte + len(segment.text.encode(codec))
        assert segment.start_byte == read
        assert data[segment.start_byte : end].decode(codec) == segment.text
        assert segment.start_line == len(re.split("\r\n|\n|\r", data[len(bom) : read].decode(codec)))
        read = end
    assert read == len(data)
    for before, after in itertools.pairwise(segments):
        assert not (before.text.endswith("\r") and after.text.startswith("\n"))
        assert size * 3 // 4 <= len(before.text) <= size + 1


@settings(max_examples=100, deadline=None)
@given(TEXTS, st.integers(1, 50))
def test_text_in_memory_is_cut_like_a_file(text: str, size: int) -> None:
    data, segments = text.encode(), list(text_segments(text, segment_chars=size))
    assert "".join(segment.text for segment in segments) == text
    for segment in segments:
        part = segment.text.encode()
        assert data[segment.start_byte : segment.start_byte + len(part)] == part


def text_codecs() -> list[str]:
    names = set()
    for name in sorted(set(encodings.aliases.aliases.values())):
        try:
            names.add(check_codec(name))
        except QwenchError:
            continue
    return sorted(names)


def is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@pytest.mark.parametrize("codec", text_codecs())
def test_exact_means_that_every_slice_rereads(codec: str) -> None:
    """Every Python codec: either slices of the bytes are slices of the text, or spans are not claimed to be exact."""
    alphabet = "".join(
        chr(c) for r in ((32, 0x3000), (0x3000, 0x3400), (0x4E00, 0x5200), (0xAC00, 0xB000)) for c in range(*r)
    )
    data = (encodable(alphabet, codec) + "か\u309a\u00ca\u0304").encode(codec, "ignore")
    try:
        settled = settle(lambda: in_blocks(data, 37), b"", codec)
    except Undecodable:
        pytest.skip("the codec does not read what it wrote")
    text = data[settled.bom :].decode(settled.codec)
    got = list(cut_segments(in_blocks(data, 37), settled.codec, 0, settled.exact, segment_chars=50))
    assert "".join(segment.text for segment in got) == text
    if not settled.exact:
        assert settled.note is not None
        return
    at = 0
    for character in text:
        width = len(character.encode(settled.codec))
        assert data[at : at + width].decode(settled.codec) == character
        at += width
    assert at == len(data)


@pytest.mark.parametrize(
    ("data", "declared", "offset"),
    [
        (b"ab\xff", "utf-8", 2),
        ("日本".encode() + b"\xe6\x97", "utf-8", 6),
        (codecs.BOM_UTF8 + b"ab\xff", None, 5),
        (codecs.BOM_UTF16_LE + b"a\0\x00\xd8b\0", None, 4),
        (codecs.BOM_UTF16_LE + b"a\0b", None, 4),
        (b"a\x81", "cp1252", 1),
        ("你好".encode("gb18030") + b"\x81", "gb18030", 4),
        ("abc".encode("utf-16-be") + b"\xdc\x00", "utf-16-be", 6),
    ],
)
@pytest.mark.parametrize("block", [1, 2, 3, 1000])
def test_the_first_wrong_byte_is_named(data: bytes, declared: str | None, offset: int, block: int) -> None:
    with pytest.raises(Undecodable, match=rf"offset {offset}$"):
        settle(lambda: in_blocks(data, block), data[:8192], declared)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("Le café était fermé à Noël, déjà l'été où naïveté et cœur se mêlent.\n", "cp1252"),
        ("# Author: José\ndef f(x):\n    return x + 1\n", "latin-1"),
        ("Это обычный русский текст, который должен быть распознан правильно.\n", "cp1251"),
        ("Это обычный русский текст, который должен быть распознан правильно.\n", "koi8-r"),
        ("这是一个用于测试编码检测的中文句子，希望能够正确识别。\n", "gb18030"),
        ("これは文字コード判定のためのテスト文です。日本語を正しく認識できますか。\n", "shift_jis"),
        ("이것은 인코딩 감지를 위한 시험 문장입니다.\n", "euc-kr"),
    ],
)
@pytest.mark.parametrize("before", [0, 300_000])
def test_an_undeclared_encoding_is_guessed_and_said(text: str, codec: str, before: int) -> None:
    data = b"plain ascii line\n" * (before // 17) + text.encode(codec) * 3
    settled = settle(lambda: in_blocks(data, 65536), data[:8192])
    assert data.decode(settled.codec) == data.decode(codec)
    assert settled.note is not None and f"`{settled.codec}`" in settled.note and "--encoding" in settled.note


def test_a_guess_is_not_taken_when_the_rest_of_the_file_contradicts_it() -> None:
    data = (
        "Größe und Höhe der Brücke über den Fluß\n".encode("latin-1") * 4000 + b"\x81\x8d\x8f\x90\x9d\xff\xfe\x81\n" * 4
    )
    assert len(data) > 2 * 65536
    with pytest.raises(Undecodable, match="--encoding"):
        settle(lambda: [data], data[:8192])


@pytest.mark.parametrize("declared", ["cp1252", "gb18030", "shift_jis", "utf-16"])
def test_good_utf8_is_read_as_such_whatever_is_declared(declared: str) -> None:
    data = "Größe, 你好\n".encode()
    settled = settle(lambda: in_blocks(data, 3), data, declared)
    assert (settled.codec, settled.exact) == ("utf-8", True)
    assert (
        settled.note is not None and "is UTF-8" in settled.note and f"`{declared[:5]}" in settled.note.replace("_", "-")
    )


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("data", "declared", "codec"),
    [
        ("Größe und Höhe der Brücke über den Fluß ".encode() + b"\xff!", None, "utf-8"),
        ("Größe ".encode("cp1252") * 40 + b"\x81", "cp1252", "cp1252"),
        (codecs.BOM_UTF16_LE + ("text " * 40).encode("utf-16-le") + b"\0", None, "utf-16-le"),
    ],
)
def test_a_few_bad_bytes_are_replaced_and_said(data: bytes, block: int, declared: str | None, codec: str) -> None:
    settled = settle(lambda: in_blocks(data, block), data[:8192], declared)
    assert (settled.codec, settled.errors, settled.exact) == (codec, "replace", False)
    assert "in 1 place" in settled.note and "\ufffd" in settled.note
    got = list(cut_segments(in_blocks(data, block), codec, settled.bom, False, segment_chars=50, errors="replace"))
    assert "".join(s.text for s in got) == data[settled.bom :].decode(codec, "replace")
    assert read_text(data, declared) == (data[settled.bom :].decode(codec, "replace"), settled.note)


def test_a_codec_with_two_codes_for_a_character_is_not_exact_where_both_are_used() -> None:
    """Code page 932 reads both of these as a Roman one and writes only the first."""
    once, twice = settle(lambda: [b"\x87\x54 I"], b"", "cp932"), settle(lambda: [b"\x87\x54 \xfa\x4a"], b"", "cp932")
    assert (once.exact, once.note) == (True, None)
    assert not twice.exact and twice.note is not None


def test_bytes_without_any_encoding_are_refused() -> None:
    data = bytes(range(128, 256)) * 20
    with pytest.raises(Undecodable, match=r"byte 0.*--encoding"):
        settle(lambda: [data], data)


@pytest.mark.parametrize("name", ["nonsense", "hex", "rot13", "idna", "unicode_escape", "undefined", "zlib", "a\0b"])
def test_a_codec_that_is_none_for_files_is_a_usage_error(name: str) -> None:
    with pytest.raises(QwenchError) as caught:
        check_codec(name)
    assert caught.value.code == 2


def test_what_is_binary() -> None:
    assert looks_binary(b"a\0b")
    assert looks_binary(codecs.BOM_UTF8 + b"a\0b")
    assert looks_binary(b"%PDF-1.4\n") and looks_binary(b"PK\x03\x04rest") and looks_binary(b"\x1f\x8b\x08rest")
    assert looks_binary(b"BZh91AY&SY") and not looks_binary(b"BZh is a way to begin a sentence")
    assert not looks_binary("a\0b".encode("utf-16"))
    assert not looks_binary(codecs.BOM_UTF32_BE + b"\0\0\0a")
    assert not looks_binary(b"a\0b\0", "utf-16-le")
    assert looks_binary(b"a\0b\0", "cp1252")
    assert not looks_binary(b"x" * 8192 + b"\0")


def test_cuts_prefer_blank_lines_then_lines_then_white_space() -> None:
    text = "aaaa\n\nbbbb\ncccc dddd eeee"
    assert cut_point(text, 0, 24) == 6
    assert cut_point(text, 7, 24) == 11
    assert cut_point(text, 12, 24) == 21
    assert cut_point(text, 21, 24) == 24
    assert cut_point("aaaa\r\n\r\nbbbb\r\ncccc", 0, 16) == 8
    assert cut_point("aaaa\r\nbbbb", 0, 5) == 4
    assert cut_point("a\nbb\r\nbbbb", 0, 5) == 2


@pytest.mark.parametrize(
    "cluster",
    [
        "👩‍👩‍👧‍👦",
        "🇨🇳",
        "👍🏽",
        "e\u0301\u0327",
        "❤\ufe0f",
        "\r\n",
    ],
)
def test_no_cut_inside_what_is_seen_as_one_character(cluster: str) -> None:
    text = "x" + cluster * 40 + "y"
    starts = {1 + len(cluster) * n for n in range(41)} | {len(text)}
    for high in range(len(cluster) + 1, len(text)):
        assert cut_point(text, 0, high) in starts


def test_a_pile_of_combining_marks_still_gets_cut() -> None:
    text = "e" + "\u0301" * 5000
    segments = list(text_segments(text, segment_chars=100))
    assert "".join(segment.text for segment in segments) == text
    assert max(len(segment.text) for segment in segments) < 200
