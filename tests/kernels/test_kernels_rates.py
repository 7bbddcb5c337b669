"""Learning rates as arguments of both launchers, and their gradients, against float64 truth by plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from kernel_runs import DEVICE, needs_kernels
from torch import Tensor

pytestmark = needs_kernels


class Rule(NamedTuple):
    """An inner optimiser, as the kernels are told of it."""

    name: str
    hyper: tuple[float, float, float]


RULES = {
    "sgd": Rule("sgd", (0.0, 0.0, 0.0)),
    "nesterov": Rule("sgd", (0.9, 1.0, 0.1)),
    "adam": Rule("adam", (0.9, 0.99, 0.1)),  # with a small ε, g / (|g| + ε) is rounding where g is small
}


class Net(NamedTuple):
    """A network on the kernels, and its loss of one task as a function of a row of parameters."""

    launcher: Callable[..., Any]  # of a rule, steps, batch
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    pieces: tuple[tuple[int, ...], ...]  # shapes of the parameters, in their order in a row
    inputs: tuple[int, ...]  # shape of a sample
    outputs: int
    labels: bool

    @property
    def places(self) -> list[slice]:
        """Where the parameters lie: each begins at a multiple of four values."""
        places, at = [], 0
        for shape in self.pieces:
            size = torch.Size(shape).numel()
            places.append(slice(at, at + size))
            at += -(-size // 4) * 4
        return places

    @property
    def size(self) -> int:
        return -(-self.places[-1].stop // 4) * 4

    @property
    def used(self) -> Tensor:
        """Which values of a row are no padding."""
        used = torch.zeros(self.size, dtype=torch.bool)
        for place in self.places:
            used[place] = True
        return used

    def parameters(self, row: Tensor) -> list[Tensor]:
        return [row[place].view(shape) for place, shape in zip(self.places, self.pieces, strict=True)]

    def theta(self) -> Tensor:
        return torch.where(self.used, torch.randn(self.size) / 2, 0.0)

    def batch(self, tasks: int = 2, support: int = 5, query: int = 3) -> list[Tensor]:
        """Support x, y and query x, y."""
        found = []
        for samples in (support, query):
            y = torch.randn(tasks, samples, self.outputs)
            labels = (torch.arange(samples) % self.outputs).expand(tasks, -1).contiguous()
            found += [torch.randn(tasks, samples, *self.inputs), labels if self.labels else y]
        return found

    def run(self, rule: Rule, theta: Tensor, batch: list[Tensor], rates: Tensor, **options: Any) -> dict[str, Tensor]:
        """What the kernels give: φ_K, u_k, the rates' gradients, λ_0, and which tasks stayed finite."""
        x, y, qx, qy = (tensor.to(DEVICE) for tensor in batch)
        steps, tasks = rates.shape[0], x.shape[0]
        kernels = self.launcher(rule, steps, options.pop("inner_batch", None), **options)
        rates = rates.to(DEVICE)
        directions = torch.full((steps, tasks, self.size), torch.nan, device=DEVICE)
        adapted = kernels.adapt([theta.to(DEVICE)], x, y, rates=rates, keep=True, directions=directions)
        found = {"phi": adapted.final(tasks, steps).clone(), "u": directions.clone()}
        lam = torch.empty(tasks, self.size, device=DEVICE)
        kernels.apply(adapted, steps, qx, qy, _loss_rule(self), lam=lam)
        finite = torch.empty(tasks, dtype=torch.uint8, device=DEVICE)
        kernels.adjoint(adapted, lam, x, y, rates=rates, finite=finite, directions=directions)
        return {name: t.cpu() for name, t in (found | {"rates": directions, "lam": lam, "finite": finite}).items()}

    def truth(
        self, rule: Rule, theta: Tensor, batch: list[Tensor], rates: Tensor, dtype: torch.dtype, *,
        inner_batch: int | None = None, hessian: bool = True,
    ) -> dict[str, Tensor]:  # fmt: skip
        """The same by autograd, one task at a time; "late" is what the gradient would be with λ_k for λ_{k+1}."""
        steps, rows = rates.shape[0], []
        for x, y, qx, qy in zip(*(t.to(dtype) if t.is_floating_point() else t for t in batch), strict=True):
            alpha = (rates if rates.dim() > 1 else rates[:, None].expand(-1, self.size)).to(dtype)
            alpha = alpha.where(self.used, 0.0).requires_grad_()
            phis, us, state = [theta.to(dtype, copy=True).requires_grad_()], [], ()
            for k in range(steps):
                at = (torch.arange(inner_batch or len(x)) + k * (inner_batch or len(x))) % len(x)
                (g,) = torch.autograd.grad(self.loss(phis[k], x[at], y[at]), phis[k], create_graph=True)
                u, state = _direction(rule, phis[k], g if hessian else g.detach(), state, k)
                us.append(u)
                phis.append(phis[k] - alpha[k] * u)
            *lams, gradient = torch.autograd.grad(self.loss(phis[-1], qx, qy), [*phis, alpha])
            late = torch.stack([-lam * u for lam, u in zip(lams, us, strict=False)])
            rows.append({"phi": phis[-1], "u": torch.stack(us), "rates": gradient, "lam": lams[0], "late": late})
        joined = {name: torch.stack([row[name] for row in rows]).detach() for name in rows[0]}
        return {name: t.transpose(0, 1) if t.dim() == 3 else t for name, t in joined.items()}


