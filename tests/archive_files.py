"""Archives for tests: written member by member, and what was unpacked of them."""

import io
import os
import tarfile

FILES = {f"a/{i}.jpg": os.urandom(3000) for i in range(9)}


def member(name, content=b"", kind=tarfile.REGTYPE, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar_of(*members, files=FILES):
    """Bytes of a tar archive, `members` in its middle."""
    buffer, entries = io.BytesIO(), [member(name, content) for name, content in files.items()]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in [*entries[:4], *members, *entries[4:]]:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def files_below(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
