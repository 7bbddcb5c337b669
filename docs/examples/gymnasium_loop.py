"""Any gymnasium vector environment under `fastmeta.PolicyMAML`, by a loop of one's own.

    pip install gymnasium
    python docs/examples/gymnasium_loop.py --iterations 60

`play` is all that a learner needs: it lets an actor play one episode in every environment and stacks what happened.
Here a task is a cart-pole whose controls may be crossed: pushing left moves it right. No policy balances both kinds,
and the state does not show which it is; after one step on a few episodes the policy knows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

import fastmeta
from fastmeta.models import CategoricalPolicy


class VectorEnvironment(Protocol):
    """What is asked of a `gymnasium.vector.VectorEnv`."""

    def reset(self, *, seed: int | None = None) -> tuple[Any, dict[str, Any]]:
        """Observations [E, ...] and what else is known."""
        ...

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Observations, rewards, whether it ended by itself, whether it was cut off, [E, ...] each, and more."""
        ...


def play(
    environments: Sequence[VectorEnvironment], act: Callable[[Tensor], Tensor], *, horizon: int
) -> fastmeta.Trajectories:
    """One episode in each of the E environments of every vector environment, one of which is a task.

    What an environment does after its episode has ended, such as starting another one, is masked.

    Args:
        environments: one for each task, of equal E and equal spaces.
        act: observations [T, E, ...] → actions [T, E, ...].
        horizon: most steps of an episode; shorter where all have ended.
    """

    def floats(rows: Sequence[Any]) -> Tensor:
        return torch.stack([torch.as_tensor(row) for row in rows]).float()

    seen = floats([e.reset()[0] for e in environments])
    running = torch.ones(seen.shape[:2], dtype=torch.bool)
    steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for _ in range(horizon):
        actions = act(seen)
        found = [e.step(a.numpy()) for e, a in zip(environments, actions.cpu(), strict=True)]
        observations, rewards, ended, cut, _ = zip(*found, strict=True)
        steps.append((seen, actions, floats(rewards), running))
        running = running & ~(floats(ended) + floats(cut)).bool()
        seen = floats(observations)
        if not running.any():
            break
    return fastmeta.Trajectories(*(torch.stack(values, 2) for values in zip(*steps, strict=True)))


def make_carts(tasks: int, episodes: int, seed: int) -> list[Any]:
    """Vector environments of cart-poles, every second one with crossed controls."""
    try:
        import gymnasium  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise SystemExit("this example needs gymnasium: pip install gymnasium") from error
    carts = [gymnasium.make_vec("CartPole-v1", num_envs=episodes, vectorization_mode="sync") for _ in range(tasks)]
    for task, cart in enumerate(carts):
        cart.reset(seed=seed + task * episodes)
        cart.set_attr("force_mag", 10.0 if task % 2 == 0 else -10.0)
    return carts


def main(arguments: list[str] | None = None) -> list[list[float]]:
    """Meta-trains; gives the mean returns before and after adaptation of every iteration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--tasks", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--horizon", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    policy = CategoricalPolicy(nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 2)))
    learner = fastmeta.PolicyMAML(
        policy, surrogate="lvc", normalise_advantages=True, inner_optimizer=fastmeta.SGD(lr=1.0),
        generator=torch.Generator().manual_seed(options.seed),
    )  # fmt: skip
    optimizer = torch.optim.Adam(learner.parameters(), lr=0.01)
    carts = make_carts(options.tasks, options.episodes, options.seed)
    history = []
    for i in range(options.iterations):
        out = learner.step(lambda act: play(carts, act, horizon=options.horizon))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        history.append(out.returns.mean(1).tolist())
        if i % 10 == 0 or i + 1 == options.iterations:
            print(f"{i:4}  steps balanced before and after one inner step: {history[-1][0]:.1f} → {history[-1][1]:.1f}")
    return history


if __name__ == "__main__":
    main()
