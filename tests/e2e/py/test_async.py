# SPDX-License-Identifier: Apache-2.0
"""The package's asynchronous half: every method once, since the requests are those of the other half."""

import asyncio

import pytest
from e2b import AsyncSandbox, CommandExitException, FilesystemEventType, PtySize, SandboxQuery, SandboxState


async def until(check, what, seconds=10):
    async with asyncio.timeout(seconds):
        while not (value := await check()):
            await asyncio.sleep(0.02)
        return value


def run(test):
    """A test of its own event loop and sandbox."""

    async def whole():
        box = await AsyncSandbox.create(metadata={"half": "async"})
        try:
            await test(box)
        finally:
            await box.kill()

    asyncio.run(whole())


def test_sandbox(server):
    async def test(box):
        assert await box.is_running()
        await box.set_timeout(600)
        assert (await box.get_info()).state == SandboxState.RUNNING
        assert (await AsyncSandbox.get_info(box.sandbox_id)).metadata == {"half": "async"}
        pages = AsyncSandbox.list(query=SandboxQuery(metadata={"half": "async"}))
        assert [item.sandbox_id for item in await pages.next_items()] == [box.sandbox_id]
        assert not pages.has_next
        assert len(await box.get_metrics()) == 1
        assert box.get_host(80).startswith("80-")
        assert box.get_mcp_url().endswith("/mcp")
        await box.files.write("/etc/mcp-gateway/.token", "mcp token", user="root")
        assert await box.get_mcp_token() == "mcp token"
        assert "signature=" in box.download_url("x") and "signature=" in box.upload_url("x")
        assert await box.pause()
        assert not await box.beta_pause()
        again = await box.connect()
        await again.pause(keep_memory=False)
        assert (await (await AsyncSandbox.connect(box.sandbox_id)).commands.run("echo back")).stdout == "back\n"
        assert await box.list_snapshots().next_items() == []
        assert not await AsyncSandbox.delete_snapshot("none")

    run(test)


def test_files(server):
    async def test(box):
        files = box.files
        data = bytes(i * 31 % 251 for i in range(700_000))

        async def pieces():
            for at in range(0, len(data), 50_000):
                yield data[at : at + 50_000]

        await files.write("text", "grüße")
        assert await files.read("text") == "grüße"
        await files.write("bytes", data)
        await files.write("stream", pieces())
        await files.write("zipped", data, gzip=True)
        for name in ("bytes", "stream", "zipped"):
            assert await files.read(name, format="bytes") == data, name
        got = b""
        async for piece in await files.read("bytes", format="stream"):
            got += piece
        assert got == data
        made = await files.write_files([{"path": f"many/{n}", "data": str(n)} for n in range(5)])
        assert len(made) == 5
        assert await files.make_dir("d/e")
        assert len(await files.list("many")) == 5
        await files.rename("many/0", "d/e/0")
        assert await files.exists("d/e/0")
        assert (await files.get_info("d/e/0")).size == 1
        await files.remove("d")
        assert not await files.exists("d/e/0")

    run(test)


def test_streamed_watches(server):
    async def test(box):
        await box.files.make_dir("watch/deep")
        seen = []
        ended = []
        handle = await box.files.watch_dir(
            "watch", on_event=seen.append, on_exit=ended.append, recursive=True, include_entry=True
        )
        await box.files.write("watch/deep/f.txt", "x")

        async def written():
            return [event for event in seen if (event.type, event.name) == (FilesystemEventType.WRITE, "deep/f.txt")]

        assert (await until(written, "the event"))[0].entry.path == "/home/user/watch/deep/f.txt"
        await handle.stop()
        with pytest.raises(Exception):
            await box.files.watch_dir("no/such", on_event=seen.append)

    run(test)


def test_commands(server):
    async def test(box):
        result = await box.commands.run("echo out; echo err >&2")
        assert (result.stdout, result.stderr) == ("out\n", "err\n")
        handle = await box.commands.run("cat; exit 4", background=True, stdin=True)
        assert handle.pid in [entry.pid for entry in await box.commands.list()]
        await box.commands.send_stdin(handle.pid, "a")
        await handle.send_stdin("b")
        async with box.commands.stream_input(handle.pid) as writer:
            await writer.send("c")
            await writer.send(b"d")
        await handle.close_stdin()
        with pytest.raises(CommandExitException) as ended:
            await handle.wait()
        assert (ended.value.exit_code, ended.value.stdout) == (4, "abcd")
        other = await box.commands.run("cat", background=True, stdin=True)
        await box.commands.close_stdin(other.pid)
        assert (await other.wait()).exit_code == 0
        sleeper = await box.commands.run("sleep 600", background=True, timeout=0)
        await sleeper.disconnect()
        again = await box.commands.connect(sleeper.pid)
        assert await again.kill()
        with pytest.raises(CommandExitException):
            await again.wait()
        assert not await box.commands.kill(sleeper.pid)

    run(test)


def test_terminal(server):
    async def test(box):
        text = bytearray()
        terminal = await box.pty.create(PtySize(rows=31, cols=97), on_data=text.extend, timeout=0)

        async def has(what):
            await until(lambda: asyncio.sleep(0, what in text), what)

        await box.pty.send_stdin(terminal.pid, b"stty size\n")
        await has(b"31 97")
        await box.pty.resize(terminal.pid, PtySize(rows=25, cols=80))
        writer = box.pty.stream_input(terminal.pid)
        await writer.send(b"stty ")
        await writer.send(b"size\n")
        await has(b"25 80")
        await writer.close()
        other = await box.pty.connect(terminal.pid, on_data=text.extend)
        assert other.pid == terminal.pid
        assert await box.pty.kill(terminal.pid)

    run(test)


def test_git(server):
    async def test(box):
        git = box.git
        await git.configure_user("A User", "user@example.com")
        await git.set_config("init.defaultBranch", "main")
        assert await git.get_config("user.name") == "A User"
        await git.dangerously_authenticate("u", "p", host="git.example.com")
        await git.init("/home/user/origin.git", bare=True, initial_branch="main")
        await git.init("/home/user/work", initial_branch="main")
        await git.remote_add("/home/user/work", "origin", "/home/user/origin.git")
        assert await git.remote_get("/home/user/work", "origin") == "/home/user/origin.git"
        await box.files.write("work/a.txt", "one\n")
        await git.add("/home/user/work")
        await git.commit("/home/user/work", "first")
        await git.push("/home/user/work", remote="origin", branch="main", set_upstream=True)
        await git.create_branch("/home/user/work", "side")
        await git.checkout_branch("/home/user/work", "main")
        assert sorted((await git.branches("/home/user/work")).branches) == ["main", "side"]
        await git.delete_branch("/home/user/work", "side")
        await git.clone("/home/user/origin.git", path="/home/user/copy")
        await git.pull("/home/user/copy")
        await box.files.write("work/a.txt", "two\n")
        await git.restore("/home/user/work", paths=["a.txt"])
        await git.reset("/home/user/work", mode="hard")
        assert (await git.status("/home/user/work")).is_clean

    run(test)
