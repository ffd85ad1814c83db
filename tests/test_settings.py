"""Settings as people write them: single values for lists, commas, and what is said of a missing flag."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import pursuit
from pursuit.errors import SettingsError
from pursuit.settings import settings_from
from test_run import run_main


@pytest.mark.parametrize("steps", [[10, 20], "10,20", ["10,20"], ["10", "20"], "10, 20"])
def test_steps_with_commas_or_spaces(steps):
    assert settings_from({"warmup": {"checkpoint_steps": steps}}).warmup.checkpoint_steps == [10, 20]


def test_an_epoch_a_checkpoint_and_steps_that_are_no_numbers():
    assert settings_from({"warmup": {"checkpoint_steps": None}}).warmup.checkpoint_steps is None
    with pytest.raises(SettingsError, match=r"checkpoint_steps.1 = 'x'"):
        settings_from({"warmup": {"checkpoint_steps": "10,x"}})


def test_one_file_needs_no_list_and_keeps_its_commas():
    settings = settings_from({"pool": "a,b.jsonl", "target": "exam=t.jsonl", "weights": "*", "devices": "cpu, cpu"})
    assert (settings.pool, settings.target) == (["a,b.jsonl"], ["exam=t.jsonl"])
    assert (settings.weights, settings.devices) == (["*"], ["cpu", "cpu"])


def test_the_command_is_also_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "pursuit", "methods"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "tagcos" in done.stdout


def test_a_missing_flag_is_named_with_its_command(capsys):
    code, said = run_main("compare", "--run", "x", capsys=capsys)
    assert code == 2
    assert "pursuit compare needs --methods" in " ".join(said.split())


def test_a_flag_without_its_value_is_another_mistake(capsys):
    code, said = run_main("select", "--run", capsys=capsys)
    assert code == 2
    assert "requires an argument" in " ".join(said.split())


@pytest.mark.parametrize(
    ("command", "shown", "hidden"),
    [
        ("export", "--train-on", "--model"),
        ("evaluate", "--adapter", "--pool"),
        ("finetune", "--lora.rank", "--warmup.epochs"),
    ],
)
def test_help_lists_the_settings_that_a_command_uses(command, shown, hidden, capsys):
    _, text = run_main(command, "--help", capsys=capsys)
    assert shown in text
    assert hidden not in text


def test_what_the_package_offers_is_seen_from_outside():
    assert (Path(pursuit.__file__).parent / "py.typed").exists(), "else type checkers do not look at its hints"
    assert set(pursuit.__all__) <= set(dir(pursuit))
    assert all(getattr(pursuit, name) is not None for name in dir(pursuit))
    assert pursuit.__version__ == version("pursuit")


def test_the_version_is_not_looked_up_before_it_is_asked_for():
    code = "import sys, pursuit; print([name for name in ('torch', 'importlib.metadata') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
