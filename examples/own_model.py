"""Your own model and data: which layers of a small transformer are noisy, from a budget of samples.

    python examples/own_model.py

A sequence classifier with attention (LayerNorm, packed projections, a custom positional parameter) on random data. The
estimate from a quarter of the data carries intervals, and the full pass shows that they hold the truth.
"""

import torch
from torch import Tensor, nn

import shotnoise as sn


class Classifier(nn.Module):
    def __init__(self, vocabulary: int = 20, length: int = 12, width: int = 16, classes: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(0.1 * torch.randn(length, width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, num_heads=2, batch_first=True)
        self.output = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens) + self.position
        z = self.norm(x)
        x = x + self.attention(z, z, z, need_weights=False)[0]
        return self.output(x.mean(1))


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(20, (2000, 12))
    targets = (tokens == 3).sum(1).clamp(max=3)  # how often token 3 occurs
    problem = sn.Problem(Classifier(), "cross_entropy", tokens, targets)

    estimate = sn.measure(problem, batch_sizes=[16, 128], samples=500)
    exact = sn.measure(problem, batch_sizes=[16, 128])
    for layer, path in zip(exact["layer"].values, exact["layer_path"].values, strict=True):
        share = exact["layer_noise_share"].sel(layer=layer, batch_size=128).item()
        print(f"{layer:24s} {share:6.1%} noise at batch size 128; {path}")
    for sentence in sn.show.reading(estimate):
        print("-", sentence)
    agreement = sn.compare(estimate, exact)
    assert agreement.agrees, agreement.sentence
    assert estimate["noise_scale_low"] <= exact["noise_scale"] <= estimate["noise_scale_high"]


if __name__ == "__main__":
    main()
