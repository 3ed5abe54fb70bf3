"""Compares the models with numbers that the published code produced, tensor by tensor.

    python -m tests.parity FOLDER [--model vdit] [--device cuda]

``FOLDER`` holds a frozen stack (``pretrained/``) and, for each model, a checkpoint in the authors' layout and fixtures:
``<model>/<name>.safetensors`` with inputs and expected tensors, and ``<model>/<name>.json`` with sizes, sentences,
expected losses and gradient norms. Prints a table per fixture; the exit status is 1 if any value differs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from datasets.clip import Sample, Target, collate
from engine import clip_gradient
from models import build_criterion, build_model, frozen_sources, prepare_training
from models.authors import authors_model, authors_names
from models.checkpoints import load_weights, open_checkpoint
from models.criterion import BatchTargets
from models.diffusion.encoder import VideoEncoder
from models.inference import mask_probabilities
from models.rem import LatentCriterion, Rem
from models.segmenter import Segmenter, Selector, all_queries, best_query
from util.config import Config
from util.device import resolve_device
from util.errors import Parser, UserError, run_cli
from util.files import read_json
from util.preprocessing import normalise

MODELS = ("vdit", "hcd", "rem")
CPU = torch.device("cpu")

# Largest accepted differences, relative to the expected tensor's largest magnitude except where noted.
TOLERANCE = 1e-3
GRADIENT_TOLERANCE = 0.01
GRADIENT_FLOOR = 1e-6  # below it, gradient norms are rounding noise, e.g. of a bias in front of a normalisation

LATENT_ROUNDING = 5e-7  # by which latents of two machines differ
ROUNDINGS = 5  # how often REM is computed with such a difference

SELECTORS: dict[str, Selector] = {"ytvos": best_query, "refcoco": all_queries, "a2d": all_queries}
"""Mode of a fixture → which queries the published evaluation refines."""


def main() -> int:
    """Run the comparison. Returns the exit status: 1 if any value differs."""
    parser = Parser(description="Compare the models with published numbers.")
    parser.add_argument("folder", type=Path, help="fixtures: pretrained/, vdit/, hcd/, rem/")
    parser.add_argument("--model", choices=MODELS, action="append", help="compare only this model")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps (default: cpu, as the numbers were made)")
    args = parser.parse_args()
    device = resolve_device(args.device)
    failures = 0
    torch.manual_seed(0)
    for fixture in find_fixtures(args.folder, tuple(args.model or MODELS)):
        rows = compare_fixture(fixture, device)
        print(f"\n{fixture.name}  ({fixture.spec.get('mode', 'clips and an image')})")
        print_table(rows)
        failures += sum(not row.ok for row in rows)
        print(f"{sum(row.ok for row in rows)} of {len(rows)} agree")
    if failures:
        print(f"\n{failures} do not agree")
    return 1 if failures else 0


@dataclass
class Row:
    """One compared value."""

    name: str
    absolute: float
    relative: float
    tolerance: float
    ok: bool


def print_table(rows: list[Row]) -> None:
    """Print name, largest absolute and relative difference, tolerance and verdict of each value."""
    width = max(len(row.name) for row in rows)
    print(f"{'tensor':<{width}}  {'absolute':>9}  {'relative':>9}  {'tolerance':>9}  ok")
    for row in rows:
        verdict = "yes" if row.ok else "NO"
        print(f"{row.name:<{width}}  {row.absolute:9.2e}  {row.relative:9.2e}  {row.tolerance:9.0e}  {verdict}")


@dataclass
class Fixture:
    """A fixture, read from disk."""

    name: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    checkpoint: Path
    pretrained: Path

    @property
    def samples(self) -> list[Sample]:
        """The clips with their targets, as a dataset returns them."""
        samples: list[Sample] = []
        for i, caption in enumerate(self.spec["captions"]):
            target: dict[str, Any] = {"caption": caption, **self.group(f"target.{i}")}
            if "valid_indices" in target:
                target["annotated"] = int(target.pop("valid_indices"))
            samples.append((normalise(self.tensors[f"video.{i}"]), cast(Target, target)))
        return samples

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors whose names start with ``<name>.``, by the rest of their names."""
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}


