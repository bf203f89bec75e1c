"""Sizes, gains and random tensors of the tiny checkpoints."""

import zlib
from typing import NamedTuple

import numpy
import torch


class TinySizes(NamedTuple):
    """Sizes of a tiny model. Heads and experts divide by 4, so that four ranks can share them."""

    layers: int = 4
    hidden: int = 128
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    experts: int = 16
    topk: int = 4
    expert_hidden: int = 64
    vocab: int = 768
    max_positions: int = 2048


class Init(NamedTuple):
    """Gains of the random weights: the factor by which each multiplies the standard deviation of unit input.

    Chosen by measurement: larger experts or sharper attention let the rounding of bf16 grow through the layers until
    it decides tokens; smaller ones let the model repeat itself, or say the same without its experts.
    """

    value_out: float = 0.7
    query_norm: float = 2.0  # the constant weight of q_norm: how sharply attention chooses
    router: float = 3.0
    sigmoid_router: float = 1.0  # a sharper one saturates: in bf16 the best experts would have equal scores
    correction_bias: float = 0.1
    expert_in: float = 0.5
    expert_out: float = 2.5
    head: float = 4.0


class RandomTensors:
    """The tensors of one checkpoint by name. Random ones depend on the seed and their name only."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self.by_name: dict[str, torch.Tensor] = {}

    def normal(self, name: str, *shape: int, std: float, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Add a tensor of `shape`, mean 0, standard deviation `std`, and return it."""
        generator = numpy.random.Generator(numpy.random.PCG64([self._seed, zlib.crc32(name.encode())]))
        tensor = torch.from_numpy(generator.standard_normal(shape, dtype=numpy.float32) * std).to(dtype)
        self.by_name[name] = tensor
        return tensor

    def linear(self, module: str, out_features: int, in_features: int, *, gain: float) -> None:
        """Add a weight [out_features, in_features] that multiplies the standard deviation of unit input by `gain`."""
        self.normal(f"{module}.weight", out_features, in_features, std=gain * in_features**-0.5)

    def norm(self, module: str, width: int, weight: float = 1.0) -> None:
        """Add the weight of an RMSNorm, `weight` everywhere."""
        self.by_name[f"{module}.weight"] = torch.full((width,), weight, dtype=torch.bfloat16)
