"""One step of SGD: exact moments by enumeration, bounds on real problems, their constants, linear models."""

from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import nn

import shotnoise as sn
from shotnoise.predict.bounds.second_order import SecondOrder

bounds = sn.predict.bounds
WITH, WITHOUT = sn.sampling.WithReplacement(), sn.sampling.WithoutReplacement()


def regression(n=5, p=3, seed=0, l2=0.0):
    rng = np.random.default_rng(seed)
    x, y = torch.from_numpy(rng.normal(size=(n, p))), torch.from_numpy(rng.normal(size=(n, 1)))
    model = nn.Linear(p, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(rng.normal(size=(1, p))))
    return sn.Problem(model, "mse", x, y, l2=l2)


def classes(n=30, seed=0, activation=nn.Tanh):
    rng = np.random.default_rng(seed)
    x = torch.from_numpy(rng.normal(size=(n, 4)))
    y = torch.from_numpy(rng.integers(3, size=n))
    torch.manual_seed(seed)
    return sn.Problem(nn.Sequential(nn.Linear(4, 6), activation(), nn.Linear(6, 3)).double(), "cross_entropy", x, y)


def loss_by_hand(problem, batches, rate):
    """f(w - eta g_batch) - f(w) of least squares, from its definition."""
    x, y = (t.numpy() for t in problem.samples.batch(torch.arange(problem.n)))
    w = problem.model.weight.detach().numpy()[0]

    def f(w):
        return 0.5 * ((x @ w - y[:, 0]) ** 2).mean() + problem.l2 / 2 * w @ w

    gradients = (x @ w - y[:, 0])[:, None] * x + problem.l2 * w
    return np.array([f(w - rate * gradients[list(b)].mean(0)) - f(w) for b in batches])


