"""Negatives in an expressions file: sentences that name nothing in their video, as ``"obj_id": null``, ``"kind":
"negative"``. The mark sets them apart from expressions whose object the file does not say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from util.errors import UserError

NEGATIVE = "negative"


def is_negative(expression: Any, path: Path, where: str) -> bool:
    """Whether an expression, as it stands in the file, is marked as a negative.

    Args:
        expression: its JSON value.
        path, where: the file and the expression's place in it, for the message.

    Raises:
        UserError: it is marked so, and yet has an object.
    """
    if not isinstance(expression, dict) or expression.get("kind") != NEGATIVE:
        return False
    if expression.get("obj_id") is not None:
        raise UserError(
            f"{path}: {where} is of the kind {NEGATIVE!r}, which names nothing, but has the obj_id "
            f"{expression['obj_id']!r}; make that null, or name another kind"
        )
    return True
