"""An emulated NPU: SGLang's code for NPUs on a host. Test equipment."""
