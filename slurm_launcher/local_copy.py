"""In the job: a model's weights, copied once from the shared file system to the node's own disk, used by all replicas.

It is carried inside the batch script before the agent, for models with `local_copy` only, and so is written for Python
3.6 with the standard library. `script.py` says in the manifest what to do:

    "local_copy": {"source": the weights on the shared file system, a directory or a GGUF file,
                   "directory": a directory of the node, such as "/scratch"}

and has the engine read `{weights}/NAME`, NAME being the last part of the source:

    localised(plan, say, tell) -> what {weights} stands for: the copy's folder, or, where there can be no copy, the one
                                  that the source lies in; `say` has been told why

Under the directory lies one folder a user, and in it, for each state that a source was in (sizes and times of its
files):

    <fingerprint>.lock   flock: exclusive while copying or removing, shared by each replica for as long as it lives;
                         its modification time is when the copy was last taken into use
    <fingerprint>.part/  a copy that is being made; renamed when it is whole
    <fingerprint>/       a copy

The kernel gives a lock back when its process ends, however it ends, so nothing is ever left locked. Copies that nobody
uses are removed after `KEEP_S`, or at once where their room is needed, the longest unused first.
"""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import threading
import time
from typing import Any, Callable, Dict, List, Optional, Tuple

KEEP_S = 7 * 86400.0
SPARE_BYTES = 1 << 30  # left free on the node's disk
THREADS = 4  # one stream does not fill a parallel file system
PIECE = 8 << 20
LOOK_EVERY_S = 0.5

_SPLIT_GGUF = re.compile(r"^(.*)-\d{5}-of-(\d{5})\.gguf$")
_FINGERPRINT = re.compile(r"^[0-9a-f]{16}$")
_LEFT_OUT = (".pth", ".pt", ".onnx", ".h5", ".msgpack", ".ckpt")

Say = Callable[[str], None]
Files = List[Tuple[str, str, int, int]]  # where it is, its path within the copy, bytes, modification time in ns

_held: List[int] = []  # the locks of the copies in use: for as long as this process lives


class NoCopy(Exception):
    """Why there is none, for the job's log."""


def localised(plan: Dict[str, Any], say: Say, tell: Say) -> str:
    """The folder that holds the weights under the last part of their name. `tell` gets the progress, in words, now and
    then. Never raises: an engine that reads from the shared file system starts slower, but starts.
    """
    source = str(plan["source"]).rstrip("/")
    try:
        folder = local_copy(source, str(plan["directory"]), tell)
    except NoCopy as why:
        say("weights are read from {}: {}".format(source, why))
    except OSError as error:
        place = error.filename or plan["directory"]
        say("weights are read from {}: {}: {}".format(source, place, error.strerror or error))
    except RuntimeError as error:  # no more threads
        say("weights are read from {}: {}".format(source, error))
    else:
        say("weights are read from the node's copy, {}".format(folder))
        return folder
    return os.path.dirname(source)


def local_copy(source: str, directory: str, tell: Say) -> str:
    """The folder that holds the copy, which nobody will remove while this process lives. Raises NoCopy, OSError."""
    root = own_folder(directory)
    files = files_of(source)
    name = fingerprint(source, files)
    final, part = os.path.join(root, name), os.path.join(root, name + ".part")
    total = sum(size for _, _, size, _ in files)
    while True:
        lock = locked(root, name, lambda: tell(progress("waiting for another replica's copy", part, total)))
        try:
            if not os.path.isdir(final):
                remove(part)
                sweep(root, total)
                copy(files, part, total, tell)
                if fingerprint(source, files_of(source)) != name:
                    raise NoCopy("they changed while they were copied")
                os.rename(part, final)
            os.utime(lock)
            # from here on others may use it too; what came between (this is not one step) is looked for
            fcntl.flock(lock, fcntl.LOCK_SH)
        except BaseException:
            remove(part)
            os.close(lock)
            raise
        if os.path.isdir(final) and is_current(lock, root, name):
            _held.append(lock)
            sweep(root, 0)
            return final
        os.close(lock)


# -- the source -------------------------------------------------------------------------------------------------------


def files_of(source: str) -> Files:
    """What is to be copied: a GGUF file with all its parts, or a directory without what no engine reads."""
    try:
        about = os.stat(source)
    except OSError as error:
        raise NoCopy("{} cannot be read ({})".format(source, error.strerror)) from None
    if stat.S_ISREG(about.st_mode):
        base, name = os.path.split(source)
        split = _SPLIT_GGUF.match(name)
        names = [name]
        if split:
            names = [n for n in os.listdir(base) if _groups(n) == split.groups()]
        return sorted(described(os.path.join(base, n), n) for n in names)
    top = os.path.basename(source)
    safetensors = any(name.endswith(".safetensors") for name in os.listdir(source))
    found = []
    for base, folders, names in os.walk(source, followlinks=True):
        inner = os.path.relpath(base, source)
        folders[:] = [n for n in folders if not n.startswith(".") and n != "original"] if inner.count("/") < 3 else []
        for name in names:
            duplicate = safetensors and name.startswith("pytorch_model") and name.endswith(".bin")
            if not (duplicate or name.startswith(".") or name.endswith(_LEFT_OUT)):
                found.append(described(os.path.join(base, name), os.path.normpath(os.path.join(top, inner, name))))
    if not found:
        raise NoCopy("{} is empty".format(source))
    return sorted(found)


def _groups(name: str) -> Optional[Tuple[str, ...]]:
    match = _SPLIT_GGUF.match(name)
    return match.groups() if match else None


