"""A worker process: Faust runs the agent, one compute thread runs the engine, a watchdog watches committed progress.

In: an app's settings. Out: an exit code: 0 after a signal, else that of the error that ended it. Invariant: the process
never lives on without progress: whatever stops it for good ends it with a message.
"""

from __future__ import annotations

import asyncio
import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tidemill.apps.clients import clients_of
from tidemill.apps.engine import Engine, worker_group
from tidemill.apps.failpoints import failpoint
from tidemill.apps.folding import barrier_of
from tidemill.apps.garbage_collection import collect_rarely
from tidemill.apps.pacing import TickPacer
from tidemill.apps.stalls import Causes, InHand, Waiting
from tidemill.apps.watchdog import Watchdog
from tidemill.config import Settings
from tidemill.core.records import Partition
from tidemill.errors import FencedError, TidemillError, UnavailableError
from tidemill.io.faust_transport import make_faust_app
from tidemill.io.slots import take_slot
from tidemill.io.source import SourceBatch
from tidemill.io.start_checks import check_port

STOP_DEADLINE_S = 20.0  # a stop that takes longer is a hang: the process ends all the same
STALLED_STOP_DEADLINE_S = 3.0  # what did not move for so long will not end tidily either
LOST_PATIENCE = 2  # times `stall_after`: a broker that is away takes the partitions, and may be away for a minute
LOOK_AGAIN_S = 0.005  # how often a worker that waits for others reads their marks
SETTLE_EVERY_S = 0.2  # how often rows are settled while no records come, and quiet partitions follow the others
UNAVAILABLE_S = 120.0  # a broker or store may be away for a minute; twice that is an operator's matter
RETRY_S = 1.0


