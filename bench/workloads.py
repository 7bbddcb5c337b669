"""What is measured: a model, a batch of tasks and an inner loop, at sizes of the literature and for two cores.

All models are `nn.Sequential`s of well-known layers, so that a peer outside PyTorch can read them layer by
layer. Losses are means over a task's samples. Conv4 data are standard-normal images: speed does not depend on
their content, and batch norm in every block keeps values in the range that real images give.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmeta.models import siren
from fastmeta.tasks import Episodes, Sinusoid

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


def sinusoid_mlp(width: int) -> nn.Sequential:
    """1-width-width-1 with ReLU; 40 wide in Finn et al. 2017, section 5.1."""
    return nn.Sequential(nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))


def conv4(*, in_channels: int, channels: int, image: int, ways: int) -> nn.Sequential:
    """Four blocks of 3×3 convolution, batch norm, ReLU and 2×2 max-pool, then a linear head."""
    side = image // 16
    blocks = [_block(c, channels, padding=1) for c in (in_channels, channels, channels, channels)]
    return nn.Sequential(*(m for block in blocks for m in block), nn.Flatten(), nn.Linear(channels * side**2, ways))


def conv3(channels: int) -> nn.Sequential:
    """Three blocks without padding and a head of 5 on 28×28: torchbench's `functorch_maml_omniglot`."""
    blocks = [_block(c, channels, padding=0) for c in (1, channels, channels)]
    return nn.Sequential(*(m for block in blocks for m in block), nn.Flatten(), nn.Linear(channels, 5))


def _block(inputs: int, outputs: int, *, padding: int) -> list[nn.Module]:
    norm = nn.BatchNorm2d(outputs, track_running_stats=False)
    return [nn.Conv2d(inputs, outputs, 3, padding=padding), norm, nn.ReLU(), nn.MaxPool2d(2)]


def omniglot_model(channels: int) -> nn.Sequential:
    """Conv4 on 28×28 grey images, 5 classes."""
    return conv4(in_channels=1, channels=channels, image=28, ways=5)


def omniglot_20_model(channels: int) -> nn.Sequential:
    """Conv4 on 28×28 grey images, 20 classes."""
    return conv4(in_channels=1, channels=channels, image=28, ways=20)


def mini_model(channels: int) -> nn.Sequential:
    """Conv4 on 84×84 colour images, 5 classes."""
    return conv4(in_channels=3, channels=channels, image=84, ways=5)


def siren_model(width: int) -> nn.Sequential:
    """2-width-width-width-3 with sin(30 x) (Sitzmann et al. 2020)."""
    return siren(width=width)


@dataclass(frozen=True)
class Workload:
    """One row of the benchmark.

    Attributes:
        make_model: builds the model of a width in float32, under the caller's random state.
        sample_shape: shape of one input.
        loss: key of LOSSES.
        tasks, support, query, steps: T, N, M, K.
        lr: inner learning rate α.
        width: units of the hidden layers.
        outputs: classes, or features of a target.
        distinct: a batch of more tasks, and a multiple of them, repeats these: no speed depends on it, and the float64
            truth of a large batch is that of a small one.
        data_seed: which batch. Where one rounding error can push a pre-activation across a ReLU's kink or swap a
            pool's winner, correct float32 gradients differ by up to 3 % in one step and 20 % in five (on seed 1 of
            mini-5w1s two candidates of a pool lie 4e-7 apart), so the batch is one that keeps a margin: of seeds 1 to
            8 the one whose gradient is least moved by noise in the weights' last bits (`python -m bench.margin`).
        on_cpu: what two cores take instead: some of tasks, support, query.
    """

    name: str
    make_model: Callable[[int], nn.Sequential]
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

    def model(self, seed: int = 0) -> nn.Sequential:
        """The model with the weights that `seed` gives; the caller's random state stays as it is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model(self.width)

    def batch(self, seed: int | None = None) -> Episodes:
        """A meta-batch: float32 inputs [T, N or M, *sample_shape]; float32 targets or int64 labels."""
        once = self.unrepeated().tasks
        generator = torch.Generator().manual_seed(self.data_seed if seed is None else seed)
        episodes = self._episodes(max(once, self.distinct), generator)  # few tasks are the first ones of more
        return Episodes(*(x[:once].repeat(self.tasks // once, *(1 for _ in x.shape[1:])) for x in episodes))

    def _episodes(self, tasks: int, generator: torch.Generator) -> Episodes:
        if self.sample_shape == (1,):
            return Sinusoid(shots=self.support, queries=self.query).sample(tasks, generator)
        halves = []
        for count in (self.support, self.query):
            x = torch.randn(tasks, count, *self.sample_shape, generator=generator)
            if self.loss == "mse":  # colours in [-1, 1] at places in [-1, 1]
                x = torch.rand(x.shape, generator=generator) * 2 - 1
                halves += [x, torch.rand(tasks, count, self.outputs, generator=generator) * 2 - 1]
            else:
                halves += [x, (torch.arange(count) % self.outputs).expand(tasks, count).contiguous()]
        return Episodes(*halves)


def _sinusoid(name: str, *, tasks: int, steps: int) -> Workload:
    # Finn et al. 2017, section 5.1; lr 0.01, as in their code.
    return Workload(
        name, sinusoid_mlp, (1,), "mse", tasks=tasks, support=10, query=10, steps=steps, lr=0.01, width=40, outputs=1
    )


def _mini(name: str, *, support: int, data_seed: int, on_cpu: int) -> Workload:
    # lr 0.05: 0.01 of the MAML paper, whose code sums over the five samples.
    return Workload(
        name, mini_model, (3, 84, 84), "cross_entropy", tasks=4, support=support, query=75, steps=5, lr=0.05, width=32,
        outputs=5, distinct=2, data_seed=data_seed, on_cpu=(("tasks", on_cpu),),
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
            "omniglot-5w1s", omniglot_model, (1, 28, 28), "cross_entropy", tasks=8, support=5, query=25, steps=1,
            lr=0.1, width=64, outputs=5, distinct=8, data_seed=2,
        ),
        Workload(
            "omniglot-20w1s", omniglot_20_model, (1, 28, 28), "cross_entropy", tasks=32, support=20, query=20, steps=5,
            lr=0.1, width=64, outputs=20, distinct=2, data_seed=2, on_cpu=(("tasks", 2),),
        ),
        # 5 ways, 5 shots: the sizes of functorch's example, which torchbench runs
        Workload(
            "torchbench-maml", conv3, (1, 28, 28), "cross_entropy", tasks=32, support=25, query=75, steps=5, lr=0.1,
            width=64, outputs=5, distinct=2, data_seed=2, on_cpu=(("tasks", 2),),
        ),
        _mini("mini-5w1s", support=5, data_seed=5, on_cpu=2),
        _mini("mini-5w5s", support=25, data_seed=4, on_cpu=1),
        # Tancik et al. 2021: pictures as functions of the place, 64 × 64 pixels; 32 × 32 on a CPU
        Workload(
            "siren-64", siren_model, (2,), "mse", tasks=16, support=4096, query=4096, steps=3, lr=1e-2, width=256,
            outputs=3, distinct=2, on_cpu=(("tasks", 2), ("support", 1024), ("query", 1024)),
        ),
    )
}  # fmt: skip


def workloads_for(device: str) -> list[str]:
    """All, but on a CPU not the one of which a plain loop takes a minute a step."""
    return [name for name in WORKLOADS if device == "cuda" or name != "sinusoid-10k"]
