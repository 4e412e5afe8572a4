"""Rankers: they turn (context, completion) into the target's rank and the top items.

`protocol` has the contract, `likelihood` the exact one under the policy, `embedding` BIGRec's grounding and `match`
the item that was written. Import from the modules: this package imports nothing by itself.
"""
