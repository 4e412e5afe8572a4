"""Rankers: they turn (context, completion) into the target's rank and the top items.

`protocol` has the contract, `engine` the exact one under the policy by a bounded search (`likelihood`, or `vllm` for
an engine of vLLM), `distribution` the same ranks by the whole distribution, `embedding` BIGRec's grounding and
`match` the item that was written. Import from the modules: this package imports nothing by itself.
"""
