"""`shotnoise simulate` on the command line: the whole way, stops in the middle, shares of the work, dry runs."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from rich.console import Console
from typer.testing import CliRunner

import shotnoise as sn
from shotnoise import cli, experiment
from shotnoise.cli import simulating
from shotnoise.errors import DataError, InputError
from shotnoise.experiment.initial import Normal
from shotnoise.show import ensemble_progress as progress_module
from shotnoise.show.ensemble_progress import ensemble_progress
from shotnoise.show.ensemble_table import ensemble_table
from shotnoise.simulate import Status
from shotnoise.simulate.store import Store, read

CONFIG = """\
[problem]
data = "gauss-2"
model = "mlp:4"

[optimizer]
rule = "sgd"
learning_rates = [0.05, 0.1]

[training]
batch_size = [5, 20]
steps = 6
runs = 10
initial = {normal = 0.1}

[record]
what = ["loss", "gradient_variance"]
every = 2

[compute]
workers = 1
block = 4
"""
PIECES = 12


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text(CONFIG)
    return path


def run(*arguments):
    """`shotnoise simulate ARGS`: exit status, standard output, standard error, the last in one line."""
    done = CliRunner().invoke(cli.app, ["simulate", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, " ".join(done.stderr.split())


def test_from_the_file_to_a_table_a_store_and_a_summary(config, tmp_path):
    store, summary = tmp_path / "small.zarr", tmp_path / "summary.json"
    code, out, err = run(config, "--json", summary)
    assert code == 0
    assert "10 runs x 6 steps in each of 4 cells, 12 pieces of at most 4 runs; every run's values" in err
    assert f"results in {store}" in err and "40 of 40 runs" in err and "minibatch loss" in err
    assert re.search("learning rate +batch size +loss +median +gradient variance +runs +diverged", out)
    assert len(re.findall(r"^ +0\.(?:05|1) +(?:5|20) .*± .* 10 +0 *$", out, re.M)) == 4
    assert f"shotnoise.simulate.load({str(store)!r})" in out
    opened = sn.simulate.load(store)
    problem, *rest = in_python()
    xr.testing.assert_equal(
        opened.load(), sn.simulate(problem, *rest, initial=Normal(0.1, problem.parameter_count), **RECORD)
    )
    with xr.open_zarr(store, consolidated=False) as plain:
        np.testing.assert_array_equal(plain["loss"].values, opened["loss"].values)
    written = json.loads(summary.read_text())["variables"]
    assert written["loss"]["values"] == sn.simulate.summary(opened)["loss"].values.tolist()
    code, out, err = run(config, "--merge-check")
    assert code == 0 and "12 of 12 pieces are finished and intact" in out


RECORD = {"record": ["loss", "gradient_variance"], "every": 2, "block": 4}


def in_python():
    data = sn.datasets.load("gauss-2")
    problem = sn.Problem(sn.models.build("mlp:4", data), "cross_entropy", data.inputs, data.targets)
    return problem, [sn.rules.SGD(0.05), sn.rules.SGD(0.1)], [5, 20], 6, 10


def test_a_store_of_another_simulation_is_refused_before_the_work(config, tmp_path):
    assert run(config)[0] == 0
    config.write_text(CONFIG.replace("steps = 6", "steps = 8"))
    for arguments in ([], ["--dry-run"]):
        with pytest.raises(
            InputError, match=r"holds the results of another experiment(.|\n)*steps: 6 in the store, 8 asked"
        ):
            run(config, *arguments)
    code, _, err = run(config, "--store", tmp_path / "other.zarr")
    assert code == 0 and f"results in {tmp_path / 'other.zarr'}" in err


def test_shards_meet_in_the_store(config, tmp_path):
    assert run(config, "--store", tmp_path / "whole.zarr")[0] == 0
    code, out, err = run(config, "--shard", "1/2")
    assert code == 0 and "shard 1/2: 6 of the pieces" in err and "20 of 20 runs" in err
    assert "6 of 12 pieces are finished, and the table is about those" in out
    code, out, _ = run(config, "--merge-check")
    assert (
        code == 1
        and "6 of 12 pieces are finished and intact; missing: learning_rate=0.05, batch_size=5 runs 4-7" in out
    )
    code, out, err = run(config, "--shard", "2/2")
    assert code == 0 and "where 6 of 12 pieces are finished" in err and "the table is about those" not in out
    assert run(config, "--merge-check")[:2] == (0, "12 of 12 pieces are finished and intact\n")
    assert results_in(tmp_path / "small.zarr") == results_in(tmp_path / "whole.zarr")
    assert run(config, "--shard", "1/2")[0] == 0  # nothing is left, and that is no error


def results_in(store: Path) -> dict[str, bytes]:
    """The chunks of the arrays and the records of the pieces, by name."""
    files = [*store.glob("*/c.*"), *store.glob("manifest/pieces/*")]
    return {str(file.relative_to(store)): file.read_bytes() for file in files}


def test_merge_check_reports_damage(config, tmp_path):
    assert run(config)[0] == 0
    chunk = next((tmp_path / "small.zarr" / "loss").glob("c.*"))
    chunk.write_bytes(b"x" * chunk.stat().st_size)
    code, out, _ = run(config, "--merge-check")
    assert code == 1 and "11 of 12 pieces are finished and intact; damaged: " in out
    code, _, err = run(config)
    assert code == 0 and "warning: " in err and "1 pieces were damaged and are computed again" in err
    assert run(config, "--merge-check")[0] == 0
    with pytest.raises(DataError, match="does not exist; expected a store"):
        run(config, "--merge-check", "--store", tmp_path / "none.zarr")


def test_a_dry_run_says_how_large_and_creates_nothing(config, tmp_path):
    text = (
        CONFIG.replace("runs = 10", "runs = 400").replace("steps = 6", "steps = 20").replace("every = 2", "every = 1")
    )
    config.write_text(text.replace("block = 4", "block = 100"))
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run(config, "--dry-run", "--shard", "2/4")
    assert code == 0 and sorted(tmp_path.rglob("*")) == before
    assert "16 pieces of at most 100 runs" in out and "shard 2/4: 4 of the pieces" in out
    assert re.search(r"^memory: about [\d.]+ MB per worker, beside Python and PyTorch themselves$", out, re.M)
    assert re.search(r"^time: about (less than 1|\d+) s with 1 worker$", out, re.M)
    assert re.search(r"^time for this shard: about (less than 1|\d+) s with 1 worker$", out, re.M)
    size, unit, files = re.search(r"^size on disk: about ([\d.]+) (kB|MB), in ([\d,]+) files", out, re.M).groups()
    assert run(config)[0] == 0
    found = [file for file in (tmp_path / "small.zarr").rglob("*") if file.is_file()]
    predicted, chunks = float(size) * {"kB": 1e3, "MB": 1e6}[unit], (tmp_path / "small.zarr").glob("*/c.*")
    assert 0.75 * predicted < sum(file.stat().st_size for file in chunks) < 1.1 * predicted
    assert predicted == pytest.approx(sum(a.nbytes for a in read(tmp_path / "small.zarr").data_vars.values()), rel=0.01)
    assert 0 <= len(found) - int(files.replace(",", "")) < 40
    code, out, _ = run(config, "--dry-run")
    assert code == 0 and "where 16 of 16 pieces are finished" in out and "time: nothing is left to do" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", 3], r"about 10 s with 3 workers, 30 s of one core"),
        (["--workers", 1], r"about 30 s with 1 worker\n"),
        ([], r"about 30 s with 1 worker\n"),
        (["--scheduler", "tcp://x"], r"about 30 s of one core, to be divided by those of the cluster"),
    ],
)
def test_the_time_depends_on_who_computes(config, monkeypatch, arguments, said):
    monkeypatch.setattr(experiment, "piece_seconds", lambda plan: [2.5] * PIECES)
    assert re.search(f"time: {said}", run(config, "--dry-run", *arguments)[1])


@pytest.mark.parametrize(
    ("more", "arguments", "expected"),
    [
        ("", [], {"workers": None, "scheduler": None}),
        ("workers = 3\n", [], {"workers": 3, "scheduler": None}),
        ("workers = 3\n", ["--workers", 2], {"workers": 2, "scheduler": None}),
        ("workers = 3\n", ["--scheduler", "a:1"], {"workers": None, "scheduler": "a:1"}),
        ("scheduler = 'b:1'\n", [], {"workers": None, "scheduler": "b:1"}),
        ("scheduler = 'b:1'\n", ["--workers", 2], {"workers": 2, "scheduler": None}),
    ],
)
def test_the_command_line_overrules_the_file(config, monkeypatch, more, arguments, expected):
    config.write_text(CONFIG.replace("workers = 1\n", more))
    seen = []
    monkeypatch.setattr(
        simulating, "_dry_run", lambda job, finished: seen.append({"workers": job.workers, "scheduler": job.scheduler})
    )
    assert run(config, "--dry-run", *arguments)[0] == 0 and seen == [expected]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--shard", "0/2"], "--shard '0/2': expected I/N with I = 1 .. N, such as 3/100"),
        (["--shard", "3/2"], "--shard '3/2': expected I/N"),
        (["--shard", "two"], "--shard 'two': expected I/N"),
        (["--workers", "2", "--scheduler", "tcp://x"], "give one of the two"),
        (["--merge-check", "--dry-run"], "--merge-check, --dry-run and --json exclude each other"),
        (["--dry-run", "--json", "x.json"], "--merge-check, --dry-run and --json exclude each other"),
        (["--json", "/no/such/folder/x.json"], "cannot write /no/such/folder/x.json"),
        (["--store", "/no/such/folder/x.zarr"], "cannot write /no/such/folder/x.zarr"),
        (["--store", "/no/such/folder/x.zarr", "--dry-run"], "cannot write /no/such/folder/x.zarr"),
    ],
)
def test_wrong_options_are_refused_before_the_work(config, monkeypatch, arguments, said):
    monkeypatch.setattr(experiment.Job, "run", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(experiment, "piece_seconds", lambda *_: pytest.fail("the work began"))
    with pytest.raises(InputError, match=re.escape(said)):
        run(config, *arguments)


def test_mistakes_end_in_lines_and_exit_status_2(config, monkeypatch, capsys):
    config.write_text(CONFIG.replace("steps = 6", "stesp = 6"))
    monkeypatch.setattr(sys, "argv", ["shotnoise", "simulate", str(config)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: small.toml has 2 mistakes:",
        "  line 9, training.steps: missing",
        "  line 11, training.stesp: unknown key; did you mean 'steps'?",
    ]
    assert run()[0] == 2 and run(config, "--workers", 0)[0] == 2  # what typer itself refuses


def test_an_interruption_keeps_what_is_finished(config, tmp_path, monkeypatch):
    original, calls = Store.write, []

    def interrupted(self, piece, content):
        if len(calls) == 5:
            raise KeyboardInterrupt
        calls.append(piece)
        original(self, piece, content)

    monkeypatch.setattr(Store, "write", interrupted)
    code, out, err = run(config)
    assert code == 130 and "interrupted: 5 of 12 pieces are finished; the same command continues" in err
    assert "At step" not in out
    monkeypatch.undo()
    code, out, err = run(config)
    assert code == 0 and "where 5 of 12 pieces are finished" in err
    assert run(config, "--store", tmp_path / "whole.zarr")[0] == 0
    assert results_in(tmp_path / "small.zarr") == results_in(tmp_path / "whole.zarr")


# The command as a shell starts it: tests that run in the background hand on that interrupts are to be ignored.
START = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from shotnoise.cli import main; main()"
)
SHELL = [sys.executable, "-c", START]


def test_ctrl_c_in_a_shell_and_the_same_command_again(tmp_path):
    text = (
        CONFIG.replace("runs = 10", "runs = 60").replace("steps = 6", "steps = 100").replace("every = 2", "every = 20")
    )
    (tmp_path / "long.toml").write_text(text.replace("block = 4", "block = 10"))
    process = subprocess.Popen(
        [*SHELL, "simulate", "long.toml"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    pieces = tmp_path / "long.zarr" / "manifest" / "pieces"
    while process.poll() is None and len(list(pieces.glob("*.json"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    done = int(re.search(r"^interrupted: (\d+) of 24 pieces are finished; the same command continues$", err, re.M)[1])
    assert 3 <= done < 24 and done == len(list(pieces.glob("*.json"))) and "Traceback" not in err and not out
    assert run(tmp_path / "long.toml", "--merge-check")[0] == 1
    code, _, err = run(tmp_path / "long.toml")
    assert code == 0 and f"where {done} of 24 pieces are finished" in err
    assert run(tmp_path / "long.toml", "--store", tmp_path / "whole.zarr")[0] == 0
    assert results_in(tmp_path / "long.zarr") == results_in(tmp_path / "whole.zarr")


def test_two_worker_processes_write_the_same_store(config, tmp_path):
    assert run(config, "--workers", 2)[0] == 0
    assert run(config, "--store", tmp_path / "alone.zarr", "--workers", 1)[0] == 0
    assert results_in(tmp_path / "small.zarr") == results_in(tmp_path / "alone.zarr")


# ---- what is shown


def statuses(count):
    return [Status(k, count, 100 * k, 100 * count, 0.1 * k, 1 / (k + 1)) for k in range(count + 1)]


def test_progress_in_a_terminal_is_one_live_line():
    terminal = Console(force_terminal=True, file=io.StringIO(), width=100)
    with ensemble_progress(terminal) as report:
        for status in statuses(4):
            report(status)
            time.sleep(0.01)
    shown = terminal.file.getvalue()
    assert "4 of 4 runs" in shown and "run-steps/s" in shown and "minibatch loss 0.200" in shown and "0:00:00" in shown


def test_progress_elsewhere_is_a_plain_line_now_and_then(monkeypatch):
    log = Console(file=io.StringIO(), width=100)
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    with ensemble_progress(log) as report:
        for status in statuses(5):
            report(status)
    lines = log.file.getvalue().splitlines()
    assert "\x1b" not in log.file.getvalue()
    assert [line.split(" runs")[0] for line in lines] == ["1 of 5", "3 of 5", "5 of 5"]
    assert re.fullmatch(r"3 of 5 runs, .* run-steps/s, minibatch loss 0\.250, .* left", lines[1])


def test_progress_of_a_continued_run_has_the_speed_of_this_one(monkeypatch):
    log = Console(file=io.StringIO(), width=100)
    with ensemble_progress(log) as report:
        report(Status(900, 1000, 90_000, 100_000, 0.0, float("nan")))
        time.sleep(0.02)
        report(Status(900, 1000, 90_010, 100_000, 0.02, float("nan")))
        time.sleep(0.02)
        report(Status(900, 1000, 90_020, 100_000, 0.04, float("nan")))
    line = log.file.getvalue()
    assert float(re.search(r"([\d,]+) run-steps/s", line)[1].replace(",", "")) < 2000
    assert "minibatch loss" not in line


def test_no_progress_no_line():
    log = Console(file=io.StringIO())
    with ensemble_progress(log):
        pass
    assert log.file.getvalue() == ""


def rows_of(runs: xr.Dataset) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=300)
    console.print(ensemble_table(runs))
    lines = console.file.getvalue().splitlines()
    return [re.split(r" {2,}", line.strip()) for line in lines if line.strip()]


def test_the_table_counts_runs_that_are_missing_or_diverged():
    when = np.array([[-1, -1, 3, -2], [-1, -1, -1, -2]], np.int32)
    loss = np.array([[[1.0], [3.0], [np.inf], [np.nan]], [[2.0], [4.0], [9.0], [np.nan]]])
    runs = xr.Dataset(
        {"loss": (("batch_size", "run", "step"), loss), "divergence_step": (("batch_size", "run"), when)},
        {"batch_size": [1, 8], "step": [10]},
    )
    title, header, _, first, second = rows_of(runs)
    assert title == ["At step 10"] and header == ["batch size", "loss", "median", "runs", "diverged"]
    assert first == ["1", "2.0 ± 1.0", "2.000", "3", "1"]
    assert second == ["8", "5.0 ± 2.1", "4.000", "3", "0"]


def test_the_table_of_summaries_and_of_other_records():
    problem, rules, *rest = in_python()
    for rule, raw, record in (
        (rules, False, ["minibatch_loss", "gradient_variance"]),
        ([rules[0], sn.rules.Adam()], True, ["accuracy"]),
    ):
        runs = sn.simulate(problem, rule, *rest, record=record, raw=raw, block=4)
        _, header, _, *rows = rows_of(runs)
        assert header[1:] == (
            ["batch size", "minibatch loss", "median", "gradient variance", "runs", "diverged"]
            if not raw
            else ["batch size", "runs", "diverged"]
        )
        assert len(rows) == 4 and all(row[-2:] == ["10", "0"] for row in rows)
    assert rows[0][0].startswith("SGD(") and rows[-1][0].startswith("Adam(")
