# SPDX-License-Identifier: Apache-2.0
"""Takes what the reporter posts over TLS, and keeps it below /srv/received, one file a request."""

import json
import ssl
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class Receiver(BaseHTTPRequestHandler):
    """Answers 202 to every POST."""

    def do_POST(self):
        """Keep the body with what was said of it."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        seen = {"path": self.path, "authorization": self.headers["Authorization"], "body": json.loads(body)}
        Path(f"/srv/received/{time.time_ns()}.json").write_text(json.dumps(seen))
        self.send_response(202)
        self.end_headers()


Path("/srv/received").mkdir(exist_ok=True)
server = HTTPServer(("127.0.0.1", 8470), Receiver)
tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
tls.load_cert_chain("/srv/receiver.pem")
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
