"""What kind of reward model a checkpoint is, from its config and the names of its tensors."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from ..base.errors import QwenchError
from ..models.device import Choice
from ..models.layouts import DECODERS
from ..models.reward_heads import LINEAR

#: mlp, process: Qwen's two classes; linear: one row over a decoder; pair: an encoder that reads question and answer
KINDS = ("mlp", "linear", "process", "pair")
#: architecture -> kind, where the name alone says it
CLASSES = {"Qwen2ForRewardModel": "mlp", "Qwen2ForProcessRewardModel": "process"}
#: values of a head
OUTPUTS = {"mlp": 1, "linear": 1, "process": 2, "pair": 1}
#: system messages the models were trained with; None leaves the template its own
SYSTEMS = {"mlp": "", "process": "Please reason step by step, and put your final answer within \\boxed{}."}
LOADABLE = "loadable: Qwen2ForRewardModel, Qwen2ForProcessRewardModel, *ForSequenceClassification with one label"


def decide_kind(config: dict[str, Any], tensors: Collection[str], name: str, asked: str = "auto") -> Choice:
    """One of KINDS, with the reason.

    Args:
        tensors: names of the checkpoint's tensors. name: of the checkpoint, for messages.
        asked: --head.

    Raises:
        QwenchError: an unknown head (code 2), an architecture whose head is another's code, no reward head at all.
    """
    if asked != "auto":
        if asked not in KINDS[:3]:
            raise QwenchError(f"unknown --head: `{asked}`", f"use auto, {', '.join(KINDS[:3])}", code=2)
        return Choice(asked, "as asked")
    names = config.get("architectures") or []
    architecture = str(names[0]) if names else "none named"
    if architecture in CLASSES:
        return Choice(CLASSES[architecture], f"{architecture} in config.json")
    if architecture.endswith("ForSequenceClassification"):
        if (count := labels(config)) != 1:
            raise QwenchError(f"the classifier has {count} labels, and a reward model has one: `{name}`", LOADABLE)
        if config.get("model_type") in DECODERS or LINEAR in tensors:
            return Choice("linear", f"{architecture} in config.json")
        return Choice("pair", f"{architecture} in config.json, an encoder of question and answer")
    if architecture.endswith(("ForCausalLM", "LMHeadModel")) and not any(n.startswith("v_head") for n in tensors):
        raise QwenchError(
            f"the model has no reward head (architecture {architecture}): `{name}`",
            f"{LOADABLE}; make one of it: qwench reward train PAIRS --model {name} --out DIR",
        )
    raise QwenchError(f"no reward model that can be loaded (architecture {architecture}): `{name}`", LOADABLE)


def labels(config: dict[str, Any]) -> int:
    """Labels of a sequence classifier, as transformers reads them."""
    named = config.get("id2label")
    return len(named) if named else int(config.get("num_labels", 2))
