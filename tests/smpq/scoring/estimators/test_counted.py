import numpy as np
import pytest

from calib.errors import UserError
from smpq.scoring.estimators import CountedGame
from smpq.scoring.estimators.counted import MOST_ROWS
from smpq.scoring.estimators.exact import all_coalitions
from tests.smpq.scoring.estimators.games import additive


def test_only_new_coalitions_are_passed_on_and_each_once():
    table = additive(5)
    game = CountedGame(table, 5)
    rows = all_coalitions(5)
    first = game(rows[[3, 7, 3, 0]])
    assert first.tolist() == table.table[[3, 7, 3, 0]].tolist()
    assert game.evaluations == 3
    assert game(rows[[7, 8]]).tolist() == table.table[[7, 8]].tolist()
    assert [len(asked) for asked in table.asked] == [3, 1]
    assert len(game.unknown(rows)) == 32 - 4


def test_many_coalitions_are_asked_for_in_parts():
    table = additive(13)
    game = CountedGame(table, 13)
    assert game(all_coalitions(13)).tolist() == table.table.tolist()
    assert [len(asked) for asked in table.asked] == [MOST_ROWS, MOST_ROWS]


@pytest.mark.parametrize("answer", [np.zeros(3), np.zeros((2, 1)), np.array([0.0, np.nan]), np.array([np.inf, 0.0])])
def test_wrong_answers_of_a_game_are_named(answer):
    with pytest.raises(UserError, match="the game returned"):
        CountedGame(lambda _: answer, 2)(all_coalitions(2)[:2])


def test_a_game_without_players_is_refused():
    with pytest.raises(UserError, match="player"):
        CountedGame(additive(2), 0)
