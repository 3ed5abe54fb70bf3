"""All options of training and inference: one flat, documented dataclass, set by a YAML file and by flags.

Flags carry ReferFormer's names and override the file; every value is validated before anything else is loaded::

    python main.py --config configs/vdit_ytvos.yaml --ytvos_path data/ref-youtube-vos --lr 5e-5
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

from util.config_files import read_yaml
from util.config_rules import check_together
from util.errors import UserError
from util.options import checked, option, read_flags

_model = partial(option, "model")
_loss = partial(option, "matching and losses")
_data = partial(option, "data")
_train = partial(option, "training")
_run = partial(option, "run")

# ``datasets.registry`` fills these lists when it is imported. While they are empty, any text is accepted.
DATASET_NAMES: list[str] = []
VALIDATED_NAMES: list[str] = []
METRICS: list[str] = []


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of ``main.py`` and ``inference_ytvos.py``; each field carries its help text and bounds.

    The defaults are VD-IT's published recipe (Ref-YouTube-VOS, from scratch). Making a ``Config`` validates it, also
    through ``dataclasses.replace``.

    Raises:
        UserError: a value has a wrong type, is out of range, or contradicts another one.
    """

    model: str = _model("vdit", "which model to build", choices=("vdit", "hcd"))
    pretrained: str = _model(
        "ali-vilab/text-to-video-ms-1.7b", "frozen text-to-video stack: a local folder or a hub id", path=True
    )
    image_encoder: str = _model(
        "",
        "CLIP image encoder: a local folder or a hub id; empty is PRETRAINED/clip where that folder exists, else "
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        path=True,
        empty=True,
    )
    text_encoder: str = _model(
        "",
        "RoBERTa sentence encoder: a local folder or a hub id; empty is PRETRAINED/roberta where that folder exists, "
        "else roberta-base",
        path=True,
        empty=True,
    )
    noise: str = _model(
        "auto",
        "what is added to the latents: auto = predicted for vdit, none for hcd",
        choices=("auto", "predicted", "gaussian", "none"),
    )
    image_tokens: bool = _model(True, "join image tokens to the text condition of the UNet")
    unet_text: bool = _model(True, "give the sentence to the UNet; off: the states of the empty sentence")
    stride4: str = _model(
        "auto",
        "level 0 of the pyramid: the VAE's stride-4 feature or the temporal stem; auto = vae for vdit, stem for hcd",
        choices=("auto", "vae", "stem"),
    )
    lora_rank: int | str = _model(
        "auto", "rank of the LoRA adapters in the UNet; 0: none; auto = 0 for vdit, 16 for hcd", minimum=0, auto=True
    )
    lora_alpha: float = _model(32.0, "LoRA: what an adapter adds is scaled by lora_alpha / lora_rank", above=0)
    lora_dropout: float = _model(0.1, "LoRA: dropout on an adapter's input", minimum=0, below=1)
    lora_targets: tuple[str, ...] = _model(
        ("to_q", "to_v"),
        "LoRA: the layers of the UNet that get an adapter, in every spatial, temporal and cross attention",
        choices=("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    )
    backbone: str = _model(
        "t2v",
        "what gives the pyramid's features: the text-to-video stack, torchvision's Video Swin, or a timm model "
        "(timm:resnet50)",
        choices=("t2v", "swin3d_t", "swin3d_s", "swin3d_b"),
        prefix="timm:",
    )
    backbone_weights: str = _model(
        "",
        "weights of another backbone than t2v: DEFAULT (downloads the library's) or a file; empty: random",
        path=True,
        empty=True,
    )
    train_backbone: bool = _model(False, "train another backbone than t2v, which is frozen otherwise")
    posterior: str = _model(
        "auto",
        "how latents are drawn from the VAE posterior: auto = sample in training, mode in evaluation",
        choices=("auto", "mode", "sample"),
    )
    pyramid_channels: tuple[int, ...] = _model(
        (128, 256, 512, 1024), "channels of the feature pyramid at strides 4, 8, 16, 32", minimum=1, length=4
    )
    hidden_dim: int = _model(256, "width of the transformer and the mask features; a multiple of 32", minimum=32)
    dim_feedforward: int = _model(2048, "width of the transformer's feed-forward layers", minimum=1)
    enc_layers: int = _model(4, "encoder layers", minimum=1)
    dec_layers: int = _model(4, "decoder layers", minimum=1)
    nheads: int = _model(8, "attention heads of the deformable transformer; they divide hidden_dim", minimum=1)
    enc_n_points: int = _model(4, "sampling points per head and level in the encoder", minimum=1)
    dec_n_points: int = _model(4, "sampling points per head and level in the decoder", minimum=1)
    num_queries: int = _model(5, "object queries per frame", minimum=1)
    dropout: float = _model(0.1, "dropout of the trained parts", minimum=0, below=1)
    dynamic_mask_channels: int = _model(16, "hidden channels of the dynamic mask head", minimum=1)

    set_cost_class: float = _loss(2.0, "matching cost of the class", minimum=0)
    set_cost_bbox: float = _loss(5.0, "matching cost of the box's L1 distance", minimum=0)
    set_cost_giou: float = _loss(2.0, "matching cost of the box's GIoU", minimum=0)
    set_cost_mask: float = _loss(2.0, "matching cost of the mask's focal loss", minimum=0)
    set_cost_dice: float = _loss(5.0, "matching cost of the mask's dice", minimum=0)
    cls_loss_coef: float = _loss(2.0, "weight of the class loss", minimum=0)
    bbox_loss_coef: float = _loss(5.0, "weight of the box's L1 loss", minimum=0)
    giou_loss_coef: float = _loss(2.0, "weight of the box's GIoU loss", minimum=0)
    mask_loss_coef: float = _loss(2.0, "weight of the mask's focal loss", minimum=0)
    dice_loss_coef: float = _loss(5.0, "weight of the mask's dice loss", minimum=0)
    focal_alpha: float = _loss(0.25, "alpha of the focal losses", minimum=0, maximum=1)

    dataset_file: str = _data("ytvos", "dataset", choices=DATASET_NAMES)
    ytvos_path: str = _data("data/ref-youtube-vos", "root folder of Ref-YouTube-VOS, or of its layout", path=True)
    davis_path: str = _data("data/ref-davis", "root folder of Ref-DAVIS17 as scripts.prepare_data makes it", path=True)
    mevis_path: str = _data("data/mevis", "root folder of MeViS, version 1 or 2", path=True)
    mevis_version: str = _data(
        "auto", "by which scores are keyed; auto is v2 where a sentence names nothing", choices=("auto", "v1", "v2")
    )
    a2d_path: str = _data("data/a2d-sentences", "root folder of A2D-Sentences", path=True)
    jhmdb_path: str = _data("data/jhmdb-sentences", "root folder of JHMDB-Sentences", path=True)
    coco_path: str = _data(
        "data/coco", "root folder of RefCOCO, RefCOCO+ and RefCOCOg as scripts.prepare_data makes them", path=True
    )
    expressions_file: str = _data(
        "", "expressions to use instead of meta_expressions/SPLIT/meta_expressions.json", path=True, empty=True
    )
    split: str = _data(
        "auto", "split that inference and --eval read; auto is valid, for MeViS valid_u, for A2D test, …"
    )
    num_frames: int = _data(5, "frames of a training clip", minimum=1)
    colour_distortion: bool = _data(True, "distort brightness, contrast and saturation of training frames")
    reverse_probability: float = _data(
        0.3,
        "share of training clips played backwards (0 where sentences name directions of motion)",
        minimum=0,
        maximum=1,
    )
    train_scales: tuple[int, ...] = _data(
        (288, 320, 352, 392, 416, 448, 480, 512), "shorter sides in training, one drawn per clip, in pixels", minimum=16
    )
    crop_scales: tuple[int, ...] = _data(
        (400, 500, 600), "shorter sides before a random crop, for half of the clips; empty: no crops", minimum=1
    )
    crop_range: tuple[int, ...] = _data((384, 600), "least and greatest side of a crop, in pixels", minimum=1, length=2)
    max_size: int = _data(640, "greatest longer side, in pixels", minimum=1)
    eval_size: int = _data(360, "shorter side at inference, in pixels", minimum=16)
    num_workers: int = _data(4, "processes that load data; 0 loads in the main one", minimum=0)

    epochs: int = _train(9, "epochs", minimum=1)
    lr_schedule: str = _train(
        "step",
        "how lr falls: step = to a tenth after the epochs of lr_drop; cosine = to 0 over the whole run",
        choices=("step", "cosine"),
    )
    lr_drop: tuple[int, ...] = _train((6, 8), "epochs after which the rate falls to a tenth", minimum=1)
    lr: float = _train(1e-4, "learning rate of all trained parameters", above=0)
    lr_processes: int = _train(
        4, "number of processes for which lr holds; the rate is scaled by processes / lr_processes", minimum=1
    )
    weight_decay: float = _train(5e-4, "weight decay of AdamW", minimum=0)
    clip_max_norm: float = _train(0.1, "greatest norm of the gradient; 0: no clipping", minimum=0)
    batch_size: int = _train(1, "clips per process that go through the model together", minimum=1)
    accumulate: int = _train(
        1, "batches per optimiser step; N of them give the update of one batch that is N times larger", minimum=1
    )
    precision: str = _train(
        "auto",
        "of frozen weights, matrix products and convolutions: bf16, fp16 (scales the loss), fp32; auto = bf16 where "
        "the hardware computes in it, but fp32 for training on the CPU",
        choices=("auto", "bf16", "fp16", "fp32"),
    )
    gradient_checkpointing: bool = _train(
        False, "compute the UNet's activations again in the backward pass and do not keep them: less memory, more time"
    )
    compile: bool = _train(False, "compile UNet and VAE (torch.compile); where that fails, they run as they are")
    seed: int = _train(42, "seed of everything random", minimum=0, maximum=2**32 - 1)
    max_steps: int = _train(0, "stop after so many optimiser steps; 0: no limit", minimum=0)
    warmup_steps: int = _train(0, "steps over which the rate rises linearly from 0", minimum=0)
    log_every: int = _train(10, "steps between two lines of the log", minimum=1)
    sample_every: int = _train(
        200, "steps between two pictures of a clip just trained on, in TensorBoard and wandb; 0: none", minimum=0
    )
    save_every: int = _train(0, "steps between checkpoints, beside those at the ends of epochs; 0: none", minimum=0)
    save_minutes: float = _train(
        10.0, "minutes after which a checkpoint is written that no other reason has asked for; 0: none", minimum=0
    )
    keep_checkpoints: int = _train(
        3, "how many of the last checkpoints stay; the best one of the validations stays beside them", minimum=1
    )
    patience_minutes: float = _train(
        10.0, "minutes without any progress after which the run ends, and says which process hangs where", above=0
    )
    eval_every: float = _train(
        0.0,
        "epochs between two validations, beside that at the end; parts of an epoch count, such as 0.25; 0: none",
        minimum=0,
    )
    eval_dataset: str = _train(
        "auto", "what is validated in training; auto is dataset_file itself", choices=VALIDATED_NAMES
    )
    eval_metric: str = _train(
        "auto",
        "metric of the validations by which checkpoint_best.pth is chosen, the greatest is best; auto is J&F for sets "
        "of videos, mAP for A2D and JHMDB, oIoU for RefCOCO",
        choices=METRICS,
    )

    config: str = _run("", "YAML file that sets any of these options; flags override it", path=True, empty=True)
    output_dir: str = _run("runs/debug", "folder for everything that is written", path=True)
    device: str = _run("auto", "where to compute; auto is cuda where there is one", choices=("auto", "cpu", "cuda"))
    eval: bool = _run(False, "score the checkpoint that --resume names, and write results.json; nothing is trained")
    resume: str = _run(
        "",
        "checkpoint to go on from, or to use for inference: a file, a folder that holds one, or hf://org/repo; in "
        "training also auto: the newest intact one in output_dir, if any",
        path=True,
        empty=True,
    )
    pretrained_weights: str = _run(
        "",
        "checkpoint whose weights begin a new run: a file, a folder that holds one, or hf://org/repo; also the "
        "authors'. With --resume it is not read",
        path=True,
        empty=True,
    )
    keep_class_heads: bool = _run(False, "take the class heads of pretrained_weights, too; else they are new")
    ignore_frozen_identity: bool = _run(
        False, "accept frozen parts other than those that a checkpoint was trained with"
    )
    wandb: bool = _run(False, "also log to Weights & Biases; its library is installed by you, WANDB_MODE=offline works")
    visualize: bool = _run(False, "also draw masks, boxes and sentences over the frames")
    expressions_per_batch: int = _run(
        4, "sentences of a video that are segmented together; fewer take less memory, masks stay the same", minimum=1
    )
    threshold: float = _run(0.5, "mask probability from which a pixel belongs to the object", minimum=0, maximum=1)
    score_threshold: float = _run(
        0.0,
        "mean score of the chosen query over the clip, below which the sentence names nothing: its masks are empty",
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
    except UserError as error:  # each value is right by itself here, so two of them contradict each other
        raise UserError(f"{error}; see {path} and the flags given" if path else str(error)) from error


def config_dict(config: Config) -> dict[str, Any]:
    """The options as plain values (lists, not tuples), for checkpoints, logs and YAML."""
    values = ((field.name, getattr(config, field.name)) for field in dataclasses.fields(config))
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values}
