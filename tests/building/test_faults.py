"""The page of faults: read from the markers of the tests, so that it lists every one of them and none that is gone."""

import ast

import pytest

from helpers.building import faults

MARKED = """
import pytest

class TestBuild:
    @pytest.mark.fault("Building", "a | in `code`", "nothing {{ 1 }} <b>")
    def test_in_a_class(self):
        pass

@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.fault("Building", "one", "is refused")), 2])
def test_cases(x):
    pass

@pytest.mark.fault("Atoms", "one", "is refused")
@pytest.mark.fault("Building", "one", "is refused")
def test_twice():
    pass

def test_plain():
    pass
"""


def test_markers_are_found_wherever_they_stand(tmp_path):
    (tmp_path / "test_marked.py").write_text(MARKED)
    found = faults.collect(tmp_path)
    assert [(fault.area, fault.given, fault.tests) for fault in found] == [
        ("Atoms", "one", ("test_marked.py::test_twice",)),
        ("Building", "a | in `code`", ("test_marked.py::TestBuild::test_in_a_class",)),
        ("Building", "one", ("test_marked.py::test_cases", "test_marked.py::test_twice")),
    ]
    page = faults.faults_page(tmp_path)
    assert page.index("## Atoms") < page.index("## Building")
    assert (
        "| a \\| in \\`code\\` | nothing \\{\\{ 1 \\}\\} \\<b\\><br>`test_marked.py::TestBuild::test_in_a_class` |"
        in page
    )


@pytest.mark.fault(
    "Building the book", "a test's marker without its texts", "the page is not made; file and line are named"
)
@pytest.mark.parametrize(
    "marker",
    ["", "()", '("area", "given")', '("area", "given", "")', '("area", "given", 1)', '("area", "given", f"{1}")',
     '("a", "b", "c", "d")', '("a", "b", "c", d="d")'],
)  # fmt: skip
def test_a_marker_without_its_texts_is_refused(tmp_path, marker):
    (tmp_path / "test_it.py").write_text(f"import pytest\n\n@pytest.mark.fault{marker}\ndef test_x():\n    pass\n")
    with pytest.raises(ValueError, match=r"test_it\.py, line 3.*three texts"):
        faults.collect(tmp_path)


def test_the_page_lists_every_marker_of_these_tests_and_each_test_exists(root, request):
    """Each marker in the files is a line of the page: counted in the text, apart from the parser of the page."""
    found = faults.collect(root / "tests")
    page = faults.faults_page(root / "tests")
    for fault in found:
        for test in fault.tests:
            path, *names = test.split("::")
            defined = {node.name for node in ast.walk(ast.parse((root / "tests" / path).read_text()))
                       if isinstance(node, ast.FunctionDef | ast.ClassDef)}  # fmt: skip
            assert set(names) <= defined and f"`{test}`" in page
    mine = {mark.args for item in request.session.items for mark in item.iter_markers("fault")}
    assert mine and mine <= {(fault.area, fault.given, fault.happens) for fault in found}
