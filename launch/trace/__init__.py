"""`ascend-moe trace`: the steps that all ranks wrote down, as one timeline and as a summary."""
