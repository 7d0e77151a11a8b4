"""Between the first worker and the driver: messages one way, the request to stop the other way.

The board is a small actor with a name, on the driver's machine. Ray may lose it: with its process,
or because it takes a broken connection to the driver for the end of the driver. The driver then
puts up another of the same name, and the workers go on with that; what is lost are metrics of the
last moments.
"""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

from farreach.errors import ActorError

if TYPE_CHECKING:
    from farreach.actors.witness import Whereabouts
    from farreach.failures import Fault
    from farreach.learn.task import Pixels

NAMESPACE = "farreach"
# Seconds that a worker waits for the driver to put up another board.
PATIENCE_S = 60.0
RETRY_S = 0.2
# Seconds between two looks of the first worker at whether to stop.
ASK_EVERY_S = 1.0
# Seconds between two looks of all workers at whether machines are about to be taken away.
LOOK_EVERY_S = 2.0
# Seconds before a machine is taken away in which a last checkpoint is written.
LAST_SAVE_S = 4.0
# Seconds after that in which a machine that is to go should have gone.
GONE_S = 3.0
# Seconds that workers wait to be ended when they have saved for another number of them.
PAUSE_S = 60.0
# Longest time in which they save.
SAVED_S = 120.0
STOP, PAUSE = "stop", "pause"

Message = tuple[str, tuple[Any, ...]]
# Metrics and whether the run was asked to stop; or what the user has to mend.
Outcome = tuple[dict[str, float], bool] | str


class Board:
    """What the actor holds."""

    def __init__(self) -> None:
        """Nothing is on it."""
        self._messages: list[Message] = []
        self._stop = False
        self._pause, self._training = False, False
        self._outcome: Outcome | None = None

    def put(self, kind: str, content: tuple[Any, ...]) -> None:
        """A message for the driver."""
        self._messages.append((kind, content))

    def take(self) -> tuple[list[Message], Outcome | None]:
        """All messages since the last time, and how training has ended, if it has."""
        taken, self._messages = self._messages, []
        return taken, self._outcome

    def is_empty(self) -> bool:
        """Whether the driver has taken all messages."""
        return not self._messages

    def ask_to_stop(self) -> None:
        """The driver wants the run to end with a checkpoint."""
        self._stop = True

    def request(self) -> str:
        """What the first worker shall do: `STOP`, `PAUSE` or nothing."""
        return STOP if self._stop else PAUSE if self._pause else ""

    def ask_to_pause(self) -> bool:
        """Have the workers save and wait, for another number of them; whether any are training."""
        self._pause = self._training
        return self._training

    def train(self, is_on: bool) -> None:
        """The first worker begins, or has paused; or workers have died."""
        self._training, self._pause = is_on, False

    def is_training(self) -> bool:
        """Whether it has begun and not paused."""
        return self._training

    def end(self, outcome: Outcome) -> None:
        """How training has ended."""
        self._outcome = outcome

    def outcome(self) -> Outcome | None:
        """How it has ended, if it has."""
        return self._outcome


class Link:
    """A way to a board, whichever bears the name now; another process may take it along."""

    def __init__(self, name: str) -> None:
        """To the board of that name."""
        self._name = name
        self._board: Any = None

    def send(self, method: str, *arguments: Any) -> Any:
        """Call a method of the board; a reference to what it answers, None if there is no board."""
        import ray

        if self._board is None:
            try:
                self._board = ray.get_actor(self._name, NAMESPACE)
            except ValueError:
                return None
        return getattr(self._board, method).remote(*arguments)

    def ask(self, method: str, *arguments: Any) -> Any:
        """What a method of the board answers, of the next board if this one is lost.

        Raises:
            ActorError: there was none for a minute.
        """
        import ray

        deadline = time.monotonic() + PATIENCE_S
        while True:
            reference = self.send(method, *arguments)
            try:
                if reference is not None:
                    return ray.get(reference)
            except ray.exceptions.RayActorError:
                self.forget()
            if time.monotonic() > deadline:
                raise ActorError(
                    f"the driver's board {self._name} is gone. Continue the run with `farreach "
                    "resume`; if this comes again, look whether the driver's machine is overloaded."
                )
            time.sleep(RETRY_S)

    def pause(self) -> None:
        """Have workers that train save, and wait until they have."""
        deadline = time.monotonic() + SAVED_S
        waiting = self.ask("ask_to_pause")
        while waiting and time.monotonic() < deadline:
            time.sleep(RETRY_S)
            waiting = self.ask("is_training")

    def wait_until_taken(self, limit_s: float) -> None:
        """Until the driver has taken what was put, if it does so soon."""
        deadline = time.monotonic() + limit_s
        while not self.ask("is_empty") and time.monotonic() < deadline:
            time.sleep(RETRY_S)

    def forget(self) -> None:
        """Look for the board anew."""
        self._board = None

    def __reduce__(self) -> tuple[type[Link], tuple[str]]:
        """A name is enough: a handle that is taken along may refer to a board that is lost."""
        return Link, (self._name,)


