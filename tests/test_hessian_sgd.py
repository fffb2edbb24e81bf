"""The Hessian study made again, tiny: every figure of Gauss-k ends with claims and numbers, runs are shared and kept."""

import numpy as np
import pytest
import xarray as xr

import shotnoise as sn
from shotnoise.errors import DataError, InputError
from shotnoise.reproduce import HESSIAN_SGD, hessian_sgd
from shotnoise.reproduce.hessian_sgd import changes, dynamics, images, layers, spectra, subspaces
from shotnoise.reproduce.hessian_sgd import settings as settings_module
from shotnoise.reproduce.hessian_sgd import workshop as workshop_module
from shotnoise.reproduce.hessian_sgd.dynamics import path_claims
from shotnoise.reproduce.hessian_sgd.settings import PRINTED, WORKING, Preset, network, settings
from shotnoise.reproduce.hessian_sgd.subspaces import with_bounds
from shotnoise.reproduce.hessian_sgd.workshop import Workshop
from shotnoise.simulate import verb

IMAGES = {"fig3", "fig4", "fig21", "fig22"}
ONE_EACH = ["fig1", "fig2", "fig7", "fig8", "fig10", "fig17", "fig19", "fig24"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hessian")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Few runs of a small network, the trainings cut to forty updates."""
    size = Preset(10, 2, 2, 2, 4, (40, 2, 4, 20))
    monkeypatch.setattr(workshop_module, "PRESETS", {"quick": size})
    monkeypatch.setattr(settings_module, "HIDDEN", (4, 6))
    short = {(k, hard): (0, 0.5, 1) for k in (2, 10) for hard in (False, True)}
    monkeypatch.setattr(settings_module, "LOOKS", short)
    lengths = settings_module.settings

    def cut(classes, batch_sizes=(5, 50)):
        return [settings_module.Setting(s.classes, s.batch_size, s.random_labels, s.learning_rate, 40)
                for s in lengths(classes, batch_sizes)]  # fmt: skip

    for module in (spectra, subspaces, layers, dynamics, changes):
        monkeypatch.setattr(module, "settings", cut)


def test_every_figure_but_the_sketch_of_notation_and_the_bounds_is_there():
    assert set(HESSIAN_SGD) == {f"fig{k}" for k in range(1, 25)} - {"fig5", "fig11"}


@pytest.mark.parametrize("figure", ONE_EACH)
def test_figures_end_with_claims(figure, folder):
    found = hessian_sgd(folder, figure, workers=1)
    assert found.holds and found.sentences
    for sentence in found.sentences:
        verdict, _, rest = sentence.partition(": ")
        assert verdict in ("Held", "Did not hold", "Not judged")
        assert any(letter.isdigit() for letter in rest)
    written = found.save(folder)
    assert {path.suffix for path in written} == {".zip", ".svg", ".png", ".html"}


@pytest.mark.slow
@pytest.mark.parametrize("figure", sorted(set(HESSIAN_SGD) - IMAGES - set(ONE_EACH)))
def test_the_other_figures_end_with_claims(figure, folder):
    assert hessian_sgd(folder, figure, workers=1).sentences


@pytest.mark.parametrize("figure", sorted(IMAGES))
def test_figures_of_images(figure, folder, monkeypatch):
    made = sn.datasets.load("gauss-10", n=60, dimension=16)
    monkeypatch.setattr(images, "load", lambda name, data_dir: made)
    monkeypatch.setattr(images, "WIDTH", {"mnist": 6, "cifar10": 6})
    found = hessian_sgd(folder, figure, workers=1)
    assert found.sentences and all("hidden layers" in sentence for sentence in found.sentences)


def test_runs_are_kept(folder, monkeypatch):
    hessian_sgd(folder, "fig2", workers=1)

    def compute(*anything, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(verb, "_one", compute)
    assert hessian_sgd(folder, "fig2", workers=1).sentences


def test_parameters_are_those_of_the_tables():
    count = {k: sum(p.numel() for p in network(50, (10, 30), k).parameters()) for k in (2, 10)}
    assert count == {2: 902, 10: 1150}
    for depth, expected in ((3, 134_794), (4, 151_306), (5, 167_818), (6, 184_330)):
        assert sum(p.numel() for p in network(784, (128,) * depth, 10).parameters()) == expected
    for depth, expected in ((3, 920_842), (6, 1_118_218)):
        assert sum(p.numel() for p in network(3072, (256,) * depth, 10).parameters()) == expected


def test_the_recipe_that_works_trains_and_the_printed_one_does_not(monkeypatch):
    monkeypatch.setattr(settings_module, "HIDDEN", (10, 30))
    setting = settings(10)[0]

    def end(recipe):
        runs = sn.simulate(
            setting.problem(recipe, 0), sn.rules.SGD(0.1), 5, 200, 12, initial=setting.initial(recipe), every=200
        )
        return runs["loss"].isel(batch_size=0, step=-1)

    assert float((end(WORKING) < 0.1).mean()) == 1.0
    assert float((end(PRINTED) < 0.1).mean()) == 0.0


def test_the_bound_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    largest, lowest = -np.sort(-rng.normal(size=(2, 1, 4)), -1), np.sort(rng.normal(size=(2, 1, 4)), -1)
    values = np.array([[[4.0, 3.0, 1.0, 0.5]], [[2.0, 1.5, 1.0, 0.1]]])
    dims = ("run", "curvature_step", "mode")
    runs = xr.Dataset(
        {"hessian_eigenvalues": (dims, values), "residual_eigenvalues": (dims, largest),
         "residual_lowest_eigenvalues": (dims, lowest), "residual_frobenius_norm": (dims[:2], [[9.0], [9.0]])},
        {"mode": range(4)},
    )  # fmt: skip
    found = with_bounds(runs)["yu_wang_samworth_bound"].values
    for r in range(2):
        norm = max(abs(largest[r]).max(), abs(lowest[r]).max())
        for d in (1, 2, 3):
            gap = values[r, 0, d - 1] - values[r, 0, d]
            assert found[r, 0, d - 1] == pytest.approx(2 * min(np.sqrt(d) * norm, 9.0) / gap)
    assert np.isnan(found[:, :, 3]).all()


def made_up_path(cosine):
    """Fifty runs whose loss converges and whose late cosine is as given; ||mu||^2 / Tr M is 0.17."""
    rng, steps = np.random.default_rng(0), np.arange(0, 401, 10)
    ones = np.ones((50, len(steps)))
    angle = cosine + 0.05 * rng.normal(size=ones.shape)
    dims = ("run", "step")
    return xr.Dataset(
        {"loss": (dims, np.exp(-steps / 50) * ones), "gradient_cosine": (dims, angle),
         "gradient_norm_sq": (dims, 0.17 * ones), "minibatch_gradient_norm": (dims, ones)}, {"step": steps},
    )  # fmt: skip


def test_claims_are_judged_by_the_numbers():
    right, wrong = (path_claims(made_up_path(cosine), "made up", hard=False) for cosine in (0.17, 0.4))
    assert right[0].startswith("Held") and right[1].startswith("Held") and right[2].startswith("Did not hold")
    assert wrong[1].startswith("Did not hold")


def test_the_duration_is_told_before_the_long_preset(folder, monkeypatch):
    size = Preset(4, 2, 2, 2, 4, (40, 2, 4, 20))
    monkeypatch.setattr(workshop_module, "PRESETS", {"paper": size})
    said = []
    setting = settings_module.Setting(2, 5, 0.0, 0.1, 4)
    Workshop(folder, "paper", say=said.append, workers=1).curvature(setting)
    assert len(said) == 1 and "2 runs will take about" in said[0] and "hours of one core" in said[0]


def test_what_is_not_there_is_refused(folder):
    with pytest.raises(InputError, match="one of fig1"):
        hessian_sgd(folder, "fig5")
    with pytest.raises(InputError, match="one of quick, paper, printed"):
        hessian_sgd(folder, "fig1", preset="fast")
    with pytest.raises(InputError, match="at least 2"):
        hessian_sgd(folder, "fig1", runs=1)
    with pytest.raises(DataError, match="train-images"):
        hessian_sgd(folder, "fig3", data_dir=folder)
