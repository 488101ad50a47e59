# SPDX-License-Identifier: Apache-2.0
"""Sandboxes with the official Python package."""

import datetime
import urllib.error
import urllib.request

import pytest
from conftest import until
from e2b import (
    E2B,
    NotFoundException,
    Sandbox,
    SandboxNotFoundException,
    SandboxQuery,
    SandboxState,
)


def test_get_info_and_is_running(box):
    info = box.get_info()
    assert info.sandbox_id == box.sandbox_id
    assert info.state == SandboxState.RUNNING
    assert info.metadata["odd key"] == "v&1=2"
    assert info.end_at > info.started_at
    assert box.is_running()
    assert Sandbox.get_info(box.sandbox_id).template_id == "base"


def test_set_timeout_moves_the_end(box):
    box.set_timeout(600)
    Sandbox.set_timeout(box.sandbox_id, 700)
    left = box.get_info().end_at - datetime.datetime.now(datetime.timezone.utc)
    assert 690 < left.total_seconds() < 710


def test_a_timeout_really_ends_the_sandbox(server):
    brief = Sandbox.create(timeout=1)
    until(lambda: not brief.is_running(), "the end")
    with pytest.raises(SandboxNotFoundException):
        brief.get_info()
    assert brief.kill() is False
    with pytest.raises(SandboxNotFoundException):
        brief.set_timeout(10)


def test_a_timeout_pauses_and_traffic_wakes(server):
    brief = Sandbox.create(timeout=1, lifecycle={"on_timeout": "pause", "auto_resume": True})
    until(lambda: brief.get_info().state == SandboxState.PAUSED, "the pause")
    assert brief.commands.run("echo awake").stdout == "awake\n"
    assert brief.get_info().lifecycle["auto_resume"] is True
    brief.kill()


def test_pause_and_connect(server):
    sandbox = Sandbox.create()
    sandbox.files.write("kept.txt", "kept")
    handle = sandbox.commands.run("sleep 600", background=True, timeout=0)
    assert sandbox.pause() is True
    assert Sandbox.pause(sandbox.sandbox_id) is False
    assert sandbox.is_running() is False
    again = sandbox.connect(timeout=60)
    assert [entry.pid for entry in again.commands.list()] == [handle.pid]
    assert again.beta_pause(keep_memory=False) is True
    again = Sandbox.connect(sandbox.sandbox_id)
    assert again.commands.list() == []
    assert again.files.read("kept.txt") == "kept"
    again.pause()
    again = Sandbox.connect(sandbox.sandbox_id, on_resume="reboot")
    assert again.files.read("kept.txt") == "kept"
    assert again.kill() is True
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)


def test_list_pages_and_filters(server, box):
    others = [Sandbox.create(metadata={"group": "pages", "n": str(n)}) for n in range(3)]
    seen = []
    pages = Sandbox.list(query=SandboxQuery(metadata={"group": "pages"}), limit=2, order="asc")
    while pages.has_next:
        items = pages.next_items()
        assert len(items) <= 2
        seen += [item.sandbox_id for item in items]
    assert seen == [other.sandbox_id for other in others]
    odd = Sandbox.list(query=SandboxQuery(metadata={"odd key": "v&1=2"})).next_items()
    assert [item.sandbox_id for item in odd] == [box.sandbox_id]
    others[0].pause()
    paused = Sandbox.list(query=SandboxQuery(metadata={"group": "pages"}, state=[SandboxState.PAUSED])).next_items()
    assert [item.sandbox_id for item in paused] == [others[0].sandbox_id]
    for other in others:
        assert Sandbox.kill(other.sandbox_id) is True


def test_an_idempotency_key_makes_one_sandbox(server):
    first = Sandbox.create(idempotency_key="the-same-1")
    second = Sandbox.create(idempotency_key="the-same-1")
    third = Sandbox.create(idempotency_key="another-1")
    assert first.sandbox_id == second.sandbox_id != third.sandbox_id
    for sandbox in (first, third):
        sandbox.kill()
    assert Sandbox.create(idempotency_key="the-same-1").kill() is True


def test_get_metrics(box):
    box.get_metrics()
    box.commands.run("head -c 20000000 /dev/urandom | sha256sum")
    metrics = Sandbox.get_metrics(box.sandbox_id)
    assert metrics[-1].cpu_used_pct > 0
    assert 0 < metrics[-1].mem_used < metrics[-1].mem_total
    assert metrics[-1].disk_total > metrics[-1].disk_used
    long_ago = datetime.datetime.now() - datetime.timedelta(hours=1)
    assert box.get_metrics(end=long_ago) == []


def test_urls_are_signed(box):
    box.files.write("signed + ä.txt", "secret")
    url = box.download_url("signed + ä.txt", use_signature_expiration=60)
    with urllib.request.urlopen(url) as reply:
        assert reply.read() == b"secret"
    for bad in (url.replace("signed", "other"), box.download_url("signed + ä.txt", use_signature_expiration=-5)):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(bad)
        assert refused.value.code == 401
        refused.value.close()
    boundary = "xXx"
    body = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nby url\r\n--{boundary}--\r\n'
    request = urllib.request.Request(
        box.upload_url("by-url.txt"),
        data=body.encode(),
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    with urllib.request.urlopen(request) as reply:
        assert reply.status == 200
    assert box.files.read("by-url.txt") == "by url"


def test_hosts(box):
    assert box.get_host(3000).startswith(f"3000-{box.sandbox_id}.")
    assert box.get_mcp_url().endswith("/mcp")
    box.files.write("/etc/mcp-gateway/.token", "mcp token", user="root")
    assert box.get_mcp_token() == "mcp token"


def test_a_client_of_its_own_options(server):
    client = E2B(api_key=server.key, api_url=server.api_url, sandbox_url=server.sandbox_url)
    with client.Sandbox.create() as sandbox:
        assert sandbox.commands.run("echo hi").stdout == "hi\n"
    assert sandbox.is_running() is False


def test_git(box):
    git = box.git
    git.configure_user("A User", "user@example.com")
    assert git.get_config("user.name") == "A User"
    git.set_config("init.defaultBranch", "main")
    git.dangerously_authenticate("u", "p", host="git.example.com")
    git.init("/home/user/origin.git", bare=True, initial_branch="main")
    git.init("/home/user/work", initial_branch="main")
    git.remote_add("/home/user/work", "origin", "/home/user/origin.git")
    assert git.remote_get("/home/user/work", "origin") == "/home/user/origin.git"
    box.files.write("work/a.txt", "one\n")
    assert git.status("/home/user/work").has_untracked
    git.add("/home/user/work")
    git.commit("/home/user/work", "first")
    git.push("/home/user/work", remote="origin", branch="main", set_upstream=True)
    git.create_branch("/home/user/work", "side")
    git.checkout_branch("/home/user/work", "main")
    assert sorted(git.branches("/home/user/work").branches) == ["main", "side"]
    git.delete_branch("/home/user/work", "side")
    git.clone("/home/user/origin.git", path="/home/user/copy")
    assert box.files.read("copy/a.txt") == "one\n"
    git.pull("/home/user/copy")
    box.files.write("work/a.txt", "two\n")
    git.restore("/home/user/work", paths=["a.txt"])
    assert box.files.read("work/a.txt") == "one\n"
    git.reset("/home/user/work", mode="hard")
    assert git.status("/home/user/work").is_clean


def test_a_wrong_key_is_refused(server):
    from e2b import AuthenticationException

    with pytest.raises(AuthenticationException):
        Sandbox.create(api_key="e2b_00")
