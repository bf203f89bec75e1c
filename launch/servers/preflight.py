"""What can be wrong with a server is found before SGLang is imported, in a second instead of a minute or three.

The same checks for every command that starts servers: flags, conflicts, model, ports. Each refusal names what was
typed. Pure arithmetic and a few files: neither torch nor SGLang is imported.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.exchange.control.network import PORTS_AFTER, parse_address
from sglang_ascend_moe.exchange.control.secret import read_secret
from sglang_ascend_moe.launch.plan.moe_config import read_moe_shape
from sglang_ascend_moe.launch.servers.serve_request import ServeRequest, request_of
from sglang_ascend_moe.serving.http_client import answered
from sglang_ascend_moe.serving.launcher import given_flags, refusals
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.launcher.given_flags import Given
from sglang_ascend_moe.serving.launcher.initial_location import refuse_initial_location
from sglang_ascend_moe.serving.launcher.written_values import refuse_written_values
from sglang_ascend_moe.serving.npu.torch_npu_library import refuse_absent_torch_npu

HUB = "https://huggingface.co"
HUB_SECONDS = 1.5
"""For which the hub may take to say whether it has a model; one that takes longer is left to SGLang."""
_NAME_ON_HUB = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
# What stands for true in the variables of the hub's library, and of SGLang.
_TRUE_FOR_HUB = ("1", "on", "yes", "true")
_TRUE_FOR_SGLANG = ("1", "yes", "true", "y")
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED)
# Folders that SGLang reads without a config.json.
_OTHER_FORMATS = ("params.json", "*.gguf")


def check_server(words: Sequence[str], model_flag: str | None = None) -> ServeRequest:
    """Checks a server that will listen where its flags say. model_flag: what the user typed the model with, if that is
    not in `words`.

    Raises as `check_flags` and `check_model`, and `InvalidInput` for an address that cannot be.
    """
    given = check_flags(words)
    if given.settings.model_path is None:
        raise InvalidInput("MODEL is missing: give a folder, or a name on the hub")
    request = request_of(given)
    check_model(request, model_flag or _model_flag(words, request.model_path), offline=offline())
    check_address(Address("--host", request.host, "--port", request.port))
    if request.node_rank == 0:
        check_first_node(request)
    return request


def check_first_node(request: ServeRequest) -> None:
    """Raise `InvalidInput`, naming the flag, if nothing can listen where other nodes and decode instances will ask."""
    if request.disaggregation_mode == "prefill":
        port = request.disaggregation_bootstrap_port
        check_address(Address("--host", request.host, "--disaggregation-bootstrap-port", port))
    if request.nnodes > 1 and request.dist_init_addr:
        first = parse_address(request.dist_init_addr)
        for port in range(first.port, first.port + PORTS_AFTER + 1):
            check_address(Address("--dist-init-addr", first.host, "--dist-init-addr", port))


def check_flags(words: Sequence[str]) -> Given:
    """Raises `InvalidInput` for flags that are none and values that cannot be, `Unsupported` for what `--ascend-moe`
    does not work with."""
    given = given_flags.read_strictly(words)
    if given.options is not None:
        read_secret(given.options.secret_file)
        refusals.refuse_flags(given.settings, given.options, os.environ)
        refuse_written_values(given.settings)
    return given


def check_device(request: ServeRequest) -> None:
    """Raise `Unsupported` for NPUs without the library that finds them; what else they need, the server looks at."""
    if device_of(request) == "npu":
        refuse_absent_torch_npu()


def check_model(request: ServeRequest, flag: str, *, offline: str = "") -> None:
    """Raise `InvalidInput` for a model that is not there, `Unsupported` for one that the exchange cannot serve.

    flag: that the user has given the model with. offline: why the hub must not be asked, empty if it may.
    """
    config = find_config(request.model_path, flag, request.revision, offline=offline)
    if config is None or request.options is None:
        return
    shape = read_moe_shape(config, flag)
    if shape.experts is None and _may_hold_experts(config):
        return
    if request.quantization == "unquant":
        shape = shape._replace(quantisation=None)
    division = refusals.Division(request.tp_size, request.ep_num_redundant_experts, shown_as="--tp-size")
    model = shape.model(request.model_path)
    refusals.refuse_model(model, division, on_npu=device_of(request) == "npu")
    refuse_initial_location(request.init_expert_location, model.located(division), read_tensors=False)


def find_config(model: str, flag: str, revision: str | None = None, *, offline: str = "") -> Path | None:
    """The config.json of a model; None where only SGLang can know.

    Raises `InvalidInput`, naming `flag`, for a model that is not there. offline: as for `check_model`.
    """
    path, typed = Path(model), f"{flag} {model}"
    if path.is_dir():
        if os.path.lexists(path / "config.json"):
            return path / "config.json"
        if any(next(path.glob(pattern), None) for pattern in _OTHER_FORMATS):
            return None
        raise InvalidInput(f"{typed}: the folder holds no config.json; give that of a model")
    if path.is_file() and not _is_gguf(path):
        raise InvalidInput(f"{typed}: this is a file; give the folder of a model")
    # Such a file, or what is fetched from elsewhere.
    if path.exists() or "://" in model or os.environ.get("SGLANG_USE_MODELSCOPE", "").lower() in _TRUE_FOR_SGLANG:
        return None
    if not may_be_on_hub(model):
        raise InvalidInput(f"{typed}: there is no such folder; give that of a model")
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(model, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached)
    nowhere = f"{typed}: there is no such folder, and the cache of the hub holds no such model"
    if problem := offline or _ask_hub(model, revision or "main"):
        raise InvalidInput(f"{nowhere}; {problem}")
    return None


def _is_gguf(path: Path) -> bool:
    """Whether SGLang takes the file for a whole model."""
    if path.suffix == ".gguf":
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def may_be_on_hub(model: str) -> bool:
    """Whether the hub could have a model of this name."""
    return _NAME_ON_HUB.fullmatch(model) is not None and "--" not in model and ".." not in model


def _model_flag(words: Sequence[str], model: str) -> str:
    """The spelling of `--model-path` that gives the model."""
    flags = given_flags.flags_of("model_path")
    for word, following in zip(words, [*words[1:], ""], strict=True):
        flag, _, value = word.partition("=")
        if flag in flags and model in (value, following):
            return flag
    return flags[0]


class Address(NamedTuple):
    """Where a server is to listen, and the flags that say so. Port 0 is a free one."""

    host_flag: str
    host: str
    port_flag: str
    port: int


def check_address(address: Address) -> None:
    """Raise `InvalidInput`, naming the flag to change, if nothing can listen there."""
    host, port = address.host, address.port
    if not 0 <= port <= 65535:
        raise InvalidInput(f"{address.port_flag} {port}: must be a port from 0 to 65535")
    try:
        [(family, *_), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        socket.create_server((host, port), family=family).close()
    except socket.gaierror as error:
        why = f"must be an address of this machine: {error.strerror}"
        raise InvalidInput(f"{address.host_flag} {host}: {why}") from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidInput(f"{address.host_flag} {host}: must be an address of this machine") from error
        if error.errno == errno.EADDRINUSE:
            why = f"another program listens at {host}:{port}"
        else:
            why = f"nothing can listen at {host}:{port}: {error.strerror}"
        raise InvalidInput(f"{address.port_flag} {port}: {why}; give another") from error


def offline() -> str:
    """Why the hub must not be asked, as its library finds out; empty if it may."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((f"{name} is set" for name in names if os.environ.get(name, "").lower() in _TRUE_FOR_HUB), "")


def _may_hold_experts(config: Path) -> bool:
    """Whether a config names experts in a place that is not looked at."""
    text = config.read_text(errors="replace")
    return any(f'"{name}"' in text for name in refusals.EXPERT_NAMES)


def _ask_hub(model: str, revision: str) -> str:
    """Why the hub cannot give the model; empty if it can, or does not say in time."""
    endpoint = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    url = f"{endpoint}/{model}/resolve/{revision}/config.json"
    found: list[str] = []

    def ask() -> None:
        try:
            with answered("HEAD", url, timeout=HUB_SECONDS) as answer:
                # It says 401 of what may be there for others.
                if answer.status_code == 404:
                    found.append(f"{endpoint} has none either")
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno in _UNREACHABLE:
                found.append(f"{endpoint} cannot be reached ({error.strerror})")
        except ValueError:
            return

    # Resolving a name knows no timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return found[0] if found else ""
