"""The device that a server is asked to run on."""

from typing import Any

from sglang_ascend_moe.serving.host_platform import ascend_device_nodes


def device_of(settings: Any) -> str:
    """The kind of device that is asked for; if none is, the NPUs of this machine, or the host.

    settings: by the names that SGLang's server arguments have.
    """
    return str(settings.device or ("npu" if ascend_device_nodes() else "cpu")).split(":")[0]
