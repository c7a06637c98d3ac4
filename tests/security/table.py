# SPDX-License-Identifier: Apache-2.0
"""The table of hostile events: what is sent, by a sentence, and what must come of it.

Five kinds. What must hold for all of them, and how it is looked at, stands in
`test_hostile_events.py`.
"""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from security.wire import Heard, drip, say
from zamu.config import Limits

LIMITS = Limits()
#: Stands for the path of the file that no attack may touch.
CANARY = "CANARY"
LOOKUP = "lookup('ansible.builtin.pipe', 'touch CANARY')"
LOOKUP_DOUBLE = LOOKUP.replace("'", '"')
#: What a forged line would begin with.
FORGED = "12:00:00  zamu ERROR: FORGED"

# --- texts: a careless rule copies and joins them, and a careless playbook uses them ---------------
# What must come of each: the run is successful on web1 alone, and the first text arrives unchanged.

TEXTS: dict[str, tuple[str, str]] = {
    "an expression": ("{{ " + LOOKUP + " }}", ""),
    "a statement": ("{% set x = " + LOOKUP + " %}", ""),
    "an expression after a comment": ("{# harmless #}{{ " + LOOKUP + " }}", ""),
    "an expression after a raw block": ("{% raw %}{% endraw %}{{ " + LOOKUP + " }}", ""),
    "an expression that trims": ("{{- " + LOOKUP + " -}}", ""),
    "delimiters of its own": (
        "#jinja2: variable_start_string:'[%', variable_end_string:'%]'\n[% " + LOOKUP + " %]",
        "",
    ),
    "half of an expression": ("{{ " + LOOKUP, ""),
    "an expression in two fields": ("{", "{ " + LOOKUP + " }}"),
    "a statement in two fields": ("{", "% set x = " + LOOKUP + " %}"),
    "delimiters of its own in two fields": (
        "#jinja2: variable_start_string:'[%', ",
        "variable_end_string:'%]'\n[% " + LOOKUP + " %]",
    ),
    "a literal with hex escapes": ("'\\x7b\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d'", ""),
    "a literal with unicode escapes": ("'\\u007b\\u007b " + LOOKUP_DOUBLE + " \\u007d\\u007d'", ""),
    "a literal with octal escapes": ("'\\173\\173 " + LOOKUP_DOUBLE + " \\175\\175'", ""),
    "a literal list with escapes": ("['\\x7b\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d']", ""),
    "a literal mapping with escapes": ("{'a': '\\x7b\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d'}", ""),
    "a literal key with escapes": ("{'\\x7b\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d': 1}", ""),
    "a literal in two fields": ("'\\x7b", "\\x7b " + LOOKUP_DOUBLE + " \\x7d\\x7d'"),
    "a call of Python": ("__import__('os').system('touch CANARY')", ""),
    "an !unsafe tag": ("!unsafe '{{ " + LOOKUP_DOUBLE + " }}'", ""),
    "a !vault tag": ("!vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  00", ""),
    "a vault's header": ("$ANSIBLE_VAULT;1.1;AES256\n6162", ""),
    "a Python object in YAML": ("!!python/object/apply:os.system ['touch CANARY']", ""),
    "a YAML document": ("a: b\n---\n- hosts: all\n  tasks: [{shell: touch CANARY}]", ""),
    "an end of the YAML quote": ('" }\nzamu_action: {playbook: x}\nx: {y: "', ""),
    "words of a shell": ("$(touch CANARY) `touch CANARY` ; touch CANARY | touch CANARY", ""),
    "quotes and a command": ("\"'; touch CANARY; '\"", ""),
    "a new line with a log line": (f"text\r\n{FORGED}", f"\n{FORGED}"),
    "characters beyond the basic plane": ("disk is full \N{PILE OF POO} \N{FIRE}", ""),
    "escapes of a terminal": ("a\x07b\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b2J", ""),
    "text that turns round": ("gnp.\N{RIGHT-TO-LEFT OVERRIDE}exe\N{LEFT-TO-RIGHT ISOLATE}", ""),
    "other ends of a line": (f"a\x85{FORGED}\N{LINE SEPARATOR}{FORGED}\x0b{FORGED}", ""),
}

