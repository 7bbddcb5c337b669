"""What the steps of `python -m bench gpu` that are modules of their own have in common."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .child import SKIPPED
from .names import DEVICES


def parser_of(description: str, *, device: str = "cuda", quick: str = "tiny sizes") -> argparse.ArgumentParser:
    """Takes --device, --out and --quick, as `gpu_steps.py` gives them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", choices=DEVICES, default=device, help="default: %(default)s")
    parser.add_argument("--out", type=Path, required=True, help="result file, JSON")
    parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def skip_on_cpu(device: str, why: str) -> None:
    """Ends the step, with its reason, where it makes no sense without a GPU."""
    if device == "cpu":
        print(why, file=sys.stderr)
        sys.exit(SKIPPED)
