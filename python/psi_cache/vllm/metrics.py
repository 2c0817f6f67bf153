"""Gauges beside vLLM's own: psi_cache:kv_resident_blocks, _withheld_blocks, _blocks. The scheduler's half tells them with
each step; vLLM carries them to the process that serves /metrics."""

from __future__ import annotations

from typing import Any, Dict, List

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

GAUGES = {
    "blocks": "KV cache blocks of this engine",
    "resident_blocks": "KV cache blocks that have memory",
    "withheld_blocks": "KV cache blocks without memory that the engine may not use for now; vllm:kv_cache_usage_perc "
    "counts them as used",
    "given_bytes": "KV cache bytes given back to the system so far",
    "stored_blocks": "blocks of cached prefixes that the store has, in memory or not",
    "loaded_blocks": "blocks of prefixes that came back from the store so far",
}


class PsiCacheStats(KVConnectorStats):
    """The newest values: gauges do not add up."""

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        self.data = dict(other.data) or self.data
        return self

    def reduce(self) -> Dict[str, Any]:
        return dict(self.data)

    def is_empty(self) -> bool:
        return not self.data


class PsiCacheProm(KVConnectorPromMetrics):
    def __init__(self, vllm_config: Any, metric_types: Any, labelnames: List[str], per_engine_labelvalues: Any) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._gauges: Dict[str, Any] = {
            name: self._gauge_cls(name=f"psi_cache:kv_{name}", documentation=text, labelnames=labelnames)
            for name, text in GAUGES.items()
        }

    def observe(self, transfer_stats_data: Dict[str, Any], engine_idx: int = 0) -> None:
        for name, value in transfer_stats_data.items():
            if name in self._gauges:
                self._gauges[name].labels(*self.per_engine_labelvalues[engine_idx]).set(value)
