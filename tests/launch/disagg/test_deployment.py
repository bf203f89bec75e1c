"""A deployment is read strictly from TOML, and every error names the key."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.launch.disagg.deployment import Deployment, Role, deployment_of, read_deployment
from sglang_ascend_moe.launch.disagg.server_flags import NodePlace, server_flags, written

SMALL = 'model_path = "m"\n'
PLACE = NodePlace(bootstrap_port=8998)


def read(folder: Path, text: str) -> Deployment:
    file = folder / "deployment.toml"
    file.write_text(text)
    return read_deployment(file)


def test_a_model_is_enough(tmp_path: Path):
    assert read(tmp_path, SMALL) == Deployment(model_path="m")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "model_path"),
        (SMALL + "modle = 1", "modle"),
        (SMALL + "[prefill]\ntp-size = 2", "prefill: .*tp-size"),
        (SMALL + "[prefill]\ntp_size = '2'", "prefill.tp_size: "),
        (SMALL + "[decode]\ninstances = 0", "decode.instances: "),
        (
            SMALL + "[decode]\ntp_size = 3\ndp_size = 2",
            "decode.tp_size 3: must be a multiple of decode.dp_size, which is 2",
        ),
        (
            SMALL + "[prefill]\ntp_size = 3\nnodes = 2",
            "prefill.tp_size 3: must be a multiple of prefill.nodes, which is 2",
        ),
        (SMALL + "[decode]\ntp_size = 64\ndp_size = 64", "decode.max_running_requests 32"),
        (SMALL + "[decode]\noptions = { port = 1 }", "decode.options.port"),
        (SMALL + "[decode]\noptions = { page_size = 1 }", "decode.options"),
        (SMALL + "[decode]\noptions = { page-size = [1] }", "decode.options"),
        (SMALL + "[router]\nkind = 'nginx'", "router.kind"),
        (SMALL + "[router]\nport = 70000", "router.port"),
        (SMALL + "[ascend]\ndist_port = 65522", "ascend.dist_port"),
        ("name = 'Has Blanks'\n" + SMALL, "name"),
        ("= 1", "not TOML"),
    ],
    ids=lambda value: value.replace("\n", "; ")[-40:],
)
def test_an_error_names_its_key(tmp_path: Path, text: str, key: str):
    with pytest.raises(InvalidInput, match=rf"--file .*deployment\.toml: .*{key}"):
        read(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(InvalidInput, match=r"--file .*absent"):
        read_deployment(tmp_path / "absent")


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_a_server_gets_the_flags_of_its_role_only(name: str):
    flags = server_flags(Deployment(model_path="m"), name, "host", PLACE)
    assert flags[flags.index("--disaggregation-mode") + 1] == name
    assert ("--disable-overlap-schedule" in flags) == (name == "prefill")
    assert ("--chunked-prefill-size" in flags) == (name == "prefill")
    assert ("--disaggregation-bootstrap-port" in flags) == (name == "prefill")
    assert ("--disaggregation-decode-retraction-backup" in flags) == (name == "decode")
    assert "--ascend-moe" in flags


def test_options_go_before_what_a_role_gets_by_default():
    role = Role(options={"disable-overlap-schedule": False, "page-size": 16, "dtype": "float32"})
    flags = server_flags(Deployment(model_path="m", prefill=role), "prefill", "host", PLACE)
    assert "--disable-overlap-schedule" not in flags
    assert flags[flags.index("--page-size") + 1] == "16"
    assert flags[flags.index("--dtype") + 1] == "float32"


@pytest.mark.parametrize("target", ["host", "ascend"])
@pytest.mark.parametrize(
    ("options", "required"),
    [
        ({}, True),
        ({"ascend-moe-schedule": "decode"}, True),
        ({"ascend-moe-schedule": "collective"}, False),
        ({"disable-cuda-graph": True}, False),
        ({"ascend-moe-require-graphs": False}, False),
    ],
    ids=str,
)
def test_decode_servers_have_to_serve_from_graphs_unless_the_file_says_otherwise(
    target: str, options: dict[str, str | bool], required: bool
):
    deployment = Deployment(model_path="m", prefill=Role(options=options), decode=Role(options=options))
    assert "--ascend-moe-require-graphs" not in server_flags(deployment, "prefill", target, PLACE)
    assert ("--ascend-moe-require-graphs" in server_flags(deployment, "decode", target, PLACE)) == required


@pytest.mark.parametrize(
    ("sizes", "mixed"),
    [
        ({}, False),
        ({"tp_size": 2}, True),
        ({"tp_size": 2, "dp_size": 2}, True),
        ({"options": {"attn-cp-size": 2}}, True),
        ({"options": {"page-size": 64}}, False),
    ],
    ids=str,
)
def test_servers_are_told_that_their_sizes_may_differ_only_if_they_do(sizes: dict[str, int], mixed: bool):
    deployment = Deployment(model_path="m", decode=Role(**sizes))
    for name in deployment.roles:
        assert ("--ascend-moe-mixed-sizes" in server_flags(deployment, name, "host", PLACE)) == mixed


flag_values = st.booleans() | st.integers() | st.text("abc", min_size=1)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), flag_values))
def test_written_flags_hold_every_value_once(flags: dict[str, bool | int | str]):
    words = written(flags)
    names = [word.removeprefix("--") for word in words if word.startswith("--")]
    assert names == [name for name, value in flags.items() if value is not False]
    assert [word for word in words if not word.startswith("--")] == [
        str(value) for value in flags.values() if not isinstance(value, bool)
    ]


def test_values_of_flags_are_checked_like_those_of_a_file():
    with pytest.raises(InvalidInput, match=r"flags: .*prefill\.instances: "):
        deployment_of({"model_path": "m", "prefill": {"instances": 0}}, "flags")


def test_stages_have_ranks_each_and_nodes_whole_stages_or_parts_of_one(tmp_path: Path):
    text = SMALL + "[prefill]\ntp_size = 4\npp_size = 8\nnodes = 2\n[decode]\ntp_size = 4\n"
    deployment = read(tmp_path, text)
    assert (deployment.prefill.ranks, deployment.prefill.ranks_per_node, deployment.ranks) == (32, 16, 36)
    flags = server_flags(deployment, "prefill", "ascend", PLACE)
    assert flags[flags.index("--pp-size") + 1] == "8"
    assert "--pp-size" not in server_flags(deployment, "decode", "ascend", PLACE)
    assert not deployment.mixed_sizes
    with pytest.raises(InvalidInput, match=r"prefill\.pp_size 3: must be a multiple of prefill\.nodes, which is 2"):
        read(tmp_path, SMALL + "[prefill]\ntp_size = 4\npp_size = 3\nnodes = 2")
    with pytest.raises(InvalidInput, match=r"decode\.pp_size 2: must be 1, or prefill\.pp_size, which is 4"):
        read(tmp_path, SMALL + "[prefill]\npp_size = 4\n[decode]\npp_size = 2")