def find_fixtures(folder: Path, models: tuple[str, ...] = MODELS) -> list[Fixture]:
    """Read the fixtures of the given models.

    Raises:
        UserError: there is none, or a file is missing or unreadable.
    """
    fixtures = []
    for path in (path for model in models for path in sorted((folder / model).glob("*.json"))):
        tensors = path.with_suffix(".safetensors")
        try:
            content = load_file(tensors)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{tensors} is not a readable safetensors file: {error}") from error
        spec = read_json(path, "the sizes and losses of a fixture")
        checkpoint, pretrained = path.with_name("checkpoint.pth"), folder / "pretrained"
        fixtures.append(Fixture(f"{path.parent.name}/{path.stem}", spec, content, checkpoint, pretrained))
    if not fixtures:
        raise UserError(f"{folder} holds no fixtures of {' or '.join(models)} (<model>/<name>.json)")
    return fixtures


def fixture_model(fixture: Fixture) -> tuple[Segmenter, Config]:
    """Build the model of a fixture with its checkpoint's weights; the VAE's posterior is taken at its mode."""
    checkpoint = open_checkpoint(str(fixture.checkpoint), "FOLDER", fixture.spec["model"])
    cfg = checkpoint.config(
        pretrained=str(fixture.pretrained),
        pyramid_channels=tuple(fixture.spec["dims"]["lay"]),
        posterior="mode",
        dropout=0.0,
        lora_rank=0,  # the adapters are merged into the published UNet
    )
    model = build_model(cfg)
    load_weights(model, checkpoint, frozen_sources(cfg))
    return model, cfg


def compare_fixture(fixture: Fixture, device: torch.device = CPU) -> list[Row]:
    """Compare an evaluation and a training step with all values of a fixture."""
    if fixture.spec["model"] == "rem":
        return compare_rem(fixture)
    model, cfg = fixture_model(fixture)
    prepare_training(model, "fp32", device)
    return compare_evaluation(model, fixture) + compare_training(model, cfg, fixture)


def compare_rem(fixture: Fixture) -> list[Row]:
    """Compare an evaluation and a training step of REM with all values of each case of a fixture."""
    size, checkpoint = fixture.spec["size"], open_checkpoint(str(fixture.checkpoint), "FOLDER", "rem")
    cfg = checkpoint.config(pretrained=str(fixture.pretrained), eval_size=size, train_scales=(size,))
    model = build_model(cfg)
    load_weights(model, checkpoint, frozen_sources(cfg))
    assert isinstance(model, Rem)
    return [row for name in fixture.spec["cases"] for row in compare_rem_case(model.train(), fixture, name)]


def compare_rem_case(model: Rem, fixture: Fixture, name: str) -> list[Row]:
    """Compare one clip or image, from the stored latents on.

    The lowest level of the tiny UNet has one pixel, where a group normalisation sees two numbers per frame. It
    amplifies rounding: latents that differ by 5e-7, as those of two machines do, change some gradients by half. What
    such differences change here is therefore accepted where it is more than the usual tolerance. In float64, where
    rounding does not matter, tests/test_rem.py compares with diffusers' own UNet.
    """
    case, expected = fixture.spec["cases"][name], fixture.group(name)
    found = rem_step(model, case, expected, torch.zeros(()))
    generator = torch.Generator().manual_seed(0)
    others = [
        rem_step(model, case, expected, LATENT_ROUNDING * torch.randn(expected["noise"].shape, generator=generator))
        for _ in range(ROUNDINGS)
    ]

    def spread(key: str) -> float:
        """How much rounding changes a value, relative to the expected one."""
        wanted = expected[key] if key in expected else torch.tensor(norms[key])
        most = max(float((other[key] - found[key]).abs().max()) for other in others)
        return 2 * most / max(float(wanted.abs().max()), 1e-12)

    norms = {**case["grad_norms"], "loss": case["loss"], "grad after clamping": case["grad_norms_clamped_0.1"]}
    tensors = ("latents", "text", "target", "unet_out", "decoded", "full")
    rows = [compare(f"{name} {key}", found[key], expected[key], max(TOLERANCE, spread(key))) for key in tensors]
    for key, value in norms.items():
        usual = TOLERANCE if key == "loss" else GRADIENT_TOLERANCE
        if value < GRADIENT_FLOOR:
            row = compare(f"{name} {key}", found[key], torch.tensor(value), 100 * GRADIENT_FLOOR, absolute=True)
        else:
            row = compare(f"{name} {key}", found[key], torch.tensor(value), max(usual, spread(key)))
        rows.append(row)
    unet = dict(model.encoder.unet.module.named_parameters())
    trained = {key for key, p in unet.items() if p.requires_grad}
    if trained != case["grad_norms"].keys() or unet.keys() - trained != set(case["frozen"]):
        rows.append(Row(f"{name} names of the trained parameters", float("inf"), float("inf"), 0, False))
    return rows


