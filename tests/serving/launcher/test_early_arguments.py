"""Server arguments that are resolved while they are made carry what was asked of this package before."""

from argparse import Namespace
from types import SimpleNamespace

import pytest

from sglang_ascend_moe.errors import InvalidInput
from sglang_ascend_moe.serving import sglang_release
from sglang_ascend_moe.serving.launcher import arguments, command_line, early_arguments, early_resolution, resolution
from sglang_ascend_moe.serving.options import Options, options_of


class ServerArgs:
    """As SGLang's: its making ends with the resolution of what it has been given."""

    def __init__(self, **given: object) -> None:
        self.given = given
        early_arguments.resolve(lambda _: None, self)


@pytest.fixture
def resolved(monkeypatch) -> list[tuple[object, Options | None]]:
    """What has been resolved, and with which options."""
    seen = []
    monkeypatch.setattr(arguments, "resolve_once", lambda _, made: seen.append((made, options_of(made))))
    monkeypatch.setattr("sglang.srt.server_args.ServerArgs", ServerArgs)
    return seen


@pytest.mark.parametrize(
    ("given", "options"),
    [({"ascend_moe": True, "ascend_moe_quant": "int8"}, Options(quant="int8")), ({"ascend_moe": False}, None)],
    ids=["asked", "not asked"],
)
def test_arguments_of_a_command_line_are_resolved_with_their_options(resolved, given, options):
    def from_cli_args(_cls: type, args: Namespace) -> ServerArgs:
        return ServerArgs(**vars(args))

    made = early_arguments.make_from_flags(from_cli_args, ServerArgs, Namespace(**given))
    assert resolved == [(made, options)]
    assert command_line.is_of_one(made)


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"ascend_moe": True, "sleep_on_idle": False}, Options(stay_awake=True)),
        ({"ascend_moe": True}, Options()),
        ({}, None),
    ],
    ids=["awake", "asked", "not asked"],
)
def test_arguments_of_an_engine_are_resolved_with_their_options(resolved, given, options):
    made = early_arguments.engine_server_args(tp_size=2, **given)
    assert resolved == [(made, options)]
    assert "ascend_moe" not in made.given
    assert not command_line.is_of_one(made)


def test_options_that_cannot_be_are_refused_and_not_kept_for_others(resolved):
    with pytest.raises(InvalidInput):
        early_arguments.engine_server_args(ascend_moe=True, ascend_moe_quant="int4")
    others = ServerArgs()
    assert resolved == [(others, None)]


@pytest.mark.parametrize(
    ("release", "attribute"), [("0.5.18", "_declarations_materialized"), ("0.5.20", "_resolution_finished")]
)
def test_a_release_says_in_its_own_way_that_settings_are_resolved(monkeypatch, release: str, attribute: str):
    monkeypatch.setattr(sglang_release, "installed", lambda: release)
    assert resolution.is_resolved(SimpleNamespace(**{attribute: True}))
    assert not resolution.is_resolved(SimpleNamespace(_other=True))


@pytest.mark.parametrize(("resolved", "backend"), [(False, "declared"), (True, "written")])
def test_what_is_written_late_is_read_where_declarations_stay(monkeypatch, resolved: bool, backend: str):
    from sglang.srt.arg_groups import overrides

    made = SimpleNamespace(moe_a2a_backend="written", _declarations_materialized=resolved)
    overlaid = SimpleNamespace(moe_a2a_backend="declared")
    monkeypatch.setattr(overrides, "resolved_view", lambda given: overlaid if given is made else None, raising=False)
    assert early_resolution.settings_of(made).moe_a2a_backend == backend


def test_values_are_written_in_place_where_settings_are_resolved_in_place(monkeypatch):
    from sglang.srt.arg_groups import overrides

    def write(server_args: SimpleNamespace, _source: str, **fields: object) -> None:
        vars(server_args).update(fields)

    monkeypatch.setattr(sglang_release, "installed", lambda: "0.5.18")
    monkeypatch.setattr(overrides, "declare_late_resolution", write, raising=False)
    made = SimpleNamespace(moe_a2a_backend="none", get_model_config=lambda: "config", use_mla_backend=lambda: True)
    resolution.declare(made, moe_a2a_backend="ascend_fuseep")
    assert made.moe_a2a_backend == "ascend_fuseep"
    assert (resolution.model_config_of(made), resolution.attends_latently(made)) == ("config", True)
