"""An option: a scheduler class that preempts the newest request where memory is short and all of it is in use.

    --scheduler-cls psi_cache.vllm.preempt.PreemptingScheduler

Without it blocks in use stay until their requests end or need more of them (vLLM preempts then). Its price: a preempted
request is computed again from its first token on, as after any preemption of vLLM's; the scheduler's interface is not
public; and with it vLLM schedules synchronously. At least one request keeps running."""

from __future__ import annotations

import time
from typing import Any, Optional

from vllm.v1.core.sched.scheduler import Scheduler

from .say import WARN, say
from .scheduler import SchedulerHalf


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
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._psi_half = half_of(getattr(self, "connector", None))
        if self._psi_half is None or not hasattr(self, "_preempt_request") or not isinstance(self.running, list):
            self._psi_half = None
            say(WARN, "nothing is preempted for memory: no PsiCacheConnector, or a scheduler that is not known here")

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        half = self._psi_half
        if half is not None:
            wanted = half.make_way()
            preempted = False
            while wanted > 0 and len(self.running) > 1:
                wanted -= preempt_newest(self)
                preempted = True
            if preempted:
                half.make_way()  # before they are given to somebody else
        return super().schedule(*args, **kwargs)