class TestQuadraticLoss:
    @pytest.mark.parametrize("l2", [0.0, 0.3])
    @pytest.mark.parametrize("sampling", [WITH, WITHOUT], ids=["with", "without"])
    def test_mean_and_variance_by_enumeration(self, sampling, l2):
        problem, m, rate = regression(l2=l2), 3, 0.4
        batches = product(range(5), repeat=3) if sampling is WITH else combinations(range(5), 3)
        changes = loss_by_hand(problem, batches, rate)
        found = bounds.one_step(problem, rate, m, sampling=sampling)
        assert found.attrs["batches"] == "all"
        assert float(found["second_order_mean"]) == pytest.approx(changes.mean(), rel=1e-11)
        assert float(found["second_order_variance"].sel(noise="batches")) == pytest.approx(changes.var(), rel=1e-10)
        assert float(found["loss_change_mean"]) == pytest.approx(changes.mean(), rel=1e-11)
        assert float(found["loss_change_variance"]) == pytest.approx(changes.var(), rel=1e-10)
        assert float(found["second_order_error"]) < 1e-9
        # The twins: the other scheme's variance, and one without the skewness, are not it.
        second = second_order(problem, rate)
        other = second.variance_without_replacement(m) if sampling is WITH else second.variance_with_replacement(m)
        assert abs(other / changes.var() - 1) > 0.05
        own = np.diag(second.curvature)
        if sampling is WITH:
            assert abs(rate**2 / m**2 * (second.linear * own).mean()) > 1e-3 * changes.var()

    @pytest.mark.parametrize("m", [1, 2, 5])
    def test_without_replacement_at_the_ends(self, m):
        problem, rate = regression(), 0.4
        changes = loss_by_hand(problem, combinations(range(5), m), rate)
        assert second_order(problem, rate).variance_without_replacement(m) == pytest.approx(changes.var(), abs=1e-14)

    def test_noise_models_by_sampling(self):
        """Mean, variance and law under Gaussian and spherical noise of the same covariance."""
        problem, rate, m, draws = regression(n=6), 0.4, 2, 200_000
        second = second_order(problem, rate)
        G, H = gradients_of(problem), hessian_of(problem)
        mu, Sigma = G.mean(0), np.cov(G.T, bias=True)
        root = np.linalg.cholesky(Sigma / m)
        rng = np.random.default_rng(1)
        z = rng.normal(size=(draws, 3))
        for sphere in (False, True):
            noise = z * np.sqrt(3) / np.linalg.norm(z, axis=1, keepdims=True) if sphere else z
            g = mu + noise @ root.T
            change = -rate * g @ mu + rate**2 / 2 * ((g @ H) * g).sum(1)
            variance = second.variance_of_noise(1 / m, sphere=sphere)
            error = np.sqrt(((change - change.mean()) ** 4).mean() - change.var() ** 2) / np.sqrt(draws)
            assert abs(change.var() - variance) < 5 * error
            assert abs(change.var() - second.variance_of_noise(1 / m, sphere=not sphere)) > 5 * error
            assert abs(change.mean() - second.mean(1 / m)) < 5 * change.std() / np.sqrt(draws)
        law = second.law(1 / m)
        assert (law.mean, law.variance) == pytest.approx(
            (second.mean(1 / m), second.variance_of_noise(1 / m)), rel=1e-10
        )

    def test_second_order_of_batches_is_their_change(self):
        problem, rate = regression(n=6), 0.3
        batches = np.array(list(combinations(range(6), 2)))
        np.testing.assert_allclose(
            second_order(problem, rate).changes(batches), loss_by_hand(problem, batches, rate), rtol=1e-10
        )

    def test_at_a_stationary_point_nothing_concentrates_at_the_printed_value(self):
        """mu = 0: the mean is (eta^2 / 2) kappa Tr H Sigma, not (eta^2 / 2) L Tr M."""
        x = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 0.1], [0.0, 0.1]], dtype=torch.float64)
        y = torch.tensor([[0.0], [0.0], [1.0], [-1.0]], dtype=torch.float64)
        model = nn.Linear(2, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        problem = sn.Problem(model, "mse", x, y)
        found = bounds.one_step(problem, 0.1, 1)
        assert float(found["gradient_norm_sq"]) < 1e-30
        assert float(found["loss_change_mean"]) < 0.01 * float(found["loss_change_upper"].sel(form="batch"))


def gradients_of(problem):
    x, y = (t.numpy() for t in problem.samples.batch(torch.arange(problem.n)))
    w = problem.model.weight.detach().numpy()[0]
    return (x @ w - y[:, 0])[:, None] * x + problem.l2 * w


def hessian_of(problem):
    x = problem.samples.batch(torch.arange(problem.n))[0].numpy()
    return x.T @ x / problem.n + problem.l2 * np.eye(x.shape[1])


def second_order(problem, rate):
    G = gradients_of(problem)
    return SecondOrder.of(G, G @ hessian_of(problem), rate)


class TestOneStep:
    @pytest.mark.parametrize("sampling", [WITH, WITHOUT], ids=["with", "without"])
    def test_bounds_hold_for_every_batch_with_a_true_constant(self, sampling):
        problem, rate = regression(n=6), 0.4
        L = np.linalg.eigvalsh(hessian_of(problem))[-1]
        found = bounds.one_step(problem, rate, 3, smoothness=L, sampling=sampling)
        low, high = (float(found[f"loss_change_{end}"].sel(form="batch")) for end in ("lower", "upper"))
        assert low <= float(found["loss_change_mean"]) <= high
        assert float(found["loss_change_upper"].sel(form="printed")) >= high
        assert (found["smoothness_violations"] == 0).all()
        real = found["exceedance"].where(found["bound_model"] == "real batches", drop=True)
        assert (real <= found["tail_probability"]).all()
        assert float(found["loss_change"].max()) <= float(found["loss_change_limit"].sel(side="upper")) + 1e-12
        assert float(found["loss_change"].min()) >= float(found["loss_change_limit"].sel(side="lower")) - 1e-12
        assert found.attrs["smoothness_is"] == "supplied"
        # A constant that is none shows, and with it the interval fails.
        wrong = bounds.one_step(problem, rate, 3, smoothness=0.3 * L, sampling=sampling)
        assert float(wrong["smoothness_violations"].sel(side="upper")) > 0.2
        assert "it is no Lipschitz constant here" in wrong.attrs["smoothness_is"]

    def test_the_estimated_constant_of_a_quadratic_is_its_curvature(self):
        problem = regression(n=6)
        found = bounds.one_step(problem, 0.4, 3)
        assert float(found["smoothness"]) == pytest.approx(np.linalg.eigvalsh(hessian_of(problem))[-1], rel=1e-6)
        assert found.attrs["smoothness_is"] == "an estimate from below, no certificate"

    def test_redraws_of_a_network(self):
        problem, rate, m = classes(), 0.5, 4
        before = {name: p.clone() for name, p in problem.parameters.items()}
        found = bounds.one_step(problem, rate, m, draws=400)
        assert all(torch.equal(p, before[name]) for name, p in problem.parameters.items())
        assert found.attrs["batches"] == "400 drawn" and found.sizes["draw"] == 400
        mean, error = float(found["loss_change_mean"]), float(found["loss_change_mean_stderr"])
        assert abs(mean - float(found["second_order_mean"])) < 5 * error + 0.1 * abs(mean)
        quantiles = found["noise_law_quantile"].sel(side="upper").values
        assert (np.diff(quantiles) > 0).all() and (found["exceedance"].sel(side="upper").max() <= 0.1)
        assert (found["bound_slack"].sel(bound="chernoff") <= found["bound_slack"].sel(bound="bernstein") + 1e-9).all()

    def test_a_change_is_the_loss_after_the_update(self):
        problem = classes(n=5)
        found = bounds.one_step(problem, 0.7, 1)
        start = problem.loss()
        for i in range(5):
            own = problem.replica()
            g = own.gradient(torch.tensor([i]))
            with torch.no_grad():
                for name, p in own.parameters.items():
                    p -= 0.7 * g[name]
            assert float(found["loss_change"][i]) == pytest.approx(own.loss() - start, rel=1e-9)

    def test_the_largest_batch_is_gradient_descent(self):
        found = bounds.one_step(regression(), 0.1, 5, sampling=WITHOUT)
        assert found.sizes["draw"] == 1 and float(found["loss_change_variance"]) == 0
        assert float(found["second_order_variance"].sel(noise="batches")) == pytest.approx(0, abs=1e-18)

    def test_words(self):
        problem = regression(n=6)
        assert "descent on average" in bounds.one_step(problem, 0.01, 3).attrs["expectation_says"]
        assert "vacuous as a promise of descent" in bounds.one_step(problem, 5.0, 1).attrs["expectation_says"]
        assert "vacuous as a promise of descent" in bounds.one_step(problem, 5.0, 1).attrs["tails_say"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"learning_rate": 0.0}, "learning_rate=0.0: a positive number"),
            ({"batch_size": 9, "sampling": WITHOUT}, "batch_size=9 but only n=5"),
            ({"smoothness": -1.0}, "smoothness=-1.0: a finite number"),
            ({"tail_probabilities": [0.1, 1.0]}, "each between 0 and 1"),
            ({"sampling": sn.sampling.Online()}, "a step draws from the data set"),
            ({"draws": 1}, "draws=1"),
        ],
    )
    def test_what_does_not_fit(self, options, message):
        with pytest.raises(sn.InputError, match=message):
            bounds.one_step(regression(), **({"learning_rate": 0.1, "batch_size": 2} | options))

    @pytest.mark.parametrize("seed", range(5))
    def test_under_the_noise_model_the_exact_law_keeps_to_every_bound(self, seed):
        """The probability of the exact Gaussian law beyond each threshold, either side; with half of L it is too large."""
        problem, rate, m, tails = regression(n=7, seed=seed), 0.3, 2, [0.2, 0.01, 1e-4]
        L = np.linalg.eigvalsh(hessian_of(problem))[-1]
        law = second_order(problem, rate).law(1 / m)
        found = bounds.one_step(problem, rate, m, smoothness=L, tail_probabilities=tails)
        noise = found["loss_change_bound"].where(found["bound_model"] == "noise model", drop=True)
        for p in tails:
            for x in noise.sel(side="upper", tail_probability=p).values:
                assert law.sf(x) <= p
            for x in noise.sel(side="lower", tail_probability=p).values:
                assert 1 - law.sf(x) <= p
            quantiles = found["noise_law_quantile"].sel(tail_probability=p)
            assert law.sf(float(quantiles.sel(side="upper"))) == pytest.approx(p, rel=1e-7)
            assert 1 - law.sf(float(quantiles.sel(side="lower"))) == pytest.approx(p, rel=1e-5)


