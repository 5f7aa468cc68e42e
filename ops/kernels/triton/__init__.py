"""The Triton kernels of CUDA, which an interpreter runs on the CPU in tests."""
