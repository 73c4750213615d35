from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from backends.base import Usage
from backends.errors import InvalidRequest, NotAuthenticated, NotFound
from backends.places import Priority
from proxy.accounting import Accounting
from proxy.auth import KeyRing
from proxy.keys import KeyStore, digest
from proxy.principals import Allowance, Principal
from proxy.projects import ProjectStore
from proxy.terms import KeyChanges, NewKey, NewProject, ProjectChanges, parsed
from tests.in_process import serving


def bearer(key: str) -> bytes:
    return f"Bearer {key}".encode()


def new_key(**given: Any) -> NewKey:
    return parsed(NewKey, {"name": "ada", **given})


def changes(**given: Any) -> KeyChanges:
    return parsed(KeyChanges, given)


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys(database: Engine, clock: Clock) -> KeyStore:
    return KeyStore(database, clock)


@pytest.fixture
def projects(database: Engine) -> ProjectStore:
    return ProjectStore(database)


# -- what opens ------------------------------------------------------------------------------------------------------


def test_a_key_opens_until_it_is_revoked(keys: KeyStore) -> None:
    key = keys.create("ada")
    ring = KeyRing(keys, loopback_only=False)
    ring.refresh()
    key_id = ring.principal(bearer(key)).key_id
    assert key_id == keys.list()[0].id
    assert ring.principal(bearer(key)).key_id == key_id

    assert keys.revoke("ada") == 1
    ring.refresh()
    with pytest.raises(NotAuthenticated):
        ring.principal(bearer(key))


def test_keys_are_stored_hashed(database: Engine, keys: KeyStore) -> None:
    key = keys.create("ada")
    with database.connect() as connection:
        stored = str(connection.execute(text("SELECT * FROM keys")).all())
    assert key not in stored
    assert key[6:30] not in stored


@pytest.mark.parametrize(
    "header", [None, b"", b"Bearer", b"Bearer ", b"Bearer wrong", b"Basic abc", b"Bearer \xff\xfe"]
)
def test_anything_else_is_refused(keys: KeyStore, header: bytes | None) -> None:
    keys.create("ada")
    ring = KeyRing(keys, loopback_only=True)
    ring.refresh()
    with pytest.raises(NotAuthenticated) as caught:
        ring.principal(header)
    assert caught.value.status == 401


def test_the_scheme_is_case_insensitive(keys: KeyStore) -> None:
    key = keys.create("ada")
    ring = KeyRing(keys, loopback_only=False)
    ring.refresh()
    assert ring.principal(b"bearer " + key.encode()).key_id


def test_without_any_key_loopback_is_open_and_nothing_else(keys: KeyStore) -> None:
    for loopback_only in (True, False):
        ring = KeyRing(keys, loopback_only=loopback_only)
        ring.refresh()
        assert ring.open is loopback_only


def test_the_first_key_closes_it_and_revoking_the_last_one_does_not_open_it_again(keys: KeyStore) -> None:
    ring = KeyRing(keys, loopback_only=True)
    keys.create("ada")
    ring.refresh()
    assert not ring.open
    keys.revoke("ada")
    ring.refresh()
    assert not ring.open


def test_a_revoked_default_key_is_not_made_again(keys: KeyStore) -> None:
    keys.ensure("default", "sk-sg-abcdef")
    keys.ensure("default", "sk-sg-abcdef")
    keys.revoke("default")
    keys.ensure("default", "sk-sg-abcdef")
    assert [key.revoked_at is None for key in keys.list()] == [False]


@pytest.mark.parametrize(
    ("headers", "answered"),
    [
        ({}, True),
        ({"origin": "http://localhost:3000"}, True),
        ({"host": "evil.example"}, False),
        ({"origin": "http://evil.example"}, False),
        ({"origin": "null"}, False),
    ],
)
async def test_without_a_key_pages_of_other_sites_are_not_answered(
    tmp_path: Path, headers: dict[str, str], answered: bool
) -> None:
    async with serving('[models.m]\nengine = "vllm"\nurls = ["http://127.0.0.1:1"]', tmp_path) as served:
        served.gateway.serving._keys.open = True
        async with httpx.AsyncClient() as http:
            response = await http.get(served.url + "/v1/models", headers=headers)
    assert (response.status_code == 200) is answered


