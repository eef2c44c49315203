"""The package `deploy.runner` as one file that runs on a device, and as a program for a Python that is reached over
ssh.
"""

from __future__ import annotations

import base64
import io
import zipfile
import zlib
from pathlib import Path

import deploy.runner

RUNNER_FILE = "runner.pyz"
_MAIN = "__main__.py"
_PROGRAM = """\
import sys
sys.path[:] = [place for place in sys.path if place]  # nothing is imported from the current directory
if sys.version_info < {oldest!r}:
    {otherwise}
    sys.exit()
import base64, os, tempfile, zlib
with tempfile.TemporaryDirectory() as directory:
    archive = os.path.join(directory, "runner.pyz")
    with open(archive, "wb") as stream:
        stream.write(zlib.decompress(base64.b64decode("{archive}")))
    sys.path.insert(0, archive)
    {code}
"""


def runner_zip() -> bytes:
    """Return `runner.pyz`, an archive in the format of zipapp (PEP 441): `python3 runner.pyz` runs its `__main__.py`.

    It holds the sources as they are. Equal sources give equal bytes on every machine: the files are in the order of
    their names, have one date, and are not compressed.
    """
    package = Path(deploy.runner.__file__).parent
    modules = {f"deploy/runner/{file.name}": file for file in sorted(package.glob("*.py")) if file.name != _MAIN}
    files = {_MAIN: package / _MAIN, "deploy/__init__.py": package.parent / "__init__.py", **modules}
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, file in files.items():
            archive.writestr(zipfile.ZipInfo(name), file.read_bytes())
    return written.getvalue()


def program_text(code: str, oldest: tuple[int, int], otherwise: str) -> str:
    """Return a program for `python -`: a line of `code` that imports from `deploy.runner`, and leaves nothing behind.

    A Python before `oldest` runs the line `otherwise` instead, so both are in syntax that every Python has.
    """
    archive = base64.b64encode(zlib.compress(runner_zip())).decode()
    return _PROGRAM.format(code=code, oldest=oldest, otherwise=otherwise, archive=archive)
