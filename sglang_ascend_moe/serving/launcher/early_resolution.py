"""Settings of a server that SGLang resolves while they are made, and in place: see `resolution`."""

from typing import Any

UNTIL = "0.5.20"
"""The first release of SGLang that does not."""
SOURCE = "sglang-ascend-moe"
"""Who has declared a value, as SGLang keeps it."""


def settings_of(server_args: Any) -> Any:
    """As `later_resolution.settings_of`."""
    from sglang.srt.arg_groups.overrides import resolved_view

    # What SGLang has declared stays in its view, and would hide what is written later.
    return server_args if is_resolved(server_args) else resolved_view(server_args)


def declare(server_args: Any, **fields: Any) -> None:
    """As `later_resolution.declare`."""
    from sglang.srt.arg_groups.overrides import declare_late_resolution

    declare_late_resolution(server_args, SOURCE, **fields)


def model_config_of(server_args: Any) -> Any:
    """As `later_resolution.model_config_of`."""
    return server_args.get_model_config()


def attends_latently(server_args: Any) -> bool:
    """As `later_resolution.attends_latently`."""
    return bool(server_args.use_mla_backend())


def is_resolved(server_args: Any) -> bool:
    """As `later_resolution.is_resolved`."""
    return bool(getattr(server_args, "_declarations_materialized", False))
