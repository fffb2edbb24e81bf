"""The comparison with the baselines, in miniature: what is in the table, what is left out, and that it can fail."""

import gzip
import sys

import numpy as np
import pytest

import shotnoise as sn

WORDS = {1: "good great lovely friendly", 0: "bad awful slow rude"}


@pytest.fixture
def recipe(monkeypatch):
    import shotnoise.reproduce.adaptive_steps  # noqa: F401  (the package shows the function under this name)

    module = sys.modules["shotnoise.reproduce.adaptive_steps"]
    small = module.Preset(1, 3, 1, {"gauss-10": 40, "mnist": 10, "yelp": 4}, 100, 60)
    monkeypatch.setitem(module.PRESETS, "quick", small)
    return module


@pytest.fixture
def reviews(tmp_path):
    folder = tmp_path / "data" / "yelp"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("yelp_polarity_train.csv.gz", "yelp_polarity_val.csv.gz"):
        rows = [f'{k % 2},"The {rng.choice(WORDS[k % 2].split())} place, visit {k}!"' for k in range(60)]
        with gzip.open(folder / name, "wt") as file:
            file.write("label,text\n" + "\n".join(rows) + "\n")
    return tmp_path / "data"


def test_all_methods_share_their_start_and_are_paired(recipe, reviews):
    found = sn.reproduce.adaptive_steps(data_dir=reviews)
    assert set(found.data) == {"gauss-10", "yelp"} and found.holds
    assert any(s.startswith("MNIST is left out: mnist: missing") for s in found.sentences)
    result = found.data["gauss-10"]
    assert list(result["optimizer"].values[:5]) == ["SGD", "Adam", "AdamW", "AdaptiveSGD", "PreconditionedSGD"]
    start = result["loss"].isel(step=0)
    assert float(start.max() - start.min()) == 0.0, "common initial weights"
    last = result["loss"].isel(step=-1)
    np.testing.assert_allclose(
        result["loss_advantage"].sel(optimizer="AdaptiveSGD", other="SGD"),
        last.sel(optimizer="AdaptiveSGD") - last.sel(optimizer="SGD"), rtol=1e-12,
    )  # fmt: skip
    assert np.isnan(result["chosen_learning_rate"].sel(optimizer="AdaptiveSGD, secants"))
    assert float(result["relative_cost"].sel(optimizer="SGD")) == 1.0
    assert bool((last < start).sel(optimizer=["SGD", "Adam", "AdaptiveSGD"]).all())
    assert [len(sheet.rows) for sheet in found.tables] == [7, 7]
    again = recipe._compare(recipe.tasks.gauss(), recipe.PRESETS["quick"], 0, None)
    np.testing.assert_array_equal(again["loss"], result["loss"])


def test_a_rate_at_which_training_diverges_is_never_chosen(recipe):
    task = recipe.tasks.gauss()
    wild = recipe.Method("AdaptiveSGD", recipe.METHODS[3].make, (1, 12))
    losses, after, _ = recipe._run(task, wild, 1e12, [0, 20, 40], (0,))
    assert (losses[0] < 3 and losses[-1] > 1e3) or np.isinf(losses[-1])
    assert len(losses) == 3 and (after is None) == np.isinf(losses[-1])


def test_the_sentences_say_who_wins_and_who_loses(recipe):
    names = [method.name for method in recipe.METHODS]
    gap = np.zeros((7, 7))
    gap[3, :3] = (-0.2, 0.2, 0.01)
    shape = ("optimizer", "other")
    result = sn.results.dataset(
        {"loss_advantage": (shape, gap), "loss_advantage_stderr": (shape, np.full((7, 7), 0.01))},
        {"optimizer": names, "other": names},
        {},
    )
    said = recipe._sentences(recipe.tasks.gauss(), result)[0]
    assert "AdaptiveSGD is lower than that of SGD (-0.2 ± 0.01); higher than that of Adam (+0.2 ± 0.01)" in said
    assert "not clearly apart from AdamW" in said


def test_from_the_command_line(recipe, run, tmp_path):
    code, said, err = run("reproduce", "adaptive-steps", "--out", tmp_path / "out")
    assert code == 0, err
    assert "PreconditionedSGD" in said and "MNIST is left out" in said
    assert all((tmp_path / "out" / name).exists() for name in ("report.html", "losses.svg", "gauss-10.zip"))
    code, _, err = run("reproduce", "adaptive-steps", "--preset", "huge", "--out", tmp_path / "out")
    assert code != 0 and "preset 'huge': one of quick, paper" in err


def test_reviews_that_are_not_such(recipe, reviews):
    with gzip.open(reviews / "yelp" / "yelp_polarity_val.csv.gz", "wt") as file:
        file.write("stars,body\n1,no\n")
    with pytest.raises(sn.DataError, match="cannot be read as reviews .* columns label"):
        recipe.tasks.reviews(reviews, 10)
