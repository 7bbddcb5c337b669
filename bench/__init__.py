"""fastmeta beside its peers: the same meta-steps on the same data, checked first, then timed in turn.

`python -m bench run`, `scaling`, `train`, `report` and `gpu`, from the root of the repository; README.md here.
"""