def rem_step(model: Rem, case: dict[str, Any], expected: dict[str, Tensor], rounding: Tensor) -> dict[str, Tensor]:
    """The values of a training step by their names in the fixture, and the gradients' norms by parameter.

    Args:
        model: with its weights.
        case: of the fixture's JSON.
        expected: the tensors of the case. The stored noise replaces the one that the model draws.
        rounding: is added to the stored latents.
    """
    encoder, add_noise, found = model.encoder, model.encoder.add_noise, {}
    frames, masks = normalise(expected["frames"])[None], expected["mask"][None]

    def stored_noise(latents: Tensor, noise: Tensor) -> Tensor:
        found["latents"] = latents[0]
        return add_noise((expected["latents"] + rounding)[None], expected["noise"][None])

    hook = encoder.text_encoder.register_forward_hook(lambda m, a, out: found.update(text=out.last_hidden_state))
    model.zero_grad()
    with hook, patch.object(encoder, "add_noise", stored_noise):
        output = model(frames, masks > 1, [case["caption"]])
    loss, _ = LatentCriterion()(output, BatchTargets(torch.zeros(0), masks.float(), torch.ones(masks.shape[:2])))
    loss.backward()
    decoded, side = output.masks[0], masks.shape[-1]
    full = mask_probabilities(decoded, (side, side), tuple(case["orig_size"]), lambda resized: resized)
    found.update(unet_out=output.latents[0].detach(), decoded=decoded, full=full, loss=loss.detach())
    found["target"] = encoder.encode_masks(masks)[0]
    trained = {name: p for name, p in encoder.unet.module.named_parameters() if p.grad is not None}
    found.update({name: p.grad.norm() for name, p in trained.items() if p.grad is not None})
    clip_gradient(list(trained.values()), 0.0, 0.1)
    found["grad after clamping"] = torch.stack([p.grad.norm() for p in trained.values() if p.grad is not None]).norm()
    return found


class Recorder:
    """Records the intermediate results of a model under the names that the fixtures use."""

    def __init__(self, model: Segmenter) -> None:
        self.found: dict[str, Tensor] = {}
        encoder = model.encoder

        def unet(module: nn.Module, args: tuple, output: list[Tensor]) -> None:
            self.found["unet_in"] = args[0]
            self.found.update({f"unet_feat.{i}": tap for i, tap in enumerate(output)})

        def pyramid(module: nn.Module, args: tuple, output: list[Tensor]) -> None:
            self.found.update({f"pyramid.{i}": level for i, level in enumerate(output)})

        def decoder(module: nn.Module, args: tuple, output: Any) -> None:
            self.found["hs"] = torch.stack(output.states)
            self.found["inter_refs"] = torch.stack(output.boxes)
            self.found.update({f"memory.{i}": memory for i, memory in enumerate(output.memory)})

        assert isinstance(encoder, VideoEncoder) and encoder.image_encoder is not None
        self.handles = [
            encoder.image_encoder.register_forward_hook(
                lambda m, a, out: self.found.update(image_tokens=out.last_hidden_state)
            ),
            encoder.fusion.register_forward_hook(lambda m, a, out: self.found.update(cond=out)),
            model.transformer.reference_point.register_forward_hook(
                lambda m, a, out: self.found.update(init_ref=out.sigmoid())
            ),
            encoder.unet.register_forward_hook(unet),
            encoder.register_forward_hook(pyramid),
            model.language_queries.register_forward_hook(
                lambda m, a, out: self.found.update(query_tokens=out.transpose(0, 1))
            ),
            model.transformer.register_forward_hook(decoder),
        ]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def compare(name: str, ours: Tensor, expected: Tensor, tolerance: float = TOLERANCE, absolute: bool = False) -> Row:
    """Compare two tensors by their largest difference.

    Args:
        name: name of the row.
        ours, expected: the tensors.
        tolerance: largest accepted difference, relative to the largest magnitude in ``expected``.
        absolute: ``tolerance`` is an absolute difference instead.
    """
    if ours.shape != expected.shape:
        return Row(f"{name} {list(ours.shape)} ≠ {list(expected.shape)}", float("inf"), float("inf"), tolerance, False)
    ours = ours.detach().cpu()
    difference = float((ours.double() - expected.double()).abs().max())
    relative = difference / max(float(expected.double().abs().max()), 1e-12)
    return Row(name, difference, relative, tolerance, (difference if absolute else relative) <= tolerance)


