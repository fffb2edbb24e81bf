"""Simulations described in a file: what is read, every mistake with its line, and the plan that comes out."""

import inspect
import itertools
import json
import re
import sys
import time
import tomllib
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import shotnoise as sn
from shotnoise import experiment
from shotnoise.errors import DataError, InputError
from shotnoise.experiment.initial import Normal
from shotnoise.experiment.lines import lines_of
from shotnoise.experiment.options import RIGHT, SCHEDULES
from shotnoise.experiment.tables import HOMES
from shotnoise.rules import RULES
from shotnoise.simulate.plan import bytes_per_run
from shotnoise.simulate.processes import compute

DOCS = Path(__file__).parents[1] / "docs" / "simulate-config.md"
BASE = """\
[problem]
data = "gauss-2"
model = "mlp:4"
seed = 3

[optimizer]
rule = "sgd"
learning_rate = 0.1

[training]
batch_size = [5, 20]
steps = 6
runs = 8

[record]
what = ["loss"]
every = 2
"""
MODULE = """
import torch, shotnoise as sn

def make_problem():
    return sn.Problem(torch.nn.Linear(3, 1), "mse", torch.randn(40, 3), torch.randn(40, 1))

def make_population():
    return sn.TeacherStudent(torch.nn.Linear(3, 1), torch.ones(1, 3))

def something_else():
    return 42
"""


@pytest.fixture
def written(tmp_path):
    """Write a configuration file; give its path."""

    def write(text: str, name: str = "config.toml") -> Path:
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refusal(path: Path) -> str:
    """What is said of a file, whether it is noticed in it or in the plan."""
    with pytest.raises(InputError) as refused:
        experiment.read(path).plan()
    return str(refused.value)


# ---- line numbers


class Writer:
    """Writes a TOML document in one of many ways, and notes on which line everything stands."""

    def __init__(self, draw):
        self.draw, self.text, self.lines = draw, "", {}

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def put(self, text):
        self.text += text

    def note(self, place):
        self.lines.setdefault(place, self.text.count("\n") + 1)

    def space(self, *more):
        self.put(self.pick("", " ", "\t", *more))

    def end(self):
        self.put(self.pick("", " ", ' # [x] "', " #a = ''' \t") + "\n" + self.pick("", "\n", "# [[y]]\n", " \t\n\n"))

    def key(self, key):
        if re.fullmatch("[A-Za-z0-9_-]+", key) and self.pick(True, False):
            self.put(key)
        else:
            self.put(self.pick(json.dumps(key), f"'{key}'") if "'" not in key else json.dumps(key))

    def dotted(self, keys):
        for position, key in enumerate(keys):
            if position:
                self.put(self.pick(".", " . "))
            self.key(key)

    def table(self, place, names, table):
        """The values of a table, then those of its tables that have headers of their own."""
        later = []
        for key, value in table.items():
            tables = value if isinstance(value, list) else [value]
            if tables and all(isinstance(each, dict) for each in tables) and self.pick(True, False):
                later.append((key, value))
            elif isinstance(value, dict) and value and self.pick(True, False):
                for inner, leaf in value.items():
                    self.pair(place, (key, inner), leaf)
            else:
                self.pair(place, (key,), value)
        for key, value in later:
            if isinstance(value, dict):
                self.header(place, (*place, key), (*names, key), value, "[", "]")
            else:
                for position, each in enumerate(value):
                    self.header(place, (*place, key, position), (*names, key), each, "[[", "]]")

    def header(self, outer, place, names, table, opening, closing):
        for length in range(len(outer) + 1, len(place) + 1):
            self.note(place[:length])
        self.put(opening)
        self.dotted(names)
        self.put(closing)
        self.end()
        self.table(place, names, table)

    def pair(self, place, keys, value, end=True):
        for length in range(1, len(keys) + 1):
            self.note((*place, *keys[:length]))
        self.dotted(keys)
        self.put(self.pick("=", " = "))
        self.value((*place, *keys), value)
        if end:
            self.end()

    def value(self, place, value):
        if isinstance(value, str):
            self.string(value)
        elif isinstance(value, list):
            self.sequence(place, value)
        elif isinstance(value, dict):
            self.put("{")
            for position, (key, inner) in enumerate(value.items()):
                self.put(", " if position else " ")
                self.pair(place, (key,), inner, end=False)
            self.put("}")
        else:
            self.put({True: "true", False: "false"}.get(value, repr(value)) if isinstance(value, bool) else repr(value))

    def sequence(self, place, values):
        self.put("[")
        for position, value in enumerate(values):
            if position:
                self.put(",")
            self.space("\n", "\n  ", ' # ] " \n')
            self.note((*place, position))
            self.value((*place, position), value)
            self.space("\n")
        self.put(self.pick("]", ",]", ",\n] ") if values else self.pick("]", "\n]"))

    def string(self, value):
        ways = [json.dumps(value), '"""' + "\n" + value.replace("\\", "\\\\").replace('"""', '""\\"') + '"""']
        if value.endswith('"'):
            ways.pop()
        if "'''" not in value and not value.endswith("'"):
            ways.append(f"'''\n{value}'''")
        if not {"'", "\n"} & set(value):
            ways.append(f"'{value}'")
        self.put(self.pick(*ways))


