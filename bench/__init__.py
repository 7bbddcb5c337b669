"""fastmeta beside its peers: the same meta-steps on the same data, checked first, then timed in turn.

`python -m bench run`, `python -m bench memory` and `python -m bench report`, from the root of the repository.
"""
