"""`python -m sglang_ascend_moe.launch.tiny_model`."""

import sys

from sglang_ascend_moe.launch.tiny_model.tiny_model_command import main

raise SystemExit(main(sys.argv[1:]))
