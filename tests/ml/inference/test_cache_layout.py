"""What a config says of the state of its model."""

import pytest
from tests.zoo.families import FAMILIES, family_config

from luthier.ml.inference.kv_cache import rope_border, smallest_window, why_not_cacheable

TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def config_of(name):
    return family_config(FAMILIES[name], vocabulary=64, tokens=TOKENS).get_text_config()


@pytest.mark.parametrize(
    ("family", "window", "words"),
    [
        ("llama", None, ""),
        ("gemma3", 16, ""),
        ("gpt_neo", 16, ""),  # its cache knows nothing of it
        ("llama4", 16, ""),  # chunks
        ("gemma4", 16, ""),  # layers that read the keys of others
        ("lfm2", None, "LinearAttentionLayer"),
        ("falcon_h1", None, "LinearAttentionAndFullAttentionLayer"),
    ],
)
def test_windows_and_states_that_no_batch_can_hold(family, window, words):
    config = config_of(family)
    assert smallest_window(config) == window
    why = why_not_cacheable(config)
    assert words in why
    assert bool(why) == bool(words)


def test_a_config_that_no_cache_is_made_of_is_a_reason():
    config = config_of("llama")
    config.layer_types = ["unheard_of"] * config.num_hidden_layers
    assert smallest_window(config) is None
    assert "no cache of keys and values can be made" in why_not_cacheable(config)


def test_positions_change_their_meaning_where_the_config_says_so():
    config = config_of("phi3")
    assert rope_border(config) is None
    config.rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 32}
    assert rope_border(config) == 32
    config.rope_parameters = {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 64}}
    assert rope_border(config) == 64
