from tests.exchange.conftest import fresh_pool, pools, ranks

__all__ = ["fresh_pool", "pools", "ranks"]