class TestLinearModels:
    def test_the_example_that_settles_the_constants(self):
        """X = 2 [I_4 0], s = 2, batches of one: the corrected centre is the exact mean, the printed one far below it."""
        found = bounds.least_squares(2 * np.eye(4, 8), np.full(4, 1.25), np.zeros(8), 1, noise_variance=4.0)
        assert float(found["learning_rate"]) == pytest.approx(1.0) and float(found["smoothness"]) == pytest.approx(0.25)
        assert float(found["second_order_mean"]) == pytest.approx(-0.048828125, abs=1e-12)
        assert float(found["loss_change_upper"].sel(form="corollary")) == pytest.approx(-0.048828125, abs=1e-12)
        alpha, beta, L, n, square = 1.0, 4.0, 0.25, 4, 6.25
        assert -(alpha**2) * square / (2 * beta * L * n) == -0.78125  # without s^-4: no bound

    @pytest.mark.parametrize("name", ["least_squares", "logistic"])
    def test_against_one_step(self, name):
        """The same interval as the general verb, inside the corollary's, and no more exceedances than stated."""
        rng = np.random.default_rng(0)
        for seed in range(5):
            x, w = rng.normal(size=(6, 9)), 0.3 * rng.normal(size=9)
            y = rng.normal(size=6) if name == "least_squares" else rng.integers(2, size=6).astype(float)
            found = getattr(bounds, name)(x, y, w, 2)
            model = nn.Linear(9, 1, bias=False).double()
            with torch.no_grad():
                model.weight.copy_(torch.from_numpy(w)[None])
            loss = "mse" if name == "least_squares" else "logistic"
            problem = sn.Problem(model, loss, torch.from_numpy(x), torch.from_numpy(y)[:, None])
            rate, L = float(found["learning_rate"]), float(found["smoothness"])
            step = bounds.one_step(problem, rate, 2, smoothness=L)
            upper = float(found["loss_change_upper"].sel(form="batch"))
            assert upper == pytest.approx(float(step["loss_change_upper"].sel(form="batch")), rel=1e-9)
            assert float(step["loss_change_mean"]) <= upper <= float(found["loss_change_upper"].sel(form="corollary"))
            if name == "least_squares":
                assert float(found["second_order_mean"]) == pytest.approx(float(step["loss_change_mean"]), rel=1e-9)
            assert rate * L <= 1 / 6 + 1e-12, seed

    def test_the_deviation_covers_and_the_mixed_up_constant_does_not(self):
        """alpha_1 of the appendix lacks eta: with it the bound is far off; with the right one it covers Gaussian noise."""
        rng = np.random.default_rng(5)
        x, w = rng.normal(size=(5, 200)), rng.normal(size=200)
        y = rng.normal(size=5)
        found = bounds.least_squares(x, y, w, 1, tail_probabilities=[0.05])
        rate = float(found["learning_rate"])
        residual = x @ w - y
        G = residual[:, None] * x
        mu, centred = G.mean(0), G - G.mean(0)
        noise = rng.normal(size=(20_000, 5)) @ centred / np.sqrt(5)
        g = mu + noise
        change = -rate * g @ mu + rate**2 / 2 * ((g @ x.T) ** 2).mean(1)
        assert (change >= float(found["loss_change_bound"].sel(bound="sub-gamma")[0])).mean() < 0.05

    def test_what_does_not_fit(self):
        with pytest.raises(sn.InputError, match="must be linearly independent"):
            bounds.least_squares(np.ones((3, 2)), np.ones(3), np.zeros(2), 1)
        with pytest.raises(sn.InputError, match="class labels 0 and 1"):
            bounds.logistic(np.eye(2, 3), [1, -1], np.zeros(3), 1)
        with pytest.raises(sn.InputError, match="are needed; got"):
            bounds.logistic(np.eye(2, 3), [1, 0, 1], np.zeros(3), 1)
        with pytest.raises(sn.InputError, match="noise_variance=0"):
            bounds.least_squares(np.eye(2, 3), [1, 0], np.zeros(3), 1, noise_variance=0)


