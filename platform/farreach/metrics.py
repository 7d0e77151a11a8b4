"""Metrics of a run: TensorBoard for people, JSON lines for programs, rates from counters.

One process writes, the driver; actors hand it their numbers.
"""

from __future__ import annotations

import io
import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from google.protobuf import text_format  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.projector.projector_config_pb2 import EmbeddingInfo, ProjectorConfig

from farreach.disk import atomic_write, cut_torn_line, json_line
from farreach.errors import RunDirectoryError
from farreach.gauges import Gauges
from farreach.rundir import RunDirectory
from farreach.vitals import Vitals
from farreach.watch import Watch

Pixels = NDArray[np.uint8]

FLUSH_S = 10
MAX_SPRITE_PIXELS = 8192  # what the projector accepts on a side
_PROJECTOR_FOLDER = "projector"
_HPARAMS_FOLDER = "hparams"


class MetricsWriter:
    """Writes the metrics of one run to `tensorboard/` and `metrics.jsonl`.

    ```
    with MetricsWriter(run) as metrics:
        metrics.scalars(1000, {"loss/actor": 0.3, "eval/success": 0.5})
    ```
    Names are `group/name`; the step is the run's x axis (such as env steps). Every now and then it
    adds what `vitals.py` measures; a `Watch` looks at all numbers, and Ray's metrics get them.
    """

    def __init__(
        self, run: RunDirectory, purge_step: int | None = None, watch: Watch | None = None
    ) -> None:
        """Open the files for appending.

        Args:
            run: the run to write to.
            purge_step: on resume, the step of the checkpoint: whatever was logged after it will be
                logged again, and is superseded. None for a run that begins at its beginning, which
                supersedes whatever an earlier attempt left behind.
            watch: says what is wrong; by default what is wrong in every workload.
        """
        from torch.utils.tensorboard.writer import SummaryWriter  # workers do without

        self._watch = Watch(run) if watch is None else watch
        self._vitals, self._gauges = Vitals(run.path), Gauges(run)
        self._path = run.metrics_path
        self._tensorboard = run.tensorboard
        cut_torn_line(self._path)
        self._lines = open(self._path, "a")  # noqa: SIM115 (closed by close)
        if purge_step is None and self._lines.tell() > 0:
            purge_step = -1
        # TensorBoard drops what is at or after its purge step, we what is after ours.
        self._writer: Any = SummaryWriter(
            str(self._tensorboard),
            purge_step=None if purge_step is None else purge_step + 1,
            flush_secs=FLUSH_S,
        )
        if purge_step is not None:
            self._append({"event": "resumed", "step": purge_step, "time": time.time()})
            self._purge_embeddings(purge_step)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers; NaN is kept as NaN in TensorBoard and as null in the JSON line."""
        numbers = {name: float(value) for name, value in values.items()} | self._vitals.due()
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        self._append({"step": step, "time": time.time(), **numbers})
        self._watch.look(step, numbers)
        self._gauges.export(step, numbers)

    def histogram(self, step: int, name: str, values: NDArray[Any]) -> None:
        """Log the distribution of an array of any shape; its finite values, if there are any."""
        finite = values[np.isfinite(values)]
        if finite.size:
            self._writer.add_histogram(name, finite, step)

    def figure(self, step: int, name: str, picture: Path | Pixels) -> None:
        """Log a picture: an image file, or (height, width, 3) uint8."""
        if isinstance(picture, Path):
            with Image.open(picture) as image:
                picture = np.asarray(image.convert("RGB"))
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def animation(self, step: int, name: str, path: Path) -> None:
        """Log an animated GIF file, which TensorBoard's image page plays."""
        with Image.open(path) as film:
            width, height = film.size
        # TensorBoard has no films, but it hands an encoded image to the browser as it is.
        encoded = Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes()
        )
        summary = Summary(value=[Summary.Value(tag=name, image=encoded)])
        self._writer.file_writer.add_summary(summary, step)

    def embedding(
        self,
        step: int,
        name: str,
        matrix: NDArray[Any],
        metadata: Sequence[str] | None = None,
        thumbnails: Pixels | None = None,
    ) -> None:
        """Log vectors for TensorBoard's projector.

        Args:
            step: the run's x axis; the projector lists one entry per name and step.
            name: `group/name`.
            matrix: (n, dim).
            metadata: n labels.
            thumbnails: (n, height, width, 3) uint8, shown in place of the points; all of them
                must fit into one square picture of 8192 pixels a side.
        """
        entry = f"{name}:{step}"
        folder = f"{_PROJECTOR_FOLDER}/{name.replace('/', '.')}-{step}"
        info = EmbeddingInfo(tensor_name=entry, tensor_path=f"{folder}/tensors.tsv")
        (self._tensorboard / folder).mkdir(parents=True, exist_ok=True)
        rows = ["\t".join(f"{value:.6g}" for value in row) for row in matrix.tolist()]
        atomic_write(self._tensorboard / info.tensor_path, "\n".join(rows) + "\n")
        if metadata is not None:
            assert len(metadata) == len(matrix)
            info.metadata_path = f"{folder}/metadata.tsv"
            labels = [" ".join(label.split()) for label in metadata]  # one line, one column
            atomic_write(self._tensorboard / info.metadata_path, "\n".join(labels) + "\n")
        if thumbnails is not None:
            assert len(thumbnails) == len(matrix)
            info.sprite.image_path = f"{folder}/sprite.png"
            info.sprite.single_image_dim.extend([thumbnails.shape[2], thumbnails.shape[1]])
            atomic_write(self._tensorboard / info.sprite.image_path, _sprite(thumbnails))
        config = self._projector_config()
        kept = [other for other in config.embeddings if other.tensor_name != entry]
        self._write_projector_config([*kept, info])

    def hparams(self, config: Mapping[str, object], metrics: Mapping[str, float]) -> None:
        """Log the flat config beside the final metrics, for TensorBoard's table of runs."""
        shutil.rmtree(self._tensorboard / _HPARAMS_FOLDER, ignore_errors=True)
        simple = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in config.items()
        }
        finals = {name: float(value) for name, value in metrics.items()}
        self._writer.add_hparams(simple, finals, run_name=_HPARAMS_FOLDER)

    def flush(self) -> None:
        """Hand everything to the file system; called with every checkpoint."""
        self._lines.flush()
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the files; calling it twice does no harm."""
        self._lines.close()
        self._writer.close()

    def __enter__(self) -> MetricsWriter:
        """The writer itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        self.close()

    def _append(self, record: Mapping[str, Any]) -> None:
        self._lines.write(json_line(record) + "\n")
        self._lines.flush()

    def _projector_config(self) -> ProjectorConfig:
        config = ProjectorConfig()
        path = self._tensorboard / "projector_config.pbtxt"
        if path.exists():
            text_format.Parse(path.read_text(), config)
        return config

    def _write_projector_config(self, embeddings: list[EmbeddingInfo]) -> None:
        text = text_format.MessageToString(ProjectorConfig(embeddings=embeddings))
        atomic_write(self._tensorboard / "projector_config.pbtxt", text)

    def _purge_embeddings(self, purge_step: int) -> None:
        kept = []
        for info in self._projector_config().embeddings:
            if int(info.tensor_name.rpartition(":")[2]) <= purge_step:
                kept.append(info)
            else:
                shutil.rmtree((self._tensorboard / info.tensor_path).parent, ignore_errors=True)
        self._write_projector_config(kept)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` that count, in order.

    Lines that a resumed run has logged again are dropped, and so is a half-written last line.
    A null is returned as NaN.

    Raises:
        RunDirectoryError: the file is missing or a line in its middle is damaged.
    """
    try:
        lines = path.read_text().split("\n")
    except FileNotFoundError:
        raise RunDirectoryError(
            f"{path} does not exist: the run has logged no metrics yet."
        ) from None
    records: list[dict[str, Any]] = []
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is torn
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise RunDirectoryError(
                f"{path}:{number}: not a JSON line ({error}). Remove that line to read the others."
            ) from None
        if record.get("event") == "resumed":
            records = [kept for kept in records if kept["step"] <= record["step"]]
        else:
            records.append(
                {key: math.nan if value is None else value for key, value in record.items()}
            )
    return records


class Rates:
    """Counters that are read as rates.

    ```
    rates.add("throughput/env_steps_per_s", 1600)
    metrics.scalars(step, rates.rates())
    ```
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """No counts yet; `clock` returns seconds."""
        self._clock = clock
        self._since = clock()
        self._counts: dict[str, float] = {}

    def add(self, name: str, count: float) -> None:
        """Count something that happened."""
        self._counts[name] = self._counts.get(name, 0.0) + count

    def rates(self) -> dict[str, float]:
        """Counts per second since the last call; a name stays known when nothing happened."""
        now = self._clock()
        elapsed_s = now - self._since
        if elapsed_s <= 0:
            return dict.fromkeys(self._counts, 0.0)
        rates = {name: count / elapsed_s for name, count in self._counts.items()}
        self._since = now
        self._counts = dict.fromkeys(self._counts, 0.0)
        return rates


class Levels:
    """Quantities that hold until they are set again, read as their means over time.

    ```
    levels.set("queue/learner_calls", 2)
    metrics.scalars(step, levels.means())
    ```
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """No quantities yet; `clock` returns seconds."""
        self._clock = clock
        self._levels: dict[str, _Level] = {}

    def set(self, name: str, value: float) -> None:
        """The quantity has this value from now on."""
        now = self._clock()
        level = self._levels.setdefault(name, _Level(value, now, now))
        level.area += level.value * (now - level.set_s)
        level.value, level.set_s = value, now

    def means(self) -> dict[str, float]:
        """Means since the last call; without time in between, the value itself."""
        means = {}
        for name, level in self._levels.items():
            self.set(name, level.value)
            elapsed_s = level.set_s - level.begun_s
            means[name] = level.area / elapsed_s if elapsed_s > 0 else level.value
            level.area, level.begun_s = 0.0, level.set_s
        return means


@dataclass
class _Level:
    """A value since `set_s`, and what it has summed up to since `begun_s`, times seconds."""

    value: float
    begun_s: float
    set_s: float
    area: float = 0.0


def _sprite(thumbnails: Pixels) -> bytes:
    """All thumbnails row by row in one square grid, as PNG."""
    count, height, width, _ = thumbnails.shape
    side = math.ceil(math.sqrt(count))
    assert side * max(height, width) <= MAX_SPRITE_PIXELS, "too many or too large thumbnails"
    grid = np.zeros((side * side, height, width, 3), np.uint8)
    grid[:count] = thumbnails
    # (row, column, height, width, 3) → (row, height, column, width, 3)
    rows = grid.reshape(side, side, height, width, 3).transpose(0, 2, 1, 3, 4)
    png = io.BytesIO()
    Image.fromarray(rows.reshape(side * height, side * width, 3)).save(png, format="PNG")
    return png.getvalue()
