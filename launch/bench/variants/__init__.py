"""Ways of moving rows, one module each."""
