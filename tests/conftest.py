"""One thread, the same examples of property tests on every machine, the modules here and a command line to share."""

import sys
from pathlib import Path

import hypothesis
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None, max_examples=50)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `shotnoise ARGS` in this process: (exit status, standard output, standard error), blanks run together."""
    from shotnoise import cli

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["shotnoise", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return ended.value.code, " ".join(captured.out.split()), " ".join(captured.err.split())

    return call
