"""Files and texts in JSON that the flags of SGLang take: read here before SGLang uses them, in ranks that would end.

What SGLang's own parser reads as JSON is not in the table. `initial_location` looks into what it has read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from sglang_ascend_moe.errors import InvalidInput


class _Written(NamedTuple):
    """A setting of SGLang, and what raises `InvalidInput` with the rule that a value breaks."""

    name: str
    check: Callable[[str], object]


def read_object(text: str) -> dict[str, Any]:
    """An object of JSON. Raises `InvalidInput` that says the rule, without the flag."""
    try:
        content = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"must be an object in JSON ({error})") from error
    if not isinstance(content, dict):
        raise InvalidInput('must be an object in JSON, such as {"name": 1}')
    return content


def read_file(path: str) -> str:
    """The text of a file. Raises `InvalidInput` that says the rule, without the flag."""
    try:
        return Path(path).read_text()
    except OSError as error:
        raise InvalidInput(f"must be a file that can be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InvalidInput("must be a file of text") from error


def _object_in_file(path: str) -> dict[str, Any]:
    return read_object(read_file(path))


def _object_or_file(text: str) -> dict[str, Any]:
    return _object_in_file(text) if Path(text).is_file() or not text.lstrip().startswith("{") else read_object(text)


def _object_or_marked_file(text: str) -> object:
    return read_file(text[1:]) if text.startswith("@") else read_object(text)


def _template(text: str) -> None:
    # A name of one that SGLang has, or a file.
    if "/" in text or text.endswith((".jinja", ".json")):
        read_file(text)


_TABLE = (
    _Written("model_loader_extra_config", read_object),
    _Written("json_model_override_args", read_object),
    _Written("kv_events_config", read_object),
    _Written("hisparse_config", read_object),
    _Written("hicache_storage_backend_extra_config", _object_or_marked_file),
    _Written("deepep_config", _object_or_file),
    _Written("speculative_adaptive_config", _object_in_file),
    _Written("quantization_param_path", _object_in_file),
    _Written("msprobe_dump_config", _object_in_file),
    _Written("dllm_algorithm_config", read_file),
    _Written("pdmux_config_path", read_file),
    _Written("speculative_ngram_external_corpus_path", read_file),
    _Written("chat_template", _template),
    _Written("completion_template", _template),
)


def refuse_written_values(settings: Any) -> None:
    """Raise `InvalidInput`, naming flag, value and rule, for a file that cannot be read and a text that is no JSON.

    settings: by the names that SGLang's server arguments have.
    """
    for written in _TABLE:
        # What is no text SGLang has read already.
        if isinstance(value := getattr(settings, written.name), str) and value:
            try:
                written.check(value)
            except InvalidInput as error:
                raise InvalidInput(f"--{written.name.replace('_', '-')} {value}: {error}") from error
