"""Types and ranges of a run's settings and of what its report says, in one place. PyTorch is not needed."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

ONE_LINE = r"^[^\x00-\x1f\x7f]+$"
FOLDER = r"^[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*$"
DEVICE = r"^(auto|cpu|cuda(:\d{1,2})?)$"
DOTTED = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$"

PATTERNS = {
    ONE_LINE: "text on one line",
    FOLDER: "a folder's name, without / and leading dot",
    DOTTED: "the dotted name of a class, such as gcond.strategy.PCGrad",
    DEVICE: "auto, cpu, cuda or cuda:N",
}

Text = Annotated[str, Field(pattern=ONE_LINE)]
Name = Annotated[str, Field(pattern=FOLDER, max_length=200)]
Device = Annotated[str, Field(pattern=DEVICE)]
Dotted = Annotated[str, Field(pattern=DOTTED)]
Count = Annotated[int, Field(ge=1, le=10**9)]
EvenCount = Annotated[int, Field(ge=0, le=10**6, multiple_of=2)]
Side = Annotated[int, Field(ge=1, le=4096)]
Images = Annotated[int, Field(ge=1, le=10**5)]
Rate = Annotated[float, Field(gt=0, le=1000)]
Lambda = Annotated[float, Field(ge=0, le=1e6)]


class Section(BaseModel):
    """Integers are integers, booleans are booleans, numbers are finite, and no other keys are allowed."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Part(Section):
    """What is built by its `_target_`, whose own signature says what else may stand here (gcond.config)."""

    model_config = ConfigDict(extra="allow")
    target: Dotted = Field(alias="_target_")


class Dataset(Part):
    name: Name


class Model(Part):
    name: Name
    width: Annotated[int, Field(ge=1, le=2**16)] = 256
    depth: Annotated[int, Field(ge=0, le=1000)] = 2
    heads: Annotated[int, Field(ge=1, le=2**16)] = 8


class Loss(Section):
    tasks: dict[str, Lambda]
    reconstruction: Part
    labels: Literal["rotation", "dataset"] | None = None  # where the loss has a task that needs them


class Scale(Section):
    name: Name
    image_size: Side
    patch_size: Side
    mask_ratio: Annotated[float, Field(gt=0, lt=1)]
    micro_batch: Images
    accumulation_steps: Images
    epochs: Count
    steps_per_epoch: Count | None
    warmup_epochs: Annotated[float, Field(ge=0, le=1e9)]
    lr: Rate
    final_lr: Annotated[float, Field(ge=0, le=1000)]
    eval_images: Count | None
    curve_images: Count | None = None
    diagnose_every: Count
    probe_micro_batches: EvenCount
    workers: Annotated[int, Field(ge=0, le=256)]


class Optimizer(Section):
    lr: Rate
    build: Part


class Conductor(Part):
    estimator: Part
    resolver: Part
    update: Part


class Strategy(Section):
    name: Name
    label: Text
    lr_scale: Rate
    model_mode: Literal["train", "eval"]
    conductor: Conductor


class Reconstructions(Section):
    images: Annotated[int, Field(ge=0, le=1000)] = 4
    patients: bool = False


class Config(Section):
    """conf/train.yaml with its groups. What a run's config.yaml leaves out has a default here."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    precision: Literal["fp32", "bf16", "fp16"]
    compile: bool
    nonfinite: Literal["raise", "skip"]
    arbitration: Literal["once", "per_rank"]
    threads: Annotated[int, Field(ge=1, le=256)]
    device: Device = "auto"
    paths: dict[str, Text | None] = {}  # of any data set
    runs: Text = "runs"
    recorded: Text | None = None
    name: Name | None = None
    checkpoint_minutes: Annotated[float, Field(gt=0, le=1e6)] = 10
    finished_keeps: Literal["weights", "checkpoints"] = "weights"
    reconstructions: Reconstructions = Reconstructions()
    progress: Literal["auto", "bar", "lines", "quiet"] = "auto"
    logger: Part | None = None
    dataset: Dataset
    model: Model
    loss: Loss
    scale: Scale
    optimizer: Optimizer
    strategy: Strategy


class Scores(Section):
    """Of an epoch: numbers by name, null where one is not defined."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]
    epoch: int
    step: int | None = None


