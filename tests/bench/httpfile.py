#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A static HTTP server that costs nearly nothing: GET only, bodies by sendfile, a thread a connection.

    httpfile.py ADDRESS DIRECTORY      prints its port when it listens
"""
import os
import socket
import socketserver
import sys

ROOT = ""
MAX_REQUEST_LINE = 8192
MAX_HEADERS = 100


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while self.one():
            pass

    def one(self):
        words = self.rfile.readline(MAX_REQUEST_LINE).split()
        if len(words) != 3:
            return False
        for _ in range(MAX_HEADERS):
            if not self.rfile.readline(MAX_REQUEST_LINE).strip():
                break
        name = words[1].decode().lstrip("/")
        if words[0] != b"GET" or "/" in name or name in ("", ".", ".."):
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        try:
            f = open(os.path.join(ROOT, name), "rb")
        except OSError:
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return True
        with f:
            size = os.fstat(f.fileno()).st_size
            self.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
            at = 0
            while at < size:
                at += os.sendfile(self.connection.fileno(), f.fileno(), at, size - at)
        return True


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


if __name__ == "__main__":
    ROOT = sys.argv[2]
    with Server((sys.argv[1], 0), Handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()
