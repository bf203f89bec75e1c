"""A hook into SGLang either works or stops the server that asked for it; it is never silently absent.

SGLang is imported inside the tests only: it takes long, and other tests fork their ranks from this process.
"""

import argparse
import sys
import types
from typing import Any

import pytest

from sglang_ascend_moe.errors import InvalidInput, Unsupported
from sglang_ascend_moe.serving import hooks, plugin, sglang_release
from sglang_ascend_moe.serving.hooks import Hook, HookKind, SglangFault, State, Where
from sglang_ascend_moe.serving.host import expert_recording, fixes, host_models, unnamed_memory
from sglang_ascend_moe.serving.launcher import arguments, request_checks
from sglang_ascend_moe.serving.launcher.exit_codes import CANNOT
from sglang_ascend_moe.serving.npu import four_bit_settings, routers
from sglang_ascend_moe.serving.options import READY_KEY, STARTUP_TIMES, Options, attach
from sglang_ascend_moe.serving.sglang_release import TESTED, TESTED_ON_NPUS
from sglang_ascend_moe.serving.sglang_release import installed as installed_release
from sglang_ascend_moe.serving.worker import transfer_rooms

# Modules that hold nothing but what SGLang could do itself.
MENDING = (
    expert_recording, fixes, four_bit_settings, host_models, request_checks, routers, transfer_rooms, unnamed_memory
)  # fmt: skip
REASON = "the test needs it"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Any:
    """SGLang's registry without any hook in it."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setattr(HookRegistry, "_hooks", type(HookRegistry._hooks)(list))
    monkeypatch.setattr(HookRegistry, "_patched", set())
    monkeypatch.setattr(hooks, "_table", ())
    return HookRegistry


@pytest.fixture
def target(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module with something to hook, importable as `hook_target`."""
    module = types.ModuleType("hook_target")
    module.answer = lambda: 1
    module.flag = False
    module.Thing = type("Thing", (), {"size": lambda _self: 1})
    monkeypatch.setitem(sys.modules, "hook_target", module)
    return module


def installed(registry: Any, *table: Hook) -> list[hooks.HookState]:
    hooks.install(table)
    registry.apply_hooks()
    return hooks.states()


# Earlier releases are served on hosts only, or on NPUs only.
SERVED = {Where.HOST: TESTED, Where.NPU: TESTED_ON_NPUS}
OF_THIS_RELEASE = [
    hook
    for hook in plugin.TABLE
    if hooks.needed_in(hook) and installed_release() in SERVED.get(hook.where, (installed_release(),))
]