class TestProcess:
    def test_the_parts_add_up_and_everything_is_enumerated(self):
        problem = regression(n=4)
        found = bounds.loss_process(problem, 0.1, 2, 6, runs=5)
        assert (found["martingale_stderr"] == 0).all()
        assert found["martingale"].dims == ("run", "step") and (found["martingale"].isel(step=0) == 0).all()
        assert float(found["loss"].isel(step=0).var()) == 0 and float(found["loss"][0, 0]) == pytest.approx(
            problem.loss()
        )
        assert "estimates from below: lipschitz" in found.attrs["constants_are"]

    def test_the_martingale_has_mean_zero_and_keeps_to_its_bound(self):
        problem, runs, steps = regression(n=4), 150, 4
        found = bounds.loss_process(problem, 0.2, 2, steps, runs=runs, tail_probabilities=[0.3, 0.1])
        N = found["martingale"].isel(step=-1).values
        assert abs(N.mean()) < 5 * N.std() / np.sqrt(runs)
        assert (found["martingale_exceedance"].sel(noise="batches") <= found["tail_probability"]).all()
        assert (found["loss_excess"] <= found["loss_excess_bound"].isel(tail_probability=0)).mean() > 0.7
        # The twin: a hundredth of the bound's variance proxy is exceeded all the time.
        width = float(found["martingale_bound"].sel(noise="batches").isel(step=-1, tail_probability=0))
        assert (np.abs(N) > width / 10).mean() > 0.3

    def test_the_gaussian_proxy_on_gaussian_noise(self):
        """f = |w| smoothed is 1-Lipschitz; Gaussian noise of covariance sigma / m: coverage over 20,000 runs."""
        rng, rate, sigma, steps, runs = np.random.default_rng(0), 0.1, 2.0, 20, 20_000
        w, N = np.full(runs, 0.5), np.zeros(runs)
        z, weight = np.polynomial.hermite_e.hermegauss(40)

        def f(w):
            return np.sqrt(1 + w**2)

        for _ in range(steps):
            drift = f(w[:, None] - rate * ((w / f(w))[:, None] + np.sqrt(sigma) * z)) @ weight / weight.sum() - f(w)
            new = w - rate * (w / f(w) + np.sqrt(sigma) * rng.normal(size=runs))
            N += f(new) - f(w) - drift
            w = new
        V = rate**2 * sigma
        for p in (0.3, 0.05):
            assert (np.abs(N) >= np.sqrt(2 * V * steps * np.log(2 / p))).mean() <= p
        assert (np.abs(N) >= np.sqrt(2 * V / 20 * steps * np.log(2 / 0.05))).mean() > 0.05

    def test_upwards_under_the_noise_model(self):
        """f = (L/2) |w|^2 in five dimensions, Gaussian noise: the sum of U_+ is exceeded no more often than stated."""
        from shotnoise.predict.bounds.step import Step

        rng, L, rate, steps, runs = np.random.default_rng(0), 1.0, 0.3, 15, 4000
        Sigma = np.diag([3.0, 1.0, 0.3, 0.1, 0.03])
        w, excess, v, c = np.full((runs, 5), 0.2), np.zeros(runs), 0.0, 0.0
        for _ in range(steps):
            mu = L * w
            new = w - rate * (mu + rng.normal(size=w.shape) * np.sqrt(np.diag(Sigma)))
            tops = -rate * (mu**2).sum(1) + rate**2 * L / 2 * (np.trace(Sigma) + (mu**2).sum(1))
            excess += L / 2 * ((new**2).sum(1) - (w**2).sum(1)) - tops
            worst = mu[(mu**2 @ np.diag(Sigma)).argmax()]
            tail = Step.of_matrices(worst, Sigma).tails(rate, L, 1.0)[0]
            v, c, w = max(v, tail.v), max(c, tail.c), new
        for p in (0.3, 0.05):
            x = -np.log(p)
            assert (excess >= np.sqrt(2 * v * steps * x) + c * x).mean() <= p
            assert (excess >= np.sqrt(2 * v / 300 * steps * x) + c / 300 * x).mean() > p

    def test_the_printed_theorem_is_false(self):
        constants = []
        for steps in (200, 2000, 20_000):
            found = bounds.refuted_deviation(steps, runs=100)
            if steps > 200:
                rates = np.abs(found["deviation_rate"].values)
                assert (np.abs(rates - 1) < 0.3).mean() > 0.95
            constants.append(float(found["largest_constant"]))
            assert np.abs(found["martingale"]).max() < 50  # does not grow: noise acts at the start only
        assert np.polyfit(np.log([2000, 20_000]), np.log(constants[1:]), 1)[0] == pytest.approx(-1, abs=0.1)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"steps": 0}, "at least 1 step"),
            ({"lipschitz": -1.0}, "lipschitz=-1.0: a finite number"),
            ({"learning_rate": float("nan")}, "learning_rate=nan"),
            ({"tail_probabilities": [0.0]}, "each between 0 and 1"),
        ],
    )
    def test_what_does_not_fit(self, options, message):
        with pytest.raises(sn.InputError, match=message):
            bounds.loss_process(regression(), **({"learning_rate": 0.1, "batch_size": 2, "steps": 3} | options))
        with pytest.raises(sn.InputError, match="positive, 2 runs"):
            bounds.refuted_deviation(0)
