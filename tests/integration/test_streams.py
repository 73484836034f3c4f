"""What a shell does to a command: full disks, closed pipes and streams, other locales, a terminal, a broken install."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from functools import partial

import psutil
import pytest

from ragx.artifacts import untrusted

HOSTILE = "\x1b]0;owned\x07 \x1b]52;c;eA==\x07 \x1b[31m \x9b2J \u202e [/red] caf\u00e9 x" + "\u0301" * 50


def command(*arguments):
    return [sys.executable, "-m", "ragx", *map(str, arguments)]


def ask_for(path, document):
    """One question, of a gold document that the corpus lacks."""
    path.write_text(json.dumps({"question": "Who?", "answers": ["x"], "doc_ids": [document]}) + "\n")


def test_a_full_disk_behind_stdout_is_no_failed_gate(tiny_config):
    with open("/dev/full", "w") as full:
        done = subprocess.run(command("check", "-c", tiny_config()), stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "ragx: No space left on device" in done.stderr


def test_a_closed_pipe_is_quiet(tiny_config):
    reader, writer = os.pipe()
    os.close(reader)
    line = command("check", "--json", "--quiet", "-c", tiny_config())
    done = subprocess.run(line, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_without_stderr_the_result_stays(tiny_config):
    line = " ".join(command("check", "--json", "-c", tiny_config()))
    done = subprocess.run(["bash", "-c", f"{line} 2>&-"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("{")


def test_any_locale_gets_utf8(tiny_config, tiny_corpus):
    ask_for(tiny_corpus.test, "caf\u00e9")
    environment = {**os.environ, "LC_ALL": "C", "LANG": "C"}
    done = subprocess.run(command("check", "--json", "-c", tiny_config()), capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "caf\u00e9" in done.stdout.decode("utf-8")


def test_a_terminal_gets_no_escapes_but_ours(tiny_config, tiny_corpus):
    """`check` names a gold document that is not there, whatever its name; styles and cursor moves are ours."""
    ask_for(tiny_corpus.test, HOSTILE)
    main, follower = pty.openpty()
    done = subprocess.Popen(command("check", "-c", tiny_config()), stdout=follower, stderr=follower)
    os.close(follower)
    written = b""
    try:
        while part := os.read(main, 65536):
            written += part
    except OSError:  # how a terminal ends on Linux
        pass
    assert done.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode().replace("\r\n", "\n").replace("\r", "\n"))
    assert "caf\u00e9" in text
    assert sorted({ascii(character) for character in text if not untrusted(character)}) == []


@pytest.mark.parametrize("name", ["index", "check"])
@pytest.mark.parametrize(("ending", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupt_waits_for_no_parser(tiny_config, tmp_path, name, ending, code):
    """Parsers that hang are killed; nothing is left behind."""
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "pypdf.py").write_text("import time\ntime.sleep(600)\n")
    papers = tmp_path / "papers"
    papers.mkdir()
    for n in range(30):
        (papers / f"{n}.pdf").write_bytes(b"")
    path = os.pathsep.join([str(tmp_path / "library"), *filter(None, [os.environ.get("PYTHONPATH")])])
    line = command(name, "--quiet", "-c", tiny_config(corpus={"paths": [str(papers)]}))
    environment = {**os.environ, "PYTHONPATH": path}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background would not hear Ctrl-C
    with subprocess.Popen(line, **pipes, text=True, env=environment, preexec_fn=heard) as process:
        try:
            limit = time.monotonic() + 60
            while not (parsers := psutil.Process(process.pid).children()) and time.monotonic() < limit:
                time.sleep(0.05)
            time.sleep(1)
            process.send_signal(ending)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, out) == (code, ""), err
    assert parsers and not any(parser.is_running() for parser in parsers)


@pytest.mark.parametrize("fault", ["ImportError('gone')", "ValueError('numpy.dtype size changed')"])
def test_a_broken_installation_is_no_failed_gate(tmp_path, fault):
    (tmp_path / "typer.py").write_text(f"raise {fault}\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command("eval"), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (70, "")
    assert done.stderr.splitlines()[-1] == "ragx: this installation is incomplete; install it again"
