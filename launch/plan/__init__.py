"""`ascend-moe plan`: the bytes of a configuration, before anything is allocated, and those of other libraries."""
