"""The last check before actions leave the server: finite and within the robot's bounds, or not at all."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from chunkcast.server.errors import ObservationRejected
from chunkcast.v1 import policy_pb2 as pb
from chunkcast.v1.contract import action_limits


class ActionGuard:
    """Checks chunks against one policy's action bounds."""

    def __init__(self, action: pb.ActionSpec) -> None:
        self._names = [element.name for element in action.elements]
        low = np.array([element.low for element in action.elements])
        high = np.array([element.high for element in action.elements])
        self._low, self._high = _inward(low, np.inf), _inward(high, -np.inf)
        # The graph clamps in float32: what is beyond a bound by rounding is set to the bound.
        self._lowest, self._highest = action_limits(action)

    def check(self, actions: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """``actions`` float32 ``[H, A]``, finite and within the inclusive bounds.

        Raises:
            ObservationRejected: with UNSAFE_ACTION, if an element is not finite or out of bounds.
        """
        # NaN lies within no bounds, and the bounds are finite: two comparisons catch everything.
        good = (actions >= self._lowest) & (actions <= self._highest)
        if good.all():
            return np.clip(actions, self._low, self._high)
        row, column = np.argwhere(~good)[0]
        raise ObservationRejected(
            pb.ERROR_CODE_UNSAFE_ACTION,
            f"the policy's action {self._names[column]!r} at row {row} is {actions[row, column]:g}, expected "
            f"[{self._low[column]:g}, {self._high[column]:g}]; nothing was sent: hold or stop the robot",
        )


def _inward(bounds: npt.NDArray[np.float64], towards: float) -> npt.NDArray[np.float32]:
    """The float32 nearest to each bound that does not lie beyond it."""
    rounded = bounds.astype(np.float32)
    beyond = rounded < bounds if towards > 0 else rounded > bounds
    return np.where(beyond, np.nextafter(rounded, np.float32(towards)), rounded)
