"""What SGLang asks of the platform without accelerator."""


def test_a_server_that_is_told_no_device_takes_the_cpu():
    """SGLang uses the answer as the text of `--device`."""
    from sglang.srt.utils import get_device

    assert get_device() == "cpu"
    assert isinstance(get_device(), str)


def test_a_profiler_records_the_cpu():
    """SGLang asks the platform what `/start_profile` can record besides CPU and GPU."""
    from sglang.srt.platforms import current_platform
    from torch.profiler import ProfilerActivity

    assert current_platform.get_torch_profiler_activity_str() == "CPU"
    assert current_platform.get_torch_profiler_activity() is ProfilerActivity.CPU
