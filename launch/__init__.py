"""The command `ascend-moe` and what it runs."""
