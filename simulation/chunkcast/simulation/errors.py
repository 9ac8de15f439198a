"""What a simulation refuses."""

from __future__ import annotations


class SimulationError(Exception):
    """One line on what was received, what was expected and what to do."""


class UnknownTask(SimulationError):
    """MetaWorld has no task of that name."""


class UnknownCamera(SimulationError):
    """A scene has no camera of that name."""


class RenderingUnavailable(SimulationError):
    """No picture can be made on this machine."""