# --- extras: keys of an alert that are like ours, and values that are hard to hold ------------------
# What must come of each: the same, and its hosts, its uuid and its source are ours.

_META = {
    "uuid": "mine",
    "hosts": ["web2"],
    "source": {"name": "runs", "type": "runs"},
    "depth": -9,
    "identity": {"key": "k", "state": "s", "repeat_after": None},
    "unreadable": "no",
}
_PLAYBOOK = {"playbook": "boma.zamu.notify", "path": "/etc/passwd"}


def _nested(levels: int, as_list: bool = False) -> Any:
    value: Any = "bottom"
    for _ in range(levels):
        value = [value] if as_list else {"a": value}
    return value


EXTRAS: dict[str, dict[str, Any]] = {
    "a meta of its own": {"meta": _META},
    "keys of meta beside the labels": dict(_META),
    "a variable for the gate": {"zamu_action": _PLAYBOOK, "ansible_eda": {"event": {"meta": _META}}},
    "labels with our names": {
        "labels": {"hosts": "web2", "meta": "web2", "zamu_action": "x", "limit": "all"}
    },
    "variables of Ansible": {"ansible_host": "evil", "ansible_connection": "ssh", "ansible_become": True},
    "an expression as a key": {"{{ " + LOOKUP + " }}": {"{% set x = " + LOOKUP + " %}": 1}},
    "an expression in nested lists": {"list": [[["{{ " + LOOKUP + " }}"]], {"x": ["{{ " + LOOKUP + " }}"]}]},
    "keys with dots, brackets and dollars": {"a.b": {"c": 1}, "a": {"b.c": 2}, "a[0]": 1, "$": 1, ".": 1},
    "keys of other languages": {"__proto__": 1, "@class": "java.lang.Runtime", "__class__": 1, "\n": 1},
    "a key of the largest size": {"k" * 20_000: 1},
    "mappings of the largest depth": {"deep": _nested(60)},
    "lists of the largest depth": {"deep": _nested(60, as_list=True)},
    "an integer of the largest size": {"big": 10**639, "small": -(10**639)},
    "numbers at the edge": {"a": 1.7e308, "b": 5e-324, "c": -0.0, "d": 2**64, "e": -(2**63) - 1},
    "ten thousand values": {"many": [{"n": n} for n in range(5_000)]},
    "a zero character": {"zero": "a\x00b", "b\x00": ["\x00"]},
    "half a megabyte of text": {"long": "x" * 500_000},
}

# --- targets: labels that would widen whom a playbook is for ----------------------------------------
# What must come of each: the run is denied, because the event names no host of the inventory.

TARGETS: dict[str, dict[str, str]] = {
    "no label for the host": {},
    **{
        sentence: {"instance": value}
        for sentence, value in {
            "an empty host": "",
            "the host all": "all",
            "the host all in capitals": "ALL",
            "a star": "*",
            "a star in a name": "web*",
            "a regular expression": "~.*",
            "a file of hosts": "@/etc/passwd",
            "two hosts with a colon": "web1:web2",
            "two hosts with a comma": "web1,web2",
            "a host and all": "web1,all",
            "two hosts with a space": "web1 web2",
            "two hosts on two lines": "web1\nweb2",
            "all but a host": "!web1",
            "all and a group": "all:&ungrouped",
            "an intersection": "&web1",
            "a range of hosts": "web[0:9]",
            "a choice of hosts": "web[12]",
            "an index into a group": "all[0]",
            "a group": "ungrouped",
            "this machine": "localhost",
            "this machine's address": "127.0.0.1",
            "an option": "--limit=web1",
            "a short option": "-e@/etc/passwd",
            "an expression that is a host": "{{ groups.all | first }}",
            "our host that matches nobody": "zamu-no-host",
            "a path": "../web1",
            "a host with a zero character": "web1\x00web2",
        }.items()
    },
}

# --- units: names that the real rule of rulebooks/remediation.yml hands to boma.zamu.restart_unit ---
# What must come of each: the run fails or is denied before systemd is asked.

