"""The exchange of token rows between ranks; knows nothing of SGLang. May import native, windows, launches and errors.

Begin with exchange.py, then opening.py: how ranks open one together. `schedules/` has decode, prefill and the
baseline over torch.distributed; `control/` what ranks tell each other besides rows; `observation` counts what was
done.
"""
