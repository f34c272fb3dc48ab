"""Watch's rounds: look, decide, write the placement down, bring it about. One watch a stack, one writer at a time.

What was done and why goes to standard output, to `logs/watch.log` (a JSON object a line) and, in numbers, to
`watch.prom` (Prometheus' text format, for a node exporter's textfile collector). A round that fails is said and
tried again with the next; Ctrl-C ends between steps, and what was begun is gone on with.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from infra.clouds import Cloud, CloudError, Presence
from infra.deployment import Deployment, forget, stack_name
from infra.engine import OperationCancelledError, operate
from infra.engine.events import Progress
from infra.engine.guard import BusyError, only_operation
from infra.errors import InfraError
from infra.files import replace_file
from infra.identity import Identity, ensure_identity
from infra.paths import StackPaths
from infra.planning.placement import Placement
from infra.planning.planner import placed
from infra.provider.site import Site
from infra.state.safekeeping import Safekeeping
from infra.strays import end_strays, rented
from infra.view.console import say
from infra.watch import unit
from infra.watch.decide import Action, Decision, Deed, Memory, Seen, World, decide
from infra.watch.observe import Observer, verified
from infra.watch.work import Part, Work, pause_after

EVERY_S = 15.0
"""Spheron wants to be asked no oftener than every 10 s; a loss is then noticed within 30."""
URGENT = {Deed.REPLACE, Deed.GROW, Deed.END}
"""Does not wait for what is under way: that is ended cleanly, and goes on together with it."""


DESTROYED = "it was destroyed"


class WatchError(InfraError):
    """There is nothing to watch, or what was watched could not be ended."""


@dataclass(slots=True)
class Watch:
    """One stack's watch. `clock` is seconds since the epoch; `part` is what of a plan it brings about: all of it."""

    deployment: Deployment
    keeping: Safekeeping
    clock: Callable[[], float] = time.time
    part: Part = lambda plan: plan.declared
    memory: Memory = field(default_factory=Memory)
    counts: Counter[str] = field(default_factory=Counter)
    observer: Observer | None = None
    work: Work | None = None
    _met: set[tuple[str, int]] = field(default_factory=set)
    _held: frozenset[Action] = frozenset()
    _unfinished: bool = False
    over: str = ""
    """Why there is nothing to watch any more, once there is not."""
    _failures: int = 0
    _again_at: float = -1e12

    def round(self) -> Decision | None:
        """Look, decide, begin to act. None if the cloud did not say enough, or what was to be done failed.

        A failure is told, and the next round tries again: while machines are paid for, somebody has to watch them.
        """
        try:
            return self._round()
        except OperationCancelledError:
            raise  # Ctrl-C
        except InfraError as error:
            self._tell_failure(error)
            return None

    def _round(self) -> Decision | None:
        self._heed()
        if not self._still_there():
            return None
        placement, identity = placed(self.deployment.paths)
        try:
            decision = asyncio.run(self._decide(placement, identity))
        except CloudError as error:
            self._tell("unanswered", "", str(error))
            return None
        self.memory = decision.memory
        urgent = {action.deed for action in decision.actions} & URGENT
        if self.work and not urgent:
            return decision  # what can wait waits for what is under way
        for action in decision.actions:
            if action.deed is not Deed.HOLD or action not in self._held:
                self._tell(action.deed, action.machine, action.why)
        self._held = frozenset(action for action in decision.actions if action.deed is Deed.HOLD)
        changed = decision.placement != placement and any(a.deed is not Deed.HOLD for a in decision.actions)
        if decision.ends or changed or (self._unfinished and not self._pauses):
            self.leave()
            if not self._overtaken(placement):
                self._act(decision)
        self._count(decision)
        return decision

    def _still_there(self) -> bool:
        """Whether the stack is deployed; by now perhaps as another description says. What was destroyed is not rented
        again because its machines are gone."""
        kept = Deployment.kept(self.deployment.paths)
        if kept is None:
            self.over = DESTROYED
            self.leave()
            return False
        if kept.description != self.deployment.description:
            self._tell("told", "", "it was deployed with another description; that counts from now on")
            self.deployment, self.observer = kept, None
        return True

    def pause(self, every_s: float) -> float:
        """Seconds from one round to the next."""
        return self.observer.silence.pause(every_s) if self.observer else every_s

    def leave(self) -> None:
        """End what is under way; what it has begun is kept."""
        if self.work:
            self.work.stop()
        self.work = None

    async def _decide(self, placement: Placement, identity: Identity) -> Decision:
        """Within one loop: an observer's connections belong to it."""
        cloud = self._cloud()
        observer = self.observer or Observer(self.deployment, cloud, identity, self.deployment.began(self.clock()))
        observer.cloud = cloud
        self.observer = observer
        world = await observer.look(placement, self.clock())
        if any(seen.presence is Presence.GONE for pool in world.pools for seen in pool.machines):
            world = await verified(self._cloud(), world, identity)
        return decide(self.deployment.description, self._expected(world), self.memory)

    def _expected(self, world: World) -> World:
        """What is being ordered is not lost: it is not there yet, or will have failed, or waits to be tried again."""
        for pool in world.pools:
            self._met |= {
                (seen.placed.machine, seen.placed.generation)
                for seen in pool.machines
                if seen.presence is Presence.THERE
            }
        if self.work is None and not self._pauses:
            return world

        def known(seen: Seen) -> Seen:
            met = (seen.placed.machine, seen.placed.generation) in self._met
            return seen if met or seen.presence is not Presence.GONE else replace(seen, presence=Presence.UNKNOWN)

        pools = tuple(replace(pool, machines=tuple(map(known, pool.machines))) for pool in world.pools)
        return replace(world, pools=pools)

    def _overtaken(self, upon: Placement) -> bool:
        """Whether another operator has changed the stack meanwhile: then it is looked at anew before anything is done.
        Asked only before that, for it takes a look at the state's backend."""
        self.keeping.catch_up()
        kept = Deployment.kept(self.deployment.paths)
        known = kept is not None and kept.description == self.deployment.description
        if known and placed(self.deployment.paths)[0] == upon:
            return False
        self._tell("told", "", "it was changed by somebody else just now; what to do is decided anew")
        return True

    def _act(self, decision: Decision) -> None:
        if decision.ends:
            self._end()
            self.over = "its time is over"
            return
        self.work = Work(self.deployment, self.keeping, decision.placement, self.part, self._follow)
        self._unfinished = True
        self.work.start()

    def _heed(self) -> None:
        """What became of the work that was under way, if it is done."""
        if self.work is None or not self.work.done:
            return
        work, self.work = self.work, None
        work.wait()
        if work.gone:
            self.over = DESTROYED
            forget(self.deployment.paths)
            return
        if work.failure is None:
            self._unfinished, self._failures = False, 0
            return
        # What was not brought about is seen, and decided upon, from now on.
        self._tell_failure(work.failure)
        if not isinstance(work.failure, BusyError):
            self._failures += 1
            self._again_at = self.clock() + pause_after(self._failures)
            if self._pauses:
                self._tell(
                    "paused", "", f"failed {self._failures} times; goes on in {pause_after(self._failures):.0f} s"
                )

    @property
    def _pauses(self) -> bool:
        """What failed again and again is left for now. A machine that is lost meanwhile is replaced all the same."""
        return self.clock() < self._again_at

    def _cloud(self) -> Cloud:
        return Site(self.deployment.paths, os.environ).cloud(self.deployment.description.cloud)

    def _end(self) -> None:
        name, paths = self.deployment.description.name, self.deployment.paths
        with operate(name, paths, (), self.keeping.settings, f"watch {name}") as engine:
            engine.destroy(self._follow)
            # What its state knows is gone; the clouds have the last word, and nobody is here to be asked.
            for stray in asyncio.run(end_strays(paths)):
                self._tell("end", stray, "its time is over, and no state knew of it")
            if left := asyncio.run(rented(paths)):
                raise WatchError(f"its time is over, and its clouds still have {', '.join(one.name for one in left)}")
        forget(paths)

    def _follow(self, progress: Progress) -> None:
        if progress.stage in ("done", "failed"):
            self._log("progress", progress.resource, f"{progress.kind} {progress.action} {progress.stage}")

    def _tell_failure(self, error: InfraError) -> None:
        self._tell("busy" if isinstance(error, BusyError) else "failed", "", str(error))

    def _tell(self, deed: str, machine: str, why: str) -> None:
        self.counts[deed] += 1
        say(f"{datetime.fromtimestamp(self.clock(), UTC):%H:%M:%S} {deed:<10} {machine:<16} {why}")
        self._log(deed, machine, why)

    def _log(self, deed: str, machine: str, why: str) -> None:
        at = datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="seconds")
        with (self.deployment.paths.logs / "watch.log").open("a") as log:
            log.write(json.dumps({"at": at, "deed": deed, "machine": machine, "why": why}) + "\n")

    def _count(self, decision: Decision) -> None:
        spent = sum(each.offer.price for each in decision.placement.machines)
        lines = [
            "# TYPE letterpress_watch_deeds_total counter",
            *(f'letterpress_watch_deeds_total{{deed="{deed}"}} {n}' for deed, n in sorted(self.counts.items())),
            "# TYPE letterpress_watch_machines gauge",
            f"letterpress_watch_machines {len(decision.placement.machines)}",
            "# TYPE letterpress_watch_dollars_per_hour gauge",
            f"letterpress_watch_dollars_per_hour {spent:.4f}",
            "# TYPE letterpress_watch_last_round_seconds gauge",
            f"letterpress_watch_last_round_seconds {self.clock():.0f}",
        ]
        replace_file(self.deployment.paths.root / "watch.prom", ("\n".join(lines) + "\n").encode(), 0o644)


