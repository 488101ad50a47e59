# SPDX-License-Identifier: Apache-2.0
"""delay.py SECONDS COMMAND…: runs the command; its input and output come that much later.

In order and without a limit of rate; what is on its way is bounded by BOUND bytes each way.
"""
import collections
import os
import subprocess
import sys
import threading
import time

BOUND = 16 << 20


class Line:
    """Bytes from one descriptor to another."""

    def __init__(self, source, target, delay):
        self.source, self.target, self.delay = source, target, delay
        self.changed = threading.Condition()
        self.waiting, self.held, self.ended = collections.deque(), 0, False
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self.take, self.give)]
        for thread in self.threads:
            thread.start()

    def take(self):
        while data := os.read(self.source, 65536):
            with self.changed:
                self.changed.wait_for(lambda: self.held < BOUND)
                self.waiting.append((time.monotonic() + self.delay, data))
                self.held += len(data)
                self.changed.notify_all()
        with self.changed:
            self.ended = True
            self.changed.notify_all()

    def give(self):
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.waiting or self.ended)
                    if not self.waiting:
                        break
                    due, data = self.waiting.popleft()
                    self.held -= len(data)
                    self.changed.notify_all()
                time.sleep(max(0, due - time.monotonic()))
                while data:
                    data = data[os.write(self.target, data):]
        except BrokenPipeError:
            pass
        os.close(self.target)


def main():
    with subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        delay = float(sys.argv[1])
        Line(0, os.dup(child.stdin.fileno()), delay)
        child.stdin.close()
        Line(child.stdout.fileno(), 1, delay).threads[1].join()
        status = child.wait()
        os._exit(status if status >= 0 else 128 - status)  # whatever waits for input ends with it


main()
