"""`ascend-moe adopt`: an existing command line of SGLang, and what becomes of it with `--ascend-moe`."""
