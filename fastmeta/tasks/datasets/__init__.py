"""Readers of data: one file a data set."""