UNITS: dict[str, str] = {
    "no unit": "",
    "a path to a file": "../../etc/passwd",
    "an absolute path": "/etc/systemd/system/x.service",
    "an option": "--now",
    "an option with a value": "--root=/tmp.service",
    "another machine": "-H root@evil",
    "another machine and a unit": "-Hroot@evil.service",
    "two units on two lines": "nginx.service\nsshd.service",
    "a unit and a new line": "nginx.service\n",
    "two units with a space": "nginx.service sshd.service",
    "a pattern": "*.service",
    "a choice": "ngin[xy].service",
    "a template without an instance": "getty@.service",
    "the machine's power": "poweroff.target",
    "a command": "x;touch CANARY;.service",
    "a substitution": "$(touch CANARY).service",
    "an expression": "{{ " + LOOKUP + " }}.service",
    "letters that only look like a unit": "nginx\N{FULLWIDTH FULL STOP}service",
    "a unit of a thousand characters": "x" * 1_000 + ".service",
}

# --- messages: names that the same rulebook puts into what the operator is told ---------------------
# What must come of each: one mail, to the operator alone, of one plain subject, with nothing live in it.

MESSAGES: dict[str, str] = {
    "a header": "MARK\r\nBcc: evil@example.net\r\nX-Forged: yes",
    "a second subject": f"MARK\nSubject: {FORGED}",
    "an encoded header": "MARK =?utf-8?q?=0d=0aBcc=3a_evil=40example=2enet?=",
    "the end of the mail": "MARK\r\n.\r\nMAIL FROM:<evil@example.net>\r\n",
    "HTML": 'MARK <img src=x onerror=alert(1)><a href="http://evil.example.net">click</a>',
    "Markdown": "MARK [click](http://evil.example.net) **bold** @room",
    "escapes of a terminal": "MARK \x1b]0;owned\x07\x1b[2J\x9b31m",
    "text that turns round": "MARK \N{RIGHT-TO-LEFT OVERRIDE}exe.gnp",
    "other ends of a line": f"MARK \x85{FORGED}\N{LINE SEPARATOR}{FORGED}\N{PARAGRAPH SEPARATOR}{FORGED}",
    "an expression": "MARK {{ " + LOOKUP + " }}",
    "a hundred thousand characters": "MARK " + "x" * 100_000,
}

# --- requests: what is sent to the server itself ----------------------------------------------------
# What must come of each: this status and these words. None stands for a connection that is closed
# without an answer, 202 for what is understood and harmless.


@dataclass(frozen=True)
class Sender:
    """What a case needs to speak: the port, a valid token, and a body that would be taken."""

    port: int
    token: str
    body: bytes

    def head(
        self, *lines: str, body: bytes | None = None, first: str = "POST /alertmanager HTTP/1.1"
    ) -> bytes:
        """The head of a valid request; `lines` replace headers of their name, `Name` alone removes one."""
        sent = self.body if body is None else body
        headers = {
            "host": "Host: x",
            "connection": "Connection: close",
            "authorization": f"Authorization: Bearer {self.token}",
            "content-type": "Content-Type: application/json",
            "content-length": f"Content-Length: {len(sent)}",
        }
        for name in {line.partition(":")[0].lower() for line in lines}:
            headers.pop(name, None)
        given = [line for line in lines if ":" in line]
        return "\r\n".join([first, *headers.values(), *given, "", ""]).encode("latin-1")

    def send(self, *lines: str, body: bytes | None = None, **options: Any) -> Heard:
        """A whole request, with the body after its head."""
        sent = self.body if body is None else body
        return say(self.port, self.head(*lines, body=sent, **options) + sent)


@dataclass(frozen=True)
class Request:
    """One case: how it is sent, and the status and words of the answer."""

    send: Callable[[Sender], Heard]
    status: int | tuple[int, ...] | None
    words: str = ""


def _body(body: bytes | str, status: int, words: str = "") -> Request:
    sent = body if isinstance(body, bytes) else body.encode("utf-8", "surrogatepass")
    return Request(lambda sender: sender.send(body=sent), status, words)


