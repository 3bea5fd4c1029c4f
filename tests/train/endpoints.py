"""An OpenAI-compatible server of the tests' own, on this machine."""

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Server:
    """An OpenAI-compatible server on this machine whose replies `answer` writes: a content, or what it does to the connection."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answer: Callable[[int, str], Any] = lambda number, text: f"Answer {number}."
        self.model, self.key = "made-1", ""
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.bodies.append(body)
                    number = len(outer.bodies)
                outer.key = self.headers["Authorization"]
                outer.reply(self, outer.answer(number, body["messages"][0]["content"]))

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def reply(self, handler: BaseHTTPRequestHandler, said: Any) -> None:
        if said == "die":
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        status, headers, content = said if isinstance(said, tuple) else (200, {}, self.completion(said))
        raw = content.encode()
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(raw[: len(raw) // 2] if headers.get("X-Dies") else raw)
        if headers.get("X-Dies"):
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)

    def completion(self, content: str, cut: bool = False) -> str:
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}
        usage = {"prompt_tokens": 40, "completion_tokens": 10, "total_tokens": 50}
        return json.dumps({"id": "x", "object": "chat.completion", "created": 0, "model": self.model, "choices": [choice], "usage": usage})
