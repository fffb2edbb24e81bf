"""The fluctuation-dissipation check: exact in expectation, calibrated on stationary runs, alarmed by others."""

import numpy as np
import pytest
import torch

import shotnoise as sn

st = sn.predict.stationary
A, U = np.diag([1.0, 0.3]), np.array([1.0, -1.0])


def train(seed, steps, momentum=0.0, rate=0.3, S=4, burn=200, runs=1, start=0.0, change=None, full=False):
    """Weights and minibatch gradients (runs, steps, 2) of regression with label noise; change: the rate half-way."""
    rng = np.random.default_rng(seed)
    w, m = np.tile(U + start, (runs, 1)), np.zeros((runs, 2))
    weights, gradients, squared = [], [], []
    for t in range(burn + steps):
        x = rng.normal(size=(runs, S, 2)) * np.sqrt(np.diag(A))
        r = np.einsum("rsp,rp->rs", x, w - U) - rng.normal(size=(runs, S))
        g = np.einsum("rs,rsp->rp", r, x) / S
        m = momentum * m + g
        if t >= burn:
            weights.append(w.copy())
            gradients.append((w - U) @ A if full else g)
            squared.append((m**2).sum(1))
        now = change if change and t > burn + steps // 2 else rate
        w = w - now * m

    def stacked(parts):
        return np.array(parts).swapaxes(0, 1)

    return stacked(weights), stacked(gradients), stacked(squared)


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_the_relation_holds_in_the_exact_stationary_state(momentum):
    """<w . grad L> = tr H Sigma, and (lambda / 2) (1 + mu) <||m||^2> from E||w'-w||^2, all from the theory of moments."""
    rate = 0.3
    s = st.label_noise(A, 1.0, rate, 4, momentum)
    left = np.trace(A @ s["weight_covariance"].values)
    weights, gradients, squared = train(0, 3000, momentum, runs=20)
    r = st.fluctuation_dissipation((weights * gradients).sum(-1) - (gradients * U).sum(-1), squared, rate, momentum)
    assert r["status"] == "stationary"
    for side in ("dissipation", "fluctuation"):
        assert abs(float(r[side]) - left) < 4.5 * float(r[side + "_stderr"])
        assert abs(float(r[side]) - 1.2 * left) > 4.5 * float(r[side + "_stderr"])
    assert float(r["dissipation_ratio"]) == pytest.approx(1, abs=4.5 * float(r["dissipation_ratio_stderr"]))
    wrong = st.fluctuation_dissipation((weights * gradients).sum(-1), squared, rate, 0.0 if momentum else 0.1)
    assert wrong["status"] == "relation broken"


def test_the_terms_from_recorded_runs():
    weights, gradients, squared = train(1, 400, 0.5, burn=0, runs=3)
    inner, found = st.dissipation_terms(weights, gradients, 0.5, origin=U)
    np.testing.assert_allclose(found, squared, rtol=1e-12)
    np.testing.assert_allclose(inner, np.einsum("rtp,rtp->rt", weights - U, gradients), rtol=1e-12)
    one = st.dissipation_terms(weights[0], gradients[0], 0.5)
    np.testing.assert_allclose(one[1], squared[0], rtol=1e-12)


def test_the_false_alarm_rate():
    """Of 300 stationary runs at alarm 0.05, far fewer than one in six are denied (15 expected; P < 1e-9)."""
    weights, _gradients, squared = train(2, 1000, rate=0.5, runs=300)
    full = np.einsum("rtp,pq,rtq->rt", weights - U, A, weights - U)
    denied = [
        st.fluctuation_dissipation(a, b, 0.5, alarm=0.05)["status"] != "stationary"
        for a, b in zip(full, squared, strict=True)
    ]
    assert np.mean(denied) < 1 / 6


def test_errors_allow_for_autocorrelation():
    """The error of the mean of a slow series, against the scatter over runs and against the naive error."""
    weights, _gradients, squared = train(3, 4000, rate=0.05, runs=60, burn=400)
    inner = np.einsum("rtp,pq,rtq->rt", weights - U, A, weights - U)
    claimed = np.mean(
        [
            float(st.fluctuation_dissipation(a, b, 0.05)["dissipation_stderr"])
            for a, b in zip(inner, squared, strict=True)
        ]
    )
    actual, naive = inner.mean(1).std(ddof=1), inner.std(1).mean() / np.sqrt(4000)
    assert claimed == pytest.approx(actual, rel=0.35)
    assert naive < 0.5 * actual


