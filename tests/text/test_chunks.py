"""Chunks by properties: exact spans, full coverage, token limits, whole characters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qwench.ops.base.errors import QwenchError
from qwench.ops.text.boundaries import inside_character
from qwench.ops.text.chunks import ChunkOptions, Tokenize, chunk_document, tokenizers_adapter
from qwench.ops.text.types import Chunk, Document, Segment
from tokenizers import Tokenizer

from tests import tiny

PIECES = [
    "word ", "Another sentence. ", "\n", "\r\n", "\n\n", "\t", "    indented()\n", "# Heading\n", "## Sub\r\n",
    "def f(x):\n", "你好，世界。", "日本語テキスト", "👩‍👩‍👧‍👦", "🇫🇷🇩🇪", "é", "naïve café ", "ﬁ", "x" * 90,
    "हिन्दी ", "…", "-- ", "\r", "0123456789", "👍🏽", "\u2028", "\xa0",
]  # fmt: skip
TEXTS = (
    st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=60)
    .map("".join)
    .filter(_ok := (lambda t: t.encode("utf-8", "ignore").decode() == t))
)


def load(kind: str) -> Tokenize:
    path = tiny.minilm() if kind == "wordpiece" else tiny.reference("qwen3-tokenizer")
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizers_adapter(tokenizer)


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenize(request: pytest.FixtureRequest) -> Tokenize:
    return load(request.param)


def document(text: str, encoding: str = "utf-8", parts: int = 1) -> Document:
    """`text` as a document of `parts` segments, after 7 bytes and 3 lines of something else."""

    def segments() -> list[Segment]:
        made, at, size = [], 0, max(1, -(-len(text) // parts))
        while at < len(text):
            stop = at + size
            while stop < len(text) and inside_character(text, stop):
                stop += 1
            line = 4 + len(text[:at].replace("\r\n", "\n").replace("\r", "\n").split("\n")) - 1
            made.append(Segment(text[at:stop], 7 + len(text[:at].encode(encoding)), line))
            at = stop
        return made

    return Document("a.txt", "00", 0, encoding, lambda: iter(segments()))


def lines(text: str) -> int:
    return text.replace("\r\n", "\n").replace("\r", "\n").count("\n")


def check_spans(text: str, chunks: list[Chunk], encoding: str) -> None:
    raw = b"\0" * 7 + text.encode(encoding)
    for i, chunk in enumerate(chunks):
        assert chunk.index == i
        assert raw[chunk.start_byte : chunk.end_byte].decode(encoding) == chunk.text
        start = len(raw[7 : chunk.start_byte].decode(encoding))
        assert chunk.start_line == 4 + lines(text[:start])
        assert chunk.end_line == 4 + lines(text[: start + len(chunk.text) - 1])


slow = settings(deadline=None, max_examples=120, suppress_health_check=list(HealthCheck))


@slow
@given(text=TEXTS, size=st.integers(3, 40), encoding=st.sampled_from(["utf-8", "utf-16-le", "gb18030"]))
def test_chunks_cover_the_text_exactly(tokenize: Tokenize, text: str, size: int, encoding: str) -> None:
    chunks = list(chunk_document(document(text, encoding), tokenize, ChunkOptions(size, max_tokens=size)))
    check_spans(text, chunks, encoding)
    at, rest = 7, b"\0" * 7 + text.encode(encoding)
    for chunk in chunks:
        assert chunk.start_byte >= at
        assert not rest[at : chunk.start_byte].decode(encoding).strip()
        at = chunk.end_byte
    assert not rest[at:].decode(encoding).strip()
    for chunk, ids in zip(chunks, tokenize.ids([c.text for c in chunks]), strict=True):
        assert chunk.ids == ids and chunk.tokens == len(ids)
        assert chunk.tokens <= size or len(chunk.text) <= 12  # one character as a reader sees it
        assert chunk.truncated == (chunk.tokens > size)


@slow
@given(text=TEXTS, size=st.integers(4, 30))
def test_no_cut_inside_a_character(tokenize: Tokenize, text: str, size: int) -> None:
    raw = text.encode()
    for chunk in chunk_document(document(text), tokenize, ChunkOptions(size, max_tokens=99)):
        for byte in (chunk.start_byte - 7, chunk.end_byte - 7):
            at = len(raw[:byte].decode())
            # Emoji families longer than a whole window have to be cut somewhere.
            assert not inside_character(text, at) or size < 30


@slow
@given(text=TEXTS, size=st.integers(6, 30), parts=st.integers(1, 4), data=st.data())
def test_overlap_repeats_a_little_and_loses_nothing(
    tokenize: Tokenize, text: str, size: int, parts: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(1, size // 2))
    chunks = list(chunk_document(document(text, parts=parts), tokenize, ChunkOptions(size, overlap, max_tokens=size)))
    check_spans(text, chunks, "utf-8")
    covered = bytearray(len(text.encode()))
    for chunk in chunks:
        covered[chunk.start_byte - 7 : chunk.end_byte - 7] = b"\1" * (chunk.end_byte - chunk.start_byte)
    left = bytes(b for b, c in zip(text.encode(), covered, strict=True) if not c)
    assert not left.decode("utf-8", "replace").strip()
    assert len({(c.start_byte, c.end_byte) for c in chunks}) == len(chunks)


def test_overlap_with_a_window_that_is_halved_gives_no_chunk_twice() -> None:
    options = ChunkOptions(6, 2, max_tokens=6)
    chunks = list(chunk_document(document("हिन्दी : 00\U00015d6c"), load("bpe"), options))
    assert [(c.start_byte, c.end_byte) for c in chunks] == [(7, 25), (26, 27), (28, 34)]


def cut(text: str, size: int, kind: str = "wordpiece", **options: object) -> list[str]:
    return [c.text for c in chunk_document(document(text), load(kind), ChunkOptions(size, max_tokens=size, **options))]


def test_headings_and_paragraphs_are_preferred() -> None:
    text = "# One\n\n" + "alpha beta gamma. " * 6 + "\n\n# Two\n\n" + "delta epsilon. " * 6
    first, second = cut(text, 40)
    assert first.startswith("# One") and second.startswith("# Two")
    # Small sections are packed together.
    assert len(cut("\n\n".join(f"# H{i}\n\ntext {i}" for i in range(4)), 200)) == 1


def test_code_is_cut_between_functions() -> None:
    body = "def name{0}(a, b):\n    c = a + b\n\n    d = c * {0}\n\n    return d\n\n\n"
    chunks = cut("".join(body.format(i) for i in range(8)), 60)
    assert len(chunks) > 2
    assert all(chunk.startswith("def name") for chunk in chunks)


def test_indentation_of_the_first_line_stays() -> None:
    assert cut("\n  \n    x = 1\n    y = 2\n\n", 50) == ["    x = 1\n    y = 2"]
    assert cut(" \n\t\r\n", 50) == []


def test_a_huge_word_and_a_huge_line(tokenize: Tokenize) -> None:
    for text in ("a" * 300_000, "字" * 50_000, "ab cd " * 50_000):
        chunks = list(chunk_document(document(text), tokenize, ChunkOptions(200, max_tokens=200)))
        assert "".join(c.text.replace(" ", "") for c in chunks) == text.replace(" ", "")
        assert max(c.tokens for c in chunks) <= 200


def test_truncate_says_the_true_count(tokenize: Tokenize) -> None:
    text = "one two three four five six seven eight nine ten"
    (chunk,) = chunk_document(document(text), tokenize, ChunkOptions(4, on_long="truncate", max_tokens=4))
    assert (chunk.text, chunk.tokens, chunk.truncated, len(chunk.ids or [])) == ("one two three four", 10, True, 4)
    assert chunk.ids == tokenize.ids([chunk.text])[0]
    (chunk,) = chunk_document(document(text), tokenize, ChunkOptions(4, on_long="truncate", max_tokens=10))
    assert (chunk.text, chunk.tokens, chunk.truncated) == (text, 10, False)
    (chunk,) = chunk_document(document(text, parts=3), tokenize, ChunkOptions(4, on_long="truncate", max_tokens=2))
    assert chunk.tokens >= 10 and chunk.truncated


def test_error_names_the_document(tokenize: Tokenize) -> None:
    options: Callable[[int], ChunkOptions] = lambda n: ChunkOptions(4, on_long="error", max_tokens=n)  # noqa: E731
    assert len(list(chunk_document(document("one two three"), tokenize, options(3)))) == 1
    with pytest.raises(QwenchError, match=r"3 tokens.*takes 2.*a\.txt") as caught:
        list(chunk_document(document("one two three"), tokenize, options(2)))
    assert "--on-long" in (caught.value.hint or "")


def test_inside_character() -> None:
    assert inside_character("\r\n", 1) and inside_character("e\u0301", 1)
    assert inside_character("👍🏽", 1) and inside_character("👩‍👧", 1) and inside_character("👩‍👧", 2)
    assert inside_character("🇫🇷🇩🇪", 1) and not inside_character("🇫🇷🇩🇪", 2) and inside_character("🇫🇷🇩🇪", 3)
    assert not inside_character("ab", 1) and not inside_character("你好", 1) and not inside_character("\n\r", 1)
