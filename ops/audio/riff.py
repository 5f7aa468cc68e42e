"""WAV files, read whole and by hand: the standard library's reader knows neither floats nor streams.

Source: Microsoft's "Multiple channel audio data and WAVE files" for the extensible form.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.errors import QwenchError
from ..base.paths import local

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
#: encodings that are told by name
TAGS = {2: "Microsoft ADPCM", 6: "A-law", 7: "mu-law", 0x11: "IMA ADPCM", 0x31: "GSM", 0x55: "MP3"}
#: the end of the identifier of every extensible format that has a tag
SUFFIX = bytes.fromhex("000000001000800000aa00389b71")
#: lengths from here on stand for "until the end": 0xFFFFFFFF of ffmpeg, 0x7FFFF000 of espeak and sox
STREAM = 0x7FFFF000
CHANNELS, RATES = 64, (2_000, 400_000)
#: no file has more chunks; a file of empty ones must not be walked for minutes
CHUNKS = 10_000
#: a float sample beyond this is no sound, full scale is 1
LOUDEST = 1e6
AGAIN = "make it again as 16-bit PCM"
#: sounds that the library behind [audio] reads
LIBRARY = ("FLAC", "Ogg", "MP3")


class Wave(NamedTuple):
    """samples: (n, channels) float64, full scale is 1; rate: in Hz."""

    samples: NDArray[np.float64]
    rate: int


def read(path: str | Path) -> Wave:
    """The sound of a file.

    Raises:
        QwenchError: it is not there, is no sound, is cut short, or needs the library of the extra `audio`.
    """
    name = str(path)
    local(name, "the sound")
    try:
        if Path(path).exists() and not Path(path).is_file():
            raise QwenchError(f"the sound is no file: `{name}`", "paths are relative to the manifest")
        data = Path(path).read_bytes()
    except OSError as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise QwenchError(f"the sound {why}: `{name}`", "paths are relative to the manifest") from error
    kind = kind_of(data)
    if kind in LIBRARY:
        if Path(path).suffix.lower() in (".wav", ".wave"):
            raise QwenchError(f"`{name}` is {kind} under the name of a WAV", "give it its own suffix")
        return _by_library(path, kind)
    return parse(data, name)


def kind_of(data: bytes) -> str:
    """What the first bytes of a file say that it is."""
    if data[:4] in (b"RIFF", b"RIFX", b"RF64"):
        return data[:4].decode()
    for start, kind in ((b"fLaC", "FLAC"), (b"OggS", "Ogg"), (b"ID3", "MP3"), (b"FORM", "AIFF"), (b".snd", "AU")):
        if data.startswith(start):
            return kind
    if data[4:8] == b"ftyp":
        return "MP4"
    # Eleven set bits, then a version and a layer that are not reserved: a frame of MPEG audio.
    if len(data) > 3 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and data[1] & 0x18 != 8 and data[1] & 6:
        return "MP3"
    return "unknown"


def _by_library(path: str | Path, kind: str) -> Wave:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise QwenchError(f"{kind} needs the extra: `{path}`", "pip install 'qwench[audio]'") from error
    try:
        samples, rate = soundfile.read(str(path), dtype="float64", always_2d=True)
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise QwenchError(f"`{path}` cannot be decoded: {error}", AGAIN) from error
    return checked(samples, int(rate), str(path))


def parse(data: bytes, name: str) -> Wave:
    """The sound in the bytes of a WAV file.

    Args:
        name: of the file, for messages.

    Raises:
        QwenchError: no WAV, an encoding that is not read, cut short, no samples, or numbers that are none.
    """
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        if not data:
            raise QwenchError(f"the sound is empty: `{name}`", AGAIN)
        kind = kind_of(data)
        what = f"is {kind}, and no WAV" if kind not in ("unknown", "RIFF") else "is no WAV"
        raise QwenchError(f"`{name}` {what}", AGAIN)
    layout, at = None, 12
    for _ in range(CHUNKS):
        if at + 8 > len(data):
            break
        mark, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        body = at + 8
        if mark == b"data":
            if layout is None:
                raise QwenchError(f"`{name}` has samples before their format", AGAIN)
            return checked(_samples(data, body, size, layout, name), layout.rate, name)
        if mark == b"fmt ":
            layout = _layout(data[body : body + size], name)
        at = body + size + size % 2
    raise QwenchError(f"`{name}` has no samples: no chunk `data`", AGAIN)


class _Layout(NamedTuple):
    tag: int
    channels: int
    rate: int
    bits: int


def _layout(chunk: bytes, name: str) -> _Layout:
    if len(chunk) < 16:
        raise QwenchError(f"the format of `{name}` is cut short", AGAIN)
    tag, channels, rate, _, align, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == EXTENSIBLE:
        if len(chunk) < 40 or chunk[26:40] != SUFFIX:
            raise QwenchError(f"the extensible format of `{name}` is not understood", AGAIN)
        tag = struct.unpack_from("<H", chunk, 24)[0]
    if tag not in (PCM, FLOAT):
        raise QwenchError(f"`{name}` is encoded as {TAGS.get(tag, f'format {tag:#06x}')}", AGAIN)
    if bits not in ((8, 16, 24, 32) if tag == PCM else (32, 64)):
        raise QwenchError(f"`{name}` has {bits}-bit {'integers' if tag == PCM else 'floats'}", AGAIN)
    if not 1 <= channels <= CHANNELS:
        raise QwenchError(f"`{name}` has {channels} channels", AGAIN)
    if align != channels * bits // 8:
        raise QwenchError(f"`{name}` says {align} bytes a frame, which {channels} x {bits} bits are not", AGAIN)
    return _Layout(tag, channels, rate, bits)


def _samples(data: bytes, body: int, size: int, layout: _Layout, name: str) -> NDArray[np.float64]:
    """(n, channels) of a chunk; a length of 0 or without end is that of a stream, which goes on to the end."""
    there = len(data) - body
    whole = struct.unpack_from("<I", data, 4)[0] + 8 == len(data)
    if size >= STREAM or (size == 0 and not whole):
        size = there
    if size > there:
        raise QwenchError(f"`{name}` is cut short: {size - there:,} of {size:,} bytes are missing", "copy it again")
    frame = layout.channels * layout.bits // 8
    if size % frame:
        raise QwenchError(f"`{name}` ends inside a sample: {frame - size % frame} bytes are missing", "copy it again")
    raw = data[body : body + size]
    if layout.tag == FLOAT:
        with np.errstate(invalid="ignore"):  # NaN is refused by `checked`
            found = np.frombuffer(raw, f"<f{layout.bits // 8}").astype(np.float64)
    elif layout.bits == 8:
        found = (np.frombuffer(raw, np.uint8).astype(np.float64) - 128) / 128
    elif layout.bits == 24:
        # Three bytes become the upper ones of four.
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        found = wide.view("<i4")[:, 0] / 2.0**31
    else:
        found = np.frombuffer(raw, f"<i{layout.bits // 8}") / 2.0 ** (layout.bits - 1)
    return found.reshape(-1, layout.channels)


def checked(samples: NDArray[np.float64], rate: int, name: str) -> Wave:
    """A wave that can be worked with.

    Raises:
        QwenchError: no samples, numbers that are none, a rate that no sound has.
    """
    if not samples.size:
        raise QwenchError(f"`{name}` has no samples", AGAIN)
    # Comparisons with NaN are false.
    if not np.abs(samples).max() <= LOUDEST:
        raise QwenchError(f"`{name}` has samples that are no sound (NaN, infinite or huge)", AGAIN)
    if not RATES[0] <= rate <= RATES[1]:
        raise QwenchError(f"`{name}` has a rate of {rate:,} Hz", f"use {RATES[0]:,} to {RATES[1]:,}")
    return Wave(samples, rate)


def encode(samples: NDArray[np.floating], rate: int) -> bytes:
    """A mono WAV of 16-bit PCM; samples (n,) beyond full scale are clipped, see `waves.clipped`."""
    body = np.clip(np.rint(np.asarray(samples, np.float64) * 32768), -32768, 32767).astype("<i2").tobytes()
    head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, PCM, 1, rate, 2 * rate, 2, 16)
    return b"RIFF" + struct.pack("<I", 4 + 24 + 8 + len(body)) + head + b"data" + struct.pack("<I", len(body)) + body
