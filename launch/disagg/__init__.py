"""Disaggregated serving: prefill instances, decode instances and a router in front, as one deployment."""
