"""Tests that every operator passes, for this project's operators and for those of other packages. Needs pytest.

from convrepro.testing import OperatorCase, operator_tests
TestMine = operator_tests(OperatorCase(MyOperator, 8, 16, {"ratio": 2}))
"""

import pytest

pytest.register_assert_rewrite("convrepro.testing.operators")

from convrepro.testing.case import OperatorCase, count_weights  # noqa: E402
from convrepro.testing.operators import operator_tests  # noqa: E402

__all__ = ["OperatorCase", "count_weights", "operator_tests"]
