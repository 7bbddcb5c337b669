"""The Triton kernels without a GPU: compiled ahead of time, and counted in the interpreter."""
