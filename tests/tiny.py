"""Small checkpoints that tests build themselves, and where the shared reference data is."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

REFERENCE = Path(os.environ.get("QWENCH_REFERENCE") or Path(__file__).parents[2] / "shared" / "reference")

#: a template of the newer checkpoint files, with roles query and document
RERANK_CHAT_TEMPLATE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    "<Instruct>: {{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first | "
    "default('Given a web search query, retrieve relevant passages that answer the query') }}\n"
    "<Query>: {{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}\n"
    "<Document>: {{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}"
    "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n\n"
)

#: a Qwen3 as small as it goes with the real vocabulary
SHAPE = {
    "vocab_size": 151669,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def reference(name: str) -> Path:
    """A folder of the reference data; the test is skipped where there is none."""
    path = REFERENCE / name
    if not path.exists():
        pytest.skip(f"no reference data at {path} (set QWENCH_REFERENCE)")
    return path


def minilm() -> Path:
    """The packaged all-MiniLM-L6-v2; the test is skipped where it is not installed."""
    from qwench.ops.base.errors import QwenchError
    from qwench.ops.models.hub import resolve

    try:
        return resolve("minilm").path
    except QwenchError as error:
        pytest.skip(f"{error.message} ({error.hint})")


def write_st_files(folder: Path, pooling: str, dim: int, prompts: dict[str, str], max_length: int) -> None:
    """The sentence-transformers files around a transformer: modules.json, pooling, normalise, prompts."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    modes = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "lasttoken", "max_tokens": "max"}
    config = {"word_embedding_dimension": dim, "include_prompt": True}
    config |= {f"pooling_mode_{old}": new == pooling for old, new in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": max_length, "do_lower_case": False})
    )
    (folder / "config_sentence_transformers.json").write_text(
        json.dumps({"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"})
    )


def qwen3_tokenizer(folder: Path, eos: bool = True) -> None:
    """The real Qwen3 tokenizer in `folder`, with the post-processor of Qwen3-Embedding when `eos`."""
    source = reference("qwen3-tokenizer")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    # A chat template would make sentence-transformers wrap plain strings in it.
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if eos:
        tokenizer = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        end = "<|endoftext|>"
        template = {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": end, "type_id": 0}}],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
                {"SpecialToken": {"id": end, "type_id": 0}},
            ],
            "special_tokens": {end: {"id": end, "ids": [151643], "tokens": [end]}},
        }
        tokenizer["post_processor"] = {"type": "Sequence", "processors": [tokenizer["post_processor"], template]}
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")


def qwen3_embedding(folder: Path, *, eos: bool = True, st_files: bool = True, seed: int = 0) -> Path:
    """A tiny random checkpoint in the layout of Qwen3-Embedding: flat keys, no head, bare-query prompt."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3Config, Qwen3Model

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = Qwen3Config(
        **SHAPE,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model = Qwen3Model(config)
    with torch.no_grad():
        # Larger weights than the default 0.02, so that attention and position really matter.
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.15 if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p))
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors", {"format": "pt"}
    )
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(folder)
    qwen3_tokenizer(folder, eos)
    if st_files:
        query = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
        write_st_files(folder, "lasttoken", 64, {"query": query, "document": ""}, 1024)
    return folder


def qwen3_reranker(
    folder: Path, *, labels: int = 0, tied: bool = True, positions: int = 8192, head: bool = True, seed: int = 0
) -> Path:
    """A tiny random Qwen3 with the real tokenizer: a causal LM, or with `labels` the classifier made from its rows."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    config = Qwen3Config(
        **SHAPE,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
    )
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.1 if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p))
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    yes, no = (model.lm_head.weight[i].detach().float() for i in (9693, 2152))
    config.architectures = ["Qwen3ForCausalLM"]
    if labels:
        tensors.pop("lm_head.weight", None)
        tensors["score.weight"] = (yes - no)[None] if labels == 1 else torch.stack((no, yes))
        config.architectures = ["Qwen3ForSequenceClassification"]
        config.num_labels = labels
        config.pad_token_id = 151643
    if not head:
        tensors = {k: v for k, v in tensors.items() if k not in ("score.weight", "lm_head.weight")}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config.save_pretrained(folder)
    qwen3_tokenizer(folder, eos=False)
    return folder


