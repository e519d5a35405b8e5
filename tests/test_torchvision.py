"""timm and torchvision can be imported after the library, whichever builds of torch and torchvision meet."""

import os
import re
import subprocess
import sys

import pytest

from helpers import files


def run(code: str) -> str:
    """What a fresh process prints that runs ``code``."""
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.mark.parametrize("module", ["timm", "torchvision", "torchvision.transforms.v2", "timm.models.resnet"])
def test_the_library_first(module):
    model = "timm.create_model('test_vit').eval()(torch.zeros(1, 3, 160, 160)).shape"
    assert run(f"import helpers, {module}, timm, torch, torchvision; print(*{model})") == "1 1000"


@pytest.mark.fault(
    "Networks and weights",
    "timm imported before helpers, beside a CPU build of torch",
    "that import ends in an error of torch; after helpers is imported it works",
)
@pytest.mark.parametrize("module", ["timm", "torchvision.ops", "timm.models.resnet"])
def test_the_library_after_an_import_that_may_have_failed(module):
    attempt = f"try:\n    import {module}\nexcept RuntimeError as error:\n    print(error)\n"
    said = run(
        f"{attempt}import helpers\nimport {module}, torchvision.transforms\n"
        "from helpers.networks import zoo\nprint('all there')"
    )
    assert said in ("all there", "operator torchvision::nms does not exist\nall there")


@pytest.mark.fault(
    "Networks and weights",
    "timm imported before helpers, in the environment that the Makefile makes",
    "it works: Python declares what torchvision lacks when it is imported there",
)
def test_timm_first_in_the_books_own_environment(tmp_path):
    """The two files that ``make`` puts beside the packages, in an environment that has them."""
    recipe = (files.ROOT / "Makefile").read_text(encoding="utf-8")
    (line,) = re.findall(r"echo '(import _how_vits_see.*)' > .*how_vits_see\.pth", recipe)
    (tmp_path / "how_vits_see.pth").write_text(f"{line}\n", encoding="utf-8")
    (tmp_path / "_how_vits_see.py").write_bytes((files.ROOT / "helpers" / "_torchvision.py").read_bytes())
    start = f"import site, sys; site.addsitedir({str(tmp_path)!r}); "
    assert run(start + "import timm; print('helpers' in sys.modules)") == "False"
    assert run(start + "print('torch' in sys.modules)") == "False"  # no start of Python pays for it
    assert run(start + "import helpers, timm, torchvision.transforms; print('there')") == "there"


def test_torchvision_is_found_where_it_lies_and_an_error_of_its_own_is_not_hidden(tmp_path):
    where = "importlib.util.find_spec('torchvision').origin"
    assert run(f"import importlib.util; print({where})") == run(f"import helpers, importlib.util; print({where})")
    files.write(tmp_path / "torchvision" / "__init__.py", "raise RuntimeError('something else')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import helpers\n"
    assert (
        run(code + "try:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)") == "something else"
    )
