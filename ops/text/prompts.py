"""The exact strings of the Qwen3 Embedding report (arXiv 2506.05176) and its model cards."""

EMBED_DEFAULT_TASK = "Given a web search query, retrieve relevant passages that answer the query"
#: pads, and ends every text that Qwen3-Embedding reads
EMBED_EOS = "<|endoftext|>"


def embed_query_prompt(task: str, query: str) -> str:
    """A query as Qwen3-Embedding was trained to read it: no space after `Query:`."""
    return f"Instruct: {task}\nQuery:{query}"