@pytest.fixture
def norm_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel of NPUs that releases before 0.5.23 import with a module of a hook."""
    if sglang_release.reaches("0.5.23"):
        return
    for name in ("sgl_kernel_npu", "sgl_kernel_npu.norm", "sgl_kernel_npu.norm.l1_norm"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setattr(sys.modules["sgl_kernel_npu.norm.l1_norm"], "l1_norm", None, raising=False)


@pytest.mark.usefixtures("norm_kernel")
@pytest.mark.parametrize("hook", OF_THIS_RELEASE, ids=lambda hook: hook.target.removeprefix("sglang.srt."))
def test_the_target_exists_in_the_installed_sglang(hook: Hook):
    # Of the table's first rows in every process; the modules of NPUs cannot be imported before it.
    import sglang.srt.model_executor.model_runner  # noqa: F401

    assert hooks.obstacle(hook) == ""


def test_every_row_says_why_and_is_there_once():
    assert [hook.target for hook in plugin.TABLE if len(hook.reason.split()) < 5] == []
    assert len({(hook.target, hook.value, hook.where) for hook in plugin.TABLE}) == len(plugin.TABLE)


def test_every_row_that_mends_sglang_is_marked():
    def home(hook: Hook) -> str:
        return getattr(hook.value, "__module__", getattr(hook.value, "__name__", ""))

    mending = {module.__name__ for module in MENDING}
    assert [hook.target for hook in plugin.TABLE if home(hook) in mending and hook.mends is None] == []
    assert mending <= {home(hook) for hook in plugin.TABLE}


@pytest.mark.parametrize(
    ("fault", "until"),
    [
        (SglangFault(), "until SGLang mends it"),
        (SglangFault(discussed="#1"), "until SGLang mends it (#1)"),
        (SglangFault(discussed="#1", mended_in="0.6.0"), "until SGLang 0.6.0 (#1)"),
    ],
    ids=["unknown", "discussed", "mended"],
)
def test_a_mark_says_until_when_the_hook_is_needed(fault: SglangFault, until: str):
    assert fault.until() == until


@pytest.mark.parametrize(
    ("kind", "value", "result"),
    [
        (HookKind.BEFORE, lambda: None, 1),
        (HookKind.AFTER, lambda result: result + 10, 11),
        (HookKind.AROUND, lambda original: original() + 20, 21),
        (HookKind.REPLACE, lambda: 30, 30),
        (HookKind.SET, lambda: 40, 40),
    ],
    ids=lambda value: value.value if isinstance(value, HookKind) else None,
)
def test_a_hook_changes_its_target_and_is_seen_applied(registry, target, kind: HookKind, value, result: int):
    (found,) = installed(registry, Hook("hook_target.answer", kind, value, REASON))
    assert (found.state, found.detail) == (State.APPLIED, "")
    assert target.answer() == result
    hooks.require_all()


def test_an_added_attribute_must_be_new(registry, target):
    new = Hook("hook_target.Thing.weight", HookKind.ADD, lambda _self: 7, REASON)
    taken = Hook("hook_target.Thing.size", HookKind.ADD, lambda _self: 7, REASON)
    first, second = installed(registry, new, taken)
    assert (first.state, second.state) == (State.APPLIED, State.FAILED)
    assert "'size' of its own" in second.detail
    assert (target.Thing().weight(), target.Thing().size()) == (7, 1)


@pytest.mark.parametrize(
    ("path", "detail"),
    [
        ("hook_target.question", "no attribute 'question'"),
        ("hook_target.Absent.size", "Absent"),
        ("hook_target_that_is_not_there.answer", "hook_target_that_is_not_there"),
    ],
    ids=["no function", "no class", "no module"],
)
@pytest.mark.parametrize("kind", [HookKind.AROUND, HookKind.SET], ids=lambda kind: kind.value)
@pytest.mark.usefixtures("target")
def test_a_target_that_does_not_exist_is_named_with_its_reason(registry, kind: HookKind, path: str, detail: str):
    good = Hook("hook_target.answer", HookKind.AFTER, lambda result: result, REASON)
    _, bad = installed(registry, good, Hook(path, kind, lambda original: original(), REASON))
    assert bad.state is State.FAILED
    assert detail in bad.detail
    with pytest.raises(Unsupported) as refusal:
        hooks.require_all()
    assert f"1 of 2 hooks did not apply: {path}" in str(refusal.value)
    assert REASON in str(refusal.value)
    assert "hook_target.answer" not in str(refusal.value)


@pytest.mark.usefixtures("target")
def test_a_hook_that_sglang_could_not_apply_counts_as_failed(registry):
    # SGLang refuses to wrap a class, and only logs it.
    (found,) = installed(registry, Hook("hook_target.Thing", HookKind.AROUND, lambda original: original(), REASON))
    assert (found.state, found.detail) == (State.FAILED, "SGLang did not apply it")


def test_a_host_hook_is_left_out_on_another_platform(registry, target, monkeypatch: pytest.MonkeyPatch):
    from sglang.srt import platforms
    from sglang.srt.platforms.interface import SRTPlatform

    monkeypatch.setattr(platforms, "_current_platform", SRTPlatform())
    (found,) = installed(registry, Hook("hook_target.flag", HookKind.SET, True, REASON, Where.HOST))
    assert found.state is State.NOT_APPLICABLE
    assert target.flag is False
    hooks.require_all()


@pytest.mark.parametrize("found", [True, False])
@pytest.mark.parametrize("release", ["0.5.18", "0.5.20"])
def test_a_release_without_a_platform_for_npus_is_asked_for_the_device(monkeypatch, release: str, found: bool):
    from sglang.srt import platforms, utils
    from sglang.srt.platforms.device_mixin import PlatformEnum
    from sglang.srt.platforms.interface import SRTPlatform

    class OfNpus(SRTPlatform):
        _enum = PlatformEnum.NPU

    monkeypatch.setattr(sglang_release, "installed", lambda: release)
    monkeypatch.setattr(utils, "is_npu", lambda: found)
    own = found and release == "0.5.20"
    monkeypatch.setattr(platforms, "_current_platform", OfNpus() if own else SRTPlatform())
    assert hooks.on_npu() is found


@pytest.mark.parametrize(
    ("since", "until", "mended_in", "detail"),
    [
        ("", "", "", ""),
        ("0.5.22", "", "0.5.24", ""),
        ("0.5.23", "0.5.24", "", ""),
        ("0.5.24", "", "", "only from SGLang 0.5.24 on"),
        ("", "0.5.23", "", "only before SGLang 0.5.23"),
        ("0.5.18", "0.5.20", "", "only before SGLang 0.5.20"),
        ("", "", "0.5.23", "only until SGLang 0.5.23"),
        ("", "", "0.5.9", "only until SGLang 0.5.9"),
    ],
)
def test_a_hook_is_left_out_of_releases_that_do_not_need_it(
    registry, target, monkeypatch: pytest.MonkeyPatch, since: str, until: str, mended_in: str, detail: str
):
    monkeypatch.setattr(sglang_release, "installed", lambda: "0.5.23")
    mends = SglangFault(mended_in=mended_in)
    hook = Hook("hook_target.flag", HookKind.SET, True, REASON, mends=mends, since=since, until=until)
    (found,) = installed(registry, hook)
    assert found.state is (State.NOT_APPLICABLE if detail else State.APPLIED)
    assert found.detail == detail
    assert target.flag is not bool(detail)
    hooks.require_all()


def test_a_hook_that_waits_does_not_fit_a_function_that_nobody_awaits(registry, target):
    async def waiting(original):
        return await original()

    (found,) = installed(registry, Hook("hook_target.answer", HookKind.AROUND, waiting, REASON))
    assert (found.state, found.detail) == (State.FAILED, "answer of hook_target is not awaited")
    assert target is not None


def test_the_cpu_of_another_platform_is_refused(registry, monkeypatch: pytest.MonkeyPatch):
    from sglang.srt import platforms
    from sglang.srt.platforms.interface import SRTPlatform

    monkeypatch.setattr(platforms, "_current_platform", SRTPlatform())
    assert registry._hooks == {}
    with pytest.raises(Unsupported, match="host platform of sglang-ascend-moe is not active"):
        arguments.refuse_machine(arguments_of_a_server(), Options())


def test_a_provider_of_pooled_memory_is_refused_for_windows_of_the_host():
    with pytest.raises(Unsupported, match="--ascend-moe-windows: windows of the host need no provider"):
        arguments.refuse_machine(arguments_of_a_server(), Options(windows="memfabric"))


BROKEN = "hook_target.question"


@pytest.fixture
def broken(registry, target) -> None:
    """A hook that does not apply."""
    assert not hasattr(target, "question")
    installed(registry, Hook(BROKEN, HookKind.AFTER, lambda result: result, REASON))


def arguments_of_a_server(options: Options | None = None, **settings: object) -> Any:
    from sglang.srt.server_args import ServerArgs

    server_args = ServerArgs(model_path="dummy", **{"device": "cpu", **settings})
    if options is not None:
        attach(server_args, options)
    return server_args


@pytest.mark.usefixtures("broken")
def test_a_broken_hook_stops_the_start_up_that_asked_for_it():
    resolved = []
    with pytest.raises(Unsupported, match=BROKEN):
        arguments.resolve_once(resolved.append, arguments_of_a_server(Options()))
    assert resolved == []


def test_a_secret_that_cannot_be_used_stops_the_start_up(monkeypatch, tmp_path):
    monkeypatch.setattr(arguments.hooks, "require_all", lambda: None)
    server_args, resolved = arguments_of_a_server(Options(secret_file=str(tmp_path / "secret"))), []
    with pytest.raises(InvalidInput, match=r"--ascend-moe-secret-file '.*secret' cannot be opened"):
        arguments.resolve_once(resolved.append, server_args)
    assert resolved == []


@pytest.mark.parametrize("name", ["post_mortem", "trace"])
def test_a_folder_that_cannot_be_written_stops_the_start_up(monkeypatch, tmp_path, name):
    monkeypatch.setattr(arguments.hooks, "require_all", lambda: None)
    (blocker := tmp_path / "file").touch()
    server_args, resolved = arguments_of_a_server(Options(**{name: str(blocker / "folder")})), []
    with pytest.raises(InvalidInput, match=f"--ascend-moe-{name.replace('_', '-')} .*folder: Not a directory; give"):
        arguments.resolve_once(resolved.append, server_args)
    assert resolved == []


@pytest.mark.usefixtures("broken")
def test_a_broken_hook_leaves_stock_sglang_alone():
    server_args, resolved = arguments_of_a_server(), []
    arguments.resolve_once(resolved.append, server_args)
    assert resolved == [server_args]
    assert server_args.moe_a2a_backend == "none"


@pytest.mark.usefixtures("broken")
def test_a_broken_hook_stops_a_worker_before_it_builds_the_model():
    from sglang_ascend_moe.serving.worker import layer

    layer.check_before_model(argparse.Namespace(server_args=arguments_of_a_server()))
    with pytest.raises(Unsupported, match=BROKEN):
        layer.check_before_model(argparse.Namespace(server_args=arguments_of_a_server(Options())))


@pytest.mark.usefixtures("broken")
def test_a_broken_hook_refuses_the_flag_on_the_command_line(capsys: pytest.CaptureFixture[str]):
    parser = argparse.ArgumentParser()
    arguments.add_flags_to_parser(None, parser)
    assert parser.parse_args([]).ascend_moe is False
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--ascend-moe"])
    assert stop.value.code == CANNOT
    [said] = capsys.readouterr().err.splitlines()
    assert BROKEN in said


def test_a_worker_without_an_open_exchange_stops_the_launcher(monkeypatch: pytest.MonkeyPatch):
    server_args = argparse.Namespace()
    attach(server_args, Options())
    monkeypatch.setattr("sglang.srt.runtime_context.get_server_args", lambda: server_args)
    ready = [{STARTUP_TIMES: {"load_weight": 1.0, READY_KEY: True}} for _ in range(2)]
    arguments.require_ready_workers(ready)
    assert ready == [{STARTUP_TIMES: {"load_weight": 1.0}}] * 2, "SGLang shows the times"
    with pytest.raises(Unsupported, match="not active in scheduler process 1, 2"):
        said = ({READY_KEY: True}, {READY_KEY: False}, {})
        arguments.require_ready_workers([{STARTUP_TIMES: times} for times in said])


@pytest.mark.parametrize(
    ("said", "ready"),
    [([True, True], True), ([True, False], False), ([True, None], False), ([], False)],
    ids=["all open", "one closed", "one silent", "none heard"],
)
def test_the_controller_passes_on_that_all_of_its_workers_are_ready(said: list[bool | None], ready: bool):
    from sglang_ascend_moe.serving.worker import layer

    times = ({} if value is None else {READY_KEY: value} for value in said)
    together = layer.report_all_ready(lambda given: {"heard": len(given)}, times)
    assert together == {"heard": len(said), **({READY_KEY: True} if ready else {})}


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"moe_a2a_backend": "mori"}, InvalidInput, "--moe-a2a-backend mori"),
        ({"tp_size": 4, "ep_size": 2}, Unsupported, "use --ep-size 4"),
        ({"device": "npu"}, Unsupported, "torch_npu is not installed"),
        ({"device": "cuda"}, Unsupported, "--device cuda"),
    ],
    ids=["another backend", "ep smaller than tp", "npu without torch_npu", "cuda"],
)
@pytest.mark.usefixtures("registry")
def test_a_start_up_that_cannot_work_is_refused_before_resolution(settings, error, named: str):
    resolved = []
    with pytest.raises(error, match=named):
        arguments.resolve_once(resolved.append, arguments_of_a_server(Options(), **settings))
    assert resolved == []
