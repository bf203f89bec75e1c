"""What is changed in SGLang. May import deep_ep, exchange and what lies below them.

Begin with plugin.py: the table of all hooks, put together from those of the folders. `launcher/` runs before the
ranks do, `worker/` in every rank; `host/` is for machines without accelerator, `npu/` for those with NPUs. `options`
are the flags, `hooks` and `signatures` say what became of each hook.
"""
