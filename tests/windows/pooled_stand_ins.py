"""Stand-ins for what gives windows in pooled memory, in place of NPUs: a file that all ranks map.

They have the functions that the package calls, with the C types of memfabric and the parameters of ACLSHMEM;
`test_npu_contracts` holds both against the real ones.
"""

# ruff: noqa: ARG002 - parameters are those of the real functions

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sglang_ascend_moe.windows import aclshmem, memfabric
from tests.graph_capture import npu_stand_in

GAP = 3 << 20
"""Between the windows of memfabric: they are further apart than they are long."""
FREE, TOTAL = 60 << 30, 64 << 30
UNREACHABLE = 2
"""What memfabric says of a peer that only SDMA can reach."""


class SharedFile:
    """`ranks` pieces of memory that all processes see, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.calls: list[str] = []
        self.refuse = ""
        self.unreachable: set[int] = set()
        self._folder = folder
        self._mapped: dict[int, tuple[mmap.mmap, int]] = {}

    def map(self, number: int, length: int) -> int:
        """Where this process sees file `number`."""
        descriptor = os.open(self._folder / f"pool-{number}", os.O_RDWR | os.O_CREAT)
        os.ftruncate(descriptor, length)
        memory = mmap.mmap(descriptor, length)
        os.close(descriptor)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._mapped[address] = (memory, number)
        return address

    def drop(self, address: int) -> None:
        """Tensors may still be over it; the file goes with the last of them."""
        self._mapped.pop(address)


class Memfabric:
    """`libmf_smem.so`: every function takes exactly the C types that the package declares."""

    def __init__(self, shared: SharedFile) -> None:
        self.shared = shared
        self._sizes: dict[int, int] = {}
        for name, (result, parameters) in memfabric.FUNCTIONS.items():
            function = getattr(self, f"_{name}")
            if result is not ctypes.c_char_p:
                function = ctypes.CFUNCTYPE(result, *parameters)(function)
            setattr(self, name, function)

    def _smem_init(self, flags: int) -> int:
        return self._called("smem_init")

    def _smem_get_last_err_msg(self) -> bytes:
        return b"no page of 2 MiB is free"

    def _smem_shm_config_init(self, config: int) -> int:
        made = ctypes.cast(config, ctypes.POINTER(memfabric.ShmConfig)).contents
        made.init_timeout_s = made.create_timeout_s = made.control_timeout_s = 120
        return 0

    def _smem_shm_init(self, url: bytes, ranks: int, rank: int, device: int, config: int) -> int:
        made = ctypes.cast(config, ctypes.POINTER(memfabric.ShmConfig)).contents
        assert url.startswith(b"tcp://127.0.0.1:")
        assert rank < ranks
        assert made.init_timeout_s > 120
        assert made.starts_store
        return self._called("smem_shm_init")

    def _smem_shm_uninit(self, flags: int) -> None:
        self._called("smem_shm_uninit")

    def _smem_shm_create(self, number: int, ranks: int, rank: int, size: int, kind: int, flags: int, base: int) -> int:
        assert size % (2 << 20) == 0
        assert (kind, flags) == (1, 0)
        if self._called("smem_shm_create"):
            return 0
        address = self.shared.map(number, ranks * (size + GAP))
        self._sizes[address] = size + GAP
        ctypes.cast(base, ctypes.POINTER(ctypes.c_uint64))[0] = address
        return address

    def _smem_shm_get_symmetric_size(self, handle: int) -> int:
        return self._sizes[handle]

    def _smem_shm_topology_can_reach(self, handle: int, peer: int, reach: int) -> int:
        found = UNREACHABLE if peer in self.shared.unreachable else 3
        ctypes.cast(reach, ctypes.POINTER(ctypes.c_uint32))[0] = found
        return 0

    def _smem_shm_destroy(self, handle: int, flags: int) -> int:
        self.shared.drop(handle)
        return self._called("smem_shm_destroy")

    def _called(self, name: str) -> int:
        self.shared.calls.append(name)
        return -1 if self.shared.refuse == name else 0


class Aclshmem(types.ModuleType):
    """The Python module `shmem`; parameters as `src/host/python_wrapper/pyshmem.cpp` names them."""

    def __init__(self, shared: SharedFile) -> None:
        super().__init__("shmem")
        self.shared = shared
        self._distance = 0

    def set_conf_store_tls(self, enable: bool, tls_info: str) -> int:
        assert (enable, tls_info) == (False, "")
        return self._called("set_conf_store_tls")

    def aclshmem_get_unique_id(self) -> bytes:
        if self._called("get_unique_id") or not {"SHMEM_UID_SESSION_ID", "SHMEM_UID_SOCK_IFNAME"} & os.environ.keys():
            raise RuntimeError("aclshmemx_get_uniqueid failed")
        return b"unique" * 20

    def aclshmem_init_using_unique_id(self, mype: int, npes: int, mem_size: int, uid: bytes) -> int:
        assert uid == b"unique" * 20
        assert mype < npes
        self._pe, self._distance, self._pes = mype, mem_size, npes
        return self._called("init")

    def aclshmem_align(self, alignment: int, size: int) -> int:
        assert size % (2 << 20) == 0
        assert size < self._distance
        if self._called("align"):
            raise RuntimeError("aclshmem_align failed")
        self._base = self.shared.map(0, self._pes * self._distance)
        return self._base + self._pe * self._distance

    def aclshmem_ptr(self, ptr: int, peer: int) -> int:
        return 0 if peer in self.shared.unreachable else ptr + (peer - self._pe) * self._distance

    def aclshmem_free(self, ptr: int) -> None:
        self._called("free")
        self.shared.drop(self._base)

    def aclshmem_finalize(self) -> int:
        return self._called("finalize")

    def _called(self, name: str) -> int:
        self.shared.calls.append(name)
        return 7 if self.shared.refuse == name else 0


def torch_npu() -> types.ModuleType:
    """Makes tensors over memory that is someone else's."""
    made = types.ModuleType("torch_npu")

    def storage_at(address: int, _device: torch.device, nbytes: int) -> torch.UntypedStorage:
        memory = (ctypes.c_char * nbytes).from_address(address)
        return torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()

    def tensor_of(described: dict, storage: torch.UntypedStorage) -> torch.Tensor:
        empty = torch.empty(0, dtype=described["dtype"], device=described["device"])
        return empty.set_(storage, described["storage_offset"], described["size"], described["stride"])

    made._C = types.SimpleNamespace(
        _construct_storage_from_data_pointer=storage_at, _construct_NPU_Tensor_From_Storage_And_Metadata=tensor_of
    )
    return made


@contextmanager
def in_place_of_devices(folder: Path) -> Iterator[SharedFile]:
    """Inside, both providers are installed and give memory of `folder`, which all ranks share."""
    shared = SharedFile(folder)
    with pytest.MonkeyPatch.context() as patch:
        npu = npu_stand_in.install(patch)
        npu.mem_get_info = lambda _device=None: (FREE, TOTAL)
        library = Memfabric(shared)
        patch.setattr(memfabric, "load", lambda: library)
        for provider in (memfabric, aclshmem):
            patch.setattr(provider, "is_installed", lambda: True)
        patch.setitem(sys.modules, "shmem", Aclshmem(shared))
        patch.setitem(sys.modules, "torch_npu", torch_npu())
        yield shared