class Report(Section):
    """report.json, as far as anybody computes with it."""

    model_config = ConfigDict(extra="allow")
    version: Literal[1] = Field(alias="schema")
    status: Literal["done", "failed"]
    seed: int | None = None
    data_checksum: str | dict[str, str] | None = None
    intensity: dict[str, float | list[float]] | None = None  # how images are normalised
    steps: int | None = None
    epochs: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_mb: float | None = None
    tasks: dict[str, float] = {}
    trivial: dict[str, dict[str, float]] = {}
    validation: list[Scores] = []
    final: dict[str, Scores] = {}  # best and last: of the whole of validation and test


Numbers = dict[str, float | None]


class Logged(Section):
    """A line of metrics.jsonl: numbers by name, of groups (patients, classes) one level deeper."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Numbers | float | None] | float | None]
    kind: Literal["step", "validation", "probe", "activations", "final", "groups"]
    step: int
    epoch: int | None = None
    at: str | None = None
    split: str | None = None


CONFIG, REPORT, LOG = TypeAdapter(Config), TypeAdapter(Report), TypeAdapter(Logged)
SECTIONS: dict[str, type[Section]] = {"": Config, "loss": Loss, "scale": Scale, "optimizer": Optimizer}
SECTIONS |= {"strategy": Strategy, "reconstructions": Reconstructions}


def check(cfg: DictConfig) -> None:
    """Raise ValueError that names each key of a run's config which is unknown, absent, or out of its type or range."""
    try:
        content: Any = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ValueError(f"the config cannot be read: {' '.join(str(error).split())}") from None
    validate(CONFIG, content)
    scale, estimator = content["scale"], content["strategy"]["conductor"]["estimator"]
    if scale["image_size"] % scale["patch_size"]:
        expected = f"a multiple of {scale['patch_size']}"
        raise ValueError(f"`scale.image_size`: expected {expected}, found {scale['image_size']}")
    for name, place, key in (
        ("image_size", content["dataset"], "dataset"),
        ("image_size", content["model"], "model"),
        ("patch_size", content["model"], "model"),
        ("accumulation_steps", estimator, "strategy.conductor.estimator"),
    ):
        if (found := place.get(name, scale[name])) != scale[name]:
            raise ValueError(f"`{key}.{name}`: expected {scale[name]}, as `scale.{name}` says, found {_shown(found)}")


def validate(kind: TypeAdapter[Any], content: Any, key: str = "") -> Any:
    """`content` as `kind`. Raises ValueError that says of each key below `key` what is expected there and what is."""
    try:
        text = json.dumps(content, default=repr, ensure_ascii=False)  # in JSON a list may stand for a tuple
        return kind.validate_json(text.encode("utf-8", "replace"))  # half a surrogate pair is no UTF-8
    except ValidationError as error:
        alternatives: dict[tuple[str, str], list[str]] = {}  # of a union, what each of its members expects
        for problem in error.errors():
            where, expected, found = _problem(problem, content, key)
            alternatives.setdefault((where, found), []).append(expected)
        said = []
        for (where, found), each in alternatives.items():
            said.append(f"`{where}`: expected {' or '.join(each)}, found {found}" if found else f"`{where}`: {each[0]}")
        raise ValueError("; ".join(said)) from None


def _problem(problem: ErrorDetails, content: Any, key: str) -> tuple[str, str, str]:
    """The full key, what is expected there, and what is found; "" where there may be nothing."""
    place: list[str] = []
    for part in problem["loc"]:  # as far as there are such keys: Pydantic appends the type that it tried
        keys = content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
        inside = part in keys
        if not inside and problem["type"] != "missing":
            break
        place.append(str(part))
        content = content[part] if inside else None
    name = ".".join([key, *place] if key else place)
    if problem["type"] == "missing":
        return name, "a value", "none"
    if problem["type"] == "extra_forbidden":
        section = SECTIONS[place[-2] if len(place) > 1 else ""]
        return name, f"there is no such setting; expected one of {', '.join(section.model_fields)}", ""
    expected = PATTERNS.get(problem.get("ctx", {}).get("pattern", ""), problem["msg"].removeprefix("Input should be "))
    return name, expected, _shown(problem["input"])


def _shown(value: Any) -> str:
    """As it is written in YAML, cut short."""
    text = {None: "null", True: "true", False: "false"}.get(value) if isinstance(value, bool | None) else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
