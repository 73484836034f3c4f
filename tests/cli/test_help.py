"""Help, version and usage errors."""

import json

import pytest

COMMANDS = {
    "init": ["--sample"],
    "check": [],
    "index": ["--stats"],
    "finetune": ["--resume", "--dry-run"],
    "ask": ["--model"],
    "eval": ["--split", "--model", "--baseline", "--predictions", "--limit"],
    "export": ["DIR", "--format", "--model"],
}


@pytest.fixture(autouse=True)
def _wide_and_plain(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def test_help_lists_every_command(cli):
    done = cli("--help")
    assert (done.code, done.err) == (0, "")
    assert all(command in done.out for command in COMMANDS)
    assert "ragx init demo --sample" in done.out


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(cli, command, flag):
    done = cli(command, flag)
    assert (done.code, done.err) == (0, "")
    shared = [
        "--json",
        "--quiet",
        "-q",
        "--verbose",
        "-v",
        *([] if command == "init" else ["--config", "-c", "--set", "ragx.yaml"]),
    ]
    missing = [option for option in [*shared, *COMMANDS[command]] if option not in done.out]
    assert not missing


def test_version(cli):
    done = cli("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.split()[0] == "ragx"
    assert cli("--version").out.count("\n") == 1


def test_version_as_json(cli):
    versions = json.loads(cli("--version", "--json").out)
    assert {"ragx", "torch", "transformers", "faiss-cpu"} <= set(versions)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["nonsense"], "nonsense"),
        (["index", "--fast"], "--fast"),
        (["index", "extra"], "extra"),
        (["eval", "--split", "all"], "all"),
        (["ask", "a", "b"], "b"),
        (["check", "-c"], "-c"),
    ],
)
def test_usage_error_goes_to_stderr_with_code_2(cli, arguments, named):
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert named in done.err
    assert "Traceback" not in done.err
