"""What the training commands refuse, and how a command line says so.

::

    TrainingError                 one clear line, exit code 2
     ├── DemonstrationsError      demonstrations are missing, corrupt or of another version
     ├── CheckpointError          a checkpoint is missing, corrupt or of another configuration
     └── ExportError              a graph differs from torch, or a bundle cannot be written
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from chunkcast.simulation.errors import SimulationError


class TrainingError(Exception):
    """Bad input to a training command: one line on what was received, what was expected and what to do.

    Not a ValueError, which tyro would draw a box around.
    """


class DemonstrationsError(TrainingError):
    """Demonstrations are missing, corrupt or of another version."""


class CheckpointError(TrainingError):
    """A checkpoint is missing, corrupt or of another configuration."""


class ExportError(TrainingError):
    """The graph differs from torch, or the bundle cannot be written."""


def run_command(
    config: Any,
    command: Callable[[Any], None],
    *,
    default: Callable[[], Any] | None = None,
    extra: str = "training",
    arguments: Sequence[str] | None = None,
) -> None:
    """Make ``config``, a dataclass or a union of them (subcommands), from the command line and run ``command`` with it.

    ``default`` makes the ``config`` whose values hold where no flag says otherwise; ``extra`` brings what it imports;
    ``arguments`` are those of the command line where nothing is said.
    Bad input becomes one line and exit code 2, Ctrl-C exit code 130; so does a supervisor's SIGTERM, which thus ends
    what was started. Of torchrun's processes only the first starts any, and the others end at once.
    """
    if os.environ.get("RANK", "0") == "0":
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        import tyro

        command(tyro.cli(config, default=default(), args=arguments) if default else tyro.cli(config, args=arguments))
    except ModuleNotFoundError as error:
        raise not_installed(error, extra) from None
    except OSError as error:
        print(f"error: {error.filename or 'a file'} cannot be used ({error.strerror})", file=sys.stderr)
        raise SystemExit(2) from None
    except (TrainingError, SimulationError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def not_installed(error: ModuleNotFoundError, extra: str = "training") -> SystemExit:
    """Say which package is missing and how to get it; what to raise then."""
    print(f"error: {error.name} is not installed; run pip install 'chunkcast[{extra}]'", file=sys.stderr)
    return SystemExit(2)
