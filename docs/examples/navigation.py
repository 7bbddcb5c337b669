"""MAML learns to find goals in the plane (Finn et al. 2017, section 5.3) beside the same policy, pre-trained and fresh.

    python docs/examples/navigation.py --out runs/navigation

trains two policies with the same network, episodes and outer optimiser: one by MAML through one inner step, one by the
policy gradient of all goals together. Both, and a fresh one, then adapt to new goals by policy gradients alone; each
takes the rate that suits it best on other goals, halved after the first step as in the authors' code. A run that was
killed goes on where its last checkpoint was. Three minutes of one core train both, and two more evaluate.

Written to --out: checkpoint.pt, navigation.json (what was run and found) and navigation.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastmeta
from fastmeta.models import navigation_policy
from fastmeta.tasks import Navigation
from fastmeta.train.progress import Progress

RATES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)  # of the first adaptation step; later ones take half
SAVE_EVERY = 20  # iterations
INNER_STEPS = {"MAML": 1, "pre-trained": 0}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--iterations", type=int, default=200, help="outer steps of each training (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of networks, goals and actions (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/navigation"), help="folder (default %(default)s)")
    parser.add_argument("--tasks", type=int, default=20, help="goals of a meta-batch (default %(default)s)")
    parser.add_argument("--episodes", type=int, default=20, help="of a goal at each step (default %(default)s)")
    parser.add_argument("--horizon", type=int, default=100, help="steps of an episode (default %(default)s)")
    parser.add_argument("--goals", type=int, default=60, help="new goals in the evaluation (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="adaptation steps there (default %(default)s)")
    parser.add_argument("--surrogate", choices=("dice", "lvc", "plain"), default="lvc", help="(default %(default)s)")
    parser.add_argument("--inner-lr", type=float, default=0.1, help="inner rate in training (default %(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="of Adam, the outer optimiser (default %(default)s)")
    return parser.parse_args(arguments)


def make(options: argparse.Namespace, draws: torch.Generator, *, inner_steps: int = 1) -> fastmeta.PolicyMAML:
    """A learner around a fresh policy, whose actions come from `draws`; all of one seed start at the same weights."""
    torch.manual_seed(options.seed)
    return fastmeta.PolicyMAML(
        navigation_policy(std=0.5), surrogate=options.surrogate, normalise_advantages=True, inner_steps=inner_steps,
        inner_optimizer=fastmeta.SGD(lr=options.inner_lr), generator=draws,
    )  # fmt: skip


def save(path: Path, state: dict[str, Any]) -> None:
    """The file is at every moment the old one or the new one, whole."""
    temporary = path.with_suffix(".new")
    torch.save(state, temporary)
    os.replace(temporary, path)


def start(options: argparse.Namespace) -> dict[str, Any]:
    """The state of both trainings: that of --out, or a new one."""
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "goals", "steps")}
    path = options.out / "checkpoint.pt"
    if not path.exists():
        return {"settings": settings, "runs": {}}
    state = torch.load(path, weights_only=True)
    if state["settings"] != settings:
        raise SystemExit(f"{options.out} holds a run of other settings: {state['settings']}; choose another --out")
    return state


def train(options: argparse.Namespace, name: str, state: dict[str, Any]) -> fastmeta.PolicyMAML:
    """Trains one policy, from where `state` is, which it keeps and saves."""
    draws = torch.Generator().manual_seed(options.seed)
    learner = make(options, draws, inner_steps=INNER_STEPS[name])
    optimizer = torch.optim.Adam(learner.parameters(), lr=options.lr)
    family = Navigation(episodes=options.episodes, horizon=options.horizon)
    goals = torch.Generator().manual_seed(options.seed + 1)
    mine = state["runs"].setdefault(name, {"iteration": 0, "history": [], "seconds": 0.0})
    if mine["iteration"]:
        learner.load_state_dict(mine["learner"])
        optimizer.load_state_dict(mine["optimizer"])
        goals.set_state(mine["goals"])
        draws.set_state(mine["actions"])
    progress = Progress(options.iterations, done=mine["iteration"])
    begun = time.perf_counter() - mine["seconds"]
    for i in range(mine["iteration"], options.iterations):
        out = learner.step(family.sample(options.tasks, goals))
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        mine["history"].append(out.returns.mean(1).tolist())
        mine["iteration"] = i + 1
        progress.advance(i + 1)
        progress.status(f"{name}: return {' → '.join(f'{r:.1f}' for r in mine['history'][-1])}")
        if (i + 1) % SAVE_EVERY == 0 or i + 1 == options.iterations:
            mine |= {
                "learner": learner.state_dict(), "optimizer": optimizer.state_dict(), "goals": goals.get_state(),
                "actions": draws.get_state(), "seconds": time.perf_counter() - begun,
            }  # fmt: skip
            save(options.out / "checkpoint.pt", state)
    progress.close()
    return learner


def evaluate(options: argparse.Namespace, trained: fastmeta.PolicyMAML) -> dict[str, Any]:
    """The adaptation curve on new goals, at the rate that has the best mean over all steps on some other goals."""
    draws = torch.Generator()
    learner = make(options, draws)
    learner.load_state_dict(trained.state_dict())
    family = Navigation(episodes=options.episodes, horizon=options.horizon)

    def curve(rate: float, *, seed: int) -> Tensor:
        """Mean return of every goal after 0, 1, … steps, [steps + 1, goals]."""
        learner.inner_optimizer = fastmeta.SGD(lr=[rate, *[rate / 2] * (options.steps - 1)])
        draws.manual_seed(seed)
        journeys = family.sample(options.goals, torch.Generator().manual_seed(seed))
        return learner.adapt_policies(journeys, steps=options.steps).returns

    scores = {rate: curve(rate, seed=options.seed + 1000).nan_to_num(-1e9).mean().item() for rate in RATES}
    rate = max(scores, key=lambda r: scores[r])
    returns = curve(rate, seed=options.seed + 2000)
    half = 1.96 * returns.std(1) / math.sqrt(returns.shape[1])
    return {
        "rate": rate,
        "by_rate": {str(r): round(score, 3) for r, score in scores.items()},
        "mean": [round(r, 3) for r in returns.mean(1).tolist()],
        "interval95": [round(h, 3) for h in half.tolist()],
    }


def draw(options: argparse.Namespace, found: dict[str, Any], path: Path) -> None:
    """The curves with 95 % intervals over goals."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError('the picture needs Matplotlib: pip install "fastmeta[train]"') from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    styles = {"MAML": ("tab:blue", "o"), "pre-trained": ("tab:orange", "^"), "from scratch": ("tab:gray", "s")}
    for name, (color, marker) in styles.items():
        mean, half = torch.tensor(found[name]["mean"]), torch.tensor(found[name]["interval95"])
        steps = range(len(mean))
        axes.plot(steps, -mean, color=color, marker=marker, label=f"{name} (rate {found[name]['rate']:g})")
        axes.fill_between(steps, -mean - half, half - mean, color=color, alpha=0.2, linewidth=0)
    axes.set_yscale("log")  # of what is below 0: upside down, so that up is better
    axes.set_ylim(1000, 0.5)
    axes.yaxis.set_major_formatter(lambda cost, _: f"−{cost:g}")
    axes.set_xlabel(f"policy-gradient steps on a new goal, {options.episodes} episodes each")
    axes.set_ylabel("mean return of an episode (log scale)")
    axes.set_title(f"2-D navigation: {options.goals} new goals, 95 % intervals", fontsize="medium")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Trains what is not trained yet, evaluates, and writes."""
    options = parse(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    state = start(options)
    learners = {name: train(options, name, state) for name in INNER_STEPS} | {
        "from scratch": make(options, torch.Generator())
    }
    found: dict[str, Any] = {name: evaluate(options, learner) for name, learner in learners.items()}
    draw(options, found, options.out / "navigation.png")
    seconds = {name: round(run["seconds"]) for name, run in state["runs"].items()}
    command = f"python docs/examples/navigation.py {' '.join(sys.argv[1:] if arguments is None else arguments)}"
    report = {
        "command": command,
        "settings": state["settings"] | {"goals": options.goals, "steps": options.steps},
        "seconds": seconds,
        **found,
    }
    (options.out / "navigation.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    for name, each in found.items():
        print(f"{name:13} rate {each['rate']:<5g} " + " ".join(f"{r:7.2f}" for r in each["mean"]))
    return report


if __name__ == "__main__":
    main()
