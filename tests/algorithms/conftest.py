"""What the tests of algorithms share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _compiled_way_is_traced(request: pytest.FixtureRequest) -> None:
    """The way "compiled" of a golden case runs the graph as it was traced: the compiler's own code is tested once, in
    test_algorithms.py and tests/engine/test_compiled.py, and takes a minute a case."""
    parameters = getattr(getattr(request.node, "callspec", None), "params", {})
    if parameters.get("way") == "compiled":
        request.getfixturevalue("traced")
