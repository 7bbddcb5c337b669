"""Families of tasks, as the commands see them: one file each."""