def _direction(rule: Rule, phi: Tensor, g: Tensor, state: tuple[Tensor, ...], k: int) -> tuple[Tensor, Any]:
    """u_k and the optimiser's state, as PyTorch's optimisers have them."""
    first, second, third = rule.hyper
    if rule.name == "sgd":
        d = g + third * phi
        b = d + first * state[0] if state else d
        return d + first * b if second else b, (b,)
    m, v = state or (torch.zeros_like(g), torch.zeros_like(g))
    m, v = first * m + (1 - first) * g, second * v + (1 - second) * g * g
    root = torch.where(v > 0, v, 1.0).sqrt() * (v > 0) / (1 - second ** (k + 1)) ** 0.5
    return m / (1 - first ** (k + 1)) / (root + third), (m, v)


def _loss_rule(net: Net) -> Any:
    from fastmeta.kernels.description import LossRule

    return LossRule("cross_entropy" if net.labels else "mse")


def perceptron(*widths: int, loop: bool) -> Net:
    """Tangents hyperbolic between linear layers: in one launch, or layer by layer."""
    pieces = [shape for i, o in pairwise(widths) for shape in ((o, i), (o,))]

    def loss(row: Tensor, x: Tensor, y: Tensor) -> Tensor:
        parameters = net.parameters(row)
        for at in range(0, len(parameters), 2):
            x = F.linear(x if at == 0 else x.tanh(), *parameters[at : at + 2])
        return F.mse_loss(x, y)

    def launcher(rule: Rule, steps: int, batch: int | None, save: bool = True) -> Any:
        from fastmeta.kernels.activation import KINDS
        from fastmeta.kernels.description import Act, Chain, InnerRule, Linear, Network
        from fastmeta.kernels.layerwise import Layerwise
        from fastmeta.kernels.mlp import MLP

        inner, layers = InnerRule(*rule, steps, batch), len(widths) - 1
        at = [place.start for place in net.places]
        acts = [KINDS.index("tanh")] * (layers - 1) + [KINDS.index("identity")]
        if loop:
            chain = Chain(widths, tuple(at[::2]), tuple(at[1::2]), tuple(acts), (0.0,) * 2 * layers, net.size)
            return MLP(chain, inner, _loss_rule(net), "float32")
        stages = tuple(Linear(widths[i], widths[i + 1], at[2 * i], at[2 * i + 1], Act(acts[i])) for i in range(layers))
        network = Network(stages, tuple((i - 1,) for i in range(layers)), net.size)
        return Layerwise(network, inner, _loss_rule(net), "float32", save)

    net = Net(launcher, loss, tuple(pieces), (widths[0],), widths[-1], labels=False)
    return net


def convolutional(*, pool: bool) -> Net:
    """A convolution with bias, batch norm, tanh and perhaps a maximum, then a linear layer; 5 × 5 pixels, 3 classes.

    With the maximum z is not stored but convolved again (`convolves_again`).
    """
    inputs, filters, side, classes = 2, 3, 5, 3
    out = side // 2 if pool else side
    features = out * out * filters
    pieces = ((filters, 3, 3, inputs), (filters,), (filters,), (filters,), (classes, features), (classes,))

    def loss(row: Tensor, x: Tensor, y: Tensor) -> Tensor:
        w, b, gamma, beta, head, head_bias = net.parameters(row)
        z = F.conv2d(x.permute(0, 3, 1, 2), w.permute(0, 3, 1, 2), b, padding=1)
        mean, var = z.mean((0, 2, 3), keepdim=True), z.var((0, 2, 3), keepdim=True, correction=0)
        a = (z - mean) * (var + 1e-5).rsqrt() * gamma[:, None, None] + beta[:, None, None]
        a = F.max_pool2d(a.tanh(), 2) if pool else a.tanh()
        return F.cross_entropy(F.linear(a.permute(0, 2, 3, 1).flatten(1), head, head_bias), y)

    def launcher(rule: Rule, steps: int, batch: int | None, save: bool = True) -> Any:
        from fastmeta.kernels.activation import KINDS
        from fastmeta.kernels.description import Act, Conv, InnerRule, Linear, Network
        from fastmeta.kernels.layerwise import Layerwise

        w, b, gamma, beta, head, head_bias = (place.start for place in net.places)
        conv = Conv(side, side, inputs, filters, 3, 1, 1, w, b, True, 1e-5, gamma, beta, Act(KINDS.index("tanh")),
                    "max" if pool else "none")  # fmt: skip
        network = Network((conv, Linear(features, classes, head, head_bias, Act())), ((-1,), (0,)), net.size)
        return Layerwise(network, InnerRule(*rule, steps, batch), _loss_rule(net), "float32", save)

    net = Net(launcher, loss, pieces, (side, side, inputs), classes, labels=True)
    return net


