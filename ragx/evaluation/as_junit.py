"""The report as JUnit XML: one test case a gate, with the metrics as properties."""

import io

from junitparser import Error, Failure, JUnitXml, TestCase, TestSuite

from ragx.artifacts import untrusted
from ragx.records import GateResult, Report

NONCHARACTERS = dict.fromkeys((65534, 65535))


def junit(report: Report) -> str:
    """A gate that failed is a failure, one that was not judged an error; without gates one case says that it ran."""
    suite = TestSuite(f"ragx eval {xml_text(report.split)} {xml_text(report.model)}")
    for gate in report.gates:
        suite.add_testcase(_case(gate))
    if not report.gates:
        suite.add_testcase(TestCase("evaluated", "ragx.eval"))
    suite.add_property("questions", str(report.n))
    if report.limit is not None:
        suite.add_property("smoke run, questions", str(report.limit))
    for name, value in report.metrics.items():
        suite.add_property(name, f"{value.value:.6f}")
    for name, fact in report.signature.items():
        suite.add_property(f"signature {xml_text(name)}", xml_text(fact))
    suite.time = round(report.seconds, 3)
    document = JUnitXml()
    document.add_testsuite(suite)
    document.update_statistics()  # type: ignore[no-untyped-call]
    written = io.BytesIO()
    document.write(written, pretty=True)
    return written.getvalue().decode("utf-8")


def xml_text(text: str) -> str:
    """Text that XML 1.0 can hold: junitparser writes others as they are."""
    return untrusted(text).translate(NONCHARACTERS)


def _case(gate: GateResult) -> TestCase:
    case = TestCase(f"{gate.metric}: {xml_text(gate.rule)}", "ragx.eval.gates")
    reason = xml_text(f"{gate.metric} {gate.reason}")
    if gate.verdict == "not judged":
        case.result = [Error(reason)]
    elif not gate.passed:
        case.result = [Failure(reason)]
    else:
        case.system_out = f"{gate.verdict}: {reason}"
    return case
