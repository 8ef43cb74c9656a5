"""The two result files of gpu_check.py: summary.json, and an archive of its working folder.

A rented machine may return only a few files of limited size, and may kill the command at any moment. So both
files are replaced atomically, during the stages and after each of them.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path

ARCHIVE, SUMMARY = "gpu_check.tar.gz", "summary.json"
LIMIT_BYTES = 15 << 20  # of the archive, and of a file in it that is not a log
LOG_BYTES = 1 << 20  # of one log; a longer log is cut in the middle
_SUFFIXES = (".json", ".jsonl", ".log")


class ArchiveError(Exception):
    """A run cannot continue from a file; the message says why."""


def shortened(content: bytes, limit: int) -> bytes:
    """At most about `limit` bytes: a quarter from the beginning, the rest from the end."""
    if len(content) <= limit:
        return content
    first, last = limit // 4, limit - limit // 4
    return content[:first] + f"\n[... {len(content) - limit} bytes ...]\n".encode() + content[-last:]


def _packed(work: Path, log_bytes: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as tar:
        for path in sorted(work.rglob("*")):
            if path.suffix not in _SUFFIXES or not path.is_file():
                continue
            content = shortened(path.read_bytes(), log_bytes if path.suffix == ".log" else LIMIT_BYTES)
            member = tarfile.TarInfo(str(path.relative_to(work)))
            member.size, member.mtime = len(content), int(path.stat().st_mtime)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def publish(work: Path, out: Path, summary: Mapping[str, object]) -> None:
    """Replaces summary.json and the archive, which also contains summary.json, atomically."""
    text = json.dumps(summary, indent=1) + "\n"
    _replace(work / SUMMARY, text.encode())
    log_bytes = LOG_BYTES
    while len(packed := _packed(work, log_bytes)) > LIMIT_BYTES and log_bytes > 1:
        log_bytes //= 4
    _replace(out / ARCHIVE, packed)
    _replace(out / SUMMARY, text.encode())


def _replace(path: Path, content: bytes) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    fresh.replace(path)


def unpack(archive: Path, work: Path) -> None:
    """Fills `work` with the files of an earlier run. Raises ArchiveError."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar.getmembers():
                path = work / member.name
                stays_inside = path.resolve().is_relative_to(work.resolve())
                source = tar.extractfile(member) if member.isfile() and stays_inside else None
                if source is not None and path.suffix in _SUFFIXES:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(source.read())
        json.loads((work / SUMMARY).read_text())
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        shutil.rmtree(work)
        work.mkdir()
        raise ArchiveError(f"{archive} is not an archive of gpu_check.py: {error}") from error


def continue_from(archive: Path, work: Path, of: Mapping[str, str]) -> str:
    """Unpacks the archive if its results are of this library and GPU, and returns an empty text.

    Otherwise returns the difference and leaves `work` empty. `of` is {"gpu": name, "library": sha256}.
    Raises ArchiveError if the file is not an archive of gpu_check.py.
    """
    unpack(archive, work)
    made_with = json.loads((work / SUMMARY).read_text()).get("made_with", {})
    others = [key for key, value in of.items() if made_with.get(key) != value]
    if not others:
        return ""
    shutil.rmtree(work)
    work.mkdir()
    return "; ".join(
        f"its {key} is {str(made_with.get(key))[:40]}, this run's is {of[key][:40]}" for key in others
    )
