"""What `qwench merge` will write, said before a byte of weights is read: every tensor merged, copied or dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import QwenchError
from ..base.runtime import Runtime
from ..checkpoint.adapter import adapter_files
from ..checkpoint.layout import EMBEDDING, LM_HEAD, PREFIX
from ..checkpoint.plan import Output, Plan, parse_size, shards_of
from ..checkpoint.sidecars import as_json
from ..checkpoint.tensors import FLOATS
from ..checkpoint.whole import lacking
from ..conversion.plan import ConvertOptions, plan_conversion
from ..models.hub import adapter_folder, open_source, remote_headers
from .card import model_card
from .inputs import Head, Input, at_layer, bare, layer_of, of_tokenizer, share_heads
from .methods import bind, check, find_method, uses_base
from .options import MergeOptions
from .preflight import notes, problems, vocabularies
from .recipe import UNION, Recipe, to_yaml
from .reference import parse
from .work import Ledger, Task

if TYPE_CHECKING:
    from mergekit.merge_methods.base import MergeMethod

CONFIG_FILE = "mergekit_config.yml"
#: names outside the layers that belong to the end of the model
_LAST = ("norm.", "lm_head.", "score.", "classifier.")


@dataclass(slots=True)
class MergePlan:
    """A plan, the models it reads and the account of what happens to its tensors."""

    recipe: Recipe
    inputs: dict[str, Input]
    plan: Plan
    ledger: Ledger
    yaml: str
    where: dict[str, tuple[Input, str]] = field(default_factory=dict)

    def release(self, label: str) -> None:
        """A stored tensor is not needed any more."""
        model, name = self.where[label]
        model.source.reader.release(name)


def plan_merge(recipe: Recipe, options: MergeOptions, opened: Mapping[str, Input] | None = None) -> MergePlan:
    """What will be written, from configs and headers alone.

    Args:
        opened: models that are open already, by name.

    Raises:
        QwenchError: models that do not fit each other, with every problem; a recipe that does not fit its method.
    """
    method = find_method(recipe.method)
    check(method, recipe)
    sliced = any(p.layers for s in recipe.slices for p in s.parts)
    if not opened:
        _before_download(recipe, options, sliced)
    inputs = {model: (opened or {}).get(model) or _open(model, options) for model in recipe.models}
    first = inputs[recipe.slices[0].parts[0].model]
    others = [i for i in inputs.values() if i is not first]
    share_heads([first, *others])
    texts = _texts(recipe, inputs, first, options)
    soft = _fitting(first, others, sliced, options)
    ledger = Ledger(parse_size(options.memory))
    read = [*others, *([] if texts.model in inputs else [texts])]
    plan = Plan([], notes=[*first.plan.notes, *soft, *notes(first, read, texts)])
    plan.metadata = dict(first.plan.metadata)
    made = MergePlan(recipe, inputs, plan, ledger, "")
    made.where = {f"{i.model}: {n}": (i, n) for i in inputs.values() for n in i.source.infos}
    used = _tensors(made, method, first, options.seed)
    for model in inputs.values():
        for name, why in model.plan.dropped.items():
            plan.dropped[f"{model.model}: {name}"] = why
        for name in model.outputs:
            if not (set(model.labels(name)) & used):
                why = "in no slice" if sliced else f"not in `{first.model}`"
                plan.dropped |= dict.fromkeys(model.labels(name), why)
    config = _sides(made, first, texts)
    if found := lacking((o.name for o in plan.outputs), config):
        raise QwenchError(
            f"what the models make together is not whole: {found}",
            "download or copy the models again, or correct num_hidden_layers in their config.json",
        )
    plan.shards = shards_of(plan.outputs, parse_size(options.max_shard_size), "model", ".safetensors")
    plan.check([label for i in inputs.values() for label in i.inputs])
    return made


def _fitting(first: Input | Head, others: Sequence[Input | Head], sliced: bool, options: MergeOptions) -> list[str]:
    """What does not fit and may pass with --allow-mismatch.

    Raises:
        QwenchError: something does not fit, with all of it.
    """
    hard, soft = problems(first, others, sliced)
    if hard or (soft and not options.allow_mismatch):
        raise QwenchError(
            f"the models do not fit each other: {'; '.join([*hard, *soft])}",
            "merge models of one family and vocabulary" if hard else "--allow-mismatch merges what fits",
        )
    return soft


def _before_download(recipe: Recipe, options: MergeOptions, sliced: bool) -> None:
    """Compare what the headers say while a model is still on the hub, so that none is fetched in vain."""
    if options.runtime.offline:
        return
    named = {m: parse(m) for m in recipe.models}
    remote = {
        m: found
        for m, n in named.items()
        if not n.lora and (found := remote_headers(n.model, n.revision or options.runtime.revision))
    }
    if not remote:
        return
    heads = []
    for model in recipe.models:
        if model in remote:
            heads.append(Head.of(model, *remote[model]))
        elif not named[model].lora and Path(model).exists():
            source = open_source(model)
            heads.append(Head.of(model, source.config(), source.infos))
    share_heads(heads)
    _fitting(heads[0], heads[1:], sliced, options)


def _open(model: str, options: MergeOptions) -> Input:
    named, runtime = parse(model), options.runtime
    source = open_source(named.model, named.revision or runtime.revision, runtime.offline)
    lora = (named.lora,) if named.lora else ()
    how = ConvertOptions(
        named.model, options.out, to="safetensors", lora=lora, runtime=Runtime(offline=runtime.offline)
    )
    files = [f for name in lora for f in adapter_files(adapter_folder(name, runtime.offline))]
    # What a model lacks is told beside the others, and may be copied from them.
    return Input(model, source, plan_conversion(source, how, layers=False), files)


def _texts(recipe: Recipe, inputs: Mapping[str, Input], first: Input, options: MergeOptions) -> Input:
    """The model whose tokenizer is taken, merged or not.

    Raises:
        QwenchError: its tokens are not those of the embeddings, or a union is asked for of different vocabularies.
    """
    if recipe.tokenizer == UNION:
        for other in inputs.values():
            if other.vocabulary and first.vocabulary and other.vocabulary != first.vocabulary:
                alone = sorted(other.vocabulary.items() ^ first.vocabulary.items())[0][0]
                raise QwenchError(
                    f"tokenizer_source: union of different vocabularies is not supported: `{first.model}` and "
                    f"`{other.model}` differ in {alone!r}",
                    "give the models one vocabulary first, or take tokenizer_source: base or one of the models",
                )
        return first
    if not recipe.tokenizer or recipe.tokenizer == first.model:
        return first
    texts = inputs.get(recipe.tokenizer) or _open(recipe.tokenizer, options)
    if not texts.texts():
        raise QwenchError(f"the model named by tokenizer_source has no tokenizer: `{texts.model}`", "name another")
    embedding = first.outputs.get(EMBEDDING)
    most = max(texts.vocabulary.values(), default=0)
    if embedding is not None and most >= embedding.shape[0]:
        raise QwenchError(
            f"the tokenizer of `{texts.model}` has a token {most} and the embeddings {embedding.shape[0]} rows",
            "name a model with the same vocabulary as tokenizer_source",
        )
    if texts.model not in inputs and (why := vocabularies(first, texts)) and not options.allow_mismatch:
        raise QwenchError(why[0], "--allow-mismatch takes that tokenizer all the same")
    return texts


def _tensors(made: MergePlan, method: MergeMethod, first: Input, seed: int) -> set[str]:
    """Fill the plan's outputs; returns labels of what they read."""
    recipe, used = made.recipe, set()
    layers = [s.parts[0].layers or (0, first.layers) for s in recipe.slices]
    for at, part in enumerate(recipe.slices):
        for p in part.parts:
            span, wanted = p.layers or (0, made.inputs[p.model].layers), layers[at]
            if span[1] - span[0] != wanted[1] - wanted[0] or span[1] > made.inputs[p.model].layers:
                raise QwenchError(f"layers {list(span)} of `{p.model}` do not fit a slice of {list(wanted)}")

    def add(at: int, names: list[str], output_name: str, place: float) -> None:
        output = _output(made, method, at, names, output_name, place, seed)
        made.plan.outputs.append(output)
        used.update(output.sources)

    outside = [n for n in first.outputs if layer_of(n) is None]
    for name in (n for n in outside if not n.startswith(_LAST)):
        add(0, [name] * len(recipe.slices[0].parts), first.outputs[name].name, 0.0)
    layer = 0
    for at, (part, (begin, end)) in enumerate(zip(recipe.slices, layers, strict=True)):
        lead = made.inputs[part.parts[0].model]
        for offset in range(end - begin):
            place = offset / (end - begin - 1) if end - begin > 1 else 1.0
            for name in [n for n in lead.outputs if layer_of(n) == begin + offset]:
                from_ = [at_layer(name, (p.layers or (0, 0))[0] + offset) for p in part.parts]
                prefix = PREFIX if any(o.name.startswith(PREFIX) for o in first.plan.outputs) else ""
                target = at_layer(name, layer)
                add(at, from_, lead.outputs[name].name if target == name and lead is first else prefix + target, place)
            layer += 1
    last = len(recipe.slices) - 1
    for name in (n for n in outside if n.startswith(_LAST)):
        add(last, [name] * len(recipe.slices[last].parts), first.outputs[name].name, 0.0)
    return used


