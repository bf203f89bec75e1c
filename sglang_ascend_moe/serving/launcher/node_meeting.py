"""Before any rank starts, the launchers of a server's nodes meet, and compare how they were started.

Node 0 listens at `--dist-init-addr`, at a port of its own, and is called by the others. What it refuses, all refuse.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from sglang_ascend_moe.errors import AscendMoeError, PeerLost, PeerTimeout, ProtocolMismatch
from sglang_ascend_moe.exchange.control.channel import Channel
from sglang_ascend_moe.exchange.control.instance import digest_of_checkpoint
from sglang_ascend_moe.exchange.control.machine import this_machine
from sglang_ascend_moe.exchange.control.network import (
    PORTS_AFTER,
    Address,
    address_of,
    call,
    end_when_silent,
    hang_up,
    listen,
    parse_address,
)
from sglang_ascend_moe.exchange.control.secret import Secret, read_secret
from sglang_ascend_moe.exchange.control.waiting import Patience
from sglang_ascend_moe.serving.launcher import resolution
from sglang_ascend_moe.serving.launcher.asked_device import device_of
from sglang_ascend_moe.serving.launcher.node_blocks import NodeHello, NodeVerdict, decode, encode
from sglang_ascend_moe.serving.options import FLAGS, Options, options_of

# SGLang's ServerArgs carries names with an underscore that are not its fields to every process it starts, unchanged.
_ATTRIBUTE = "_ascend_moe_server"

OF_A_NODE = frozenset(("secret_file", "post_mortem", "trace", "host_memory"))
"""Options that nodes may have different values of."""

COMPARED = (
    "tp_size", "ep_size", "dp_size", "pp_size", "pp_max_micro_batch_size", "enable_dynamic_chunking",
    "enable_dp_attention", "attn_dp_size", "moe_dense_tp_size", "enable_dp_lm_head", "dtype", "quantization",
    "kv_cache_dtype", "context_length", "page_size", "max_running_requests", "max_total_tokens", "max_prefill_tokens",
    "chunked_prefill_size", "enable_mixed_chunk", "attention_backend", "decode_attention_backend",
    "prefill_attention_backend", "disable_cuda_graph", "disable_radix_cache", "disable_overlap_schedule",
    "schedule_policy", "enable_two_batch_overlap", "speculative_algorithm", "speculative_num_steps",
    "speculative_eagle_topk", "speculative_num_draft_tokens", "disaggregation_mode", "disaggregation_transfer_backend",
    "enable_eplb", "ep_num_redundant_experts", "eplb_algorithm", "eplb_rebalance_num_iterations",
    "ep_dispatch_algorithm", "init_expert_location", "dist_timeout", "load_format", "json_model_override_args",
    "sleep_on_idle",
)  # fmt: skip
"""Settings of SGLang that decide which steps its ranks make, and of what shape. Paths are not among them."""


class Nodes(NamedTuple):
    """The launchers of a server as one of them sees them.

    own: its number. channels: node -> to its launcher; node 0 has one to each other, the others to node 0. server: a
    name for all processes of the server.
    """

    own: int
    channels: dict[int, Channel]
    server: str


def meet(server_args: Any) -> Nodes:
    """Waits until every node has come, for as long as `--ascend-moe-bring-up-timeout` says.

    Raises on every node that has come: `ProtocolMismatch` naming flag, nodes and both values where they differ;
    `PeerTimeout` naming the address and the nodes that have not come; `PeerLost`; `InvalidInput` for an address that
    cannot be used.
    """
    settings = resolution.settings_of(server_args)
    options = options_of(server_args) or Options()
    hello = NodeHello(
        version=version("sglang-ascend-moe"),
        node=settings.node_rank,
        nodes=settings.nnodes,
        machine=this_machine(),
        device=device_of(server_args),
        settings={
            "the version of sglang": version("sglang"),
            "--model-path (its weights and config)": digest_of_checkpoint(
                Path(resolution.model_config_of(server_args).model_path)
            ),
            **settings_to_compare(settings, options),
        },
    )
    patience = Patience(options.bring_up_timeout_s, FLAGS["bring_up_timeout_s"].flag)
    first = parse_address(settings.dist_init_addr)
    at = Address(first.host, first.port + PORTS_AFTER)
    join = gather_nodes if hello.node == 0 else join_nodes
    nodes = join(hello, at, read_secret(options.secret_file), patience)
    for channel in nodes.channels.values():
        end_when_silent(channel.connection, options.timeout_s)
    return nodes


def name_server(server_args: Any, server: str) -> None:
    """All processes of the server learn the name that it has on every node."""
    setattr(server_args, _ATTRIBUTE, server)


def server_name(server_args: Any) -> str | None:
    """The name of a server of several nodes, once they have met; None of another server."""
    return getattr(server_args, _ATTRIBUTE, None)


def settings_to_compare(settings: Any, options: Options) -> dict[str, str]:
    """What has to be the same on every node, by flag. settings: by the names that SGLang's server arguments have."""
    compared = {"--" + name.replace("_", "-"): getattr(settings, name, None) for name in COMPARED}
    compared |= {flag.flag: getattr(options, name) for name, flag in FLAGS.items() if name not in OF_A_NODE}
    return {flag: str(value)[:1000] for flag, value in compared.items()}


