"""Observability: metrics, traces, logs, load reports."""
