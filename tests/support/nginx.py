"""A real nginx with the shipped configuration in front of test servers, and the DNS server that it queries."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import trustme

from support.served import ROOT, free_port, wait_until

SHIPPED = ROOT / "deploy" / "nginx" / "nginx.conf"
# Debian installs it in a directory that is not in every user's PATH.
PROGRAM = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin") or "nginx"


def render(directory: Path, *, port: int, name_server_port: int, servers_port: int) -> Path:
    """Write the shipped configuration with the ports and directories of a test. Return its path."""
    text = SHIPPED.read_text()
    replacements = {
        "resolver 127.0.0.11": f"resolver 127.0.0.1:{name_server_port}",
        "server:5000": f"server:{servers_port}",
        "listen 8080": f"listen 127.0.0.1:{port}",
        "/dev/stdout": f"{directory}/access.log",
        "worker_processes auto": "worker_processes 1",
        "/tmp/": f"{directory}/",
    }
    assert [shipped for shipped in replacements if shipped not in text] == []
    text = re.sub("|".join(map(re.escape, replacements)), lambda found: replacements[found[0]], text)
    path = directory / "nginx.conf"
    path.write_text(text)
    return path


def arguments(directory: Path, configuration: Path) -> list[str]:
    """Return the command line without an action such as `-t`."""
    # If root starts nginx, its workers run as `nobody`, which cannot access the test's directories.
    user = "user root; " if os.geteuid() == 0 else ""
    return [PROGRAM, "-p", str(directory), "-c", str(configuration), "-e", "stderr", "-g", f"{user}daemon off;"]


@contextmanager
def proxy(directory: Path, addresses: list[str], servers_port: int) -> Iterator[str]:
    """Run nginx in front of the servers at `addresses`. Yield its URL."""
    port = free_port()
    with NameServer(addresses) as names:
        configuration = render(directory, port=port, name_server_port=names.port, servers_port=servers_port)
        with _run(directory, configuration, port):
            yield f"http://127.0.0.1:{port}"


def _process(directory: Path) -> str:
    return f"worker_processes 1; pid {directory}/nginx.pid; events {{}}"


def _paths(directory: Path) -> str:
    """Return the settings that keep nginx from writing outside of `directory`."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    return "access_log off; " + " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)


@contextmanager
def reusing_proxy(directory: Path, server_port: int, idle_seconds: int) -> Iterator[str]:
    """Run an nginx that keeps idle connections to a server open for `idle_seconds`. Yield its URL."""
    port = free_port()
    configuration = directory / "reusing.conf"
    configuration.write_text(f"""
        {_process(directory)}
        http {{
            {_paths(directory)}
            upstream server {{
                server 127.0.0.1:{server_port};
                keepalive 8;
                keepalive_timeout {idle_seconds}s;
            }}
            server {{
                listen 127.0.0.1:{port};
                location / {{
                    proxy_pass http://server;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_next_upstream off;
                }}
            }}
        }}
    """)
    with _run(directory, configuration, port):
        yield f"http://127.0.0.1:{port}"


@contextmanager
def tls_proxy(directory: Path, server_port: int) -> Iterator[tuple[str, Path]]:
    """Run an nginx that speaks TLS in front of a server. Yield its URL and the certificate of its own authority."""
    port, authority = free_port(), trustme.CA()
    certificate, trusted = directory / "server.pem", directory / "authority.pem"
    authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(trusted)
    configuration = directory / "tls.conf"
    configuration.write_text(f"""
        {_process(directory)}
        http {{
            {_paths(directory)}
            server {{
                listen 127.0.0.1:{port} ssl;
                ssl_certificate {certificate};
                ssl_certificate_key {certificate};
                location / {{
                    proxy_pass http://127.0.0.1:{server_port};
                    proxy_http_version 1.1;
                    proxy_set_header Host $http_host;
                    proxy_set_header Connection upgrade;
                    proxy_set_header Upgrade $http_upgrade;
                }}
            }}
        }}
    """)
    with _run(directory, configuration, port):
        yield f"https://localhost:{port}", trusted


@contextmanager
def _run(directory: Path, configuration: Path, port: int) -> Iterator[None]:
    log = directory / "nginx.log"
    with log.open("wb") as output:
        process = subprocess.Popen(arguments(directory, configuration), stdout=output, stderr=output)
        try:
            wait_until(lambda: process.poll() is not None or _listens(port))
            assert process.poll() is None, log.read_text()
            yield
        finally:
            process.terminate()
            process.wait(20)


class NameServer:
    """A DNS server that answers every query with all of `addresses`, as Docker does for a service (RFC 1035)."""

    def __init__(self, addresses: list[str]) -> None:
        self._addresses = addresses
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._answer, daemon=True)

    def __enter__(self) -> NameServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5)
        self._socket.close()

    def _answer(self) -> None:
        while True:
            query, client = self._socket.recvfrom(512)
            if not query:
                return
            end = query.index(b"\0", 12) + 5  # end of the name, the type and the class
            head = query[:2] + struct.pack("!5H", 0x8180, 1, len(self._addresses), 0, 0)
            records = [
                # A pointer to the name, type A, class IN, 1 s to live.
                struct.pack("!3HIH", 0xC00C, 1, 1, 1, 4) + socket.inet_aton(address)
                for address in self._addresses
            ]
            self._socket.sendto(head + query[12:end] + b"".join(records), client)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