def cross_encoder(folder: Path, *, labels: int = 1, family: str = "bert", seed: int = 0) -> Path:
    """A tiny random BERT or ELECTRA cross-encoder with MiniLM's tokenizer."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, ElectraConfig, ElectraForSequenceClassification

    torch.manual_seed(seed)
    shape = {
        "vocab_size": 30522,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 128,
        "initializer_range": 0.3,
        "num_labels": labels,
    }
    if family == "bert":
        model = BertForSequenceClassification(BertConfig(**shape))
    else:
        model = ElectraForSequenceClassification(ElectraConfig(embedding_size=32, **shape))
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(minilm() / name, folder / name)
    return folder


def tiny_bert(folder: Path, pooling: str = "mean", *, seed: int = 0) -> Path:
    """A tiny random BERT in sentence-transformers layout, with MiniLM's tokenizer."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    BertModel(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(minilm() / name, folder / name)
    write_st_files(folder, pooling, 32, {}, 128)
    return folder


def real_texts(count: int, chars: int = 600, start: int = 0) -> list[str]:
    """Passages of Python's own standard library, of mixed length, the same on one Python version."""
    import sysconfig

    texts: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        source = path.read_text("utf-8", "replace")
        step = 0
        while step < len(source):
            size = 40 + (len(texts) * 7919) % (2 * chars)
            piece = source[step : step + size].strip()
            step += size
            if piece:
                texts.append(piece)
    return texts[start : start + count]


def byte_tokenizer(folder: Path, end: str | None = "<|endoftext|>") -> None:
    """A tokenizer with one token a byte, and an end-of-text token after them where there is one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([end] if end else [])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast"} | ({"eos_token": end} if end else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def byte_decoder(folder: Path, kind: str = "qwen3", *, seed: int = 0, **extra: object) -> Path:
    """A tiny random decoder over bytes: qwen2, qwen3, qwen3_moe or llama."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    shape: dict[str, object] = {
        "vocab_size": 272,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "eos_token_id": 256,
        "tie_word_embeddings": kind != "llama",
    }
    if kind.startswith("qwen3"):
        shape["head_dim"] = 16
    if kind == "qwen3_moe":
        shape |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **shape | extra))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.15 if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p))
    model.save_pretrained(folder)
    byte_tokenizer(folder)
    return folder


#: ChatML as Qwen's reward models end it: without a newline, with an end of text
REWARD_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>"
    "{{ '' if loop.last else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% else %}<|endoftext|>{% endif %}"
)


def chat_tokenizer(folder: Path, template: str = REWARD_TEMPLATE, pad: str | None = None) -> None:
    """`byte_tokenizer` with the marks of ChatML and of steps: end 256, im_start 257, im_end 258, extra_0 259."""
    from tokenizers import Tokenizer

    byte_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<extra_0>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    said = json.loads((folder / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | ({"pad_token": pad} if pad else {})))


def reward_model(
    folder: Path,
    kind: str = "mlp",
    family: str = "qwen2",
    *,
    seed: int = 0,
    positions: int = 512,
    pad: int | None = None,
) -> Path:
    """A tiny random reward model over bytes, written with the published tensor names: mlp, process or linear."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModel

    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    shape = {"vocab_size": 272, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions}
    config = AutoConfig.for_model(family, **shape | ({"head_dim": 16} if family == "qwen3" else {}))
    model = AutoModel.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2 if p.dim() > 1 else 1 + 0.1 * torch.randn_like(p))
    tensors = {f"model.{name}": t.contiguous() for name, t in model.state_dict().items()}
    if kind == "linear":
        tensors["score.weight"] = torch.randn(1, 32)
    else:
        outputs = {"mlp": 1, "process": 2}[kind]
        tensors |= {"score.0.weight": torch.randn(32, 32) * 0.3, "score.0.bias": torch.randn(32) * 0.3}
        tensors |= {"score.2.weight": torch.randn(outputs, 32), "score.2.bias": torch.randn(outputs)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    stem = type(config).__name__.removesuffix("Config")
    named = {"mlp": "Qwen2ForRewardModel", "process": "Qwen2ForProcessRewardModel"}
    config.architectures = [named.get(kind, f"{stem}ForSequenceClassification")]
    if kind == "linear":
        config.num_labels = 1
    config.pad_token_id, config.bos_token_id, config.eos_token_id = None, None, None
    config.save_pretrained(folder)
    chat_tokenizer(folder)
    return folder
