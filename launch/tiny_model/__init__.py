"""Small checkpoints with a tokenizer: `python -m sglang_ascend_moe.launch.tiny_model FOLDER` writes one."""
