"""`shotnoise predict networks`, from the options to files and tables."""

import json

import numpy as np
import pytest

import shotnoise as sn

NETWORKS = ("predict", "networks")
EXAMPLE = ("--student", "[[[1]], [[1]]]", "--teacher", "[[4]]", "--learning-rate", "1/24")


def test_the_example_to_every_file(run, tmp_path):
    page, figure, out, store = (tmp_path / name for name in ("p.html", "p.svg", "p.json", "p.zarr"))
    code, said, err = run(
        *NETWORKS,
        *EXAMPLE,
        "--batch-sizes",
        "2,16",
        "--report",
        page,
        "--figure",
        figure,
        "--json",
        out,
        "--save",
        store,
    )
    assert code == 0, err
    assert "1240397/65536" in said and "falls with every larger batch" in said and "Too low: Theorem 3.4." in said
    stored = sn.load(store)
    assert float(stored["gradient_variance"].sel(batch_size=2)) == pytest.approx(9.17015, abs=5e-6)
    assert stored.attrs["decreasing_beyond"] == 1.0 and stored.attrs["degree"] == 6
    assert json.loads(out.read_text())["variables"]["batch_coefficient"]["dims"] == ["power"]
    assert "coefficients" in page.read_text() and figure.exists()


def test_decimals_are_exact_and_files_are_read(run, tmp_path):
    (tmp_path / "w.json").write_text("[[[0.1]], [[1]]]")
    code, said, _ = run(*NETWORKS, "--student", tmp_path / "w.json", "--teacher", "[[4]]", "--step", 0)
    assert code == 0 and "1521/50" in said  # 2 (1 * (0.1 - 4))^2, the second layer's weight being 1


def test_drawn_weights_are_those_of_the_seed(run, tmp_path):
    out = tmp_path / "p.json"
    code, said, _ = run(*NETWORKS, "--widths", "5,4,3", "--learning-rate", 0.01, "--layer", 1, "--seed", 3, "--json", out,
                        "--batch-sizes", "8")  # fmt: skip
    rng = np.random.default_rng(3)
    own, target = ([rng.normal(size=(4, 5)) / 5**0.5, rng.normal(size=(3, 4)) / 2] for _ in range(2))
    direct = sn.predict.networks.gradient_variance_polynomial(own, target, 0.01, 1, 1)
    found = json.loads(out.read_text())["variables"]["gradient_variance"]
    assert code == 0 and "exactly" not in said
    assert np.ravel(found.get("values", found.get("data")))[0] == pytest.approx(direct(8))


@pytest.mark.parametrize(
    ("quantity", "word"), [("loss", "The loss"), ("full_gradient_variance", "The full gradient variance")]
)
def test_other_quantities(run, quantity, word):
    code, said, _ = run(*NETWORKS, *EXAMPLE, "--quantity", quantity)
    assert code == 0 and word in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give --student and --teacher, or --widths"),
        (("--student", "[[[1]]]"), "give --student and --teacher, or --widths"),
        ((*EXAMPLE, "--widths", "1,1"), "give --student and --teacher, or --widths"),
        (("--widths", "64"), "inputs, hidden layers and outputs"),
        (("--student", "[[1]", "--teacher", "[[1]]"), "--student: not JSON"),
        (("--student", "none.json", "--teacher", "[[1]]"), "cannot be read"),
        ((*EXAMPLE[:4], "--learning-rate", "1/0"), "a number, or a fraction"),
        ((*EXAMPLE, "--quantity", "norm"), "one of gradient_variance"),
        ((*EXAMPLE, "--batch-sizes", "0"), "from 1 up"),
        ((*EXAMPLE, "--step", "7"), "would take"),
        ((*EXAMPLE, "--layer", "2"), "layers 0 .. 1"),
    ],
)
def test_refusals(run, options, message):
    code, _, err = run(*NETWORKS, *options)
    assert code == 2 and message in err, err


class TestPropagation:
    ARGS = ("predict", "propagation", "--data", "diabetes", "--model", "linear", "--learning-rate", 0.01)

    def test_a_linear_model_is_that_of_predict_regression(self, run, tmp_path):
        figure, out, store = (tmp_path / name for name in ("p.svg", "p.json", "p.zarr"))
        code, said, err = run(*self.ARGS, "--steps", 3, "--batch-sizes", "64,4096", "--figure", figure, "--json", out,
                              "--save", store)  # fmt: skip
        assert code == 0, err
        assert "falls as b^-1.00" in said and "below 10 % from b =" in said
        law = sn.load(store)
        data = sn.datasets.load("diabetes")
        problem = sn.experiment.sources.problem(data, "linear", l2=0.0, seed=0)
        weight, bias = (p.detach().double().numpy() for p in problem.parameters.values())
        exact = sn.predict.regression(
            data.inputs.double().numpy(), data.targets.double().numpy(), np.append(weight[0], bias), 0.01, [10**7], 3,
            sampling=sn.sampling.WithReplacement(), intercept=True,
        )  # fmt: skip
        leading = 1e7 * exact["gradient_variance"].sel(batch_size=10**7)
        np.testing.assert_allclose(law["gradient_variance_leading"], leading, rtol=1e-4)
        assert figure.exists() and json.loads(out.read_text())

    def test_far_too_small_batches_are_told(self, run):
        code, said, _ = run(*self.ARGS[:-1], 0.4, "--steps", 12, "--batch-sizes", "1")
        assert code == 0 and "simulate" in said

    def test_probes_show_their_errors(self, run):
        code, said, _ = run(*self.ARGS, "--steps", 2, "--batch-sizes", "8,16", "--probes", 16)
        assert code == 0 and "±" in said

    def test_refusals(self, run):
        code, _, err = run("predict", "propagation")
        assert code == 2 and "say which problem" in err
        code, _, err = run(*self.ARGS, "--sampling", "reshuffled-epochs")
        assert code == 2 and "fresh batches" in err


def test_stopped_with_an_earlier_step_in_hand(run, monkeypatch):
    from shotnoise.cli import networks as command

    earlier = sn.predict.networks.gradient_variance_polynomial([[[1]], [[1]]], [[4]], "1/24", 0)

    def stopped(*args):
        raise sn.predict.networks.Interrupted({0: earlier}, 1)

    monkeypatch.setattr(command, "_with_progress", stopped)
    code, said, err = run(*NETWORKS, *EXAMPLE)
    assert code == 0 and "this is step 0" in err and "1 18" in said
