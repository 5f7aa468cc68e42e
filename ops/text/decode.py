"""Bytes become text with exact offsets: the encoding is settled by evidence, checked over the whole file, and said.

Order: a byte order mark, else strict UTF-8 that is more than ASCII, else the declared encoding, else a guess by
charset-normalizer on a bounded sample. A guess is taken only if every byte of the file decodes under it. What is good
but for a few bytes is read with U+FFFD in their place, which is said.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ..base.errors import QwenchError

Blocks = Callable[[], Iterable[bytes]]

SNIFF = 8192
SAMPLE = 1 << 16
#: characters to each place that does not decode, for these to be few
FEW = 100
#: characters beyond ASCII to each such place, for a file to be UTF-8 all the same and no other encoding
MOSTLY = 4

# UTF-32 first: its little-endian mark begins with that of UTF-16.
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Codecs that eat or add a BOM, and the one that leaves the bytes in place.
_PLAIN = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
_BIJECTIVE = {"utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"}
# Bytes mean different things depending on what came before, or one code stands for two characters that encode
# differently alone: no slice of such a file decodes to the slice of its text.
_ENTANGLED = {
    *("utf-7", "hz", "iso2022_jp", "iso2022_jp_1", "iso2022_jp_2", "iso2022_jp_2004", "iso2022_jp_3"),
    *("iso2022_jp_ext", "iso2022_kr", "big5hkscs", "euc_jis_2004", "euc_jisx0213", "shift_jis_2004", "shift_jisx0213"),
}
_SPANS = ", whose spans count in the text as UTF-8"
_NOT_FOR_FILES = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined", "mbcs", "oem"}
# What real files are in, commonest first: settles ties between guesses that fit equally well. The library's own order
# of ties is chance: of 28 short samples in 15 languages it gets 18 right, this list 27 (long ones: 372 and 367 of 385).
_COMMON = (
    *("cp1252", "gb18030", "big5", "cp932", "euc_jp", "cp949", "cp1255", "cp1251", "koi8_r", "cp1250", "iso8859_2"),
    *("cp1253", "cp1254", "cp1256", "cp1257", "cp874", "cp850", "cp866", "iso8859_5", "iso8859_7", "iso8859_9"),
    *("mac_cyrillic", "cp855", "johab", "cp437", "mac_roman"),
)

# Formats that can do without a NUL in their first bytes.
_MAGIC = (
    *(b"%PDF-", b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a"),
    *(b"GIF89a", b"\xfd7zXZ\x00", b"7z\xbc\xaf\x27\x1c", b"\x28\xb5\x2f\xfd", b"\x7fELF", b"\xca\xfe\xba\xbe"),
    *(b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe", b"PAR1", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"SQLite format 3\x00"),
)


class Undecodable(Exception):
    """The bytes cannot be read as text; the argument says why, to follow the file's name."""


@dataclass(frozen=True, slots=True)
class Settled:
    """How a file's bytes are read, decided over all of them.

    Attributes:
        codec: Python codec, never one that eats a BOM.
        bom: bytes of the BOM, not part of the text.
        exact: `data[a:b].decode(codec)` is the text between character boundaries a and b. Otherwise spans are
            counted in the UTF-8 of the text.
        content_hash: hex BLAKE2b-128 of all bytes, BOM included.
        size: bytes.
        note: what the user should know about the choice, to follow the file's name; None without anything to say.
        errors: `strict`, or `replace` for a file with a few bytes that do not decode.
    """

    codec: str
    bom: int
    exact: bool
    content_hash: str
    size: int
    note: str | None = None
    errors: str = "strict"

    @property
    def remark(self) -> str | None:
        """The note for whoever counts spans in the text anyway."""
        return None if self.note is not None and self.note.endswith(_SPANS) else self.note


def check_codec(name: str) -> str:
    """Canonical name of a codec for text files.

    Raises:
        QwenchError: no such codec, or none for files (code 2).
    """
    codec = "undefined"
    with contextlib.suppress(LookupError, ValueError):
        found = codecs.lookup(name).name
        with contextlib.suppress(UnicodeError):
            b"a".decode(found)  # LookupError for codecs from bytes to bytes, such as `hex`
        codec = found
    if codec in _NOT_FOR_FILES:
        raise QwenchError(f"no such text encoding: `{name}`", hint="try `cp1252`, `gb18030`, `utf-16`", code=2)
    return codec


