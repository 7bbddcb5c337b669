"""Model-agnostic meta-learning, exact and first-order."""

from __future__ import annotations

from .base import MetaLearner


class MAML(MetaLearner):
    """Model-agnostic meta-learning with the exact meta-gradient, through every inner step (Finn et al. 2017, eq. 1).

    The arguments are those of `MetaLearner`.
    """

    order = "exact"


class FOMAML(MetaLearner):
    """First-order MAML: the query gradient at φ_K stands for the meta-gradient (Finn et al. 2017, section 5.2)."""

    order = "first"