def _output(
    made: MergePlan, method: MergeMethod, at: int, names: list[str], target: str, place: float, seed: int
) -> Output:
    recipe = made.recipe
    parts = recipe.slices[at].parts
    held = [(p.model, made.inputs[p.model], n) for p, n in zip(parts, names, strict=True)]
    there = [(m, i, n) for m, i, n in held if n in i.outputs]
    lead_model, lead, lead_name = there[0]
    own = lead.outputs[lead_name]
    dtype = recipe.out_dtype if recipe.out_dtype and own.dtype in FLOATS else own.dtype
    labels = tuple(label for _, i, n in there for label in i.labels(n))
    task = Task(target, own.shape, dtype, [(i, n) for _, i, n in there], made.ledger)
    if len(there) < len(held) or own.dtype not in FLOATS:
        why = f"only `{lead_model}` has it" if len(there) < len(held) else f"{own.dtype}, equal in all models"
        if len(there) < len(held):
            task.inputs = task.inputs[:1]
        return Output(target, own.shape, dtype, labels, f"copied: {why}", task.copied)
    base = recipe.slices[at].base or recipe.base
    if not uses_base(method):
        base = None
    prefixed = PREFIX + bare(target) if layer_of(target) is not None else target
    weights = {p.model: p.parameters.get("weight", 1.0) for p in parts}
    parameters = {"weight": weights} if recipe.fold else bind(method, recipe, at, prefixed, place)
    task.plan(
        method,
        [m for m, _, _ in there],
        [m for m, _, _ in there].index(base) if base else None,
        parameters,
        recipe.dtype or ("float64" if any(i.outputs[n].dtype == "float64" for _, i, n in there) else "float32"),
        seed,
        recipe.fold,
    )
    words = ", ".join(f"{k} {_short(v)}" for k, v in parameters.items() if v is not None)
    return Output(target, own.shape, dtype, labels, f"merged by {recipe.method}: {words}".rstrip(": "), task.merged)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "/".join(_short(v) for v in value.values())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _sides(made: MergePlan, first: Input, texts: Input) -> dict[str, Any]:
    """Fill the files beside the weights; returns the merged model's config."""
    plan, recipe = made.plan, made.recipe
    plan.copies, plan.side, plan.left = list(first.plan.copies), dict(first.plan.side), list(first.plan.left)
    counts = [s.parts[0].layers or (0, first.layers) for s in recipe.slices]
    layers = sum(end - begin for begin, end in counts)
    config = first.config.copy()
    if layers != first.layers:
        config["num_hidden_layers"] = layers
        for key in ("layer_types",):
            if config.get(key):
                if len(config[key]) < first.layers:
                    raise QwenchError(f"`{first.model}`: `{key}` of config.json names fewer layers than there are")
                config[key] = [config[key][n] for begin, end in counts for n in range(begin, end)]
    kinds = {o.dtype for o in plan.outputs if o.dtype in FLOATS}
    dtype = recipe.out_dtype or next((o.dtype for o in plan.outputs if len(o.shape) > 1), "float32")
    if config and len(kinds) == 1:
        key = "torch_dtype" if "torch_dtype" in config and "dtype" not in config else "dtype"
        config[key] = dtype
    if any(o.name == LM_HEAD for o in plan.outputs) and config.get("tie_word_embeddings") and LM_HEAD in first.outputs:
        config["tie_word_embeddings"] = first.outputs[LM_HEAD].sources != first.outputs[EMBEDDING].sources
    if config and config != first.config:
        plan.side["config.json"] = as_json(config)
    if texts is not first:
        # All of one tokenizer, its templates too: none of the first model's is left among them.
        plan.copies = [n for n in plan.copies if not of_tokenizer(n)]
        plan.side = {n: v for n, v in plan.side.items() if not of_tokenizer(n)}
        plan.side |= {n: texts.side(n) for n in texts.texts()}
    made.yaml = to_yaml(recipe, dtype)
    plan.side[CONFIG_FILE] = made.yaml.encode()
    plan.side["README.md"] = model_card(recipe, made.yaml).encode()
    plan.copies = [n for n in plan.copies if n not in plan.side]
    return config
