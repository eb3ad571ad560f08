import subprocess
from pathlib import Path

import pytest

from serving.host import build

STRESS = Path(__file__).parent / "host" / "queue_stress.cc"


@pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_every_request_is_answered_once_whoever_computes_expires_or_cancels_it(
    sanitizer: str, tmp_path: Path
) -> None:
    """From many threads at once, and the sanitizer finds nothing."""
    program = tmp_path / "stress"
    sources = [STRESS, *(build.FOLDER / name for name in ("queue.cc", "request.cc", "triton.cc"))]
    flags = ["-std=c++17", "-O1", "-g", "-pthread", f"-fsanitize={sanitizer}", f"-I{build.FOLDER}"]
    subprocess.run([str(build.compiler()), *flags, *map(str, sources), "-o", str(program)], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    made, computed, unavailable, cancelled, answered_other_than_once = map(int, done.stdout.split())
    assert made == computed + unavailable + cancelled
    assert min(computed, unavailable, cancelled) > 0
    assert answered_other_than_once == 0
