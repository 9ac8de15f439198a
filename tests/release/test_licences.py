"""The licences of what chunkcast brings along, as they are installed, and what the check refuses."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from release.closure import closure
from release.common import ReleaseError
from release.licences import POLICY, Package, accepts, main, misplaced, normalised, problems
from tests.release.conftest import Refused


@pytest.fixture
def policy() -> dict[str, Any]:
    return tomllib.loads(POLICY.read_text())


def test_everything_that_all_brings_along_is_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    main([])
    said = capsys.readouterr().out
    assert said == f"licences: {len(closure('all'))} packages of chunkcast[all] within licences.toml\n"


def test_an_extra_brings_what_it_requires_and_no_more() -> None:
    assert closure() == {"grpcio", "numpy", "protobuf", "typing-extensions"}
    server, everything = closure("server"), closure("all")
    assert {"tyro", "huggingface-hub", "anyio"} < server < everything
    # pytest is installed here, and nothing that users install requires it.
    assert {"torch", "imageio-ffmpeg", "setuptools"} < everything
    assert "pytest" not in everything
    with pytest.raises(ReleaseError, match="chunkcast has no extra 'nothing'"):
        closure("nothing")


@pytest.mark.parametrize(
    ("licence", "accepted"),
    [
        ("MIT", True),
        ("MIT AND BSD-3-Clause", True),
        ("MIT AND GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("(GPL-3.0-only OR MIT) AND AGPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("GPL-3.0-or-later WITH GCC-exception-3.1", False),
        ("MIT License", False),
        ("UNKNOWN", False),
        ("", False),
    ],
)
def test_expressions(licence: str, accepted: bool) -> None:
    assert accepts(licence, {"MIT", "BSD-3-Clause", "Apache-2.0 WITH LLVM-exception"}) is accepted


def test_of_several_classifiers_all_must_be_allowed(policy: dict[str, Any]) -> None:
    assert normalised("MIT License; Apache Software License", policy["names"]) == "MIT AND Apache-2.0"
    assert list(problems({"one": Package("1.0", "MIT License; GNU GPL", ())}, policy))
    assert not list(problems({"one": Package("1.0", "MIT License; BSD License", ())}, policy))


def test_an_exception_is_for_one_licence_of_one_package(policy: dict[str, Any]) -> None:
    mozilla = "Mozilla Public License 2.0 (MPL 2.0)"
    found = {
        "certifi": Package("1.0", mozilla, ()),
        "nvidia-cublas": Package("13.1", "Other/Proprietary License", ()),
        "other": Package("2.0", mozilla, ()),
        "tqdm": Package("3.0", "GPL-3.0-only", ()),
    }
    assert list(problems(found, policy)) == [
        "other 2.0: MPL-2.0 is not on the list",
        "tqdm 3.0: GPL-3.0-only is not on the list",
    ]


def test_what_a_wheel_carries_beside_its_code(policy: dict[str, Any]) -> None:
    files = (
        "one/ffmpeg.py",
        "one/__pycache__/ffmpeg.cpython-311.pyc",
        "one.libs/libgomp-a1.so.1",
        "one/ffmpeg-linux-v9",
    )
    assert list(problems({"one": Package("1.0", "MIT", files)}, policy)) == [
        "one 1.0: carries one.libs/libgomp-a1.so.1, which is under GPL-3.0-or-later WITH GCC-exception-3.1",
        "one 1.0: carries one/ffmpeg-linux-v9, which is under GPL-3.0-or-later",
    ]
    assert not list(problems({"torch": Package("2.0", "MIT", ("torch/lib/libgomp.so.1",))}, policy))


def test_ffmpeg_stays_out_of_the_server(policy: dict[str, Any]) -> None:
    assert not list(misplaced(policy))
    (ffmpeg,) = [entry for entry in policy["carried"] if entry["package"] == "imageio-ffmpeg"]
    assert {"", "server"} <= set(ffmpeg["not_in"])
    ffmpeg["not_in"] = ["server", "sim"]
    assert list(misplaced(policy)) == ["imageio-ffmpeg: GPL-3.0-or-later, and chunkcast[sim] brings it along"]


def test_a_licence_that_left_the_list_is_a_line_for_each_package(tmp_path: Path, refused: Refused) -> None:
    stricter = tmp_path / "licences.toml"
    stricter.write_text(POLICY.read_text().replace('    "PSF-2.0",\n', ""))
    assert [line.split()[0] for line in refused(main, "--policy", stricter, code=1)] == [
        "matplotlib",
        "typing-extensions",
    ]


def test_every_exception_has_a_reason(policy: dict[str, Any]) -> None:
    assert all(len(entry["reason"]) > 20 for entry in [*policy["exceptions"].values(), *policy["carried"]])
