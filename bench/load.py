"""A small HTTP load generator over keep-alive connections: requests per second and latency percentiles."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class LoadResult:
    """The result of a run; latencies in seconds."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)

    @property
    def requests_per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Connection:
    """One keep-alive connection."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self._buffer = b""

    def request(self, method: str, path: str, body: bytes = b"", headers: str = "") -> tuple[int, bytes]:
        """Send one request; return its status and body. Retries once if the server had closed the idle connection."""
        is_kept = self._socket is not None
        try:
            return self._request(method, path, body, headers)
        except ConnectionError:
            if not is_kept or self._buffer:
                raise
            self.close()
            return self._request(method, path, body, headers)

    def _request(self, method: str, path: str, body: bytes, headers: str) -> tuple[int, bytes]:
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=600)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._buffer = b""
        length = f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n" if body else ""
        self._socket.sendall(f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{length}{headers}\r\n".encode() + body)
        head, self._buffer = self._until(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        fields = {key.lower(): value.strip() for key, _, value in (line.partition(b":") for line in lines[1:])}
        size = int(fields.get(b"content-length", b"0"))
        while len(self._buffer) < size:
            self._fill()
        response, self._buffer = self._buffer[:size], self._buffer[size:]
        if fields.get(b"connection", b"").lower() == b"close":
            self.close()
        return int(lines[0].split()[1]), response

    def post(self, path: str, fields: object) -> tuple[int, dict[str, object]]:
        status, response = self.request("POST", path, json.dumps(fields).encode())
        return status, json.loads(response)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _until(self, mark: bytes) -> tuple[bytes, bytes]:
        while mark not in self._buffer:
            self._fill()
        head, _, rest = self._buffer.partition(mark)
        return head, rest

    def _fill(self) -> None:
        assert self._socket is not None
        block = self._socket.recv(1 << 18)
        if not block:
            raise ConnectionError("the server closed the connection")
        self._buffer += block


def run_load(
    address: tuple[str, int],
    send: Callable[[Connection, int], int],
    *,
    num_connections: int,
    seconds: float | None = None,
    num_requests: int | None = None,
) -> LoadResult:
    """Call `send(connection, index)`, which returns a status, on every connection.

    Ends after `seconds` or, over all connections, `num_requests`.
    """
    result = LoadResult(0.0)
    lock = threading.Lock()
    remaining = iter(range(num_requests if num_requests is not None else 1 << 62))
    start = time.perf_counter()

    def work() -> None:
        connection = Connection(address)
        latencies: list[float] = []
        statuses: Counter[int] = Counter()
        while seconds is None or time.perf_counter() - start < seconds:
            with lock:
                index = next(remaining, None)
            if index is None:
                break
            began = time.perf_counter()
            statuses[send(connection, index)] += 1
            latencies.append(time.perf_counter() - began)
        connection.close()
        with lock:
            result.latencies += latencies
            result.statuses += statuses

    threads = [threading.Thread(target=work) for _ in range(num_connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.seconds = time.perf_counter() - start
    return result