def described(path: str, name: str) -> Tuple[str, str, int, int]:
    about = os.stat(path)  # behind links: the hub's cache is made of them
    return path, name, about.st_size, about.st_mtime_ns


def fingerprint(source: str, files: Files) -> str:
    """Changes when the source does."""
    known = repr((os.path.realpath(source), [(name, size, changed) for _, name, size, changed in files]))
    return hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:16]


# -- the node's disk --------------------------------------------------------------------------------------------------


def own_folder(directory: str) -> str:
    """This user's part of the directory. Others may write beside it, so it is looked at who made it."""
    if not os.path.isdir(directory):
        raise NoCopy("this node has no {}".format(directory))
    root = os.path.join(os.path.realpath(directory), "slurmgate-weights-{}".format(os.getuid()))
    try:
        os.mkdir(root, 0o700)
    except FileExistsError:
        pass
    about = os.lstat(root)
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or about.st_mode & 0o022:
        raise NoCopy("{} belongs to somebody else, or anybody may write there".format(root))
    return root


def locked(root: str, name: str, waiting: Callable[[], None]) -> int:
    """An exclusive lock, or a shared one as soon as the copy is there. Calls `waiting` while it waits."""
    while True:
        lock = opened(root, name)
        try:
            while True:
                kind = fcntl.LOCK_SH if os.path.isdir(os.path.join(root, name)) else fcntl.LOCK_EX
                try:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if error.errno not in (errno.EWOULDBLOCK, errno.EINTR):
                        raise
                waiting()
                time.sleep(LOOK_EVERY_S)
            if is_current(lock, root, name) and (kind == fcntl.LOCK_EX or os.path.isdir(os.path.join(root, name))):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # a sweep took the file, or the copy, away meanwhile


def opened(root: str, name: str) -> int:
    return os.open(os.path.join(root, name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def is_current(lock: int, root: str, name: str) -> bool:
    """Whether it is still the file of that name that is locked."""
    try:
        there = os.stat(os.path.join(root, name + ".lock"))
    except OSError:
        return False
    here = os.fstat(lock)
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)


def sweep(root: str, wanted: int) -> None:
    """Remove copies that nobody uses: those not used for long, and more of them until `wanted` bytes fit.

    Raises NoCopy where they do not.
    """
    unused = []
    for entry in os.listdir(root):
        name = entry[: -len(".lock")] if entry.endswith(".lock") else ""
        if _FINGERPRINT.match(name):
            try:
                unused.append((os.stat(os.path.join(root, entry)).st_mtime, name))
            except OSError:
                continue  # another replica removes it
    for used_at, name in sorted(unused):
        if time.time() - used_at > KEEP_S or (wanted and room(root) < wanted + SPARE_BYTES):
            discard(root, name)
    if wanted and room(root) < wanted + SPARE_BYTES:
        raise NoCopy(
            "{:.1f} GB do not fit: {} has {:.1f} GB free".format(wanted / 1e9, os.path.dirname(root), room(root) / 1e9)
        )


def discard(root: str, name: str) -> None:
    """Remove a copy, unless somebody holds its lock."""
    lock = opened(root, name)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_current(lock, root, name):
            remove(os.path.join(root, name))
            remove(os.path.join(root, name + ".part"))
            os.unlink(os.path.join(root, name + ".lock"))
    except OSError:
        pass  # in use
    finally:
        os.close(lock)


def room(root: str) -> int:
    about = os.statvfs(root)
    return about.f_bavail * about.f_frsize


def remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# -- copying ----------------------------------------------------------------------------------------------------------


def copy(files: Files, part: str, total: int, tell: Say) -> None:
    """All files, a few at a time, the largest first. Raises what the first that failed did."""
    for _, name, _, _ in files:
        os.makedirs(os.path.dirname(os.path.join(part, name)), mode=0o700, exist_ok=True)
    left = sorted(files, key=lambda file: file[2])
    failed: List[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        while left and not failed and not ended.is_set():
            try:
                source, name, size, _ = left.pop()
            except IndexError:
                return
            try:
                copy_file(source, os.path.join(part, name), size, ended)
            except (OSError, NoCopy) as error:
                failed.append(error)

    # daemons: a job that is told to end does not wait for them
    workers = [threading.Thread(target=work, name="copy", daemon=True) for _ in range(min(THREADS, len(files)))]
    try:
        for worker in workers:
            worker.start()
        told_at = 0.0
        for worker in workers:
            while worker.is_alive():
                if time.monotonic() - told_at > LOOK_EVERY_S:
                    told_at = time.monotonic()
                    tell(progress("copying weights", part, total))
                worker.join(0.05)
    finally:
        ended.set()
        for worker in workers:
            worker.join()
    if failed:
        raise failed[0]


def copy_file(source: str, target: str, size: int, ended: threading.Event) -> None:
    copied = 0
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        while not ended.is_set():
            piece = read.read(PIECE)
            if not piece:
                break
            view = memoryview(piece)
            while view:
                view = view[write.write(view) or 0 :]
            copied += len(piece)
    if copied != size:
        raise NoCopy("{} changed while it was copied".format(source))


def progress(what: str, part: str, total: int) -> str:
    """Such as "copying weights: 34 %"."""
    done = 0
    for base, _, names in os.walk(part):
        for name in names:
            try:
                done += os.stat(os.path.join(base, name)).st_size
            except OSError:
                continue  # renamed meanwhile
    return "{}: {} %".format(what, min(100, done * 100 // max(1, total)))
