import subprocess
import sys


def test_import_pulls_in_nothing_heavy():
    """torch, numpy, einops and jaxtyping, what these import themselves, and nothing else."""
    script = (
        "import sys, torch, numpy, einops, jaxtyping; before = set(sys.modules); import vsa_core;"
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    new = subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, capture_output=True, text=True).stdout.split()
    assert set(new) - set(sys.stdlib_module_names) == {"vsa_core"}
