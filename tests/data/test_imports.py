import subprocess
import sys

import invertible.data


def test_heavy_libraries_wait_until_they_are_needed():
    heavy = ("matplotlib", "sklearn", "pooch", "PIL", "scipy", "accelerate", "torchvision")
    code = f"import sys, invertible.data; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_public_name_is_documented():
    for name in invertible.data.__all__:
        assert getattr(invertible.data, name).__doc__