class Worker:
    """The hooks that the transport calls, and the supervision around them."""

    def __init__(self, settings: Settings, *, slot: int | None, is_paced: bool, report: Callable[[str], None]) -> None:
        self._settings = settings
        self._is_paced = is_paced
        self._pacer: TickPacer | None = None
        self._report = report
        self._slot = take_slot(settings.data_folder / "slots", slot)
        assert settings.bootstrap_servers is not None
        # What the transport reads.
        self.topics = settings.app.topics
        self.client_settings = clients_of(settings)
        self.group_id = worker_group(settings.app.name)
        self.group_instance_id = f"tidemill.{settings.app.name}.worker.{self._slot.number}"
        self.batch_records = settings.app.batch_records
        self.batch_span_ms = settings.app.batch_span_ms
        self.is_bounded = settings.worker.is_bounded
        self.barrier_ms = barrier_of(settings.app) if self.is_bounded else None
        self.max_idle_s = settings.worker.max_idle_s
        self.data_folder = settings.data_folder
        self._engine: Engine | None = None
        self._compute = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._error: BaseException | None = None
        self._stop = asyncio.Event()
        self._busy = asyncio.Lock()
        self._in_hand = InHand()
        self._last_batch = time.monotonic()
        self._passed_at = 0.0  # when time was last let pass
        self._lost_at: float | None = None  # when the group took the partitions away, until it gives some again
        self._consumer: Any = None

    async def run(self, *, web_port: int | None) -> int:
        """Until a signal or an error; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        self._engine = await self._in_compute(Engine, self._settings, slot=self._slot.number, report=self._report)
        if self._is_paced:
            self._pacer = await self._in_compute(TickPacer, self._settings)
        app, topic = make_faust_app(self, web_port=web_port)
        collect_rarely()
        self._watchdog = Watchdog(self._settings.worker.stall_after_s)
        self._causes = Causes(self.client_settings, self._settings.redis_url)
        self._compute_thread: int = await self._in_compute(threading.get_ident)

        @app.agent(topic)
        async def predict(batches: Any) -> None:
            async for batch in batches:
                await self._process(batch)

        @app.page("/healthz")
        async def healthz(page: Any, request: Any) -> Any:
            return page.json(self._health(), status=200 if not self._watchdog.is_stalled else 503)

        @app.page("/metrics")
        async def metrics(page: Any, request: Any) -> Any:
            assert self._engine is not None
            return page.bytes(self._engine.telemetry.text(), content_type="text/plain; version=0.0.4")

        await app.start()
        self._consumer = app.consumer
        helpers = [asyncio.create_task(self._keep_moving()), asyncio.create_task(self._watch())]
        await self._stop.wait()
        deadline_s = STALLED_STOP_DEADLINE_S if self._watchdog.is_stalled else STOP_DEADLINE_S
        threading.Thread(target=_exit_after_deadline, args=(deadline_s, self._exit_code), daemon=True).start()
        for helper in helpers:
            helper.cancel()
        await app.stop()
        if self._pacer is not None:
            await self._in_compute(self._pacer.close)
        await self._in_compute(self._engine.close)
        return self._exit_code()

    # The transport's hooks -------------------------------------------------------------------------------------

    async def on_assigned(self, partitions: frozenset[Partition], generation: int, group_metadata: object) -> None:
        assert self._engine is not None
        self._engine.current_generation = generation
        self._lost_at = None
        self._claimed = (partitions, group_metadata)
        await self._claim(generation)

    async def on_revoked(self, partitions: frozenset[Partition]) -> None:
        """A batch whose script is sent ends; one that has not come so far is discarded by its next owner's claim."""
        assert self._engine is not None
        self._engine.current_generation = -1
        self._lost_at = time.monotonic()
        failpoint("F12")
        async with self._busy:
            with suppress(UnavailableError):  # then its next owner tries their first records apart, at some cost
                await self._in_compute(self._engine.let_go, partitions)
            self._report(f"gave up {len(partitions)} partitions")

    def on_fatal(self, error: BaseException) -> None:
        """Ends the worker with this error's exit code; the first one wins."""
        if self._error is None:
            self._error = error
        self._stop.set()

    # The work --------------------------------------------------------------------------------------------------

    async def _process(self, batch: SourceBatch) -> None:
        """One batch; whatever goes wrong ends in a new claim or in the end of the worker, never in a lost batch."""
        assert self._engine is not None
        try:
            async with self._busy:
                await self._in_compute(self._engine.process, batch)
                await self._pass_time()
        except (FencedError, UnavailableError) as error:
            await self._claim_again(batch.generation, error)
        except Exception as error:
            self.on_fatal(error)
        finally:
            self._last_batch = time.monotonic()
            self._consumer.polling.batch_done()
            self._consumer.polling.set_limit(self._limit())
            self._engine.telemetry.set_out_of_order(self._consumer.polling.out_of_order)

    async def _claim(self, generation: int) -> None:
        """Claim what is assigned and begin to read; again and again while servers do not answer, until a newer
        assignment comes."""
        assert self._engine is not None
        partitions, group_metadata = self._claimed
        deadline = time.monotonic() + UNAVAILABLE_S
        while self._engine.current_generation == generation and not self._stop.is_set():
            try:
                async with self._busy:
                    starts = await self._in_compute(self._engine.claim, partitions, generation, group_metadata)
                    self._engine.epoch = self._consumer.polling.begin(generation, starts, self._engine.ended)
                    self._consumer.polling.set_limit(self._limit())
                self._report(f"owns {len(partitions)} partitions")
                return
            except (FencedError, UnavailableError) as error:
                if time.monotonic() > deadline:
                    raise
                self._report(f"claim failed, trying again: {error}")
                await asyncio.sleep(RETRY_S)

    async def _claim_again(self, generation: int, error: TidemillError) -> None:
        """The batch is discarded; if the partitions are still ours, start over from what is true."""
        assert self._engine is not None
        if self._engine.current_generation != generation or self._stop.is_set():
            return
        self._report(f"batch discarded: {error}")
        try:
            await self._claim(generation)
        except Exception as failed:
            self.on_fatal(failed)

    async def _keep_moving(self) -> None:
        """While no batch comes: look at the other workers, tell them where we wait, settle rows that are due."""
        assert self._engine is not None
        settled_at = 0.0
        while True:
            await asyncio.sleep(LOOK_AGAIN_S)
            polling = self._consumer.polling
            if polling is None or self._engine.current_generation < 0 or self._busy.locked():
                continue
            try:
                candidate = polling.candidate_time
                if candidate is not None and self._pacer is not None and candidate > self._pacer.limit:
                    await self._in_compute(self._pacer.look, candidate, self._engine.own_watermark())
                    polling.set_limit(self._limit())
                elif candidate is not None:
                    async with self._busy:
                        # Watermarks only rise, so a word about the partitions of before a claim would stay.
                        candidate = polling.candidate_time if polling.epoch == self._engine.epoch else None
                        if candidate is not None:
                            await self._in_compute(self._engine.say_waiting, candidate)
                    polling.set_limit(self._limit())
                elif time.monotonic() - max(self._last_batch, settled_at) > SETTLE_EVERY_S:
                    async with self._busy:
                        await self._in_compute(self._engine.take_commands)
                        await self._pass_time()
                        while await self._in_compute(self._engine.settle):
                            pass
                    settled_at = time.monotonic()
            except (FencedError, UnavailableError) as error:
                await self._claim_again(self._engine.current_generation, error)
            except Exception as error:
                self.on_fatal(error)
                return

    async def _pass_time(self) -> None:
        """Now and then, with batches or without; who calls it holds `_busy`.

        A steady stream leaves no pause, and the partitions beside it that are quiet would hold it back for ever.
        """
        assert self._engine is not None
        if time.monotonic() - self._passed_at < SETTLE_EVERY_S:
            return
        if self.is_bounded:
            await self._in_compute(self._engine.look)  # a store that was emptied meanwhile is noticed
        else:
            ends, patience = self._consumer.polling.ends, self._settings.worker.idle_after_s
            await self._in_compute(self._engine.pass_time, ends, idle_after_s=patience)
        self._passed_at = time.monotonic()

    async def _watch(self) -> None:
        """Ends the worker when committed progress has stopped although there is lag, or when nobody could tell."""
        try:
            await self._watch_progress()
        except Exception as error:
            self.on_fatal(error)

    async def _watch_progress(self) -> None:
        assert self._engine is not None
        while True:
            await asyncio.sleep(1.0)
            polling = self._consumer.polling
            if polling is None:
                continue
            ends = polling.ends
            # All three have a patience of their own.
            is_held = self._pacer is not None and self._pacer.is_waiting
            is_held = is_held or self._engine.is_waiting_for_schema or self._engine.is_trying
            committed = {p: at for p, at in self._engine.positions.items() if p in ends and not is_held}
            if self._watchdog.still_s > self._settings.worker.stall_after_s / 3 and not self._busy.locked():
                # Of records behind an open transaction the consumer knows nothing: they count as lag all the same.
                hidden = await asyncio.to_thread(self._causes.hidden, list(committed))
                ends = {**ends, **{partition: end for partition, (_, end) in hidden.items()}}
            stall = self._watchdog.see(committed, ends, now_s=time.monotonic())
            lost_s = 0.0 if self._lost_at is None else time.monotonic() - self._lost_at
            is_lost = lost_s > LOST_PATIENCE * self._settings.worker.stall_after_s
            self._engine.telemetry.set_stalled(self._watchdog.is_stalled or is_lost)
            if stall is not None or is_lost:
                cause = await asyncio.to_thread(self._causes.find, self._waiting(), list(committed))
                lost = f"no progress: the group has given this worker no partition for {lost_s:.0f} s; likely cause: "
                error = UnavailableError("TM-4030", lost + cause if stall is None else stall.text(cause))
                # Now: a blocked thread may keep the process from saying it at its end.
                self._report(f"stalled: {error}")
                self.on_fatal(error)
                return

    def _limit(self) -> int | None:
        """No record later than this may be taken: for the sake of slower workers, and of the loop."""
        assert self._engine is not None
        limits = (self._engine.progress.group_limit, self._pacer.limit if self._pacer is not None else None)
        return min((limit for limit in limits if limit is not None), default=None)

    def _waiting(self) -> Waiting:
        assert self._engine is not None
        polling = self._consumer.polling
        is_held = polling.candidate_time is not None
        return Waiting(
            is_busy=self._in_hand.lasts(self._settings.worker.stall_after_s / 2),
            thread=self._compute_thread,
            group_limit=self._engine.progress.group_limit if is_held else None,
            blocked_by=polling.blocked_by() if self.is_bounded else None,
        )

    def _health(self) -> dict[str, Any]:
        assert self._engine is not None
        progress = self._engine.progress
        return {
            "is_stalled": self._watchdog.is_stalled,
            "partitions": len(self._engine.positions),
            "batches": progress.batches,
            "records": progress.records,
            "n": progress.n,
        }

    async def _in_compute(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        call = functools.partial(function, *arguments, **named)
        with self._in_hand.call():
            return await asyncio.get_running_loop().run_in_executor(self._compute, call)

    def _exit_code(self) -> int:
        if self._error is None:
            return 0
        if not isinstance(self._error, TidemillError):
            traceback.print_exception(self._error, file=sys.stderr)
            print(f"error: TM-9000 {self._error!r}; this is a bug, please report it", file=sys.stderr)
            return 70
        print(f"error: {self._error}", file=sys.stderr)
        return self._error.exit_code


def run_worker(
    settings: Settings, *, slot: int | None, web_port: int | None, is_paced: bool, report: Callable[[str], None]
) -> int:
    """Run one worker until it is told to stop or cannot go on; the exit code.

    Raises:
        ConfigError: TM-1303 the port is taken; those of a slot.
    """
    if web_port is not None:
        check_port(web_port, "--web-port")

    async def main() -> int:
        return await Worker(settings, slot=slot, is_paced=is_paced, report=report).run(web_port=web_port)

    return asyncio.run(main())


def _exit_after_deadline(deadline_s: float, code: Callable[[], int]) -> None:
    time.sleep(deadline_s)
    print(f"error: TM-4031 the worker did not stop within {deadline_s:.0f} s; ending it", file=sys.stderr)
    os._exit(code() or 4)
