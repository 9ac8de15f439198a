"""A robot's program imports the client and nothing heavy with it."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = {"torch", "onnxruntime", "mujoco", "metaworld", "gymnasium", "prometheus_client", "diffusers", "scipy", "rich"}


def test_the_client_imports_nothing_heavy() -> None:
    program = "import json, sys, chunkcast.client; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(json.loads(result.stdout))
    assert "grpc" in loaded
    assert not loaded & HEAVY


def test_help_of_every_command_imports_nothing_heavy() -> None:
    for module in (
        "chunkcast.training.collect.cli",
        "chunkcast.training.train_cli",
        "chunkcast.training.export.cli",
        "chunkcast.server.cli",
        "chunkcast.client.sim.cli",
    ):
        program = (
            f"import json, sys; import {module} as cli; sys.argv = ['x', '--help']\n"
            "try:\n    cli.main()\nexcept SystemExit as stop:\n    code = stop.code\n"
            "print(); print(json.dumps([code, sorted({m.split('.')[0] for m in sys.modules})]))"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        code, loaded = json.loads(result.stdout.splitlines()[-1])
        assert code == 0
        assert "usage:" in result.stdout
        assert not set(loaded) & (HEAVY - {"rich"}), f"{module} imports {set(loaded) & HEAVY}"


def test_a_command_without_its_extra_says_which_to_install() -> None:
    for module, extra in (
        ("chunkcast.training.train_cli", "training"),
        ("chunkcast.training.frames.render_cli", "training"),
        ("chunkcast.server.cli", "server"),
        ("chunkcast.client.admin_cli", "server"),
        ("chunkcast.client.sim.cli", "sim"),
    ):
        # None of what the extras bring: what is imported before tyro would be missed first.
        program = (
            "import sys; sys.modules.update(dict.fromkeys(['tyro', 'structlog', 'onnxruntime', 'torch', 'rich']))\n"
            f"import {module} as cli; cli.main()"
        )
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        expected = f"error: tyro is not installed; run pip install 'chunkcast[{extra}]'\n"
        assert (result.returncode, result.stderr) == (2, expected)
