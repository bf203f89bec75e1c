"""Machines without accelerator. May import worker and launcher. Begin with sglang_platform.py.

`sglang_platform` is SGLang's platform for such a machine. What SGLang lacks there: `fixes`, `host_models`,
`extended_attention` with `tree_attention` and `sequence_shards`, `expert_recording`, `process_start`, `unnamed_memory`,
`loopback`. The memory of a host, divided among ranks: `host_memory` hooks it in, `memory_share`, `server_estimate`,
`checkpoint_bytes` and `graph_buckets` are arithmetic, `reservations` what other servers hold, `untouched_memory` zeros
that take no page.
"""
