"""Three small trainings on which optimizers are compared: Gauss-10, images, texts."""

import csv
import gzip
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from shotnoise import datasets
from shotnoise.datasets.folders import data_folder, search_folders
from shotnoise.errors import DataError
from shotnoise.sampling import Sampling, WithoutReplacement, WithReplacement

REVIEWS = ("yelp_polarity_train.csv.gz", "yelp_polarity_val.csv.gz")
HOW_TO_GET_REVIEWS = "two gzipped CSV files with columns label (0 or 1) and text"
VOCABULARY, LENGTH, WIDTH, HEADS = 2000, 48, 32, 2


@dataclass(frozen=True)
class Task:
    """Data, some of it held out, a model with fresh weights at every call of `build`, and how batches are drawn."""

    name: str
    title: str
    inputs: Tensor
    targets: Tensor
    held_out: tuple[Tensor, Tensor]
    build: Callable[[], nn.Module]
    batch_size: int
    sampling: Sampling

    @property
    def population(self) -> int | None:
        """n if batches are drawn without replacement."""
        return len(self.inputs) if isinstance(self.sampling, WithoutReplacement) else None


def gauss() -> Task:
    """Gauss-10: 100 points, 15 % of the labels drawn at random, 50-10-30-10 with weights 0.1 N(0, I), batch 5."""
    data = datasets.load("gauss-10", random_labels=0.15)
    fresh = datasets.load("gauss-10", n=1100)  # the same centres, and the same first 100 points

    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(50, 10), nn.ReLU(), nn.Linear(10, 30), nn.ReLU(), nn.Linear(30, 10))
        for p in model.parameters():
            nn.init.normal_(p, std=0.1)
        return model

    held_out = (fresh.inputs[100:], fresh.targets[100:])
    title = "Gauss-10, 15 % random labels, 50-10-30-10, batch 5"
    return Task("gauss-10", title, data.inputs, data.targets, held_out, build, 5, WithReplacement())


def mnist(data_dir: Path | None, images: int) -> Task:
    """The first images of MNIST, 784-64-10, batch 32. Raises DataError where the files are missing."""
    data = datasets.load("mnist", data_dir=data_dir).flat()
    assert data.test_inputs is not None and data.test_targets is not None
    held_out = (data.test_inputs.flatten(1)[:2000], data.test_targets[:2000])

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))

    title = f"MNIST, {images:,} images, 784-64-10, batch 32"
    inputs, targets = data.inputs[:images].clone(), data.targets[:images].clone()
    return Task("mnist", title, inputs, targets, held_out, build, 32, WithoutReplacement())


def reviews(data_dir: Path | None, count: int) -> Task:
    """Yelp reviews by their first 48 words, a transformer of width 32, batch 16. Raises DataError where they miss."""
    named = data_folder(data_dir, wanted_for="reviews", how_to_get=HOW_TO_GET_REVIEWS)
    places = search_folders(named, ("yelp",))
    found = [next((p / name for p in places if (p / name).is_file()), None) for name in REVIEWS]
    train, test = (_read(path, name) for path, name in zip(found, REVIEWS, strict=True))
    train, test = train[:count], test[:1000]
    words = Counter(word for _, text in train for word in text)
    index = {word: k + 2 for k, (word, _) in enumerate(words.most_common(VOCABULARY - 2))}  # 0: padding, 1: unknown
    (x, y), held_out = _encode(train, index), _encode(test, index)
    title = f"Yelp, {len(x):,} reviews, transformer of width {WIDTH}, batch 16"
    return Task("yelp", title, x, y, held_out, Transformer, 16, WithoutReplacement())


class Transformer(nn.Module):
    """One block, pre-normalised, with positions as an embedding and projections as layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        for table in (self.words, self.places):
            nn.init.normal_(table.weight, std=0.1)
        self.before, self.after, self.last = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out, self.wide, self.narrow = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        mask = tokens != 0
        places = torch.arange(LENGTH, device=tokens.device).expand(len(tokens), -1)
        x = self.words(tokens) + self.places(places)
        z = self.before(x)
        q, k, v = (f(z).unflatten(2, (HEADS, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :])
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.narrow(torch.relu(self.wide(self.after(x))))
        x = self.last(x) * mask[:, :, None]
        return self.head(x.sum(1) / mask.sum(1, keepdim=True))


def _read(path: Path | None, name: str) -> list[tuple[int, list[str]]]:
    if path is None:
        raise DataError(f"reviews: {name} is missing; expected {HOW_TO_GET_REVIEWS} in --data-dir or its folder yelp")
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = [(int(row["label"]), _words(row["text"])) for row in csv.DictReader(file)]
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read as reviews ({error}); expected {HOW_TO_GET_REVIEWS}") from error
    return [(label, words) for label, words in rows if words]


def _words(text: str) -> list[str]:
    kept = "".join(c if c.isalnum() or c == "'" else " " for c in text.lower())
    return kept.split()[:LENGTH]


def _encode(rows: list[tuple[int, list[str]]], index: dict[str, int]) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(len(rows), LENGTH, dtype=torch.long)
    for i, (_, words) in enumerate(rows):
        tokens[i, : len(words)] = torch.tensor([index.get(word, 1) for word in words])
    return tokens, torch.tensor([label for label, _ in rows])
