"""Two sets of 40 wishes with three answers each: wrong words (1), the wrong way (3), right both ways (5).

Both have the same eight wishes; sentences, wording and the speaker's voice are others.
usage: make.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from speak import Speaker, Voice

#: wish -> attribute, how it is granted, and how it is denied (None: in the plain voice)
WISHES = {
    "faster": ("speed", {"rate": 300}, {"rate": 90}),
    "more slowly": ("speed", {"rate": 90}, {"rate": 300}),
    "louder": ("volume", {"volume": 200}, {"volume": 30}),
    "more quietly": ("volume", {"volume": 30}, {"volume": 200}),
    "in a higher voice": ("pitch", {"pitch": 90}, {"pitch": 10}),
    "in a deeper voice": ("pitch", {"pitch": 10}, {"pitch": 90}),
    "like a woman": ("gender", {"variant": "+f3"}, None),
    "like a German": ("accent", {"language": "de"}, None),
}
SETS = {
    "train": (
        "en-us",
        "Please say {wish}, {said}",
        (
            "the train to the coast leaves at nine",
            "my sister has bought a small red boat",
            "nobody knows where the old map is hidden",
            "we should plant apple trees behind the barn",
            "the museum is closed on every first Monday",
        ),
        (
            "seven grey cats were sleeping on our roof",
            "he cooks rice with ginger and black pepper",
            "winter came early and the lake froze over",
            "your parcel was sent to another city",
            "this song has neither words nor drums",
        ),
    ),
    "test": (
        "en-gb-x-rp",
        "Can you repeat {wish}, {said}",
        (
            "her brother works in a bakery near the harbour",
            "a heavy storm has broken two of our windows",
            "the last chapter explains what the letter meant",
            "they walked for hours until it became dark",
            "fresh bread tastes best with salted butter",
        ),
        (
            "eight planets move around one yellow star",
            "turn left after the bridge and drive on",
            "our neighbour sells wool and wooden toys",
            "I forgot to water these plants last week",
            "children under six travel without a ticket",
        ),
    ),
}


def voice_of(base: str, how: dict | None) -> Voice:
    """A voice with one thing changed."""
    how = dict(how or {})
    name = how.pop("language", base) + how.pop("variant", "")
    return Voice(name, **how)


def main() -> None:
    """Waves and manifests of both sets."""
    speaker, out = Speaker(), Path(sys.argv[1])
    for name, (base, wording, right, wrong) in SETS.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        plain, rows = Voice(base), []
        for number, (wish, (attribute, granted, denied)) in enumerate(WISHES.items()):
            for at, (said, other) in enumerate(zip(right, wrong, strict=True)):
                question = f"q{number}{at}"
                asked = wording.format(wish=wish, said=said)
                speaker.say(asked, plain, folder / f"{question}.wav")
                # Every other wish is not heard at all instead of turned round.
                bad = denied if at % 2 else None
                for gold, words, how in ((1, other, granted), (3, said, bad), (5, said, granted)):
                    answer = f"{question}a{gold}"
                    speaker.say(words, voice_of(base, how), folder / f"{answer}.wav")
                    speaker.say(words, plain, folder / f"{answer}n.wav")
                    rows.append(
                        {
                            "id": f"{name}-{answer}",
                            "question_id": f"{name}-{question}",
                            "question": f"{question}.wav",
                            "answer": f"{answer}.wav",
                            "answer_neutral": f"{answer}n.wav",
                            "gold": gold,
                            "attribute": attribute,
                            "question_text": asked,
                            "answer_text": words,
                        }
                    )
        (folder / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
