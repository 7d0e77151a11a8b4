"""Settings of dense retrieval: every default is stated here, once."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from farreach.actors.chaos import ChaosConfig
from farreach.config import Config
from farreach.data.fetched import absolute, local
from farreach.learn.settings import LoopConfig, WorkersConfig
from farreach_workloads.retrieval.contrast import ContrastConfig, MocoConfig
from farreach_workloads.retrieval.encoder import EncoderConfig, whole_path
from farreach_workloads.retrieval.sampler import MixConfig
from farreach_workloads.retrieval.spans import SpansConfig


class TextConfig(Config):
    """Raw text to learn from, and the word pieces that it is cut into."""

    path: str | dict[str, str] | None = None
    """A file or a folder (text with a document a line, JSON lines, Parquet, TSV, BEIR), or several
    by name, which are mixed. None: the extract of Debian's package descriptions that is shipped."""
    words: str | None = None
    """Folder with tokenizer.json or vocab.txt. None: that of `encoder.path`, or word pieces are
    trained on the text."""
    vocabulary: int = Field(30_522, ge=10)
    """Word pieces that are trained."""
    kind: Literal["wordpiece", "unigram"] = "wordpiece"
    """How they are trained."""
    lower: bool = True
    """Whether trained ones are of lower-cased text without accents."""
    normalised: bool = False
    """Bring hyphens, quotation marks and the like into one form first."""
    cache: str = "runs/cache"
    """Folder in which tokens and trained word pieces are kept; machines that do not share it make
    their own."""
    workers: int = Field(0, ge=0)
    """Ray tasks that tokenise side by side; 0: this process does it."""

    _whole = field_validator("words")(whole_path)
    _on_this_machine = field_validator("cache")(local)

    @field_validator("path")
    @classmethod
    def _whole_paths(cls, path: str | dict[str, str] | None) -> str | dict[str, str] | None:
        if isinstance(path, dict):
            return {name: absolute(one) for name, one in path.items()}
        return whole_path(path)


class RetrievalOptimizerConfig(Config):
    """How the weights move; the defaults are Contriever's."""

    kind: Literal["adamw", "asam"] = "adamw"
    """asam: AdamW with the gradient where the loss is highest nearby (arXiv:2102.11600)."""
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    """Of all weights, norms and biases included."""
    radius: float = Field(0.5, gt=0)
    """Of asam: how far nearby is, in units of the weights' own sizes (ρ)."""
    floor: float = Field(0.01, ge=0)
    """Of asam: what is added to the sizes of the weights (η)."""


class RetrievalLoopConfig(LoopConfig):
    """How long to train, and how often to look."""

    epochs: float = Field(500.0, gt=0)
    epoch_updates: int = Field(1000, ge=1)
    """Updates that are called an epoch, since text is drawn with replacement."""
    batch: int = Field(2048, ge=1)
    """Pairs per update, of all workers together."""
    lr: float = Field(5e-5, gt=0)
    warmup_epochs: float = Field(20.0, ge=0)
    warmup_lr: float = Field(0.0, ge=0)
    min_lr: float = Field(0.0, ge=0)
    schedule: Literal["cosine", "whole_cosine", "linear", "warmup_linear", "steps"] = (
        "warmup_linear"
    )


class ProbeConfig(Config):
    """What is searched while training."""

    path: str | None = None
    """Folder in the layout of BEIR. None: that of the shipped extract, or of the text if it is such
    a folder."""
    split: str = "dev"
    """Of the judgements; where there is none of that name, that on which results are published."""
    others: dict[str, str] = Field({})
    """Further folders in the layout of BEIR, by names under which their measures are shown."""
    documents: int = Field(4000, ge=1)
    """Documents that are searched, at most; those that answer a question are among them."""
    queries: int = Field(500, ge=1)
    """Questions, at most."""
    longest: int = Field(512, ge=3)
    """Tokens of a text, at most."""

    _whole = field_validator("path")(whole_path)

    @field_validator("others")
    @classmethod
    def _whole_others(cls, others: dict[str, str]) -> dict[str, str]:
        return {name: absolute(path) for name, path in others.items()}


