"""What the oldest supported versions (`tests/constraints/oldest.txt`) lack, for tests that meet it."""

import pytest
import torch

OLDEST = torch.__version__.startswith("2.6.")
#: Of a test that exports a batch norm to ONNX which is not folded, or cannot be.
needs_norms_in_onnx = pytest.mark.skipif(
    OLDEST, reason="torch 2.6 cannot write a batch norm to ONNX; a sentence says so"
)
#: Of a test that compares the training loss of an epoch that was interrupted, in float64, to the last digit.
needs_exact_mean = pytest.mark.skipif(OLDEST, reason="the mean of an interrupted epoch is resumed in float32 there")
