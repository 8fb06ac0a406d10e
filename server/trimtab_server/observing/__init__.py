"""What can be seen of the server: metrics, traces, logs, load reports."""
