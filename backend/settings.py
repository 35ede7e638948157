"""Every setting of the server, in one object, read once from the environment."""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from pydantic_settings import SettingsError as SourceError

from backend.errors import SettingsError
from sam4mllm.errors import ModelError, TrainingError
from sam4mllm.images import MAX_PIXELS
from sam4mllm.options import (
    MAX_THOUGHT_TOKENS,
    NO_MODEL,
    PATTERN,
    THOUGHT_TOKENS,
    THRESHOLD,
    AskedStrategy,
    DtypeName,
    LookBack,
    Options,
    Pattern,
    Precision,
    QuantizeName,
    check_look_back,
    check_named,
    check_strategy,
    resolve_strategy,
)
from sam4mllm.training.config import Config, read_config

UNASSISTED = 0.12
"""Share of opened tasks that come without a pre-annotation, where runs start by themselves and no share is set.

Held-out pictures come first. Of many pictures a fifth is held out, so this share covers three fifths of those: more than the half from
which the gate may count ties (:mod:`backend.learning.gate`).
"""
PROMPT_NAME = "prompt"
"""The name of the TextArea in which annotators type what to find, if no setting names another one."""
ANSWER_NAME = "answer"
"""The name of a second TextArea, in which an annotator reads what a prompt found."""
DECODE_SECONDS = 6.0
"""CPU seconds that decoding a picture may take by default. A PNG of 50 megapixels of noise takes 2.7 s on one core of a shared machine."""
BUDGET_SECONDS = 7200.0
"""Seconds that the training of a run may take, where its plan sets no budget."""
_IN_PLAN = "write {} into a TOML file that SAM4MLLM_TRAIN_CONFIG names"
GONE = {
    "SAM4MLLM_TRAIN_STEPS": _IN_PLAN.format("steps"),
    "SAM4MLLM_TRAIN_RATE": _IN_PLAN.format("rate"),
    "SAM4MLLM_TRAIN_MINUTES": _IN_PLAN.format("budget_seconds (60 times the minutes)"),
    "SAM4MLLM_REMEMBER_PHRASE": "write the phrase into the tasks' data",
    "SAM4MLLM_SHOW_PROMPTS": "`sam4mllm predict --out` draws box and points",
}
"""Variables of earlier releases, and what to do instead of each."""
PARTICIPANT = re.compile(r"(?:project|reviewer):[0-9]{1,18}")
"""The form of an entry of ``leave_out``, which names a project or a reviewer by id: ``project:3``, ``reviewer:7``."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(BaseSettings):
    """``SAM4MLLM_<NAME>`` in the environment sets ``<name>``; Label Studio's own two have no prefix."""

    model_config = SettingsConfigDict(env_prefix="SAM4MLLM_", extra="ignore", frozen=True, populate_by_name=True)

    model: str = Field("demo", description="MLLM: `demo`, a checkpoint folder, a hub id, or `none` ([docs](docs/which.md))")
    engine: str = Field(
        "",
        description="`http://host:port` of a vLLM server that has the MLLM in this one's stead ([docs](docs/scale.md#an-engine))",
    )
    segmenter: str = Field(
        "demo",
        description="`demo`, `vit_b|vit_l|vit_h:PATH`, `efficientvit-sam-xl1:PATH`, or a checkpoint folder or hub id "
        "([docs](docs/segmenters.md))",
    )
    device: str | None = Field(None, description="`cpu`, `cuda`, `cuda:1`…; a GPU if there is one")
    dtype: DtypeName = Field("auto", description="numbers of the MLLM: `bf16`, `fp16`, `fp32`; `auto`: `bf16` on a GPU, `fp32` on a CPU")
    quantize: QuantizeName = Field("none", description="`8bit` or `4bit` weights of the MLLM's language model; needs the extra `quant`")
    plan: Literal["none", "auto"] = Field(
        "none",
        description="`auto`: `serve` takes the quantisation and training mode that fit the GPU, where none is set ([docs](docs/models.md))",
    )
    device_map: Literal["auto"] | None = Field(None, description="`auto`: spread an MLLM that no GPU holds alone over all of them")
    strategy: AskedStrategy = Field(
        "auto",
        description="`box`, `ppg`, `pqpp`, `reason`, `concept`, `choose` ([docs](docs/which.md)) or another package's; `auto`: what the "
        "adapter has learned, `box` for a model without one ([docs](docs/points.md)), `concept` without a model",
    )
    points: Literal["packed", "joint"] | None = Field(
        None,
        description="points asked each on its own (`packed`), or in one answer as published (`joint`); if unset the adapter's way",
    )
    pattern: Pattern = Field(
        PATTERN, description="where points fall: `spread`, `interior`, `unsure` or `second-look` ([docs](docs/points.md))"
    )
    threshold: float = Field(
        THRESHOLD, ge=0, le=1, description="with strategy `concept` or `choose`: the least score of what the segmenter finds by the phrase"
    )
    thought_tokens: int = Field(
        THOUGHT_TOKENS,
        ge=1,
        le=MAX_THOUGHT_TOKENS,
        description="with strategy `reason`, tokens after which a thought is cut off and the answer asked for "
        "([docs](docs/points.md#a-thought-before-the-answer))",
    )
    look_back: LookBack = Field(
        "off",
        description="`score`: the model is shown each mask's outline and asked if that is what the phrase means, which tells right masks "
        "from wrong ones; `drop`: what it denies is left out, too ([docs](docs/points.md#the-look-back))",
    )
    former_mask: bool = Field(
        True,
        description="a click shows the segmenter the mask that it corrects, too, if it takes one: SAM and its kin do "
        "([docs](docs/points.md#the-former-mask-as-input))",
    )
    home: Path = Field(Path("~/.local/share/sam4mllm"), description="folder for all that is kept: events, versions")
    host: str = Field("127.0.0.1", description="address to listen on; any but loopback needs a password and a webhook secret")
    port: int = Field(9090, ge=1, le=65535, description="port to listen on")
    url: str = Field("", description="this server as Label Studio reaches it, for `connect` and `doctor`")
    queue: int = Field(
        16, ge=1, le=256, description="batch requests, and as many interactive ones, that may wait or run at once; more are answered 503"
    )
    deadline: float = Field(85.0, gt=0, le=95, description="seconds in which a request is answered; Label Studio gives up after 100")
    cache_mb: int = Field(1024, ge=0, description="memory for images taken in, and a quarter of it for answers")
    max_pixels: int = Field(MAX_PIXELS, ge=64, le=89_000_000, description="largest image that is decoded")
    decode_seconds: float = Field(DECODE_SECONDS, gt=0, le=60, description="CPU seconds that decoding an image may take")
    max_image_mb: int = Field(64, ge=1, le=1024, description="largest image file that is fetched")
    max_body_mb: int = Field(64, ge=1, le=1024, description="largest request of tasks, or event, that is read; masks make them large")
    allow_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="further image hosts, comma-separated: `images.example.com` (public addresses only) or `http://minio:9000` "
        "(an origin trusted as it is, private too)",
    )
    phrase_field: str = Field("description", description="where a task's data holds its phrase: a key, or a path as `meta.text`")
    prompt_control: str = Field(
        PROMPT_NAME, description="the name of the `TextArea` in which annotators type what to find; no other is read"
    )
    train_after: int = Field(0, ge=0, description="new corrections after which a run starts by itself; 0: only when it is asked for")
    train_mode: str = Field(
        "beside",
        pattern=r"^(beside|pause|device:[0-9]+)$",
        description="`beside`: on the same device, while serving goes on; `device:1`: on another GPU; `pause`: serving stops while a run "
        "trains",
    )
    train_config: str = Field(
        "",
        description="how a run trains: `demo`, `server`, `default`, `paper`, `released`, or a file as for `sam4mllm train --config` "
        "([docs](docs/training.md)); if unset `demo` for the demo model, else `server`; without `budget_seconds` a plan gets two hours",
    )
    replay: Path | None = Field(None, description="dataset that is mixed in so that the model keeps what it knows; demo scenes for `demo`")
    golden: Path | None = Field(None, description="dataset on which no version may get worse; 200 demo scenes if unset")
    unassisted: float | None = Field(
        None,
        ge=0,
        le=0.5,
        description="share of tasks opened without a pre-annotation, held-out pictures first; 0.12 if runs start by themselves, else 0",
    )
    leave_out: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="projects and reviewers whose corrections teach nothing, comma-separated: `project:3`, `reviewer:7`"
    )
    renamed: dict[int, dict[str, str]] = Field(
        {},
        description='what labels are called now, by project, where that cannot be followed: `{"3": {"Cup": "Mug"}}` '
        "([docs](docs/first-retraining.md#labels-that-are-renamed))",
    )
    reconcile_minutes: float = Field(10.0, gt=0, description="minutes between two looks at Label Studio's API for what webhooks missed")
    refresh: bool = Field(
        False, description="after a promotion, name the backend in Label Studio after the version and delete the former one's predictions"
    )
    log: Literal["text", "json"] = Field("text", description="lines of the log as text, or as JSON objects with the request's id")
    auth_user: str = Field("sam4mllm", description="user name of the password")
    auth_password: SecretStr = Field(SecretStr(""), description="password (HTTP Basic) of all routes but `/health` and the webhook")
    webhook_secret: SecretStr = Field(
        SecretStr(""), description="asked of webhooks (or the password): header `X-Webhook-Secret`, or the path `/webhook/<secret>`"
    )
    label_studio_url: str = Field("", validation_alias="LABEL_STUDIO_URL", description="Label Studio as this server reaches it")
    label_studio_api_key: SecretStr = Field(
        SecretStr(""), validation_alias="LABEL_STUDIO_API_KEY", description="legacy token or personal access token"
    )

    @field_validator("leave_out")
    @classmethod
    def _participants(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not PARTICIPANT.fullmatch(name):
                raise ValueError(f"{name[:40]!r} is neither a project nor a reviewer; write project:3 or reviewer:7")
        return value

    @field_validator("allow_hosts", "leave_out", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("prompt_control")
    @classmethod
    def _keep_apart(cls, value: str) -> str:
        if value in ("", ANSWER_NAME):
            raise ValueError(f"it must name the TextArea that is typed into; {ANSWER_NAME!r} is the one that shows answers")
        return value

    @field_validator("strategy")
    @classmethod
    def _named(cls, value: str) -> str:
        return check_named(value)

    @field_validator("home")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()

    @field_validator("label_studio_url", "url", "engine")
    @classmethod
    def _tidy(cls, value: str) -> str:
        if value and not value.startswith(("http://", "https://")):
            raise ValueError("it must start with http:// or https://")
        if "@" in value:
            raise ValueError("it must not hold a user name or password; those have settings of their own")
        return value.rstrip("/")

    @property
    def unassisted_share(self) -> float:
        """Share of opened tasks that come without a pre-annotation: what reviewers draw there is not anchored on a predicted mask."""
        return self.unassisted if self.unassisted is not None else UNASSISTED if self.train_after else 0.0

    @property
    def train_device(self) -> str | None:
        """The device of the training process; None: a GPU if there is one."""
        number = self.train_mode.removeprefix("device:")
        return self.device if number == self.train_mode else f"cuda:{number}"

    @property
    def options(self) -> Options:
        """How the MLLM is asked, in serving as in the comparison of versions."""
        joint = None if self.points is None else self.points == "joint"
        return Options(
            self.strategy,
            joint,
            pattern=self.pattern,
            threshold=self.threshold,
            thought_tokens=self.thought_tokens,
            former_mask=self.former_mask,
            look_back=self.look_back,
        )

    @property
    def has_model(self) -> bool:
        """Whether there is an MLLM."""
        return self.model != NO_MODEL

    @property
    def untrained(self) -> str:
        """Why no run trains a LoRA here, in one line; empty if runs do."""
        if self.has_model and self.strategy != "concept":
            return ""
        why = "strategy concept asks none" if self.has_model else "the model is none"
        return f"no LoRA is trained: it changes an MLLM, and {why}; reviews are kept, and the score goes on learning from them"

    @cached_property
    def training(self) -> Config:
        """How a run trains; the file is read once. A plan without a budget gets BUDGET_SECONDS. Raises TrainingError."""
        config = read_config(self.train_config or ("demo" if self.model == "demo" else "server"))
        if math.isinf(config.plan.budget_seconds):  # a process that hangs must not hold up all later runs
            return replace(config, plan=replace(config.plan, budget_seconds=BUDGET_SECONDS))
        return config

    @property
    def precision(self) -> Precision:
        """The MLLM's number format, quantisation and device map, in serving as in training."""
        return Precision(self.dtype, self.quantize, self.device_map)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The passwords and keys that are set; no line of the log may hold one."""
        kept = (self.auth_password, self.webhook_secret, self.label_studio_api_key)
        return tuple(secret.get_secret_value() for secret in kept if secret.get_secret_value())

    def lines(self) -> list[str]:
        """One line a setting, secrets masked, for the log."""
        return [f"{name} = {value}" for name, value in self.model_dump().items()]


def read_settings() -> Settings:
    """The settings of the environment.

    Raises SettingsError, with one line that names the variable: a value cannot be used or does not go with the others, a variable of
    an earlier release (GONE) is set, or the server would listen beyond loopback without a password or a webhook secret.
    """
    for variable, instead in GONE.items():
        if variable in os.environ:
            raise SettingsError(f"{variable} is gone: unset it; {instead}")
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        variable = name if name.isupper() else f"SAM4MLLM_{name.upper()}"
        raise SettingsError(f"{variable}: {first['msg'].removeprefix('Value error, ')}") from error
    except SourceError as error:
        raise SettingsError('SAM4MLLM_RENAMED is no JSON; write {"3": {"Cup": "Mug"}}') from error
    try:
        _ = settings.training
    except TrainingError as error:
        raise SettingsError(f"SAM4MLLM_TRAIN_CONFIG: {error}") from error
    _check_models(settings)
    if settings.host not in LOOPBACK:
        for secret, variable in ((settings.auth_password, "SAM4MLLM_AUTH_PASSWORD"), (settings.webhook_secret, "SAM4MLLM_WEBHOOK_SECRET")):
            if not secret.get_secret_value():
                raise SettingsError(f"SAM4MLLM_HOST={settings.host} is open to others: set {variable}, or listen on 127.0.0.1")
    return settings


def _check_models(settings: Settings) -> None:
    """Raise SettingsError if the strategy, the look back, the engine or the training mode does not go with the models of the settings."""
    strategy = resolve_strategy(settings.strategy, demo=False, has_adapter=False, has_model=settings.has_model)
    try:
        check_strategy(strategy, has_model=settings.has_model, takes_phrases=True)  # the segmenter is checked when it is loaded
    except ModelError as error:
        raise SettingsError(f"SAM4MLLM_STRATEGY: {error}") from error
    try:
        check_look_back(settings.look_back, has_model=settings.has_model)
    except ModelError as error:
        raise SettingsError(f"SAM4MLLM_LOOK_BACK: {error}") from error
    if settings.engine and not settings.has_model:
        raise SettingsError("SAM4MLLM_ENGINE serves an MLLM, and SAM4MLLM_MODEL is none; unset one of them")
    if settings.engine and settings.train_mode == "pause":
        raise SettingsError("SAM4MLLM_TRAIN_MODE=pause cannot stop an engine; use beside, or device:N for another GPU")
    if settings.device_map is not None and settings.train_mode == "pause":
        raise SettingsError("SAM4MLLM_TRAIN_MODE=pause cannot move a model that SAM4MLLM_DEVICE_MAP=auto has spread; use beside")
