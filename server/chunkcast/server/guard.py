"""The last check before actions leave the server: finite and within the robot's bounds, or not at all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from chunkcast.server.errors import ObservationRejected
from chunkcast.v1 import policy_pb2 as pb

BOUND_TOLERANCE = 1e-5
"""As a share of an action's range: the graph clamps in float32, the bounds are float64."""


class ActionGuard:
    """Checks chunks against one policy's action bounds."""

    def __init__(self, action: pb.ActionSpec) -> None:
        self._names = [element.name for element in action.elements]
        low = np.array([element.low for element in action.elements])
        high = np.array([element.high for element in action.elements])
        slack = BOUND_TOLERANCE * (high - low)
        self._low, self._high = (low - slack).astype(np.float32), (high + slack).astype(np.float32)

    def check(self, actions: npt.NDArray[np.float32]) -> None:
        """Accept ``actions`` float32 ``[H, A]``.

        Raises:
            ObservationRejected: with UNSAFE_ACTION, if an element is not finite or out of bounds.
        """
        # One comparison catches NaN as well: NaN lies within no bounds.
        if ((actions >= self._low) & (actions <= self._high)).all():
            return
        bad = ~((actions >= self._low) & (actions <= self._high))
        row, column = np.argwhere(bad)[0]
        raise ObservationRejected(
            pb.ERROR_CODE_UNSAFE_ACTION,
            f"the policy's action {self._names[column]!r} at row {row} is {actions[row, column]:g}, expected "
            f"[{self._low[column]:g}, {self._high[column]:g}]; nothing was sent: hold or stop the robot",
        )