def test_one_key_in_many_spellings_does_not_fill_memory(keys: KeyStore) -> None:
    key = keys.create("ada")
    ring = KeyRing(keys, loopback_only=False)
    ring.refresh()
    for blanks in range(1, 200):
        assert ring.principal(b"Bearer" + b" " * blanks + key.encode())
    assert len(ring._seen) < 20


# -- whose it is -----------------------------------------------------------------------------------------------------


def test_a_key_that_says_nothing_may_do_everything_but_administrate(keys: KeyStore) -> None:
    key = keys.create("ada")
    assert keys.valid() == {digest(key): Principal(key_id=keys.find("ada").id)}


def test_a_principal_has_the_terms_of_key_and_project(keys: KeyStore, projects: ProjectStore, clock: Clock) -> None:
    project = projects.create(
        parsed(
            NewProject, {"name": "physics", "account": "phys", "models": ["b", "c"], "limits": {"tokens_per_day": 9}}
        )
    )
    expires_at = int(clock.now) + 60
    made, key = keys.make(
        new_key(
            project_id="physics",
            models=["b", "a"],
            priority="batch",
            admin=True,
            expires_at=expires_at,
            limits={"concurrent_requests": 2},
        )
    )
    assert keys.valid()[digest(key)] == Principal(
        key_id=made.id,
        project_id=project.id,
        models=frozenset({"b"}),
        priority=Priority.BATCH,
        admin=True,
        expires_at=expires_at,
        key_limits=Allowance(concurrent_requests=2),
        project_limits=Allowance(tokens_per_day=9),
        account="phys",
    )


def test_a_key_without_models_of_its_own_has_its_projects(keys: KeyStore, projects: ProjectStore) -> None:
    projects.create(parsed(NewProject, {"name": "physics", "models": ["a"]}))
    keys.make(new_key(project_id="physics"))
    keys.make(new_key(project_id="physics", models=["b"]))
    assert sorted(keys.valid().values(), key=lambda p: len(p.models or ()))[0].models == frozenset()
    assert sorted(keys.valid().values(), key=lambda p: len(p.models or ()))[1].models == frozenset({"a"})


def test_an_expired_key_is_not_valid(keys: KeyStore, clock: Clock) -> None:
    keys.make(new_key(expires_at=int(clock.now) + 60))
    assert len(keys.valid()) == 1
    clock.now += 60
    assert keys.valid() == {}
    assert keys.find("ada").status == "expired"


def test_a_disabled_key_is_not_valid_until_it_is_enabled(keys: KeyStore) -> None:
    keys.make(new_key())
    assert keys.update("ada", changes(disabled=True)).status == "disabled"
    assert keys.valid() == {}
    assert keys.update("ada", changes(disabled=False)).status == "valid"
    assert len(keys.valid()) == 1


def test_a_disabled_or_archived_project_takes_its_keys_along(keys: KeyStore, projects: ProjectStore) -> None:
    projects.create(NewProject(name="physics"))
    keys.make(new_key(project_id="physics"))
    projects.update("physics", ProjectChanges(disabled=True))
    assert keys.valid() == {}
    projects.update("physics", ProjectChanges(disabled=False))
    assert len(keys.valid()) == 1
    assert projects.archive("physics").status == "archived"
    assert keys.valid() == {}
    assert keys.find("ada").status == "valid"


# -- changing --------------------------------------------------------------------------------------------------------


def test_only_what_is_named_changes(keys: KeyStore) -> None:
    made, _ = keys.make(new_key(models=["a"], priority="batch", limits={"tokens_per_day": 5, "concurrent_requests": 1}))
    changed = keys.update(made.id, changes(limits={"tokens_per_day": None, "tokens_per_month": 7}))
    assert changed.limits == Allowance(concurrent_requests=1, tokens_per_month=7)
    assert (changed.name, changed.models, changed.priority) == (made.name, made.models, made.priority)
    assert keys.update(made.id, changes(models=None, limits=None, name="eve")).limits == Allowance()
    assert keys.find("eve").models is None


def test_a_change_that_contradicts_what_was_there_changes_nothing(keys: KeyStore) -> None:
    made, _ = keys.make(new_key(limits={"tokens_per_month": 5}))
    with pytest.raises(InvalidRequest, match=r"'limits': expected tokens_per_day \(6\) to be at most") as caught:
        keys.update(made.id, changes(name="eve", limits={"tokens_per_day": 6}))
    assert caught.value.param == "limits"
    assert keys.find(made.id) == made


