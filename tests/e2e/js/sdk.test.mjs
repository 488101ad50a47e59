// SPDX-License-Identifier: Apache-2.0
// The official SDK, unmodified, on the embedded server.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { startServer, until } from './harness.mjs'

let server
let Sandbox, CommandExitError, FileNotFoundError
let sandbox

before(async () => {
  server = await startServer()
  ;({ Sandbox, CommandExitError, FileNotFoundError } = await import('e2b'))
  sandbox = await Sandbox.create({ metadata: { purpose: 'sdk test', 'odd key': 'v&1=2' }, envs: { GREETING: 'hello' } })
})

after(async () => {
  const { code } = await server.stop()
  assert.equal(code, 0)
})

test('getInfo and isRunning', async () => {
  const info = await sandbox.getInfo()
  assert.equal(info.sandboxId, sandbox.sandboxId)
  assert.equal(info.state, 'running')
  assert.equal(info.metadata.purpose, 'sdk test')
  assert.ok(info.endAt > info.startedAt)
  assert.equal(await sandbox.isRunning(), true)
})

test('setTimeout moves the end', async () => {
  await sandbox.setTimeout(600_000)
  const { endAt } = await sandbox.getInfo()
  const left = endAt.getTime() - Date.now()
  assert.ok(left > 590_000 && left < 610_000, `${left}`)
})

test('files: write, read, text and bytes', async () => {
  const info = await sandbox.files.write('notes/a b.txt', 'text ä')
  assert.equal(info.path, '/home/user/notes/a b.txt')
  assert.equal(await sandbox.files.read('notes/a b.txt'), 'text ä')
  const bytes = new Uint8Array(3_000_000).map((_, i) => (i * 31) % 251)
  await sandbox.files.write('big.bin', new Blob([bytes]))
  assert.deepEqual(await sandbox.files.read('big.bin', { format: 'bytes' }), bytes)
  await sandbox.files.write('octet.bin', new Blob([bytes]), { useOctetStream: true })
  assert.deepEqual(await sandbox.files.read('octet.bin', { format: 'bytes' }), bytes)
  await sandbox.files.write('zipped.bin', new Blob([bytes]), { gzip: true })
  assert.deepEqual(await sandbox.files.read('zipped.bin', { format: 'bytes' }), bytes)
  await sandbox.files.write('empty', '')
  assert.equal(await sandbox.files.read('empty'), '')
})

test('files: several at once', async () => {
  const made = await sandbox.files.write([
    { path: '/home/user/many/1.txt', data: 'one' },
    { path: '/home/user/many/deep/2.txt', data: 'two' },
  ])
  assert.deepEqual(made.map((entry) => entry.path), ['/home/user/many/1.txt', '/home/user/many/deep/2.txt'])
  assert.equal(await sandbox.files.read('many/deep/2.txt'), 'two')
})

test('files: list, makeDir, rename, remove, exists, getInfo', async () => {
  assert.equal(await sandbox.files.makeDir('tree/sub'), true)
  assert.equal(await sandbox.files.makeDir('tree/sub'), false)
  await sandbox.files.write('tree/sub/f.txt', 'x')
  await sandbox.commands.run('ln -s sub/f.txt tree/link && chmod 750 tree/sub')
  const flat = await sandbox.files.list('tree')
  assert.deepEqual(flat.map((entry) => entry.name), ['link', 'sub'])
  assert.equal(flat[0].symlinkTarget, '/home/user/tree/sub/f.txt')
  assert.equal(flat[1].permissions, 'drwxr-x---')
  const deep = await sandbox.files.list('/home/user/tree', { depth: 2 })
  assert.deepEqual(deep.map((entry) => entry.path), [
    '/home/user/tree/link',
    '/home/user/tree/sub',
    '/home/user/tree/sub/f.txt',
  ])
  const moved = await sandbox.files.rename('tree/sub/f.txt', 'tree/other/g.txt')
  assert.equal(moved.path, '/home/user/tree/other/g.txt')
  assert.equal(await sandbox.files.exists('tree/sub/f.txt'), false)
  assert.equal(await sandbox.files.exists('tree/other/g.txt'), true)
  const info = await sandbox.files.getInfo('tree/other/g.txt')
  assert.equal(info.size, 1)
  assert.equal(info.owner, 'user')
  await sandbox.files.remove('tree')
  assert.equal(await sandbox.files.exists('tree'), false)
  await sandbox.files.remove('tree')
})

