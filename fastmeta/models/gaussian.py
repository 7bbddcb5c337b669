"""A network whose weights are Gaussian, each with a mean and a standard deviation of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastmeta.internals import pytree


class Gaussian(nn.Module):
    """Weights w = μ + σ ε of a network, for `fastmeta.ABML`: parameters `mean.*`, the network's own, and `log_std.*`.

    Frozen parameters and buffers are as they are.

    Args:
        model: the network; its parameters are the means.
        log_std: log σ starts uniformly between these two, from PyTorch's global generator.

    Raises:
        ValueError: the network has no trainable parameter, or `log_std` is no range.
    """

    inner_step: Tensor

    def __init__(self, model: nn.Module, *, log_std: tuple[float, float] = (-4.0, -3.0)) -> None:
        super().__init__()
        low, high = log_std
        if not low <= high:
            raise ValueError(f"log_std must be two numbers, the smaller first, got {log_std}")
        names = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not names:
            raise ValueError("model must have a trainable parameter, got none; set requires_grad=True on some")
        self.mean = model
        self.log_std = _Tree()
        for name, p in names.items():
            self.log_std.put(name, nn.Parameter(torch.empty_like(p).uniform_(low, high)))
        first = next(iter(names.values()))
        # which row of the noise a step reads: fastmeta says so, and ABML makes it as long as there are steps
        self.register_buffer("inner_step", first.new_zeros(1, requires_grad=False), persistent=False)

    @property
    def noise_size(self) -> int:
        """D, how many numbers ε a network takes: one for every weight that is Gaussian."""
        return sum(p.numel() for p in self.log_std.parameters())

    def forward(self, *args: Any, noise: Tensor | None = None, inputs: Any = None, **kwargs: Any) -> Any:
        """The network's outputs at weights drawn, or at the means.

        Args:
            args, kwargs: what the network takes.
            noise: ε of S networks: [K, S, D], of which the row of the inner step is taken, or [1, S, D]. None: ε = 0.
            inputs: in their place, what the network takes as a tensor, a tuple or a dict, for a call by names.

        Returns:
            The network's outputs; with noise those of S networks, each tensor [S, ...].
        """
        if inputs is not None:
            args, kwargs = _arguments(inputs)
        if noise is None:
            return self.mean(*args, **kwargs)
        if noise.dim() != 3 or noise.shape[0] not in (1, len(self.inner_step)) or noise.shape[2] != self.noise_size:
            raise ValueError(
                f"noise must have shape [{len(self.inner_step)} or 1, samples, {self.noise_size}], got "
                f"{list(noise.shape)}"
            )
        eps = noise[0] if noise.shape[0] == 1 else (self.inner_step @ noise.flatten(1)).view(noise.shape[1:])
        weights = self._drawn(eps)
        outputs = [
            functional_call(self.mean, {name: w[s] for name, w in weights.items()}, args, kwargs)
            for s in range(len(eps))
        ]
        return pytree.tree_map(_stack, *outputs)

    def _drawn(self, eps: Tensor) -> dict[str, Tensor]:
        """Weights [S, *shape] by name, of ε [S, D]."""
        means, drawn, at = dict(self.mean.named_parameters()), {}, 0
        for name, log_std in self.log_std.named_parameters():
            size = log_std.numel()
            drawn[name] = means[name] + log_std.exp() * eps[:, at : at + size].view(-1, *log_std.shape)
            at += size
        return drawn


class _Tree(nn.Module):
    """Parameters under the dotted names of another module's."""

    def put(self, name: str, p: nn.Parameter) -> None:
        """Under its name, with a module for every part of it."""
        module: nn.Module = self
        *path, last = name.split(".")
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, p)


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, dict):
        return (), inputs
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def _stack(*ys: Any) -> Any:
    return ys[0] if not isinstance(ys[0], Tensor) else torch.stack(_tensors(ys))


def _tensors(ys: Iterable[Any]) -> list[Tensor]:
    return list(ys)
