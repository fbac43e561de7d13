"""Find the official files of a data set: the user's folder, then the cache, then the network.

Two environment variables steer it.  FFLEARN_DATA is a folder of the user's own files, which are
read as they are.  FFLEARN_CACHE is where downloads are kept (default ~/.cache/fflearn).
"""

import gzip
import hashlib
import os
import uuid
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

from fflearn.data.official import SOURCES, Official, Source
from fflearn.errors import DataError, MissingExtra

__all__ = ["cache_folder", "find", "user_folders"]

# Seconds to wait for a connection, and for the next bytes of an answer.
TIMEOUT = (10.0, 30.0)
_CHUNK = 1 << 15


def user_folders(name: str) -> list[Path]:
    """Where the user's own files of a data set may lie: FFLEARN_DATA/<name>, FFLEARN_DATA.

    Raises
    ------
    DataError
        FFLEARN_DATA is set to something that is not a folder.
    """
    value = os.environ.get("FFLEARN_DATA")
    if not value:
        return []
    root = Path(value).expanduser()
    if not root.is_dir():
        raise DataError(
            f"FFLEARN_DATA needs to be a folder; got {value!r}. "
            "Create it, or unset the environment variable."
        )
    return [root / name, root]


def cache_folder() -> Path:
    """Where downloads are kept: FFLEARN_CACHE, or fflearn in the user's cache folder."""
    value = os.environ.get("FFLEARN_CACHE")
    if value:
        return Path(value).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "fflearn"


def find(source: Source, download: bool = True) -> tuple[list[Path], tuple[str, ...]]:
    """Return the files of a data set, after downloading those that are missing.

    A file in FFLEARN_DATA is taken as it is: one that is not the official one gives a warning
    and a note, for its owner may have meant it.  A file in the cache must be the official one.

    Parameters
    ----------
    source : Source
        Which files.
    download : bool
        Whether the network may be used.

    Returns
    -------
    paths : list of Path
        One per file of `source`, in its order.
    notes : tuple of str
        One per file that is not the official one.

    Raises
    ------
    DataError
        FFLEARN_DATA has some of the files only, the cache cannot be written, or no mirror has
        the file; the message then lists every file with its checksum and addresses.
    MissingExtra
        A file must be downloaded and pooch is not installed.
    """
    for folder in user_folders(source.name):
        paths = [_plain_or_packed(folder, f.name) for f in source.files]
        present = [p for p in paths if p is not None]
        # MNIST, Fashion-MNIST and KMNIST use the same file names.
        if not present or (folder.name != source.name and _of_other_set(present, source)):
            continue
        if len(present) < len(paths):
            missing = [f.name for f, p in zip(source.files, paths, strict=True) if p is None]
            raise DataError(
                f"{source.name} needs all of its files in one folder; got {present[0].name} but "
                f"no {', '.join(missing)} in {folder}. Add them, or take the others away."
            )
        notes = tuple(_foreign(source, present))
        if notes:
            # The frame to blame is the caller of load(): find <- source's load <- _load <- load.
            warnings.warn(f"{source.name}: {'; '.join(notes)}", UserWarning, stacklevel=5)
        return present, notes
    return _from_cache(source, download), ()


def _plain_or_packed(folder: Path, name: str) -> Path | None:
    for path in (folder / name, folder / name.removesuffix(".gz")):
        if path.is_file():
            return path
    return None


def _md5(path: Path, unpack: bool = False) -> str:
    """Hex digest of a file or of what it unpacks to; empty if it does not unpack."""
    try:
        with gzip.open(path) if unpack else path.open("rb") as f:
            return hashlib.file_digest(f, _new_md5).hexdigest()
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return ""


def _new_md5():
    return hashlib.md5(usedforsecurity=False)


def _of_other_set(paths: list[Path], source: Source) -> bool:
    others = {
        digest
        for other in SOURCES.values()
        for file in other.files
        for digest in file[1:]
        if other.name != source.name
    }
    return any(_md5(path) in others or _md5(path, unpack=True) in others - {""} for path in paths)


def _foreign(source: Source, paths: list[Path]) -> Iterator[str]:
    for official, path in zip(source.files, paths, strict=True):
        digest = _md5(path)
        known = {official.md5, official.raw_md5} - {""}
        if digest not in known and not (official.raw_md5 and _md5(path, unpack=True) in known):
            yield f"{path.name} in FFLEARN_DATA has md5 {digest}, the official file {official.md5}"


def _from_cache(source: Source, download: bool) -> list[Path]:
    folder = cache_folder() / source.name
    paths, mirrors = [], list(source.mirrors)
    for official in source.files:
        path = folder / official.name
        if not (path.is_file() and _md5(path) == official.md5):
            if not download:
                raise _unavailable(source, official, ["download=False"])
            _download(source, official, path, mirrors)
        paths.append(path)
    return paths


def _download(source: Source, official: Official, path: Path, mirrors: list[str]) -> None:
    """Get one file from the first mirror that has it; moves that mirror to the front."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.touch()
    except OSError as error:
        raise DataError(
            f"the download of {source.name} needs a folder to write to; got {error} in "
            f"{path.parent}. Set the environment variable FFLEARN_CACHE to another folder."
        ) from error
    failures = []
    try:
        for mirror in tuple(mirrors):
            url = mirror + official.name
            try:
                _get(url, part, source.name)
            # requests' errors are OSErrors; a malformed header makes pooch raise a ValueError.
            except (OSError, ValueError) as error:
                failures.append(f"{url}: {error}")
                continue
            digest = _md5(part)
            if digest == official.md5:
                # Same folder, so the move is atomic: no reader, and no second process that
                # downloads the same file, ever sees half of it.
                os.replace(part, path)
                mirrors.sort(key=mirror.__ne__)
                return
            failures.append(f"{url}: {part.stat().st_size} bytes with md5 {digest}")
    finally:
        part.unlink(missing_ok=True)
    raise _unavailable(source, official, failures)


def _get(url: str, path: Path, name: str) -> None:
    try:
        from pooch import HTTPDownloader
    except ImportError as error:
        raise MissingExtra.of("pooch", "data", f"downloading {name}") from error
    from tqdm import tqdm

    # total=1: pooch asks bool(bar), an error without a total, and then sets the true one.
    # disable=None: no bar where the output is not a terminal.
    options = {"unit": "B", "unit_scale": True, "disable": None}
    with tqdm(desc=url.rpartition("/")[2], total=1, **options) as bar:
        # "identity": a server must not gzip the gzip file, which requests would then undo.
        HTTPDownloader(
            progressbar=bar,
            chunk_size=_CHUNK,
            timeout=TIMEOUT,
            headers={"Accept-Encoding": "identity"},
        )(url, str(path), None)


def _unavailable(source: Source, official: Official, failures: list[str]) -> DataError:
    expected = "\n".join(
        f"  {file.name}  md5 {file.md5}\n"
        + "\n".join(f"    {mirror}{file.name}" for mirror in source.mirrors)
        for file in source.files
    )
    return DataError(
        f"{source.name} needs {official.name}; found it neither in FFLEARN_DATA nor in "
        f"{cache_folder() / source.name}, and could not download it:\n  "
        + "\n  ".join(failures)
        + f"\nPut these files into a folder D/{source.name} and set FFLEARN_DATA=D:\n{expected}"
    )
