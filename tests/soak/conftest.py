"""A summary of what long runs held."""

import pytest

from tests.soak.growth import REPORTED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    lines = [line for report in reports for name, line in report.user_properties if name == REPORTED]
    if lines:
        terminalreporter.section(REPORTED)
    for line in lines:
        terminalreporter.write_line(line)
