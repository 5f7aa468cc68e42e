"""What a trained reward model is saved as: a whole checkpoint of the published class, or a head over its base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.atomic import hidden, move, recover, remove, sync
from ..base.errors import QwenchError
from ..base.events import Advanced, Event, Started
from ..checkpoint.cast import Losses, pieces
from ..checkpoint.layout import LM_HEAD
from ..checkpoint.plan import Output, Plan, parse_size, shards_of
from ..checkpoint.reader import Source
from ..checkpoint.sidecars import as_json
from ..checkpoint.staging import Staging
from ..checkpoint.writer import check_room, write_sides, write_tensors
from ..conversion.plan import ConvertOptions, plan_conversion
from ..models.device import pick_threads
from ..models.load_reward import HEAD, NOTE, HeadNote
from ..models.reward_heads import RewardHead

if TYPE_CHECKING:
    from torch import Tensor

CARD, REPORT, VALIDATION = "README.md", "reward_train.json", "validation.jsonl"
STEMS = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama", "mistral": "Mistral", "gemma2": "Gemma2"}


def architecture(config: dict[str, Any], kind: str) -> str:
    """Class of a whole checkpoint.

    Raises:
        QwenchError: a family that has none for this head.
    """
    family = config.get("model_type")
    if kind == "mlp":
        if family != "qwen2":
            raise QwenchError(f"an MLP head is a class of Qwen2 alone, and the base is `{family}`", "use --head linear")
        return "Qwen2ForRewardModel"
    if family not in STEMS:
        raise QwenchError(f"no classifier is known of the family `{family}`", f"known: {', '.join(STEMS)}")
    return f"{STEMS[family]}ForSequenceClassification"


def base_plan(source: Source, name: str, out: str) -> Plan:
    """The base as a plan in transformers' names."""
    how = ConvertOptions(name, out, to="safetensors", layout=None)
    prefixed = any(n.startswith("model.") for n in source.infos) or source.reader.format == "gguf"
    return plan_conversion(source, how if prefixed else replace(how, layout="prefixed"))


def save_checkpoint(
    source: Source, name: str, out: Path, head: RewardHead, kind: str, trained: dict[str, Tensor],
    report: dict[str, Any], validation: bytes, force: bool,
) -> Iterator[Event]:  # fmt: skip
    """Write a folder that `reward score` and transformers read: the base's tensors, or the trained ones, and the head.

    Args:
        trained: name -> tensor of the decoder, where it was trained; all of them or none.
        validation: rows of the validation pairs with their rewards.

    Raises:
        QwenchError: a trained tensor that the base does not have; disk too small.
    """
    plan = base_plan(source, name, str(out))
    config = json.loads(plan.side.get("config.json") or b"null") or source.config()
    own = [o for o in plan.outputs if o.name != LM_HEAD and not o.name.startswith("score.")]
    if trained and (lost := sorted({o.name for o in own} ^ set(trained))):
        raise QwenchError(f"a trained tensor does not fit the checkpoint: `{lost[0]}`", "please report it")
    plan.outputs = [retrained(o, trained[o.name]) if o.name in trained else o for o in own]
    plan.outputs += [_added(n, t.cpu().contiguous()) for n, t in head.tensors.items()]
    told = {"architectures": [architecture(config, kind)], "num_labels": 1}
    told |= {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    gone = ("auto_map", "pad_token_id") if kind == "mlp" else ("auto_map",)
    plan.side["config.json"] = as_json({k: v for k, v in config.items() if k not in gone} | told)
    plan.side |= {CARD: card(report).encode(), REPORT: as_json(report), VALIDATION: validation}
    yield from written(plan, source, out, report, force)


def written(plan: Plan, source: Source, out: Path, report: dict[str, Any], force: bool) -> Iterator[Event]:
    """Write a folder, whole or not at all, as a plan has it; `report` says what it is of.

    Raises:
        QwenchError: disk too small.
    """
    plan.copies = [n for n in plan.copies if n not in plan.side]
    plan.shards = shards_of(plan.outputs, parse_size("5GB"), "model", ".safetensors")
    staging = Staging(out, json.dumps(report, sort_keys=True), resume=True, force=force, files=plan.files)
    check_room(plan, staging.out.parent, staging.held())
    with staging:
        yield Started("write", plan.nbytes, "B")
        for count in write_tensors(plan, staging, Losses(), pick_threads(0).value, source.reader.release):
            yield Advanced("write", count)
        write_sides(plan, staging.part, source.folder)
        staging.commit()


def _added(name: str, tensor: Tensor) -> Output:
    made = lambda losses: pieces(name, tensor, "float32", losses)  # noqa: E731
    return Output(name, tuple(tensor.shape), "float32", (), "trained", made)


def retrained(output: Output, tensor: Tensor) -> Output:
    """An output with another tensor, stored as it was."""
    made = lambda losses: pieces(output.name, tensor, output.dtype, losses)  # noqa: E731
    return replace(output, action="trained", pieces=made)


def save_head(out: Path, note: HeadNote, head: RewardHead, report: dict[str, Any], validation: bytes) -> None:
    """Write a folder with a head alone, whole or not at all."""
    from safetensors.torch import save_file

    recover(out)
    part = hidden(out, ".new")
    remove(part)
    part.mkdir()
    save_file({n: t.cpu().contiguous() for n, t in head.tensors.items()}, part / HEAD, {"format": "pt"})
    (part / NOTE).write_bytes(note.bytes())
    (part / REPORT).write_bytes(as_json(report))
    (part / VALIDATION).write_bytes(validation)
    (part / CARD).write_text(card(report), "utf-8")
    for file in part.iterdir():
        sync(file)
    move(part, out)


def card(report: dict[str, Any]) -> str:
    """README.md: what was done, on what, how good it is, and how to use it."""
    base = report["model"]
    head = ["---", "tags:", "- reward-model", "- qwench"]
    head += [f"base_model: {base}"] if base.count("/") == 1 and not base.startswith(("/", ".", "~")) else []
    how = {
        "head": "a head over its frozen hidden states",
        "lora": "low-rank adapters, merged",
        "full": "all parameters",
    }
    lines = [
        *head, "---", "", f"# A reward model over {base}", "",
        f"Made by `qwench reward train`: {how[report['method']]}, head `{report['head']}`, {report['pairs']:,} pairs "
        f"of a chosen and a rejected answer, {report['epochs']} epochs, the {report['keep']} one kept "
        f"({report['epoch']}).", "",
        f"On {report['validation_pairs']:,} validation pairs of other prompts: accuracy {report['accuracy']:.4f}, "
        f"Bradley-Terry loss {report['validation_loss']:.4f} (0.6931 knows nothing). The longest answer alone is right "
        f"on {report['rulers']['longest']['accuracy']:.4f}.", "",
        "A reward has no meaning of its own: only differences within a prompt do.", "",
        "```console", "$ qwench reward score answers.jsonl --model FOLDER", "```", "",
    ]  # fmt: skip
    return "\n".join(lines)