def gather_nodes(own: NodeHello, at: Address, secret: Secret | None, patience: Patience) -> Nodes:
    """On node 0. Raises as `meet`."""
    with ExitStack() as opened:
        listener = opened.enter_context(listen(at))
        callers: dict[int, _Caller] = {}
        try:
            channels = _wait_for_calls(listener, own, secret, patience, callers, opened)
        except AscendMoeError as error:
            _answer([caller.channel for caller in callers.values()], own, str(error), "")
            raise
        server = f"{os.getpid()}.{os.urandom(4).hex()}"
        _answer(channels.values(), own, "", server)
        listener.close()
        for caller in callers.values():
            if caller.channel not in channels.values():
                caller.channel.close()
        opened.pop_all()
        return Nodes(0, channels, server)


class _Caller(NamedTuple):
    """Whoever called, until it is known to be none of the nodes."""

    channel: Channel
    who: str


def _wait_for_calls(
    listener: socket.socket, own: NodeHello, secret: Secret | None, patience: Patience, callers: dict[int, _Caller],
    opened: ExitStack,
) -> dict[int, Channel]:  # fmt: skip
    """A channel to each other node. `callers`: who is there, by descriptor; strangers are turned away."""
    until = time.monotonic() + patience.seconds
    channels: dict[int, Channel] = {}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while len(channels) + 1 < own.nodes:
        ready = poll.poll(max(0.0, until - time.monotonic()) * 1000)
        if not ready:
            missing = sorted(set(range(1, own.nodes)) - channels.keys())
            raise PeerTimeout(
                f"node{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} of {own.nodes} had not come to node 0"
                f" at {address_of(listener)} within {patience.seconds:g} s ({patience.set_by}); start them with the"
                " same --dist-init-addr and --nnodes"
            )
        for descriptor, _ in ready:
            if descriptor == listener.fileno():
                connection, place = listener.accept()
                opened.callback(hang_up, connection)
                # Of a caller who has hung up already.
                with suppress(OSError):
                    channel = Channel(connection, own.node, secret)
                    callers[channel.fileno()] = _Caller(channel, str(Address(*place[:2])))
                    poll.register(channel, select.POLLIN)
                continue
            channel, who = callers[descriptor]
            try:
                data = channel.take(who)
            except (EOFError, OSError):
                poll.unregister(descriptor)
                del callers[descriptor]
                channel.close()
                if channel.peer in channels:
                    raise PeerLost(f"the launcher of node {channel.peer} ({who}) has ended", channel.peer) from None
                continue
            if data is not None:
                hello = decode(data, NodeHello, own.version, who)
                refuse_other_node(own, hello, channels, who)
                channels[hello.node] = channel
    return channels


def refuse_other_node(own: NodeHello, hello: NodeHello, known: Mapping[int, Any], who: str) -> None:
    """On node 0: raise `ProtocolMismatch` if `hello`, from `who`, does not belong to the server of `own`."""
    if hello.nodes != own.nodes:
        raise ProtocolMismatch(
            f"--nnodes is {hello.nodes} on node {hello.node} ({who}) and {own.nodes} on node 0; give every node the"
            " same"
        )
    if hello.node in (0, *known) or hello.node >= own.nodes:
        raise ProtocolMismatch(
            f"--node-rank {hello.node} of {who}: another launcher has it, or there are only {own.nodes} nodes; give"
            f" each its own, from 0 to {own.nodes - 1}"
        )
    theirs = {"--device": hello.device, **hello.settings}
    differences = [
        f"{flag} is {theirs.get(flag)} on node {hello.node} ({who}) and {value} on node 0"
        for flag, value in {"--device": own.device, **own.settings}.items()
        if theirs.get(flag) != value
    ]
    if differences:
        raise ProtocolMismatch(f"{'; '.join(differences)}; give every node the same")
    if own.device == "cpu" and hello.machine.identity != own.machine.identity:
        raise ProtocolMismatch(
            f"node 0 runs on {own.machine.name} and node {hello.node} on {hello.machine.name} ({who}), which share no"
            " memory (another machine, or another PID namespace); with --device cpu start all nodes on one machine, in"
            " one container, or use --device npu"
        )


def _answer(channels: Iterable[Channel], own: NodeHello, refusal: str, server: str) -> None:
    verdict = encode(NodeVerdict(version=own.version, node=own.node, refusal=refusal[:4000], server=server))
    for channel in channels:
        if channel.begun:
            # Whose launcher has ended is found out by whoever needs it.
            with suppress(OSError):
                channel.send(verdict)


def join_nodes(own: NodeHello, at: Address, secret: Secret | None, patience: Patience) -> Nodes:
    """On the other nodes. Raises as `meet`."""
    until = time.monotonic() + patience.seconds
    who = f"node 0 at {at}"
    try:
        connection = call(at, until)
    except PeerTimeout as error:
        raise PeerTimeout(
            f"{error}, where node 0 should be, within {patience.seconds:g} s ({patience.set_by}); start it there, and"
            " give every node its --dist-init-addr"
        ) from error
    with ExitStack() as opened:
        opened.callback(hang_up, connection)
        try:
            channel = Channel(connection, own.node, secret)
            channel.begin(until, who)
            channel.send(encode(own))
            # Node 0 waits for the others, too, and says so in time.
            verdict = decode(channel.receive(until + patience.seconds, who), NodeVerdict, own.version, who)
        except PeerTimeout as error:
            raise PeerTimeout(f"{error} whether node {own.node} belongs to its server; check its log") from error
        except PeerLost as error:
            raise PeerLost(f"{error} before node {own.node} could join its server; check its log", 0) from error
        except OSError as error:
            raise PeerLost(f"{who} has ended ({error})", 0) from error
        if verdict.refusal:
            raise ProtocolMismatch(f"node 0 refuses the server: {verdict.refusal}")
        opened.pop_all()
    return Nodes(own.node, {0: channel}, verdict.server)
