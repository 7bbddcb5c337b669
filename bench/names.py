"""Names that options take. No torch here: the command line reads them before it limits the threads of libraries."""

from __future__ import annotations

ALGORITHMS = ("maml", "fomaml", "reptile")
AXES = ("tasks", "steps", "width")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "tf32", "bfloat16")
TARGETS = ("sm_80", "sm_90", "sm_100")
"""GPUs that kernels are compiled for without one: A100, H100 and H200, B200."""
