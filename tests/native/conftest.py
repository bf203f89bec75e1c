from tests.exchange.conftest import fresh_pool, pools

__all__ = ["fresh_pool", "pools"]
