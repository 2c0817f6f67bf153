"""vLLM gives memory back: a KV connector that follows memory pressure.

    vllm serve MODEL --kv-transfer-config '{"kv_connector": "PsiCacheConnector", "kv_role": "kv_producer"}'

That flag is all (the package registers the name through vLLM's plugin entry point). docs/vllm.md says what happens.

The parts, each with one duty:

  plugin.py     the entry point: makes the connector's name known
  load.py       the connector, or in a vLLM that is too old absent.py's, which does nothing
  connector.py  what vLLM calls; hands on to one of two halves, and lets no error of ours reach the engine
  hooks.py      is everything there that is needed? Else one line, and the engine runs untouched
  scheduler.py  the half in the scheduler's process: joins keeper, controller and channel
  keeper.py     which blocks have memory, which are withheld, which go next; knows no vLLM and no system
  prefixes.py   cached prefixes go to the store and come back
  shelf.py      which of them the store has, and where; knows no vLLM
  remote.py     the controller: libpsicache's pool of counts
  channel.py    the sockets between the halves
  line.py       one of them to every worker: messages, and when all have answered
  worker.py     the half in each worker's process: answers the channel
  records.py    the store of a worker: libpsicache's
  step.py       a worker's step, held open for the moment in which the scheduler's half changes the pool
  pages.py      where a block's pages are; gives them back
  arena.py      a KV cache on whole pages, committed by touch, where vLLM lets us allocate it
  preempt.py    an option: a scheduler class that preempts for memory
  metrics.py    gauges beside vLLM's own

Importing this package imports no vLLM.
"""
