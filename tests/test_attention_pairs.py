"""Which keys a query meets, against the definition, key by key."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_lab.accounting.parts import Attention

BOUNDS = st.one_of(st.none(), st.integers(1, 20))


def keys_met(attention, token):
    """The keys that one token meets, counted one by one; tokens count from 0."""
    first = 0 if attention.chunk is None else token - token % attention.chunk
    blocks = [last for last in range(first, token + 1) if (last - first + 1) % attention.every == 0]
    if attention.window is not None:
        blocks = blocks[-attention.window :]
    return len(blocks if attention.chosen is None else blocks[: attention.chosen])


@given(st.integers(0, 40), BOUNDS, BOUNDS, BOUNDS, st.integers(1, 6))
def test_pairs_are_the_keys_that_each_token_meets(tokens, window, chunk, chosen, every):
    attention = Attention(1, 1, 1, 1, window=window, chunk=chunk, chosen=chosen, every=every)
    met = [keys_met(attention, token) for token in range(tokens)]
    assert attention.pairs(tokens, tokens, True) == sum(met)
    assert [attention.met(token + 1) for token in range(tokens)] == met
    assert attention.pairs(tokens, tokens, False) == tokens * (tokens // every)


@pytest.mark.parametrize(("queries", "keys"), list(product((0, 1, 5), repeat=2)))
def test_without_a_mask_every_query_meets_every_key(queries, keys):
    attention = Attention(2, 3, 5, 0, causal=False, queries="decoder", keys="encoder")
    assert attention.pairs(queries, keys, True) == attention.pairs(queries, keys, False) == queries * keys
    assert attention.flops_per_pair == 2 * 2 * (3 + 5)


def test_the_cache_keeps_what_a_later_token_may_meet():
    everything = {"heads": 1, "score_dim": 1, "value_dim": 1, "cached": 1}
    assert Attention(**everything).remembered(9) == 9
    assert Attention(**everything, chosen=2).remembered(9) == 9
    assert Attention(**everything, window=4).remembered(9) == Attention(**everything, chunk=4).remembered(9) == 4
    assert Attention(**everything, every=4, chosen=1).remembered(9) == 2
    assert Attention(**everything).met(0) == Attention(**everything, chunk=3).met(0) == 0
