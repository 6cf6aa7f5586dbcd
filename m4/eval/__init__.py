"""Evaluation on the host: metrics, intervals, subset sweeps, baselines, report."""
