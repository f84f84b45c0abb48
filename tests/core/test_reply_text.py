import pytest

from luthier.core.conversation import ends_in_thoughts, json_objects, without_thoughts


def test_thoughts_are_left_out_even_without_their_first_tag():
    assert without_thoughts("<think>so?</think> Yes.") == "Yes."
    assert without_thoughts("so?</reasoning>\nYes.") == "Yes."
    assert ends_in_thoughts(without_thoughts("Yes. <think>or"))
    assert not ends_in_thoughts(without_thoughts("<think>a</think>b"))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1.50}', [{"a": "1.50"}]),
        ('so: {"a": {"b": 2}} and {"c": [{"d": 1}]}', [{"a": {"b": "2"}}, {"b": "2"}, {"c": [{"d": "1"}]}, {"d": "1"}]),
        ('{"a": 1, "a": 2}', []),
        ('{"a": NaN}', []),
        ("{" * 1000, []),
        ('{ not {"a": true}', [{"a": True}]),
    ],
)
def test_objects_are_found_wherever_they_stand(text, found):
    assert list(json_objects(text)) == found
