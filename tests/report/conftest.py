"""The sample reports as fixtures, fresh for each test."""

from __future__ import annotations

import pytest
from sample_reports import sample_report, unmeasured_report

from edgeconvnext.schema.report import Report


@pytest.fixture
def report() -> Report:
    return sample_report()


@pytest.fixture
def unmeasured() -> Report:
    return unmeasured_report()
