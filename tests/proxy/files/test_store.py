"""Rows and quotas, on both databases, and what is swept."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import structlog
from sqlalchemy import Engine, func, select

from backends.errors import InvalidRequest, NotFound
from proxy import database as db
from proxy.files.disk import Disk
from proxy.files.errors import InsufficientStorage, StorageQuotaExceeded
from proxy.files.quota import Quota, Room
from proxy.files.store import FileStore
from proxy.files.sweep import Sweeper
from proxy.files.uploads import REMEMBERED_S, UploadStore
from proxy.files.values import File, Part, Upload, new_id

NOW = 1_000_000


class Clock:
    now = float(NOW)

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(database: Engine, clock: Clock) -> FileStore:
    return FileStore(database, Quota(), clock)


@pytest.fixture
def uploads(database: Engine, store: FileStore, clock: Clock) -> UploadStore:
    return UploadStore(database, store, clock)


def file(owner: str = "one", **changes: Any) -> File:
    whole: dict[str, Any] = {
        "id": new_id("file-"), "owner": owner, "filename": "a.jsonl", "purpose": "batch", "bytes": 10,
        "created_at": NOW, "expires_at": None,
    }  # fmt: skip
    return File(**{**whole, **changes})


def upload(owner: str = "one", **changes: Any) -> Upload:
    whole: dict[str, Any] = {
        "id": new_id("upload_"), "owner": owner, "filename": "a", "purpose": "evals", "bytes": 10, "status": "pending",
        "created_at": NOW, "expires_at": NOW + 3600,
    }  # fmt: skip
    return Upload(**{**whole, **changes})


def part(of: Upload, size: int = 5) -> Part:
    return Part(new_id("part_"), of.id, size, NOW)


def test_a_file_is_there_until_its_time_is_over(store: FileStore, clock: Clock) -> None:
    mine, lasting = file(expires_at=NOW + 10, bytes=8 * 1024**3), file()
    store.add(mine)
    store.add(lasting)
    assert store.find("one", mine.id) == mine
    assert store.used("one") == (mine.bytes + 10, mine.bytes + 10)
    clock.now += 10
    for attempt in (store.find, store.delete):
        with pytest.raises(NotFound):
            attempt("one", mine.id)
    assert store.page("one", limit=9) == [lasting]
    assert store.used("one") == (10, 10)
    assert store.known([mine.id, lasting.id, "x"]) == {mine.id, lasting.id}
    assert store.forget_expired() == [mine.id]
    assert store.known([mine.id, lasting.id]) == {lasting.id}


def test_lists_are_by_age_and_by_owner(store: FileStore) -> None:
    made = [file(purpose=purpose) for purpose in ("batch", "evals") * 3]
    for one in made:
        store.add(one)
        store.add(file("other"))
    order = sorted(made, key=lambda one: one.id)
    assert store.page("one", limit=100) == order[::-1]
    assert store.page("one", limit=2, newest_first=False, after=order[1].id) == order[2:4]
    assert store.page("one", limit=2, after=order[1].id) == order[:1]
    assert store.page("one", limit=9, purpose="evals") == [one for one in order[::-1] if one.purpose == "evals"]
    assert store.page("one", limit=9, purpose="\0") == []
    assert store.page("", limit=9) == []


def test_an_upload_ends_once(uploads: UploadStore, store: FileStore) -> None:
    mine = upload()
    uploads.create(mine)
    made = [part(mine), part(mine)]
    for one in made:
        uploads.add_part("one", one)
    assert uploads.parts(mine.id) == {one.id: one for one in made}
    assert store.known([one.id for one in made]) == {one.id for one in made}
    assert store.used("one") == (10, 10)
    whole = file()
    ids = [one.id for one in made]
    assert sorted(uploads.complete(mine, whole, ids)) == sorted(ids)
    assert uploads.find("one", mine.id).file == whole
    assert uploads.find("one", mine.id).part_ids == tuple(ids)
    assert store.used("one") == (10, 10)
    for attempt in (
        lambda: uploads.complete(mine, file(), ids),
        lambda: uploads.cancel("one", mine.id),
        lambda: uploads.add_part("one", part(mine)),
    ):
        with pytest.raises(InvalidRequest) as caught:
            attempt()
        assert caught.value.code == "upload_completed"
    assert len(store.page("one", limit=9)) == 1
    store.delete("one", whole.id)
    assert uploads.find("one", mine.id).file is None


def test_of_many_who_end_an_upload_at_once_one_does(uploads: UploadStore, store: FileStore) -> None:
    mine = upload()
    uploads.create(mine)
    uploads.add_part("one", part(mine, 10))
    begin = threading.Barrier(6)

    def end(number: int) -> str:
        begin.wait(30)
        try:
            if number % 2:
                uploads.complete(mine, file(), ["x"])
            else:
                uploads.cancel("one", mine.id)
        except InvalidRequest as error:
            return error.code or ""
        return "done"

    with ThreadPoolExecutor(6) as threads:
        ended = list(threads.map(end, range(6)))
    assert ended.count("done") == 1
    status = uploads.find("one", mine.id).status
    assert ended.count(f"upload_{status}") == 5
    assert len(store.page("one", limit=9)) == (status == "completed")


def test_an_upload_past_its_time_is_told_of_for_a_day(
    uploads: UploadStore, store: FileStore, clock: Clock, database: Engine
) -> None:
    mine = upload()
    uploads.create(mine)
    one = part(mine)
    uploads.add_part("one", one)
    clock.now += 3600
    assert uploads.find("one", mine.id).status == "expired"
    assert store.used("one") == (0, 0)
    with pytest.raises(InvalidRequest):
        uploads.pending("one", mine.id)
    assert uploads.forget_expired() == [one.id]
    clock.now += REMEMBERED_S - 1
    assert uploads.forget_expired() == []
    assert uploads.find("one", mine.id).status == "expired"
    clock.now += 1
    uploads.forget_expired()
    with database.connect() as connection:
        assert connection.execute(select(func.count()).select_from(db.uploads)).scalar() == 0


def test_a_quota_holds_whoever_comes_at_once(database: Engine, clock: Clock) -> None:
    store = FileStore(database, Quota(total=100, per_owner=50), clock)
    begin = threading.Barrier(16)

    def add(number: int) -> str:
        begin.wait(30)
        try:
            store.add(file(f"owner{number % 4}"))
        except (StorageQuotaExceeded, InsufficientStorage) as error:
            return error.code or ""
        return "added"

    with ThreadPoolExecutor(16) as threads:
        added = list(threads.map(add, range(16)))
    assert added.count("added") == 10
    assert store.used("owner0")[0] == 100
    store = FileStore(database, Quota(per_owner=50), clock)
    fitting = 5 - store.used("owner1")[1] // 10
    for _ in range(fitting):
        store.add(file("owner1"))
    with pytest.raises(StorageQuotaExceeded, match="keeps 50 bytes of files and may keep 50"):
        store.add(file("owner1", bytes=1))
    with pytest.raises(StorageQuotaExceeded):
        UploadStore(database, store, clock).create(upload("owner1", bytes=1))


# -- room ------------------------------------------------------------------------------------------------------------


def test_room_is_promised_once() -> None:
    room = Room(Quota(total=100, per_owner=60, keep_free=10), lambda owner: (20, 10), lambda: 1000)
    first = room.promise("one", 30)
    with pytest.raises(StorageQuotaExceeded):
        room.promise("one", 30)
    room.promise("two", 20)
    with pytest.raises(InsufficientStorage):
        room.promise("three", 40)
    first.grow(50, 40)
    first.release()
    room.promise("one", 30)


def test_what_is_still_to_come_is_not_free() -> None:
    free = 100
    room = Room(Quota(keep_free=10), lambda owner: (0, 0), lambda: free)
    first = room.promise("one", 60)
    with pytest.raises(InsufficientStorage):
        room.promise("two", 40)
    free = 40
    first.grow(60, 60)  # all of it is on the disk by now
    room.promise("two", 30)
    with pytest.raises(InsufficientStorage):
        room.promise("three", 0, counted=True).grow(5, 0)


# -- the disk --------------------------------------------------------------------------------------------------------


def placed(disk: Disk, content_id: str) -> None:
    incoming = disk.begin()
    incoming.write(b"content")
    incoming.place(content_id)
    disk.settled(content_id)


def names(disk: Disk) -> set[str]:
    return {path.name for path in disk.directory.rglob("*") if path.is_file() and path.name != "lock"}


def test_what_has_no_row_is_swept_unless_another_process_may_be_about_to_give_it_one(
    tmp_path: Path, store: FileStore, uploads: UploadStore
) -> None:
    disk, other = Disk(tmp_path / "files"), Disk(tmp_path / "files")
    disk.open()
    other.open()
    known, orphan, mine = file(), new_id("file-"), new_id("file-")
    store.add(known)
    placed(disk, known.id)
    sweeper = Sweeper(store, uploads, disk, structlog.get_logger())
    placed(other, orphan)
    incoming = disk.begin()
    incoming.write(b"x")
    incoming.place(mine)
    half = other.begin()
    half.write(b"half")
    assert sweeper.orphans() == 0
    assert names(disk) == {known.id, orphan, mine, "1"}
    assert other._lock is not None
    other.close()  # as the kernel closes a killed one's files
    assert sweeper.orphans() == 1
    assert names(disk) == {known.id, mine}
    disk.settled(mine)
    assert sweeper.orphans() == 1
    assert names(disk) == {known.id}
    half.discard()
    disk.close()
    assert sorted(path.name for path in (tmp_path / "files" / "incoming").iterdir()) == []


def test_a_process_directory_without_a_lock_is_swept_when_it_is_old(tmp_path: Path, monkeypatch: Any) -> None:
    disk = Disk(tmp_path)
    disk.open()
    (tmp_path / "incoming" / "never-locked").mkdir()
    disk.sweep(lambda ids: set())
    assert (tmp_path / "incoming" / "never-locked").exists()
    monkeypatch.setattr("proxy.files.disk.OLD_S", -1.0)
    disk.sweep(lambda ids: set())
    assert not (tmp_path / "incoming" / "never-locked").exists()
    disk.close()
