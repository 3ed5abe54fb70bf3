"""The operator as PyTorch's compiler, autocast and users see it: tracing, types, determinism, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from models.ops import MSDeformAttn, multi_scale_deformable_attention
from tests.operator_tools import BACKENDS, FOUR_LEVELS, case, gradients, use_backend


@pytest.fixture(params=BACKENDS)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Each backend in turn, and the device that its tensors are on."""
    return use_backend(request.param, monkeypatch)


def test_it_is_registered_as_pytorch_wants_it(device: torch.device) -> None:
    """Schema, autograd, fake tensors and tracing with fixed and with changing sizes."""
    flat = [side for shape in FOUR_LEVELS for side in shape]
    value, locations, weights = (t.requires_grad_() for t in case(FOUR_LEVELS, dtype=torch.float32, device=device))
    torch.library.opcheck(torch.ops.t2v_rvos.ms_deform_attn.default, (value, flat, locations, weights))
    arguments = (torch.randn(2, 3, 16, device=device), value.detach(), flat, locations.detach(), weights.detach())
    torch.library.opcheck(torch.ops.t2v_rvos.ms_deform_attn_backward.default, arguments)


def test_compiled_without_a_break(device: torch.device) -> None:
    """One graph, also when sizes change, with the same result and gradients."""

    def sampled(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return multi_scale_deformable_attention(value * 2, FOUR_LEVELS, locations, weights) + 1

    compiled = torch.compile(sampled, backend="aot_eager", fullgraph=True)
    for queries in (3, 5):
        inputs = [t.requires_grad_() for t in case(FOUR_LEVELS, queries=queries, dtype=torch.float32, device=device)]
        expected, found = sampled(*inputs), compiled(*inputs)
        torch.testing.assert_close(found, expected)
        for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
            torch.testing.assert_close(one, other)


def test_under_autocast(device: torch.device) -> None:
    """Projections in bfloat16, locations and sums in float32."""
    torch.manual_seed(0)
    attention = MSDeformAttn(32, num_levels=4, num_heads=2, num_points=2).to(device)
    positions = sum(h * w for h, w in FOUR_LEVELS)
    query, values = torch.randn(1, 3, 32, device=device), torch.randn(1, positions, 32, device=device)
    references = torch.rand(1, 3, 4, 2, device=device)
    expected = attention(query, references, values, FOUR_LEVELS)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        found = attention(query, references, values, FOUR_LEVELS)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.05)
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())


def test_the_same_in_every_run(device: torch.device) -> None:
    """Bit by bit, whatever the number of threads; on CUDA when deterministic algorithms are asked for."""
    threads = torch.get_num_threads()
    shapes = [(16, 20), (8, 10), (4, 5), (2, 3)]
    inputs = [t.requires_grad_() for t in case(shapes, queries=300, heads=8, dtype=torch.float32, device=device)]

    def run(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        result = multi_scale_deformable_attention(inputs[0], shapes, *inputs[1:])
        return [result, *gradients(result, inputs)]

    torch.use_deterministic_algorithms(device.type == "cuda")
    try:
        first = run(1)
        for count in (1, 2):
            assert all(torch.equal(one, other) for one, other in zip(first, run(count), strict=True))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)


def _value(value: Tensor, locations: Tensor, weights: Tensor) -> Any:
    return multi_scale_deformable_attention(value, [(3, 4)], locations, weights)


REFUSED: dict[str, tuple[str, Callable[[Tensor, Tensor, Tensor], Any]]] = {
    "other shapes": ("do not fit", lambda v, l, w: multi_scale_deformable_attention(v, [(3, 5)], l, w)),
    "other levels": ("do not fit", lambda v, l, w: multi_scale_deformable_attention(v, [(2, 4), (1, 4)], l, w)),
    "fewer weights": ("do not match", lambda v, l, w: _value(v, l, w[:, :1])),
    "other heads": ("do not match the value", lambda v, l, w: _value(v[:, :, :1], l, w)),
    "other batch": ("do not match the value", lambda v, l, w: _value(v[:1], l, w)),
    "heads and width in one": ("should be", lambda v, l, w: _value(v.flatten(2), l, w)),
    "boxes": ("should be", lambda v, l, w: _value(v, l.repeat(1, 1, 1, 1, 1, 2), w)),
    "integers": ("types int64, float64, float64", lambda v, l, w: _value(v.long(), l, w)),
    "float32 among float64": ("or all float64", lambda v, l, w: _value(v, l.float(), w)),
    "float64 among float32": ("or all float64", lambda v, l, w: _value(v.float(), l.float(), w)),
    "two devices": ("are on meta, cpu and cpu", lambda v, l, w: _value(v.to("meta"), l, w)),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_in_one_sentence(what: str) -> None:
    part, call = REFUSED[what]
    with pytest.raises(ValueError, match=part) as refusal:
        call(*case([(3, 4)]))
    assert "\n" not in str(refusal.value)


def test_shapes_without_data() -> None:
    value, locations, weights = (tensor.to("meta") for tensor in case(FOUR_LEVELS))
    result = multi_scale_deformable_attention(value, FOUR_LEVELS, locations, weights)
    assert (result.device.type, result.shape, result.dtype) == ("meta", (2, 3, 16), torch.float64)
