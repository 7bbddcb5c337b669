"""A random program by fastmeta and by the plain loop, held against each other."""

from __future__ import annotations

import math
import re
import traceback
import warnings
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from loop_truth import PlainLoop, Rule, Truth
from programs import Built, Program
from torch import nn
from torch.utils import _pytree as pytree

import fastmeta

TOLERANCE = 1e-8
LEARNERS: dict[str, type[Any]] = {"exact": fastmeta.MAML, "first": fastmeta.FOMAML, "reptile": fastmeta.Reptile}

# Errors of fastmeta's own on programs that the plain loop takes, by what they say.
REFUSALS = (
    (ValueError, r"inner_loss depends on no (trainable )?parameter"),
    (TypeError, r"model must return tensors"),
)


class Outcome(NamedTuple):
    """What came of a program: "right", "wrong", "raised", "refused", or "no truth"; and on which rung it ran."""

    verdict: str
    rung: str
    said: str


class _HeadOnly(fastmeta.MAML):
    def adapts(self, name: str) -> bool:
        return name.startswith("head")


class _FirstOrderHeadOnly(fastmeta.FOMAML):
    def adapts(self, name: str) -> bool:
        return name.startswith("head")


def optimiser(rule: Rule) -> Any:
    if rule.kind == "adam":
        return fastmeta.Adam(lr=rule.lr, betas=rule.betas, eps=rule.eps)
    return fastmeta.SGD(lr=rule.lr, momentum=rule.momentum, nesterov=rule.nesterov, weight_decay=rule.weight_decay)


def check(program: Program, *, proof: str) -> Outcome:
    """Runs both and compares task losses, outputs and meta-gradients."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if program.seed % 4 else torch.float32)  # of constants in the network
    try:
        return _check(program, proof)
    finally:
        torch.set_default_dtype(before)


def _check(program: Program, proof: str) -> Outcome:
    built = program.build()
    loop = program.loop()
    if program.queried and loop.order == "reptile":
        loop = replace(loop, order="first")  # which learners' gradients are, in either
    extra = [] if built.learned is None else [built.learned]
    plain = PlainLoop(built.make, built.inner, built.outer, loop, extra)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            # support statistics are fastmeta's own idea: its reference is the truth there, which has tests of its own
            truth = (
                _run(program, built, "off", "reference")[1] if program.statistics == "support" else plain(*built.data)
            )
        except Exception as error:
            truth, reason = None, f"{type(error).__name__}: {error}"
    if truth is not None and not _finite(truth):
        return Outcome("no truth", "", "not finite")
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            net, got, rung = _run(program, built, proof)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if truth is None:
                return Outcome("no truth", "", reason)
            if any(isinstance(error, kind) and re.search(text, str(error)) for kind, text in REFUSALS):
                return Outcome("refused", "", said)
            return Outcome("raised", "", f"{said}\n{traceback.format_exc()}")
    if truth is None:
        return Outcome("no truth", rung, reason)
    doubts = [str(w.message) for w in warned if "differs" in str(w.message) or "proof" in str(w.message)]
    if doubts:
        return Outcome("wrong", rung, f"the proof: {doubts[0]}")
    wrong = _foreign(net, built.make()) or differs(got, truth, lambda: plain_beside(plain, built))
    return Outcome("wrong" if wrong else "right", rung, wrong)


def plain_beside(plain: PlainLoop, built: Built) -> Truth:
    """The truth at weights a few roundings away: how far two right results may lie apart."""
    before = built.make

    def make() -> nn.Module:
        net = before()
        with torch.no_grad():
            for i, p in enumerate(net.parameters()):
                p.mul_(1 + 1e-15 * (3 + i % 5))
        return net

    other = PlainLoop(make, built.inner, built.outer, plain.loop, plain.extra)
    return other(*built.data)


def _run(program: Program, built: Built, proof: str, backend: str = "torch") -> tuple[nn.Module, Truth, str]:
    loop, net = program.loop(), built.make()
    kind = LEARNERS[loop.order]
    if loop.adapts:
        kind = _HeadOnly if loop.order == "exact" else _FirstOrderHeadOnly
    learner = kind(
        net, inner_loss=built.inner(net), outer_loss=built.outer(net), inner_optimizer=optimiser(loop.rule),
        inner_steps=loop.steps, inner_batch_size=loop.batch, inner_clip_norm=loop.clip, proof=proof,
        backend=backend, bn_statistics=program.statistics,
        memory="recompute" if program.flag(7) else "save",
        task_chunk=1 if program.flag(8) and program.flag(9) else None,
    )  # fmt: skip
    if built.learned is not None:
        built.learned.grad = None
    if program.queried:
        return net, _adapt_then_query(learner, built), _rung(learner)
    out = learner(*built.data)
    out.loss.backward()
    outputs = [
        pytree.tree_map_only(torch.Tensor, lambda x, t=t: x[t], out.outputs) for t in range(len(out.task_losses))
    ]
    return net, Truth(out.task_losses.detach(), outputs, _grads(net), _extra(built)), _rung(learner)


def _adapt_then_query(learner: Any, built: Built) -> Truth:
    """With the outer loss by the user's own hand."""
    sx, sy, qx, qy = built.data
    outputs = learner.adapt(sx, sy)(qx)
    loss = built.outer(learner.module)
    each = [pytree.tree_map_only(torch.Tensor, lambda x, t=t: x[t], outputs) for t in range(len(qy))]
    losses = torch.stack([loss(out, qy[t]) for t, out in enumerate(each)])
    losses.mean().backward()
    plain = [pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, out) for out in each]
    return Truth(losses.detach(), plain, _grads(learner.module), _extra(built))


