"""WAV files: every form of numbers, streams, and what is damaged."""

from __future__ import annotations

import struct
import time
import wave
from pathlib import Path

import numpy as np
import pytest
from qwench.ops.audio.riff import Wave, encode, parse, read
from qwench.ops.audio.waves import Merged, levelled, merge, mono, rms
from qwench.ops.base.errors import QwenchError

GUID = bytes.fromhex("000000001000800000aa00389b71")


def tone(seconds: float, rate: int = 16_000, hertz: float = 220.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def raw(samples: np.ndarray, kind: str) -> bytes:
    if kind == "u8":
        return (np.rint(samples * 127) + 128).astype(np.uint8).tobytes()
    if kind == "i24":
        return np.rint(samples * (2**23 - 1)).astype("<i4").reshape(-1, 1).view(np.uint8)[:, :3].tobytes()
    if kind.startswith("f"):
        return samples.astype(f"<f{int(kind[1:]) // 8}").tobytes()
    bits = int(kind[1:])
    return np.rint(samples * (2 ** (bits - 1) - 1)).astype(f"<i{bits // 8}").tobytes()


def riff(body: bytes, kind: str, channels: int = 1, rate: int = 16_000, *, extensible=False, before=b"", size=None):
    bits = int(kind[1:])
    tag = 3 if kind[0] == "f" else 1
    align = channels * bits // 8
    form = struct.pack("<HHIIHH", 0xFFFE if extensible else tag, channels, rate, rate * align, align, bits)
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, tag) + GUID
    chunks = b"WAVE" + b"fmt " + struct.pack("<I", len(form)) + form + before
    chunks += b"data" + struct.pack("<I", len(body) if size is None else size) + body + b"\0" * (len(body) % 2)
    return b"RIFF" + struct.pack("<I", len(chunks) if size is None else 0xFFFFFFFF) + chunks


@pytest.mark.parametrize("kind", ["u8", "i16", "i24", "i32", "f32", "f64"])
@pytest.mark.parametrize("extensible", [False, True])
def test_every_form_of_numbers_is_the_same_sound(kind: str, extensible: bool) -> None:
    samples = tone(0.01)[:159]  # an odd number of bytes in 8 and 24 bits
    found = parse(riff(raw(samples, kind), kind, extensible=extensible), "a.wav")
    assert found.rate == 16_000 and found.samples.shape == (159, 1)
    np.testing.assert_allclose(found.samples[:, 0], samples, atol=1 / 64 if kind == "u8" else 1e-4)


def test_chunks_before_the_samples_and_odd_ones_are_stepped_over() -> None:
    odd = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    assert len(parse(riff(raw(tone(0.1), "i16"), "i16", before=odd), "a").samples) == 1600


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0x7FFFF000])
def test_a_stream_goes_on_to_the_end(size: int) -> None:
    assert len(parse(riff(raw(tone(0.1), "i16"), "i16", size=size), "a").samples) == 1600


def test_what_the_standard_library_writes_is_read_and_the_other_way_round(tmp_path: Path) -> None:
    values = np.array([[-32768, 3], [32767, -7], [0, 12]], "<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(2), file.setsampwidth(2), file.setframerate(44_100)
        file.writeframes(values.tobytes())
    found = read(tmp_path / "a.wav")
    assert found.rate == 44_100 and (found.samples * 32768 == values).all()
    (tmp_path / "b.wav").write_bytes(encode(found.samples[:, 0], 8000))
    with wave.open(str(tmp_path / "b.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 8000)
        assert np.frombuffer(file.readframes(9), "<i2").tolist() == [-32768, 32767, 0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"ID3\x04" + bytes(60), "is MP3"),
        (b"\xff\xfb\x90\x64" + bytes(60), "is MP3"),
        (b"fLaC" + bytes(60), "is FLAC"),
        (b"hello, there is no sound here", "is no WAV"),
        (riff(raw(tone(1), "i16"), "i16")[:-1001], "1,001 of 32,000 bytes are missing"),
        (riff(b"", "i16"), "has no samples"),
        (riff(raw(np.array([np.nan, 1.0]), "f32"), "f32"), "no sound"),
        (riff(raw(tone(0.1), "i16"), "i16", rate=3), "a rate of 3 Hz"),
        (riff(raw(tone(0.1), "i16"), "i16").replace(b"\x01\0\x01\0", b"\x06\0\x01\0"), "A-law"),
    ],
)
def test_what_is_no_sound_is_named(data: bytes, says: str) -> None:
    with pytest.raises(QwenchError, match=says):
        parse(data, "a.wav")


def test_an_mp3_under_the_name_of_a_wav_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"ID3\x04" + bytes(60))
    with pytest.raises(QwenchError, match="is MP3 under the name of a WAV"):
        read(tmp_path / "a.wav")
    with pytest.raises(QwenchError, match="is not there"):
        read(tmp_path / "b.wav")


