"""Archives of made-up pictures, as the examples read them."""

import io
import tarfile

import pytest


def archive_of(pictures, path):
    """Write images `[h, w]` or `[h, w, 3]` of bytes, by name."""
    image = pytest.importorskip("PIL.Image")
    with tarfile.open(path, "w") as archive:
        for name, pixels in pictures.items():
            stream = io.BytesIO()
            image.fromarray(pixels).save(stream, "PNG")
            member = tarfile.TarInfo(name)
            member.size = stream.tell()
            stream.seek(0)
            archive.addfile(member, stream)
