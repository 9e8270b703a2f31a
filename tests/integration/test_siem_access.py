"""Reaching a secured cluster: TLS with a CA, passwords, API keys, client certificates; and refusing what is wrong."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from agent.errors import ConfigError, RetryableError
from connectors.siem.client import Access, Cluster
from tests.servers import Server


def cluster(server: Server, **changes: Any) -> Cluster:
    options = {key: value for key, value in {**server.access(), **changes}.items() if value is not None}
    return Cluster("source logs", server.flavour, Access.model_validate(options))


def other_ca(folder: Path) -> str:
    """Return the file of a CA that has signed nothing here."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody else")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "other.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return str(path)


def refused_as_it_should_be(server: Server, folder: Path) -> None:
    """A wrong CA and a wrong password are errors that say what is wrong, without the secret."""
    with pytest.raises(RetryableError, match=r"(?i)certificate"):
        cluster(server, ca_file=other_ca(folder)).connect()
    with pytest.raises(RetryableError, match=r"(?i)certificate"):
        cluster(server, ca_file=None).connect()
    wrong = folder / "wrong"
    wrong.write_text("kV7-not-the-password")
    with pytest.raises(ConfigError, match="401") as caught:
        cluster(server, password=f"file:{wrong}").connect()
    assert "kV7" not in str(caught.value)


def test_elasticsearch_by_password_and_api_key(elasticsearch8_secure: Server, tmp_path: Path) -> None:
    server = elasticsearch8_secure
    one = cluster(server)
    one.connect()
    assert one.version[0] == 8
    key = one.request("POST", "/_security/api_key", body={"name": "test"}).body["encoded"]
    file = tmp_path / "api.key"
    file.write_text(key + "\n")
    by_key = cluster(server, username=None, password=None, api_key=f"file:{file}")
    by_key.connect()
    assert by_key.request("GET", "/_security/_authenticate").body["authentication_type"] == "api_key"
    file.write_text("bm90OnJlYWw=")
    one.request("DELETE", "/_security/api_key", body={"name": "test"})
    with pytest.raises(RetryableError, match="401"):
        by_key.request("GET", "/")
    refused_as_it_should_be(server, tmp_path)


def test_a_new_password_is_read_after_the_old_one_fails(elasticsearch8_secure: Server, tmp_path: Path) -> None:
    """A password can be changed under a running daemon: the file is read again after a 401."""
    admin = cluster(elasticsearch8_secure)
    secret = tmp_path / "password"
    secret.write_text("first-Tundra-19")
    body: dict[str, Any] = {"password": "first-Tundra-19", "roles": ["superuser"]}
    admin.request("PUT", "/_security/user/rotated", body=body)
    one = cluster(elasticsearch8_secure, username="rotated", password=f"file:{secret}")
    one.connect()
    admin.request("PUT", "/_security/user/rotated", body={**body, "password": "second-Tundra-20"})
    with pytest.raises(RetryableError, match="401"):
        one.request("GET", "/")
    secret.write_text("second-Tundra-20")
    assert one.request("GET", "/").status == 200


def test_opensearch_by_password_and_client_certificate(opensearch2_secure: Server, tmp_path: Path) -> None:
    server = opensearch2_secure
    one = cluster(server)
    one.connect()
    role = {"cluster_permissions": ["cluster:monitor/main"]}
    one.request("PUT", "/_plugins/_security/api/roles/certified", body=role)
    mapping = {"users": ["reader-by-certificate"]}
    one.request("PUT", "/_plugins/_security/api/rolesmapping/certified", body=mapping)
    certificate, key = server.client_cert("reader-by-certificate")
    by_certificate = cluster(server, username=None, password=None, client_cert=str(certificate), client_key=str(key))
    by_certificate.connect()
    info = by_certificate.request("GET", "/_plugins/_security/authinfo").body
    assert info["user_name"] == "reader-by-certificate"
    refused_as_it_should_be(server, tmp_path)