NETS = {
    "loop": perceptron(3, 7, 2, loop=True),
    "loop in scratch": perceptron(3, 70, 2, loop=True),
    "layers": perceptron(3, 7, 2, loop=False),
    "z again": convolutional(pool=True),
    "z stored": convolutional(pool=False),
}


def rates_of(net: Net, rule: Rule, steps: int, *, each: bool) -> Tensor:
    """Rates of either sign, with zeros among them; NaN in the padding, which nothing may take up."""
    most = 0.03 if rule.name == "adam" else 0.3  # of Adam's steps each moves a weight by its rate
    if not each:
        return most * torch.tensor([1.0, 0.0, -0.5])[-steps:]
    rates = (torch.rand(steps, net.size) * 1.3 - 0.3).where(torch.rand(steps, net.size) > 0.1, 0.0)
    return (most * rates).where(net.used, torch.nan)


def check(name: str, rule_name: str, steps: int, *, each: bool = True, tasks: int = 2, **options: Any) -> None:
    """‖kernels − truth‖ ≤ 2 ‖torch in float32 − truth‖ + atol, step by step, and zeros in the padding."""
    net, rule = NETS[name], RULES[rule_name]
    theta, batch, rates = net.theta(), net.batch(tasks), rates_of(net, rule, steps, each=each)
    both = {key: options[key] for key in options.keys() & {"inner_batch"}}
    truth, single = (net.truth(rule, theta, batch, rates, dtype, **both) for dtype in (torch.float64, torch.float32))
    got = net.run(rule, theta, batch, rates, **options)
    assert got["finite"].all()
    for kind in ("phi", "u", "rates", "lam"):
        values = [r[kind] if truth[kind].dim() == 3 else r[kind][None] for r in (got, truth, single)]
        for k, (mine, want, other) in enumerate(zip(*values, strict=True)):
            assert (mine[:, ~net.used] == 0).all(), f"{kind} {k}: padding"
            error, allowed = ((x.double() - want).norm() for x in (mine, other))
            assert error <= 2 * allowed + 1e-6 * want.norm(), (kind, k, (error / want.norm()).item())


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", ["loop", "layers"])
def test_gradients_of_rates(net: str, rule: str, each: bool) -> None:
    check(net, rule, 3, each=each)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("net, rule", [("loop in scratch", "nesterov"), ("loop in scratch", "adam")])
def test_activations_in_scratch(net: str, rule: str) -> None:
    check(net, rule, 2, tasks=1)


@pytest.mark.usefixtures("poison", "wide_tiles")
@pytest.mark.parametrize(
    "net, rule",
    [("z again", "sgd"), ("z again", "adam"), ("z stored", "nesterov")],
)
def test_convolutions(net: str, rule: str) -> None:
    check(net, rule, 2, tasks=1)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("each", [False, True], ids=["one", "each"])
@pytest.mark.parametrize("net", ["loop", "layers"])
def test_one_step_is_the_first_and_the_last(net: str, each: bool) -> None:
    check(net, "nesterov", 1, each=each)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("net", ["loop", "layers"])
def test_inner_batches(net: str) -> None:
    """Three of five samples at a time."""
    check(net, "nesterov", 3, inner_batch=3)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("rule", ["nesterov", "adam"])
def test_tasks_in_two_halves(rule: str) -> None:
    """Where values are computed again, the adjoint takes half of the tasks at a time, and their rows of directions."""
    check("layers", rule, 2, save=False)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", ["loop", "z again"])
def test_what_the_tests_hold_tells_right_from_wrong(net: str, rule: str) -> None:
    """Without the Hessian, or with λ_k in the place of λ_{k+1}, the gradients would be far outside of what is let
    through: the numbers above are no proof where the two agree."""
    network, rule_ = NETS[net], RULES[rule]
    theta, batch, rates = network.theta(), network.batch(), rates_of(network, rule_, 2, each=True)
    truth = network.truth(rule_, theta, batch, rates, torch.float64)
    without = network.truth(rule_, theta, batch, rates, torch.float64, hessian=False)
    for name, wrong in (("lam", without["lam"]), ("rates", without["rates"]), ("rates", truth["late"])):
        assert (wrong - truth[name]).norm() > 1e-3 * truth[name].norm()
    assert torch.equal(without["rates"][1], truth["rates"][1]), "the last step's has no Hessian in it"


