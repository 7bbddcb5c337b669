"""What a share of held-out data leaves, and which one would leave enough."""

from __future__ import annotations

from collections.abc import Callable


def check_left(
    held_out: float,
    *,
    kind: str,
    counts: Callable[[float], tuple[int, int]],
    train: int,
    test: int,
    reason: str,
    remedy: str,
) -> None:
    """Raise ValueError where `held_out` leaves too little to learn from, or too little to score on.

    Args:
        held_out: the share of the run; 0 splits nothing.
        kind: of what is counted, in the plural.
        counts: how many a share leaves to learn from, and to score on.
        train: how many are needed to learn from.
        test: how many are needed to score on.
        reason: what needs them.
        remedy: what else helps.
    """
    if not held_out:
        return
    learned, scored = counts(held_out)
    if learned >= train and scored >= test:
        return
    shares = [number / 100 for number in range(1, 100)]
    legal = [share for share in shares if counts(share)[0] >= train and counts(share)[1] >= test]
    total = learned + scored
    # the share nearest to what was asked for
    cure = f"--held-out {min(legal, key=lambda share: abs(share - held_out)):g} leaves enough, or " if legal else ""
    what, left, needed = ("to score on", scored, test) if scored < test else ("to learn from", learned, train)
    raise ValueError(
        f"--held-out {held_out:g} leaves {left:,} of {total:,} {kind} {what}, but {reason} need {needed:,}: "
        f"{cure}{remedy}"
    )
