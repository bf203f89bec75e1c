"""The exchange of token rows between ranks; knows nothing of SGLang. May import native, windows, launches and errors.

Begin with exchange.py, then opening.py: how ranks open one together, with a backend (host_backend.py,
device_backend.py) that makes windows and the kernels' session over them. `expert_exchange` is what an MoE layer may ask
of any exchange, also of the baseline, collective_exchange.py, which has no windows. `schedules/` has decode and
prefill; `control/` what ranks tell each other besides rows; `observation` counts what was done.
"""
