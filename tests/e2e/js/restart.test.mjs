// SPDX-License-Identifier: Apache-2.0
// What the next server finds.
import assert from 'node:assert/strict'
import { readFileSync, readdirSync, writeFileSync } from 'node:fs'
import { before, test } from 'node:test'
import { running, startServer, until } from './harness.mjs'

let Sandbox

before(async () => {
  ;({ Sandbox } = await import('e2b'))
})

for (const end of ['SIGKILL', 'SIGTERM']) {
  test(`the next server finds paused and stored sandboxes after ${end}`, async (t) => {
    const env = { NEARBOX_SERVE_KEY: 'e2b_0123456789abcdef' }
    const here = { ...process.env }
    const first = await startServer({ env, keep: true })
    const at = (one) => ({ apiUrl: one.apiUrl, sandboxUrl: one.sandboxUrl, apiKey: one.key })
    const options = at(first)
    const paused = await Sandbox.create({ ...options, metadata: { n: 'paused' }, envs: { WORD: 'kept' } })
    const stored = await Sandbox.create({ ...options, metadata: { n: 'stored' } })
    const lasting = await Sandbox.create({ ...options, metadata: { n: 'lasting' }, lifecycle: { onTimeout: 'pause' } })
    const passing = await Sandbox.create({ ...options, metadata: { n: 'passing' } })
    for (const one of [paused, stored, lasting, passing]) {
      await one.files.write('name.txt', one.sandboxId)
      await one.commands.run('sleep 5353.5', { background: true, timeoutMs: 0 }).then((handle) => handle.disconnect())
    }
    await paused.pause()
    await stored.pause({ keepMemory: false })
    if (end === 'SIGKILL') await first.kill9()
    else assert.deepEqual(await first.stop(), { code: 0, signal: null })
    await until(() => running('5353.5').length === 0, 'the processes to end')
    const second = await startServer({ env, data: first.data })
    t.after(() => {
      Object.assign(process.env, here)
      return second.stop()
    })
    const now = at(second)
    const items = await Sandbox.list({ ...now }).nextItems()
    assert.deepEqual(items.map((item) => item.metadata.n).sort(), ['lasting', 'paused', 'stored'])
    assert.equal(items.every((item) => item.state === 'paused'), true)
    await assert.rejects(Sandbox.connect(passing.sandboxId, now))
    for (const one of [paused, stored, lasting]) {
      const again = await Sandbox.connect(one.sandboxId, now)
      assert.equal(await again.files.read('name.txt'), one.sandboxId)
      // The old token still opens it.
      assert.equal(again.envdAccessToken, one.envdAccessToken)
    }
    const again = await Sandbox.connect(paused.sandboxId, now)
    assert.equal((await again.commands.run('echo $WORD')).stdout, 'kept\n')
    assert.equal(await again.kill(), true)
    await until(() => !readdirSync(`${first.data}/sandboxes`).some((name) => name.startsWith(paused.sandboxId)), 'its files to go')
  })
}

test('what belongs to a record that cannot be read is left alone', async (t) => {
  const here = { ...process.env }
  const first = await startServer({ keep: true })
  const at = (one) => ({ apiUrl: one.apiUrl, sandboxUrl: one.sandboxUrl, apiKey: one.key })
  const sandbox = await Sandbox.create(at(first))
  await sandbox.pause()
  await first.stop()
  const record = `${first.data}/sandboxes/${sandbox.sandboxId}.json`
  const text = readFileSync(record, 'utf8')
  writeFileSync(record, text.slice(0, 100))
  const second = await startServer({ data: first.data, keep: true })
  assert.deepEqual(await Sandbox.list(at(second)).nextItems(), [])
  await second.stop()
  writeFileSync(record, text)
  const third = await startServer({ data: first.data })
  t.after(() => {
    Object.assign(process.env, here)
    return third.stop()
  })
  assert.equal((await Sandbox.list(at(third)).nextItems())[0].sandboxId, sandbox.sandboxId)
})