def stated(head: bytes, declared: str | None) -> tuple[str | None, int]:
    """(codec, length of the BOM) by the BOM at the start of a file, else by declaration, else (None, 0)."""
    for mark, codec in _BOMS:
        if head.startswith(mark):
            return codec, len(mark)
    if declared is None:
        return None, 0
    codec = check_codec(declared)
    return _PLAIN.get(codec, codec), 0


def is_wide(codec: str) -> bool:
    """Whether ASCII characters have NUL bytes in this codec."""
    return codec.startswith(("utf-16", "utf-32"))


def parts_at_line_feeds(codec: str) -> bool:
    """Whether bytes may be cut after each 0x0A and the pieces decoded one by one."""
    return codec not in _ENTANGLED and not is_wide(codec)


def looks_binary(head: bytes, declared: str | None = None) -> bool:
    """Whether `head`, the first 8 KiB of a file, is not text: a known signature, or NUL without a wide encoding."""
    if head.startswith(_MAGIC) or (head[:3] == b"BZh" and head[4:10] == b"1AY&SY"):
        return True
    if b"\0" not in head[:SNIFF]:
        return False
    codec, _ = stated(head, declared)
    return codec is None or not is_wide(codec)


def settle(blocks: Blocks, head: bytes, declared: str | None = None) -> Settled:
    """Decide the encoding of a file and verify it over every byte, in blocks.

    Args:
        blocks: opens the file and yields its bytes; called again when a guess has to be checked.
        head: the first bytes, at least 4 if there are that many.
        declared: the user's encoding, used where there is no BOM.

    Raises:
        Undecodable: no encoding fits.
        OSError: from `blocks`.
    """
    codec, bom = stated(head, declared)
    if codec is None or not (bom or codec == "utf-8"):
        plain = _examine(blocks(), "utf-8", 0)
        if plain.bad is None and (codec is None or (plain.beyond and not (plain.nul and is_wide(codec)))):
            note = f"is UTF-8 and is read as such, not as `{codec}`" if codec else None
            return Settled("utf-8", 0, True, plain.content_hash, plain.size, note)
        if codec is None:
            return _guessed(blocks, plain)
    result = _examine(blocks(), codec, bom)
    if result.bad is None:
        note = None if result.exact else f"is read as `{codec}`{_SPANS}"
        return Settled(codec, bom, result.exact, result.content_hash, result.size, note)
    damage = _damage(blocks(), codec, bom)
    if damage.few:
        return _mended(codec, bom, result, damage)
    raise Undecodable(f"is not valid `{codec}`, the first wrong byte is at offset {result.bad}")


def read_text(data: bytes, declared: str | None = None) -> tuple[str, str | None]:
    """(text, note) of bytes in memory, read as a file's would be; the note is to follow the input's name.

    Raises:
        Undecodable: no encoding fits.
    """
    settled = settle(lambda: [data], data[:SNIFF], declared)
    return data[settled.bom :].decode(settled.codec, settled.errors), settled.note


@dataclass(frozen=True, slots=True)
class _Result:
    content_hash: str
    size: int
    bad: int | None  # offset of the first byte that does not decode
    exact: bool
    beyond: bool  # there are characters beyond ASCII
    nul: bool  # there are NUL bytes


@dataclass(frozen=True, slots=True)
class _Damage:
    """Places that do not decode, characters beyond ASCII and all characters of a file."""

    places: int
    beyond: int
    characters: int

    @property
    def few(self) -> bool:
        return self.places <= self.characters // FEW


def decoded(blocks: Iterable[bytes], codec: str, bom: int, errors: str = "strict") -> Iterator[tuple[str, bytes]]:
    """Text with exactly the bytes it came from, block by block, without the BOM.

    Raises:
        UnicodeDecodeError: `start` is the offset in the file.
    """
    decoder = codecs.getincrementaldecoder(codec)(errors=errors)
    entangled = codec in _ENTANGLED
    offset, pending, skip = bom, b"", bom
    for block in blocks:
        if skip:
            skip, block = max(0, skip - len(block)), block[skip:]
        piece = pending + block
        text = _decode(decoder, block, False, offset, len(pending))
        pending = b"" if entangled else decoder.getstate()[0]
        piece = piece[: len(piece) - len(pending)]
        offset += len(piece)
        if text:
            yield text, piece
    text = _decode(decoder, b"", True, offset, len(pending))
    if text or pending:
        yield text, pending


