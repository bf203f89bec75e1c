"""What SGLang asks of the platform without accelerator."""


def test_a_server_that_is_told_no_device_takes_the_cpu():
    """SGLang uses the answer as the text of `--device`."""
    from sglang.srt.utils import get_device

    assert get_device() == "cpu"
    assert isinstance(get_device(), str)
