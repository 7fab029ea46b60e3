"""`make test-all`: what its table says, and that one bad suite is enough to fail."""

import pytest

from tests.all_suites import SUITES, main, outcome

COUNTS = 'tests="7" failures="{failures}" errors="{errors}" skipped="{skipped}"'
REPORT = f"<testsuites><testsuite {COUNTS}/></testsuites>"


@pytest.mark.parametrize(
    ("failures", "errors", "skipped", "status", "is_good"),
    [(0, 0, 0, 0, True), (1, 0, 0, 1, False), (0, 1, 0, 1, False), (0, 0, 1, 0, False), (0, 0, 0, 2, False)],
)
def test_a_suite_is_good_where_all_its_tests_ran_and_passed(failures, errors, skipped, status, is_good):
    report = REPORT.format(failures=failures, errors=errors, skipped=skipped)
    found = outcome("test", report, 1.0, status)
    assert (found.tests, found.failed, found.skipped) == (7, failures + errors, skipped)
    assert found.is_good == is_good


def test_all_suites_run_whatever_becomes_of_one(capsys):
    ran = []

    def run(suite):
        ran.append(suite)
        missing = suite == "test-services"  # it did not come to its tests
        return outcome(
            suite, "" if missing else REPORT.format(failures=0, errors=0, skipped=0), 1.0, int(missing)
        )

    with pytest.raises(SystemExit, match="1"):
        main([], run)
    assert ran == list(SUITES)
    printed = capsys.readouterr().out
    assert printed.count("good") == len(SUITES) - 1
    assert "did not run" in printed
    with pytest.raises(SystemExit, match="0"):
        main(["page", "test-chaos"], run)
    assert ran[-2:] == ["test-page", "test-chaos"]


def test_an_unknown_suite_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["pages"], None)
    assert "no suite 'pages'; there are test, test-page" in capsys.readouterr().err