words = st.text("ab'\"\\#[]{}=,. \n", max_size=6)
keys = st.text("ab'.# ", min_size=1, max_size=3)
values = st.recursive(
    st.one_of(words, st.integers(), st.booleans(), st.just(-1.5e-7)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=10,
)


@given(st.data(), st.dictionaries(keys, values, max_size=4))
def test_everything_is_found_on_its_line(data, content):
    writer = Writer(data.draw)
    writer.table((), (), content)
    assert tomllib.loads(writer.text) == content
    assert lines_of(writer.text) == writer.lines
    assert lines_of(writer.text.replace("\n", "\r\n")) == writer.lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", {}),
        ("a=1", {("a",): 1}),
        ("# a = 1\n\n a . b.'c d' = 1 # b = 2", {("a",): 3, ("a", "b"): 3, ("a", "b", "c d"): 3}),
        ("[a]\n[a.b]\nc=1\n[d.e]", {("a",): 1, ("a", "b"): 2, ("a", "b", "c"): 3, ("d",): 4, ("d", "e"): 4}),
        ("[a.b]\n[a]\nc=1", {("a", "b"): 1, ("a",): 2, ("a", "c"): 3}),
        ('a = """\nb = 1\n"" \\"""" \nb = 2', {("a",): 1, ("b",): 4}),
        ("a = ''''x'\n'''''\nb = 2", {("a",): 1, ("b",): 3}),
        ('a = """"x""""" # "\nb = ""\nc=\'\'', {("a",): 1, ("b",): 2, ("c",): 3}),
        ("a = [ # [\n 1,\n\n [2\n,3]\n]\nb = 1979-05-27 07:32:00", {("a",): 1, ("a", 0): 2, ("a", 1): 4, ("a", 1, 0): 4, ("a", 1, 1): 5, ("b",): 7}),
        ("[[a]]\nb=1\n[[a]]\n[[a.c]]\nd=2\n[a.e]", {("a",): 1, ("a", 0): 1, ("a", 0, "b"): 2, ("a", 1): 3, ("a", 1, "c"): 4, ("a", 1, "c", 0): 4, ("a", 1, "c", 0, "d"): 5, ("a", 1, "e"): 6}),
        ("a = {b = [1,\n2], 'c' = {}}\nd = inf", {("a",): 1, ("a", "b"): 1, ("a", "b", 0): 1, ("a", "b", 1): 2, ("a", "c"): 2, ("d",): 3}),
        ('"\\u0061\\"" = 1\n"" = 2', {('a"',): 1, ("",): 2}),
    ],
)  # fmt: skip
def test_lines_of_awkward_documents(text, lines):
    tomllib.loads(text)
    assert lines_of(text) == lines


# ---- mistakes

