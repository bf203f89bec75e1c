"""`python -m sglang_ascend_moe.launch.tiny_model`."""

from sglang_ascend_moe.launch.tiny_model.checkpoint import main

raise SystemExit(main())
