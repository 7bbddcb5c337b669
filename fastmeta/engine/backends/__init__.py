"""What runs a meta-step: torch ops, eager or compiled, Triton kernels, CUDA graphs. Only here do ops meet kernels."""
