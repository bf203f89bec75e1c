"""The ranks of a server. May import exchange, options, hooks, and npu.experts. Begin with layer.py, the MoE layer.

`sizing` turns the limits of the scheduler into tokens and bytes, `expert_location` handles redundant experts,
`pairing` and `transfer_rooms` prefill and decode apart, `live_state` and `metrics` what a server tells of itself.
"""
