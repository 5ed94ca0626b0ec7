"""How long the whole run will take yet, from what Snakemake says of its jobs.

Snakemake logs what happens as events: records with an `event` and its facts, which are those of
`snakemake_interface_logger_plugins`. `Progress` listens to them beside Snakemake's own output.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Container, Mapping
from statistics import fmean
from typing import Any

#: Seconds between two lines.
EVERY = 30.0


class TimeLeft:
    """How long a run will take yet; it is told what happens when, in seconds of any clock.

    Each job that is left takes as long as the finished ones of its rule on average; where none has
    finished, as those of its kind, and where none of these, as any, for each thing that it makes.
    As many go at a time as did so far.

    Args:
        kinds: rule -> a word for what it and its like make, `trainings` say. A rule that is not
            among them is a kind of its own, of which the line does not speak.
        made: rule -> how many of these a job of it makes, where that is not one.
    """

    def __init__(self, kinds: Mapping[str, str], made: Mapping[str, int] | None = None):
        self.kinds = kinds
        self.made = made or {}
        self._planned: Counter[str] = Counter()  # rule -> jobs
        self._ended: Counter[str] = Counter()
        self._running: dict[int, tuple[str, float]] = {}  # job -> rule, when it began
        self._failed: set[int] = set()
        self._finished: dict[str, list[float]] = {}  # rule -> seconds of each
        # While jobs of `kinds` ran: seconds, of the clock and of all of them together. Those that
        # the others wait for, and which run alone, say nothing about how many go at a time.
        self._clock = self._together = self._now = 0.0

    def plan(self, jobs: Mapping[str, int]) -> None:
        """The run is to do so many jobs of each rule."""
        self._planned = Counter(jobs)

    def start(self, job: int, rule: str, now: float) -> None:
        """A job begins, perhaps once more after it has failed."""
        self._pass(now)
        if job in self._failed:
            self._failed.remove(job)
            self._ended[rule] -= 1
        self._running[job] = rule, now

    def end(self, job: int, now: float, failed: bool = False) -> None:
        """A job has finished or failed; Snakemake says the latter more than once."""
        self._pass(now)
        if job in self._running:
            rule, started = self._running.pop(job)
            self._ended[rule] += 1
            if failed:
                self._failed.add(job)
            else:
                self._finished.setdefault(rule, []).append(now - started)

    def seconds(self, now: float) -> float | None:
        """The time left; None before one job of the most frequent kind has finished.

        What comes before them, texts and activations, says nothing about them.
        """
        self._pass(now)
        planned = self._by_kind(self._planned)
        if not planned or self._one_takes({max(planned, key=planned.__getitem__)}) is None:
            return None
        left = self._planned - self._ended
        work = sum(count * self._mean(rule) for rule, count in left.items())
        done = sum(min(now - start, self._mean(rule)) for rule, start in self._running.values())
        return (work - done) * (self._clock / self._together if self._together else 1.0)

    def line(self, now: float) -> str | None:
        """The time left, and how far those kinds are of which something is left.

        None where nothing is left, or the time is not known.
        """
        seconds = self.seconds(now)
        if seconds is None or not self._planned - self._ended:
            return None
        planned, ended = self._by_kind(self._planned), self._by_kind(self._ended)
        counts = ", ".join(
            f"{ended[kind]} of {planned[kind]} {kind}"
            for kind in dict.fromkeys(self.kinds.values())
            if ended[kind] < planned[kind]
        )
        return f"about {_in_words(seconds)} left" + (f": {counts}" if counts else "")

    def _by_kind(self, jobs: Counter[str]) -> Counter[str]:
        """How many things of each kind the jobs make."""
        found: Counter[str] = Counter()
        for rule, count in jobs.items():
            found[self.kinds.get(rule, rule)] += count * self.made.get(rule, 1)
        return found

    def _one_takes(self, kinds: Container[str] | None = None) -> float | None:
        """Seconds for each thing of some kinds, or all, in the finished jobs; None if none has."""
        seconds, things = 0.0, 0
        for rule, durations in self._finished.items():
            if kinds is None or self.kinds.get(rule, rule) in kinds:
                seconds += sum(durations)
                things += len(durations) * self.made.get(rule, 1)
        return seconds / things if things else None

    def _mean(self, rule: str) -> float:
        """Seconds that a job of the rule takes; at least one of some rule has finished."""
        if own := self._finished.get(rule):
            return fmean(own)
        one = self._one_takes({self.kinds.get(rule, rule)})
        if one is None:
            one = self._one_takes() or 0.0
        return one * self.made.get(rule, 1)

    def _pass(self, now: float) -> None:
        """Count the time since the last call."""
        counted = sum(rule in self.kinds for rule, _ in self._running.values())
        if counted:
            self._clock += now - self._now
            self._together += counted * (now - self._now)
        self._now = now


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{max(1, minutes)} min" if minutes < 120 else f"{seconds / 3600:.1f} h"


class Progress(logging.Handler):
    """One of the handlers of Snakemake's logger: says the time left when a job has finished.

    Where no jobs run (`snakemake -n`) nothing finishes, and the processes that Snakemake starts for
    a job are told no plan: it is silent in both.

    Args:
        kinds: as for `TimeLeft`.
        say: what is done with a line.
        made: as for `TimeLeft`.
        every: seconds between two lines, at least.
        clock: gives the time in seconds.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        say: Callable[[str], None],
        made: Mapping[str, int] | None = None,
        every: float = EVERY,
        clock: Callable[[], float] = time.monotonic,
    ):
        super().__init__()
        self._time_left = TimeLeft(kinds, made)
        self._say, self._every, self._clock = say, every, clock
        self._due = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Hear of one event. A mistake made here is shown, and stops no run."""
        try:
            self._hear(vars(record))
        except Exception:
            self.handleError(record)

    def _hear(self, facts: Mapping[str, Any]) -> None:
        now = self._clock()
        match facts.get("event"):
            case "run_info":
                jobs = {rule: count for rule, count in facts["stats"].items() if rule != "total"}
                self._time_left.plan(jobs)
            case "job_info":
                self._time_left.start(facts["jobid"], facts["rule_name"], now)
            case "job_error":
                self._time_left.end(facts["jobid"], now, failed=True)
            case "job_finished":
                self._time_left.end(facts["job_id"], now)
            # It follows each job that has finished, and the line then stands below Snakemake's own.
            case "progress" if now >= self._due and (line := self._time_left.line(now)):
                self._due = now + self._every
                self._say(line)
