"""What the vLLM adapter asks of a vLLM, and says where it is not there; no vLLM is needed. Runs everywhere."""
import sys
import types

import pytest
from fake_vllm import FakeBlockPool

from psi_cache.vllm import hooks, plugin

def test_a_pool_that_lacks_a_call_is_named():
    pool = FakeBlockPool(4)
    assert hooks.missing_in_pool(pool) is None and hooks.works_as_expected(pool)
    assert pool.get_num_free_blocks() == 4
    pool.evict_blocks = None
    assert "evict_blocks" in hooks.missing_in_pool(pool)
    assert "blocks" in hooks.missing_in_pool(types.SimpleNamespace(blocks=[]))


def test_a_pool_that_does_otherwise_is_found_out():
    class Stubborn(FakeBlockPool):
        def touch(self, blocks):
            pass

        def free_blocks(self, blocks):
            pass

    assert not hooks.works_as_expected(Stubborn(4))


def started_on(device="cpu", **parallel):
    return types.SimpleNamespace(device_config=types.SimpleNamespace(device_type=device),
                                 parallel_config=types.SimpleNamespace(**parallel))


def test_the_core_that_vllm_keeps_for_a_connector_is_told_of():
    for start in (started_on(), started_on(local_world_size=1, distributed_executor_backend="mp")):
        told = hooks.idle_core(start, 4, {"VLLM_CPU_OMP_THREADS_BIND": "auto"})
        assert told.startswith("1 of 4 cores idles") and "VLLM_CPU_NUM_OF_RESERVED_CPU=1 " in told


@pytest.mark.parametrize("start, cores, environment", [
    (started_on(), 2, {}),  # vLLM keeps none where none would be left
    (started_on(), 4, {"VLLM_CPU_NUM_OF_RESERVED_CPU": "1"}),
    (started_on(), 4, {"VLLM_CPU_OMP_THREADS_BIND": "0-3"}),
    (started_on(), 4, {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}),
    (started_on(), 4, {"VLLM_CPU_SIM_MULTI_NUMA": "1"}),
    (started_on(local_world_size=2), 8, {}),
    (started_on(distributed_executor_backend="uni"), 4, {}),
    (started_on("cuda"), 4, {})])
def test_no_word_of_cores_where_none_is_kept(start, cores, environment):
    assert hooks.idle_core(start, cores, environment) is None


def test_the_plugin_never_fails(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)  # an import of it raises ImportError
    plugin.register()
    assert "cannot be registered" in capsys.readouterr().err


FAKE_OLD_BASE = """
import abc
class KVConnectorMetadata: pass
class KVConnectorBase_V1(abc.ABC):
    def __init__(self, vllm_config, role): self.role = role
    def register_kv_caches(self, kv_caches): pass
    @abc.abstractmethod
    def start_load_kv(self, forward_context): pass
    @abc.abstractmethod
    def wait_for_layer_load(self, layer_name): pass
    @abc.abstractmethod
    def save_kv_layer(self, layer_name, kv_layer, attn_metadata): pass
    @abc.abstractmethod
    def wait_for_save(self): pass
    @abc.abstractmethod
    def get_num_new_matched_tokens(self, request, num_computed_tokens): pass
    @abc.abstractmethod
    def update_state_after_alloc(self, request, blocks, num_external_tokens): pass
    @abc.abstractmethod
    def build_connector_meta(self, scheduler_output): pass
"""


def test_a_vllm_that_is_too_old_runs_with_a_connector_that_does_nothing(monkeypatch, capsys):
    path = "vllm.distributed.kv_transfer.kv_connector.v1.base"
    names = path.split(".")
    modules = [types.ModuleType(".".join(names[: i + 1])) for i in range(len(names))]
    exec(FAKE_OLD_BASE, vars(modules[-1]))
    for module, child in zip(modules, modules[1:]):
        setattr(module, child.__name__.rsplit(".", 1)[1], child)
    for module in modules:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("load", "absent"):
        monkeypatch.delitem(sys.modules, f"psi_cache.vllm.{name}", raising=False)
    import psi_cache.vllm.load as load

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "no bind_gpu_block_pool" in lines[0] and "untouched" in lines[0]
    connector = load.PsiCacheConnector(None, "scheduler")
    assert connector.get_num_new_matched_tokens(None, 0) == (0, False)
    assert isinstance(connector.build_connector_meta(None), modules[-1].KVConnectorMetadata)
    for name in ("load", "absent"):
        sys.modules.pop(f"psi_cache.vllm.{name}", None)