def test_a_key_cannot_be_given_to_a_project_that_is_not_there_or_archived(
    keys: KeyStore, projects: ProjectStore
) -> None:
    projects.create(NewProject(name="old"))
    projects.archive("old")
    for name in ("old", "new", "\0"):
        with pytest.raises(InvalidRequest) as caught:
            keys.make(new_key(project_id=name))
        assert caught.value.param == "project_id"
    assert keys.list() == []


def test_a_revoked_key_is_revoked_for_good(keys: KeyStore) -> None:
    keys.make(new_key())
    keys.revoke("ada")
    with pytest.raises(InvalidRequest, match="for good"):
        keys.update("ada", changes(disabled=False))


def test_a_name_that_several_keys_have_is_not_guessed(keys: KeyStore) -> None:
    first, _ = keys.make(new_key())
    second, _ = keys.make(new_key())
    with pytest.raises(InvalidRequest, match="2 keys are called 'ada'"):
        keys.find("ada")
    keys.revoke(first.id)
    assert keys.find("ada").id == second.id
    assert keys.find(first.id).status == "revoked"


@pytest.mark.parametrize("name", ["nobody", "", "\0", "x" * 1000, "' OR 1=1 --"])
def test_a_key_that_is_not_there_is_not_found(keys: KeyStore, name: str) -> None:
    keys.make(new_key())
    with pytest.raises(NotFound):
        keys.find(name)
    assert keys.revoke(name) == 0
    assert len(keys.valid()) == 1


def test_a_projects_name_is_taken_once(projects: ProjectStore) -> None:
    projects.create(NewProject(name="a"))
    projects.create(NewProject(name="b"))
    with pytest.raises(InvalidRequest, match="called 'a' already") as caught:
        projects.create(NewProject(name="a"))
    assert caught.value.param == "name"
    with pytest.raises(InvalidRequest, match="called 'a' already"):
        projects.update("b", ProjectChanges(name="a"))


def test_a_project_changes_only_what_is_named(projects: ProjectStore) -> None:
    made = projects.create(parsed(NewProject, {"name": "a", "account": "acc", "limits": {"requests_per_minute": 5}}))
    changed = projects.update("a", parsed(ProjectChanges, {"models": ["m"], "limits": {"tokens_per_minute": 6}}))
    assert (changed.account, changed.models) == ("acc", ("m",))
    assert changed.limits == Allowance(requests_per_minute=5, tokens_per_minute=6)
    assert projects.update(made.id, ProjectChanges()) == changed
    assert projects.archive("a").archived_at == projects.archive("a").archived_at


# -- looking ---------------------------------------------------------------------------------------------------------


def test_a_list_comes_in_pages_and_can_leave_out_what_is_over(keys: KeyStore, clock: Clock) -> None:
    made = []
    for _ in range(5):
        made.append(keys.make(new_key())[0].id)
        clock.now += 1
    keys.revoke(made[1])
    assert [key.id for key in keys.list(limit=2)] == made[:2]
    assert [key.id for key in keys.list(after=made[1], limit=2)] == made[2:4]
    assert [key.id for key in keys.list(revoked=False, after=made[0])] == made[2:]
    with pytest.raises(InvalidRequest) as caught:
        keys.list(after="key_nosuch")
    assert caught.value.param == "after"


def test_keys_of_one_second_come_in_pages_too(keys: KeyStore) -> None:
    made = {keys.make(new_key())[0].id for _ in range(5)}
    seen: list[str] = []
    while page := keys.list(limit=2, after=seen[-1] if seen else None):
        seen += [key.id for key in page]
    assert len(seen) == 5
    assert set(seen) == made


def test_a_key_shows_the_day_it_was_last_used(keys: KeyStore, database: Engine) -> None:
    made, _ = keys.make(new_key())
    assert made.last_used is None
    accounting = Accounting(database, now=lambda: 1795348800.0)
    accounting.add(made.id, "", "m", Usage(1, 1))
    accounting.write(accounting.take())
    assert keys.find("ada").last_used == "2026-11-22"
