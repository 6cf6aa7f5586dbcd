"""A stand-in for Google's object store: its JSON interface, as far as m4's libraries use it.

    python -m tests.bucket_server PORT-FILE

It keeps objects in memory, with generations: a condition on one (`ifGenerationMatch`) holds or
fails as there, and there is nothing like a folder, a lock or a rename. Whoever starts it sets
`STORAGE_EMULATOR_HOST` and `TENSORSTORE_GCS_HTTP_URL` to its address (`environment`). With a POST
to `/break?begins=PREFIX&times=N&code=503` the next N changes below a prefix fail.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BUCKET = "m4-runs"
OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/?]+)$")


class Objects:
    """Names -> (content, generation), of one bucket."""

    def __init__(self):
        self.lock, self.count = threading.Lock(), 1000
        self.there: dict[str, tuple[bytes, int]] = {}
        self.uploads: dict[str, tuple[str, dict[str, str], bytearray]] = {}
        self.broken: list[Any] = []  # [prefix, how often, code]

    def breaks(self, name: str) -> int:
        """The code in which a change of an object has to fail now, 0 if it need not."""
        with self.lock:
            if self.broken and name.startswith(self.broken[0]) and self.broken[1] > 0:
                self.broken[1] -= 1
                return self.broken[2]
        return 0

    def met(self, name: str, query: dict[str, str]) -> bool:
        """Whether the conditions of a request hold; 0 stands for no object."""
        now = self.there[name][1] if name in self.there else 0
        wanted, unwanted = query.get("ifGenerationMatch"), query.get("ifGenerationNotMatch")
        return (wanted is None or int(wanted) == now) and (unwanted is None or int(unwanted) != now)

    def put(self, name: str, content: bytes) -> dict[str, Any]:
        """Stores an object."""
        self.count += 1
        self.there[name] = content, self.count
        return self.about(name)

    def about(self, name: str) -> dict[str, Any]:
        """What the store tells of an object."""
        content, generation = self.there[name]
        at = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "id": f"{BUCKET}/{name}/{generation}",
            "generation": str(generation),
            "metageneration": "1",
            "size": str(len(content)),
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),  # noqa: S324
            "updated": at,
            "timeCreated": at,
            "contentType": "application/octet-stream",
        }


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # head and body in one packet: the second would wait 40 ms for an answer
    objects: Objects

    def log_message(self, *args: Any) -> None:
        """Says nothing."""

    def _answer(self, code: int, body: bytes | dict = b"", **headers: str) -> None:
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _asked(self) -> tuple[str, dict[str, str], bytes]:
        path, _, query = self.path.partition("?")
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return path, dict(urllib.parse.parse_qsl(query)), body

    def do_GET(self) -> None:
        """Buckets, listings, objects."""
        path, query, _ = self._asked()
        found = OBJECT.match(path)
        if path == f"/storage/v1/b/{BUCKET}":
            self._answer(200, {"kind": "storage#bucket", "name": BUCKET, "id": BUCKET})
        elif path == f"/storage/v1/b/{BUCKET}/o":
            self._answer(200, self._listing(query))
        elif found and found[1] == BUCKET:
            self._object(urllib.parse.unquote(found[2]), query)
        else:
            self._answer(404, {"error": {"code": 404, "message": "not found"}})

    do_HEAD = do_GET  # noqa: N815

    def _listing(self, query: dict[str, str]) -> dict[str, Any]:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        start, end = query.get("startOffset", ""), query.get("endOffset")
        after, most = query.get("pageToken", ""), int(query.get("maxResults") or 1000)
        items, folders = [], []
        with self.objects.lock:
            for name in sorted(self.objects.there):
                if not name.startswith(prefix) or name < start or (end and name >= end):
                    continue
                cut = name[len(prefix) :].find(delimiter) if delimiter else -1
                if cut >= 0:
                    folder = name[: len(prefix) + cut + 1]
                    if folder > after and folder not in folders:
                        folders.append(folder)
                elif name > after:
                    items.append(self.objects.about(name))
        found: dict[str, Any] = {"kind": "storage#objects", "items": items[:most]}
        if len(items) > most:
            found["nextPageToken"] = items[most - 1]["name"]
        return found | ({"prefixes": folders} if folders else {})

    def _object(self, name: str, query: dict[str, str]) -> None:
        with self.objects.lock:
            if name not in self.objects.there:
                return self._answer(404, {"error": {"code": 404, "message": "not found"}})
            if not self.objects.met(name, query):
                return self._answer(304 if "ifGenerationNotMatch" in query else 412)
            content, about = self.objects.there[name][0], self.objects.about(name)
        if query.get("alt") != "media" and not self.path.startswith("/download"):
            return self._answer(200, about)
        span = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        more = {"x_goog_generation": about["generation"], "Content_Type": "text/plain"}
        more["x_goog_hash"] = f"md5={about['md5Hash']}"
        if span is None:
            return self._answer(200, content, **more)
        first, last = span[1], span[2]
        low = int(first) if first else max(len(content) - int(last), 0)
        high = min(int(last) + 1, len(content)) if first and last else len(content)
        if low >= len(content):
            return self._answer(416, Content_Range=f"bytes */{len(content)}")
        more["Content_Range"] = f"bytes {low}-{high - 1}/{len(content)}"
        return self._answer(206, content[low:high], **more)

    def do_POST(self) -> None:
        """Uploads, copies and `/break`."""
        path, query, body = self._asked()
        copy = re.match(
            rf"/storage/v1/b/{BUCKET}/o/([^/]+)/(?:rewriteTo|copyTo)/b/{BUCKET}/o/([^/]+)$", path
        )
        if path == "/break":
            with self.objects.lock:
                self.objects.broken = [query["begins"], int(query["times"]), int(query["code"])]
            self._answer(200)
        elif path == f"/upload/storage/v1/b/{BUCKET}/o":
            self._upload(query, body)
        elif copy:
            old, new = map(urllib.parse.unquote, copy.groups())
            with self.objects.lock:
                about = self.objects.put(new, self.objects.there[old][0])
            self._answer(200, {"done": True, "resource": about})
        else:
            self._answer(404, {"error": {"code": 404, "message": "not found"}})

    def _upload(self, query: dict[str, str], body: bytes) -> None:
        if "upload_id" in query:
            return self._piece(query, body)
        if query["uploadType"] == "resumable":
            name = query.get("name") or json.loads(body)["name"]
            key = uuid.uuid4().hex
            self.objects.uploads[key] = name, query, bytearray()
            base = f"http://{self.headers['Host']}/upload/storage/v1/b/{BUCKET}/o"
            return self._answer(200, Location=f"{base}?uploadType=resumable&upload_id={key}")
        if query["uploadType"] == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])
            assert boundary is not None, self.headers
            mark = b"--" + boundary[1].encode()
            _, head, content = body.removesuffix(mark + b"--").split(mark, 2)
            head, content = (
                re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (head, content)
            )
            name, body = json.loads(head)["name"], re.sub(rb"\r?\n\Z", b"", content)
        else:
            name = query["name"]
        return self._put(name, query, body)

    def _put(self, name: str, query: dict[str, str], content: bytes) -> None:
        if code := self.objects.breaks(name):
            return self._answer(code, {"error": {"code": code, "message": "broken on purpose"}})
        with self.objects.lock:
            if not self.objects.met(name, query):
                return self._answer(412, {"error": {"code": 412, "message": "precondition"}})
            about = self.objects.put(name, content)
        return self._answer(200, about)

    def _piece(self, query: dict[str, str], body: bytes) -> None:
        """Of a resumable upload."""
        name, begun, content = self.objects.uploads[query["upload_id"]]
        content += body
        total = re.match(r"bytes [^/]*/(\d+|\*)", self.headers.get("Content-Range") or "")
        if total and total[1] == "*":
            return self._answer(308, Range=f"bytes=0-{len(content) - 1}")
        return self._put(name, begun, bytes(content))

    def do_PUT(self) -> None:
        """A piece of a resumable upload."""
        _, query, body = self._asked()
        self._piece(query, body)

    def do_DELETE(self) -> None:
        """An object goes."""
        path, query, _ = self._asked()
        found = OBJECT.match(path)
        assert found is not None, path
        self._answer(self._removed(urllib.parse.unquote(found[2]), query))

    def _removed(self, name: str, query: dict[str, str]) -> int:
        if code := self.objects.breaks(name):
            return code
        with self.objects.lock:
            if not self.objects.met(name, query):
                return 412
            return 204 if self.objects.there.pop(name, None) else 404


class Server(ThreadingHTTPServer):
    """Answers many at once."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of those who hang up."""


