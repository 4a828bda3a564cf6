"""The matrices say at the end of a run how many cases they hold, whichever process ran them."""

from collections import Counter

from _pytest.terminal import TerminalReporter

MATRIX = "matrix"  # the property that a case records: (name of the matrix, outcome), or what a test counted: a line


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    reports = [each for kind in ("passed", "failed") for each in terminalreporter.stats.get(kind, [])]
    values = [value for each in reports for key, value in each.user_properties if key == MATRIX]
    for line in sorted(value for value in values if isinstance(value, str)):
        terminalreporter.write_line(line)
    cases = Counter(tuple(value) for value in values if not isinstance(value, str))
    for matrix in sorted({name for name, _ in cases}):
        outcomes = {outcome: count for (name, outcome), count in sorted(cases.items()) if name == matrix}
        counted = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
        terminalreporter.write_line(f"{matrix}: {sum(outcomes.values())} cases, {counted}")
