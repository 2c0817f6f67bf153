"""The connector for a vLLM that is too old: it takes every call of an old KV connector (v1), and does nothing."""

from __future__ import annotations

from typing import Any, Tuple

import vllm.distributed.kv_transfer.kv_connector.v1.base as base


class _NoHybrid:
    pass


class PsiCacheConnector(base.KVConnectorBase_V1, getattr(base, "SupportsHMA", _NoHybrid)):  # type: ignore[misc]
    def start_load_kv(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_for_layer_load(self, *args: Any, **kwargs: Any) -> None:
        pass

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self, *args: Any, **kwargs: Any) -> None:
        pass

    def get_num_new_matched_tokens(self, *args: Any, **kwargs: Any) -> Tuple[int, bool]:
        return 0, False

    def update_state_after_alloc(self, *args: Any, **kwargs: Any) -> None:
        pass

    def build_connector_meta(self, *args: Any, **kwargs: Any) -> Any:
        return base.KVConnectorMetadata()

    def request_finished_all_groups(self, *args: Any, **kwargs: Any) -> Tuple[bool, None]:
        return False, None
