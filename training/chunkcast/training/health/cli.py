"""``chunkcast-health``: what a run's losses say, what they do not, and what rollouts say instead."""

from __future__ import annotations

from chunkcast.training.errors import not_installed, run_command


def main() -> None:
    """Console script: exit code 0 if nothing is wrong, 1 if ``check`` finds an error, 2 on bad input."""
    try:
        # The flags' types need tyro, which is not there without the [training] extra.
        from chunkcast.training.health.commands import Command, run_health
    except ModuleNotFoundError as error:
        raise not_installed(error) from None
    run_command(Command, run_health)


if __name__ == "__main__":
    main()
