"""The control block by which a prefill and a decode instance find out that keys and values of one fit the other.

Tagged, frozen, strict, like every block; it travels as JSON in SGLang's `/server_info`. This module needs neither torch
nor SGLang.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sglang_ascend_moe.errors import InvalidInput, ProtocolMismatch
from sglang_ascend_moe.exchange.control.blocks import PROTOCOL_VERSION
from sglang_ascend_moe.exchange.control.secret import CHALLENGE_BYTES, SEAL_BYTES, Secret, require_seal

# The direction that a seal stands for, and its sender's number.
_PURPOSE = "a prefill instance describes itself"
_PREFILL = 0

SAMPLES = 16
SAMPLE_BYTES = 4096
# What other software writes into a config without changing the model.
VOLATILE_KEYS = ("transformers_version", "_name_or_path", "torch_dtype", "dtype")

NO_DRAFTS = "none"

Text = Annotated[str, Meta(max_length=4096)]
Size = Annotated[int, Meta(ge=1, lt=2**32)]


class Instance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True, kw_only=True):
    """What one instance is.

    model: its path, for messages. model_digest: see `digest_of_checkpoint`. quantisation: of the weights. row_quant:
    `--ascend-moe-quant`. kv_layout: kind of the cache. kv_token_bytes: of one token in the cache of one rank, or
    of one rank of each pipeline stage.
    mixed_sizes: the sizes of the other instance may differ. sealed: it has `--ascend-moe-secret-file`. drafts:
    algorithm, branches and model by which tokens are drafted.
    """

    protocol: int = PROTOCOL_VERSION
    role: Literal["prefill", "decode"]
    model: Text
    model_digest: Text
    dtype: Text
    quantisation: Text
    row_quant: Text
    kv_dtype: Text
    kv_layout: Text
    page_size: Size
    kv_token_bytes: Size
    tp_size: Size
    dp_size: Size
    ep_size: Size
    pp_size: Size = 1
    mixed_sizes: bool
    sealed: bool = False
    drafts: Text = NO_DRAFTS


class SealedInstance(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a prefill instance with a secret answers to a challenge. seal: in hexadecimal digits."""

    instance: Instance
    seal: Annotated[str, Meta(pattern=f"^[0-9a-f]{{{2 * SEAL_BYTES}}}$")]


# Field -> what to give alike to both instances.
ALIKE = {
    "protocol": "the version of sglang-ascend-moe",
    "model_digest": "--model-path",
    "dtype": "--dtype",
    "quantisation": "--quantization",
    "row_quant": "--ascend-moe-quant",
    "kv_dtype": "--kv-cache-dtype",
    "kv_layout": "--attention-backend",
    "page_size": "--page-size",
    "sealed": "--ascend-moe-secret-file",
    "drafts": "the --speculative flags, or none of them to the prefill instance",
}
# The same, unless both instances have --ascend-moe-mixed-sizes.
SIZES = {
    "tp_size": "--tp-size, or --ascend-moe-mixed-sizes",
    "dp_size": "--dp-size, or --ascend-moe-mixed-sizes",
    "ep_size": "--tp-size, or --ascend-moe-mixed-sizes",
    "kv_token_bytes": "--tp-size and --dp-size, or --ascend-moe-mixed-sizes",
}


def require_pair(prefill: Instance, decode: Instance) -> None:
    """Raise `ProtocolMismatch`, naming both values of everything that differs, if the two must not work together."""
    if (prefill.role, decode.role) != ("prefill", "decode"):
        raise ProtocolMismatch(
            f"a {prefill.role} instance stands where a prefill instance is expected, and a {decode.role} instance where"
            " a decode instance is; let --disaggregation-mode and the router's --prefill and --decode agree"
        )
    compared = ALIKE if prefill.mixed_sizes and decode.mixed_sizes else {**ALIKE, **SIZES}
    if prefill.drafts == NO_DRAFTS:
        # A decode instance then drafts without the prompt's keys and values, and verifies all the same.
        prefill = msgspec.structs.replace(prefill, drafts=decode.drafts)
    differences = [
        f"{field} is {getattr(prefill, field)} on the prefill and {getattr(decode, field)} on the decode instance"
        f" ({remedy})"
        for field, remedy in compared.items()
        if getattr(prefill, field) != getattr(decode, field)
    ]
    if decode.pp_size not in (1, prefill.pp_size):
        differences.append(
            f"pp_size is {prefill.pp_size} on the prefill and {decode.pp_size} on the decode instance (--pp-size, which"
            " the decode instance may leave out)"
        )
    if differences:
        raise ProtocolMismatch(
            f"the prefill instance of {prefill.model} and the decode instance of {decode.model} do not fit:"
            f" {'; '.join(differences)}"
        )


def instance_of(value: object, source: str) -> Instance:
    """The block in what `source` said. Raises `ProtocolMismatch` for everything that is not exactly that."""
    if isinstance(value, dict) and value.get("protocol", PROTOCOL_VERSION) != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"{source} speaks protocol {value['protocol']}, this instance protocol {PROTOCOL_VERSION}; install the same"
            " version of sglang-ascend-moe everywhere"
        )
    try:
        return msgspec.convert(value, Instance)
    except msgspec.ValidationError as error:
        raise ProtocolMismatch(
            f"{source} does not say what it is ({error}): serve both instances with --ascend-moe, of one version"
        ) from error


def answer_challenge(secret: Secret, instance: Instance, challenge: str) -> SealedInstance:
    """Seals `instance` for whoever drew `challenge` (hexadecimal digits). Raises `InvalidInput` if it is none."""
    try:
        drawn = bytes.fromhex(challenge)
    except ValueError:
        drawn = b""
    if len(drawn) != CHALLENGE_BYTES:
        raise InvalidInput(f"a challenge has {2 * CHALLENGE_BYTES} hexadecimal digits")
    seal = secret.seal(_PURPOSE, _PREFILL, [drawn], msgspec.json.encode(instance))
    return SealedInstance(instance=instance, seal=seal.hex())


def unsealed(secret: Secret, said: object, challenge: bytes, source: str) -> Instance:
    """The block in what `source` answered to `challenge`. Raises `ProtocolMismatch` for everything else."""
    try:
        answer = msgspec.convert(said, SealedInstance)
        data = msgspec.json.encode(answer.instance)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise ProtocolMismatch(f"{source} does not seal what it says of itself ({error})") from error
    require_seal(secret, bytes.fromhex(answer.seal), _PURPOSE, _PREFILL, [challenge], data, source)
    return instance_of(msgspec.to_builtins(answer.instance), source)


def digest_of_checkpoint(folder: Path) -> str:
    """A digest of config and weights, the same for copies of one checkpoint. Reads little of large files.

    The config counts whole, apart from notes of other software. Of each safetensors file count its size, its first
    SAMPLE_BYTES, where the names and shapes are, and as much at SAMPLES places spread over it.
    """
    digest = hashlib.sha256()
    config = json.loads((folder / "config.json").read_bytes())
    kept = {key: value for key, value in config.items() if key not in VOLATILE_KEYS}
    digest.update(json.dumps(kept, sort_keys=True).encode())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as weights:
            for sample in range(SAMPLES + 1):
                weights.seek(sample * max(0, size - SAMPLE_BYTES) // SAMPLES)
                digest.update(weights.read(SAMPLE_BYTES))
    return digest.hexdigest()[:32]
