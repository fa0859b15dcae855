"""Retrieval of results from Ray actors."""

from typing import TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayTaskError

from raydpo.errors import RaydpoError

Result = TypeVar("Result")


def get_result(reference: "ObjectRef[Result]") -> Result:
    """Wait for the call of an actor's method and return its result.

    Raises the `RaydpoError` that the method raised, without Ray's frames; RayTaskError if the method raised another
    exception; and RayActorError if the actor died.
    """
    try:
        result: Result = ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RaydpoError):
            raise error.cause from None
        raise
    return result
