"""Tables of a run's and of a cluster's status."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from farreach.progress import duration, number
from farreach.status.cluster import ClusterStatus
from farreach.status.run import Noted, Part, RunStatus
from farreach.status.source import Status

EVENTS_SHOWN = 6
PARTS_SHOWN = 24
LINE = 120
# Fields of events that are shown otherwise, or stand in the table of parts.
PLAIN = ("event", "time", "nodes", "node", "pid", "host")
STYLES = {
    "running": "green",
    "alive": "green",
    "ALIVE": "green",
    "finished": "green",
    "SUCCEEDED": "green",
    "dead": "bold red",
    "DEAD": "red",
    "died": "bold red",
    "failed": "bold red",
    "FAILED": "bold red",
    "stopped": "yellow",
    "aborted": "yellow",
    "RESTARTING": "yellow",
    "PENDING_CREATION": "yellow",
}
# Metrics of the first line, in this order; the others of their groups follow.
FIRST = ("throughput/env_steps_per_s", "throughput/updates_per_s", "throughput/samples_per_s")
# Shown elsewhere, or of no interest from moment to moment.
LEFT_OUT = ("training/share", "training/updates", "training/env_steps")


def view(status: Status) -> RenderableType:
    """Everything about a run or a cluster, for a terminal."""
    return run_view(status) if isinstance(status, RunStatus) else cluster_view(status)


def run_view(status: RunStatus) -> RenderableType:
    """Everything about a run, for a terminal."""
    shown: list[RenderableType] = [_head(status)]
    if status.parts:
        shown.append(_parts(status.parts))
    if status.levels or status.learning:
        shown.append(_numbers(status))
    shown.append(_kept(status))
    if status.events:
        shown.append(_events(status.events))
    shown += [Text(f"doctor    {line}", style="bold yellow") for line in status.doctor]
    return Group(*shown)


def _head(status: RunStatus) -> Text:
    text = Text(f"{status.path}  {status.workload}  ")
    text.append(status.state, STYLES.get(status.state, ""))
    text.append(f" {status.detail}" if status.detail and status.state != "failed" else "")
    if status.state == "running":
        text.append(f" for {duration(status.begun_s)}")
    parts = []
    if status.share is not None:
        parts.append(f"{100 * status.share:.1f}%")
    if status.step is not None:
        parts.append(f"step {status.step:,}")
    if status.eta_s is not None:
        parts.append(f"ETA {duration(status.eta_s)}")
    return text.append("\n" + "  ".join(parts)) if parts else text


def _parts(parts: tuple[Part, ...]) -> Table:
    """The processes; of many rollouts or workers those that are not alive come first."""
    table = _table("part", "pid", "host", "state", "restarts", "busy")
    troubled = [part for part in parts if part.state == "dead" or part.restarts]
    ordered = [*troubled, *(part for part in parts if part not in troubled)]
    shown = parts if len(parts) <= PARTS_SHOWN else tuple(ordered[:PARTS_SHOWN])
    for part in shown:
        table.add_row(
            part.role,
            "" if part.pid is None else str(part.pid),
            part.host or "",
            Text(part.state, STYLES.get(part.state, "")),
            str(part.restarts) if part.restarts else "",
            "" if part.busy is None else f"{part.busy:.0%}",
        )
    if len(shown) < len(parts):
        table.add_row(f"… {len(parts) - len(shown)} more", "", "", "", "", "")
    return table


def _numbers(status: RunStatus) -> Table:
    """How the run goes, three to a row."""
    known = status.levels
    names = [name for name in FIRST if name in known]
    names += [name for name in known if name not in FIRST and name not in LEFT_OUT]
    cells = [(_label(name), _value(name, known[name])) for name in names]
    cells += [(_label(name), number(value)) for name, value in status.learning.items()]
    table = Table.grid(padding=(0, 2))
    for begin in range(0, len(cells), 3):
        row = [word for cell in cells[begin : begin + 3] for word in cell]
        table.add_row(*row, *[""] * (6 - len(row)))
    return table


def _label(name: str) -> str:
    group, _, rest = name.partition("/")
    plain = rest.replace("_per_s", "/s").replace("_share", "").replace("_", " ")
    return plain if group == "throughput" else f"{group} {plain}"


def _value(name: str, value: float) -> str:
    return f"{value:.0%}" if name.endswith("_share") else number(value)


def _kept(status: RunStatus) -> Text:
    lines = [
        f"checkpoint  {_noted(status.checkpoint)}",
        f"evaluation  {_noted(status.evaluation)}",
    ]
    return Text("\n".join(lines))


def _noted(noted: Noted | None) -> str:
    if noted is None:
        return "none yet"
    step = "" if noted.step is None else f" at step {noted.step:,}"
    name = noted.name if noted.name != "evaluation" else ""
    values = ", ".join(
        f"{metric.partition('/')[2]} {number(value)}"
        for metric, value in list(noted.values.items())[:4]
    )
    said = f"{name}{step}, {duration(noted.age_s)} ago".strip(" ,")
    return f"{said}: {values}" if values else said


def _events(events: tuple[Mapping[str, Any], ...]) -> Text:
    """The newest; of checkpoints in a row, which come often, only the last."""
    pairs = zip(events, [*events[1:], {}], strict=True)
    kept = [a for a, b in pairs if not a.get("event") == b.get("event") == "checkpoint"]
    lines = []
    for event in kept[-EVENTS_SHOWN:]:
        moment = datetime.fromtimestamp(float(event.get("time", 0.0))).strftime("%H:%M:%S")
        fields = [(key, _field(value)) for key, value in event.items() if key not in PLAIN]
        rest = ", ".join(f"{key} {text}" for key, text in fields if text)
        lines.append(f"{moment}  {event.get('event')}  {rest}"[:LINE])
    return Text("\n".join(lines), style="dim")


def _field(value: Any) -> str:
    """A field of an event in a word or a few; empty for what is long or says nothing."""
    if isinstance(value, Mapping):
        return " ".join(value)
    if isinstance(value, list):
        return " ".join(value) if all(isinstance(item, str) for item in value) else ""
    return "" if value is None else str(value)


def cluster_view(status: ClusterStatus) -> RenderableType:
    """Everything about a cluster, for a terminal."""
    alive = sum(node.state == "ALIVE" for node in status.nodes)
    head = f"cluster at {status.address}: {alive} of {len(status.nodes)} machines"
    shown: list[RenderableType] = [Text(head), _resources(status), _nodes(status)]
    if status.actors:
        table = _table("actors", "state", "count", "restarts")
        for group in status.actors:
            state = Text(group.state, STYLES.get(group.state, ""))
            restarts = str(group.restarts) if group.restarts else ""
            table.add_row(group.name, state, str(group.number), restarts)
        shown.append(table)
    if status.jobs is not None:
        table = _table("job", "status", "age", "entrypoint")
        for job in status.jobs:
            age = duration(time.time() - job.begun_s) if job.begun_s else ""
            table.add_row(job.name, Text(job.status, STYLES.get(job.status, "")), age, job.command)
        shown.append(table if status.jobs else Text("no jobs"))
    shown += [Text(f"doctor    {line}", style="bold yellow") for line in status.doctor]
    return Group(*shown)


def _resources(status: ClusterStatus) -> Table:
    table = _table("resource", "used", "of")
    for name, (used, total) in status.resources.items():
        show = (lambda v: f"{v / 1e9:.1f} GB") if "memory" in name else number
        table.add_row(name, show(used), show(total))
    if status.spilled_bytes is not None:
        table.add_row("moved to disks", f"{status.spilled_bytes / 1e9:.1f} GB", "")
    return table


def _nodes(status: ClusterStatus) -> Table:
    table = _table("machine", "state", "CPUs", "GPUs", "memory", "since or why")
    for node in status.nodes:
        table.add_row(
            f"{node.host} {node.address}" + (" (head)" if node.is_head else ""),
            Text(node.state, STYLES.get(node.state, "")),
            number(node.resources.get("CPU", 0.0)),
            number(node.resources.get("GPU", 0.0)),
            f"{node.resources.get('memory', 0.0) / 1e9:.1f} GB",
            node.detail,
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table
