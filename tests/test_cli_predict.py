"""`shotnoise predict regression` and `shotnoise reproduce graduate-admission`, from the options to files and tables."""

import json
import re
import sys

import numpy as np
import pytest

import shotnoise as sn


@pytest.fixture
def table(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 2))
    path = tmp_path / "table.csv"
    rows = [f"{i},{a!r},{b!r},{1 + a - b + 0.3 * rng.normal()!r}" for i, (a, b) in enumerate(x.tolist())]
    path.write_text("no,width,height,price\n" + "\n".join(rows) + "\n")
    return path


class TestPredictRegression:
    def test_from_a_table_to_every_file(self, run, table, tmp_path):
        page, figure, out, store = (tmp_path / name for name in ("p.html", "p.svg", "p.json", "p.zarr"))
        code, said, err = run(
            "predict", "regression", "--data", table, "--target", "price", "--drop", "no", "--batch-sizes", "1,2,4,30",
            "--steps", 20, "--learning-rate", 0.2, "--decay", 0.05, "--momentum", 0.3, "--l2", 0.01, "--loss-variance",
            "--report", page, "--figure", figure, "--json", out, "--save", store,
        )  # fmt: skip
        assert code == 0, err
        assert "Step 20, exact" in said and "critical rate" in said
        assert "A larger batch makes none of these larger" in said or "A larger batch can make it larger" in said
        assert all(f"wrote {path}" in err for path in (page, figure, out, store))
        data = sn.datasets.load("csv", path=table, target="price", drop=["no"])
        direct = sn.predict.regression(
            data.inputs.double().numpy(), data.targets.double().numpy(), np.zeros(3), lambda t: 0.2 / (1 + 0.05 * t),
            [1, 2, 4, 30], 20, intercept=True, l2=0.01, momentum=0.3, loss_variance=True,
        )  # fmt: skip
        stored, machine = sn.load(store), json.loads(out.read_text())
        for name in ("gradient_variance", "loss_variance"):
            np.testing.assert_allclose(stored[name], direct[name], rtol=1e-12)
            np.testing.assert_allclose(machine["variables"][name]["values"], direct[name], rtol=1e-12)
        html = page.read_text()
        assert "Variance along the training" in html and "What a larger batch buys" in html and "<script" not in html

    def test_the_embedded_set_and_normal_weights(self, run):
        code, said, _ = run("predict", "regression", "--data", "diabetes", "--initial", "normal", "--batch-sizes", "8",
                            "--steps", 3, "--no-intercept", "--sampling", "with-replacement")  # fmt: skip
        assert code == 0 and "After 3 steps the minibatch gradient has variance" in said and "doubling" not in said

    def test_a_rate_that_blows_up_keeps_what_came_before(self, run):
        code, said, _ = run(
            "predict",
            "regression",
            "--data",
            "diabetes",
            "--learning-rate",
            50,
            "--batch-sizes",
            "1,442",
            "--steps",
            200,
        )
        assert code == 0 and re.search(r"grow beyond all numbers at b = 1 from step \d+ on", said)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--data", "digits"], "its targets are classes"),
            (["--data", "diabetes", "--target", "x"], "--target, --drop and --raw are for CSV files"),
            (["--data", "TABLE"], "name the column to predict with --target"),
            (["--data", "TABLE", "--target", "colour"], "has no column 'colour'"),
            (["--data", "diabetes", "--initial", "ones"], "--initial 'ones': one of zeros, normal"),
            (["--data", "diabetes", "--batch-sizes", "443"], "batch_size=443 but only n=442 samples"),
            (["--data", "diabetes", "--batch-sizes", "a"], "expected whole numbers with commas"),
            (["--data", "diabetes", "--sampling", "online"], "needs a population"),
            (["--data", "diabetes", "--momentum", 1], "momentum=1.0: at least 0 and below 1"),
            (["--data", "diabetes", "--report", "/no/such/place.html"], "the directory /no/such does not exist"),
        ],
    )
    def test_what_does_not_fit(self, run, table, options, message):
        options = [table if option == "TABLE" else option for option in options]
        code, _, err = run("predict", "regression", *options)
        assert code == 2 and message in err

    def test_the_target_among_the_features(self, run, table):
        lines = table.read_text().splitlines()
        copied = [f"{line},{line.split(',')[-1]}" for line in lines]
        copied[0] = lines[0] + ",cost"
        table.write_text("\n".join(copied) + "\n")
        code, _, err = run("predict", "regression", "--data", table, "--target", "price", "--drop", "no", "--steps", 2)
        assert code == 0 and "is the target itself" in err


def test_a_constant_column_beside_an_intercept():
    x = np.column_stack([np.arange(5.0), np.ones(5)])
    with pytest.warns(UserWarning, match="column 1 of X is constant, and intercept=True adds another"):
        sn.predict.regression(x, np.arange(5.0) ** 2, np.zeros(3), 0.01, [1], 2, intercept=True)


class TestReproduceGraduateAdmission:
    def test_the_stand_in_agrees_and_rejects_the_printed_lemma(self, run, tmp_path, monkeypatch):
        import shotnoise.reproduce.graduate_admission  # noqa: F401  (the package shows the function under this name)

        module = sys.modules["shotnoise.reproduce.graduate_admission"]
        monkeypatch.setitem(module.PRESETS, "quick", module.Preset(200, 30, 10, 200))
        out = tmp_path / "made"
        code, said, err = run("reproduce", "graduate-admission", "--out", out, "--workers", 1)
        assert code == 0, said
        assert "Theory and simulation agree" in said and "Lemma 2 as printed is rejected" in said
        assert "a stand-in" in said and "Admission_Predict_Ver1.1.csv" in said
        for name in ("left.svg", "left.png", "right.svg", "right.png", "report.html", "left_simulated.zip"):
            assert (out / name).exists() and name in err
        again, said_again, _ = run("reproduce", "graduate-admission", "--out", out, "--workers", 1)
        assert again == 0 and said_again == said  # the stores of the runs are there, and complete

    def test_a_missing_file_says_how_to_get_it(self, run, tmp_path):
        code, _, err = run("reproduce", "graduate-admission", "--csv", tmp_path / "none.csv", "--out", tmp_path / "o")
        assert code == 2 and "download Admission_Predict_Ver1.1.csv" in err
        code, _, err = run("reproduce", "graduate-admission", "--preset", "huge", "--out", tmp_path / "o")
        assert code == 2 and "preset 'huge': one of quick, paper" in err

    def test_the_page_when_they_disagree(self, tmp_path, monkeypatch):
        """The broken twin: with the printed lemma as theory the recipe does not hold."""
        module = sys.modules["shotnoise.reproduce.graduate_admission"]
        monkeypatch.setitem(module.PRESETS, "quick", module.Preset(200, 30, 10, 200))
        monkeypatch.setattr(
            module._Setting, "predicted", lambda self, sizes, steps, sampling=None: _doubled(self, sizes, steps)
        )
        found = sn.reproduce.graduate_admission(tmp_path, workers=1)
        assert not found.holds and "disagree" in found.sentences[0]


def _doubled(setting, sizes, steps):
    module = sys.modules["shotnoise.reproduce.graduate_admission"]
    return sn.predict.regression(
        setting.x, setting.y, setting.start, module.RATE, list(sizes), steps, intercept=True,
        sampling=module.PrintedLemma(),
    ).assign_attrs(data="x")  # fmt: skip
