// SPDX-License-Identifier: Apache-2.0
// A sandbox's life: pausing with and without memory, waking by traffic, times.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { requestHost, running, startServer, until } from './harness.mjs'

let server
let e2b
let Sandbox

before(async () => {
  server = await startServer()
  e2b = await import('e2b')
  ;({ Sandbox } = e2b)
})

after(() => server.stop())

test('pause without memory keeps the files and ends the processes', async () => {
  const sandbox = await Sandbox.create({ metadata: { what: 'files only' }, envs: { KEPT: 'yes' } })
  await sandbox.files.write('kept.txt', 'kept')
  await sandbox.files.write('/usr/local/share/kept.txt', 'of the system', { user: 'root' })
  await sandbox.files.write('/tmp/gone.txt', 'gone')
  await sandbox.commands.run('sleep 5151.5', { background: true, timeoutMs: 0 }).then((handle) => handle.disconnect())
  await until(() => running('5151.5').length > 0, 'the process')
  assert.equal(await sandbox.pause({ keepMemory: false }), true)
  assert.deepEqual(running('5151.5'), [])
  const info = await Sandbox.getInfo(sandbox.sandboxId)
  assert.equal(info.state, 'paused')
  assert.equal(info.metadata.what, 'files only')
  const again = await sandbox.connect()
  assert.equal(await again.files.read('kept.txt'), 'kept')
  assert.equal(await again.files.read('/usr/local/share/kept.txt'), 'of the system')
  assert.equal(await again.files.exists('/tmp/gone.txt'), false)
  assert.equal((await again.commands.run('echo $KEPT; id -un')).stdout, 'yes\nuser\n')
  assert.deepEqual(await again.commands.list(), [])
  await again.kill()
})

test('reboot leaves memory behind', async () => {
  const sandbox = await Sandbox.create()
  await sandbox.commands.run('sleep 5252.5', { background: true, timeoutMs: 0 }).then((handle) => handle.disconnect())
  await sandbox.files.write('kept.txt', 'kept')
  assert.equal(await Sandbox.pause(sandbox.sandboxId, { keepMemory: true }), true)
  assert.equal(running('5252.5').length, 1)
  const again = await Sandbox.connect(sandbox.sandboxId, { onResume: 'reboot' })
  assert.deepEqual(running('5252.5'), [])
  assert.equal(await again.files.read('kept.txt'), 'kept')
  assert.equal(await again.betaPause(), true)
  assert.equal(await Sandbox.betaPause(sandbox.sandboxId), false)
  assert.equal(await Sandbox.kill(sandbox.sandboxId), true)
  await assert.rejects(Sandbox.connect(sandbox.sandboxId), e2b.SandboxNotFoundError)
  await assert.rejects(Sandbox.pause(sandbox.sandboxId), e2b.SandboxNotFoundError)
})

test('what expires is paused as asked, and traffic wakes it where that was asked', async () => {
  const files = await Sandbox.create({ timeoutMs: 1000, lifecycle: { onTimeout: { action: 'pause', keepMemory: false } } })
  const woken = await Sandbox.create({ timeoutMs: 1000, lifecycle: { onTimeout: 'pause', autoResume: true } })
  const asleep = await Sandbox.create({ timeoutMs: 1000, lifecycle: { onTimeout: 'pause' } })
  const all = [files, woken, asleep]
  assert.deepEqual((await Sandbox.getInfo(woken.sandboxId)).lifecycle, { onTimeout: 'pause', autoResume: true })
  for (const one of all) {
    await until(async () => (await Sandbox.getInfo(one.sandboxId)).state === 'paused', 'the pause')
  }
  assert.equal((await woken.commands.run('echo awake')).stdout, 'awake\n')
  assert.equal((await woken.getInfo()).state, 'running')
  assert.ok((await woken.getInfo()).endAt.getTime() - Date.now() > 200_000)
  await assert.rejects(asleep.commands.run('echo never'), e2b.SandboxNotFoundError)
  await assert.rejects(asleep.files.read('x'), e2b.TimeoutError)
  assert.equal(await asleep.isRunning(), false)
  assert.equal((await asleep.getInfo()).state, 'paused')
  for (const one of all) assert.equal(await one.kill(), true)
})

