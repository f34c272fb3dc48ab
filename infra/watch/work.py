"""A decision being brought about, in a thread of its own: watch goes on looking meanwhile.

Bringing a machine up takes a cold start, and others may be lost during it. What a stopped work has begun is kept
by the engine's state and by names, and the next one goes on with it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from infra.deployment import Deployment
from infra.engine import Engine, operate
from infra.engine.events import OnProgress
from infra.errors import InfraError
from infra.planning.placement import Placement
from infra.planning.planner import Plan, plan
from infra.planning.program import Declared
from infra.state.safekeeping import Safekeeping

Part = Callable[[Plan], Sequence[Declared]]
STOPS_WITHIN_S = 60.0
AT_ONCE, PAUSE_S, PAUSE_MOST_S = 2, 30.0, 900.0


def pause_after(failures: int) -> float:
    """Seconds between so many failures in a row and the next try.

    The first are tried again at once, for an offer that was sold out has the next beside it. From then on twice as
    long each time: a balance that is used up, or weights that nobody may fetch, do not mend themselves by being asked.
    """
    return 0.0 if failures <= AT_ONCE else min(PAUSE_S * 2.0 ** min(failures - AT_ONCE - 1, 10), PAUSE_MOST_S)


@dataclass(slots=True)
class Work:
    """One placement of one stack. Start it, look at `done` from time to time, and read `failure` then."""

    deployment: Deployment
    keeping: Safekeeping
    placement: Placement
    part: Part
    follow: OnProgress
    failure: InfraError | None = None
    fault: BaseException | None = None
    stopped: bool = False
    gone: bool = False
    """The stack was destroyed since this was decided, perhaps from another checkout: nothing of it is rented again."""
    _engine: Engine | None = None
    _kept: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Returns once the placement is written down, or cannot be."""
        self._thread = threading.Thread(target=self._run, name="watch-work", daemon=True)
        self._thread.start()
        self._kept.wait()

    @property
    def done(self) -> bool:
        return self._thread is not None and not self._thread.is_alive()

    def stop(self) -> None:
        """Let the engine write down what it is at, and end."""
        self.stopped = True
        if self._engine:
            self._engine.interrupt()
        self.wait(STOPS_WITHIN_S)
        if not self.done and self._engine:
            self._engine.interrupt()  # asked again, it just ends
            self.wait(STOPS_WITHIN_S)

    def wait(self, seconds: float | None = None) -> None:
        if self._thread:
            self._thread.join(seconds)
        if self.fault:
            raise self.fault

    def _run(self) -> None:
        name, paths = self.deployment.description.name, self.deployment.paths
        try:
            wanted = asyncio.run(plan(self.deployment.description, paths, wanting=self.placement))
            with operate(name, paths, self.part(wanted), self.keeping.settings, f"watch {name}") as engine:
                self.gone = Deployment.kept(paths) is None or not engine.state().resources
                if self.gone:
                    return
                wanted.keep(paths)
                self.keeping.keep_up()
                self._engine = engine
                self._kept.set()
                try:
                    if not self.stopped:
                        engine.up(self.follow)
                finally:
                    self.keeping.keep_up()  # host keys of the machines that came
        except InfraError as error:
            self.failure = error
        except BaseException as error:  # noqa: BLE001 - another thread's: `wait` raises it where it is heard
            self.fault = error
        finally:
            self._kept.set()
