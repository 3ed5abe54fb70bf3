"""Recomputing a fixture of published numbers with this project's models (used by ``scripts.check_parity``).

A fixture is a checkpoint in the authors' layout, a safetensors file of inputs and expected tensors, and a
JSON of sizes, sentences and expected losses.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from datasets.clip import Sample, Target, collate
from models import build_criterion, build_model
from models.authors import convert_authors, convert_name, is_authors
from models.checkpoints import load_state
from models.diffusion.encoder import VideoEncoder
from models.segmenter import Segmenter, Selector, all_queries, best_query
from util.checkpoint import read_content
from util.config import Config
from util.errors import UserError
from util.files import read_json
from util.preprocessing import normalise

TOLERANCE = 1e-3
TOKEN_TOLERANCE = 0.1
GRADIENT_TOLERANCE = 0.01
GRADIENT_FLOOR = 1e-6

SELECTORS: dict[str, Selector] = {"ytvos": best_query, "refcoco": all_queries, "a2d": all_queries}
"""By the fixture's mode: which queries the published evaluation refines."""


@dataclass
class Row:
    """One compared quantity."""

    name: str
    absolute: float
    relative: float
    tolerance: float
    ok: bool


@dataclass
class Fixture:
    """One fixture, read from disk."""

    name: str
    spec: dict[str, Any]
    tensors: dict[str, Tensor]
    checkpoint: Path
    pretrained: Path

    @property
    def samples(self) -> list[Sample]:
        """The clips with their targets, as a dataset would give them."""
        samples: list[Sample] = []
        for i, caption in enumerate(self.spec["captions"]):
            prefix = f"target.{i}."
            target: dict[str, Any] = {
                name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)
            }
            target["caption"] = caption
            if "valid_indices" in target:
                target["annotated"] = int(target.pop("valid_indices"))
            samples.append((normalise(self.tensors[f"video.{i}"]), cast(Target, target)))
        return samples


def find_fixtures(folder: Path, models: tuple[str, ...]) -> list[Fixture]:
    """The fixtures of the given models in a folder laid out as ``<folder>/<model>/<name>.{json,safetensors}``.

    Raises:
        UserError: the folder or a part of it is missing or unreadable.
    """
    pretrained = folder / "pretrained"
    if not pretrained.is_dir():
        raise UserError(f"{folder} holds no fixtures: {pretrained} (the frozen stack) is missing")
    fixtures = []
    for model in models:
        for path in sorted((folder / model).glob("*.json")):
            tensors = path.with_suffix(".safetensors")
            if not tensors.is_file():
                raise UserError(f"{tensors} is missing; it should hold the tensors of {path.name}")
            try:
                content = load_file(tensors)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{tensors} is not a readable safetensors file: {error}") from error
            fixtures.append(
                Fixture(
                    name=f"{model}/{path.stem}",
                    spec=read_json(path, "the sizes and losses of a fixture"),
                    tensors=content,
                    checkpoint=path.with_name("checkpoint.pth"),
                    pretrained=pretrained,
                )
            )
    if not fixtures:
        raise UserError(f"{folder} holds no fixtures of {' or '.join(models)} (<model>/<name>.json)")
    return fixtures


def read_authors_state(path: Path) -> dict[str, Tensor]:
    """The state dict of an authors' ``.pth``, read without running code that it may carry.

    Raises:
        UserError: the file is missing or not such a checkpoint.
    """
    content = read_content(path)
    if not is_authors(content):
        raise UserError(f"{path} is not a checkpoint of the authors' layout: it has no weights under 'model'")
    return content["model"]


def fixture_model(fixture: Fixture) -> tuple[Segmenter, Config]:
    """The model of a fixture with the authors' weights, the posterior at its mode."""
    known = {field.name for field in dataclasses.fields(Config)}
    words = fixture.spec["options"]
    options = {word[2:]: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("--")}
    sizes = {name: value for name, value in options.items() if name in known and not value.startswith("--")}
    defaults = Config()
    typed = {
        name: type(getattr(defaults, name))(value)
        for name, value in sizes.items()
        if isinstance(getattr(defaults, name), (int, float)) and not isinstance(getattr(defaults, name), bool)
    }
    cfg = dataclasses.replace(
        defaults,
        **typed,
        model=fixture.spec["model"],
        pretrained=str(fixture.pretrained),
        pyramid_channels=tuple(fixture.spec["dims"]["lay"]),
        posterior="mode",
        lora_rank=0,  # the published UNet has its adapters merged in
    )
    model = build_model(cfg)
    load_state(model, convert_authors(read_authors_state(fixture.checkpoint)), fixture.checkpoint)
    return model, cfg


