"""`ascend-moe doctor`: what is installed and would be used, what a running server says, what a failed one has left."""
