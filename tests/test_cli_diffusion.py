"""`shotnoise reproduce continuous-limit` and its figures, from the options to files and verdicts, with broken twins."""

from importlib import import_module

import numpy as np
import pytest
import xarray as xr

import shotnoise as sn
from shotnoise import show

FAST = ("singular",)
SLOW = ("epochs", "scaling", "weak-order", "double-well", "current", "posterior", "momentum")


class TestContinuousLimit:
    @pytest.mark.parametrize("figure", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
    def test_theory_and_runs(self, run, tmp_path, figure):
        code, said, err = run("reproduce", "continuous-limit", figure, "--out", tmp_path, "--workers", 1)
        assert code == 0, said
        assert "and the runs agree" in said and "disagree" not in said
        name = figure.replace("-", "_")
        for file in (f"{name}.svg", f"{name}.png", "report.html"):
            assert (tmp_path / figure / file).exists() and file in err

    def test_small_versions_of_the_others(self, tmp_path, monkeypatch):
        """A fiftieth of the runs: everything is computed, drawn and judged, whatever the verdict on so few."""
        module = import_module("shotnoise.reproduce.continuous_limit")
        monkeypatch.setitem(module.RUNS, "quick", 0.02)
        for figure in ("scaling", "weak-order", "current", "posterior", "momentum"):
            found = sn.reproduce.continuous_limit(tmp_path, figure, workers=1)
            assert found.agreement.agrees and found.figures, figure

    def test_white_noise_in_the_place_of_epochs_is_rejected(self, tmp_path, monkeypatch):
        module = import_module("shotnoise.reproduce.continuous_limit")
        monkeypatch.setitem(module.RUNS, "quick", 0.1)
        assert sn.reproduce.continuous_limit(tmp_path, "epochs", workers=1).holds
        right = sn.predict.diffusion.epoch_covariance

        def wrong(*args, **options):
            found = right(*args, **options)
            return found.assign(mean_variance_ratio=xr.ones_like(found["mean_variance_ratio"]))

        monkeypatch.setattr(module.diffusion, "epoch_covariance", wrong)
        found = sn.reproduce.continuous_limit(tmp_path, "epochs", workers=1)
        assert not found.holds and "disagree" in found.sentences[0]

    def test_names(self, run, tmp_path):
        code, _, err = run("reproduce", "continuous-limit", "fig9", "--out", tmp_path)
        assert code == 2 and "figure 'fig9': one of scaling, weak-order" in err
        code, _, err = run("reproduce", "continuous-limit", "scaling", "--preset", "huge", "--out", tmp_path)
        assert code == 2 and "preset 'huge': one of quick, paper" in err


def test_a_tilted_quadratic_has_the_noise_it_was_asked_for():
    from shotnoise.reproduce.tilted import quadratic

    H, C = np.array([[2, 0.5], [0.5, 1]]), np.array([[1, -0.3], [-0.3, 0.6]])
    land = sn.predict.diffusion.Network(quadratic(H, C, np.array([1.0, 2.0])))
    np.testing.assert_allclose(land.covariance(land.start)[0], C, atol=1e-12)
    np.testing.assert_allclose(land.gradient(land.start)[0], H @ [1.0, 2.0], atol=1e-12)


def test_figures_of_a_diffusion():
    df = sn.predict.diffusion
    s = df.FokkerPlanck(df.Quadratic([2.0, 1.0], [1.0, 1.0]), 0.1, 1, [(-1, 1)] * 2, 30).stationary()
    assert show.current(s).axes
    t = df.tempered_posterior(df.Landscape(1, lambda w: w, [[1.0]]), 0.1, 1, np.linspace(-2, 2, 101))
    lines = show.densities(t["density"], names=["ito", "printed, eq. 28"]).axes[0].lines
    assert [line.get_gid() for line in lines] == ["density ito", "density printed, eq. 28"]
    with pytest.raises(sn.InputError, match="dimensions theory and x"):
        show.densities(t["mean_weights"])
    with pytest.raises(sn.InputError, match="a current is drawn for two weights"):
        show.current(t)


class TestPredictDiffusion:
    OPTIONS = ("--hessian", "2,0.5;0.5,1", "--noise", "1,-0.3;-0.3,0.6", "--learning-rate", 0.1, "--batch-size", 4)

    def test_a_minimum_to_table_and_files(self, run, tmp_path):
        out, store = tmp_path / "d.json", tmp_path / "d.zarr"
        code, said, err = run("predict", "diffusion", *self.OPTIONS, "--json", out, "--save", store)
        assert code == 0, err
        assert "-5.1 %" in said and "-9.9 %" in said and "0.01786" in said  # trace of X
        assert "Nearest to SGD is the second order, corrected equation, off by 0.7 %." in said
        assert "turning at up to 0.3007 per unit time, entropy is produced at 0.1634" in said
        assert out.exists() and sn.load(store)["weight_covariance"].dims[0] == "theory"

    def test_other_minima(self, run):
        code, said, _ = run("predict", "diffusion", *self.OPTIONS, "--momentum", 0.9)
        assert code == 0 and "Nearest to SGD is the underdamped equation, off by 2.7 %." in said
        common = ("--learning-rate", 0.1, "--batch-size", 2)
        code, said, _ = run("predict", "diffusion", "--hessian", "2,0;0,0", "--noise", "1,0;0,1", *common)
        assert code == 0 and "flat directions gain a variance of 0.005000 with every update" in said
        code, said, _ = run("predict", "diffusion", "--hessian", "2", "--noise", "1", *common)
        assert code == 0 and "Hessian and noise commute" in said
        code, said, _ = run("predict", "diffusion", "--hessian", "30", "--noise", "1", *common)
        assert code == 0 and "SGD diverges" in said
        code, _, err = run("predict", "diffusion", "--hessian", "2,1", "--noise", "1", *common)
        assert code == 2 and "a square matrix, rows with semicolons" in err
