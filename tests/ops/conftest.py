"""Each test of an operator draws the same numbers, whichever ran before it."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.default_generator.manual_seed(0)  # torch.manual_seed takes ten times as long where there is no GPU