CASES = [
    # what is replaced in BASE, by what, and what is said of it
    ("every = 2", "evrey = 2", "record.evrey: unknown key; did you mean 'every'?"),
    ("every = 2", "zzz = 2", "record.zzz: unknown key; there are what, every, raw"),
    ("every = 2", "steps = 2", "record.steps: unknown key here; it belongs in [training]"),
    ("every = 2", "every = 0", "record.every: expected at least 1; got 0"),
    ("every = 2", "every = 2.0", "record.every: expected a whole number; got 2.0"),
    ("every = 2", "raw = 1", "record.raw: expected true or false; got 1"),
    ('what = ["loss"]', 'what = ["los"]', "record.what[0]: 'los' is not known; use one of loss, minibatch_loss, "),
    ('what = ["loss"]', 'what = "los"', "record.what: 'los' is not known; use one of loss, minibatch_loss, "),
    ('what = ["loss"]', "what = [true]", "record.what[0]: expected text in quotation marks; got True"),
    ('what = ["loss"]', 'what = ["loss", "loss"]', "record.what: record=['loss', 'loss']: each name once"),
    ("steps = 6", 'steps = "many"', "training.steps: expected a whole number; got 'many'"),
    ("steps = 6", "steps = true", "training.steps: expected a whole number; got True"),
    ("steps = 6", "steps = -1", "training.steps: expected at least 0; got -1"),
    ("batch_size = [5, 20]", "batch_size = 0", "training.batch_size: expected at least 1; got 0"),
    ("batch_size = [5, 20]", "batch_size = [5, '6']", "training.batch_size[1]: expected a whole number; got '6'"),
    ("batch_size = [5, 20]", "batch_size = []", "training.batch_size: expected at least 1; got []"),
    ("batch_size = [5, 20]", "batch_size = [5, 5]", "training.batch_size: batch_sizes=[5, 5]: give at least one, each once"),
    ("runs = 8", 'runs = 8\ninitial = "fix"', "training.initial: expected \"fixed\", \"resampled\" or {normal = 0.1}; got 'fix'"),
    ("runs = 8", "runs = 8\ninitial = {uniform = 0.1}", "training.initial: expected \"fixed\", \"resampled\" or {normal = 0.1}; got {'uniform': 0.1}"),
    ("runs = 8", "runs = 8\ninitial = {normal = -1}", "training.initial: expected a finite number >= 0, such as 0.1; got -1"),
    ("runs = 8", 'runs = 8\nsampling = "with-replacment"', "training.sampling: 'with-replacment' is not known; use one of with-replacement, without-replacement, reshuffled-epochs, cyclic-epochs, online; did you mean 'with-replacement'?"),
    ("runs = 8", 'runs = 8\nsampling = "online"', "training.sampling: Online() draws fresh samples from a population, and this problem is a data set"),
    ("runs = 8", 'runs = 8\ncommon_random_numbers = "yes"', "training.common_random_numbers: expected true or false; got 'yes'"),
    ('rule = "sgd"', 'rule = "sdg"', "optimizer.rule: 'sdg' is not known; use one of sgd, averaged-momentum, heavy-ball, "),
    ('rule = "sgd"', "rule = 3", "optimizer.rule: 3 is not known; use one of sgd, "),
    ('rule = "sgd"', 'rule = "natural-gradient"', "optimizer: this update rule is for linear regression with squared loss"),
    ("learning_rate = 0.1", "learning_rate = -1", "optimizer.learning_rate: expected a finite number >= 0, such as 0.1; got -1"),
    ("learning_rate = 0.1", "learning_rate = nan", "optimizer.learning_rate: expected a finite number >= 0, such as 0.1; got nan"),
    ("learning_rate = 0.1", "learning_rate = [0.1, -1]", "optimizer.learning_rate: learning_rate(t=1)=-1: expected a finite number >= 0, such as 0.1"),
    ("learning_rate = 0.1", "learning_rate = [0.1, 0.2]", "optimizer.learning_rate: learning_rate has 2 values for 6 updates"),
    ("learning_rate = 0.1", "learning_rates = 0.1", "optimizer.learning_rates: expected a list of numbers, one for each rule of a sweep; got 0.1"),
    ("learning_rate = 0.1", "learning_rates = [0.1, 'x']", "optimizer.learning_rates[1]: expected a finite number >= 0, such as 0.1; got 'x'"),
    ("learning_rate = 0.1", "learning_rates = [0.1, 0.1]", "optimizer: optimizer=[SGD("),
    ("learning_rate = 0.1", "learning_rate = 1\nlearning_rates = [0.1]", "optimizer.learning_rates: there is a learning_rate, too; give one of the two"),
    ("learning_rate = 0.1", "learning_rate = 1\nmomentun = 0.9", "optimizer.momentun: unknown key; did you mean 'momentum'?"),
    ("learning_rate = 0.1", "learning_rate = 1\nnesterov = 1", "optimizer.nesterov: expected True or False; got 1"),
    ("learning_rate = 0.1", "learning_rate = 1\nnesterov = true", "optimizer.nesterov: expected momentum > 0 and dampening=0; got True with momentum=0 and dampening=0"),
    ("learning_rate = 0.1", 'learning_rate = {schedule = "cos", initial = 1}', "optimizer.learning_rate.schedule: 'cos' is not known; use one of inverse-time, exponential, cosine, steps, warm-up"),
    ("learning_rate = 0.1", "learning_rate = {initial = 1}", "optimizer.learning_rate.schedule: missing; use one of inverse-time, "),
    ("learning_rate = 0.1", 'learning_rate = {schedule = "cosine", initial = 1}', "optimizer.learning_rate.steps: missing"),
    ("learning_rate = 0.1", 'learning_rate = {schedule = "exponential", initial = 1, factor = "x"}', "optimizer.learning_rate.factor: expected a finite number >= 0, such as 0.99; got 'x'"),
    ("learning_rate = 0.1", 'learning_rate = {schedule = "warm-up", steps = 1, then = {schedule = "steps", initial = 1, factor = 1, every = 0}}', "optimizer.learning_rate.then.every: expected a whole number >= 1; got 0"),
    ('data = "gauss-2"', 'data = "gaus-2"', "problem.data: 'gaus-2' is not known; use one of digits, diabetes, gauss, gauss-2, gauss-10, mnist, cifar10; did you mean 'gauss-2'?"),
    ('data = "gauss-2"', "data = 2", "problem.data: expected the name of a data set, or {name = \"gauss-10\", n = 100}; got 2"),
    ('data = "gauss-2"', 'data = {name = "gauss-2", m = 3}', "problem.data: Data set 'gauss-2' has no option m; its options: n, dimension, random_labels, scale, seed."),
    ('data = "gauss-2"', 'data = {name = "gauss-2", n = "x"}', "problem.data: gauss-2 does not take these options: "),
    ('data = "gauss-2"', 'data = {name = "gauss-2", seed = -1}', "problem.data: gauss-2 does not take these options: "),
    ('data = "gauss-2"', 'data = {name = "gauss-2", random_labels = 2}', "problem.data: gauss: random_labels=2; expected a share between 0 and 1"),
    ('data = "gauss-2"', 'data = "gauss-2"\nfrom = "a:b"', "problem: expected one of the keys data, teacher, from; got data and from"),
    ('model = "mlp:4"', 'model = "gpt"', "problem.model: model 'gpt' is not known; use \"linear\", "),
    ('model = "mlp:4"', 'model = "cnn:4"', "problem.model: a cnn needs images"),
    ('model = "mlp:4"', 'model = "mlp:4"\ndtype = "float16"', "problem.dtype: 'float16' is not known; use one of float32, float64"),
    ('model = "mlp:4"', 'model = "mlp:4"\nl2 = inf', "problem.l2: expected a finite number; got inf"),
    ('model = "mlp:4"', 'model = "mlp:4"\ndimension = 3', "problem.dimension: unknown key here; it belongs in [problem] with 'teacher'"),
    ("[training]", "[compute]\nmemory = 3\n[training]", "compute.memory: expected a size such as \"2GB\", in B, kB, MB, GB, TB, KiB, MiB, GiB; got 3"),
    ("[training]", "[compute]\nmemory = '2XB'\n[training]", "compute.memory: expected a size such as \"2GB\""),
    ("[training]", "[compute]\nmemory = '9B'\n[training]", "compute.memory: memory=9: one run alone takes about "),
    ("[training]", "[compute]\nengine = 'fast'\n[training]", "compute.engine: 'fast' is not known; use one of auto, torch, native, linear, dense, stacked, one-by-one"),
    ("[training]", "[compute]\nengine = 'linear'\n[training]", "compute.engine: engine='linear' does not take this problem"),
    ("[training]", "[compute]\nworkers = 0\n[training]", "compute.workers: expected at least 1; got 0"),
    ("[training]", "[store]\npath = 3\n[training]", "store.path: expected text in quotation marks; got 3"),
    ("[training]", "[trainning]\n[training]", "trainning: unknown key; did you mean 'training'?"),
    ("[training]", "[store]\npath.to = 'x'\n[training]", "store.path: expected text in quotation marks; got {'to': 'x'}"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "text"), CASES, ids=[new.replace("\n", " ") for _, new, _ in CASES])
