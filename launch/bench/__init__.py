"""`ascend-moe bench`: the exchange against other ways to move the same rows, measured in one run."""
