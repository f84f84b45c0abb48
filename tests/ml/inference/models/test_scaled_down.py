"""What a small copy of an architecture keeps."""

from tests.vacuous import nonempty
from transformers import LlamaConfig

from luthier.ml.inference.models.scaled_down import scaled_down


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
