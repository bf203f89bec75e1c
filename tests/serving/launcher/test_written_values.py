"""Files and JSON that SGLang's flags take are read before a rank would be ended by them."""

from pathlib import Path

import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving.launcher import given_flags
from sglang_ascend_moe.serving.launcher.written_values import _TABLE, refuse_written_values


def settings_with(flag: str, value: str):
    return given_flags.read(["--model-path", "model", flag, value]).settings


OBJECTS = (
    "--model-loader-extra-config", "--json-model-override-args", "--kv-events-config", "--hisparse-config",
    "--hicache-storage-backend-extra-config", "--deepep-config",
)  # fmt: skip
FILES = (
    "--deepep-config", "--speculative-adaptive-config", "--quantization-param-path", "--msprobe-dump-config",
    "--dllm-algorithm-config", "--pdmux-config-path", "--speculative-ngram-external-corpus-path",
)  # fmt: skip


@pytest.mark.parametrize("flag", OBJECTS)
@pytest.mark.parametrize("value", ["{", "[1]", "3", '"text"'], ids=["cut-off", "list", "number", "text"])
def test_a_text_that_is_no_object_is_refused_with_its_flag(flag: str, value: str):
    with pytest.raises(InvalidInput) as refused:
        refuse_written_values(settings_with(flag, value))
    assert str(refused.value).startswith(f"{flag} {value}: must be ")


@pytest.mark.parametrize("flag", OBJECTS)
def test_an_object_passes(flag: str):
    refuse_written_values(settings_with(flag, '{"a": 1}'))


@pytest.mark.parametrize("flag", [*FILES, "--chat-template", "--completion-template"])
def test_a_file_that_is_not_there_is_refused_with_its_flag(flag: str, tmp_path: Path):
    path = tmp_path / "missing.json"
    with pytest.raises(InvalidInput) as refused:
        refuse_written_values(settings_with(flag, str(path)))
    assert str(refused.value).startswith(f"{flag} {path}: must be a file that can be read")
    path.write_text("{}")
    refuse_written_values(settings_with(flag, str(path)))


def test_a_template_of_sglang_is_known_by_its_name():
    refuse_written_values(settings_with("--chat-template", "chatml"))


def test_a_storage_file_is_marked(tmp_path: Path):
    flag = "--hicache-storage-backend-extra-config"
    with pytest.raises(InvalidInput, match="must be a file that can be read"):
        refuse_written_values(settings_with(flag, f"@{tmp_path}/missing.toml"))


def test_every_setting_of_the_table_is_one_of_sglang():
    assert [written.name for written in _TABLE if not given_flags.flags_of(written.name)] == []
    assert all(given_flags.flags_of(written.name)[0] == f"--{written.name.replace('_', '-')}" for written in _TABLE)
