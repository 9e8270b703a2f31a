"""docs/connect.md is run as it stands, command by command, against real secured servers; its tables are checked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from connectors.siem import sink, source
from connectors.siem.client import Access
from connectors.siem.install import stream_name
from tests.pages import DOCS, Shell, blocks
from tests.servers import Server
from tests.siem import connected, new_namespace, put_away

ROOT = Path(__file__).parents[2]
PAGE = DOCS / "connect.md"
HEADINGS = {"elasticsearch": "Elasticsearch", "opensearch": "OpenSearch"}


class Reader(Shell):
    """Somebody with a cluster of their own."""

    def __init__(self, server: Server, folder: Path, namespace: str, index: str) -> None:
        host = server.url.removeprefix("https://")
        own = {
            "siem.example.com:9200": host,
            "siem.example.com": host.partition(":")[0],
            "YOUR_NAME": server.username or "",
            "YOUR_PASSWORD": server.password or "",
            "type: elasticsearch  ": f"type: {server.flavour}  ",
            "namespace: default": f"namespace: {namespace}",
            stream_name("default"): stream_name(namespace),
            "logs-trial-default": index,
            '"logs-*"': f'"{index}*"',
        }
        super().__init__(folder, own)
        (folder / "ca.pem").write_bytes(Path(server.ca_file or "").read_bytes())


@pytest.fixture(params=["elasticsearch8_secure", "opensearch2_secure"])
def secure(request: pytest.FixtureRequest) -> Iterator[Server]:
    server: Server = request.getfixturevalue(request.param)
    yield server
    put_away(connected(server.flavour, server.access()))


def there_already(server: Server, index: str) -> None:
    """Index something harmless, as a cluster with logs in it has."""
    cluster = connected(server.flavour, server.access())
    event = {"@timestamp": "2026-01-01T00:00:00Z", "ecs": {"version": "8.17.0"}, "message": "nothing"}
    cluster.request("POST", f"/{index}/_doc", params={"refresh": True}, body=event)
    cluster.close()


def test_whoever_follows_the_page_sees_the_alert(secure: Server, tmp_path: Path) -> None:
    """Roles, accounts, setup, doctor, an event, the alert in the SIEM, and replays that find nothing new."""
    index = f"logs-trial-{uuid4().hex[:12]}"
    reader = Reader(secure, tmp_path, new_namespace(), index)
    there_already(secure, f"{index}-before")
    said = {}
    others = {name for key, name in HEADINGS.items() if key != secure.flavour}
    for block in blocks(PAGE, without=others):
        if block.language == "yaml":
            (tmp_path / "vedette.yml").write_text(reader.name(block.text))
        elif "_search" in block.text:
            said["search"] = reader.do_until(block.text, '"message"')
        else:
            said[block.heading] = said.get(block.heading, "") + reader.do(block.text)
    for line in said["3. Install and check"].splitlines():
        assert not line.startswith(("warning", "failed")), line
    assert "Shadow copies or recovery deleted" in said["4. Run"]
    assert said["search"].count('"message":"Shadow copies or recovery deleted"') == 1
    assert said["5. Replay"].count("; new alerts: 0") == 3

    assert "ok       sink siem: alert ingest time" in reader.do("vedette doctor -c vedette.yml")
    again = reader.do("vedette setup -c vedette.yml --username vedette-setup --password-file setup.password")
    assert {line.split()[0] for line in again.splitlines()} == {"ok"}
    if secure.flavour == "elasticsearch":
        config = (tmp_path / "vedette.yml").read_text()
        user = "    username: vedette-source\n    password: file:source.password\n"
        assert user in config
        (tmp_path / "key.yml").write_text(config.replace(user, "    api_key: file:source.key\n"))
        reader.do("vedette doctor -c key.yml")


# --- tables -----------------------------------------------------------------------------------------------------------


def options() -> dict[str, str]:
    """Return the default of every option that the page has in a table."""
    rows = re.findall(r"^\| `([a-z_]+)` \|(?: (.*?))? \| .+ \|$", PAGE.read_text(), re.M)
    assert len(rows) == len(dict(rows)), "an option stands in two tables"
    return dict(rows)


@pytest.mark.parametrize("model", [source.Options, sink.Options])
def test_the_page_has_every_option_with_its_default(model: type[BaseModel]) -> None:
    """The message shows what to put there."""
    wanted = {name: written(field.get_default()) for name, field in model.model_fields.items()}
    assert {name: default for name, default in options().items() if name in wanted} == wanted


def test_the_page_has_no_option_that_is_none() -> None:
    """What was renamed or removed does not stay."""
    known = {*source.Options.model_fields, *sink.Options.model_fields}
    assert set(options()) == known
    assert set(Access.model_fields) <= known


def written(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    number = int(default) if isinstance(default, float) and default.is_integer() else default
    return "" if default is None else f"`{number}`"


def test_the_messages_are_those_that_are_printed() -> None:
    """Each message that the page explains stands in the code."""
    table = PAGE.read_text().partition("| message | what to do |")[2]
    messages = [message for row in re.findall(r"^\| (`.*?) \|", table, re.M) for message in re.findall("`(.+?)`", row)]
    assert len(messages) > 10
    code = "".join(path.read_text() for room in ("agent", "connectors") for path in (ROOT / room).rglob("*.py"))
    printed = re.sub(r'"\s*\n\s*f?"', "", code)
    for message in messages:
        wanted = re.sub("opensearch", "{found}", message)
        assert message.isdigit() or message in printed or wanted in printed, message


def test_files_that_the_page_names_are_there() -> None:
    """No link leads nowhere."""
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert link.startswith("https://") or (PAGE.parent / link).exists(), link
