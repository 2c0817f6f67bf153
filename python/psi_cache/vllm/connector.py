"""What vLLM calls: a KV connector (v1) that moves KV to a store of the same machine only. Each call is handed on to one of two halves; an error of ours is
one line, and from then on the engine runs without us."""

from __future__ import annotations

import functools
import os
from typing import Any, Callable, List, Optional, Tuple, TypeVar

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from . import arena, hooks
from .say import DEBUG, ERROR, INFO, WARN, say
from .scheduler import SchedulerHalf
from .worker import WorkerHalf

Call = TypeVar("Call", bound=Callable[..., Any])


class StepMetadata(KVConnectorMetadata):
    """Empty, but for an experiment: the halves talk through a socket of their own, since an idle engine has no steps that
    could carry anything."""

    def __init__(self, returned: Optional[List[int]] = None) -> None:
        self.returned = returned or []  # poisoned blocks that are in use again


def harmless(answer: Any) -> Callable[[Call], Call]:
    """The engine never fails of us: an error ends our part, and the call answers `answer`."""

    def wrap(call: Call) -> Call:
        @functools.wraps(call)
        def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not self.works:
                return answer
            try:
                return call(self, *args, **kwargs)
            except Exception as error:
                self.give_up(call.__name__, error)
                return answer

        return guarded  # type: ignore[return-value]

    return wrap


def advise(vllm_config: Any) -> None:
    """Counts cores as vLLM does when it binds its worker. A vLLM without that code keeps no core."""
    try:
        import vllm.utils.cpu_resource_utils as resources
        import vllm.utils.ompmultiprocessing  # noqa: F401

        node = resources.get_visible_memory_node()[0]
        cores = {cpu.physical_core for cpu in resources.get_allowed_cpu_list() if cpu.numa_node == node}
        line = hooks.idle_core(vllm_config, len(cores), os.environ)
    except Exception as error:
        say(DEBUG, f"cores that vLLM keeps free are not known: {error}")
        return
    if line is not None:
        say(WARN, line)


class PsiCacheConnector(KVConnectorBase_V1, SupportsHMA):
    # Nothing is handed to another engine.
    requires_kv_delivery = False

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.works = os.environ.get("PSI_CACHE_DISABLE") != "1" and kv_cache_config is not None
        self._poisons = os.environ.get("PSI_CACHE_VLLM_PAGES") == "poison"
        self.scheduler_half: Optional[SchedulerHalf] = None
        self.worker_half: Optional[WorkerHalf] = None
        if not self.works:
            say(INFO, "switched off by PSI_CACHE_DISABLE=1" if kv_cache_config is not None else "too old a vLLM")
            return
        config = self._kv_transfer_config
        extra, engine_id = config.kv_connector_extra_config or {}, str(config.engine_id)
        if role == KVConnectorRole.SCHEDULER:
            advise(vllm_config)
            self.scheduler_half = SchedulerHalf(vllm_config, kv_cache_config, engine_id, extra)
        else:
            store = extra.get("store") or os.environ.get("PSI_CACHE_STORE") or "file"
            self.worker_half = WorkerHalf(vllm_config, kv_cache_config, engine_id, store != "none")

    def give_up(self, where: str, error: Exception) -> None:
        self.works = False
        say(ERROR, f"{where} failed ({type(error).__name__}: {error}): the engine goes on without us")
        try:
            if self.scheduler_half is not None:
                self.scheduler_half.shut_down()
        except Exception as further:
            say(DEBUG, f"and so did the end: {further}")

    # ---- worker ----------------------------------------------------------------------------------

    @harmless(None)
    def get_mem_pool_context(self) -> Any:
        off = os.environ.get("PSI_CACHE_VLLM_ARENA") == "off"
        if off or self._vllm_config.device_config.device_type != "cpu":
            return None
        return arena.context()

    @harmless(None)
    def register_kv_caches(self, kv_caches: Any) -> None:
        if self.worker_half is not None:
            self.worker_half.register(kv_caches)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        self._clean(connector_metadata)
        if self.worker_half is not None and self.works:
            self.worker_half.step.begin()

    def clear_connector_metadata(self) -> None:
        super().clear_connector_metadata()
        self.wait_for_save()

    @harmless(None)
    def _clean(self, metadata: Any) -> None:
        """Here and not in start_load_kv, which may come after the forward pass: it would wipe what the pass wrote."""
        if self._poisons and self.worker_half is not None:
            self.worker_half.clean(getattr(metadata, "returned", []))

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        """The step ends; not while the scheduler's half holds it open."""
        if self.worker_half is not None:
            self.worker_half.step.end()

    # ---- scheduler -------------------------------------------------------------------------------

    @harmless(None)
    def bind_gpu_block_pool(self, gpu_block_pool: Any) -> None:
        if self.scheduler_half is not None:
            self.scheduler_half.bind(gpu_block_pool)

    @harmless(None)
    def on_new_request(self, request: Any) -> None:
        if self.scheduler_half is not None:
            self.scheduler_half.new_request(request.request_id)

    @harmless((0, False))
    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Tuple[Optional[int], bool]:
        """Prefixes that are stored come into the pool first, and are found there: None asks vLLM to ask again."""
        self.on_new_request(request)
        if self.scheduler_half is not None and self.scheduler_half.must_wait(request, num_computed_tokens):
            return None, False
        return 0, False

    @harmless(None)
    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if self.scheduler_half is not None:
            self.scheduler_half.begun(request.request_id)
            if num_external_tokens > 0:
                self.scheduler_half.allocated(blocks.get_block_ids())

    @harmless(True)
    def reset_cache(self) -> Optional[bool]:
        if self.scheduler_half is not None:
            self.scheduler_half.forget_stored()
        return True

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return StepMetadata(self._scheduled(scheduler_output))

    @harmless(None)
    def _scheduled(self, scheduler_output: Any) -> Optional[List[int]]:
        if self.scheduler_half is None:
            return None
        self.scheduler_half.scheduled(scheduler_output)
        return self.scheduler_half.take_returned() if self._poisons else None

    @harmless((False, None))
    def request_finished(self, request: Any, block_ids: Any) -> Tuple[bool, Optional[dict]]:
        return self.request_finished_all_groups(request, (block_ids,))

    @harmless((False, None))
    def request_finished_all_groups(self, request: Any, block_ids: Any) -> Tuple[bool, Optional[dict]]:
        if self.scheduler_half is not None:
            self.scheduler_half.finished(request.request_id, block_ids)
        return False, None

    # ---- numbers ---------------------------------------------------------------------------------

    @harmless(None)
    def get_kv_connector_stats(self) -> Any:
        if self.scheduler_half is None or self.scheduler_half.keeper is None:
            return None
        from .metrics import PsiCacheStats

        return PsiCacheStats(data=self.scheduler_half.keeper.gauges())

    @classmethod
    def build_kv_connector_stats(cls, data: Any = None) -> Any:
        from .metrics import PsiCacheStats

        return PsiCacheStats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, metric_types: Any, labelnames: Any, per_engine_labelvalues: Any) -> Any:
        from .metrics import PsiCacheProm

        return PsiCacheProm(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    def shutdown(self) -> None:
        self.works = False
        for half in (self.scheduler_half, self.worker_half):
            if half is not None:
                half.shut_down()
