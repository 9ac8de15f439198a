"""pip-audit against a vulnerability service on a loopback port: what is a finding, and what is a notice."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from release.audit import IGNORED, findings, main
from release.common import CONSTRAINTS
from release.lock import pins
from tests.release.conftest import Refused

GOOD = {"anyio": "4.16.0"}
BAD = {"idna": "3.20"}
KNOWN = {
    "id": "PYSEC-2026-7",
    "aliases": ["CVE-2026-7"],
    "summary": "Bad.",
    "affected": [
        {
            "package": {"name": "idna", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "3.21"}]}],
        }
    ],
}


class Osv(BaseHTTPRequestHandler):
    """Answers as OSV does: nothing for a package without a known vulnerability."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        bad = BAD.get(asked["package"]["name"]) == asked["version"] and "/bad" in self.path
        body = json.dumps({"vulns": [KNOWN]} if bad else {}).encode()
        self.send_response(503 if "/broken" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """No line for each request."""


@pytest.fixture(scope="module")
def osv() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Osv) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def two(tmp_path: Path) -> Path:
    file = tmp_path / "two.txt"
    file.write_text("".join(f"{name}=={version}\n" for name, version in {**GOOD, **BAD}.items()))
    return file


def test_every_pin_is_asked_for(osv: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--osv-url", f"{osv}/good"])
    expected = f"audit: {len(pins(CONSTRAINTS.read_text()))} pins of constraints.txt, no known vulnerability"
    assert capsys.readouterr().out.startswith(expected)


def test_a_vulnerability_is_a_line_and_an_exit_code(osv: str, two: Path, refused: Refused) -> None:
    lines = refused(main, "--osv-url", f"{osv}/bad", "--requirements", two, code=1)
    assert lines == ["idna 3.20: PYSEC-2026-7, fixed in 3.21"]


@pytest.mark.parametrize("name", ["PYSEC-2026-7", "CVE-2026-7"])
def test_an_ignored_one_is_none_until_its_day(
    name: str, osv: str, two: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    ignored = tmp_path / "ignored.toml"
    entry = f'[ignored.{name}]\npackage = "idna"\nreason = "a test"\nuntil = '
    ignored.write_text(entry + "9999-01-01\n")
    arguments = ["--osv-url", f"{osv}/bad", "--requirements", str(two), "--ignored", str(ignored)]
    main(arguments)
    assert capsys.readouterr().out == "audit: 2 pins of two.txt, no known vulnerability that is not ignored\n"
    ignored.write_text(entry + "2026-01-01\n")
    assert len(refused(main, *arguments, code=1)) == 1


@pytest.mark.parametrize("where", ["http://127.0.0.1:1/v1/query", "{osv}/broken"])
def test_no_answer_is_a_notice_and_no_pass(where: str, osv: str, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = where.format(osv=osv)
    main(["--osv-url", url, "--requirements", str(two)])
    assert capsys.readouterr().out == f"notice: NOT audited: no answer from {url}; audit before you publish\n"


def test_what_cannot_be_audited_at_all_is_an_error(osv: str, tmp_path: Path, refused: Refused) -> None:
    loose = tmp_path / "loose.txt"
    loose.write_text("idna>=3\n")
    (line,) = refused(main, "--osv-url", f"{osv}/good", "--requirements", loose, code=1)
    assert line.startswith("error: pip-audit ended with exit code 1")
    assert "not pinned" in line


def test_ignored_for_one_package_is_not_ignored_for_another() -> None:
    vulnerability = {"id": "A-1", "aliases": [], "fix_versions": []}
    report = {"dependencies": [{"name": name, "version": "1", "vulns": [vulnerability]} for name in ("one", "two")]}
    ignored = {"A-1": {"package": "one", "until": datetime.date(2026, 2, 1)}}
    assert list(findings(report, ignored, datetime.date(2026, 1, 31))) == ["two 1: A-1, fixed in no release"]
    assert len(list(findings(report, ignored, datetime.date(2026, 2, 1)))) == 2


def test_the_ignore_list_is_read() -> None:
    import tomllib

    for entry in tomllib.loads(IGNORED.read_text())["ignored"].values():
        assert len(entry["reason"]) > 20
        assert isinstance(entry["until"], datetime.date)
