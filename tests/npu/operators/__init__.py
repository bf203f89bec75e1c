"""The emulated NPU's operators: schemas of the real ones, arithmetic of the CPU. Test equipment.

`schemas.txt` has the schemas as torch_npu and sgl-kernel-npu register them, `sglang_calls` what SGLang calls of them.
Inputs of 16 bits are computed in fp32 and rounded once; no NPU computes like this to the bit. Rows of a result that an
NPU leaves as it finds them are NaN, or zero where integers are, so that a test sees who reads them. A form that is not
there is `NotEmulated`.
"""
