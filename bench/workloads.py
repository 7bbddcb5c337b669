"""What is measured: a network, a batch of tasks and an inner loop, at sizes of the literature and for two cores.

This is the one table of workloads: the benchmark, the kernels' figures (`bench/kernels/`) and the predictions read it.
Sizes are those of the literature, for a GPU; `on_cpu` says what two cores take instead. Losses are means over a task's
samples. Images are standard-normal: speed does not depend on their content, and batch norm in every block keeps values
in the range that real images give.

The table itself needs no torch, so that the command line can read names before it limits the threads of libraries;
`model` and `batch` import it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from fastmeta.tasks import Episodes


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark.

    Attributes:
        network: key of `networks.NETWORKS`.
        sample_shape: shape of one input.
        loss: key of `networks.LOSSES`.
        tasks, support, query, steps: T, N, M, K.
        lr: inner learning rate α.
        width: units of the hidden layers, or filters.
        outputs: classes, or features of a target.
        distinct: a batch of more tasks, and a multiple of them, repeats these: no speed depends on it, and the float64
            truth of a large batch is that of a small one.
        data_seed: which batch. Where one rounding error can push a pre-activation across a ReLU's kink or swap a
            pool's winner, correct float32 gradients differ by up to 3 % in one step and 20 % in five (on seed 1 of
            mini-5w1s two candidates of a pool lie 4e-7 apart), so the batch is one that keeps a margin: of seeds 1 to
            8 the one whose gradient is least moved by noise in the weights' last bits (`python -m bench.margin`).
        words: inputs are words of a vocabulary of so many; 0: they are numbers.
        on_cpu: what two cores take instead: some of tasks, support, query.
    """

    name: str
    network: str
    sample_shape: tuple[int, ...]
    loss: str
    tasks: int
    support: int
    query: int
    steps: int
    lr: float
    width: int
    outputs: int
    distinct: int = 100
    data_seed: int = 1
    words: int = 0
    on_cpu: tuple[tuple[str, int], ...] = ()

    def sized_for(self, device: str) -> Workload:
        """This workload, on a CPU at its smaller size."""
        smaller: dict[str, int] = dict(self.on_cpu) if device == "cpu" else {}
        return replace(self, tasks=smaller.get("tasks", self.tasks), support=smaller.get("support", self.support),
                       query=smaller.get("query", self.query))  # fmt: skip

    def small(self) -> Workload:
        """The same model and inner loop on at most 2 tasks, 10 queries and 2 steps: a smoke test."""
        tasks, query, steps = min(self.tasks, 2), min(self.query, 10), min(self.steps, 2)
        return replace(self, name=f"{self.name}-small", tasks=tasks, query=query, steps=steps)

    def unrepeated(self) -> Workload:
        """One round of the tasks that the batch repeats: the same mean over tasks."""
        repeats = self.tasks > self.distinct and self.tasks % self.distinct == 0
        return replace(self, tasks=self.distinct) if repeats else self

    def model(self, seed: int = 0) -> nn.Module:
        """The model with the weights that `seed` gives; the caller's random state stays as it is.

        Raises:
            ModuleNotFoundError: the network is of a package that is not installed.
        """
        from .networks import build

        return build(self.network, self.width, seed)

    def batch(self, seed: int | None = None) -> Episodes:
        """A meta-batch: inputs [T, N or M, *sample_shape], float32 or int64 words; float32 targets or int64 labels."""
        from .data import batch

        return batch(self, self.data_seed if seed is None else seed)


def _sinusoid(name: str, *, tasks: int, steps: int) -> Workload:
    # Finn et al. 2017, section 5.1; lr 0.01, as in their code.
    return Workload(
        name, "sinusoid-mlp", (1,), "mse", tasks=tasks, support=10, query=10, steps=steps, lr=0.01, width=40, outputs=1
    )


def _mini(name: str, *, support: int, data_seed: int, on_cpu: int) -> Workload:
    # lr 0.05: 0.01 of the MAML paper, whose code sums over the five samples.
    return Workload(
        name, "conv4-mini", (3, 84, 84), "cross_entropy", tasks=4, support=support, query=75, steps=5, lr=0.05,
        width=32, outputs=5, distinct=2, data_seed=data_seed, on_cpu=(("tasks", on_cpu),),
    )  # fmt: skip


def _siren(name: str, *, tasks: int, pixels: int, on_cpu: tuple[tuple[str, int], ...] = ()) -> Workload:
    # Tancik et al. 2021: pictures as functions of the place
    return Workload(
        name, "siren", (2,), "mse", tasks=tasks, support=pixels, query=pixels, steps=3, lr=1e-2, width=256, outputs=3,
        distinct=2, on_cpu=on_cpu,
    )  # fmt: skip


WORKLOADS = {
    workload.name: workload
    for workload in (
        _sinusoid("sinusoid", tasks=25, steps=5),
        _sinusoid("sinusoid-k1", tasks=25, steps=1),
        _sinusoid("sinusoid-1k", tasks=1000, steps=5),
        _sinusoid("sinusoid-10k", tasks=10_000, steps=5),
        # lr 0.1: what the Omniglot examples of higher, TorchOpt and functorch use.
        Workload(
            "omniglot-5w1s", "conv4-omniglot-5", (1, 28, 28), "cross_entropy", tasks=8, support=5, query=25, steps=1,
            lr=0.1, width=64, outputs=5, distinct=8, data_seed=2,
        ),
        Workload(
            "omniglot-20w1s", "conv4-omniglot-20", (1, 28, 28), "cross_entropy", tasks=32, support=20, query=20,
            steps=5, lr=0.1, width=64, outputs=20, distinct=2, data_seed=2, on_cpu=(("tasks", 2),),
        ),
        # 5 ways, 5 shots: the sizes of functorch's example, which torchbench runs
        Workload(
            "torchbench-maml", "conv3-torchbench", (1, 28, 28), "cross_entropy", tasks=32, support=25, query=75,
            steps=5, lr=0.1, width=64, outputs=5, distinct=2, data_seed=2, on_cpu=(("tasks", 2),),
        ),
        _mini("mini-5w1s", support=5, data_seed=5, on_cpu=2),
        _mini("mini-5w5s", support=25, data_seed=4, on_cpu=1),
        _siren("siren-64", tasks=16, pixels=4096, on_cpu=(("tasks", 2), ("support", 1024), ("query", 1024))),
        _siren("siren-8", tasks=1, pixels=64),
        # Sandler et al. 2018, on small images: 5 ways, 2 shots
        Workload(
            "mobilenet", "mobilenet", (3, 32, 32), "cross_entropy", tasks=16, support=10, query=15, steps=2, lr=0.05,
            width=16, outputs=5, distinct=4, on_cpu=(("tasks", 4), ("query", 10)),
        ),
        # Hu et al. 2022: the next word, with adapters alone moving; needs the extra `hub`
        Workload(
            "lora-gpt2", "lora-gpt2", (16,), "cross_entropy", tasks=16, support=10, query=10, steps=2, lr=0.05,
            width=64, outputs=100, distinct=4, words=100, on_cpu=(("tasks", 4),),
        ),
    )
}  # fmt: skip


NOT_TIMED = ("siren-8",)
"""As much of `siren-64` as Triton's interpreter can run: its launches and bytes are counted."""


def workloads_for(device: str) -> list[str]:
    """All that are timed, but on a CPU not the one of which a plain loop takes a minute a step."""
    return [name for name in WORKLOADS if name not in NOT_TIMED and (device == "cuda" or name != "sinusoid-10k")]
