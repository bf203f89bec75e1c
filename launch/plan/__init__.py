"""`ascend-moe plan`: bytes of a configuration before it is allocated, and which deployments keep limits of latency."""
