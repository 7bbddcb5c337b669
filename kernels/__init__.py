"""Triton kernels, one file per op, named as in `fastmeta/ops`; README.md holds naming and derivations."""
