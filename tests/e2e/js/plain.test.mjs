// SPDX-License-Identifier: Apache-2.0
// Without namespaces: what still holds.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { running, startServer, until } from './harness.mjs'

let server
let Sandbox

before(async () => {
  server = await startServer({ args: ['--plain'] })
  ;({ Sandbox } = await import('e2b'))
})

after(() => server.stop())

test('files and commands in a home of its own', async () => {
  const sandbox = await Sandbox.create()
  await sandbox.files.write('a/b.txt', 'text')
  const { stdout } = await sandbox.commands.run('pwd; cat a/b.txt; echo $HOME')
  const home = `${server.data}/sandboxes/${sandbox.sandboxId}/home`
  assert.equal(stdout, `${home}\ntext${home}\n`)
  assert.deepEqual((await sandbox.files.list('')).map((entry) => entry.name), ['a'])
  await sandbox.kill()
})

test('pause, resume and kill reach detached processes', async () => {
  const sandbox = await Sandbox.create()
  await sandbox.commands.run('setsid sh -c "while :; do echo x >> ticks; sleep 0.02; done" </dev/null >/dev/null 2>&1 &')
  await sandbox.commands.run('setsid sleep 4343.75 </dev/null >/dev/null 2>&1 &')
  const file = `${server.data}/sandboxes/${sandbox.sandboxId}/home/ticks`
  const size = () => {
    try {
      return readFileSync(file).length
    } catch {
      return 0
    }
  }
  await until(() => size() > 0 && running('4343.75').length === 1, 'both processes')
  await sandbox.pause()
  const [pid] = running('4343.75')
  assert.match(readFileSync(`/proc/${pid}/stat`, 'utf8'), /\) T /)
  const stopped = size()
  const again = await Sandbox.connect(sandbox.sandboxId)
  await until(() => size() > stopped, 'more ticks')
  await again.kill()
  assert.deepEqual(running('4343.75'), [])
})

test('a killed server leaves no process', async (t) => {
  const other = await startServer({ args: ['--plain'] })
  t.after(() => other.stop())
  const sandbox = await Sandbox.create({ apiUrl: other.apiUrl, sandboxUrl: other.sandboxUrl, apiKey: other.key })
  await sandbox.commands.run('setsid sleep 4343.5 </dev/null >/dev/null 2>&1 &')
  await until(() => running('4343.5').length === 1, 'the detached process')
  await other.kill9()
  await until(() => running('4343.5').length === 0, 'the end')
})

test('pause without memory, and the next server, keep the files', async (t) => {
  const env = { NEARBOX_SERVE_KEY: 'e2b_0123456789abcdef' }
  const here = { ...process.env }
  const first = await startServer({ args: ['--plain'], env, keep: true })
  const at = (one) => ({ apiUrl: one.apiUrl, sandboxUrl: one.sandboxUrl, apiKey: one.key })
  const sandbox = await Sandbox.create(at(first))
  await sandbox.files.write('kept.txt', 'kept')
  await sandbox.commands.run('setsid sleep 4343.25 </dev/null >/dev/null 2>&1 &')
  await until(() => running('4343.25').length === 1, 'the detached process')
  await sandbox.pause({ keepMemory: false })
  assert.deepEqual(running('4343.25'), [])
  await first.stop()
  const second = await startServer({ args: ['--plain'], env, data: first.data })
  t.after(() => {
    Object.assign(process.env, here)
    return second.stop()
  })
  const again = await Sandbox.connect(sandbox.sandboxId, at(second))
  assert.equal(await again.files.read('kept.txt'), 'kept')
})
