"""The random tensors of the tiny checkpoints."""

import zlib

import numpy
import torch


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
