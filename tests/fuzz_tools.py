"""Made-up and damaged inputs for parsers, of which each must give a value or one sentence."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from util.errors import UserError

few = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The same examples in every run; the property is meant to be tried with thousands of them, too."""

texts = st.text(st.characters(codec=None, categories=None), max_size=8)
ODD = (10**19, -1, 0, 1, "1", "1" * 5000, "٣", "²", "\ud800", "a\0b", "..", "/etc", "x" * 400, "1e400", "")
leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.sampled_from(ODD))


def values(names: tuple[str, ...]) -> st.SearchStrategy[Any]:
    """JSON values with these keys in them, in the right places and in wrong ones."""
    keys = st.one_of(st.sampled_from(names), texts)
    return st.recursive(
        st.one_of(leaves, st.sampled_from(names)),
        lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
        max_leaves=10,
    )


def write(path: Path, content: Any) -> Path:
    """Write JSON; halves of characters become escapes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def reads(read: Callable[..., Any], *arguments: Any) -> Any:
    """What a reader makes of its arguments; None where it refuses them in one sentence. Other errors are raised."""
    try:
        return read(*arguments)
    except UserError as error:
        sentence = str(error)
        assert sentence and "\n" not in sentence
        return None


def damaged(good: bytes, number: int) -> Iterator[bytes]:
    """The same so many damaged copies of a file in every run: cut off, bits and bytes changed, taken out, put in."""
    draw = random.Random(len(good))
    for _ in range(number):
        content, kind = bytearray(good), draw.random()
        place = draw.randrange(len(content))
        if kind < 0.25:
            del content[place:]
        elif kind < 0.8:
            for _ in range(draw.choice((1, 1, 2, 4, 16))):
                place = draw.randrange(min(len(content), draw.choice((64, 256, len(content)))))
                content[place] = draw.choice(
                    (0, 255, 128, draw.randrange(256), content[place] ^ 1 << draw.randrange(8))
                )
        elif kind < 0.9:
            content[place : place + draw.randrange(20)] = b""
        else:
            content[place:place] = draw.randbytes(draw.randrange(20))
        yield bytes(content)