@pytest.mark.parametrize("net", ["loop", "layers"])
def test_a_diverging_task_leaves_nan_in_its_own_rows_alone(net: str) -> None:
    network, rule = NETS[net], RULES["nesterov"]
    theta, batch, rates = network.theta(), network.batch(tasks=3), rates_of(network, rule, 2, each=True)
    want = network.run(rule, theta, batch, rates)
    batch[1][1] = 1e30
    got = network.run(rule, theta, batch, rates)
    assert got["finite"].tolist() == [1, 0, 1]
    assert not got["rates"][:, 1].isfinite().all()
    for name in ("u", "rates"):
        assert torch.equal(got[name][:, [0, 2]], want[name][:, [0, 2]])
    assert torch.equal(got["lam"][[0, 2]], want["lam"][[0, 2]])


@contextmanager
def launches_kept() -> Iterator[list[tuple[Any, ...]]]:
    """Of every launch what its compiled code depends on: kernel, constants, types and alignment of arguments."""
    from fastmeta.kernels import launch

    kept: list[tuple[Any, ...]] = []
    run = launch.run

    def kept_run(kernel: Any, label: str, grid: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        kinds = [(a.dtype, a.data_ptr() % 16 == 0) if isinstance(a, Tensor) else type(a) for a in args]
        kept.append((kernel.__name__, label, tuple(sorted(options.items(), key=str)), tuple(kinds)))
        run(kernel, label, grid, args, options)

    launch.run = kept_run
    try:
        yield kept
    finally:
        launch.run = run


@pytest.mark.parametrize("net, rule", [("loop", "sgd"), ("layers", "adam")])
def test_other_rates_are_no_other_kernels(net: str, rule: str) -> None:
    """Nor is another step: from one rate to the next there are four bytes, which alignment must not show."""
    network = NETS[net]
    theta, batch = network.theta(), network.batch(tasks=1)
    seen = []
    for rates in (torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, -1.0, 0.05]), torch.tensor([0.1])):
        with launches_kept() as kept:
            network.run(RULES[rule], theta, batch, rates)
        seen.append(kept)
    first, second, one_step = seen
    assert first == second
    if net == "layers":
        assert set(first) == set(one_step)


@pytest.mark.skipif(DEVICE == "cuda", reason="counts what the interpreter does")
@pytest.mark.parametrize("net", ["loop", "layers", "z stored"])
@pytest.mark.usefixtures("wide_tiles")
def test_directions_are_written_once_and_cost_nothing_else(net: str) -> None:
    """As many launches with them as without; adapt stores each value, the adjoint loads and stores it."""
    from fastmeta.kernels.counts import counting

    network, steps, tasks = NETS[net], 1, 1
    theta, (x, y, _, _) = network.theta(), network.batch(tasks)
    rates, room = torch.tensor([0.1]), torch.zeros(steps, tasks, network.size)
    kernels = network.launcher(RULES["nesterov"], steps, None)

    def counted(directions: Tensor | None) -> list[Any]:
        parts = []
        with counting(watch=True) as counts:
            adapted = kernels.adapt([theta], x, y, rates=rates, keep=True, directions=directions)
        parts.append(counts)
        lam = torch.ones(tasks, network.size)
        with counting(watch=True) as counts:
            kernels.adjoint(adapted, lam, x, y, rates=rates, directions=directions)
        return [*parts, counts]

    values, used = 4 * room.numel(), 4 * steps * tasks * int(network.used.sum())
    for least, most, with_, without in zip(
        (0, used), (0, 2 * values - used), counted(room), counted(None), strict=True
    ):
        assert with_.launches == without.launches
        assert with_.stored - without.stored == values
        assert values + least <= with_.moved() - without.moved() <= values + most
        assert (sum(with_.times_written(room).values()) == 1).all()


def test_rates_that_kernels_would_read_wrongly() -> None:
    network = NETS["loop"]
    theta, (x, y, _, _) = network.theta(), network.batch()
    kernels = network.launcher(RULES["sgd"], 2, None)
    wrong = {
        r"rates are \(2,\) or \(2, 52\), not \(3,\)": {"rates": torch.zeros(3)},
        "rates are contiguous": {"rates": torch.zeros(2, 104)[:, ::2]},
        r"directions are \(2, 2, 52\), not \(2, 52\)": {"rates": torch.zeros(2), "directions": torch.zeros(2, 52)},
        "directions are float32": {"rates": torch.zeros(2), "directions": torch.zeros(2, 2, 52).double()},
    }
    for message, options in wrong.items():
        with pytest.raises(AssertionError, match=message):
            kernels.adapt([theta], x, y, keep=True, **options)