def compare_evaluation(model: Segmenter, fixture: Fixture) -> list[Row]:
    """Compare every stored tensor of a forward pass in evaluation mode."""
    expected = fixture.group("eval")
    batch = collate(fixture.samples, 16).to(next(model.parameters()).device)
    select = SELECTORS[fixture.spec["mode"]]
    model.eval()
    with torch.inference_mode(), Recorder(model) as recorder:
        output = model(batch.frames, batch.padding, batch.captions, select, batch.annotated)
    found = recorder.found
    logits, boxes, masks = output.logits, output.boxes, output.masks
    assert masks is not None
    if output.chosen is not None:
        clips = torch.arange(len(batch.captions))
        logits, boxes = (x[clips, :, output.chosen][:, :, None] for x in (logits, boxes))
        masks = masks[:, :, None]
    found.update(pred_logits=logits, pred_boxes=boxes, pred_masks=masks)
    return [compare(f"eval.{name}", found[name], value) for name, value in sorted(expected.items())]


def compare_training(model: Segmenter, cfg: Config, fixture: Fixture) -> list[Row]:
    """Compare predictions, losses, matched queries and gradient norms of one training step."""
    numbers = fixture.spec["train"]
    batch = collate(fixture.samples, 32).to(next(model.parameters()).device)
    criterion = build_criterion(cfg)
    target = criterion.prepare(batch.targets, batch.frames.shape[-2:])
    model.train()
    model.zero_grad()
    output = model(batch.frames, batch.padding, batch.captions, criterion.select(target), batch.annotated)
    total, terms = criterion(output, target)
    total.backward()

    clips = torch.arange(len(batch.captions))
    last = output.layers[-1]
    assert last.masks is not None
    found = {
        "pred_logits": last.logits,
        "pred_masks": last.masks,
        "pred_masks_low": last.low_masks[clips, :, last.chosen],
    }
    rows = [compare(f"train.{name}", found[name], value) for name, value in sorted(fixture.group("train").items())]
    for i, layer in enumerate(output.layers):
        wanted = numbers["matched"] if i == len(output.layers) - 1 else numbers["aux_matched"][i]
        assert layer.chosen is not None
        rows.append(compare(f"matched queries, layer {i}", layer.chosen, torch.tensor(wanted), 0))
    for name, value in numbers["losses"].items():
        rows.append(compare(name, terms[name], torch.tensor(value)))
    rows.append(compare("total loss", total, torch.tensor(numbers["total"])))
    if terms.keys() != numbers["losses"].keys():
        rows.append(Row("names of the losses", float("inf"), float("inf"), 0, False))

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    compared = set()
    names = authors_names(authors_model(numbers["grad_norm"]))
    for name, value in numbers["grad_norm"].items():
        ours = names.ours(name)
        if ours is None:
            continue
        compared.add(ours)
        gradient = parameters[ours].grad
        norm = torch.zeros(()) if gradient is None else gradient.norm()
        if value < GRADIENT_FLOOR:
            rows.append(compare(f"grad {ours}", norm, torch.tensor(value), 100 * GRADIENT_FLOOR, absolute=True))
        else:
            rows.append(compare(f"grad {ours}", norm, torch.tensor(value), GRADIENT_TOLERANCE))
    rows.extend(
        Row(f"grad {name} (not in the fixture)", float("inf"), float("inf"), 0, False)
        for name in sorted(parameters.keys() - compared)
    )
    return rows


if __name__ == "__main__":
    run_cli(main)
