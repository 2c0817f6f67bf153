"""An option: a scheduler class that preempts for memory.

    --scheduler-cls psi_cache.vllm.preempt.PreemptingScheduler

Without it blocks in use stay until their requests end or need more of them (vLLM preempts then). With it the newest request
is preempted as soon as memory is wanted that only running requests have, and under pressure the next step begins when its
pages are gone (or after 200 ms). The pool has a lock then, so that free blocks go while a step runs, without holding it open.
Its price: a preempted request is computed again from its first token on, as after any preemption of vLLM's; the scheduler's
interface is not public; and with it vLLM schedules synchronously. At least one request keeps running."""

from __future__ import annotations

import contextlib
import time
from typing import Any, Optional

from vllm.v1.core.sched.scheduler import Scheduler

from .say import WARN, say
from .scheduler import SchedulerHalf

LONGEST_WAIT_S = 0.2  # in one schedule, for pages


def half_of(connector: Any) -> Optional[SchedulerHalf]:
    """Our half, also within a MultiConnector."""
    for each in [connector, *getattr(connector, "sub_connectors", [])]:
        half = getattr(each, "scheduler_half", None)
        if isinstance(half, SchedulerHalf):
            return half
    return None


def preempt_newest(scheduler: Any) -> int:
    """Blocks that became free."""
    pool = scheduler.kv_cache_manager.block_pool
    before = pool.get_num_free_blocks()
    request = scheduler.running.pop()
    scheduler._preempt_request(request, time.monotonic())
    # It may run again in this very schedule: the workers must not take it for one that ran on.
    getattr(scheduler, "prev_step_scheduled_req_ids", set()).discard(request.request_id)
    return int(pool.get_num_free_blocks() - before)


class PreemptingScheduler(Scheduler):
    _psi_half: Optional[SchedulerHalf] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        half = half_of(getattr(self, "connector", None))
        if half is None or not hasattr(self, "_preempt_request") or not isinstance(self.running, list):
            say(WARN, "nothing is preempted for memory: no PsiCacheConnector, or a scheduler that is not known here")
            return
        self._psi_half = half
        half.pool_is_guarded = True

    def _pool(self) -> Any:
        """Held by each call that changes the block pool: our thread is at it only between them."""
        return self._psi_half.lock if self._psi_half is not None else contextlib.nullcontext()

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        with self._pool():
            if self._psi_half is not None:
                self._preempt(self._psi_half)
            return super().schedule(*args, **kwargs)

    def _preempt(self, half: SchedulerHalf) -> None:
        until_s = time.monotonic() + LONGEST_WAIT_S
        wanted = half.make_way(until_s)
        while wanted > 0 and len(self.running) > 1:
            while wanted > 0 and len(self.running) > 1:
                wanted -= preempt_newest(self)
            wanted = half.make_way(until_s)  # before they are given to somebody else
        half.made_way()

    def update_from_output(self, *args: Any, **kwargs: Any) -> Any:
        with self._pool():
            return super().update_from_output(*args, **kwargs)

    def add_request(self, *args: Any, **kwargs: Any) -> Any:
        with self._pool():
            return super().add_request(*args, **kwargs)

    def finish_requests(self, *args: Any, **kwargs: Any) -> Any:
        with self._pool():
            return super().finish_requests(*args, **kwargs)

    def reset_prefix_cache(self, *args: Any, **kwargs: Any) -> Any:
        with self._pool():
            return super().reset_prefix_cache(*args, **kwargs)