@pytest.mark.parametrize("count", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_mutations_give_a_sound_or_a_sentence(count: int) -> None:
    random = np.random.default_rng(0)
    kinds = ("u8", "i16", "i24", "i32", "f32", "f64")
    seeds = [riff(raw(tone(0.02), k), k, extensible=e, before=b"LIST\4\0\0\0INFO") for k in kinds for e in (0, 1)]
    begun, sounds, longest = time.monotonic(), 0, 0.0
    for number in range(count):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(random.integers(1, 6)):
            # Mostly in the head, where the lengths and forms are.
            at = int(random.integers(90 if random.random() < 0.8 else len(data)))
            data[at % len(data)] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(256))]))
        if random.random() < 0.2:
            data = data[: int(random.integers(len(data)))]
        one = time.monotonic()
        try:
            found = parse(bytes(data), "mutated.wav")
            assert np.isfinite(mono(found, 16_000)).all()
            sounds += 1
        except QwenchError as error:
            assert error.message
        longest = max(longest, time.monotonic() - one)
    assert count / 10 < sounds < 0.99 * count
    assert longest < 10 and time.monotonic() - begun < 150


def test_the_pause_is_exact_and_the_order_swaps() -> None:
    question, answer = Wave(tone(2)[:, None], 16_000), Wave(tone(3, hertz=330)[:, None], 16_000)
    one = merge(question, answer)
    assert len(one.samples) == 32_000 + 16_000 + 48_000
    assert not one.samples[32_000:48_000].any() and one.samples[1:32_000].any()
    other = merge(question, answer, order="aq")
    assert all((a == b).all() for a, b in zip(one.parts, other.parts[::-1], strict=True))
    assert isinstance(one, Merged) and one.warnings == ()


def test_stereo_of_another_rate_is_as_long_as_its_twin() -> None:
    for seconds in (0.5, 1.2345, 2.0001):
        wide = np.stack([tone(seconds, 44_100), tone(seconds, 44_100)], 1)
        there = parse(riff(raw(wide, "f32"), "f32", 2, 44_100), "a")
        assert abs(len(mono(there, 16_000)) - len(tone(seconds))) <= 1
        middle = slice(500, -500)
        n = min(len(mono(there, 16_000)), len(tone(seconds)))
        np.testing.assert_allclose(mono(there, 16_000)[:n][middle], tone(seconds)[:n][middle], atol=0.01)


def test_parts_that_are_none_are_refused_and_odd_ones_told() -> None:
    good = Wave(tone(3)[:, None], 16_000)
    with pytest.raises(QwenchError, match="the answer is silent"):
        merge(good, Wave(np.zeros((16_000, 1)), 16_000))
    with pytest.raises(QwenchError, match=r"the question is 0\.050 s"):
        merge(Wave(tone(0.05)[:, None], 16_000), good)
    loud = Wave(np.sign(tone(3))[:, None], 16_000)
    assert any("clipped" in w for w in merge(good, loud).warnings)
    assert any("outside the usual" in w for w in merge(good, Wave(tone(40)[:, None], 16_000)).warnings)
    assert rms(levelled(tone(1), -20)) == pytest.approx(0.1)
