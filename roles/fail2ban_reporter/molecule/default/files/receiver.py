# SPDX-License-Identifier: Apache-2.0
"""Stands where zamu would: accepts what is posted, and writes each report down as a line of JSON."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer


class Receiver(BaseHTTPRequestHandler):
    """Answers 202 to everything."""

    def do_POST(self) -> None:
        """Write down who came with what."""
        about = {"path": self.path, "authorization": self.headers["Authorization"]}
        reports = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open("/srv/received", "a", encoding="utf-8") as file:
            for report in reports:
                file.write(json.dumps(about | report) + "\n")
        self.send_response(202)
        self.end_headers()


HTTPServer(("127.0.0.1", 8470), Receiver).serve_forever()
