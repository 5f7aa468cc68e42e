"""The instructions and wrappings of "Rationales Are Not Silver Bullets", byte for byte, with their spelling.

Source: Ignoramus0817/rationales (7b67d6c). Synthesis, training and evaluation ask in three different texts.
"""

from __future__ import annotations

from typing import Any

from ...base.errors import QwenchError

SYSTEM = "You are a helpful assistant."
_INFERENCE = (
    "Follwing is a premise and a hypothesis, determine whether the hypothesis is entailed by the premise, "
    "contradictory with the premise or can not be determined."
)
_SENTIMENT = "Follwing is a statement, determine whether the sentiment is negative or positive."
_SELECTIVE = (
    "Following is a selective question and its answer options. Select the most possible one.",
    "Following is a selective question about common senses and its answer options. Select the most possible one.",
)
_ALIKE = (
    "Following are two similar sentences. Determine whether they are asking the same question or describing the same "
    "situation."
)
INSTRUCTIONS = {
    "cb": _INFERENCE + " ",
    "anli": _INFERENCE,
    "cr": _SENTIMENT,
    "sent": _SENTIMENT,
    "sst2": _SENTIMENT,
    "subj": "Follwing is a statement, determine whether it is objective or subjective.",
    "trec": "Following is a question, determine which topic it is about.",
    "agnews": "Following is a piece of news and its brief description, determine which topic it is about.",
    "arc": _SELECTIVE[0],
    "arc_ez": _SELECTIVE[0],
    "csqa": _SELECTIVE[1],
    "creak": ("Following is a statement, determine whether is is true or false based on common sense and fact."),
    "coinflip": (
        "Following is a coin flip process where a coin begins with heads up and is flipped or not flipped in each "
        'step. Each "flip" is an operation that will reverse the coin. Determine whether the coin is still heads up in '
        "the end."
    ),
    "paws": _ALIKE + " ",
    "qqp": _ALIKE + " ",
    "paraphrase": _ALIKE,
    "winogrande": (
        'Following is a sentence where a word is replaced with a blank symbol "_". You will be given two options and '
        "you should choose the most possible one to fill in the blank. "
    ),
    "wic": (
        "Following is a target word and two sentences. Determine whether the words in the two sentences have the same "
        "semantic meaning. "
    ),
    "math": "Solve the following math problems.",
}
#: sets of maths problems, which share an instruction
MATHS = ("math", "multiarith", "asdiv", "svamp", "gsm8k")
RULE = 'Give your answer ending with "The answer is x" where x is your choice.'
RULE_MATHS = 'Add a line "The answer is n" at the end where n is the answer value.'
#: what follows `Answer:` where a rationale is asked for, by stage; without one nothing does
CUES = {
    "synthesis": " Let's think step by step.\n",
    "training": " Let's think step by step.",
    "evaluation": "\nLet's think step by step.",
}


def instruction_of(asked: str | None, task: Any) -> tuple[str, bool | None]:
    """(instruction, whether it is of maths, None for a text that nobody knows) as asked for, else of a row's task.

    Raises:
        QwenchError: neither is given, or nobody knows the task.
    """
    key = asked if asked is not None else task
    if isinstance(key, str) and key.lower().replace("-", "_") in (*INSTRUCTIONS, *MATHS):
        key = key.lower().replace("-", "_")
        return INSTRUCTIONS["math" if key in MATHS else key], key in MATHS
    if asked is not None:
        return asked, None
    raise QwenchError(
        "no instruction is given, and none is known for the row's task",
        f"--instruction TEXT, or {', '.join(INSTRUCTIONS)}",
    )


def body(question: str, instruction: str, maths: bool, stage: str, rationale: bool) -> str:
    """A question as a stage asks it."""
    rule = RULE_MATHS if maths else RULE
    cue = CUES[stage] if rationale else ""
    return f"{instruction}\n{rule}\n\nHere is the question:\n{question}\n\nAnswer:{cue}"


def synthesis(text: str, style: str) -> list[dict[str, Any]]:
    """Messages that ask for a rationale: with the reference's system sentence, or the template's own."""
    own = [{"role": "system", "content": SYSTEM}] if style == "reference" else []
    return [*own, {"role": "user", "content": text}]


def training(text: str, style: str) -> str | list[dict[str, Any]]:
    """A prompt of a training row: the reference's text, or messages."""
    return f"Human: {text}\n\nAssistant: " if style == "reference" else [{"role": "user", "content": text}]


def evaluation(text: str, style: str) -> list[dict[str, Any]]:
    """Messages of an evaluation: the reference puts its own wrapping into a chat's."""
    return synthesis(f"Human:{text}\n\nAssistant: " if style == "reference" else text, style)
