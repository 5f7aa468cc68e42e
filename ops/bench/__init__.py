"""Floor 6: kernels measured: cases, roofs, providers, runs and the verdict over two of them."""
