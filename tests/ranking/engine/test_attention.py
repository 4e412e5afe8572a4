"""Ranks of a model that trains with an attention which takes no mask, as FlashAttention does."""

import copy

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from anyo_rl.ranking.distribution import DistributionRanker
from anyo_rl.ranking.engine.likelihood import LikelihoodRanker


def without_masks(module, query, key, value, attention_mask, scaling=None, **_):
    """Attention of FlashAttention's kind: it knows padding (B, K) and causality, and takes no other mask."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    assert attention_mask is None or attention_mask.shape == (len(query), n_keys)
    mask = torch.ones(n_queries, n_keys, dtype=torch.bool).tril(n_keys - n_queries)[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask[:, None, None].bool()
    mask = mask | torch.eye(n_keys, dtype=torch.bool)[n_keys - n_queries :]  # padding has something to attend to
    found = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    return found.transpose(1, 2).contiguous(), None


def test_a_model_that_trains_with_attention_without_masks_is_ranked_all_the_same(
    small_teacher, small_catalog, small_tokens
):
    AttentionInterface.register("without_masks", without_masks)
    AttentionMaskInterface.register("without_masks", flash_attention_mask)
    model = copy.deepcopy(small_teacher)
    model.set_attn_implementation("without_masks")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, small_teacher(ids).logits)
    contexts = [[*small_tokens.context_ids(text), small_tokens.marker_id] for text in ("Alien\n", "x", "Toys mug a\n")]
    targets = list(small_catalog.item_ids[:3])
    plain = DistributionRanker(small_catalog, small_teacher)
    table = plain.log_probs(contexts).numpy()
    np.testing.assert_allclose(DistributionRanker(small_catalog, model).log_probs(contexts), table, atol=1e-5)
    found = LikelihoodRanker(small_catalog, model).rank(contexts, targets, top_k=5)
    expected = plain.rank(contexts, targets, top_k=5)
    assert found.ranks_B.tolist() == expected.ranks_B.tolist()
    assert found.top_ids_B_K == expected.top_ids_B_K
    assert model.config._attn_implementation == "without_masks"
