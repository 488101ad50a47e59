# SPDX-License-Identifier: Apache-2.0
"""Starts one server for the session and ends it again."""

import json
import os
import shutil
import subprocess
import tempfile
import time

import pytest

PROGRAM = os.environ["NEARBOX_SERVE"]
UID = int(os.environ.get("NEARBOX_E2E_UID", "0"))


class Server:
    """A running server; its addresses are in the environment, where the SDK looks for them."""

    def __init__(self):
        self.data = tempfile.mkdtemp(prefix="nearbox-e2e-")
        identity = {}
        if UID and os.getuid() == 0:
            os.chown(self.data, UID, UID)
            identity = {"user": UID, "group": UID, "extra_groups": []}
        self.process = subprocess.Popen(
            # It ends with the tests, however these end.
            ["setpriv", "--pdeathsig", "TERM", PROGRAM, "--listen", "127.0.0.1:0", "--data", self.data, "--json"],
            stdout=subprocess.PIPE,
            text=True,
            **identity,
        )
        line = json.loads(self.process.stdout.readline())
        self.api_url, self.sandbox_url, self.key = line["api_url"], line["sandbox_url"], line["api_key"]
        os.environ["E2B_API_URL"] = self.api_url
        os.environ["E2B_SANDBOX_URL"] = self.sandbox_url
        os.environ["E2B_API_KEY"] = self.key
        os.environ["E2B_VOLUME_API_URL"] = self.api_url

    def stop(self):
        self.process.terminate()
        code = self.process.wait(timeout=60)
        self.process.stdout.close()
        shutil.rmtree(self.data, ignore_errors=True)
        return code


def until(check, what, seconds=10):
    """What `check` gives once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = check()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"timed out waiting for {what}")


@pytest.fixture(scope="session")
def server():
    running = Server()
    yield running
    assert running.stop() == 0


@pytest.fixture(scope="session")
def box(server):
    """A sandbox for what does not change it as a whole."""
    from e2b import Sandbox

    sandbox = Sandbox.create(metadata={"purpose": "python", "odd key": "v&1=2"}, envs={"LEVEL": "sandbox"})
    yield sandbox
    sandbox.kill()
