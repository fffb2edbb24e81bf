"""Loss, gradient and Hessian-vector products against plain PyTorch, and every input that cannot be measured."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from model_cases import ALL, BY_NAME, CASES, ROWS, Calls, mlp, row_name
from shotnoise.errors import DataError, InputError, NonFiniteError, PerSampleGradientError
from shotnoise.per_sample import explicit
from shotnoise.per_sample.chunk import BY_RULE
from shotnoise.problem import Problem
from slow_twin import LOSSES, agrees, call, gradients, row

X, Y = torch.linspace(-1, 1, 24).reshape(8, 3), torch.linspace(1, -1, 16).reshape(8, 2)


def linear():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 2)


def first_pass(model, loss="mse", inputs=X, targets=Y):
    return next(Problem(model, loss, inputs, targets).passes())


def mean_loss(made, l2):
    """L(w) in plain PyTorch, with its graph."""
    model, loss, inputs, targets = made
    values = [LOSSES[loss](call(model, row(inputs, i)), row(targets, i)) for i in range(len(targets))]
    squares = sum(p.square().sum() for p in model.parameters() if p.requires_grad)
    return torch.stack(values).mean() + 0.5 * l2 * squares


class TestAgainstPlainTorch:
    @pytest.mark.parametrize("row", ROWS, ids=row_name)
    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
    def test_loss_and_gradient(self, row):
        case, loss = row
        made = case.make(loss)
        problem = Problem(*made, l2=0.3)
        expected = mean_loss(made, 0.3)
        assert problem.loss() == pytest.approx(float(expected.detach()), rel=1e-10)
        gradient, leaves = problem.gradient(), problem.parameters
        plain = torch.autograd.grad(expected, list(leaves.values()), materialize_grads=True)
        size = max(float(g.abs().max()) for g in plain)
        assert list(gradient) == list(leaves)
        for found, g in zip(gradient.values(), plain, strict=True):
            assert agrees(found, g.to_dense(), size)

    @pytest.mark.parametrize("name", ["mlp", "cnn", "lstm", "scalar-parameter"])
    def test_subsets_and_chunks(self, name):
        made = BY_NAME[name].make("mse")
        problem, indices = Problem(*made, l2=0.3), torch.tensor([5, 2, 2])
        subset = (*made[:2], made[2][indices], made[3][indices])
        assert problem.loss(indices) == pytest.approx(Problem(*subset, l2=0.3).loss(), rel=1e-12)
        whole = Problem(*subset, l2=0.3).gradient()
        for chunk_size in (1, 2, 4096):
            found = Problem(*made, l2=0.3, chunk_size=chunk_size).gradient(indices)
            assert all(agrees(found[parameter], g) for parameter, g in whole.items())

    def test_the_penalty_moves_the_gradient_of_every_sample(self):
        made = BY_NAME["mlp"].make("mse")
        bare, problem = Problem(*made), Problem(*made, l2=0.3)
        w = problem.flatten({name: p.detach() for name, p in problem.parameters.items()})
        assert problem.penalty == pytest.approx(0.15 * float(w @ w))
        assert agrees(problem.losses(), bare.losses() + 0.15 * (w @ w))
        assert problem.loss() == pytest.approx(bare.loss() + problem.penalty)
        assert agrees(problem.flatten(problem.gradient()), bare.flatten(bare.gradient()) + 0.3 * w)
        per_sample, plain = problem.per_sample_gradients(), bare.per_sample_gradients()
        _, slow = gradients(*made)
        for name, p in problem.parameters.items():
            assert agrees(per_sample[name], plain[name] + 0.3 * p.detach())
            assert agrees(plain[name], slow[name])
        mean = {name: g.mean(0) for name, g in per_sample.items()}
        assert agrees(problem.flatten(mean), problem.flatten(problem.gradient()))
        v = problem.unflatten(torch.arange(float(problem.parameter_count), dtype=torch.float64))
        with_penalty, without = problem.hessian_vector_product(v), bare.hessian_vector_product(v)
        assert all(agrees(with_penalty[name], without[name] + 0.3 * v[name]) for name in v)
        (chunk,) = problem.passes()
        assert agrees(chunk.losses, bare.losses())

    @pytest.mark.filterwarnings("ignore:`torch.jit")  # of torch.func itself
    @pytest.mark.parametrize("loss", ALL, ids=lambda loss: getattr(loss, "__name__", loss))
    @pytest.mark.parametrize(
        "name", ["mlp", "conv2d-whole-image", "transformer-block", "packed-attention", "embedding-tied-head",
                 "called-twice", "encoder-layer", "layer-norm", "unused-layer", "lstm", "gru"],
    )  # fmt: skip
    def test_hessian(self, name, loss):
        """Columns of the Hessian against torch.func, the whole of it by reverse over reverse."""
        made = BY_NAME[name].make(loss)
        problem = Problem(*made, l2=0.3)
        flat = problem.flatten({name: p.detach() for name, p in problem.parameters.items()})

        def at(vector):
            named = problem.unflatten(vector)
            outputs = torch.func.functional_call(made[0], named, made[2])
            values = [LOSSES[loss](outputs[i : i + 1], made[3][i : i + 1]) for i in range(problem.n)]
            return torch.stack(values).mean() + 0.15 * (vector @ vector)

        # Reverse over reverse: torch.func.hessian is forward over reverse, and in torch 2.13 its result for a
        # LayerNorm is not even symmetric.
        with explicit.elementary_kernels():
            expected = torch.func.jacrev(torch.func.grad(at))(flat)
        assert agrees(expected, expected.T)
        some = range(0, len(flat), max(1, len(flat) // 20))
        columns = [problem.unflatten(column) for column in torch.eye(len(flat)).double()[some]]
        found = torch.stack([problem.flatten(problem.hessian_vector_product(column)) for column in columns])
        assert agrees(found, expected[some], float(expected.abs().max()))

    FUSED = ("transformer-block", "norm-called-twice", "weight-norm", "instance-norm-inside")

    @pytest.mark.parametrize("name", ["mlp", "packed-attention", "embedding-tied-head", "gru", "group-norm", *FUSED])
    def test_third_derivatives(self, name, monkeypatch):
        """H v against central differences of the gradient, D^3 L [v, v] against those of H v; in chunks too."""
        made = BY_NAME[name].make("cross_entropy")
        problem = Problem(*made, l2=0.3)
        flatten, unflatten = problem.flatten, problem.unflatten
        generator = torch.Generator().manual_seed(0)
        v, w = (torch.randn(problem.parameter_count, generator=generator).double() / 10 for _ in range(2))

        def differs(asked, found):
            moved, step = [], 1e-4
            for sign in (1, -1):
                there = problem.replica()
                for at, d in zip(there.parameters.values(), unflatten(v).values(), strict=True):
                    at.data.add_(d, alpha=sign * step)
                moved.append(flatten(asked(there)))
            difference = (moved[0] - moved[1]) / (2 * step)
            return float((found - difference).abs().max() / difference.abs().max())

        def product(problem, vector=v):
            return problem.hessian_vector_product(unflatten(vector))

        (moved, third), (other, _) = problem.third_derivatives([unflatten(v), unflatten(w)])
        assert agrees(flatten(moved), flatten(product(problem))) and agrees(
            flatten(other), flatten(product(problem, w))
        )
        assert differs(Problem.gradient, flatten(moved)) < 1e-5
        assert differs(product, flatten(third)) < 1e-5 < differs(product, 2 * flatten(third))
        monkeypatch.setattr(type(problem), "chunk_size", 2)
        assert agrees(flatten(problem.third_derivatives([unflatten(v)])[0][1]), flatten(third))
        if name in self.FUSED:  # torch's own third derivative is another
            monkeypatch.setattr("shotnoise.problem.ElementaryNorms", nullcontext)
            ((_, fused),) = problem.third_derivatives([unflatten(v)])
            assert float((flatten(fused) - flatten(third)).abs().max()) > 0.01 * float(flatten(third).abs().max())

    def test_hessian_in_chunks_and_of_a_linear_loss(self, monkeypatch):
        made = BY_NAME["mlp"].make("mse")
        problem, small = Problem(*made), Problem(*made)
        monkeypatch.setattr(type(small), "chunk_size", 2)
        v = {name: torch.ones_like(p) for name, p in problem.parameters.items()}
        indices = torch.tensor([0, 3, 4, 5, 1])
        found, expected = small.hessian_vector_product(v, indices), problem.hessian_vector_product(v, indices)
        assert all(agrees(found[name], g) for name, g in expected.items())
        flat = Problem(linear(), lambda out, y: out.sum(1), X, Y)
        v = {name: torch.ones_like(p) for name, p in flat.parameters.items()}
        assert not any(g.any() for g in flat.hessian_vector_product(v).values())
        assert not any(g.any() for pair in flat.third_derivatives([v, v]) for part in pair for g in part.values())
        line = Problem(linear(), "mse", X, Y)  # a quadratic loss
        assert not any(g.any() for _, third in line.third_derivatives([v, v]) for g in third.values())


class TestWhatItSaysOfItself:
    def test_sizes_names_and_layers(self):
        problem = Problem(nn.Sequential(linear(), nn.Tanh(), nn.Sequential(nn.Linear(2, 2))), "mse", X, Y)
        assert (problem.n, problem.parameter_count, problem.loss_name) == (8, 14, "mse")
        assert problem.layers == {"0": ["0.weight", "0.bias"], "2.0": ["2.0.weight", "2.0.bias"]}
        assert (problem.dtype, problem.device) == (torch.float32, torch.device("cpu"))
        assert Problem(linear(), "mse", TensorDataset(X, Y)).layers == {"(model)": ["weight", "bias"]}

    def test_frozen_parameters_are_constants_and_shared_ones_counted_once(self):
        tied = Problem(*BY_NAME["embedding-tied-head"].make("cross_entropy"))
        assert list(tied.parameters) == ["position", "embed.weight", "hidden.weight", "hidden.bias"]
        assert list(Problem(*BY_NAME["bias-only"].make("mse")).parameters) == ["0.bias", "2.bias"]

    @pytest.mark.parametrize("case", CASES, ids=str)
    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
    def test_flatten_and_back(self, case):
        problem = Problem(*case.make("mse"))
        flat = torch.arange(float(problem.parameter_count))
        named = problem.unflatten(flat)
        assert {name: v.shape for name, v in named.items()} == {n: p.shape for n, p in problem.parameters.items()}
        assert torch.equal(problem.flatten(named), flat)

    @pytest.mark.parametrize("case", CASES, ids=str)
    @pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
    def test_place(self, case):
        problem = Problem(*case.make("mse"))
        own, flat = problem.replica(), torch.arange(float(problem.parameter_count))
        before = problem.flatten(problem.parameters).detach()
        for given in (flat, flat.double(), flat.numpy()):
            own.place(torch.zeros_like(flat))
            own.place(given)
            assert torch.equal(own.flatten(own.parameters).to(flat), flat)
        assert torch.equal(problem.flatten(problem.parameters), before)
        assert all(p.requires_grad and p.dtype == before.dtype for p in own.parameters.values())
        with torch.inference_mode():
            inside = problem.replica()
            inside.place(flat)
            assert torch.equal(inside.flatten(inside.parameters).to(flat), flat)
        with pytest.raises(InputError, match=rf"weights: {len(flat)} numbers are needed; got \({len(flat) + 1},\)"):
            own.place(torch.zeros(len(flat) + 1))

    def test_fingerprints_tell_weights_buffers_and_data_apart(self):
        model = nn.Sequential(nn.BatchNorm1d(3), linear()).eval()
        problem = Problem(model, "mse", X, Y)
        seen = [problem.fingerprints()]
        assert problem.fingerprints() == seen[0]
        model[0].running_mean.add_(1)
        seen.append(problem.fingerprints())
        with torch.no_grad():
            model[1].bias[0] += 1e-6
        seen.append(problem.fingerprints())
        assert len({s["model_fingerprint"] for s in seen}) == 3
        assert len({s["data_fingerprint"] for s in seen}) == 1
        assert Problem(model, "mse", X + 1, Y).fingerprints()["data_fingerprint"] != seen[0]["data_fingerprint"]

    def test_the_weights_are_those_of_the_moment(self):
        problem = Problem(model := linear(), "mse", X, Y)
        before = problem.loss()
        with torch.no_grad():
            model.weight.mul_(2)
        assert problem.loss() != before
        assert agrees(problem.flatten(problem.gradient()), Problem(model, "mse", X, Y).flatten(problem.gradient()))

    @pytest.mark.filterwarnings("ignore:`torch.jit")  # of torch.compile itself
    def test_a_compiled_model_is_measured_as_the_module_it_wraps(self):
        model = linear()
        assert Problem(torch.compile(model), "mse", X, Y).model is model

    def test_a_dataset_with_a_model_that_returns_more_than_a_tensor(self):
        model = Calls(lambda self, x: {"logits": self.a(x), "aux": 1}, a=linear())
        problem = Problem(model, lambda out, y: F.mse_loss(out["logits"], y, reduction="none").sum(1), X, Y)
        assert set(next(problem.passes()).paths.values()) == {BY_RULE}
        assert agrees(problem.losses(), 2 * Problem(model.a, "mse", X, Y).losses())


class Forward(nn.Module):
    """Linear, then a function."""

    def __init__(self, function, bias=True):
        super().__init__()
        self.a, self.function = nn.Linear(3, 2, bias=bias), function

    def forward(self, x):
        return self.function(self.a(x))


def on_meta():
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta"))


def frozen():
    return linear().requires_grad_(False)


def complex_weight():
    model = linear()
    model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    return model


def used_lazily():
    return nn.Sequential(nn.LazyLinear(2))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: "model", "model must be a torch.nn.Module, not str"),
        (frozen, r"Linear has no trainable parameter \(2 parameters in all\); set requires_grad=True"),
        (nn.Tanh, r"Tanh has no trainable parameter \(0 parameters in all\)"),
        (on_meta, r"parameters are on different devices \(cpu, meta\); move the whole model to one"),
        (complex_weight, r"parameter 'phase' has type torch\.complex64; only real floating-point weights"),
        (used_lazily, r"parameter '0\.weight' is not initialised \(a lazy module\): run the model on one batch first"),
    ],
)
def test_models_that_cannot_be_measured(build, message):
    with pytest.raises(InputError, match=message):
        Problem(build(), "mse", X, Y)


@pytest.mark.filterwarnings("ignore:`torch.jit", "ignore::DeprecationWarning")
def test_torchscript_is_refused():
    with pytest.raises(InputError, match="a TorchScript module cannot be differentiated per sample"):
        Problem(torch.jit.trace(linear(), X), "mse", X, Y)


ASKED = {
    "passes": lambda problem: next(problem.passes()),
    "loss": Problem.loss,
    "gradient": Problem.gradient,
    "per_sample_gradients": Problem.per_sample_gradients,
    "hessian_vector_product": lambda problem: problem.hessian_vector_product(problem.parameters),
    "third_derivatives": lambda problem: problem.third_derivatives([problem.parameters]),
}


@pytest.fixture(params=ASKED.values(), ids=ASKED.keys())
def asked(request):
    """Each way to ask for a derivative; a bad model is refused by all of them."""
    return request.param


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.BatchNorm1d(3), linear()), r"BatchNorm1d '0' normalises with the statistics of the batch.*eval"),
        (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), linear()).eval(), "BatchNorm1d '0' normalises with"),
        (nn.Sequential(linear(), nn.Dropout(0.1)), r"Dropout '1' is in training mode, so the gradient .* is random"),
        (nn.Sequential(nn.RReLU(), linear()), "RReLU '0' is in training mode"),
        (Calls(lambda self, x: self.rnn(x[:, None])[0][:, 0],
               rnn=nn.LSTM(3, 2, num_layers=2, dropout=0.5, batch_first=True)), "LSTM 'rnn' is in training mode"),
        (Forward(lambda z: F.dropout(z, 0.5)), "the forward pass draws random numbers.*pass the noise as an input"),
        (Forward(lambda z: z + float(np_random())), "the forward pass draws random numbers"),
        (Forward(lambda z, g=torch.Generator(): z * torch.rand(1, generator=g)), "the forward pass draws random numbers"),
    ],
)  # fmt: skip
def test_models_without_a_gradient_per_sample(model, message, asked):
    with pytest.raises(PerSampleGradientError, match=message):
        asked(Problem(model, "mse", X, Y))


def np_random():
    return np.random.random()  # noqa: NPY002 - as users do


def shrinking(self, x):
    with torch.no_grad():
        self.a.weight.mul_(0.9)
    return self.a(x)


def shrinking_data(self, x):
    self.a.weight.data.mul_(0.9)
    return self.a(x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.Sequential(nn.Embedding(4, 2, max_norm=0.1), nn.Flatten()), r"Embedding '0' has max_norm=0\.1, which"),
        (lambda: nn.EmbeddingBag(4, 2, max_norm=0.1), r"EmbeddingBag has max_norm=0\.1"),
        (lambda: nn.Sequential(nn.Embedding(4, 2, scale_grad_by_freq=True), nn.Flatten()), "has scale_grad_by_freq=True"),
        (lambda: Calls(lambda self, i: F.embedding(i, self.w, max_norm=0.1)[:, 0], w=nn.Parameter(torch.ones(4, 2))),
         r"the forward pass rewrites the parameter 'w' in place"),
        (lambda: Calls(lambda self, i: shrinking(self, i.expand(-1, 3).float()), a=linear()), r"rewrites .* 'a\.weight'"),
        (lambda: Calls(lambda self, i: shrinking_data(self, i.expand(-1, 3).float()), a=linear()), r"rewrites .*'a\.w"),
    ],
)  # fmt: skip
def test_models_that_rewrite_their_weights(build, message, asked):
    model = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(PerSampleGradientError, match=message):
        asked(Problem(model, "mse", torch.arange(8)[:, None] % 4, Y))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize(
    ("loss", "inputs", "targets", "error", "message"),
    [
        ("mse", X.double(), Y, InputError,
         r"the model or the loss failed on 3 samples \(inputs \(3, 3\) torch\.float64; parameters torch\.float32 on cpu\)"),
        ("mse", X[:, :2], Y, InputError, r"failed on 3 samples \(inputs \(3, 2\) torch\.float32; .*shapes cannot be mult"),
        ({}, X, Y, InputError, "loss must be a name or a callable"),
        ("mse", X, Y[:, :1], InputError, r"the model returned \(3, 2\) for targets \(3, 1\)"),
        ("mse", X, Y[:5], InputError, "differ in length"),
        ("mse", X[:0], Y[:0], DataError, "the data is empty"),
        ("cross_entropy", X, torch.arange(8), DataError, "targets run from 0 to 7, but the model has 2 outputs"),
        (lambda out, y: (out - y).square().mean(), X, Y, InputError, r"returned a single number for 3 samples"),
        (F.mse_loss, X, Y, InputError, r"the loss mse_loss returned a single number"),
        (lambda out, y: (out - y).square(), X, Y, InputError, r"returned shape \(3, 2\) for 3 samples"),
        (lambda out, y: (out > y)[:, 0], X, Y, InputError, r"returned type torch\.bool"),
        (lambda out, y: out.undefined, X, Y, InputError, "has no attribute 'undefined'"),
    ],
)  # fmt: skip
def test_data_and_losses_that_do_not_fit(loss, inputs, targets, error, message, asked):
    with pytest.raises(error, match=message):
        asked(Problem(linear(), loss, inputs, targets))


def test_a_bad_target_beyond_the_probes_is_found():
    targets = torch.tensor([0, 1, 0, 1, 1, 2, 0, 1])
    with pytest.raises(DataError, match="targets run from 0 to 2"):
        first_pass(linear(), "cross_entropy", X, targets)


def test_a_model_output_of_another_type():
    with pytest.raises(InputError, match="the model returned tuple, but loss='mse' needs one tensor"):
        first_pass(Forward(lambda z: (z, z)))


def test_a_model_on_the_meta_device():
    with pytest.raises(InputError, match="failed on 3 samples .*on meta"):
        first_pass(nn.Linear(3, 2, device="meta"))


def test_a_vector_of_other_shapes():
    problem = Problem(linear(), "mse", X, Y)
    with pytest.raises(
        InputError, match=r"a vector needs one tensor per parameter, \{'weight': \(2, 3\), 'bias': \(2,\)\}"
    ):
        problem.hessian_vector_product({"weight": torch.ones(2, 3)})
    with pytest.raises(InputError, match=r"got \{'weight': \(3,\)"):
        problem.hessian_vector_product({"weight": torch.ones(3), "bias": torch.ones(2)})


class TestNotFinite:
    """Sample 5 is no probe, sample 7 is one: the error names it either way."""

    @pytest.mark.parametrize("sample", [5, 7])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_loss(self, sample, value, asked):
        inputs = X.clone()
        inputs[sample, 1] = value
        problem = Problem(linear(), "mse", inputs, Y)
        if asked is Problem.loss:
            assert not torch.tensor(asked(problem)).isfinite()
            return
        with pytest.raises(NonFiniteError, match=rf"the loss of sample {sample} is (nan|inf) \(1 of these \d samples"):
            asked(problem)

    @pytest.mark.parametrize("sample", [5, 7])
    @pytest.mark.parametrize("bias", [True, False])
    def test_gradient_of_a_finite_loss(self, sample, bias, asked):
        """A square root at zero."""
        inputs = X.clone()
        inputs[sample] = 0
        model = nn.Sequential(Forward(lambda z: z.abs().sqrt(), bias=False), nn.Linear(2, 2, bias=bias))
        problem = Problem(model, "mse", inputs, Y)
        if asked is Problem.loss:
            assert torch.tensor(asked(problem)).isfinite()
            return
        unknown = (
            asked in (ASKED["hessian_vector_product"], ASKED["third_derivatives"]) and sample == 5
        )  # a product has no samples to look at
        with pytest.raises(NonFiniteError, match=r"in layer '0\.a' is" if unknown else self.blamed(sample, "0.a")):
            asked(problem)

    @pytest.mark.parametrize("with_gradient", [True, False])
    def test_gradient_in_a_pass(self, with_gradient):
        inputs = X.clone()
        inputs[5] = 0
        problem = Problem(Forward(lambda z: z.abs().sqrt(), bias=False), "mse", inputs, Y)
        with pytest.raises(NonFiniteError, match=self.blamed(5, "a")):
            next(problem.passes(with_gradient=with_gradient))

    def test_gradient_of_a_layer_without_a_rule(self):
        inputs = X.clone()
        inputs[5] = 0
        model = Calls(lambda self, x: self.a((x * self.scale).square().sum(1, keepdim=True).sqrt()),
                      a=nn.Linear(1, 2), scale=nn.Parameter(torch.ones(3)))  # fmt: skip
        with pytest.raises(NonFiniteError, match=self.blamed(5, r"\(model\)")):
            first_pass(model, "mse", inputs, Y)

    def test_second_derivative_alone(self):
        inputs = X.clone()
        inputs[5] = 0
        problem = Problem(Forward(lambda z: z.abs() ** 1.5, bias=False), "mse", inputs, Y)
        assert torch.isfinite(problem.gradient()["a.weight"]).all()
        with pytest.raises(NonFiniteError, match="the Hessian-vector product in layer 'a' is NaN or infinite"):
            problem.hessian_vector_product({"a.weight": torch.ones(2, 3)})

    def test_weights_that_recover_are_trusted_again(self):
        problem = Problem(model := linear(), "mse", X, Y)
        weight = model.weight.detach().clone()
        with torch.no_grad():
            model.weight.fill_(float("nan"))
        with pytest.raises(NonFiniteError, match="the loss of sample 0 is nan .*which may have diverged"):
            next(problem.passes())
        with torch.no_grad():
            model.weight.copy_(weight)
        assert set(next(problem.passes()).paths.values()) == {BY_RULE}

    @staticmethod
    def blamed(sample, layer):
        return rf"the gradient of sample {sample} in layer '{layer}' is NaN or infinite although its loss is finite"


@pytest.mark.parametrize("make", [torch.no_grad, torch.inference_mode])
def test_callers_without_gradients(make):
    expected = Problem(model := mlp(), "mse", X, X)
    v = {name: torch.ones_like(p) for name, p in expected.parameters.items()}
    with make():
        problem = Problem(model, "mse", X.clone(), X.clone())
        found = (
            problem.loss(),
            problem.gradient(),
            problem.per_sample_gradients(),
            problem.hessian_vector_product({name: torch.ones_like(p) for name, p in problem.parameters.items()}),
        )
        norms = {name: g.squared_norms() for name, g in next(problem.passes()).per_sample.items()}
    assert found[0] == expected.loss()
    for named, other in zip(
        found[1:],
        (expected.gradient(), expected.per_sample_gradients(), expected.hessian_vector_product(v)),
        strict=True,
    ):
        assert all(torch.equal(named[name], other[name]) for name in v)
    assert all(agrees(norms[name], g.flatten(1).square().sum(1)) for name, g in found[2].items())
