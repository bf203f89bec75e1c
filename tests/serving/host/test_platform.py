"""What SGLang asks of the platform without accelerator."""

import torch

from sglang_ascend_moe.serving.host import earlier_platform


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


def test_graphs_are_captured_and_keys_lie_in_pools_of_sglang():
    from sglang.srt.platforms import current_platform

    assert current_platform.capabilities.graph_capture
    assert [current_platform.get_kv_pool_cls(kind=kind) for kind in ("mha", "mla", "dsa")] == [None] * 3
    assert current_platform.get_paged_allocator_cls() is None


def test_releases_that_ask_for_it_are_told_what_gives_each_token_a_place():
    allocator = earlier_platform.get_paged_allocator_cls(None)
    places = allocator(3, page_size=1, dtype=torch.bfloat16, device="cpu", kvcache=None, need_sort=False)
    assert (places.alloc(3).tolist(), places.alloc(1)) == ([1, 2, 3], None)


def test_releases_that_ask_for_it_are_told_where_latent_keys_lie():
    pool = earlier_platform.get_mla_kv_pool_cls(None)
    keys = pool(
        3,
        page_size=1,
        dtype=torch.bfloat16,
        kv_lora_rank=4,
        qk_rope_head_dim=2,
        index_head_dim=None,
        layer_num=1,
        device="cpu",
        enable_memory_saver=False,
    )
    assert keys.get_key_buffer(0).shape == (4, 1, 6)
