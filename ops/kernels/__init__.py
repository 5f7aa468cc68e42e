"""Floor: the kernels of a decoder, each with a reference, and what a machine could reach at best."""
