import pytest

from luthier.core.engine_rates import EngineRates, EngineSpeed, rates_for, speeds_at

COPY, OWN = EngineSpeed(alone=30, crowd=27), EngineSpeed(alone=15, crowd=43)


def test_faster_is_by_both_rates():
    assert EngineSpeed(alone=20, crowd=40).is_faster_than(EngineSpeed(alone=10, crowd=60))
    assert not EngineSpeed(alone=20, crowd=40).is_faster_than(EngineSpeed(alone=10, crowd=80))


@pytest.mark.parametrize(("num_answers", "rate"), [(0, 15), (1, 15), (2, 19), (4, 27), (8, 43), (16, 43)])
def test_a_rate_lies_between_those_that_were_timed(num_answers, rate):
    assert OWN.at(num_answers) == pytest.approx(rate)


def test_a_crowd_of_one_has_the_rate_of_the_crowd_from_there_on():
    alone = EngineSpeed(alone=5, crowd=7, num_crowd=1)
    assert (alone.at(1), alone.at(2)) == (5, 7)


def test_the_load_decides_where_each_is_faster_somewhere():
    rates = EngineRates(engine=COPY, fallback=OWN)
    assert rates.winner is None
    # 15 + 4 (n - 1) passes 30 - 3/7 (n - 1) between 4.38 and 5 answers.
    assert [rates.takes_fallback(num) for num in (1, 4, 5, 8, 32)] == [False, False, True, True, True]
    assert rates.switch_at == 5


def test_a_model_whose_own_engine_is_faster_alone_switches_the_other_way():
    rates = EngineRates(engine=OWN, fallback=COPY)
    assert rates.takes_fallback(1)
    assert rates.switch_at == 5


def test_one_that_is_nowhere_slower_wins():
    same_alone = EngineSpeed(alone=30, crowd=50)
    assert EngineRates(engine=COPY, fallback=same_alone).winner == "fallback"
    assert EngineRates(engine=same_alone, fallback=COPY).winner == "engine"
    assert EngineRates(engine=COPY, fallback=same_alone).switch_at == 2
    assert EngineRates(engine=same_alone, fallback=COPY).switch_at is None


def test_the_order_at_sixteen_may_be_another_one_than_at_eight():
    copy, own = EngineSpeed(alone=48, crowd=90, many=100), EngineSpeed(alone=28, crowd=80, many=120)
    rates = EngineRates(engine=copy, fallback=own)
    assert [own.at(num) for num in (1, 8, 12, 16, 99)] == [28, 80, 100, 120, 120]
    assert rates.winner is None
    # 90 + 1.25 (n - 8) and 80 + 5 (n - 8) meet between 10 and 11 answers.
    assert rates.switch_at == 11
    assert EngineRates(engine=copy, fallback=own.model_copy(update={"many": 99})).winner == "engine"


def test_rates_of_the_nearest_number_of_variants():
    one, eight = (EngineRates(num_variants=num, engine=COPY, fallback=OWN) for num in (1, 8))
    assert rates_for((), 1) is None
    assert rates_for((eight, one), 1) is one
    assert rates_for((eight, one), 7) is one
    assert rates_for((eight, one), 9) is eight
    assert rates_for((eight,), 1) is eight


def test_a_speed_for_several_adapters_lies_between_the_timings():
    # llama.cpp answers adapters in turn; the own engine answers them together.
    def timed(num, copy, own):
        engine, fallback = (EngineSpeed(alone=alone, crowd=crowd) for alone, crowd in (copy, own))
        return EngineRates(num_variants=num, engine=engine, fallback=fallback)

    one, eight = timed(1, (40, 100), (27, 87)), timed(8, (36, 33), (24, 70))
    rates = (eight, one)
    assert speeds_at((), 4, 4) is None
    assert speeds_at(rates, 1, 1) == pytest.approx((40, 27))
    # With four answers from four adapters the timing with eight holds: it had four of them at once.
    assert speeds_at(rates, 4, 4) == pytest.approx((eight.engine.at(4), eight.fallback.at(4)))
    assert speeds_at(rates, 4, 1) == pytest.approx((one.engine.at(4), one.fallback.at(4)))
    assert speeds_at(rates, 8, 8) == pytest.approx((33, 70))
    # Half of the way from one adapter to seven, in seconds a token.
    seconds = (1 / one.engine.at(7) + 1 / eight.engine.at(7)) / 2
    found = speeds_at(rates, 7, 4)
    assert found is not None
    assert found[0] == pytest.approx(1 / seconds)
    assert speeds_at(rates, 8, 20) == pytest.approx((33, 70))  # more than were timed
    assert speeds_at((eight,), 8, 1) == pytest.approx((33, 70))  # the only timing there is
    assert speeds_at((timed(1, (0, 0), (1, 1)),), 1, 1) == pytest.approx((0, 1))
