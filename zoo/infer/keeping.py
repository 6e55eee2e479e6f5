"""The checkpoint of a fit in progress, always whole: written now and then, at a signal, and when the fit ends."""

import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from zoo.infer.guard import Diverged
from zoo.infer.resuming import gathered, going_on_from
from zoo.infer.run import Fit
from zoo.infer.running import Running, copied, put_back
from zoo.infer.storage.checkpoint import replace
from zoo.infer.storage.generations import GoingOn
from zoo.infer.watchers import LastGood, Validation, Watcher

SHARE = 20  # a checkpoint is written once the fit has taken this many times as long as the last one took to write


class Signals(AbstractContextManager["Signals"]):
    """Takes note of SIGINT and SIGTERM, so that the step in progress is finished first; a second one is not awaited.

    Signals for which the caller has a handler of its own are left to it, and so are all outside the main thread.

    Args:
        folder: of the checkpoint; None takes note of nothing.

    Attributes:
        received: the signal, or None.
        message: what is printed at the end of the block, after the progress bar; empty for nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.received: signal.Signals | None = None
        self.message = ""
        self._before: dict[signal.Signals, Any] = {}

    def error(self) -> BaseException:
        """What ends the fit: KeyboardInterrupt, or for SIGTERM SystemExit with the status 143."""
        if self.received == signal.SIGTERM:
            return SystemExit(128 + signal.SIGTERM)
        return KeyboardInterrupt(self.message)

    def __enter__(self) -> "Signals":
        if self.folder is not None and threading.current_thread() is threading.main_thread():
            for one in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(one) in (signal.SIG_DFL, signal.default_int_handler):
                    self._before[one] = signal.signal(one, self._note)
        return self

    def __exit__(self, *error: Any) -> None:
        self._restore()
        if self.message and self.received == signal.SIGTERM:
            print(self.message, file=sys.stderr, flush=True)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for one, handler in self._before.items():
            signal.signal(one, handler)
        self._before = {}


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """Keeps a fit on disk: a run with its losses up to the same step, and the state from which the fit goes on.

    The run has the best held-out parameters if there are held-out rows. A write is one renaming, so that a process that
    is killed leaves the whole checkpoint before or after it. As a context manager it also saves the fit when an
    exception ends it: its run, with the parameters after the last step that was complete.

    Args:
        fit: the fit in progress; the folder is that of its plan, whose run is replaced as a whole. None keeps nothing.
        watchers: those of the fit, the last good parameters among them.
        match: what a fit that goes on from here must have in common with this one.
        signals: after which the fit is saved and ends.
    """

    def __init__(self, fit: Running, watchers: Sequence[Watcher], match: dict[str, Any], signals: Signals) -> None:
        self.fit, self.watchers, self.match, self.signals = fit, watchers, match, signals
        self.good = next(own for own in watchers if isinstance(own, LastGood))
        self.validation = next((own for own in watchers if isinstance(own, Validation)), None)
        self._written, self._cost = 0.0, 0.0
        self._complete = bool(fit.losses)  # whether this fit, or the one that it goes on from, has a state on disk
        self._finished = False

    def see(self, fit: Running) -> None:
        """Save the fit when due, after all other watchers; end it if there was a signal.

        Raises:
            KeyboardInterrupt, SystemExit: there was one.
        """
        if fit.plan.checkpoint is None:
            return
        if self.signals.received is not None:
            self.save()
            self.signals.message = (
                f"{self.signals.received.name}: after {fit.step + 1:,} steps the fit is saved in "
                f"{fit.plan.checkpoint}; the same call with resume=True (on the command line, --resume) goes on"
            )
            raise self.signals.error()
        due = fit.step > 0 and fit.step % fit.plan.every == 0
        if (due or fit.best_step == fit.step) and time.perf_counter() - self._written >= SHARE * self._cost:
            self.save()

    def save(self) -> None:
        """Save the fit as it is after a step."""
        started = time.perf_counter()
        state = going_on_from(self.match, gathered(self.fit, self.watchers))
        self._write(self.fit.run(), state)
        self._complete = True
        self._written = time.perf_counter()
        self._cost = self._written - started

    def finish(self, run: Fit) -> None:
        """Save the run of a fit that has ended."""
        self._finished = True
        if self.fit.plan.checkpoint is not None:
            self._write(run, GoingOn({"match": self.match, "finished": True}))

    def _write(self, run: Fit, state: GoingOn) -> None:
        """Save a run, with the best parameters if there are held-out rows."""
        folder = self.fit.plan.checkpoint
        assert folder is not None
        best = self.validation.best if self.validation is not None and not self._finished else []
        now = copied(self.fit.model, self.fit.guide) if best else []
        put_back(best)
        try:
            replace(run, folder, state)
        finally:
            put_back(now)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or self.fit.plan.checkpoint is None or self.signals.message or not self.fit.losses:
            return
        steps = self.good.restore()  # the parameters may be partially updated
        run = self.fit.run(steps)
        if isinstance(error, Diverged):
            self._write(run, GoingOn({"match": self.match, "obstacle": f"its fit diverged at step {error.step}"}))
        elif not self._complete:
            self._write(run, GoingOn({"match": self.match}))
