"""`ascend-moe top`: what the ranks of a running server do, as it changes."""
