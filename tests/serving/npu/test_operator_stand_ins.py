"""The stand-ins for operators have the schemas with which torch_npu registers the real ones."""

import pytest

from tests.serving.npu.operator_stand_ins import SCHEMAS
from tests.versions.npu_wheels import TORCH_NPU, wheel


@pytest.mark.parametrize("version", TORCH_NPU)
def test_schemas_are_those_of_torch_npu(request, version, tmp_path):
    wheel(TORCH_NPU[version], request.config).extract("torch_npu/lib/libtorch_npu.so", tmp_path)
    library = (tmp_path / "torch_npu/lib/libtorch_npu.so").read_bytes()
    assert [schema for schema in SCHEMAS if schema.encode() + b"\0" not in library] == []