class Recorder:
    """Keeps what passes through the model's parts, under the fixtures' names.

    Args:
        model: the model; its forward runs unchanged.
        image_tokens: put in the place of the model's own, so that the rest is compared from equal inputs.
    """

    def __init__(self, model: Segmenter, image_tokens: Tensor | None) -> None:
        self.found: dict[str, Tensor] = {}
        encoder = model.encoder

        def tokens(module: nn.Module, args: tuple, output: Any) -> Any:
            self.found["image_tokens"] = output.last_hidden_state
            if image_tokens is not None:
                output.last_hidden_state = image_tokens
            return output

        def unet(module: nn.Module, args: tuple, output: list[Tensor]) -> None:
            self.found["unet_in"] = args[0]
            self.found.update({f"unet_feat.{i}": tap for i, tap in enumerate(output)})

        def pyramid(module: nn.Module, args: tuple, output: list[Tensor]) -> None:
            self.found.update({f"pyramid.{i}": level for i, level in enumerate(output)})

        def decoder(module: nn.Module, args: tuple, output: Any) -> None:
            self.found["hs"] = torch.stack(output.states)
            self.found["init_ref"] = output.initial_reference
            self.found["inter_refs"] = torch.stack(output.boxes)
            self.found.update({f"memory.{i}": memory for i, memory in enumerate(output.memory)})

        assert isinstance(encoder, VideoEncoder) and encoder.image_encoder is not None
        self.handles = [
            encoder.image_encoder.register_forward_hook(tokens),
            encoder.fusion.register_forward_hook(lambda m, a, out: self.found.update(cond=out)),
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
    """Largest difference, absolute and relative to the expected tensor's largest magnitude."""
    if ours.shape != expected.shape:
        return Row(f"{name} {list(ours.shape)} ≠ {list(expected.shape)}", float("inf"), float("inf"), tolerance, False)
    difference = float((ours.double() - expected.double()).abs().max())
    relative = difference / max(float(expected.double().abs().max()), 1e-12)
    return Row(name, difference, relative, tolerance, (difference if absolute else relative) <= tolerance)


def check_evaluation(model: Segmenter, fixture: Fixture) -> list[Row]:
    """Every stored tensor of an evaluation forward."""
    expected = {k.removeprefix("eval."): v for k, v in fixture.tensors.items() if k.startswith("eval.")}
    batch = collate(fixture.samples, 16)
    select = SELECTORS[fixture.spec["mode"]]
    model.eval()
    with torch.inference_mode(), Recorder(model, expected["image_tokens"]) as recorder:
        output = model(batch.frames, batch.padding, batch.captions, select, batch.annotated)
    found = recorder.found
    logits, boxes, masks = output.logits, output.boxes, output.masks
    assert masks is not None
    if output.chosen is not None:
        clips = torch.arange(len(batch.captions))
        logits, boxes = (x[clips, :, output.chosen][:, :, None] for x in (logits, boxes))
        masks = masks[:, :, None]
    found.update(pred_logits=logits, pred_boxes=boxes, pred_masks=masks)
    unknown = expected.keys() - found.keys()
    if unknown:
        raise UserError(f"the fixture {fixture.name} holds eval.{min(unknown)}, which this check does not know")
    rows = []
    for name in sorted(expected):
        if name == "image_tokens":
            rows.append(compare(f"eval.{name}", found[name], expected[name], TOKEN_TOLERANCE, absolute=True))
        else:
            rows.append(compare(f"eval.{name}", found[name], expected[name]))
    return rows


def check_training(model: Segmenter, cfg: Config, fixture: Fixture) -> list[Row]:
    """Predictions, losses, matched queries and gradient norms of one training step."""
    expected = {k.removeprefix("train."): v for k, v in fixture.tensors.items() if k.startswith("train.")}
    truth = fixture.spec["train"]
    batch = collate(fixture.samples, 32)
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
    rows = [compare(f"train.{name}", found[name].detach(), value) for name, value in sorted(expected.items())]
    for i, layer in enumerate(output.layers):
        wanted = truth["matched"] if i == len(output.layers) - 1 else truth["aux_matched"][i]
        assert layer.chosen is not None
        rows.append(compare(f"matched queries, layer {i}", layer.chosen, torch.tensor(wanted), 0))
    for name, value in truth["losses"].items():
        rows.append(compare(name, terms[name].detach(), torch.tensor(value)))
    rows.append(compare("total loss", total.detach(), torch.tensor(truth["total"])))
    if terms.keys() != truth["losses"].keys():
        rows.append(Row("names of the losses", float("inf"), float("inf"), 0, False))

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    seen = set()
    for name, value in truth["grad_norm"].items():
        ours = convert_name(name)
        if ours is None:
            continue
        seen.add(ours)
        gradient = parameters[ours].grad
        norm = torch.zeros(()) if gradient is None else gradient.norm()
        if value < GRADIENT_FLOOR:  # rounding noise on both sides, such as of a bias before a normalisation
            rows.append(compare(f"grad {ours}", norm, torch.tensor(value), 100 * GRADIENT_FLOOR, absolute=True))
        else:
            rows.append(compare(f"grad {ours}", norm, torch.tensor(value), GRADIENT_TOLERANCE))
    rows.extend(
        Row(f"grad {name} (not in the fixture)", float("inf"), float("inf"), 0, False)
        for name in sorted(parameters.keys() - seen)
    )
    return rows
