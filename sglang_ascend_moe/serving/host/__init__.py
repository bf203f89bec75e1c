"""Machines without accelerator. May import worker and launcher. Begin with platform.py, SGLang's platform for them.

What SGLang lacks there: `fixes`, `models`, `recorder`, `process_start`, `unnamed_memory`, `loopback`. The memory of a
host, divided among ranks: `memory` hooks it in, `memory_share`, `server_estimate`, `checkpoint_bytes` and
`graph_buckets` are arithmetic, `reservations` what other servers hold, `untouched_memory` zeros that take no page.
"""
