"""Made-up databases tell a query from its neighbours, and are the same each time."""

import pytest
from tests.vacuous import nonempty

from luthier.ml.evaluation.sandbox.runners import SqlRunner
from luthier.ml.evaluation.sql import Table, made_up, neighbours

TABLE = Table("season", ("Player", "Team", "Goals", "Year"))
QUERIES = [
    'SELECT "Player" FROM "season" WHERE "Team" = \'Reds\' AND "Goals" > 10',
    'SELECT COUNT("Player") FROM "season" WHERE "Year" = 1999',
    'SELECT MAX("Goals") FROM "season"',
    'SELECT "Team" FROM "season" WHERE "Player" LIKE \'%son%\'',
    'SELECT "Player" FROM "season" WHERE "Goals" = (SELECT MAX("Goals") FROM "season")',
    'SELECT "Player" FROM "season" ORDER BY "Goals" DESC LIMIT 2',
]


@pytest.fixture(scope="module")
def runner():
    with SqlRunner(seconds=5) as opened:
        yield opened


# That no goals are more than the most is no difference.
SAME_IN_OTHER_WORDS = {QUERIES[4]: 1}


@pytest.mark.parametrize("query", QUERIES)
def test_neighbours_are_told_apart(runner, query):
    made = made_up(TABLE, query, runner.run)
    assert made.error is None
    assert made.num_neighbours > 5
    assert made.num_same == SAME_IN_OTHER_WORDS.get(query, 0)
    assert any(result.num_rows for result in made.results)
    assert made == made_up(TABLE, query, runner.run)
    # What is no neighbour is told apart too.
    for place, database in nonempty(enumerate(made.databases)):
        (zero,) = runner.run(database, ["SELECT 0"])
        assert zero.in_any_order != made.results[place].in_any_order


def test_neighbours_are_one_change_away():
    found = neighbours(TABLE, 'SELECT "Team" FROM "season" WHERE "Goals" = 3 AND "Year" = 1999')
    for expected in (
        'SELECT "Player" FROM "season" WHERE "Goals" = 3 AND "Year" = 1999',
        'SELECT COUNT("Team") FROM "season" WHERE "Goals" = 3 AND "Year" = 1999',
        'SELECT "Team" FROM "season" WHERE "Goals" >= 3 AND "Year" = 1999',
        'SELECT "Team" FROM "season" WHERE "Goals" = 3 + 1 AND "Year" = 1999',
        'SELECT "Team" FROM "season" WHERE "Goals" = 3 OR "Year" = 1999',
        'SELECT "Team" FROM "season" WHERE "Goals" = 3 ',
    ):
        assert expected in found
    wide = Table("wide", tuple(f"c{n}" for n in range(200)))
    assert len(neighbours(wide, 'SELECT "c0" FROM "wide" WHERE "c1" = 1')) <= 80


def test_a_query_that_does_not_run_has_no_databases(runner):
    made = made_up(TABLE, 'SELECT "Player" FROM', runner.run)
    assert made.databases == ()
    assert "incomplete input" in made.error