def _decode(decoder: codecs.IncrementalDecoder, block: bytes, final: bool, offset: int, pending: int) -> str:
    try:
        return decoder.decode(block, final)
    except UnicodeDecodeError as error:
        raise UnicodeDecodeError(error.encoding, b"", offset + error.start, offset + error.end, error.reason) from None
    except UnicodeError as error:  # some codecs say no more than that
        raise UnicodeDecodeError("unknown", b"", offset + pending, offset + pending, str(error)) from None


def _examine(blocks: Iterable[bytes], codec: str, bom: int) -> _Result:
    """Hash all bytes while decoding them, and check that encoding the text again gives them back."""
    digest = hashlib.blake2b(digest_size=16)
    size, nul, beyond = 0, False, False

    def counted() -> Iterator[bytes]:
        nonlocal size, nul
        for block in blocks:
            digest.update(block)
            size += len(block)
            nul = nul or b"\0" in block
            yield block

    source = counted()
    bad, exact = None, codec not in _ENTANGLED
    try:
        for text, piece in decoded(source, codec, bom):
            beyond = beyond or not text.isascii()
            if exact and codec not in _BIJECTIVE:
                exact = _same(text, piece, codec)
    except UnicodeDecodeError as error:
        bad = error.start
        for _ in source:  # the hash covers the whole file all the same
            pass
    return _Result(digest.hexdigest(), size, bad, exact, beyond, nul)


def _damage(blocks: Iterable[bytes], codec: str, bom: int) -> _Damage:
    places = beyond = characters = 0
    for text, _ in decoded(blocks, codec, bom, "replace"):
        places += text.count("\ufffd")
        characters += len(text)
        if not text.isascii():
            beyond += len(text) - len(text.encode("ascii", "ignore"))
    return _Damage(places, beyond - places, characters)


def _mended(codec: str, bom: int, result: _Result, damage: _Damage) -> Settled:
    """A file that is read with U+FFFD where it does not decode."""
    count = "1 place" if damage.places == 1 else f"{damage.places:,} places"
    note = f"is not valid `{codec}` in {count}, the first at byte {result.bad}, and is read with \ufffd there"
    return Settled(codec, bom, False, result.content_hash, result.size, note, "replace")


def _same(text: str, piece: bytes, codec: str) -> bool:
    try:
        return text.encode(codec) == piece
    except UnicodeEncodeError:
        return False


def _guessed(blocks: Blocks, result: _Result) -> Settled:
    """The settled encoding of a file that is not UTF-8: UTF-8 with a few bad bytes, or by detection."""
    damage = _damage(blocks(), "utf-8", 0)
    if damage.beyond >= MOSTLY * damage.places:
        return _mended("utf-8", 0, result, damage)
    codec = _guess(_sample(blocks(), result.bad or 0))
    # Only the best guess is tried: one further down may be a codec that decodes any bytes, and mojibake with them.
    if codec is not None and (check := _examine(blocks(), codec, 0)).bad is None:
        note = f"is not UTF-8 and is read as `{codec}`, a guess that `--encoding` overrules"
        return Settled(codec, 0, check.exact, check.content_hash, check.size, note)
    if damage.few:
        return _mended("utf-8", 0, result, damage)
    raise Undecodable(f"is not UTF-8 (byte {result.bad}) and its encoding is unclear, `--encoding` declares it")


def _sample(blocks: Iterable[bytes], bad: int) -> bytes:
    """Up to 64 KiB around the offset `bad`, in whole lines; in a sea of ASCII, only the others: it fits everything."""
    first, kept, offset = max(0, bad - SAMPLE // 4), b"", 0
    for block in blocks:
        start = max(0, first - offset)
        kept += block[start : start + SAMPLE - len(kept)]
        offset += len(block)
        if len(kept) >= SAMPLE:
            break
    begin = kept.find(b"\n", 0, bad - first) + 1 if first else 0
    end = kept.rfind(b"\n", bad - first) + 1 if len(kept) >= SAMPLE else len(kept)
    sample = kept[begin : end or len(kept)]
    telling = b"\n".join(line for line in sample.split(b"\n") if not line.isascii())
    return telling if len(telling) < len(sample) // 8 else sample


def _guess(sample: bytes) -> str | None:
    """The codec that fits the sample best, among equals the commoner one; None if nothing fits."""
    from charset_normalizer import from_bytes

    fits = {}
    for match in from_bytes(sample, cp_isolation=list(_COMMON)):
        for name in match.could_be_from_charset:
            if name in _COMMON:
                fits[name] = (round(match.chaos, 3), -round(match.coherence, 3), _COMMON.index(name))
    return check_codec(min(fits, key=fits.__getitem__)) if fits else None
