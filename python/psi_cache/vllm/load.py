"""Where vLLM gets the connector's class from: ours, or, in a vLLM that lacks a hook, one that does nothing and says so."""

from __future__ import annotations

import vllm.distributed.kv_transfer.kv_connector.v1.base as base

from . import hooks
from .say import WARN, say

lacks = hooks.missing_in_base(base)
if lacks is None:
    from .connector import PsiCacheConnector
else:
    from .absent import PsiCacheConnector  # type: ignore[assignment]

    say(WARN, f"the engine runs untouched: {lacks}; vLLM 0.22 was the first with all that is needed")

__all__ = ["PsiCacheConnector"]
