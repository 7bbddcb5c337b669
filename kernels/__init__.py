"""Triton kernels, one file per op, under the names of `fastmeta/ops`. README.md holds naming and derivations."""
