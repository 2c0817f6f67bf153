"""vLLM's general plugin of this package: makes the connector's name known. Loaded in every process of vLLM, also where
nobody asks for the connector: so it does nothing else, and never fails."""

from __future__ import annotations

from .say import DEBUG, WARN, say

NAME = "PsiCacheConnector"


def register() -> None:
    try:
        from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

        KVConnectorFactory.register_connector(NAME, "psi_cache.vllm.load", NAME)
    except ValueError:
        say(DEBUG, f"{NAME} is registered already")
    except Exception as error:  # whatever this vLLM is: it starts without us
        say(WARN, f"{NAME} cannot be registered ({error}): this vLLM has no KV connectors (v1) that are known here")
