import pytest

from calib.errors import UserError
from smpq.scoring.estimators import ESTIMATORS, Adaptive, Exact, Permutation, Stopping, estimator, estimator_from_name


@pytest.mark.parametrize(("evaluations", "precision"), [(0, 0.0), (-3, 0.1), (10, 1.0), (10, -0.1)])
def test_senseless_stopping_rules_are_refused(evaluations, precision):
    with pytest.raises(UserError):
        Stopping(evaluations, precision)


def test_estimators_are_found_by_name_with_their_options():
    assert estimator_from_name("adaptive", most_pairs=20) == Adaptive(most_pairs=20)
    assert estimator_from_name("permutation") == Permutation()
    with pytest.raises(UserError, match=r"exact, .*permutation, antithetic"):
        estimator_from_name("guess")


def test_the_decorator_registers_a_class():
    try:
        assert estimator("mine")(Exact) is Exact
        assert estimator_from_name("mine") == Exact()
    finally:
        del ESTIMATORS["mine"]
