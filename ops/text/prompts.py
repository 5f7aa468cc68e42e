"""The exact strings of Qwen3 Embedding (arXiv 2506.05176) and of the model cards of its models."""

EMBED_DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"
#: pads, and ends every text that Qwen3-Embedding reads
EMBED_EOS = "<|endoftext|>"


def embed_query_prompt(task: str, query: str) -> str:
    """A query as Qwen3-Embedding was trained to read it: no space after `Query:`."""
    return f"Instruct: {task}\nQuery:{query}"


#: Qwen3-Reranker's model card; both ends are special tokens, so parts tokenise alone as they do together
RERANK_PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
RERANK_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
RERANK_DEFAULT_INSTRUCTION = EMBED_DEFAULT_TASK
RERANK_YES, RERANK_NO = "yes", "no"
#: the published pair test: question i is answered by document i
RERANK_SELFTEST = (
    ("What is the capital of China?", "Explain gravity"),
    (
        "The capital of China is Beijing.",
        "Gravity is a force that attracts two bodies towards each other. It gives weight to physical objects and "
        "is responsible for the movement of planets around the sun.",
    ),
)
