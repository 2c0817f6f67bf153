"""Is everything there that is needed? Looked at when the engine starts, not assumed by version."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional

# Of the connectors' base class; without these vLLM does not tell us enough. The others may be missing.
BASE_CALLS = ("bind_gpu_block_pool", "on_new_request", "register_kv_caches", "build_connector_meta")
# Of the block pool; that they do what we take them to do is tried at start (see works_as_expected).
POOL_CALLS = ("get_num_free_blocks", "touch", "evict_blocks", "free_blocks")
# The same for prefixes in the store; without these they are computed again.
STORE_CALLS = ("get_new_blocks", "get_cached_block", "cache_full_blocks")


def missing_in_base(module: Any) -> Optional[str]:
    """What the module of the connectors' base class lacks, in words; None: nothing."""
    base = getattr(module, "KVConnectorBase_V1", None)
    lacks = [name for name in BASE_CALLS if not callable(getattr(base, name, None))]
    lacks += ["SupportsHMA"] if not hasattr(module, "SupportsHMA") else []
    return f"its KV connectors have no {', '.join(lacks)}" if lacks else None


def missing_in_pool(pool: Any) -> Optional[str]:
    """What the block pool lacks, in words; None: nothing."""
    lacks: List[str] = [name for name in POOL_CALLS if not callable(getattr(pool, name, None))]
    if not isinstance(getattr(pool, "blocks", None), list) or not pool.blocks:
        lacks.append("blocks")
    elif not all(hasattr(pool.blocks[-1], name) for name in ("block_id", "ref_cnt", "block_hash", "is_null")):
        lacks.append("a block's block_id, ref_cnt, block_hash or is_null")
    return f"its block pool has no {', '.join(lacks)}" if lacks else None


def works_as_expected(pool: Any) -> bool:
    """Takes one block out of an unused pool, and puts it back."""
    free = pool.get_num_free_blocks()
    block = next((b for b in pool.blocks if not b.is_null and b.ref_cnt == 0), None)
    if block is None:
        return False
    pool.touch([block])
    taken = pool.get_num_free_blocks() == free - 1 and block.ref_cnt == 1
    pool.free_blocks([block])
    return taken and pool.get_num_free_blocks() == free and block.ref_cnt == 0


def overlap_of_steps(vllm_config: Any) -> Optional[str]:
    """Why the pool may be changed while a step runs, in words; None: it is not."""
    if getattr(vllm_config.scheduler_config, "async_scheduling", False):
        return "steps are scheduled ahead (async_scheduling)"
    if getattr(vllm_config.parallel_config, "pipeline_parallel_size", 1) > 1:
        return "several steps run at a time (pipeline parallelism)"
    return None


def missing_for_store(vllm_config: Any, kv_cache_config: Any, pool: Any) -> Optional[str]:
    """Why prefixes cannot be stored, in words; "": there are none; None: they can.

    A free block must be whole: no step is under way that still writes it when the next is scheduled. And its bytes must be
    all that there is of it, under one name."""
    if not getattr(pool, "enable_caching", False):
        return ""
    lacks = [name for name in STORE_CALLS if not callable(getattr(pool, name, None))]
    lacks += ["cached_block_hash_to_block"] if not hasattr(pool, "cached_block_hash_to_block") else []
    if lacks:
        return f"the block pool has no {', '.join(lacks)}"
    specs = [group.kv_cache_spec for group in kv_cache_config.kv_cache_groups]
    if not all(any(kind.__name__ == "AttentionSpec" for kind in type(spec).__mro__) for spec in specs):
        return "the model keeps more than attention's keys and values"
    sizes = {spec.block_size for spec in specs} | {getattr(pool, "hash_block_size", specs[0].block_size)}
    if len(sizes) != 1:
        return f"its blocks are of {len(sizes)} sizes"
    return overlap_of_steps(vllm_config)


def idle_core(vllm_config: Any, cores: int, environment: Mapping[str, str]) -> Optional[str]:
    """How to get back the core that vLLM for CPUs keeps free for any connector, in words; None: it keeps none, or who
    knows. `cores`: those that vLLM's one worker may have.

    It keeps one for its scheduler, and with a connector one more, meant for one that talks to a network. Where that leaves
    no core it keeps none at all. The worker is bound before a connector is made, so only its user can say."""
    parallel = vllm_config.parallel_config
    one_worker = getattr(parallel, "local_world_size", 1) == 1
    binds = getattr(parallel, "distributed_executor_backend", "mp") == "mp" and vllm_config.device_config.device_type == "cpu"
    chosen = environment.get("VLLM_CPU_OMP_THREADS_BIND", "auto") != "auto" or any(
        name in environment for name in ("VLLM_CPU_NUM_OF_RESERVED_CPU", "VLLM_CPU_SIM_MULTI_NUMA"))
    if not binds or not one_worker or chosen or cores <= 2:
        return None
    return (f"1 of {cores} cores idles: vLLM keeps it for connectors that need one, which this one does not. Unless another "
            "beside it does, VLLM_CPU_NUM_OF_RESERVED_CPU=1 gives it to the model")
