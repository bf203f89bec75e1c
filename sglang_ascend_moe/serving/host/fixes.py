"""What SGLang needs to run more than one rank on a machine without accelerator: hooks of `host_hooks`."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psutil
import torch

from sglang_ascend_moe import launches
from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.exchange.control.network import Address, own_host, parse_address
from sglang_ascend_moe.serving.host.loopback import address_to_meet

# SGLang's own variable: one list of cores per rank, such as "0-3|4-7".
BIND_VARIABLE = "SGLANG_CPU_OMP_THREADS_BIND"

# gloo's own variable.
INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
LOOPBACK_INTERFACE = "lo"

RENDEZVOUS_MILLISECONDS = 100
"""How long an idle rank sleeps between two rendezvous with the others."""
RECEIVE_MILLISECONDS = 1000
"""How long a process waits for a message before it looks at other things."""


def cores_of_rank(original: Callable[..., str], *, numa_index: int, world_size: int) -> str:
    """Around `init_threads_binding`: the cores of one rank, such as `0,1`, an equal share when the user names none.

    With more ranks than cores several ranks share one core.
    """
    if os.environ.get(BIND_VARIABLE):
        return original(numa_index=numa_index, world_size=world_size)
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // world_size
    if share == 0:
        return str(cores[numa_index % len(cores)])
    return ",".join(str(core) for core in cores[numa_index * share : (numa_index + 1) * share])


def meet_on_loopback(original: Callable[..., str], *, dist_port: int) -> str:
    """Around `_resolve_dist_init_method`: the loopback interface, unless the user named an address to meet at.

    Nodes meet over the interface that leads to that address, where gloo alone would take that of the host's name.
    """
    from sglang.srt.environ import envs
    from sglang.srt.runtime_context import get_parallel

    address = get_parallel().dist_init_addr
    if address and get_parallel().nnodes > 1:
        os.environ.setdefault(INTERFACE_VARIABLE, interface_towards(parse_address(address)))
    if address or envs.SGLANG_DISTRIBUTED_INIT_METHOD_OVERRIDE.get():
        return original(dist_port=dist_port)
    os.environ.setdefault(INTERFACE_VARIABLE, LOOPBACK_INTERFACE)
    return address_to_meet(dist_port)


def interface_towards(address: Address) -> str:
    """The network interface of this machine from which it reaches `address`. Raises `InvalidInput`."""
    own = own_host(address)
    for interface, addresses in psutil.net_if_addrs().items():
        if own in {each.address for each in addresses}:
            return interface
    raise InvalidInput(
        f"no network interface has the address {own}, from which {address} is reached; set {INTERFACE_VARIABLE}"
    )


def limit_threads(*, local_omp_cpuid: str, **_: Any) -> None:
    """In place of `_init_cpu_threads_env`: as many threads as the rank has cores, bound to cores the user named."""
    cores = parse_cores(local_omp_cpuid)
    torch.set_num_threads(min(len(cores), torch.get_num_threads()))
    if os.environ.get(BIND_VARIABLE):
        os.sched_setaffinity(0, cores)


def parse_cores(text: str) -> set[int]:
    """Cores of a list such as `0-3,8`."""
    cores: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return cores


def no_shared_memory_all_reduce(*_: Any) -> bool:
    """In place of `is_shm_available`."""
    return False


def groups_without_nccl(*arguments: Any, **keywords: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Before `init_model_parallel_group`: a group of ranks makes no NCCL communicator, unless its caller wants one."""
    return arguments, {"use_pynccl": False} | keywords


def divide_heads_among_attention_ranks(
    original: Callable[..., Any], model_config: Any, load_config: Any, *_: Any, **__: Any
) -> Any:
    """Around `adjust_config_with_unaligned_cpu_tp`, which adds heads until so many ranks divide them.

    Where several ranks can share a head of keys and values, each holds a copy of it, as on every other device.
    """
    from sglang.srt.runtime_context import get_parallel

    ranks = get_parallel().attn_tp_size
    shared = model_config.get_total_num_kv_heads()
    if model_config.num_attention_heads % ranks == 0 and ranks % shared == 0:
        ranks = min(ranks, shared)
    return original(model_config, load_config, ranks)


