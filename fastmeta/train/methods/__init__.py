"""Algorithms as the commands see them: how a run's settings make each."""
