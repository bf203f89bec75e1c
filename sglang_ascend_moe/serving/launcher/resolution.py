"""What SGLang makes of a server's settings, by the functions that the installed release has for it."""

from types import ModuleType
from typing import Any

from sglang_ascend_moe.serving.launcher import early_resolution, later_resolution
from sglang_ascend_moe.serving.sglang_release import reaches


def settings_of(server_args: Any) -> Any:
    """The settings as far as they are resolved, by the names of `server_args`."""
    return _of_release().settings_of(server_args)


def declare(server_args: Any, **fields: Any) -> None:
    """Let the settings have these values."""
    _of_release().declare(server_args, **fields)


def model_config_of(server_args: Any) -> Any:
    """SGLang's `ModelConfig` of the model."""
    return _of_release().model_config_of(server_args)


def attends_latently(server_args: Any) -> bool:
    """Whether the model has latent attention (MLA)."""
    return bool(_of_release().attends_latently(server_args))


def is_resolved(server_args: Any) -> bool:
    """Whether SGLang is through with the settings."""
    return bool(_of_release().is_resolved(server_args))


def _of_release() -> ModuleType:
    return later_resolution if reaches(later_resolution.SINCE) else early_resolution
