from importlib.metadata import version

import pytest

from convrepro.runs import environment

pytestmark = pytest.mark.unit


def test_a_package_that_is_not_installed_is_recorded_as_null(monkeypatch):
    monkeypatch.setattr(environment, "commit", lambda: (None, None))  # which asks git
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "no-such-package"))
    versions = environment.describe("cpu", "32-true")["versions"]
    assert versions["torch"] == version("torch")
    assert versions["no-such-package"] is None