def test_a_mistake_is_named_with_its_line(written, old, new, text):
    assert BASE.count(old) == 1
    changed = BASE.replace(old, new)
    said = refusal(written(changed))
    keys = re.match(r"[\w.]*\w", text)[0].split(".")
    lines = changed.splitlines()
    number = 1 + next(k for k, line in enumerate(lines) if line == f"[{keys[0]}]")
    for key in keys[1:]:  # the innermost that is written in this table
        table = itertools.takewhile(lambda line: not line.startswith("["), lines[number:])
        number = next((n for n, line in enumerate(table, number + 1) if re.search(rf"\b{key}\b", line)), number)
    title, line = said.split("\n", 1)
    assert title == "config.toml has 1 mistake:"
    assert line.startswith(f"  line {number}, {text}"), said


def test_the_lines_of_nested_places(written):
    text = BASE.replace("[5, 20]", "[\n  5,\n  # no\n  true,\n]").replace(
        "[optimizer]", "[[optimizer]]\nrule='adam'\n[[optimizer]]"
    )
    text = text.replace(
        "learning_rate = 0.1", "learning_rate.schedule = 'steps'\nlearning_rate.initial = -1\nlearning_rate.factor = 1"
    )
    assert refusal(written(text)).splitlines() == [
        "config.toml has 3 mistakes:",
        "  line 10, optimizer[1].learning_rate.every: missing",
        "  line 11, optimizer[1].learning_rate.initial: expected a finite number >= 0, such as 0.1; got -1",
        "  line 18, training.batch_size[1]: expected a whole number; got True",
    ]