test('files: what is missing is said so', async () => {
  await assert.rejects(sandbox.files.read('no/such/file'), FileNotFoundError)
  await assert.rejects(sandbox.files.list('no/such/dir'))
  await assert.rejects(sandbox.files.read('/home/user'))
})

test('files: signed URLs need no header', async () => {
  await sandbox.files.write('signed + ä.txt', 'secret')
  const url = await sandbox.downloadUrl('signed + ä.txt', { useSignatureExpiration: 60_000 })
  const reply = await fetch(url)
  assert.equal(reply.status, 200)
  assert.equal(await reply.text(), 'secret')
  const broken = new URL(url)
  broken.searchParams.set('path', 'big.bin')
  assert.equal((await fetch(broken)).status, 401)
  const up = await sandbox.uploadUrl('uploaded.txt')
  const form = new FormData()
  form.append('file', new Blob(['by form']), 'ignored.txt')
  assert.equal((await fetch(up, { method: 'POST', body: form })).status, 200)
  assert.equal(await sandbox.files.read('uploaded.txt'), 'by form')
})

test('commands: foreground, exit codes, streams, environment, directory, user', async () => {
  const ok = await sandbox.commands.run('echo out; echo err >&2; echo $GREETING $MORE; pwd', {
    envs: { MORE: 'there' },
    cwd: '/tmp',
  })
  assert.equal(ok.stdout, 'out\nhello there\n/tmp\n')
  assert.equal(ok.stderr, 'err\n')
  await assert.rejects(sandbox.commands.run('exit 7'), (error) => {
    assert.ok(error instanceof CommandExitError)
    assert.equal(error.exitCode, 7)
    return true
  })
  assert.equal((await sandbox.commands.run('id -un')).stdout, 'user\n')
  const root = await sandbox.commands.run('id -u; echo $HOME', { user: 'root' })
  assert.equal(root.stdout, '0\n/root\n')
  await assert.rejects(sandbox.commands.run('true', { cwd: '/no/such/dir' }))
  await assert.rejects(sandbox.commands.run('true', { user: 'nobodyknows' }))
})

test('commands: output arrives while the command runs', async () => {
  const pieces = []
  const handle = await sandbox.commands.run('echo first; read -r line; echo "second $line"', {
    background: true,
    stdin: true,
    onStdout: (text) => pieces.push(text),
  })
  await until(() => pieces.join('') === 'first\n', 'the first line')
  assert.ok((await sandbox.commands.list()).some((entry) => entry.pid === handle.pid))
  await sandbox.commands.sendStdin(handle.pid, 'line\n')
  const { stdout } = await handle.wait()
  assert.equal(stdout, 'first\nsecond line\n')
})

test('commands: closing stdin ends a reader', async () => {
  const handle = await sandbox.commands.run('cat; echo done', { background: true, stdin: true })
  await sandbox.commands.sendStdin(handle.pid, 'abc')
  await sandbox.commands.closeStdin(handle.pid)
  assert.equal((await handle.wait()).stdout, 'abcdone\n')
})

test('commands: kill, connect, disconnect', async () => {
  const handle = await sandbox.commands.run('sleep 600', { background: true })
  await handle.disconnect()
  const again = await sandbox.commands.connect(handle.pid)
  assert.equal(again.pid, handle.pid)
  assert.equal(await sandbox.commands.kill(handle.pid), true)
  await assert.rejects(again.wait(), (error) => error.exitCode === -1 || /signal/.test(error.message))
  assert.equal(await sandbox.commands.kill(999999), false)
})

test('commands: a large output is complete', async () => {
  const { stdout } = await sandbox.commands.run('head -c 5000000 /dev/zero | tr "\\0" x')
  assert.equal(stdout.length, 5_000_000)
})

test('commands: a detached process outlives its command', async () => {
  await sandbox.commands.run('setsid sleep 600 </dev/null >/dev/null 2>&1 & echo $! > /tmp/detached')
  const { stdout } = await sandbox.commands.run('kill -0 "$(cat /tmp/detached)" && echo alive')
  assert.equal(stdout, 'alive\n')
})

