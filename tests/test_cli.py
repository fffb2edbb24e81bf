"""The command line: what a user types, what comes out, and what is said when it cannot work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xarray as xr

import shotnoise as sn
from shotnoise import cli

MODULE = """
import torch, shotnoise as sn

def make_problem():
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    return sn.Problem(model, "mse", torch.randn(40, 3), torch.randn(40, 1))

def with_dropout():
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Dropout(0.5))
    return sn.Problem(model, "mse", torch.randn(40, 3), torch.randn(40, 1))

def something_else():
    return 42

broken = 7
"""


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `shotnoise ARGS` in this process: (exit status, standard output, standard error)."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["shotnoise", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, captured.out, " ".join(captured.err.split())

    return call


@pytest.fixture
def module_folder(tmp_path, monkeypatch):
    (tmp_path / "user_module.py").write_text(MODULE)
    (tmp_path / "failing_module.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    yield tmp_path
    sys.modules.pop("user_module", None)


def test_measure_along_training_writes_everything(run, tmp_path):
    page, data, store = tmp_path / "report.html", tmp_path / "out.json", tmp_path / "out.zarr"
    code, out, err = run(
        "measure", "--data", "digits", "--model", "mlp:8", "--batch-sizes", "1,64", "--at", "0,5", "--draws", 40,
        "--learning-rate", 0.1, "--top", 3, "--report", page, "--json", data, "--save", store,
    )  # fmt: skip
    assert code == 0
    assert "noise scale" in out and "• At step 5 and batch size" in out and "Real minibatches" in out
    assert "wrote" in err and "training" in err
    result = sn.load(store)
    assert result["step"].values.tolist() == [0, 5] and result["batch_size"].values.tolist() == [1, 64]
    assert result.attrs["learning_rate"] == 0.1 and result.sizes["mode"] == 3
    assert len(set(result["model_fingerprint"].values.tolist())) == 2
    content = json.loads(data.read_text())
    assert content["variables"]["noise_trace"]["values"] == result["noise_trace"].values.tolist()
    assert "<h2" in page.read_text()


def test_the_same_numbers_as_in_python(run, tmp_path):
    store = tmp_path / "out.zarr.zip"
    code, *_ = run("measure", "--data", "diabetes", "--model", "linear", "--batch-sizes", "1,8", "--save", store)
    data = sn.datasets.load("diabetes")
    model = sn.models.build("linear", data, seed=0)
    expected = sn.measure(sn.Problem(model, "mse", data.inputs, data.targets), [1, 8])
    xr.testing.assert_equal(sn.load(store), expected)
    assert code == 0


def test_a_budget_gives_intervals(run):
    code, out, _ = run("measure", "--data", "digits", "--model", "linear", "--samples", 200, "--batch-sizes", "8")
    assert code == 0 and "±" in out and "95 % interval" in out


def test_a_problem_of_ones_own(run, module_folder):
    code, out, _ = run("measure", "--problem", "user_module:make_problem", "--batch-sizes", "1,40")
    assert code == 0 and "there is no noise at all: the batch is the whole data set" in " ".join(out.split())


def test_a_csv_table(run, tmp_path):
    rows = ["a, b ,price"] + [f"{k},{k * k % 7},{3 * k % 11}" for k in range(30)]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(rows))
    arguments = ("measure", "--data", table, "--model", "linear", "--batch-sizes", "1,8")
    assert run(*arguments, "--target", "price")[0] == 0
    code, _, err = run(*arguments)
    assert code == 2 and "name the column to predict with --target" in err
    code, _, err = run(*arguments, "--target", "prize")
    assert code == 2 and "price" in err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "say which problem: --data"),
        (["--data", "digits", "--problem", "a:b"], "say which problem: --data"),
        (["--data", "nope"], "There is no data set 'nope'"),
        (["--data", "digits", "--model", "gpt"], "model 'gpt' is not known"),
        (["--data", "digits", "--model", "mlp:8,x"], "whole numbers"),
        (["--data", "digits", "--model", "mlp"], "is not known; use"),
        (["--data", "digits", "--batch-sizes", "0"], "batch_size=0: a batch is a whole number"),
        (["--data", "digits", "--batch-sizes", "2000"], "only n=1797 samples"),
        (["--data", "digits", "--batch-sizes", "8,8"], "each once"),
        (["--data", "digits", "--batch-sizes", "one"], "expected whole numbers"),
        (["--data", "digits", "--sampling", "magic"], "--sampling 'magic' is not known; use one of"),
        (["--data", "digits", "--at", "10,0"], "increasing whole numbers"),
        (["--data", "digits", "--at", "0,5", "--learning-rate", "-1"], "learning_rate=-1"),
        (["--data", "digits", "--samples", "3"], "samples=3: a budget is"),
        (["--data", "digits", "--samples", "5000"], "n=1797"),
        (["--data", "digits", "--draws", "1"], "draws=1"),
        (["--data", "digits", "--train-batch-size", "0", "--at", "5"], "batch_size=0"),
        (["--problem", "no_such_module:f"], "importing no_such_module failed"),
        (["--problem", "failing_module:f"], "No module named 'no_such_library'"),
        (["--problem", "user_module"], "expected package.module:function"),
        (["--problem", "user_module:missing"], "has no function 'missing'"),
        (["--problem", "user_module:broken"], "has no function 'broken'"),
        (["--problem", "user_module:something_else"], "it returned int, expected a shotnoise.Problem"),
        (["--problem", "user_module:with_dropout", "--batch-sizes", "8"], "Dropout '1' is in training mode"),
        (["--data", "digits", "--report", "/no/such/folder/report.html"], "does not exist"),
        (["--data", "digits", "--json", "."], "it is a directory"),
    ],
)
def test_bad_input_is_one_line(run, module_folder, arguments, text):
    code, out, err = run("measure", *arguments)
    assert code == 2
    assert text in err and err.startswith("error:") and "Traceback" not in err
    assert "noise scale" not in out


def test_missing_files_say_how_to_get_them(run, tmp_path, monkeypatch):
    monkeypatch.delenv("SHOTNOISE_DATA", raising=False)
    for arguments in (["--data", "mnist"], ["--data", "mnist", "--data-dir", tmp_path]):
        code, _, err = run("measure", *arguments)
        assert code == 2 and "SHOTNOISE_DATA" in err


def test_bad_arguments_are_found_before_the_training(run, monkeypatch):
    def trained(*args):
        raise AssertionError("training began")

    monkeypatch.setattr(sn.Problem, "gradient", trained)
    code, _, err = run("measure", "--data", "digits", "--at", "100", "--batch-sizes", "1,5000")
    assert code == 2 and "batch_size=5000" in err


def test_a_diverged_training_keeps_what_was_measured(run, tmp_path):
    store = tmp_path / "kept.zarr"
    code, out, err = run(
        "measure", "--data", "digits", "--at", "0,50", "--learning-rate", "1e30", "--batch-sizes", "8", "--save", store
    )
    assert code == 1
    assert "stopped: " in err and "1 of 2 measurements were done and are kept" in err
    assert sn.load(store)["step"].values.tolist() == [0] and "noise scale" in out


def test_an_interrupted_training_keeps_what_was_measured(run, tmp_path, monkeypatch):
    original, calls = sn.Problem.gradient, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(sn.Problem, "gradient", interrupted)
    store = tmp_path / "kept.zarr"
    code, _, err = run(
        "measure", "--data", "digits", "--at", "0,2,50", "--batch-sizes", "8", "--model", "linear", "--save", store
    )
    assert code == 1 and "interrupted: 2 of 3 measurements were done and are kept" in err
    assert sn.load(store)["step"].values.tolist() == [0, 2]


def test_help_and_version_from_a_shell():
    command = [str(Path(sys.executable).with_name("shotnoise"))]
    version = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout.strip() == f"shotnoise {sn.__version__}"
    help_text = subprocess.run([*command, "measure", "--help"], capture_output=True, text=True, check=True)
    assert "--batch-sizes" in help_text.stdout
    assert subprocess.run([*command, "measure", "--bogus"], capture_output=True).returncode == 2


def test_the_random_state_of_the_process_is_left_alone(run):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    assert run("measure", "--data", "digits", "--model", "mlp:8", "--batch-sizes", "8", "--at", "0,2")[0] == 0
    assert torch.equal(torch.rand(3), expected)
