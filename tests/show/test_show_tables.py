"""The rows, in the terminal and as text."""

import io

from rich.console import Console

from shotnoise import show
from shotnoise.show.tables import agreement_sheet, batch_sheet, layer_sheet, step_sheet


def printed(table, width=100):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_one_row_per_batch_size(build):
    sheet = batch_sheet(build.result([1, 512], signal=[0.1, 0.1, 0.1], noise=[3, 6, 3]))
    assert sheet.title == "Noise of the minibatch gradient; noise scale: 40.0 samples"
    assert sheet.columns == ["batch size", "gradient variance", "noise share"]
    assert sheet.rows == [["1", "12.00", "98 %"], ["512", "0.01677", "5.3 %"]]


def test_steps_and_observations(series, build):
    sheet = batch_sheet(series, build.observed(series.isel(step=[3])))
    assert sheet.columns == [
        "step",
        "batch size",
        "gradient variance",
        "observed variance",
        "noise share",
        "noise scale",
    ]
    assert len(sheet.rows) == 16 and sheet.sections == (4, 8, 12)
    assert sheet.rows[0] == ["0", "1", "12.00", "", "92 %", "12.0"]
    assert sheet.rows[12][:2] == ["1,000", "1"] and "±" in sheet.rows[12][3] and sheet.rows[12][-1] == "768"


def test_sizes_that_were_only_observed_have_a_row(build):
    observed = build.observed(build.result([16]))
    sheet = batch_sheet(build.result([1, 64]), observed)
    assert [row[0] for row in sheet.rows] == ["1", "16", "64"]
    assert sheet.rows[1][1] == "" and sheet.rows[0][2] == ""


def test_uncertain_numbers_show_it(build, half_resolved):
    assert batch_sheet(build.result(stderr=True)).rows[0][1].count("±") == 1
    assert batch_sheet(half_resolved).rows[-1][-1] == "over 2,800"
    rows = step_sheet(half_resolved).rows
    assert rows[0][-2:] == ["8.40 to 19.2", "estimated"]
    assert rows[-1][-2:] == ["2,800 to inf", "not resolvable with this budget"]


def test_layers_are_those_of_the_last_step(series, result):
    sheet = layer_sheet(series)
    assert sheet.title == "Layers at step 1,000"
    assert sheet.rows[2] == ["4", "300", "Linear", "0.003125", "9.000", "2,880"]
    assert layer_sheet(result.drop_vars("layer_noise_scale")) is None


def test_agreement_rows(series, build):
    observed = build.observed(series)
    sheet = agreement_sheet(build.agreement(series, observed))
    assert len(sheet.rows) == 16
    assert sheet.rows[-1][:3] == ["conditional gradient variance", "step 1,000, batch size 512", "0.01677"]


def test_the_terminal_shows_the_same_rows(series, build):
    observed = build.observed(series)
    text = printed(show.table(series, observed))
    for row in batch_sheet(series, observed).rows:
        assert any(all(cell in line for cell in row) for line in text.splitlines())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 100


def test_exact_zero_is_written_as_such(build):
    assert batch_sheet(build.result([build.samples])).rows == [["1,797", "0", "0 %"]]
