"""`shotnoise curvature`, from the options to files and tables."""

import json

import numpy as np
import pytest

import shotnoise as sn

COMMAND = ("curvature", "--data", "gauss-2", "--model", "mlp:5", "--top", 3)


def test_to_every_file(run, tmp_path):
    page, figure, out, store = (tmp_path / name for name in ("p.html", "p.svg", "p.json", "p.zarr"))
    code, said, err = run(*COMMAND, "--at", "0,5", "--layers", "--report", page, "--figure", figure, "--json", out,
                          "--save", store)  # fmt: skip
    assert code == 0, err
    assert "Along the training" in said and "Leading eigenpairs at step 5" in said and "principal angles" in said
    stored = sn.load(store)
    assert stored["hessian_eigenvalues"].dims == ("step", "mode") and stored["step"].values.tolist() == [0, 5]
    assert "layer_hessian_eigenvalues" in json.loads(out.read_text())["variables"]
    assert "Leading eigenvalues" in page.read_text() and figure.exists()


def test_it_is_the_verb_on_the_same_problem(run, tmp_path):
    out = tmp_path / "c.zip"
    assert run(*COMMAND, "--seed", 3, "--save", out)[0] == 0
    data = sn.datasets.load("gauss-2")
    problem = sn.Problem(sn.models.build("mlp:5", data, seed=3), "cross_entropy", data.inputs, data.targets)
    direct = sn.measure.curvature(problem, 3, seed=3)
    np.testing.assert_allclose(sn.load(out)["hessian_eigenvalues"], direct["hessian_eigenvalues"], rtol=1e-5)


def test_some_of_the_samples(run, tmp_path):
    out = tmp_path / "c.zip"
    code, _, err = run(*COMMAND, "--samples", 40, "--save", out)
    assert code == 0, err
    assert sn.load(out).attrs["n_samples"] == 40
    code, _, err = run(*COMMAND, "--samples", 400)
    assert code == 2 and "there are 100" in err


@pytest.mark.parametrize(
    ("option", "value", "words"), [("--top", 4000, "eigenpairs of matrices"), ("--at", "5,2", "step")]
)
def test_mistakes_end_in_one_line(run, option, value, words):
    code, _, err = run("curvature", "--data", "gauss-2", "--model", "mlp:5", option, value)
    assert code == 2 and words in err


def test_a_training_that_diverges_keeps_what_was_seen(run):
    code, said, err = run(*COMMAND, "--at", "0,400", "--learning-rate", 1e20)
    assert code == 1 and "1 of 2 looks were done" in err and "Leading eigenpairs" in said
