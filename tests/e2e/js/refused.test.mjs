// SPDX-License-Identifier: Apache-2.0
// What this server cannot do says so, with 501, instead of doing something else.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { startServer } from './harness.mjs'

let server
let e2b
let sandbox

before(async () => {
  server = await startServer()
  process.env.E2B_VOLUME_API_URL = server.apiUrl
  e2b = await import('e2b')
  sandbox = await e2b.Sandbox.create()
})

after(() => server.stop())

const refusal = (error) => {
  assert.match(error.message, /501|does not implement|this server (cannot|has no)/, error.stack)
  return true
}

test('sandboxes that would be more closed, or more, than this server can make', async () => {
  const { Sandbox, Secret, ALL_TRAFFIC } = e2b
  for (const options of [
    { allowInternetAccess: false },
    { network: { denyOut: [ALL_TRAFFIC] } },
    { network: { denyOut: [ALL_TRAFFIC], allowOut: ['1.1.1.1'] } },
    { network: { httpsPorts: [8443] } },
    { network: { rules: { 'example.com': [{ transform: { headers: { a: 'b' } } }] } } },
    { network: { egressProxy: { address: 'proxy.example:1080' } } },
    { volumeMounts: { '/mnt/data': 'data' } },
    { iam: { tokens: { aws: Secret.iamToken({ audience: 'a', tokenType: 'JWT-SVID' }) } } },
    { mcp: { exa: { apiKey: 'k' } } },
  ]) {
    await assert.rejects(Sandbox.create(options), refusal, JSON.stringify(options))
  }
  assert.equal((await Sandbox.list().nextItems()).length, 1)
})

test('snapshots, forks, changes of the network', async () => {
  const { Sandbox } = e2b
  await assert.rejects(sandbox.createSnapshot(), refusal)
  await assert.rejects(Sandbox.createSnapshot(sandbox.sandboxId), refusal)
  await assert.rejects(sandbox.fork(), refusal)
  await assert.rejects(Sandbox.fork(sandbox.sandboxId), refusal)
  await assert.rejects(sandbox.updateNetwork({ denyOut: ['10.0.0.0/8'] }), refusal)
  await assert.rejects(Sandbox.updateNetwork(sandbox.sandboxId, {}), refusal)
  // There are none, which is an answer.
  assert.deepEqual(await sandbox.listSnapshots().nextItems(), [])
  assert.deepEqual(await Sandbox.listSnapshots({ limit: 10 }).nextItems(), [])
  assert.equal(await Sandbox.deleteSnapshot('none'), false)
})

test('volumes', async () => {
  const { Volume } = e2b
  await assert.rejects(Volume.create('data'), refusal)
  await assert.rejects(Volume.connect('v1'), refusal)
  await assert.rejects(Volume.getInfo('v1'), refusal)
  await assert.rejects(Volume.list(), refusal)
  assert.equal(await Volume.destroy('v1'), false)
  const volume = new Volume('v1', 'data', 'token')
  await assert.rejects(volume.list('/'), refusal)
  await assert.rejects(volume.makeDir('/d'), refusal)
  await assert.rejects(volume.getInfo('/d'), refusal)
  await assert.rejects(volume.exists('/d'), refusal)
  await assert.rejects(volume.updateMetadata('/d', { mode: 0o700 }), refusal)
  await assert.rejects(volume.readFile('/f'), refusal)
  await assert.rejects(volume.writeFile('/f', 'x'), refusal)
  await assert.rejects(volume.remove('/f'), refusal)
})

test('secrets', async () => {
  const { Secret } = e2b
  await assert.rejects(Secret.create('name', 'value'), refusal)
  await assert.rejects(Secret.update('name', 'value'), refusal)
  await assert.rejects(Secret.getInfo('name'), refusal)
  await assert.rejects(Secret.list().nextItems(), refusal)
  await assert.rejects(Secret.exists('name'), refusal)
  assert.equal(await Secret.destroy('name'), false)
})

test('templates', async () => {
  const { Template } = e2b
  const template = Template().fromPythonImage('3').runCmd('true')
  await assert.rejects(Template.build(template, 'mine'), refusal)
  await assert.rejects(Template.buildInBackground(template, 'mine'), refusal)
  await assert.rejects(Template.getBuildStatus({ templateId: 't', buildId: 'b' }), refusal)
  await assert.rejects(Template.exists('mine'), refusal)
  await assert.rejects(Template.aliasExists('mine'), refusal)
  await assert.rejects(Template.assignTags('mine', 'v1'), refusal)
  await assert.rejects(Template.removeTags('mine', 'v1'), refusal)
  await assert.rejects(Template.getTags('mine'), refusal)
})
