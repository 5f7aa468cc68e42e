"""Speech without a model: espeak-ng, by the library of the package espeakng-loader (GPL, for this demo alone)."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path
from typing import NamedTuple

#: of espeak's interface: hand the samples back, text is UTF-8, and the numbers of what can be set
RETRIEVAL, UTF8, RATE, VOLUME, PITCH = 1, 1, 1, 2, 3


class Voice(NamedTuple):
    """name: of a voice, with +f3 and the like for a variant; rate: words a minute; volume, pitch: 0 to 200, 0 to 99."""

    name: str = "en-us"
    rate: int = 175
    volume: int = 100
    pitch: int = 50


class Speaker:
    """espeak-ng in this process."""

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._rate = self._library.espeak_Initialize(RETRIEVAL, 0, espeakng_loader.get_data_path().encode(), 0)
        if self._rate <= 0:
            raise SystemExit("espeak-ng does not start: pip install espeakng-loader")
        self._found = bytearray()
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        # Kept, as the library calls it for as long as it lives.
        self._heard = kind(self._take)
        self._library.espeak_SetSynthCallback(self._heard)

    def _take(self, samples: ctypes._Pointer, count: int, _: int) -> int:
        if samples and count > 0:
            self._found += ctypes.string_at(samples, 2 * count)
        return 0

    def say(self, text: str, voice: Voice, path: Path) -> None:
        """A WAV file of a sentence, 16-bit mono."""
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise SystemExit(f"espeak-ng has no voice {voice.name}")
        for number, value in ((RATE, voice.rate), (VOLUME, voice.volume), (PITCH, voice.pitch)):
            self._library.espeak_SetParameter(number, value, 0)
        self._found.clear()
        data = text.encode()
        self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8, None, None)
        self._library.espeak_Synchronize()
        sound = bytes(self._found)
        form = struct.pack("<HHIIHH", 1, 1, self._rate, 2 * self._rate, 2, 16)
        head = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", len(sound))
        path.write_bytes(b"RIFF" + struct.pack("<I", len(head) + len(sound)) + head + sound)
