"""Packaging: the folder `kernels/` is installed as `fastmeta.kernels`, everything else as it stands."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The version written in fastmeta/__init__.py, as text: an import would need torch to build."""
    text = (ROOT / "fastmeta" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('fastmeta/__init__.py must hold one line of the form __version__ = "X.Y.Z"')
    return match.group(1)


TRAIN = ["tqdm", "matplotlib", "pillow", "scikit-learn"]
BENCH = ["jax", "higher", "torchopt", "pytest-benchmark", "matplotlib"]
HUB = ["transformers", "peft"]  # networks of other libraries that benchmarks and tests run
# Formatter, linter and type checker are pinned: another version of them is another verdict on the same code.
DEV = ["pytest>=8", "hypothesis>=6.100", "pytest-xdist>=3.7", "ruff==0.17.6", "pyright==1.1.414", "setuptools>=77"]

setup(
    name="fastmeta",
    version=read_version(),
    description="Gradient-based meta-learning over all tasks at once, with exact second-order meta-gradients",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="fastmeta authors",
    license="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    package_dir={"fastmeta": "fastmeta", "fastmeta.kernels": "kernels"},
    packages=[*find_packages(include=["fastmeta", "fastmeta.*"]), "fastmeta.kernels"],
    package_data={"fastmeta": ["py.typed", "tasks/splits/*.txt", "tasks/datasets/splits/*.txt"]},
    install_requires=["torch>=2.11", 'triton>=3.6.0; sys_platform == "linux"', "numpy"],
    extras_require={"train": TRAIN, "bench": BENCH, "hub": HUB, "dev": DEV},
    entry_points={"console_scripts": ["fastmeta = fastmeta.train.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
