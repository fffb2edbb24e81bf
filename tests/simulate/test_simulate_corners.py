"""Corners of the ensembles where a shortcut once gave a wrong number or a crash: each is pinned here."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import shotnoise as sn
from model_cases import Recurrent
from shotnoise.errors import InputError
from shotnoise.simulate.engines import choose
from shotnoise.simulate.engines.dense import Dense
from shotnoise.simulate.statistics import moments, trace_variance

SGD = sn.rules.SGD


def data(n=12, d=3, o=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(n, o, generator=g, dtype=torch.float64)


def equal_to_one_by_one(problem, name="auto", scale=1.0):
    engine, slow = choose(problem, name), choose(problem, "one-by-one")
    w = scale * torch.randn(3, problem.parameter_count, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    batch = torch.arange(12).view(3, 4)
    for found, true in zip(engine.minibatch(w, batch), slow.minibatch(w, batch), strict=True):
        assert torch.allclose(found, true, rtol=1e-9)
    assert torch.allclose(engine.full_losses(w), slow.full_losses(w), rtol=1e-9)


def seeded(build):
    torch.manual_seed(0)
    return build().double()


def test_an_activation_after_the_last_layer():
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
    with torch.no_grad():
        model[0].bias.add_(5.0)  # all outputs positive where the self-check looks
    equal_to_one_by_one(sn.Problem(model, "mse", *data()))


class Capped(nn.ReLU):
    def forward(self, x):
        return x.clamp(0, 6)


def test_a_subclass_of_an_activation_is_another_activation():
    equal_to_one_by_one(
        sn.Problem(seeded(lambda: nn.Sequential(nn.Linear(3, 9), Capped(), nn.Linear(9, 2))), "mse", *data()), scale=20
    )


def test_a_wrong_loss_is_seen(monkeypatch):
    right = Dense._minibatch
    monkeypatch.setattr(Dense, "_minibatch", lambda s, w, b: (2 * right(s, w, b)[0], right(s, w, b)[1]))
    problem = sn.Problem(seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), "mse", *data())
    assert choose(problem, "torch").key == "stacked"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_networks(kind):
    x = torch.randn(12, 4, 3, dtype=torch.float64)
    problem = sn.Problem(seeded(lambda: Recurrent(kind)), "cross_entropy", x, torch.arange(12) % 3)
    sn.simulate(problem, SGD(0.1), 2, 1, 2, record=["loss", "accuracy"])


def test_a_block_whose_runs_have_all_diverged_without_raw():
    found = sn.simulate(sn.Problem(seeded(lambda: nn.Linear(3, 2)), "mse", *data()), SGD(1e30), 2, 20, 8, raw=False)
    assert (found["runs_excluded"][0, -1] == 8) and np.isnan(found["loss"][0, -1])


def test_moments_of_no_runs():
    assert (moments(torch.zeros(0, 3), 5)["count"] == 0).all()


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.h = nn.Embedding(5, 4), nn.Linear(4, 5)

    def forward(self, i):
        return self.h(self.e(i)).mT


def test_accuracy_over_further_axes_or_a_refusal():
    i = torch.randint(0, 5, (6, 7), generator=torch.Generator().manual_seed(0))
    model = seeded(Words)
    problem = sn.Problem(model, "cross_entropy", i, i.flip(1))
    try:
        found = sn.simulate(problem, SGD(0.1), 2, 0, 1, record="accuracy")
    except InputError:
        return
    assert float(found["accuracy"][0, 0, 0]) == pytest.approx(float((model(i).argmax(1) == i.flip(1)).double().mean()))


def test_accuracy_of_class_probabilities_or_a_refusal():
    problem = sn.Problem(
        seeded(lambda: nn.Linear(3, 4)), "cross_entropy", data()[0], torch.full((12, 4), 0.25, dtype=torch.float64)
    )
    try:
        sn.simulate(problem, SGD(0.1), 2, 0, 2, record="accuracy")
    except InputError:
        return


def test_a_module_registered_twice_keeps_its_parameters():
    """torch.func.functional_call does not put back the parameters of a module with two names."""
    a = nn.Linear(3, 3)
    model = nn.Sequential(a, nn.Tanh(), a)
    weight = a.weight
    sn.Problem(model, "mse", torch.randn(12, 3), torch.randn(12, 3)).loss()
    assert a.weight is weight and isinstance(a.weight, nn.Parameter)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_the_engine_does_not_depend_on_filters_of_warnings():
    from torch.nn.utils.parametrizations import weight_norm

    problem = sn.Problem(seeded(lambda: nn.Sequential(weight_norm(nn.Linear(3, 4)), nn.Linear(4, 2))), "mse", *data())
    found = set()
    for action in ("ignore", "error"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            found.add(choose(problem).key)
    assert found == {"stacked"}


def test_labels_in_bytes_are_as_fast():
    y = (torch.arange(12) % 4).to(torch.uint8)
    assert choose(sn.Problem(seeded(lambda: nn.Linear(3, 4)), "cross_entropy", data()[0], y), "torch").key == "dense"


def test_starting_at_a_perfect_fit():
    model = seeded(lambda: nn.Linear(3, 1))
    x = data()[0]
    problem = sn.Problem(model, "mse", x, x @ model.weight.detach().T + model.bias.detach())
    assert choose(problem, "torch", batch_size=10).key == "linear"


def exploding():
    x, y = torch.randn(2, 20, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x[0] = 1e15
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    return sn.Problem(model, "mse", x, y)


def test_exclude_leaves_a_run_out_from_its_divergence_on():
    run = {"steps": 60, "runs": 16, "record": ["weights", "minibatch_gradient_norm"], "workers": 1}
    with_runs = sn.simulate.summary(sn.simulate(exploding(), SGD(0.1), 1, **run))
    without = sn.simulate(exploding(), SGD(0.1), 1, raw=False, block=16, **run)
    assert int(with_runs["runs_excluded"][0, -1]) > 0
    np.testing.assert_allclose(with_runs["weights"], without["weights"], rtol=1e-9)


def test_exclude_leaves_out_the_accuracy_of_diverged_runs():
    """argmax of NaN is a class."""
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)))
    problem = sn.Problem(model, "cross_entropy", data()[0], torch.arange(12) % 3)
    found = sn.simulate(problem, SGD(1e200), 2, 10, 6, record=["accuracy"])
    assert (found["runs_excluded"][0, -1] == 6).all()
    assert np.isnan(sn.simulate.summary(found)["accuracy"][0, -1])


def test_include_reaches_recorders_with_steps_of_their_own():
    found = sn.simulate(exploding(), SGD(0.1), 1, 60, 16, record=["loss", sn.simulate.weights(steps=[0, 60])])
    included = sn.simulate.summary(found, diverged="include")
    assert np.isinf(included["loss"][0, -1]) and np.isinf(included["weights"][0, -1]).all()


def test_a_last_block_of_two_runs_does_not_take_the_error_away():
    rows = torch.randn(66, 3, dtype=torch.float64)
    problem = sn.Problem(seeded(lambda: nn.Linear(3, 2)), "mse", *data())
    found = sn.simulate(problem, SGD(0.1), 2, 2, 66, block=64, record="gradient_variance")
    assert np.isfinite(found["gradient_variance_stderr"]).all(), rows.shape


def test_no_variance_where_all_runs_are_alike():
    """Step 0 with fixed weights: 5e-32 with a standard error of 0 is infinitely far from the truth, 0."""
    row = torch.tensor([[0.1, 0.3]], dtype=torch.float64)
    found = trace_variance(row.expand(60, -1).clone(), torch.ones(60, dtype=torch.bool))
    assert float(found[""]) <= 2 * float(found["stderr"])


def test_errors_of_variances_have_double_precision():
    """count / (count - 1) of whole numbers is a float32."""
    values = torch.randn(7, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float(trace_variance(values, torch.ones(7, dtype=torch.bool))["stderr"])
    assert float(moments(values, 3)["variance_stderr"]) == pytest.approx(expected, rel=1e-12)


def test_the_empirical_fisher_matrix_of_a_population_or_a_refusal():
    """At the two cubature points x = -1, 1 it is w^2; E x^4 w^2 = 3 w^2."""
    population = sn.TeacherStudent(nn.Linear(1, 1, bias=False).double(), torch.zeros(1, 1, dtype=torch.float64))
    with pytest.raises(InputError):
        sn.simulate.plan(population, sn.rules.NaturalGradient(0.1, damping=0.1), 3, 2, 4)


@pytest.mark.parametrize("name", ["runs_excluded", "divergence_step", "block_x", "block_runs"])
def test_names_that_are_taken_are_refused(name):
    problem = sn.Problem(seeded(lambda: nn.Linear(3, 2)), "mse", *data())
    with pytest.raises(InputError):
        sn.simulate(problem, SGD(0.1), 2, 2, 3, record={name: lambda s: s.losses})


def test_what_is_drawn_ahead_for_a_small_batch_is_bounded_by_the_largest_that_shares_its_numbers(monkeypatch):
    taken, draws = [], sn.sampling.WithReplacement.draws

    def noted(self, b, n, streams, width=None):
        take = draws(self, b, n, streams, width)

        def counted(steps):
            taken.append(steps * (width or b) * len(streams))
            return take(steps)

        return counted

    monkeypatch.setattr(sn.sampling.WithReplacement, "draws", noted)
    problem = sn.Problem(nn.Linear(3, 2).double(), "mse", *data())
    sn.simulate(
        problem, SGD(0.01), [1, 500], 600, 2, sampling=sn.sampling.WithReplacement(), common_random_numbers=True,
        record="loss", every=600, workers=1,
    )  # fmt: skip
    assert 0 < max(taken) <= 2**17