class RetrievalWorkersConfig(WorkersConfig):
    """Where the loop runs, and who encodes keys for it."""

    key_encoders: int = Field(0, ge=0)
    """Actors that encode the keys of later updates while workers train, each with as many CPUs and
    GPUs as a worker; see `contrast.ahead`."""


class RetrievalConfig(Config):
    """A run of pretraining."""

    RESUMABLE: ClassVar[frozenset[str]] = frozenset(
        {"name", "training", "runtime", "probe", "chaos"}
    )
    """Sections that may change when a run is resumed."""

    name: str = "retrieval"
    preset: Literal["contriever", "mcontriever", "ablation"] | None = "contriever"
    """The run of the paper whose settings this one's are compared with: it says where they differ.
    None: it is compared with none."""
    seed: int = Field(0, ge=0)
    data: TextConfig = TextConfig()
    mix: MixConfig = MixConfig()
    spans: SpansConfig = SpansConfig()
    encoder: EncoderConfig = EncoderConfig()
    contrast: ContrastConfig = MocoConfig()
    optimizer: RetrievalOptimizerConfig = RetrievalOptimizerConfig()
    probe: ProbeConfig = ProbeConfig()
    training: RetrievalLoopConfig = RetrievalLoopConfig()
    runtime: RetrievalWorkersConfig = RetrievalWorkersConfig()
    chaos: ChaosConfig = ChaosConfig()

    @model_validator(mode="after")
    def _is_sound(self) -> RetrievalConfig:
        needed = self.spans.positions
        if needed > self.encoder.positions and self.encoder.path is None:
            raise ValueError(
                f"encoder.positions: {self.encoder.positions} are fewer than a span of "
                f"{needed - 2} tokens needs with [CLS] and [SEP]. Raise it, or lower spans.chunk"
            )
        workers = max(1, self.runtime.workers)
        in_parts = self.training.part is not None and self.training.part * workers < (
            self.training.batch
        )
        if self.contrast.kind == "in_batch" and in_parts:
            raise ValueError(
                "training.part: the pairs of a batch are compared with one another. Set "
                "contrast.chunk, which gives the whole batch's gradient"
            )
        part = self.training.part or self.training.batch
        is_shared = self.contrast.kind == "moco" and self.contrast.sharded
        if is_shared and in_parts and self.training.batch % (part * workers):
            raise ValueError(
                f"training.part: parts of {part} on {workers} workers are not equally many on each "
                f"for a batch of {self.training.batch}, and with contrast.sharded all workers "
                "compute each together. Choose a batch that they divide"
            )
        if self.contrast.kind == "in_batch" and self.training.batch < 2:
            raise ValueError(
                "training.batch: a pair alone has nothing to be told apart from. Set it to 2 or "
                "more, best to hundreds"
            )
        self._check_keys()
        if self.optimizer.kind == "asam" and self.contrast.kind == "moco":
            raise ValueError(
                "optimizer.kind: asam passes twice over a batch, whose keys would join the queue "
                "twice. Take adamw, or contrast.kind=in_batch"
            )
        return self

    def _check_keys(self) -> None:
        """Keys that are encoded ahead need who encodes them, and the other way round."""
        ahead = self.contrast.ahead if self.contrast.kind == "moco" else 0
        encoders, workers = self.runtime.key_encoders, self.runtime.workers
        if encoders and not ahead:
            raise ValueError(
                "runtime.key_encoders: encode keys ahead of time, which contrast.ahead=0 and other "
                "kinds of contrast don't want. Set contrast.ahead, or leave key_encoders out"
            )
        if encoders and not workers:
            raise ValueError(
                "runtime.key_encoders: are beside workers of Ray Train, and runtime.workers is 0, "
                "which trains without Ray. Set runtime.workers to 1 or more"
            )
        if ahead and workers and not encoders:
            raise ValueError(
                "runtime.key_encoders: contrast.ahead has keys encoded beside the workers. Set it "
                "to 1 or more"
            )
