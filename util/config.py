"""All options of training and inference: one flat dataclass, set by a YAML file and by flags.

Flags have ReferFormer's names and override the file. Every value is validated before anything else is loaded::

    python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --lr 5e-5
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from util.errors import UserError
from util.options import AUTO, checked, option, read_flags, read_yaml

_model = partial(option, "model")
_loss = partial(option, "matching and losses")
_data = partial(option, "data")
_train = partial(option, "training")
_run = partial(option, "run")

DATASET_NAMES: list[str] = []
VALIDATED_NAMES: list[str] = []
METRICS: list[str] = []
"""The choices of options about datasets, which ``datasets.registry`` fills in; while empty, any text is accepted."""

AUTO_MAX_SIZE = 640
"""The limit that ``max_size`` "auto" sets in training and for single frames and images."""

SQUARE = 0
"""As the limit of the longer side: both sides get the length of the shorter one."""
SQUARE_MULTIPLE = 32
"""Pixels. The side of square frames is a multiple of it, so that nothing is padded."""


@dataclasses.dataclass(frozen=True)
class ModelTraits:
    """What options and commands know about a model.

    Attributes:
        title: its name and paper.
        noise, stride4, lora_rank, image_tokens, time_mode: what "auto" stands for in these options; empty: the option
            has no meaning.
        architecture: options that decide what the model computes. The weights do not always show it: two kinds of
            noise have none.
        scored: whether it predicts scores, boxes and several queries, and not only masks.
        fine_tuned: whether the UNet itself is trained.
        square: whether frames are resized to squares.
        clip_frames: length of the clips into which whole videos are cut at inference, where the dataset prescribes
            none; None: they are not cut.
    """

    title: str
    noise: str
    stride4: str
    lora_rank: int
    image_tokens: bool = True
    time_mode: str = "clip"
    architecture: tuple[str, ...] = ("noise", "image_tokens", "unet_text", "stride4", "time_mode", "backbone")
    scored: bool = True
    fine_tuned: bool = False
    square: bool = False
    clip_frames: int | None = None


MODELS = {
    "vdit": ModelTraits("VD-IT (arXiv 2403.12042)", "predicted", "vae", 0),
    "hcd": ModelTraits("HCD (arXiv 2508.13584)", "none", "stem", 16),
    "rem": ModelTraits(
        "REM (ICCV 2025)",
        "gaussian",
        "",
        0,
        architecture=(),
        scored=False,
        fine_tuned=True,
        square=True,
        clip_frames=72,
    ),
}


MODELSCOPE, CLIP, ROBERTA = "ali-vilab/text-to-video-ms-1.7b", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "roberta-base"
"""The repositories of the published frozen parts: text-to-video stack, image encoder, sentence encoder."""


class Weights(NamedTuple):
    """Published weights."""

    source: str
    licence: str
    preferred: tuple[str, ...]
    """Parts of the names of files, one of which is meant where the source has several files."""
    frozen: tuple[str, ...]
    """The repositories of the frozen parts."""


WEIGHTS = {
    "vdit": Weights(
        "hf://buxiangzhiren/VD-IT",
        "CC BY-NC 4.0, that of ModelScope's stack, which it holds",
        ("ytvos", "youtube"),
        (MODELSCOPE, CLIP, ROBERTA),
    ),
    "rem": Weights("hf://anuragba/refereverything", "CC BY 4.0", ("modelscope", "ms"), (MODELSCOPE,)),
}
"""Published weights by the name of their model; the first are used where no checkpoint is given."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of ``main.py`` and ``inference_ytvos.py``; each field has its help text and bounds.

    The defaults are the published recipe of VD-IT on Ref-YouTube-VOS, from scratch. Creating a ``Config`` validates it,
    also through ``dataclasses.replace``.

    Raises:
        UserError: a value has a wrong type, is out of range, or contradicts another.
    """

    model: str = _model("vdit", "which model to build", choices=tuple(MODELS))
    pretrained: str = _model(MODELSCOPE, "frozen text-to-video stack: a local folder or a hub id", path=True)
    image_encoder: str = _model(
        "",
        "CLIP image encoder: a local folder or a hub id; empty is PRETRAINED/clip where that folder exists, "
        f"else {CLIP}",
        path=True,
        empty=True,
    )
    text_encoder: str = _model(
        "",
        "RoBERTa sentence encoder: a local folder or a hub id; empty is PRETRAINED/roberta where that folder exists, "
        f"else {ROBERTA}",
        path=True,
        empty=True,
    )
    noise: str = _model(
        "auto",
        "noise added to the latents; auto: predicted for vdit, none for hcd, gaussian (seeded for each clip) for rem",
        choices=("auto", "predicted", "gaussian", "none"),
    )
    image_tokens: bool | str = _model(
        "auto",
        "append image tokens to the text condition; auto: yes, where the generator has a text per frame",
        auto=True,
    )
    unet_text: bool = _model(True, "condition the UNet on the sentence; off: on the empty sentence")
    stride4: str = _model(
        "auto",
        "level 0 of the pyramid: stride-4 feature of the VAE or temporal stem; auto: vae for vdit, stem for hcd",
        choices=("auto", "vae", "stem"),
    )
    lora_rank: int | str = _model(
        "auto",
        "rank of the LoRA adapters in the UNet; 0: none; auto: 0 for vdit and rem, 16 for hcd",
        minimum=0,
        auto=True,
    )
    lora_alpha: float = _model(32.0, "LoRA: the output of an adapter is scaled by lora_alpha / lora_rank", above=0)
    lora_dropout: float = _model(0.1, "LoRA: dropout on the input of an adapter", minimum=0, below=1)
    lora_targets: tuple[str, ...] = _model(
        ("to_q", "to_v"),
        "LoRA: layers that get an adapter in every spatial, temporal and cross attention of the UNet",
        choices=("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    )
    freeze_layers: tuple[str, ...] = _model(
        (),
        "rem: layers of the UNet that are not trained: temporal, as in the stage on images, or coarsest, those at its "
        "lowest resolution",
        choices=("temporal", "coarsest"),
    )
    backbone: str = _model(
        "t2v",
        "source of the feature pyramid: the text-to-video stack, torchvision's Video Swin, or a timm model "
        "(timm:resnet50)",
        choices=("t2v", "swin3d_t", "swin3d_s", "swin3d_b"),
        prefix="timm:",
    )
    backbone_weights: str = _model(
        "",
        "weights of a backbone other than t2v: DEFAULT (downloaded by the library) or a file; empty: random",
        path=True,
        empty=True,
    )
    train_backbone: bool = _model(False, "train a backbone other than t2v; otherwise it is frozen")
    time_mode: str = _model(
        "auto",
        "generators that compress time (Wan): clip: 4 frames per latent frame, frame: every frame alone, at four times "
        "the cost; auto: clip",
        choices=("auto", "clip", "frame"),
    )
    text_cache: str = _model(
        "",
        "folder for features of sentences, where the generator's text encoder does not stay in memory (Wan); empty is "
        "the project's cache",
        path=True,
        empty=True,
    )
    posterior: str = _model(
        "auto",
        "how latents are drawn from the posterior of the VAE; auto: sample in training, mode in evaluation",
        choices=("auto", "mode", "sample"),
    )
    pyramid_channels: tuple[int, ...] = _model(
        (128, 256, 512, 1024), "channels of the feature pyramid at strides 4, 8, 16, 32", minimum=1, length=4
    )
    hidden_dim: int = _model(256, "width of the transformer and the mask features, a multiple of 32", minimum=32)
    dim_feedforward: int = _model(2048, "width of the feed-forward layers of the transformer", minimum=1)
    enc_layers: int = _model(4, "encoder layers", minimum=1)
    dec_layers: int = _model(4, "decoder layers", minimum=1)
    nheads: int = _model(8, "attention heads of the deformable transformer, a divisor of hidden_dim", minimum=1)
    enc_n_points: int = _model(4, "sampling points per head and level in the encoder", minimum=1)
    dec_n_points: int = _model(4, "sampling points per head and level in the decoder", minimum=1)
    num_queries: int = _model(5, "object queries per frame", minimum=1)
    dropout: float = _model(0.1, "dropout of the trained parts", minimum=0, below=1)
    dynamic_mask_channels: int = _model(16, "hidden channels of the dynamic mask head", minimum=1)

    set_cost_class: float = _loss(2.0, "matching cost of the class", minimum=0)
    set_cost_bbox: float = _loss(5.0, "matching cost of the L1 distance of the boxes", minimum=0)
    set_cost_giou: float = _loss(2.0, "matching cost of the GIoU of the boxes", minimum=0)
    set_cost_mask: float = _loss(2.0, "matching cost of the focal loss of the masks", minimum=0)
    set_cost_dice: float = _loss(5.0, "matching cost of the dice of the masks", minimum=0)
    cls_loss_coef: float = _loss(2.0, "weight of the class loss", minimum=0)
    bbox_loss_coef: float = _loss(5.0, "weight of the L1 loss of the box", minimum=0)
    giou_loss_coef: float = _loss(2.0, "weight of the GIoU loss of the box", minimum=0)
    mask_loss_coef: float = _loss(2.0, "weight of the focal loss of the mask", minimum=0)
    dice_loss_coef: float = _loss(5.0, "weight of the dice loss of the mask", minimum=0)
    focal_alpha: float = _loss(0.25, "alpha of the focal losses", minimum=0, maximum=1)

    dataset_file: str = _data("ytvos", "dataset", choices=DATASET_NAMES)
    ytvos_path: str = _data("data/ref-youtube-vos", "root folder of Ref-YouTube-VOS, or of its layout", path=True)
    davis_path: str = _data("data/ref-davis", "root folder of Ref-DAVIS17 as scripts.prepare_data makes it", path=True)
    mevis_path: str = _data("data/mevis", "root folder of MeViS, version 1 or 2", path=True)
    mevis_version: str = _data(
        "auto",
        "version of the expressions list to read and to score; auto: the list that exists (v1 if both do), scored as "
        "v2 if a sentence refers to nothing",
        choices=("auto", "v1", "v2"),
    )
    long_rvos_path: str = _data("data/long_rvos", "root folder of Long-RVOS", path=True)
    revos_path: str = _data("data/revos", "root folder of ReVOS", path=True)
    a2d_path: str = _data("data/a2d-sentences", "root folder of A2D-Sentences", path=True)
    jhmdb_path: str = _data("data/jhmdb-sentences", "root folder of JHMDB-Sentences", path=True)
    coco_path: str = _data(
        "data/coco", "root folder of RefCOCO, RefCOCO+ and RefCOCOg as scripts.prepare_data makes them", path=True
    )
    expressions_file: str = _data(
        "",
        "expressions file of ytvos, davis or long_rvos to use instead of the split's own; for ytvos also the authors' "
        "meta_expressions_valid.json, which only adds object ids",
        path=True,
        empty=True,
    )
    split: str = _data(
        "auto",
        "split for inference and --eval; auto: valid, for MeViS valid_u, for A2D and JHMDB test, for RefCOCO val",
    )
    num_frames: int = _data(5, "frames of a training clip", minimum=1)
    frame_sampling: str = _data(
        "near",
        "frames of a training clip: near: a frame, two close to it, and the rest at random; random: all at random",
        choices=("near", "random"),
    )
    colour_distortion: bool = _data(True, "distort brightness, contrast and saturation of training frames")
    reverse_probability: float = _data(
        0.3,
        "share of training clips played backwards (use 0 if sentences name directions of motion)",
        minimum=0,
        maximum=1,
    )
    train_scales: tuple[int, ...] = _data(
        (288, 320, 352, 392, 416, 448, 480, 512), "shorter sides in training, one drawn per clip, in pixels", minimum=16
    )
    crop_scales: tuple[int, ...] = _data(
        (400, 500, 600), "shorter sides before a random crop, for half of the clips; empty: no crops", minimum=1
    )
    crop_range: tuple[int, ...] = _data(
        (384, 600), "smallest and largest side of a crop, in pixels", minimum=1, length=2
    )
    max_size: int | str = _data(
        "auto",
        "limit of the longer side, in pixels; 0: none; auto: none for whole videos, 640 in training and for single "
        "frames and images",
        minimum=0,
        auto=True,
    )
    eval_size: int = _data(360, "shorter side at inference, in pixels", minimum=16)
    skip_broken: bool = _data(
        False, "replace training clips whose files are broken with others; each is reported and counted"
    )
    num_workers: int = _data(4, "processes that load data; 0: load in the main process", minimum=0)

    epochs: int = _train(9, "epochs", minimum=1)
    lr_schedule: str = _train(
        "step",
        "how the learning rate falls: step: to a tenth after the epochs of lr_drop; cosine: to 0 over the whole run",
        choices=("step", "cosine"),
    )
    lr_drop: tuple[int, ...] = _train((6, 8), "epochs after which the rate falls to a tenth", minimum=1)
    lr: float = _train(1e-4, "learning rate of all trained parameters", above=0)
    lr_processes: int = _train(
        4, "number of processes that lr is meant for; the rate is scaled by processes / lr_processes", minimum=1
    )
    weight_decay: float = _train(5e-4, "weight decay of AdamW", minimum=0)
    clip_max_norm: float = _train(0.1, "limit of the norm of the gradient; 0: no clipping", minimum=0)
    clip_grad_value: float = _train(0.0, "limit of every element of the gradient; 0: none", minimum=0)
    batch_size: int = _train(1, "clips per process and forward pass", minimum=1)
    accumulate: int = _train(
        1, "batches per optimiser step; N batches give the update of one batch that is N times larger", minimum=1
    )
    precision: str = _train(
        "auto",
        "precision of frozen weights, matrix products and convolutions: bf16, fp16 (with loss scaling), fp32, or tf32 "
        "(fp32 with faster, coarser products on CUDA); auto: on CUDA bf16 where the hardware supports it, else fp16; "
        "elsewhere fp32, but bf16 for inference on a CPU that supports it",
        choices=("auto", "bf16", "fp16", "tf32", "fp32"),
    )
    gradient_checkpointing: bool = _train(
        False, "recompute the activations of the UNet in the backward pass: less memory, more time"
    )
    compile: bool = _train(False, "compile UNet and VAE with torch.compile; if that fails, they run uncompiled")
    seed: int = _train(42, "seed of all random numbers", minimum=0, maximum=2**32 - 1)
    max_steps: int = _train(0, "stop after this many optimiser steps; 0: no limit", minimum=0)
    warmup_steps: int = _train(0, "steps over which the learning rate rises linearly from 0", minimum=0)
    log_every: int = _train(10, "steps between two lines of the log", minimum=1)
    sample_every: int = _train(
        200, "steps between two pictures of a training clip in TensorBoard and wandb; 0: none", minimum=0
    )
    save_every: int = _train(0, "steps between checkpoints, in addition to one after each epoch; 0: none", minimum=0)
    save_minutes: float = _train(10.0, "write a checkpoint at least every N minutes; 0: no limit", minimum=0)
    keep_checkpoints: int = _train(
        3, "number of recent checkpoints to keep, in addition to the best one of the validations", minimum=1
    )
    patience_minutes: float = _train(
        10.0, "end a run that makes no progress for N minutes, and report which process hangs where", above=0
    )
    eval_every: float = _train(
        0.0,
        "epochs between two validations, in addition to one at the end; fractions such as 0.25 are allowed; 0: none",
        minimum=0,
    )
    eval_dataset: str = _train(
        "auto", "dataset to validate on during training; auto: dataset_file", choices=VALIDATED_NAMES
    )
    eval_metric: str = _train(
        "auto",
        "metric that chooses checkpoint_best.pth, higher is better; auto: J&F for video datasets, mAP for A2D and "
        "JHMDB, oIoU for RefCOCO",
        choices=METRICS,
    )

    config: str = _run("", "YAML file that sets any of these options; flags override it", path=True, empty=True)
    output_dir: str = _run("runs/debug", "folder for all output", path=True)
    device: str = _run(
        "auto", "device; auto: the first of cuda, mps and cpu that is available", choices=("auto", "cpu", "cuda", "mps")
    )
    eval: bool = _run(False, "score the checkpoint of --resume and write results.json, without training")
    resume: str = _run(
        "",
        "checkpoint to resume from, or to use for inference: a file, a folder that holds one, or org/repo (hub); for "
        "training also auto: the newest intact one in output_dir, if any",
        path=True,
        empty=True,
    )
    pretrained_weights: str = _run(
        "",
        "checkpoint whose weights begin a new run, of this project or the authors: a file, a folder that holds one, or "
        "org/repo on the hub. Not read with --resume",
        path=True,
        empty=True,
    )
    keep_class_heads: bool = _run(False, "also load the class heads of pretrained_weights; otherwise they are new")
    ignore_frozen_identity: bool = _run(
        False, "accept frozen parts that differ from those a checkpoint was trained with"
    )
    wandb: bool = _run(False, "also log to Weights & Biases; install its library yourself; WANDB_MODE=offline works")
    visualize: bool = _run(False, "also draw masks, boxes and sentences over the frames")
    expressions_per_batch: int = _run(
        4, "sentences of a video in one batch; fewer need less memory, with the same masks", minimum=1
    )
    threshold: float = _run(0.5, "mask probability from which a pixel belongs to the object", minimum=0, maximum=1)
    score_threshold: float = _run(
        0.0,
        "mean score of the chosen query over the clip below which the masks are empty: the sentence names nothing",
        minimum=0,
        maximum=1,
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = checked(Config, field.name, getattr(self, field.name), field.name)
            object.__setattr__(self, field.name, value)
        check_together(self)


def load_config(argv: Sequence[str] | None, description: str) -> Config:
    """Read the options of a run: defaults, then the file that ``--config`` names, then the other flags.

    Args:
        argv: the command line without the program's name; None takes the process's own.
        description: what the program does, for ``--help``.

    Raises:
        UserError: an unknown key or flag (the message names the nearest known one), or a wrong value.
    """
    flags = read_flags(Config, argv, description)
    path = flags.get("config", "")
    file = read_yaml(Config, path) if path else {}
    try:
        return Config(**{**file, **flags})
    except UserError as error:  # each value was checked on its own, so two of them contradict each other
        raise UserError(f"{error}; see {path} and the flags given" if path else str(error)) from error


def config_dict(config: Config) -> dict[str, Any]:
    """The options as plain values (lists, not tuples), for checkpoints, logs and YAML."""
    values = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}


def side_limit(max_size: int | str, auto: int | None) -> int | None:
    """The limit of the longer side, in pixels, that ``max_size`` sets; None: none.

    Args:
        max_size: the option.
        auto: what "auto" stands for.
    """
    return (auto if max_size == AUTO else int(max_size)) or None


def long_side(config: Config, auto: int | None) -> int | None:
    """The limit of the longer side for the model of ``config``: ``side_limit``, or ``SQUARE``."""
    return SQUARE if MODELS[config.model].square else side_limit(config.max_size, auto)


def check_together(config: Config) -> None:
    """Refuse values that contradict each other, or have no effect.

    Raises:
        UserError: the message names the options.
    """
    hidden = config.hidden_dim
    limit = long_side(config, None)
    rules = (
        (hidden % config.nheads == 0, f"nheads must divide hidden_dim, and {config.nheads} does not divide {hidden}"),
        # group normalisation has 32 groups, and the position code splits the width into sines and cosines of x and y
        (hidden % 32 == 0, f"hidden_dim must be a multiple of 32, not {hidden}"),
        (bool(config.train_scales), "train_scales must name at least one scale"),
        (
            not limit or config.eval_size <= limit,
            f"max_size ({limit}) limits the longer side, and must be at least the shorter one, eval_size "
            f"({config.eval_size}); --max_size 0 sets no limit",
        ),
        (
            config.crop_range[0] <= config.crop_range[1],
            f"crop_range must be the smallest and the largest side, in this order, not {list(config.crop_range)}",
        ),
        (
            all(first < second for first, second in pairwise(config.lr_drop)),
            f"lr_drop must list epochs in increasing order, not {list(config.lr_drop)}",
        ),
        (
            any(getattr(config, f"set_cost_{part}") for part in ("class", "bbox", "giou", "mask", "dice")),
            "at least one of the set_cost_* options must be above 0, or no query can be matched",
        ),
        (
            bool(config.lora_targets),
            "lora_targets must name at least one layer; use --lora_rank 0 to train without LoRA",
        ),
        *_backbone_rules(config),
        *_model_rules(config),
    )
    for good, sentence in rules:
        if not good:
            raise UserError(sentence)


def _backbone_rules(config: Config) -> list[tuple[bool, str]]:
    """Rules about the backbone. A setting without effect is refused, so that no table can claim one."""
    name = config.backbone
    if name == "t2v":
        return [
            (
                not config.backbone_weights,
                "backbone_weights is for other backbones; the option pretrained names the weights of t2v",
            ),
            (not config.train_backbone, "train_backbone is for other backbones; use lora_rank to adapt t2v"),
        ]
    return [
        (value in absent, f"{option} {value} has no effect with backbone {name}; leave it at {absent[0]}")
        for option, value, absent in (
            ("noise", config.noise, ("auto", "none")),
            ("stride4", config.stride4, ("auto",)),
            ("lora_rank", config.lora_rank, ("auto", 0)),
            ("unet_text", config.unet_text, (True,)),
            ("image_tokens", config.image_tokens, (AUTO, True)),
            ("time_mode", config.time_mode, (AUTO,)),
            ("compile", config.compile, (False,)),
        )
    ]


_WITHOUT_QUERIES = (
    *("stride4", "image_tokens", "unet_text", "posterior", "backbone", "max_size", "time_mode"),
    *("keep_class_heads", "score_threshold", "image_encoder", "text_encoder"),
)
"""Options without effect for a model whose generator draws the masks."""


def _model_rules(config: Config) -> list[tuple[bool, str]]:
    """Rules about the model. As for the backbone, a setting without effect is refused."""
    model, default = config.model, {field.name: field.default for field in dataclasses.fields(config)}
    if not MODELS[model].fine_tuned:
        return [(not config.freeze_layers, f"freeze_layers has no effect with model {model}; leave it out")]
    sides = {config.eval_size, *config.train_scales}
    return [
        *(
            (getattr(config, name) == default[name], f"{name} has no effect with model {model}; leave it out")
            for name in _WITHOUT_QUERIES
        ),
        (config.noise != "predicted", f"the noise of model {model} is gaussian or none, not predicted"),
        (
            not any(side % SQUARE_MULTIPLE for side in sides) and len(config.train_scales) == 1,
            f"model {model} sees square frames: eval_size and the only value of train_scales must be multiples of "
            f"{SQUARE_MULTIPLE}; 512 and 256 are published",
        ),
    ]
