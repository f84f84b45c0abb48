from luthier.ml.inference.llama_cpp.slots import Slots


def test_a_slot_goes_to_who_begins_as_it_has_read_with_the_same_adapter():
    slots = Slots(3, 1000)
    taken = [
        slots.take(name, adapter, ids, 10)
        for name, adapter, ids in [("a", None, [1, 2, 3]), ("b", "x", [1, 2, 3]), ("c", None, [7])]
    ]
    assert sorted(taken) == [0, 1, 2]
    for number in taken:
        slots.give_back(number)
    assert slots.take("d", "x", [1, 2, 9], 10) == taken[1]
    assert slots.take("e", None, [1, 2, 9], 10) == taken[0]


def test_without_a_common_beginning_the_longest_unused_is_taken():
    slots = Slots(2, 1000)
    first, second = slots.take("a", None, [1], 1), slots.take("b", None, [2], 1)
    slots.give_back(second)
    slots.give_back(first)
    assert slots.take("c", None, [3], 1) == first
    assert slots.num_used == 1


def test_room_is_that_of_slots_and_of_tokens():
    slots = Slots(4, 100)
    slots.take("a", None, [1], 60)
    assert slots.has_room_for(2, 20)
    assert not slots.has_room_for(3, 20)
    assert not slots.has_room_for(4, 1)
    assert Slots(4, 100).has_room_for(4, 25)