def _grads(net: nn.Module) -> dict[str, torch.Tensor]:
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for n, p in net.named_parameters()
        if p.requires_grad
    }


def _extra(built: Built) -> list[torch.Tensor]:
    if built.learned is None:
        return []
    return [torch.zeros_like(built.learned) if built.learned.grad is None else built.learned.grad.clone()]


def _rung(learner: Any) -> str:
    text = learner.explain()
    if "task by task under plain autograd" in text:
        return "task by task"
    return "opaque" if "opaque through torch.func: " in text else "own sweeps"


def _finite(truth: Truth) -> bool:
    """Nor so large that a difference of outputs has no digit left."""
    outputs = [x for x in pytree.tree_leaves(truth.outputs) if isinstance(x, torch.Tensor)]
    return all(bool((x.abs() < 1e5).all()) for x in (truth.losses, *truth.grads.values(), *truth.extra, *outputs))


def _foreign(net: nn.Module, before: nn.Module) -> str:
    """What of the user's network is not as it was."""
    for a, b in zip(net.modules(), before.modules(), strict=True):
        for name, tensor in (*a._buffers.items(), *((k, v) for k, v in vars(a).items() if isinstance(v, torch.Tensor))):
            if tensor is None:
                continue
            old = b._buffers[name] if name in b._buffers else vars(b).get(name)
            if not isinstance(old, torch.Tensor) or type(tensor) is not type(old) or not tensor.equal(old):
                return f"the module's {name} is {tensor!r} afterwards, and was {old!r}"
        if vars(a).keys() != vars(b).keys():
            return f"the module's attributes are {sorted(vars(a).keys() ^ vars(b).keys())} more or less than before"
    for (name, p), (_, q) in zip(net.named_parameters(), before.named_parameters(), strict=True):
        if type(p) is not nn.Parameter or not p.equal(q):
            return f"the parameter {name} has changed"
    return ""


def differs(got: Truth, truth: Truth, beside: Any) -> str:
    """By how much results are apart, where that is more than rounding."""
    found = _errors(got, truth)
    if max(found.values()) <= TOLERANCE:
        return ""
    spread = _errors(beside(), truth)
    bad = {k: v for k, v in found.items() if not v <= max(TOLERANCE, 1e3 * spread[k])}
    return ", ".join(f"{k} {v:.1e}" for k, v in bad.items())


def _errors(got: Truth, truth: Truth) -> dict[str, float]:
    def apart(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
        if [x.shape for x in a] != [x.shape for x in b]:
            return float("inf")
        a, b = [
            torch.cat([torch.view_as_real(x).flatten() if x.is_complex() else x.double().flatten() for x in xs])
            for xs in (a, b)
        ]
        return float((a - b).norm() / b.norm().clamp_min(1e-6)) if len(a) else 0.0

    leaves = [[x for x in pytree.tree_leaves(y) if isinstance(x, torch.Tensor)] for y in (got.outputs, truth.outputs)]
    found = {"losses": apart([got.losses], [truth.losses]), "outputs": apart(*leaves)}
    names = list(truth.grads)
    found["gradient"] = apart([got.grads[n] for n in names], [truth.grads[n] for n in names])
    if truth.extra:
        found["gradient of the loss's own"] = apart(got.extra, truth.extra)
    return {k: float("inf") if math.isnan(v) else v for k, v in found.items()}
