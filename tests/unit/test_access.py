"""Who may change what: the table, and what it takes to be let."""

from __future__ import annotations

from typing import get_args

import pytest

from agent.access import PERMISSIONS, Permission, Policy, Principal, Role
from agent.access.policy import ARTIFACTS, PACKS
from agent.config import Configuration
from agent.errors import AccessDenied
from agent.trust import keys
from tests.signing import key


def principal(name: str, *roles: str) -> Principal:
    public = key(name).public_key()
    return Principal(name, frozenset(roles), keys.key_id(public), public)


KIM, ANA, ROOT = principal("kim", "analyst"), principal("ana", "operator", "viewer"), principal("root", "admin")


def test_every_section_has_a_row_and_every_row_a_section() -> None:
    """Closed by default: a section that nobody thought of could not be changed by anybody."""
    assert set(PERMISSIONS) == {*Configuration.sections(), ARTIFACTS, PACKS}


@pytest.mark.parametrize("role", ["viewer", "auditor"])
def test_who_only_looks_may_change_nothing(role: Role) -> None:
    assert not any(role in row.roles for row in PERMISSIONS.values())


def test_an_analyst_silences_rules_and_changes_nothing_else() -> None:
    assert [name for name, row in PERMISSIONS.items() if "analyst" in row.roles] == ["exceptions", "maintenance"]


@pytest.mark.parametrize("section", PERMISSIONS)
@pytest.mark.parametrize("role", get_args(Role))
def test_a_role_may_do_what_its_row_says_and_nothing_else(role: str, section: str) -> None:
    """Role by section, each pair once."""
    one = principal(f"somebody-{role}", role)
    policy = Policy([one])
    if role in PERMISSIONS[section].roles:
        assert policy.authorise("x", section, [one.key_id]) == (one.name,)
        assert one.key_id in policy.keys_for(section)
    else:
        assert one.key_id not in policy.keys_for(section)
        with pytest.raises(
            AccessDenied, match=rf"signed by {one.name} \({role}\), of whom 0 may \(permission {section}"
        ):
            policy.authorise("x", section, [one.key_id])


def test_two_approvals_take_two_people() -> None:
    rows = {"sinks": Permission(roles=("operator", "admin"), approvals=2)}
    policy = Policy([KIM, ANA, ROOT], rows)
    with pytest.raises(AccessDenied, match=r"takes 2 of operator, admin; signed by ana \(operator, viewer\), kim"):
        policy.authorise("x", "sinks", [KIM.key_id, ANA.key_id])
    assert policy.authorise("x", "sinks", [ANA.key_id, ROOT.key_id, KIM.key_id]) == ("ana", "root")


def test_one_person_with_two_keys_is_one_person() -> None:
    second = principal("ana's other key", "operator")
    twin = Principal("ana", second.roles, second.key_id, second.key)
    policy = Policy([ANA, twin], {"sinks": Permission(roles=("operator",), approvals=2)})
    with pytest.raises(AccessDenied):
        policy.authorise("x", "sinks", [ANA.key_id, twin.key_id])


def test_a_revoked_key_counts_for_nothing() -> None:
    policy = Policy([ANA, ROOT], revoked=[ANA.key_id])
    with pytest.raises(AccessDenied, match="signed by nobody known here"):
        policy.authorise("x", "sinks", [ANA.key_id])


@pytest.mark.parametrize("signers", [[], ["0" * 64]])
def test_nobody_may_do_nothing(signers: list[str]) -> None:
    with pytest.raises(AccessDenied):
        Policy([ROOT]).authorise("x", "access", signers)