def test_all_mistakes_are_named_at_once(written):
    text = """\
[problem]
data = "gauss-2"
model = "gpt"
[optimizer]
rule = "heavy-ball"
learning_rate = -1
momentum = 2
weight_decay = "x"
eps = 1
[training]
batch_size = [0, 5]
runs = 1.5
initial = "any"
[recrod]
[compute]
block = 0
"""
    assert refusal(written(text)).splitlines() == [
        "config.toml has 11 mistakes:",
        '  line 3, problem.model: model \'gpt\' is not known; use "linear", "mlp:64,32" (widths of the hidden layers) or '
        '"cnn:16,32" (channels of the convolutions)',
        "  line 6, optimizer.learning_rate: expected a finite number >= 0, such as 0.1; got -1",
        "  line 7, optimizer.momentum: expected a finite number >= 0 and < 1, such as 0.9; got 2",
        "  line 8, optimizer.weight_decay: expected a finite number, such as 0.0001; got 'x'",
        "  line 9, optimizer.eps: unknown key; there are learning_rate, momentum, weight_decay",
        "  line 10, training.steps: missing",
        "  line 11, training.batch_size[0]: expected at least 1; got 0",
        "  line 12, training.runs: expected a whole number; got 1.5",
        '  line 13, training.initial: expected "fixed", "resampled" or {normal = 0.1}; got \'any\'',
        "  line 14, recrod: unknown key; did you mean 'record'?",
        "  line 16, compute.block: expected at least 1; got 0",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "config.toml has 3 mistakes:\n  optimizer: missing\n  problem: missing\n  training: missing"),
        ("training = 3", "  line 1, training: expected a table; got 3"),
        ("optimizer = 3", "  line 1, optimizer: expected the table [optimizer], or several [[optimizer]]; got 3"),
        ("problem = 3", "  line 1, problem: expected one of the keys data, teacher, from; got none"),
        ("[a]\nb =\n", "config.toml is not valid TOML: line 2: Invalid value (at line 2, column 4)"),
        ("a = 1\nb = [1,\n", "config.toml is not valid TOML: line 2: Invalid value (at end of document)"),
        ("a = 1\na = 2\n", "config.toml is not valid TOML: line 2: Cannot overwrite a value"),
        ("a = '''\nx\n", "config.toml is not valid TOML: line 2: Expected"),
        ("a = " + "[" * 100_000, "config.toml: lists or tables are nested too deeply"),
    ],
)
def test_files_that_are_no_configuration(written, text, said):
    assert said in refusal(written(text))