def _header(status: int | None, words: str, *lines: str) -> Request:
    return Request(lambda sender: sender.send(*lines), status, words)


def _first(first: str, status: int | None, words: str = "") -> Request:
    return Request(lambda sender: sender.send(first=first), status, words)


def _raw(data: bytes, status: int | None, words: str = "") -> Request:
    return Request(lambda sender: say(sender.port, data), status, words)


def _chunked(status: int | tuple[int, ...], words: str, *chunks: bytes, **options: Any) -> Request:
    def send(sender: Sender) -> Heard:
        head = sender.head("Transfer-Encoding: chunked", "Content-Length")
        return say(sender.port, head, *chunks, **options)

    return Request(send, status, words)


def _pipelined(sender: Sender) -> Heard:
    kept = sender.head("Connection: keep-alive") + sender.body
    return say(sender.port, kept * 99 + sender.head() + sender.body)


def _many_tokens(sender: Sender) -> Heard:
    wrong, right = "Authorization: Bearer x", f"Authorization: Bearer {sender.token}"
    return sender.send(wrong, right)


_JSON = "This is not JSON that can be taken"
_TOKEN = "No or wrong bearer token."
_TYPE = "The content type is not application/json."
_LATE = "The body did not come in time."
_PATH = "No source listens on this path."
_LARGE = f"The body is larger than {LIMITS.body} bytes."
#: Chunks that are broken are noticed at once when they come with their head, and else when time is up.
_BROKEN = (400, 408)
_PACKED = "Compressed bodies are not taken"

