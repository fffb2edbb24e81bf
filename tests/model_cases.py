"""The table of models on which every derivative is tested. A new model is a new row."""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, weight_norm
from torch.utils.checkpoint import checkpoint

from slow_twin import call, log_cosh

N = 6  # samples; the sequence-first rows have as many time steps, the likeliest confusion of axes
ALL = ("cross_entropy", "mse", log_cosh)


@dataclass(frozen=True)
class Case:
    """A model and its data. `written_out`: patterns of the parameters that no layer rule covers; others must have one."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], object]
    losses: tuple = ALL
    written_out: tuple[str, ...] = ()
    way: str = "vmap"

    def make(self, loss, dtype=torch.float64):
        """(model, loss, inputs, targets), the same ones each time."""
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model, inputs = self.build(), self.inputs()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(0.2 * torch.randn_like(p))
                for b in model.buffers():
                    if b.is_floating_point():
                        b.add_(torch.rand_like(b))
            model, inputs = model.to(dtype), _cast(inputs, dtype)
            with torch.no_grad():
                outputs = call(model, inputs)
            targets = torch.randn(outputs.shape).to(dtype)
            if loss == "cross_entropy":
                targets = torch.randint(0, outputs.shape[1], (len(outputs), *outputs.shape[2:]))
        return model, loss, inputs, targets

    def has_no_rule(self, parameter):
        return any(fnmatch(parameter, pattern) for pattern in self.written_out)

    def __str__(self):
        return self.name


def _cast(tree, dtype):
    if isinstance(tree, dict):
        return {key: _cast(value, dtype) for key, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(_cast(value, dtype) for value in tree)
    return tree.to(dtype) if tree.is_floating_point() else tree


def normal(*shape):
    return lambda: torch.randn(N, *shape)


def tokens(count, *shape):
    return lambda: torch.randint(0, count, (N, *shape))


def then_flat(*layers, features, outputs=3):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, outputs))


class Attention(nn.Module):
    """Self-attention from four Linears, with a residual stream and LayerNorm: a transformer block."""

    def __init__(self, width=4, heads=2):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 6), nn.GELU(), nn.Linear(6, width))

    def forward(self, x):
        z = self.norm1(x)
        q, k, v = (f(z).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return (x + self.mlp(self.norm2(x))).mean(1)


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


class LanguageModel(nn.Module):
    """Embedding, position parameter, Linear, and a head that shares the embedding's weight; logits (n, words, T)."""

    def __init__(self, positions=4, words=7):
        super().__init__()
        self.embed = nn.Embedding(words, 4)
        self.position = nn.Parameter(torch.randn(positions, 4))
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, index):
        return self.head(torch.tanh(self.hidden(self.embed(index) + self.position))).mT


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = kind(3, 4, batch_first=True, **options)
        self.head = nn.Linear(4 * (1 + self.rnn.bidirectional), 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Calls(nn.Module):
    """Layers under names, combined by a function of (self, *inputs)."""

    def __init__(self, forward, **members):
        super().__init__()
        self.function = forward
        for name, member in members.items():
            setattr(self, name, member)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


class Doubled(torch.autograd.Function):
    """An operation that torch.func cannot take."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, d):
        return 2 * d


def tied_convolutions():
    a, b = nn.Conv1d(2, 4, 2), nn.Conv1d(4, 4, 2, groups=2)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b, nn.Flatten(), nn.Linear(12, 3))


def tied_linears():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    return nn.Sequential(a, nn.Tanh(), b)


def frozen(model, *patterns):
    for name, p in model.named_parameters():
        p.requires_grad_(not any(fnmatch(name, pattern) for pattern in patterns))
    return model


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3))


def by_sign(self, x):
    """A branch on values, which vmap refuses."""
    return self.head(x * self.scale if bool((x.sum() > 0).all()) else x * self.scale**2)


IMAGE, SMALL = normal(4, 6, 5), normal(2, 3, 4, 3)

CASES = [
    Case("linear-regression", lambda: nn.Linear(3, 1), normal(3), ("mse", log_cosh)),
    Case("linear-positions", lambda: nn.Linear(3, 2), normal(4, 5, 3)),
    Case("linear-many-positions", lambda: nn.Linear(2, 2), normal(20, 2)),
    Case("linear-no-bias", lambda: nn.Linear(3, 2, bias=False), normal(3)),
    Case("mlp", mlp, normal(3)),
    Case("mlp-in-place", lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), normal(3)),
    Case("in-place-on-the-input", lambda: nn.Sequential(nn.ReLU(inplace=True), nn.PReLU(), nn.Linear(3, 3)), normal(3),
         written_out=("1.weight",)),
    Case("conv1d", lambda: then_flat(nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.Tanh(), features=12), normal(2, 7)),
    Case("conv1d-even-same", lambda: then_flat(nn.Conv1d(2, 3, 4, padding="same"), features=21), normal(2, 7)),
    Case("conv1d-left-over", lambda: then_flat(nn.Conv1d(2, 3, 3, stride=3), features=6), normal(2, 8)),
    Case("conv2d", lambda: then_flat(nn.Conv2d(4, 3, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), features=18), IMAGE),
    Case("conv2d-stride", lambda: then_flat(nn.Conv2d(4, 3, (3, 2), stride=(2, 1), padding=(0, 1)), features=36), IMAGE),
    Case("conv2d-same-dilated", lambda: then_flat(nn.Conv2d(4, 2, 3, padding="same", dilation=2), features=60), IMAGE),
    Case("conv2d-circular", lambda: then_flat(nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), features=60),
         IMAGE),
    Case("conv2d-reflect", lambda: then_flat(nn.Conv2d(4, 2, 3, padding=(2, 1), padding_mode="reflect"), features=80),
         IMAGE),
    Case("conv2d-replicate", lambda: then_flat(nn.Conv2d(4, 2, 3, padding="same", padding_mode="replicate"),
                                               features=60), IMAGE),
    Case("conv2d-groups", lambda: then_flat(nn.Conv2d(4, 6, (2, 3), groups=2, dilation=(2, 1)), features=72), IMAGE),
    Case("conv2d-depthwise", lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.AvgPool2d((4, 3)),
                                                   nn.Flatten()), IMAGE),
    Case("conv2d-pointwise", lambda: nn.Sequential(nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), IMAGE),
    Case("conv2d-whole-image", lambda: then_flat(nn.Conv2d(4, 3, (6, 5)), features=3), IMAGE),
    Case("conv3d", lambda: then_flat(nn.Conv3d(2, 4, 2, padding=1, stride=2, groups=2), features=48), SMALL),
    Case("conv3d-circular", lambda: then_flat(nn.Conv3d(2, 2, (1, 2, 3), padding=(0, 1, 1), padding_mode="circular"),
                                              features=90), SMALL),
    Case("cnn", lambda: nn.Sequential(nn.Conv2d(4, 3, 3), nn.ReLU(inplace=True), nn.Conv2d(3, 4, 2, padding=1),
                                      nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 3)),
         IMAGE),
    Case("transformer-block", Attention, normal(5, 4)),
    Case("packed-attention", Packed, normal(5, 4), written_out=("attention.*",)),
    Case("encoder-layer", lambda: then_flat(nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True),
                                            features=20), normal(5, 4), written_out=("0.self_attn.*",)),
    Case("encoder-layer-evaluated", lambda: then_flat(
        nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), features=20).eval(), normal(5, 4),
        written_out=("0.self_attn.*",)),
    Case("embedding-tied-head", LanguageModel, tokens(7, 4), written_out=("position",)),
    Case("embedding-padding", lambda: then_flat(nn.Embedding(4, 3, padding_idx=1), features=15), tokens(4, 5)),
    Case("embedding-one-word", lambda: nn.Sequential(nn.Embedding(4, 3), nn.Tanh(), nn.Linear(3, 3)), tokens(4)),
    Case("embedding-two-axes", lambda: then_flat(nn.Embedding(4, 2), features=12), tokens(4, 2, 3)),
    Case("embedding-sparse", lambda: then_flat(nn.Embedding(4, 3, sparse=True), features=15), tokens(4, 5)),
    Case("embedding-twice", lambda: Calls(lambda self, i: self.head(self.embed(i) * self.embed(i.flip(1)).cos()).mean(1),
                                          embed=nn.Embedding(4, 3), head=nn.Linear(3, 3)), tokens(4, 5)),
    Case("lstm", lambda: Recurrent(nn.LSTM), normal(4, 3), written_out=("rnn.*",)),
    Case("lstm-stacked", lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), normal(4, 3),
         ("mse",), written_out=("rnn.*",)),
    Case("gru", lambda: Recurrent(nn.GRU), normal(4, 3), written_out=("rnn.*",)),
    Case("rnn", lambda: Recurrent(nn.RNN), normal(4, 3), written_out=("rnn.*",)),
    Case("called-twice", lambda: Calls(lambda self, x: self.a(torch.tanh(self.a(x))), a=nn.Linear(3, 3)), normal(3)),
    Case("conv-called-twice", lambda: Calls(lambda self, x: self.a(torch.tanh(self.a(x))).flatten(1),
                                            a=nn.Conv1d(2, 2, 3)), normal(2, 7)),
    Case("norm-called-twice", lambda: Calls(lambda self, x: self.b(self.norm(self.a(self.norm(x)))),
                                            norm=nn.LayerNorm(3), a=nn.Linear(3, 3), b=nn.Linear(3, 3)), normal(3)),
    Case("tied-linears", tied_linears, normal(3)),
    Case("tied-convolutions-of-other-groups", tied_convolutions, normal(2, 5)),
    Case("weight-also-used-by-hand", lambda: Calls(lambda self, x: self.b(F.linear(torch.tanh(self.a(x)),
                                                                                   self.a.weight.T)),
                                                   a=nn.Linear(3, 5), b=nn.Linear(3, 3)), normal(3),
         written_out=("a.weight",)),
    Case("bias-only", lambda: frozen(mlp(), "*weight"), normal(3)),
    Case("frozen-first-layer", lambda: frozen(mlp(), "0.*"), normal(3)),
    Case("frozen-middle", lambda: frozen(nn.Sequential(mlp(), mlp(), mlp()), "1.*"), normal(3)),
    Case("frozen-embedding", lambda: frozen(LanguageModel(), "embed*"), tokens(7, 4), written_out=("position",)),
    Case("group-norm", lambda: then_flat(nn.GroupNorm(2, 4), nn.Tanh(), features=120), IMAGE),
    Case("group-norm-flat", lambda: nn.Sequential(nn.GroupNorm(1, 3), nn.Tanh(), nn.Linear(3, 3)), normal(3)),
    Case("layer-norm", lambda: nn.Sequential(nn.LayerNorm(3), nn.Tanh(), nn.Linear(3, 3)), normal(3)),
    Case("layer-norm-two-axes", lambda: then_flat(nn.LayerNorm((6, 5)), nn.Tanh(), features=120), IMAGE),
    Case("layer-norm-no-bias", lambda: then_flat(nn.LayerNorm(5, bias=False, eps=0.1), nn.Tanh(), features=120), IMAGE),
    Case("rms-norm", lambda: then_flat(nn.RMSNorm(5), nn.Tanh(), features=120), IMAGE),
    Case("rms-norm-two-axes", lambda: then_flat(nn.RMSNorm((6, 5), eps=0.1), nn.Tanh(), features=120), IMAGE),
    Case("batch-norm-1d", lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3)).eval(), normal(3)),
    Case("batch-norm-2d", lambda: then_flat(nn.BatchNorm2d(4), nn.Tanh(), features=120).eval(), IMAGE),
    Case("batch-norm-3d", lambda: then_flat(nn.BatchNorm3d(2), nn.Tanh(), features=72).eval(), SMALL),
    Case("instance-norm", lambda: then_flat(nn.InstanceNorm2d(4, affine=True), nn.Tanh(), features=120), IMAGE,
         written_out=("0.*",)),
    Case("instance-norm-inside", lambda: then_flat(nn.Conv2d(4, 4, 1), nn.Tanh(), nn.InstanceNorm2d(4, affine=True),
                                                   features=120), IMAGE, written_out=("2.*",)),
    Case("transposed-convolution", lambda: then_flat(nn.ConvTranspose2d(4, 2, 2), features=84), IMAGE,
         written_out=("0.*",)),
    Case("scalar-parameter", lambda: Calls(lambda self, x: self.scale * self.head(x) + self.shift, head=nn.Linear(3, 3),
                                           scale=nn.Parameter(torch.tensor(2.0)), shift=nn.Parameter(torch.ones(3))),
         normal(3), written_out=("scale", "shift")),
    Case("weight-norm", lambda: nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 3)), normal(3),
         written_out=("0.*",)),
    Case("orthogonal", lambda: nn.Sequential(orthogonal(nn.Linear(3, 3)), nn.Tanh(), nn.Linear(3, 3)), normal(3),
         written_out=("0.*",)),
    Case("sequence-first", lambda: Calls(lambda self, x: self.b(torch.tanh(self.a(x.transpose(0, 1)))).mean(0),
                                         a=nn.Linear(2, 4), b=nn.Linear(4, 3)), normal(N, 2), written_out=("*",)),
    Case("sequence-first-of-three", lambda: Calls(lambda self, x: self.b(torch.tanh(self.a(x.transpose(0, 1)))).mean(0),
                                                  a=nn.Linear(2, 4), b=nn.Linear(4, 3)), normal(3, 2),
         written_out=("*",)),
    Case("position-embedding", lambda: Calls(lambda self, x: self.head(torch.tanh(self.a(x) + self.position(
        torch.arange(N)))).mean(1), a=nn.Linear(2, 4), position=nn.Embedding(N, 4), head=nn.Linear(4, 3)), normal(N, 2),
        written_out=("position.*",)),
    Case("layers-on-constants", lambda: Calls(
        lambda self, x: self.head(x + self.word(torch.tensor(2)) + self.b(self.constant)
                                  + self.conv(self.norm(self.image)).sum(1)),
        head=nn.Linear(3, 3), word=nn.Embedding(4, 3), b=nn.Linear(3, 3), constant=nn.Parameter(torch.ones(3)),
        norm=nn.LayerNorm((3, 4)), conv=nn.Conv1d(3, 3, 2), image=nn.Parameter(torch.ones(3, 4))), normal(3),
        written_out=("word.*", "b.*", "constant", "norm.*", "conv.*", "image")),
    Case("positions-flattened", lambda: Calls(lambda self, x: self.a(x.flatten(0, 1)).view(-1, 4, 3).mean(1),
                                              a=nn.Linear(2, 3)), normal(4, 2), written_out=("*",)),
    Case("unused-layer", lambda: Calls(lambda self, x: self.a(x), a=nn.Linear(3, 3), unused=nn.Linear(2, 2)), normal(3)),
    Case("dict-inputs", lambda: Calls(lambda self, *, image, word: self.a(image) + self.b(word).sum(1),
                                      a=nn.Linear(3, 3), b=nn.Embedding(4, 3)),
         lambda: {"image": torch.randn(N, 3), "word": torch.randint(0, 4, (N, 2))}),
    Case("tuple-inputs", lambda: Calls(lambda self, x, y: self.a(x) * self.b(y), a=nn.Linear(3, 3), b=nn.Linear(2, 3)),
         lambda: (torch.randn(N, 3), torch.randn(N, 2))),
    Case("keyword-call", lambda: Calls(lambda self, x: self.a(input=x), a=nn.Linear(3, 3)), normal(3)),
    Case("checkpointed", lambda: Calls(lambda self, x: self.b(checkpoint(self.a, x, use_reentrant=False)), a=mlp(),
                                       b=nn.Linear(3, 3)), normal(3)),
    Case("operation-without-vmap", lambda: Calls(lambda self, x: self.head(Doubled.apply(x * self.scale)),
                                                 head=nn.Linear(3, 3), scale=nn.Parameter(torch.ones(3))), normal(3),
         written_out=("scale",), way="loop"),
    Case("bilinear", lambda: Calls(lambda self, x: self.head(torch.tanh(self.a(x, x))), a=nn.Bilinear(3, 3, 2),
                                   head=nn.Linear(2, 3)), normal(3), written_out=("a.*",)),
]  # fmt: skip

BY_NAME = {case.name: case for case in CASES}
ROWS = [(case, loss) for case in CASES for loss in case.losses]


def row_name(row):
    case, loss = row
    return f"{case.name}-{getattr(loss, '__name__', loss)}"
