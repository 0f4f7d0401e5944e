"""A client of resumable uploads (draft-ietf-httpbis-resumable-upload), interop versions 6 and 8, with the standard
library only: it creates the upload with an empty request, appends in parts, and after every failure that the draft
lets it recover from it asks for the offset and goes on.

Parameters, one line of JSON on stdin: url, server_name, ca, capability, file, chunk, version; optional part (bytes of one
request), pause_at (stops once so many bytes are accepted, until "go on" comes), upload_url (path of an upload begun
before), wait (`Prefer`), timeout (s). Prints "paused" with the upload's path, "retry" with the status after a failure,
and what became of it.
"""

import http.client
import json
import ssl
import sys
import time
import urllib.parse

import waystation


def tell(line):
    print(json.dumps(line), flush=True)


class Upload:
    def __init__(self, params, data):
        self.params, self.data = params, data
        self.where = params.get("upload_url")
        at = urllib.parse.urlsplit(params["url"])
        self.host, self.port = at.hostname, at.port
        self.tls = ssl.create_default_context(cafile=params["ca"])
        self.tls.check_hostname = False  # the name is checked below: http.client has no way to give another

    def request(self, method, path, headers, body=b""):
        """One request on a connection of its own: status and headers."""
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.tls, timeout=60)
        try:
            connection.connect()
            names = [name for kind, name in connection.sock.getpeercert()["subjectAltName"] if kind == "DNS"]
            if self.params["server_name"] not in names:
                raise ssl.SSLError("another name")
            headers = {
                "Authorization": "Bearer " + self.params["capability"],
                "Upload-Draft-Interop-Version": str(self.params["version"]),
                "Prefer": f"wait={self.params.get('wait', 30)}",
                **headers,
            }
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}
        finally:
            connection.close()

    def create(self):
        chunk = {**self.params["chunk"], "length": len(self.data)}
        status, headers = self.request(
            "POST",
            "/chunks",
            {
                "Upload-Complete": "?0",
                "Upload-Length": str(len(self.data)),
                "Repr-Digest": waystation.repr_digest(self.data),
                "Waystation-Chunk": waystation.dictionary(chunk),
            },
        )
        if status != 201 or headers["upload-complete"] != "?0":
            raise waystation.ProtocolError(f"creation: {status}")
        self.where = headers["location"]
        return 0

    def offset(self):
        """Where to go on; None when the upload is complete."""
        status, headers = self.request("HEAD", self.where, {})
        if status not in (200, 204):
            raise waystation.ProtocolError(f"offset retrieval: {status}")
        if headers["cache-control"] != "no-store":
            raise waystation.ProtocolError("an offset that may be cached")
        # Length and offset do not say whether an upload is complete.
        return None if headers["upload-complete"] == "?1" else int(headers["upload-offset"])

    def append(self, at):
        """Appends the next part: where to go on, or None when the upload is complete."""
        end = min(at + self.params.get("part", len(self.data)), len(self.data))
        last = end == len(self.data)
        headers = {
            "Upload-Offset": str(at),
            "Upload-Complete": "?1" if last else "?0",
            "Content-Type": "application/partial-upload",
        }
        status, headers = self.request("PATCH", self.where, headers, self.data[at:end])
        complete = headers.get("upload-complete") == "?1"
        if status >= 500 and not complete:
            tell({"event": "retry", "status": status})
            time.sleep(0.2)
            return self.offset()
        if status >= 300:
            raise waystation.ProtocolError(f"append: {status}")
        if self.params["version"] == 6 and int(headers["upload-offset"]) != end:
            raise waystation.ProtocolError("an append that was taken in part")
        if last and not complete:
            raise waystation.ProtocolError("a success that completes nothing")
        return None if complete else end


def main():
    params = json.loads(sys.stdin.readline())
    with open(params["file"], "rb") as file:
        upload = Upload(params, file.read())
    until, paused = time.monotonic() + params.get("timeout", 30), False
    at = upload.offset() if upload.where else upload.create()
    while at is not None:
        if time.monotonic() > until:
            raise waystation.ProtocolError("it took too long")
        at = upload.append(at)
        if at is not None and not paused and at >= params.get("pause_at", len(upload.data) + 1):
            paused = True
            tell({"event": "paused", "accepted": at, "path": upload.where})
            if sys.stdin.readline().strip() != "go on":
                raise waystation.ProtocolError("not told to go on")
            at = upload.offset()
    tell({"ok": True, "path": upload.where})


try:
    main()
except (waystation.ProtocolError, OSError, http.client.HTTPException, KeyError) as error:
    tell({"ok": False, "error": f"{type(error).__name__}: {error}"})
    sys.exit(1)
