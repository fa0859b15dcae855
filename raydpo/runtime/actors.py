"""What Ray's actors answer."""

from typing import Any

import ray
from ray.exceptions import RayTaskError

from raydpo.errors import RaydpoError


def get_result(result: Any) -> Any:
    """What an actor's method has returned, once it has; its `RaydpoError` is raised as it was, without the way it came.

    What else it raised comes as Ray's RayTaskError, and its death as RayActorError.
    """
    try:
        return ray.get(result)
    except RayTaskError as error:
        if isinstance(error.cause, RaydpoError):
            raise error.cause from None
        raise
