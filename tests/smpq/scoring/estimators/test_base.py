import pytest

from calib.errors import UserError
from smpq.scoring.estimators import ESTIMATORS, Adaptive, Exact, Permutation, estimator, estimator_from_name


def test_estimators_are_found_by_name_with_their_options():
    assert estimator_from_name("adaptive", most_pairs=20) == Adaptive(most_pairs=20)
    assert estimator_from_name("permutation") == Permutation()
    with pytest.raises(UserError, match=r"adaptive, permutation, antithetic, .*exact"):
        estimator_from_name("guess")


def test_the_decorator_registers_a_class():
    try:
        assert estimator("mine")(Exact) is Exact
        assert estimator_from_name("mine") == Exact()
    finally:
        del ESTIMATORS["mine"]