def padded_sequence_length(_backend: Any) -> int:
    """The sequence length of a padded decode row: attention over nothing would give NaN."""
    return 1


def reduce_scatter_tensor(output: torch.Tensor, tensor: torch.Tensor, /, group_name: str) -> None:
    """In place of the operator `reg_reduce_scatter_tensor`, for CPU tensors."""
    reduce_scatter = _group(group_name)._reduce_scatter_tensor
    launches.launch(lambda whole, part: lambda: reduce_scatter(part, whole), [tensor], [output])


def all_gather_into_tensor(output: torch.Tensor, tensor: torch.Tensor, /, group_name: str) -> None:
    """In place of the operator `reg_all_gather_into_tensor`, for CPU tensors."""
    gather = _group(group_name)._all_gather_into_tensor
    launches.launch(lambda part, whole: lambda: gather(whole, part), [tensor], [output])


def all_to_all_single(output: torch.Tensor, tensor: torch.Tensor, /, group_name: str) -> None:
    """In place of the operator `reg_all_to_all_single`, for CPU tensors."""
    exchange = _group(group_name)._all_to_all_single
    launches.launch(lambda rows, into: lambda: exchange(into, rows), [tensor], [output])


def _group(name: str) -> Any:
    from sglang.srt.distributed.parallel_state import _groups

    return _groups[name]()


def extend_without_stream(original: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """Around `EagerRunner._execute_extend_cp`, which asks for a CUDA stream: gathering on a host uses none."""
    current = torch.cuda.current_stream
    torch.cuda.current_stream = lambda *_: None
    try:
        return original(*arguments, **keywords)
    finally:
        torch.cuda.current_stream = current


def copy_rows(
    destination: torch.Tensor, source: torch.Tensor, dim: int, offset: int, size: int, offset_src: bool, /
) -> None:
    """In place of `memcpy_func`: SGLang's own form for the CPU."""
    from sglang.srt.layers.dp_attention import memcpy_cpu

    launches.launch(
        lambda rows, start, count, into: lambda: memcpy_cpu(into, rows, dim, start, count, offset_src),
        [source, offset, size],
        [destination],
    )


def dump_without_core_dumps(original: Callable[..., None], *arguments: Any, **keywords: Any) -> None:
    """Around `dump_requests_before_crash`: no wait for GPU core dumps, unless the user asked for one by variable."""
    from sglang.srt.environ import envs

    with ExitStack() as stack:
        for variable in (envs.SGLANG_PYSPY_DUMP_BEFORE_CRASH, envs.SGLANG_CUDA_COREDUMP_BEFORE_CRASH):
            if not variable.is_set():
                stack.enter_context(variable.override(False))
        original(*arguments, **keywords)


def sleep_between_rendezvous(original: Callable[[Any], None], sleeper: Any) -> None:
    """Around `IdleSleeper.maybe_sleep`: shorter with data-parallel attention, whose ranks meet before each batch."""
    from sglang.srt.runtime_context import get_parallel

    if get_parallel().attn_dp_size > 1:
        sleeper.poller.poll(RENDEZVOUS_MILLISECONDS)
    else:
        original(sleeper)


class _Waiting:
    """A socket that, asked for a message without waiting, waits a while for one all the same."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def recv(self, flags: int = 0) -> Any:
        self._wait(flags)
        return self._socket.recv(flags=flags)

    def recv_pyobj(self, flags: int = 0) -> Any:
        self._wait(flags)
        return self._socket.recv_pyobj(flags=flags)

    def _wait(self, flags: int) -> None:
        if flags:
            self._socket.poll(RECEIVE_MILLISECONDS)


def receive_without_spinning(controller: Any) -> None:
    """Before `DataParallelController.event_loop`, which asks for requests again and again without waiting.

    Its socket is changed, and not the function that it calls: schedulers call that one too, between two steps.
    """
    controller.recv_from_tokenizer = _Waiting(controller.recv_from_tokenizer)
