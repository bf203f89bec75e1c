"""Schedules: how a call becomes exchanges. `decode` is one exchange, `prefill` rounds, `collective` the baseline."""
