"""What a small copy of an architecture keeps."""

from tests.vacuous import nonempty
from transformers import DoryConfig, LlamaConfig, MistralConfig

from luthier.ml.inference.models.smaller_models import SPAN_TOKENS, scaled_down, small_copy


def _config(intermediate: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=256, num_attention_heads=8, num_key_value_heads=8, intermediate_size=intermediate,
        num_hidden_layers=4, vocab_size=512,
    )  # fmt: skip


def test_feed_forward_layers_of_the_usual_width_stay_four_times_the_hidden_state():
    for made in nonempty(list(scaled_down(_config(1024)))):
        assert made.intermediate_size == 4 * made.hidden_size
    for made in nonempty(list(scaled_down(_config(1000)))):
        assert made.intermediate_size == 64


def test_a_window_as_wide_as_the_context_hides_nothing_in_a_small_copy_either():
    """As published for Phi 3.5, with a window of 262,144 tokens and a context of 131,072."""
    for context, window in ((4096, 8192), (8192, 4096)):
        config = MistralConfig(
            hidden_size=256, num_attention_heads=8, num_key_value_heads=8, num_hidden_layers=4, vocab_size=512,
            max_position_embeddings=context, sliding_window=window,
        )  # fmt: skip
        for made in nonempty(list(scaled_down(config))):
            assert made.sliding_window == (window if window >= context else SPAN_TOKENS)


def test_layers_can_all_be_kept():
    assert {made.num_hidden_layers for made in nonempty(list(scaled_down(_config(1024))))} == {2}
    assert {made.num_hidden_layers for made in nonempty(list(scaled_down(_config(1024), keeps_layers=True)))} == {4}


def test_copies_of_widths_that_kernels_do_not_ask_for_come_after_those_that_they_do():
    """As published for gpt-oss, whose 201,088 tokens leave a copy of width 720 too large."""
    config = LlamaConfig(
        hidden_size=2880,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=64,
        num_hidden_layers=4,
        vocab_size=512,
    )
    assert [made.hidden_size for made in scaled_down(config)] == [720, 1440, 45, 180, 2880]


def test_all_layers_are_kept_where_the_config_says_how_many_are_of_which_part(tmp_path):
    """Dory counts its layers in three parts: fewer of them in all are a config that cannot be saved."""
    config = DoryConfig(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, n_input_layers=2, n_output_layers=1,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "base")
    small = small_copy(str(tmp_path / "base"))
    assert small is not None
    assert (small.config.num_hidden_layers, small.config.hidden_size) == (6, 32)
    small.save_pretrained(tmp_path / "copy")
