"""Progress in a log file, and packages that are not installed."""

import io

import pytest
from rich.console import Console

from fastloop import cli
from fastloop.extras import MissingExtraError, require
from fastloop.progress import bar


def test_a_log_file_gets_a_line_for_every_tenth():
    out = io.StringIO()
    with bar("work", 50, Console(file=out)) as advance:
        for done in range(51):
            advance(done, f"note {done}")
    lines = out.getvalue().splitlines()
    assert len(lines) == 11
    assert lines[0] == "work: 0/50 note 0"
    assert lines[-1] == "work: 50/50 note 50"


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    with bar("work", 5, Console(file=out, force_terminal=True, width=80)) as advance:
        advance(5, "[x] done")
    assert "5/5" in out.getvalue()


def test_nothing_to_do_is_no_error():
    with bar("work", 0, Console(file=io.StringIO())) as advance:
        advance(0, "")


def test_a_package_that_is_there_is_imported():
    assert require("json", extra="sim").dumps([1]) == "[1]"


def test_a_missing_package_says_its_install_line(monkeypatch, capsys):
    with pytest.raises(MissingExtraError) as caught:
        require("no_such_package", extra="pusht")
    assert 'pip install -c constraints.txt -e ".[pusht]"' in str(caught.value)

    from fastloop.verbs import info

    monkeypatch.setattr(info, "run", lambda _: require("no_such_package", extra="pusht"))
    assert cli.main(["info", "ckpt=x"]) == 2
    assert '".[pusht]"' in capsys.readouterr().err
