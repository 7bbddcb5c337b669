"""What a learner is worth: evaluation, comparison of starts, probes, clusters, plots."""
