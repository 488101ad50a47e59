# SPDX-License-Identifier: Apache-2.0
"""What this server cannot do says so, with 501, instead of doing something else."""

import asyncio

import pytest
from e2b import ALL_TRAFFIC, AsyncSandbox, AsyncSecret, AsyncTemplate, AsyncVolume, Sandbox, Secret, Template, Volume
from e2b.template.types import BuildInfo

REFUSED = r"501|does not implement|this server (cannot|has no)"


def refused(call):
    with pytest.raises(Exception, match=REFUSED):
        call()


def all_refused(*coroutines):
    async def run():
        for coroutine in coroutines:
            with pytest.raises(Exception, match=REFUSED):
                await coroutine

    asyncio.run(run())


@pytest.mark.parametrize(
    "options",
    [
        {"allow_internet_access": False},
        {"network": {"deny_out": [ALL_TRAFFIC]}},
        {"network": {"https_ports": [8443]}},
        {"network": {"rules": {"example.com": [{"transform": {"headers": {"a": "b"}}}]}}},
        {"network": {"egress_proxy": {"address": "proxy.example:1080"}}},
        {"volume_mounts": {"/mnt/data": "data"}},
        {"iam": {"tokens": {"aws": Secret.iam_token(audience="a", token_type="JWT-SVID")}}},
        {"mcp": {"exa": {"apiKey": "k"}}},
    ],
    ids=lambda options: str(options),
)
def test_sandboxes_this_server_cannot_make(server, options):
    refused(lambda: Sandbox.create(**options))


def test_snapshots_forks_and_networks(box):
    refused(box.create_snapshot)
    refused(lambda: Sandbox.create_snapshot(box.sandbox_id))
    refused(box.fork)
    refused(lambda: Sandbox.fork(box.sandbox_id))
    refused(lambda: box.update_network({"deny_out": ["10.0.0.0/8"]}))
    refused(lambda: Sandbox.update_network(box.sandbox_id, {}))
    # There are none, which is an answer.
    assert box.list_snapshots().next_items() == []
    assert Sandbox.delete_snapshot("none") is False
    all_refused(
        AsyncSandbox.create_snapshot(box.sandbox_id),
        AsyncSandbox.fork(box.sandbox_id),
        AsyncSandbox.update_network(box.sandbox_id, {}),
    )


def test_volumes(server):
    refused(lambda: Volume.create("data"))
    refused(lambda: Volume.connect("v1"))
    refused(lambda: Volume.get_info("v1"))
    refused(Volume.list)
    assert Volume.destroy("v1") is False
    volume = Volume("v1", "data", "token")
    refused(lambda: volume.list("/"))
    refused(lambda: volume.make_dir("/d"))
    refused(lambda: volume.get_info("/d"))
    refused(lambda: volume.exists("/d"))
    refused(lambda: volume.update_metadata("/d", mode=0o700))
    refused(lambda: volume.read_file("/f"))
    refused(lambda: volume.write_file("/f", "x"))
    refused(lambda: volume.remove("/f"))
    volume = AsyncVolume("v1", "data", "token")
    all_refused(
        AsyncVolume.create("data"),
        AsyncVolume.connect("v1"),
        AsyncVolume.get_info("v1"),
        AsyncVolume.list(),
        volume.list("/"),
        volume.make_dir("/d"),
        volume.get_info("/d"),
        volume.exists("/d"),
        volume.update_metadata("/d", mode=0o700),
        volume.read_file("/f"),
        volume.write_file("/f", "x"),
        volume.remove("/f"),
    )
    assert asyncio.run(AsyncVolume.destroy("v1")) is False


def test_secrets(server):
    refused(lambda: Secret.create("name", "value"))
    refused(lambda: Secret.update("name", "value"))
    refused(lambda: Secret.get_info("name"))
    refused(lambda: Secret.list().next_items())
    refused(lambda: Secret.exists("name"))
    assert Secret.destroy("name") is False
    all_refused(
        AsyncSecret.create("name", "value"),
        AsyncSecret.update("name", "value"),
        AsyncSecret.get_info("name"),
        AsyncSecret.list().next_items(),
        AsyncSecret.exists("name"),
    )
    assert asyncio.run(AsyncSecret.destroy("name")) is False


def test_templates(server):
    template = Template().from_python_image("3").run_cmd("true")
    build = BuildInfo(alias="a", name="mine", tags=[], template_id="t", build_id="b")
    refused(lambda: Template.build(template, "mine"))
    refused(lambda: Template.build_in_background(template, "mine"))
    refused(lambda: Template.get_build_status(build))
    refused(lambda: Template.exists("mine"))
    refused(lambda: Template.alias_exists("mine"))
    refused(lambda: Template.assign_tags("mine", "v1"))
    refused(lambda: Template.remove_tags("mine", "v1"))
    refused(lambda: Template.get_tags("mine"))
    template = AsyncTemplate().from_python_image("3").run_cmd("true")
    all_refused(
        AsyncTemplate.build(template, "mine"),
        AsyncTemplate.build_in_background(template, "mine"),
        AsyncTemplate.get_build_status(build),
        AsyncTemplate.exists("mine"),
        AsyncTemplate.alias_exists("mine"),
        AsyncTemplate.assign_tags("mine", "v1"),
        AsyncTemplate.remove_tags("mine", "v1"),
        AsyncTemplate.get_tags("mine"),
    )
