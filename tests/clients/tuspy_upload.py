"""tuspy (the Python tus client), as its users call it.

Parameters, one line of JSON on stdin: url, ca, capability, file, chunk; optional part (bytes of one request), pause_at
(stops there, until "go on" comes), upload_url (path of an upload begun before), checksum (sends tuspy's SHA-1), wait
(`Prefer`), retries, timeout (s). The host of `url` is replaced by "localhost": tuspy can't be told another name to
check. Prints "paused" with the upload's path, and what became of it.
"""

import hashlib
import json
import os
import signal
import sys
import urllib.parse

from tusclient import client
from tusclient.exceptions import TusCommunicationError, TusUploadFailed


def tell(line):
    print(json.dumps(line), flush=True)


def end(line):
    tell(line)
    sys.exit(0 if line["ok"] else 1)


def main():
    params = json.loads(sys.stdin.readline())
    signal.alarm(params.get("timeout", 30))
    os.environ["REQUESTS_CA_BUNDLE"] = params["ca"]
    with open(params["file"], "rb") as file:
        data = file.read()
    base = f"https://localhost:{urllib.parse.urlsplit(params['url']).port}"
    metadata = {key: str(value) for key, value in params["chunk"].items()}
    metadata["sha256"] = hashlib.sha256(data).hexdigest()
    headers = {"Authorization": "Bearer " + params["capability"], "Prefer": f"wait={params.get('wait', 30)}"}
    tus = client.TusClient(base + "/chunks", headers=headers)
    begun = params.get("upload_url")
    uploader = tus.uploader(
        file_path=params["file"],
        url=base + begun if begun else None,
        chunk_size=params.get("part", sys.maxsize),
        metadata=metadata,
        retries=params.get("retries", 0),
        retry_delay=1,
        upload_checksum=params.get("checksum", False),
    )
    try:
        if "pause_at" in params:
            uploader.upload(stop_at=params["pause_at"])
            tell({"event": "paused", "accepted": uploader.offset, "path": urllib.parse.urlsplit(uploader.url).path})
            if sys.stdin.readline().strip() != "go on":
                end({"ok": False, "error": "not told to go on"})
        uploader.upload()
    except (TusUploadFailed, TusCommunicationError) as error:
        end({"ok": False, "status": error.status_code, "error": str(error.response_content)})
    end({"ok": True, "offset": uploader.offset, "path": urllib.parse.urlsplit(uploader.url).path})


main()