def test_files_that_cannot_be_read(tmp_path):
    assert refusal(tmp_path / "none.toml") == (
        f"cannot read {tmp_path / 'none.toml'}: No such file or directory; expected the TOML file of a simulation"
    )
    assert "cannot read" in refusal(tmp_path) and "expected the TOML file" in refusal(tmp_path)
    (tmp_path / "latin.toml").write_bytes("# a\n# \xe9\n".encode("latin-1"))
    assert refusal(tmp_path / "latin.toml") == "latin.toml, line 2: not UTF-8 text; save the file with this encoding"


def test_a_byte_order_mark_and_windows_lines_are_no_mistakes(tmp_path):
    (tmp_path / "config.toml").write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert experiment.read(tmp_path / "config.toml").plan().steps == 6


def test_missing_data_files_are_reported_as_ever(written, monkeypatch):
    monkeypatch.delenv("SHOTNOISE_DATA", raising=False)
    with pytest.raises(DataError, match="SHOTNOISE_DATA"):
        experiment.read(written(BASE.replace("gauss-2", "mnist"))).plan()
    assert refusal(written(BASE.replace("gauss-2", "mnist").replace("runs = 8", "runs = 0"))).endswith(
        "has 1 mistake:\n  line 13, training.runs: expected at least 1; got 0"
    )


def test_right_values_are_known_for_all_options_that_need_one():
    for kind in (*RULES.values(), *SCHEDULES.values()):
        needed = {n: RIGHT[n] for n, p in inspect.signature(kind).parameters.items() if p.default is p.empty}
        kind(**needed)


# ---- what comes out


def test_the_plan_is_that_of_the_python_call(written):
    text = BASE.replace("0.1", "[0.1, 0.2, 0.3, 0.1, 0.2, 0.3]\nmomentum = 0.5").replace(
        "runs = 8", 'runs = 8\ninitial = "resampled"\nsampling = "reshuffled-epochs"\nseed = 7'
    )
    text += 'raw = false\n[compute]\nengine = "stacked"\nblock = 3\n[store]\npath = "results/here"\n'
    data = sn.datasets.load("gauss-2")
    expected = sn.simulate.plan(
        sn.Problem(sn.models.build("mlp:4", data, seed=3), "cross_entropy", data.inputs, data.targets),
        sn.rules.SGD([0.1, 0.2, 0.3] * 2, momentum=0.5),
        [5, 20],
        6,
        8,
        initial="resampled",
        sampling=sn.sampling.ReshuffledEpochs(),
        seed=7,
        every=2,
        raw=False,
        engine="stacked",
        block=3,
        stored=True,
    )
    read = experiment.read(written(text))
    assert read.plan().configuration() == expected.configuration()
    assert read.plan().layout == expected.layout
    assert read.store == read.path.parent / "results" / "here"


def test_defaults_and_other_spellings(written, tmp_path):
    text = BASE.replace("[5, 20]", "5\ninitial = {normal = 0.5}\ncommon_random_numbers = true").replace(
        '["loss"]', '"accuracy"'
    )
    text = text.replace('"mlp:4"', '"mlp:4"\ndtype = "float64"\nl2 = 1').replace(
        '"gauss-2"', '{name = "gauss-2", n = 30}'
    )
    text = text.replace("\nevery = 2", "") + "[compute]\nmemory = '30.5 kib'\n"
    plan = experiment.read(written(text, "name.of.it.toml")).plan()
    assert experiment.read(tmp_path / "name.of.it.toml").store == tmp_path / "name.of.it.zarr"
    assert plan.batch_sizes == (5,) and plan.recorded == tuple(range(7)) and plan.common_random_numbers
    assert plan.problem.n == 30 and str(plan.problem.dtype) == "torch.float64" and plan.problem.l2 == 1
    assert plan.initial == Normal(0.5, plan.problem.parameter_count) and plan.raw
    assert plan.block == int(30.5 * 1024) // bytes_per_run(plan.problem, 5)
    assert (
        plan.configuration()["initial"]
        == f"function Normal(standard_deviation=0.5, parameters={plan.problem.parameter_count})"
    )
    weights = np.array([plan.initial(np.random.default_rng(seed)) for seed in range(200)])
    assert abs(weights.std() - 0.5) < 0.01


