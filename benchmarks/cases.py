"""The two networks of the benchmark, with random data: for the cost only the shapes matter.

mlp   784 - 1024 - 512 - 10, ReLU, batch 256, 1,333,770 parameters
cnn   28 x 28 images with one channel, batch 64, 184,586 parameters:
          conv 5x5, 32 channels  (28 -> 24)   ReLU   max pooling 2 (-> 12)
          conv 5x5, 64 channels  (12 -> 8)    ReLU   max pooling 2 (-> 4)
          dense 1024 - 128       ReLU
          dense 128 - 10
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(784, 1024),
        nn.ReLU(),
        nn.Linear(1024, 512),
        nn.ReLU(),
        nn.Linear(512, 10),
    )


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1024, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Sequential]
    input_shape: tuple[int, ...]
    batch: int

    def model(self) -> nn.Sequential:
        """The network at its default random weights, float32, the same at every call."""
        torch.manual_seed(0)
        return self.build()

    def data(self, batch: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs (batch, *input_shape), standard normal, and class indices (batch,)."""
        generator = torch.Generator().manual_seed(1)
        count = batch or self.batch
        inputs = torch.randn(count, *self.input_shape, generator=generator)
        return inputs, torch.randint(10, (count,), generator=generator)


CASES = {
    "mlp": Case("mlp", mlp, (784,), 256),
    "cnn": Case("cnn", cnn, (1, 28, 28), 64),
}
