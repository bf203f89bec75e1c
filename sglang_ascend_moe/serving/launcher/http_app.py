"""The app that each process for HTTP imports where there are several: SGLang's, with what a launcher would add to it.

SGLang loads no plugins in these processes, and leaves out its check of keys.
"""

from sglang.srt.managers.multi_tokenizer_mixin import get_main_process_id, read_from_shared_memory
from sglang.srt.plugins import load_plugins
from sglang.srt.utils.auth import add_api_key_middleware

from sglang_ascend_moe.serving import hooks
from sglang_ascend_moe.serving.launcher.request_checks import add_answers

__all__ = ["app"]

load_plugins()
hooks.require_all()
# With the hooks on it.
from sglang.srt.entrypoints.http_server import app  # noqa: E402

add_answers(app)
_, _server_args, _ = read_from_shared_memory(f"multi_tokenizer_args_{get_main_process_id()}")
add_api_key_middleware(app, api_key=_server_args.api_key, admin_api_key=_server_args.admin_api_key)