test('commands: a timeout kills the command', async () => {
  await assert.rejects(sandbox.commands.run('echo $$ > /tmp/slow; exec sleep 600', { timeoutMs: 700 }))
  await until(
    async () => (await sandbox.commands.run('kill -0 "$(cat /tmp/slow)" 2>/dev/null && echo alive || echo gone')).stdout === 'gone\n',
    'the end of the command',
  )
})

test('pty: a terminal of the asked size', async () => {
  let text = ''
  const decoder = new TextDecoder()
  const terminal = await sandbox.pty.create({
    cols: 97,
    rows: 31,
    onData: (data) => {
      text += decoder.decode(data)
    },
    timeoutMs: 0,
  })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size; tty\n'))
  await until(() => /31 97/.test(text) && /\/dev\/pts\//.test(text), 'the size')
  await sandbox.pty.resize(terminal.pid, { cols: 80, rows: 25 })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('stty size\nexit 3\n'))
  await assert.rejects(terminal.wait(), (error) => error.exitCode === 3)
  assert.match(text, /25 80/)
})

test('list pages and filters', async () => {
  const others = await Promise.all([1, 2, 3].map((n) => Sandbox.create({ metadata: { group: 'pages', n: `${n}` } })))
  const seen = []
  const pages = Sandbox.list({ limit: 2, query: { metadata: { group: 'pages' } } })
  while (pages.hasNext) {
    const items = await pages.nextItems()
    assert.ok(items.length <= 2)
    seen.push(...items.map((item) => item.sandboxId))
  }
  assert.deepEqual([...seen].sort(), others.map((other) => other.sandboxId).sort())
  const odd = await Sandbox.list({ query: { metadata: { 'odd key': 'v&1=2' } } }).nextItems()
  assert.deepEqual(odd.map((item) => item.sandboxId), [sandbox.sandboxId])
  for (const other of others) assert.equal(await other.kill(), true)
  assert.equal(await others[0].kill(), false)
  assert.equal(await others[0].isRunning(), false)
})

test('pause stops the processes, connect lets them go on', async () => {
  const paused = await Sandbox.create()
  const handle = await paused.commands.run('while :; do echo x >> /tmp/ticks; sleep 0.02; done', {
    background: true,
    timeoutMs: 0,
  })
  handle.wait().catch(() => {})
  await until(async () => (await paused.commands.run('test -s /tmp/ticks && echo yes || true')).stdout === 'yes\n', 'ticks')
  assert.equal(await paused.pause(), true)
  assert.equal(await paused.pause(), false)
  assert.equal((await Sandbox.getInfo(paused.sandboxId)).state, 'paused')
  assert.equal(await paused.isRunning(), false)
  const listed = await Sandbox.list({ query: { state: ['paused'] } }).nextItems()
  assert.deepEqual(listed.map((item) => item.sandboxId), [paused.sandboxId])
  const again = await Sandbox.connect(paused.sandboxId)
  assert.equal((await again.getInfo()).state, 'running')
  const count = async () => Number((await again.commands.run('wc -l < /tmp/ticks')).stdout)
  const first = await count()
  await until(async () => (await count()) > first, 'more ticks')
  await again.kill()
})

test('connect to a running one, and to none', async () => {
  const same = await Sandbox.connect(sandbox.sandboxId)
  assert.equal(await same.files.read('uploaded.txt'), 'by form')
  await assert.rejects(Sandbox.connect('inosuchsandbox'))
})

test('a timeout really ends the sandbox', async () => {
  const brief = await Sandbox.create({ timeoutMs: 1000 })
  await until(async () => !(await brief.isRunning()), 'the end')
  await assert.rejects(Sandbox.getInfo(brief.sandboxId))
})

test('a timeout pauses where that was asked for', async () => {
  const brief = await Sandbox.create({ timeoutMs: 1000, lifecycle: { onTimeout: 'pause' } })
  await until(async () => (await Sandbox.getInfo(brief.sandboxId)).state === 'paused', 'the pause')
  const again = await Sandbox.connect(brief.sandboxId, { timeoutMs: 60_000 })
  assert.equal((await again.commands.run('echo back')).stdout, 'back\n')
  await again.kill()
})

test('a wrong key is refused', async () => {
  await assert.rejects(Sandbox.create({ apiKey: 'e2b_00' }), /401|[Uu]nauthorized|API key/)
})
