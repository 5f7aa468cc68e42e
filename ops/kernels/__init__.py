"""Floor 2: the kernels of a decoder, each with a reference, and which of them a model runs on."""
