"""`shotnoise predict stationary ...` and `shotnoise reproduce strength-of-noise`, from the options to files and tables."""

import json
import sys

import numpy as np
import pytest
import xarray as xr
from scipy import integrate

import shotnoise as sn
from shotnoise import show

STATIONARY = ("predict", "stationary")


class TestStationary:
    def test_a_sweep_to_every_file(self, run, tmp_path):
        page, figure, out, store = (tmp_path / name for name in ("p.html", "p.svg", "p.json", "p.zarr"))
        code, said, err = run(
            *STATIONARY, "label-noise", "--spectrum", "1,0.5", "--label-variance", 0.25, "--learning-rate", "0.1:1.9:7",
            "--batch-size", "4,16", "--report", page, "--figure", figure, "--json", out, "--save", store,
        )  # fmt: skip
        assert code == 0, err
        assert "10 of 14 settings settle" in said and "below 1.299 at batch size 4 and 1.772 at batch size 16" in said
        direct = sn.predict.stationary.label_noise([1.0, 0.5], 0.25, np.linspace(0.1, 1.9, 7).round(12), [4, 16])
        stored = sn.load(store)
        np.testing.assert_allclose(stored["test_loss"], direct["test_loss"])
        assert json.loads(out.read_text())["variables"]["kappa"]["dims"] == ["learning_rate", "batch_size"]
        assert "Against the learning rate" in page.read_text() and figure.exists()

    def test_one_setting(self, run):
        code, said, _ = run(*STATIONARY, "label-noise", "--spectrum", 1, "--label-variance", 0.25, "--learning-rate", 1,
                            "--batch-size", 4)  # fmt: skip
        assert code == 0 and "0.1250" in said and "stationary" in said

    def test_nothing_settles(self, run):
        code, said, _ = run(*STATIONARY, "label-noise", "--spectrum", 1, "--label-variance", 1, "--learning-rate", 3)
        assert code == 0 and "Nothing settles" in said and "n/a" in said

    def test_input_noise_and_weight_decay(self, run):
        code, said, _ = run(*STATIONARY, "input-noise", "--spectrum", 1, "--noise-spectrum", 0.5, "--learning-rate", 0.5,
                            "--batch-size", 4)  # fmt: skip
        assert code == 0 and "0.2024" in said
        code, said, _ = run(*STATIONARY, "weight-decay", "--spectrum", 2, "--l2", -0.4, "--learning-rate", 1,
                            "--batch-size", 16)  # fmt: skip
        assert code == 0 and "The best weight decay is -0.4069 (test loss 0.2853)" in said
        code, said, _ = run(*STATIONARY, "weight-decay", "--spectrum", 4, "--l2", 0, "--learning-rate", 9)
        assert code == 0 and "No weight decay is stable" in said

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--spectrum", "1,x"], "expected numbers with commas, or low:high:count"),
            (["--learning-rate", "1:2"], "expected numbers with commas, or low:high:count"),
            (["--spectrum=-1"], "negative"),
            (["--momentum", 1], "momentum=1.0: at least 0 and below 1"),
            (["--figure", "f.svg"], "give several, such as 0.1:1.9:50"),
        ],
    )
    def test_what_does_not_fit(self, run, options, message, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        given = {"--spectrum": "1", "--label-variance": "1", "--learning-rate": "0.5"}
        for name in list(given):
            if any(str(option).startswith(name) for option in options):
                del given[name]
        code, _, err = run(*STATIONARY, "label-noise", *(part for pair in given.items() for part in pair), *options)
        assert code == 2 and message in err


class TestStrengthOfNoise:
    @pytest.fixture(autouse=True)
    def small(self, monkeypatch):
        module = sys.modules["shotnoise.reproduce.strength_of_noise"]
        monkeypatch.setitem(module.PRESETS, "quick", module.Preset(200, 5, 10))

    @pytest.mark.parametrize(
        "figure",
        ["fig2", "fig4", "fig6", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fig3", "fig5", "fig7"))],
    )
    def test_theory_and_runs(self, run, tmp_path, figure):
        code, said, err = run("reproduce", "strength-of-noise", figure, "--out", tmp_path, "--workers", 1)
        assert code == 0, said
        assert "The exact theory and the runs agree" in said
        for name in (f"{figure}.svg", f"{figure}.png", "report.html"):
            assert (tmp_path / figure / name).exists() and name in err

    def test_a_wrong_theory_is_rejected(self, tmp_path, monkeypatch):
        """The broken twin: the continuous-time approximation in the place of the exact one."""
        module = sys.modules["shotnoise.reproduce.strength_of_noise"]
        right = sn.predict.stationary.rivals

        def wrong(*args, **options):
            found = right(*args, **options)
            exact = found["theory"] == "exact"
            broken = found["weight_covariance"].sel(theory="continuous-hessian")
            return found.assign(weight_covariance=xr.where(exact, broken, found["weight_covariance"]))

        monkeypatch.setattr(module.stationary, "rivals", wrong)
        found = sn.reproduce.strength_of_noise(tmp_path, "fig4", workers=1)
        assert not found.holds and "disagree" in found.sentences[0]

    def test_networks(self, run, tmp_path, monkeypatch):
        module = sys.modules["shotnoise.reproduce.networks_and_width"]
        monkeypatch.setitem(module.WIDTHS, "quick", (32, 64))
        monkeypatch.setitem(module.RUNS, "quick", 3)
        monkeypatch.setattr(module, "DECAYS", (-0.001, 0.0, 0.001))
        code, said, _ = run("reproduce", "strength-of-noise", "fig1", "--out", tmp_path, "--workers", 1)
        assert code == 0 and "from width 32 to 64 the variance of the loss changes by a factor of" in said
        assert "at a rate that falls as 1 / width" in said
        assert "Logistic regression at a rate of 1.5 has its least test error" in said

    def test_names(self, run, tmp_path):
        code, _, err = run("reproduce", "strength-of-noise", "fig9", "--out", tmp_path)
        assert code == 2 and "figure 'fig9': one of fig1, fig2" in err
        code, _, err = run("reproduce", "strength-of-noise", "fig2", "--preset", "huge", "--out", tmp_path)
        assert code == 2 and "preset 'huge': one of quick, paper" in err


@pytest.mark.parametrize("l2", [-0.4, 0.0, 0.3])
@pytest.mark.parametrize("order", [2, 4, 8])
def test_the_growth_of_moments_is_that_of_the_quadrature(l2, order):
    """E (1 - 0.5 l2 - 0.5 s)^order with 6 s / 1.2 chi-squared of 6 degrees, by numerical integration."""
    module = sys.modules["shotnoise.reproduce.strength_of_noise"]
    integral, _ = integrate.quad(
        lambda c: (1 - 0.5 * l2 - 0.5 * 1.2 * c / 6) ** order * c**2 * np.exp(-c / 2) / 16, 0, 400, limit=400
    )
    assert module.growth(1.2, 0.5, 6, l2, order) == pytest.approx(integral, rel=1e-8)
    assert module.tail_exists(1.2, 0.5, 6, l2, order) == (integral < 1)


def test_sweeps_need_panels():
    with pytest.raises(sn.InputError, match="nothing to draw"):
        show.sweeps()