REQUESTS: dict[str, Request] = {
    # The body as JSON.
    "ten megabytes": _body(b'{"a": "' + b"x" * 10_000_000 + b'"}', 413, _LARGE),
    "a million keys": _body("{" + ",".join(f'"{n}":1' for n in range(1_000_000)) + "}", 413, _LARGE),
    "half a million values": _body("[" + "1," * 500_000 + "1]", 400, f"more than {LIMITS.values} values"),
    "lists ten thousand deep": _body("[" * 10_000 + "]" * 10_000, 400, "nested deeper than"),
    "mappings ten thousand deep": _body('{"a":' * 10_000 + "1" + "}" * 10_000, 400, "nested deeper than"),
    "lists that are never closed": _body("[" * 500_000, 400, _JSON),
    "one level too deep": _body("[" * 65 + "]" * 65, 400, "nested deeper than 64 levels"),
    "the same keys twice": _body('{"version": "3", "version": "4", "alerts": 1, "alerts": []}', 202),
    "an empty key": _body('{"version": "4", "alerts": [], "x": {"": 1}}', 400, "a key is empty"),
    "a key of fifty thousand characters": _body('{"' + "k" * 50_000 + '": 1}', 400, "a key has more than"),
    "NaN": _body('{"version": NaN}', 400, "NaN is not JSON"),
    "Infinity": _body('{"version": -Infinity}', 400, "-Infinity is not JSON"),
    "a number that is too large": _body('{"version": 1e999}', 400, "a number is too large"),
    "an integer of ten thousand digits": _body('{"x": ' + "9" * 10_000 + "}", 400, "640 digits"),
    "an integer of a thousand digits": _body('{"x": -' + "9" * 1_001 + "}", 400, "640 digits"),
    "a float of ten thousand digits": _body('{"version": 0.' + "9" * 10_000 + "}", 422, "version"),
    "lone surrogates": _body('{"version": "4", "alerts": [], "x\\ud800": "\\udfff\\ud800"}', 202),
    "encoded surrogates": _body('{"x": "\ud800"}', 400, "not UTF-8"),
    "a zero character that is not escaped": _body('{"x": "a\x00b"}', 400, _JSON),
    "zero characters alone": _body(b"\x00" * 1_000, 400, _JSON),
    "a byte order mark": _body('\ufeff{"version": "4", "alerts": []}', 202),
    "UTF-16": _body('{"version": "4", "alerts": []}'.encode("utf-16"), 400, "not UTF-8"),
    "UTF-32 without a mark": _body('{"version": "4"}'.encode("utf-32-be"), 400, _JSON),
    "bytes that are not UTF-8": _body(b'{"x": "\xff\xfe\xc0\x80"}', 400, "not UTF-8"),
    "no body": _body("", 400, _JSON),
    "half of a JSON": _body('{"version": "4", "alerts": [', 400, _JSON),
    "two JSONs": _body('{"version": "4"} {"version": "4"}', 400, _JSON),
    "Python instead of JSON": _body("{'version': '4', 'x': True}", 400, _JSON),
    "JSON that is null": _body("null", 422, "not an object"),
    "JSON that is a text": _body('"{\\"version\\": \\"4\\"}"', 422, "not an object"),
    "alerts that are no list": _body('{"version": "4", "alerts": {"a": 1}}', 422, "alerts"),
    "a version that is a mapping": _body('{"version": {"4": "4"}, "alerts": []}', 422, "version"),
    "ten thousand alerts": _body(
        '{"version": "4", "alerts": [' + "1," * 9_999 + "1]}", 413, f"More than {LIMITS.events} alerts"
    ),
    # The length and the type of the body.
    "another type": _header(415, _TYPE, "Content-Type: text/plain"),
    "a form": _header(415, _TYPE, "Content-Type: multipart/form-data; boundary=x"),
    "no type": _header(415, _TYPE, "Content-Type"),
    "a type that only begins so": _header(415, _TYPE, "Content-Type: application/json-seq"),
    "a length that is too small": _header(400, "", "Content-Length: 10"),
    "a length that is too large": Request(
        lambda sender: say(sender.port, sender.head("Content-Length: 999") + sender.body),
        408,
        _LATE,
    ),
    "a body that breaks off": Request(
        lambda sender: say(sender.port, sender.head("Content-Length: 999") + sender.body, finish=True), None
    ),
    "a length that is enormous": _header(413, _LARGE, f"Content-Length: {2**62}"),
    "a length beyond any number": _header(400, "", f"Content-Length: {'9' * 100}"),
    "a negative length": _header(400, "", "Content-Length: -1"),
    "a length that is a word": _header(400, "", "Content-Length: ten"),
    "a length with a sign": _header(400, "", "Content-Length: +10"),
    "two lengths": _header(400, "", "Content-Length: 10", "Content-Length: 11"),
    "a length and chunks": _header(400, "", "Content-Length: 10", "Transfer-Encoding: chunked"),
    "an unknown transfer": _header(400, "", "Transfer-Encoding: gzip", "Content-Length"),
    "a transfer that hides": _header(400, "", "Transfer-Encoding: xchunked", "Content-Length"),
    "chunks that never end": _chunked(408, _LATE, b"1\r\n{\r\n"),
    "chunks that grow too large": _chunked(413, _LARGE, *[b"10000\r\n" + b"x" * 65_536 + b"\r\n"] * 20),
    "a chunk whose size overflows": _chunked(_BROKEN, "", b"FFFFFFFFFFFFFFFFF\r\n{}\r\n0\r\n\r\n"),
    "a chunk with a negative size": _chunked(_BROKEN, "", b"-1\r\n{}\r\n0\r\n\r\n"),
    "a chunk whose size is a word": _chunked(_BROKEN, "", b"size\r\n{}\r\n0\r\n\r\n"),
    "a chunk that is longer than its size": _chunked(_BROKEN, "", b"1\r\n{}\r\n0\r\n\r\n"),
    "a hundred thousand trailers": _chunked(_BROKEN, "", b"0\r\n", b"X: y\r\n" * 100_000, b"\r\n"),
    "a slow body": _chunked(408, _LATE, *[b"1\r\n \r\n"] * 10, pause=0.25),
    "a packed bomb": Request(
        lambda sender: sender.send("Content-Encoding: gzip", body=gzip.compress(b" " * 50_000_000)),
        415,
        _PACKED,
    ),
    "a bomb packed twice": Request(
        lambda sender: sender.send(
            "Content-Encoding: gzip, deflate", body=zlib.compress(gzip.compress(b" " * 9_000_000))
        ),
        415,
        _PACKED,
    ),
    "a packing that nobody knows": _header(415, _PACKED, "Content-Encoding: ../../bin/sh"),
    # The head.
    "a line of a hundred kilobytes": _header(400, "", "X-Long: " + "x" * 100_000),
    "a path of a hundred kilobytes": _first(f"POST /{'x' * 100_000} HTTP/1.1", 400),
    "five thousand lines": _header(400, "", *[f"X-{n}: y" for n in range(5_000)]),
    "a line that goes on": _header(400, "", "X-Long: a\r\n b"),
    "a line without a colon": Request(lambda s: say(s.port, b"POST / HTTP/1.1\r\nHost x\r\n\r\n"), 400),
    "a line with a zero character": _header(400, "", "X-Zero: a\x00b"),
    "a space before the colon": _header(400, "", "Content-Length : 10"),
    "a head that never ends": Request(lambda sender: say(sender.port, sender.head()[:-2]), None),
    "a head of one byte at a time": Request(lambda sender: drip(sender.port, sender.head(), 0.5), None),
    "silence": Request(lambda sender: say(sender.port), None),
    "another protocol's greeting": _raw(b"SSH-2.0-OpenSSH_9.9\r\n", 400),
    "a TLS greeting": _raw(bytes.fromhex("16030100b5010000b10303") + b"\x00" * 180, 400),
    "the preface of HTTP/2": _raw(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/0.9": _raw(b"GET /alertmanager\r\n\r\n", 405, "Use POST here."),
    "a version that nobody knows": _raw(b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 400),
    "random bytes": _raw(bytes(range(256)) * 40, 400),
    "an upgrade to a socket": _header(202, "", "Connection: Upgrade, close", "Upgrade: websocket"),
    "a hundred requests at once": Request(_pipelined, 202),
    # Who sends, where to, and how.
    "no token": _header(401, _TOKEN, "Authorization"),
    "an empty token": _header(401, _TOKEN, "Authorization: Bearer "),
    "a wrong token": _header(401, _TOKEN, "Authorization: Bearer wrong"),
    "a token of eight kilobytes": _header(401, _TOKEN, "Authorization: Bearer " + "x" * 8_000),
    "a token that is not ASCII": _header(401, _TOKEN, "Authorization: Bearer \xfc\xff"),
    "a token of another kind": _header(401, _TOKEN, "Authorization: Basic YWRtaW46YWRtaW4="),
    "two tokens, the second right": Request(_many_tokens, 401, _TOKEN),
    "a token in the query": Request(
        lambda s: s.send("Authorization", first=f"POST /alertmanager?token={s.token} HTTP/1.1"), 401, _TOKEN
    ),
    "a path to a file": _first("POST /../../etc/passwd HTTP/1.1", 404, _PATH),
    "a path that goes up and down": _first("POST /healthz/../../../alertmanager/x HTTP/1.1", 404, _PATH),
    "an encoded path to a file": _first("POST /%2e%2e/%2e%2e/etc/passwd HTTP/1.1", 404, _PATH),
    "a path with a zero character": _first("POST /alertmanager%00 HTTP/1.1", 404, _PATH),
    "a path with two slashes": _first("POST //alertmanager HTTP/1.1", 404, _PATH),
    "a path with an encoded new line": _first("POST /alertmanager%0d%0aX:%20y HTTP/1.1", 404, _PATH),
    "a path that is an expression": _first("POST /{{7*7}} HTTP/1.1", 404, _PATH),
    "the URL of another server": _first("POST http://evil.example.net/x HTTP/1.1", 404, _PATH),
    "TRACE": _first("TRACE /alertmanager HTTP/1.1", 405, "Use POST here."),
    "PUT": _first("PUT /alertmanager HTTP/1.1", 405, "Use POST here."),
    "DELETE": _first("DELETE /alertmanager HTTP/1.1", 405, "Use POST here."),
    "OPTIONS": _first("OPTIONS * HTTP/1.1", 404, _PATH),
    "CONNECT": _first("CONNECT evil.example.net:443 HTTP/1.1", 404, _PATH),
    "a method that nobody knows": _first("FROBNICATE /alertmanager HTTP/1.1", 400),
    "a post to the page": _first("POST / HTTP/1.1", 405, "Use GET here."),
}
