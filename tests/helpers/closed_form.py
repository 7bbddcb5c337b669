"""What the tests of ProtoNet, ridge heads, Proto-MAML and MetaGAN share."""

from __future__ import annotations

import torch
from golden_algorithms import WAYS

QUICK = [way for way in WAYS if way != "compiled"]


def data_of(case, dtype=torch.float64):
    """Support and query set."""
    found = [case[name] for name in ("support_x", "support_y", "query_x", "query_y")]
    return [x.to(dtype) if x.is_floating_point() else x for x in found]


def grads_of(module):
    """Gradients by name, of parameters that have one."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def labelled(*shape, tasks=3, support=6, query=5, ways=3, dtype=torch.float64):
    """Samples of random values, and labels in no order, each class at least once among the support samples."""

    def samples(n):
        labels = torch.stack([torch.randperm(max(n, ways))[:n] % ways for _ in range(tasks)])
        return torch.randn(tasks, n, *shape, dtype=dtype), labels

    return [*samples(support), *samples(query)]


def with_nan(batch, task=1):
    """The batch with a NaN in the support set of one task, and the batch without that task."""
    broken = [x.clone() for x in batch]
    broken[0][task].view(-1)[0] = torch.nan
    kept = [t for t in range(len(batch[0])) if t != task]
    return broken, [x[kept] for x in batch]
