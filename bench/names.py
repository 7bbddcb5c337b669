"""Names that options take. No torch here: the command line reads them before it limits the threads of libraries."""

from __future__ import annotations

ALGORITHMS = ("maml", "fomaml", "reptile")
"""Those that every peer may have: `peers.py`."""
OTHERS = ("meta-sgd", "anil", "maml++", "imaml", "cavia", "siren-latent", "protonet", "protonet-separate")
"""Those with peers of their own: a file each in `algorithms/`."""
AXES = ("tasks", "steps", "width")
DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "tf32", "bfloat16")
TARGETS = ("sm_80", "sm_90", "sm_100")
"""GPUs that kernels are compiled for without one: A100, H100 and H200, B200."""
