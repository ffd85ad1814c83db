"""A pool of Ray workers: items handed out to whoever is free, and done again when a worker dies over them.

A dead worker is replaced. Its replacement gets work only when it has started, so that the others go on alone where the
cluster has no room for it.
"""

from __future__ import annotations

import pickle
import time
from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pursuit.engine.ray_worker import Outcome, Worker
from pursuit.errors import PursuitError, RunError
from pursuit.progress import Advance, say

LOOK_EVERY_SECONDS = 1.0
PATIENCE_SECONDS = 20.0  # without any worker, before a word about it
MOST_DEATHS = 5  # of workers over one item: then it is the item


@dataclass(eq=False)
class Member:
    """A worker that has started; its replacement gets the same number."""

    number: int
    handle: Any
    process: int
    machine: str


class Pool:
    """Workers that are started at once and stay until `close`.

    Args:
        size: how many.
        options: of each, as Ray takes them (num_cpus, num_gpus, runtime_env).
    """

    def __init__(self, size: int, options: dict[str, Any]) -> None:
        remote: Any = ray.remote
        groups = {"watch": 1}  # a thread of its own, so that progress is told while the worker works
        self._actor = remote(**options, concurrency_groups=groups, max_restarts=0, scheduling_strategy="SPREAD")(Worker)
        self.size, self.options = size, options
        self.members: dict[int, Member] = {}
        self.starting: dict[Any, tuple[int, Any]] = {}
        self.stale: list[str] = []  # functions and matrices that nobody needs any more
        self.closed = False
        self._failures, self._last_seen, self._waited = 0, time.monotonic(), False
        for number in range(size):
            self._start(number)

    def run(
        self, function: Callable[..., Any], items: Sequence[Any], *, depth: int = 1, ahead: int | None = None,
        advance: Advance | None = None,
    ) -> Iterator[Any]:  # fmt: skip
        """function(item) of every item, in order.

        Args:
            depth: items that a worker is given at once: 2 for short ones, so that it need not wait for the next.
            ahead: how many results beyond the next one may be held; all without.
            advance: told of progress, see `Engine.map`.
        """
        if self.closed:
            raise RunError("these Ray workers were stopped; ask for the engine again.")
        reference = ray.put(function)
        try:
            yield from _Job(self, reference, items, depth, ahead, advance).results()
        finally:
            self.stale.append(reference.hex())

    def welcome(self, started: Any) -> None:
        """Take in a worker that has started, or start it again when it has not."""
        number, handle = self.starting.pop(started)
        try:
            process, machine = ray.get(started)
        except RayError as error:
            self._failures += 1
            if self._failures > 3 * self.size:
                reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "").strip()
                raise RunError(
                    f"Ray's workers do not start: {reason} Are pursuit and its packages installed in the same "
                    "versions on every machine of the cluster?"
                ) from error
            self._start(number)
            return
        self._failures = 0
        self.members[number] = Member(number, handle, process, machine)

    def replace(self, member: Member) -> None:
        """Start another in the place of one that has died."""
        if self.members.get(member.number) is member:
            del self.members[member.number]
            self._start(member.number)

    def discard(self, member: Member) -> None:
        """Stop one that is busy with what nobody waits for."""
        ray.kill(member.handle)
        self.replace(member)

    def tidy(self) -> None:
        """Let the workers forget what is no longer needed."""
        keys = [self.stale.pop() for _ in range(len(self.stale))]  # others may append meanwhile
        if keys:
            for member in self.members.values():
                member.handle.forget.remote(keys)

    def notice_emptiness(self) -> None:
        """Say so when there has been no worker for a while."""
        if self.members:
            self._last_seen, self._waited = time.monotonic(), False
        elif not self._waited and time.monotonic() - self._last_seen > PATIENCE_SECONDS:
            self._waited = True
            threads = self.options["num_cpus"]
            wants = f"{threads} processor{'s' * (threads > 1)}{' and a GPU' * bool(self.options['num_gpus'])}"
            say(f"no worker has started yet: each needs {wants} free in the Ray cluster. Waiting.")

    def close(self) -> None:
        """Stop all workers."""
        for handle in [*(m.handle for m in self.members.values()), *(handle for _, handle in self.starting.values())]:
            ray.kill(handle)
        self.members, self.starting, self.closed = {}, {}, True

    def _start(self, number: int) -> None:
        handle = self._actor.remote()
        self.starting[handle.ready.remote()] = (number, handle)