class DriversLink(Link):
    """The driver's: it puts up the board, and another if that is lost."""

    def __init__(self) -> None:
        """A board of a new name."""
        super().__init__(f"board-{secrets.token_hex(8)}")
        self._stop = False
        self._put_up()

    def _put_up(self) -> None:
        import ray

        from farreach.actors.nodes import near

        options = {
            "name": self._name,
            "namespace": NAMESPACE,
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": -1,
            "scheduling_strategy": near(str(ray.get_runtime_context().get_node_id())),
        }
        self._board = ray.remote(Board).options(**options).remote()
        if self._stop:
            self._board.ask_to_stop.remote()

    def take(self) -> tuple[list[Message], Outcome | None]:
        """What the workers have said since the last time."""
        import ray

        try:
            taken: tuple[list[Message], Outcome | None] = ray.get(self._board.take.remote())
        except ray.exceptions.RayActorError:
            self._put_up()
            return [], None
        return taken

    def ask_to_stop(self) -> None:
        """Have the workers end with a checkpoint."""
        self._stop = True
        self._board.ask_to_stop.remote()

    def worker(self) -> Link:
        """For another process."""
        return Link(self._name)

    def take_down(self) -> None:
        """Remove the board."""
        import ray

        ray.kill(self._board)


class Remote:
    """The first worker's outlet; see `Outlet`."""

    def __init__(self, link: Link) -> None:
        """Tells what it is told to a board."""
        self._link = link
        self._asked_s = self._looked_s = time.monotonic()
        self._answer: Any = None
        self._pause = False
        self._leaving: list[str] = []
        self._deadline: float | None = None

    def begin(self, step: int, total: int) -> None:
        """See `Outlet`."""
        self._put("begin", step, total)

    def scalars(self, step: int, metrics: dict[str, float], share: float) -> None:
        """See `Outlet`."""
        self._put("scalars", step, metrics, share)

    def picture(self, step: int, name: str, picture: Pixels) -> None:
        """See `Outlet`."""
        self._put("picture", step, name, picture)

    def remark(self, step: int, text: str) -> None:
        """See `Outlet`."""
        self._put("remark", step, text)

    def checkpoint(self, step: int, name: str) -> None:
        """See `Outlet`."""
        self._put("checkpoint", step, name)

    def evaluation_due(self, step: int, name: str) -> None:
        """See `Outlet`."""
        self._put("evaluation_due", step, name)

    def helper(self, role: str, place: Whereabouts) -> None:
        """See `Outlet`."""
        self._put("helper", role, place)

    def helper_died(self, role: str, fault: Fault, lost: str, then: str) -> None:
        """See `Outlet`."""
        self._put("helper_died", role, fault, lost, then)

    def _put(self, kind: str, *content: Any) -> None:
        self._link.send("put", kind, content)

    def stop_asked(self) -> bool:
        """See `Outlet`; the answer is that to the question before."""
        request = self._request()
        self._pause = self._pause or request == PAUSE
        return request == STOP

    def _request(self) -> str:
        import ray

        if time.monotonic() - self._asked_s < ASK_EVERY_S:
            return ""
        self._asked_s = time.monotonic()
        if self._answer is None:
            self._answer = self._link.send("request")
            return ""
        ready, _ = ray.wait([self._answer], timeout=0)
        if not ready:
            return ""
        answer, self._answer = self._answer, None
        try:
            return str(ray.get(answer))
        except ray.exceptions.RayActorError:
            self._link.forget()
            return ""
        finally:
            self._answer = self._link.send("request")

    def wants_to_look(self) -> bool:
        """See `Outlet`."""
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = time.monotonic()
        return True

    def is_leaving(self) -> bool:
        """See `Outlet`."""
        import ray.train

        info = ray.train.get_preemption_info()
        nodes = [] if info is None else info.preempted_node_ids
        if nodes == self._leaving:
            return False
        self._leaving = nodes
        if info is not None:
            self._deadline = info.deadline_ms / 1000 if info.deadline_ms else None
            self._put("leaving", nodes, self._deadline, info.preempted_ranks)
        return bool(nodes)

    def is_last_moment(self) -> bool:
        """See `Outlet`."""
        is_close = self._deadline is not None and time.time() > self._deadline - LAST_SAVE_S
        return self._pause or is_close

    def rest(self) -> None:
        """See `Outlet`; whoever asked for a pause ends this process in it."""
        if self._pause:
            self._link.ask("train", False)
            time.sleep(PAUSE_S)
            self._pause = False
            self._link.ask("train", True)
        if self._deadline is not None:
            time.sleep(max(0.0, self._deadline + GONE_S - time.time()))
            self._deadline = None