def _watchable(stack: str) -> Deployment:
    """A deployed stack that rents something. Raises WatchError."""
    deployment = Deployment.remembered(stack)
    if not Site(deployment.paths, os.environ).cloud(deployment.description.cloud).ability.rents:
        raise WatchError(f"stack {deployment.description.name} rents nothing: there is nothing to watch")
    return deployment


def install(stack: str) -> None:
    """Have systemd watch it."""
    deployment = _watchable(stack)
    name, paths = deployment.description.name, deployment.paths
    for line in unit.install(name, paths, deployment.description.model_dump_json()):
        say(line)


def uninstall(stack: str) -> None:
    name = stack_name(stack)
    there = unit.remove(name, StackPaths.of(name))
    say(f"Stack {name} is watched by systemd no more." if there else f"Stack {name} was not watched by systemd.")


def watch(stack: str, every_s: float = EVERY_S, rounds: int | None = None) -> None:
    """Watch a deployed stack until it ends, or is interrupted. BusyError if another terminal watches it."""
    deployment = _watchable(stack)
    paths, name = deployment.paths, deployment.description.name
    ensure_identity(paths.root / "stack-id")
    with only_operation(paths.root / "watch.lock", f"watch {name}"):
        say(f"Watching stack {name} every {every_s:g} s; Ctrl-C ends that, and leaves the stack as it is.")
        keeping = Safekeeping.remembered(paths)
        keeping.catch_up()
        watching = Watch(deployment, keeping)
        done = 0
        try:
            while rounds is None or done < rounds:
                begun = time.monotonic()
                watching.round()
                done += 1
                if watching.over:
                    say(f"Stack {name} is gone: {watching.over}.")
                    unit.retire(name, paths)
                    return
                if rounds is None or done < rounds:
                    time.sleep(max(0.0, watching.pause(every_s) - (time.monotonic() - begun)))
            if watching.work:
                watching.work.wait()
        finally:
            watching.leave()