test('times: moved both ways, counted by connect, bounded', async () => {
  const sandbox = await Sandbox.create({ timeoutMs: 60_000 })
  const left = async () => (await sandbox.getInfo()).endAt.getTime() - Date.now()
  await Sandbox.setTimeout(sandbox.sandboxId, 600_000)
  assert.ok((await left()) > 590_000)
  await sandbox.connect({ timeoutMs: 60_000 })
  assert.ok((await left()) > 590_000, 'connect never shortens')
  await sandbox.setTimeout(1e9)
  assert.ok((await left()) <= 24 * 3600_000, 'the most there is')
  await sandbox.setTimeout(0)
  await until(async () => !(await sandbox.isRunning()), 'the end')
  await assert.rejects(sandbox.setTimeout(1000), e2b.SandboxNotFoundError)
  await assert.rejects(Sandbox.create({ timeoutMs: 25 * 3600_000 }))
})

test('getMetrics measures', async () => {
  const sandbox = await Sandbox.create()
  await sandbox.getMetrics()
  await sandbox.commands.run('i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done')
  const metrics = await Sandbox.getMetrics(sandbox.sandboxId)
  assert.equal(metrics.length, 2)
  const last = metrics[1]
  assert.ok(last.cpuUsedPct > 0 && last.memUsed > 0 && last.memTotal > last.memUsed, JSON.stringify(last))
  assert.ok(last.diskTotal > last.diskUsed && last.cpuCount >= 1)
  assert.ok(last.timestamp >= metrics[0].timestamp)
  assert.deepEqual(await sandbox.getMetrics({ end: new Date(Date.now() - 3600_000) }), [])
  await sandbox.kill()
  await assert.rejects(sandbox.getMetrics(), e2b.SandboxNotFoundError)
})

test('list: order, states, templates, start times, pages of both states', async () => {
  const first = await Sandbox.create('alpine', { metadata: { set: 'list' } })
  const between = new Date()
  await until(() => Date.now() > between.getTime(), 'the next millisecond')
  const second = await Sandbox.create({ metadata: { set: 'list' } })
  await second.pause()
  const ids = async (options) => {
    const found = []
    const pages = Sandbox.list({ ...options, query: { metadata: { set: 'list' }, ...options.query } })
    while (pages.hasNext) found.push(...(await pages.nextItems()).map((item) => item.sandboxId))
    return found
  }
  assert.deepEqual(await ids({}), [second.sandboxId, first.sandboxId])
  assert.deepEqual(await ids({ order: 'asc', limit: 1 }), [first.sandboxId, second.sandboxId])
  assert.deepEqual(await ids({ query: { state: ['running'] } }), [first.sandboxId])
  assert.deepEqual(await ids({ query: { template: 'alpine' } }), [first.sandboxId])
  assert.deepEqual(await ids({ query: { startedAfter: between } }), [second.sandboxId])
  assert.deepEqual(await ids({ query: { metadata: { set: 'list', more: 'x' } } }), [])
  const full = await Sandbox.getFullInfo(first.sandboxId)
  assert.equal(full.templateId, 'alpine')
  await first.kill()
  await second.kill()
})

test('a stored sandbox answers as the edge does until it is connected', async () => {
  const sandbox = await Sandbox.create({ lifecycle: { onTimeout: 'pause', autoResume: false } })
  await sandbox.pause({ keepMemory: false })
  const reply = await requestHost(server, sandbox.getHost(8080))
  assert.equal(reply.status, 502)
  assert.deepEqual(JSON.parse(reply.text), { sandboxId: sandbox.sandboxId, message: 'The sandbox was not found', code: 502 })
  await sandbox.kill()
})
