"""The Trimtab server. A request passes through its modules in this order:

rpc -> pipeline -> admission -> tokenization -> engine (batcher) -> devices (session) -> outputs -> rpc
"""