def test_runs_that_are_not_stationary():
    weights, gradients, squared = train(4, 600, rate=0.02, burn=0, start=3.0, runs=4)
    approach = st.fluctuation_dissipation(*st.dissipation_terms(weights, gradients, origin=U), 0.02)
    assert approach["status"] == "relation broken" and float(approach["dissipation_ratio"]) > 1
    weights, gradients, squared = train(5, 4000, rate=0.2, change=0.8, runs=4)
    assert (
        st.fluctuation_dissipation(*st.dissipation_terms(weights, gradients, origin=U), 0.2)["status"] != "stationary"
    )
    weights, gradients, squared = train(6, 60, rate=0.01, runs=40, burn=4000)
    inner = np.einsum("rtp,pq,rtq->rt", weights - U, A, weights - U)
    short = st.fluctuation_dissipation(inner, inner / 0.005 + 0 * squared, 0.01)  # agree by construction, correlated
    assert short["status"] == "run too short to say" and float(short["batch_correlation"]) > 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: st.fluctuation_dissipation(np.ones(100), np.ones(99), 0.1), "both alike; got"),
        (lambda: st.fluctuation_dissipation(np.ones(100), np.ones(100), 0.0), "cut the run where it changes"),
        (lambda: st.fluctuation_dissipation(np.ones(100), np.ones(100), 0.1, batches=7), "an even number of batches"),
        (lambda: st.fluctuation_dissipation(np.ones(10), np.ones(10), 0.1), "batches=20 of 10 steps"),
        (lambda: st.fluctuation_dissipation(np.ones(100), np.ones(100), 0.1, 1.0), "momentum=1.0"),
        (lambda: st.fluctuation_dissipation(np.ones(100), np.ones(100), 0.1, alarm=0.0), "a probability between"),
        (lambda: st.dissipation_terms(np.ones(3), np.ones(3)), "weights and gradients"),
        (lambda: st.dissipation_terms(np.ones((3, 2)), np.ones((3, 2)), origin=[1.0]), "origin: 2 numbers"),
    ],
)
def test_messages(call, message):
    with pytest.raises(sn.InputError, match=message):
        call()


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_the_meter_on_a_training_loop(momentum):
    """The numbers are those of the recorded run, weight decay and all."""
    generator, w = torch.Generator().manual_seed(0), torch.nn.Parameter(torch.tensor([1.0, -1.0], dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=0.2, momentum=momentum, weight_decay=0.3)
    meter, weights, gradients = st.DissipationMeter(optimizer), [], []
    for _ in range(400):
        optimizer.zero_grad()
        ((w**2).sum() + (w * torch.randn(2, generator=generator, dtype=torch.float64)).sum()).backward()
        weights.append(w.detach().numpy().copy())
        gradients.append((w.grad + 0.3 * w).detach().numpy())
        optimizer.step()
    found = meter.result()
    terms = st.dissipation_terms(weights, gradients, momentum, origin=[1.0, -1.0])
    expected = st.fluctuation_dissipation(*terms, 0.2, momentum)
    for name in ("dissipation", "fluctuation", "dissipation_ratio_stderr"):
        assert float(found[name]) == pytest.approx(float(expected[name]), rel=1e-10)
    assert meter.steps == 400 and meter.result(last=100).attrs["steps"] == 100
    meter.close()
    optimizer.step()
    assert meter.steps == 400
    with pytest.raises(sn.InputError, match="last=500: 400 steps are recorded"):
        meter.result(last=500)


def test_what_the_meter_refuses():
    w = torch.nn.Parameter(torch.zeros(1))
    for optimizer, message in (
        (torch.optim.Adam([w]), "one of torch.optim.SGD; got Adam"),
        (torch.optim.SGD([w], lr=0.1, momentum=0.9, nesterov=True), "nesterov is set"),
        (torch.optim.SGD([w], lr=0.1, momentum=0.9, dampening=0.5), "dampening is set"),
        (
            torch.optim.SGD([{"params": [w]}, {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5}], lr=0.1),
            "lr differs",
        ),
    ):
        with pytest.raises(sn.InputError, match=message):
            st.DissipationMeter(optimizer)
    optimizer = torch.optim.SGD([w], lr=0.1)
    meter = st.DissipationMeter(optimizer)
    for rate in (0.1, 0.2):
        optimizer.param_groups[0]["lr"] = rate
        w.grad = torch.ones(1)
        optimizer.step()
    with pytest.raises(sn.InputError, match="the learning rate changed between 0.1 and 0.2"):
        meter.result()
