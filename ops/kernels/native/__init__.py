"""The C kernels of the CPU: built once, loaded, called."""
