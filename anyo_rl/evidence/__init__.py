"""Evidence: what other users' choices and titles say of an item, gathered from cheap retrievers and ranked.

Retrievers name candidates (`retrievers`, `candidates`), features say what speaks for each (`features`), and a ranker
that learned from training users orders them (`ranker`). `companions` are counts that words can tell. What a training
example meets never saw its user (`folds`).
"""