def test_several_rules_and_a_sweep(written):
    text = BASE.replace("learning_rate = 0.1", "learning_rates = [0.1, 0.2]\nmomentum = 0.5")
    assert experiment.read(written(text)).plan().cells == {"learning_rate": [0.1, 0.2], "batch_size": [5, 20]}
    text = text.replace("[optimizer]", "[[optimizer]]").replace(
        "[training]", '[[optimizer]]\nrule = "adam"\n[training]'
    )
    sgd = [sn.rules.SGD(rate, momentum=0.5) for rate in (0.1, 0.2)]
    assert experiment.read(written(text)).plan().rules == (*sgd, sn.rules.Adam())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ('{schedule = "inverse-time", initial = 0.5, decay = 0.01}', sn.schedules.InverseTime(0.5, 0.01)),
        ('{schedule = "exponential", initial = 1, factor = 0.9}', sn.schedules.Exponential(1, 0.9)),
        ('{schedule = "cosine", initial = 1, steps = 9}', sn.schedules.Cosine(1, 9)),
        ('{schedule = "steps", initial = 1, factor = 0.5, every = 3}', sn.schedules.Steps(1, 0.5, 3)),
        ('{schedule = "warm-up", steps = 2, then = 0.1}', sn.schedules.WarmUp(2, 0.1)),
        ('{schedule = "warm-up", steps = 2, then.schedule = "cosine", then.initial = 1, then.steps = 9}', sn.schedules.WarmUp(2, sn.schedules.Cosine(1, 9))),
    ],
)  # fmt: skip
def test_schedules(written, schedule, expected):
    text = BASE.replace("learning_rate = 0.1", f"learning_rate = {schedule}")
    assert experiment.read(written(text)).plan().rules == (sn.rules.SGD(expected),)


def test_a_teacher_and_a_student(written):
    text = BASE.replace('data = "gauss-2"', 'teacher = "linear"\ndimension = 3\noutputs = 2\nlabel_noise = 0.5')
    plan = experiment.read(written(text)).plan()
    assert isinstance(plan.population, sn.TeacherStudent) and plan.population.label_noise == 0.5
    assert plan.problem.model[-1].out_features == 2 and plan.problem.n == 4096
    assert str(plan.sampling) == "Online()"
    said = refusal(written(text + "[training.x]\n").with_name("config.toml"))
    assert "training.x: unknown key" in said
    said = refusal(written(text.replace("runs = 8", 'runs = 8\nsampling = "cyclic-epochs"')))
    assert "  line 17, training.sampling: a population is sampled online" in said
    assert "problem.dimension: missing" in refusal(written(text.replace("dimension = 3\n", "")))