class _Job:
    """One call of `Pool.run`."""

    def __init__(
        self, pool: Pool, reference: Any, items: Sequence[Any], depth: int, ahead: int | None, advance: Advance | None
    ) -> None:
        self.pool, self.reference, self.items, self.depth, self.advance = pool, reference, items, depth, advance
        self.ahead = len(items) if ahead is None else ahead
        self.next = 0  # the first item whose result has not been given
        self.waiting = list(range(len(items)))  # ascending
        self.running: dict[Any, tuple[Member, int]] = {}
        self.done: dict[int, Any] = {}
        self.deaths: Counter[int] = Counter()
        self.counted: Counter[int] = Counter()  # units of running items that `advance` was told of
        self.looked = time.monotonic()

    def results(self) -> Iterator[Any]:
        self.pool.tidy()
        try:
            while self.next < len(self.items):
                self._hand_out()
                self._wait()
                while self.next in self.done:
                    self.next += 1
                    yield self.done.pop(self.next - 1)
        finally:
            for member in {member.number: member for member, _ in self.running.values()}.values():
                self.pool.discard(member)

    def _hand_out(self) -> None:
        for member in list(self.pool.members.values()):
            given = sum(member is busy for busy, _ in self.running.values())
            while given < self.depth and (number := self._pick(member)) is not None:
                self.waiting.remove(number)
                call = member.handle.call.remote(
                    [self.reference], self._ticket(number), self.items[number], self.advance is not None
                )
                self.running[call] = (member, number)
                given += 1

    def _pick(self, member: Member) -> int | None:
        """An item for a worker: one that would be its own again in the next pass, or else the first."""
        limit = self.next + self.ahead
        open_items = (number for number in self.waiting if number < limit)
        own = next((number for number in open_items if number % self.pool.size == member.number), None)
        first = self.waiting[0] if self.waiting and self.waiting[0] < limit else None
        return first if own is None else own

    def _ticket(self, number: int) -> tuple[str, int]:
        return self.reference.hex(), number

    def _wait(self) -> None:
        self.pool.notice_emptiness()
        ready, _ = ray.wait([*self.running, *self.pool.starting], num_returns=1, timeout=LOOK_EVERY_SECONDS)
        for reference in ready:
            if reference in self.pool.starting:
                self.pool.welcome(reference)
            else:
                self._take(reference)
        if self.advance is not None and time.monotonic() - self.looked >= LOOK_EVERY_SECONDS:
            self._look()

    def _take(self, reference: Any) -> None:
        member, number = self.running.pop(reference)
        try:
            outcome: Outcome = ray.get(reference)
        except RayTaskError as error:
            raise RunError(f"a Ray worker could not give back its result: {error}") from error
        except RayError as error:
            self._lost(member, number, error)
            return
        if outcome.error is not None:
            if not isinstance(outcome.error, PursuitError):
                outcome.error.add_note(f"on worker {member.process} of {member.machine}:\n{outcome.trace}")
            raise outcome.error
        self._tell(outcome.units - self.counted.pop(number, 0))
        self.done[number] = pickle.loads(outcome.value)

    def _lost(self, member: Member, number: int, error: RayError) -> None:
        """A worker died: its item waits again."""
        if self.pool.members.get(member.number) is member:
            say(f"worker {member.process} on {member.machine} has died; what it was at is done again")
        self.pool.replace(member)
        self._tell(-self.counted.pop(number, 0))
        self.deaths[number] += 1
        if self.deaths[number] >= MOST_DEATHS:
            raise RunError(
                f"{MOST_DEATHS} workers died one after another over the same piece of work: {error} If memory ran "
                "out, take fewer workers, or lower --features.batch-tokens or the method's memory_bytes."
            ) from error
        insort(self.waiting, number)

    def _look(self) -> None:
        """Ask the busy workers how far they are."""
        self.looked = time.monotonic()
        asked = [member.handle.progress.remote() for member, _ in self.running.values()]
        answered, _ = ray.wait(asked, num_returns=len(asked), timeout=LOOK_EVERY_SECONDS) if asked else ([], [])
        busy = {self._ticket(number): number for _, number in self.running.values()}
        for answer in answered:
            try:
                ticket, units = ray.get(answer)
            except RayError:  # it died; its item's own reference will tell
                continue
            if ticket in busy:
                number = busy[ticket]
                self._tell(units - self.counted[number])
                self.counted[number] = units

    def _tell(self, units: float) -> None:
        if self.advance is not None and units:
            self.advance(units)
