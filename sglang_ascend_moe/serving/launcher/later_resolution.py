"""Settings of a server that SGLang resolves after they are made, beside what was given: see `resolution`."""

from typing import Any

from sglang_ascend_moe.serving.launcher import early_resolution

SINCE = early_resolution.UNTIL
"""The first release of SGLang that does."""


def settings_of(server_args: Any) -> Any:
    """The settings as far as they are resolved, by the names of `server_args`."""
    from sglang.srt.arg_groups.overrides import resolving_view

    return resolving_view(server_args)


def declare(server_args: Any, **fields: Any) -> None:
    """Let the settings have these values."""
    from sglang.srt.arg_groups.overrides import declare_resolution

    declare_resolution(server_args, early_resolution.SOURCE, **fields)


def model_config_of(server_args: Any) -> Any:
    """SGLang's `ModelConfig` of the model."""
    from sglang.srt.arg_groups import overrides

    return overrides.model_config_of(server_args)


def attends_latently(server_args: Any) -> bool:
    """Whether the model has latent attention (MLA)."""
    from sglang.srt.arg_groups.overrides import use_mla_backend

    return bool(use_mla_backend(server_args))


def is_resolved(server_args: Any) -> bool:
    """Whether SGLang is through with the settings."""
    return bool(getattr(server_args, "_resolution_finished", False))