def test_a_function_of_the_user(written, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (tmp_path / "module_beside_config.py").write_text(MODULE)
    (folder / "module_in_current_folder.py").write_text(MODULE)
    given = 'data = "gauss-2"\nmodel = "mlp:4"\nseed = 3'
    try:
        for module, kind in itertools.product(("beside_config", "in_current_folder"), ("problem", "population")):
            text = BASE.replace(given, f'from = "module_{module}:make_{kind}"')
            assert (experiment.read(written(text)).plan().population is not None) == (kind == "population")
        for name, said in (
            ("something_else", "it returned int, expected a shotnoise.Problem or a shotnoise.Population"),
            ("nothing", "module_beside_config has no function 'nothing'"),
        ):
            text = BASE.replace(given, f'from = "module_beside_config:{name}"')
            assert f"line 2, problem.from: 'module_beside_config:{name}': {said}" in refusal(written(text))
        assert "expected package.module:function" in refusal(written(BASE.replace(given, 'from = "module"')))
        assert "importing no_such_module failed" in refusal(written(BASE.replace(given, 'from = "no_such_module:f"')))
    finally:
        for name in ("module_beside_config", "module_in_current_folder"):
            sys.modules.pop(name, None)


def test_a_table_of_numbers_beside_the_file(written, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir("/")
    for place in ("table.csv", "data/inner.csv"):
        (tmp_path / place).write_text("\n".join(["a,b"] + [f"{k},{k * k % 7}" for k in range(30)]))
    for name, more in (("table.csv", ""), ("inner.csv", 'data_dir = "data"\n')):
        data = f'{more}data = {{name = "{name}", target = "b"}}'
        plan = experiment.read(written(BASE.replace('data = "gauss-2"', data).replace("mlp:4", "linear"))).plan()
        assert plan.problem.n == 30 and plan.problem.loss_name == "mse"
    said = refusal(written(BASE.replace('"gauss-2"', '"table.csv"')))
    assert "line 2, problem.data: Data set 'csv' needs the option target" in said


# ---- the documentation


def blocks() -> list[str]:
    return re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.S)


def tables(text: str) -> dict[str, str]:
    """The parts of a document that begin with a header in a line, by that header."""
    parts = re.split(r"^(?=\[+(\w+)\]+\n)", text, flags=re.M)
    found: dict[str, str] = {}
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        found[name] = found.get(name, "") + part
    return found


@pytest.mark.parametrize("fragment", blocks()[1:], ids=lambda text: text.splitlines()[1])
def test_the_variants_in_the_documentation_are_right(written, tmp_path, monkeypatch, fragment):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "mymodule.py").write_text(MODULE)
    (tmp_path / "table.csv").write_text("price,b\n1,2\n2,3\n3,5\n")
    whole = tables(blocks()[0]) | tables(fragment)
    if "teacher" in whole["problem"]:
        whole["training"] = whole["training"].replace("sampling", "# sampling")
    try:
        experiment.read(written("".join(whole.values()))).plan()
    finally:
        for name in ("mypackage.mymodule", "mypackage"):
            sys.modules.pop(name, None)


def test_the_example_in_the_documentation_is_right_with_and_without_what_is_commented_out(written):
    text = blocks()[0]
    plan = experiment.read(written(text)).plan()
    assert (plan.runs, plan.steps, plan.batch_sizes) == (10_000, 400, (5, 50))
    everything = re.sub(r"^# ", "", text, flags=re.M)
    both = "line 12, optimizer.learning_rates: there is a learning_rate, too; give one of the two"
    assert refusal(written(everything)) == f"config.toml has 1 mistake:\n  {both}"
    experiment.read(written(everything.replace("learning_rate = 0.1", ""))).plan()


def test_every_key_is_documented():
    text = DOCS.read_text()
    for key in (*HOMES, "learning_rates", "rule", *SCHEDULES, *RULES):
        assert re.search(rf"^(# )?{key} = |`{key}`|\b{key}\b", text, re.M), key


# ---- estimates


def test_an_estimate_adds_up(written):
    text = BASE.replace("runs = 8", "runs = 10") + "[compute]\nblock = 4\n"
    plan = experiment.read(written(text)).plan()
    seconds = experiment.piece_seconds(plan, budget=0.01)
    assert len(seconds) == plan.layout.pieces == 6 and min(seconds) > 0
    assert seconds[0] == seconds[1] == pytest.approx(2 * seconds[2]) and seconds[3] == seconds[4]
    assert experiment.together(plan, [1.0, 1.0, 2.0], workers=2) == experiment.Estimate(4.0, 2.0, 2)
    assert experiment.together(plan, [1.0, 1.0, 3.0], workers=7) == experiment.Estimate(5.0, 3.0, 3)
    assert experiment.together(plan, [1.0, 1.0]).workers == 1  # not worth starting processes
    assert experiment.together(plan, []) == experiment.Estimate(0.0, 0.0, 1)


@pytest.mark.parametrize(("steps", "every"), [(0, 1), (1, 1), (3, 5), (80, 1), (80, 40)])
def test_an_estimate_is_of_the_order_of_the_time_it_takes(written, steps, every):
    text = BASE.replace("steps = 6", f"steps = {steps}").replace("every = 2", f"every = {every}")
    plan = experiment.read(written(text)).plan()
    seconds = sum(experiment.piece_seconds(plan, budget=0.1))
    start = time.perf_counter()
    for piece in range(plan.layout.pieces):
        compute(plan, piece)
    taken = time.perf_counter() - start
    assert taken / 20 < seconds < 20 * taken