def environment(address: str) -> dict[str, str]:
    """What sends m4's libraries to the stand-in, as nobody in particular."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "NO_GCE_CHECK": "True",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a stand-in of one's own, in a process of its own."""
    place = folder / "port"
    command = [sys.executable, "-m", "tests.bucket_server", str(place)]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            end = time.monotonic() + 60
            while not place.exists():
                assert process.poll() is None and time.monotonic() < end
                time.sleep(0.05)
            yield f"http://localhost:{place.read_text()}"
        finally:
            process.kill()


@contextlib.contextmanager
def used(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(address of a stand-in, what sends to it): this process goes there, too, as its children."""
    with served(folder) as address:
        own = environment(address) | {"M4_MIRRORS": str(folder / "mirrors")}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield address, own
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def path_of(url: str) -> str:
    """Where a place in the bucket is, as its objects' names begin."""
    return url.removeprefix(f"gs://{BUCKET}/")


def breaks(address: str, begins: str, times: int, code: int) -> None:
    """Lets the next changes of objects fail whose names begin so."""
    query = urllib.parse.urlencode({"begins": begins, "times": times, "code": code})
    urllib.request.urlopen(f"{address}/break?{query}", data=b"").read()  # noqa: S310


def process_of(folder: Path) -> int:
    """Of the stand-in that `served` has started in a folder."""
    return int((folder / "pid").read_text())


def names(address: str) -> list[str]:
    """Of all objects."""
    url = f"{address}/storage/v1/b/{BUCKET}/o?maxResults=100000"
    with urllib.request.urlopen(url) as answer:  # noqa: S310
        return [item["name"] for item in json.load(answer)["items"]]


def main(place: Path) -> None:
    """Serves until it is killed."""
    Handler.objects = Objects()
    server = Server(("localhost", 0), Handler)
    partial = place.with_suffix(".partial")
    partial.write_text(str(server.server_port))
    place.with_name("pid").write_text(str(os.getpid()))
    os.replace(partial, place)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
