// SPDX-License-Identifier: Apache-2.0
// Handles, signals, terminals, git: what sdk.test.mjs does not reach.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { startServer, until } from './harness.mjs'

let server
let e2b
let sandbox

before(async () => {
  server = await startServer()
  e2b = await import('e2b')
  sandbox = await e2b.Sandbox.create({ envs: { LEVEL: 'sandbox', ONLY: 'sandbox' } })
})

after(() => server.stop())

test('a handle sends, closes, waits, kills', async () => {
  const cat = await sandbox.commands.run('cat; exit 4', { background: true, stdin: true })
  await cat.sendStdin('text ')
  await cat.sendStdin(new TextEncoder().encode('bytes'))
  assert.equal(sandbox.commands.supportsStdinClose, true)
  await cat.closeStdin()
  await assert.rejects(cat.wait(), (error) => {
    assert.ok(error instanceof e2b.CommandExitError)
    assert.deepEqual([error.exitCode, error.stdout], [4, 'text bytes'])
    return true
  })
  assert.equal(cat.exitCode, 4)
  assert.equal(cat.stdout, 'text bytes')
  const sleeper = await sandbox.commands.run('sleep 600', { background: true })
  assert.equal(await sleeper.kill(), true)
  await assert.rejects(sleeper.wait(), (error) => error.exitCode === -1)
  assert.equal(await sleeper.kill(), false)
  await assert.rejects(sandbox.commands.sendStdin(999999, 'x'), e2b.NotFoundError)
  await assert.rejects(sandbox.commands.connect(999999), e2b.NotFoundError)
  const deaf = await sandbox.commands.run('sleep 600', { background: true })
  await assert.rejects(deaf.sendStdin('x'))
  await deaf.kill()
  await deaf.wait().catch(() => {})
})

test('several listen to one command; each hears what comes after', async () => {
  const first = await sandbox.commands.run('read -r a; echo "got $a"; echo "bad $a" >&2', { background: true, stdin: true })
  const heard = []
  const second = await sandbox.commands.connect(first.pid, { onStdout: (text) => heard.push(text), onStderr: (text) => heard.push(text) })
  await sandbox.commands.sendStdin(first.pid, 'it\n')
  const [one, two] = await Promise.all([first.wait(), second.wait()])
  for (const result of [one, two]) assert.deepEqual([result.stdout, result.stderr, result.exitCode], ['got it\n', 'bad it\n', 0])
  assert.deepEqual(heard.sort(), ['bad it\n', 'got it\n'])
})

test('list shows what was asked for', async () => {
  const handle = await sandbox.commands.run('sleep 600', { background: true, envs: { A: '1' }, cwd: '/tmp', timeoutMs: 0 })
  const [entry] = (await sandbox.commands.list()).filter((item) => item.pid === handle.pid)
  assert.equal(entry.cmd, '/bin/bash')
  assert.deepEqual(entry.args, ['-l', '-c', 'sleep 600'])
  assert.deepEqual(entry.envs, { A: '1' })
  assert.equal(entry.cwd, '/tmp')
  await sandbox.commands.kill(handle.pid)
  await handle.wait().catch(() => {})
})

test('the environment of a command wins over that of the sandbox', async () => {
  const { stdout } = await sandbox.commands.run('echo $LEVEL $ONLY $E2B_SANDBOX $E2B_SANDBOX_ID $HOME', { envs: { LEVEL: 'command' } })
  assert.equal(stdout, `command sandbox true ${sandbox.sandboxId} /home/user\n`)
})

test('exit codes: not found, not executable, a signal of its own', async () => {
  const code = async (command) => sandbox.commands.run(command).then((r) => r.exitCode, (error) => error.exitCode)
  assert.equal(await code('true'), 0)
  assert.equal(await code('no-such-program-here'), 127)
  assert.equal(await code('/etc/passwd'), 126)
  assert.equal(await code('kill -TERM $$'), -1)
  assert.equal(await code('exit 255'), 255)
})

test('a terminal: connect, input, colours, kill', async () => {
  let text = ''
  const decoder = new TextDecoder()
  const terminal = await sandbox.pty.create({ cols: 40, rows: 10, onData: () => {}, timeoutMs: 0, cwd: '/tmp', envs: { MINE: 'here' } })
  const other = await sandbox.pty.connect(terminal.pid, { onData: (data) => (text += decoder.decode(data, { stream: true })) })
  await sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode('echo "$TERM:$MINE:$PWD:"; id -un; tput cols\n'))
  await until(() => /xterm-256color:here:\/tmp:/.test(text), 'the answer')
  assert.equal(await sandbox.pty.kill(terminal.pid), true)
  await Promise.allSettled([terminal.wait(), other.wait()])
  assert.equal(await sandbox.pty.kill(terminal.pid), false)
  await assert.rejects(sandbox.pty.resize(terminal.pid, { cols: 1, rows: 1 }), e2b.NotFoundError)
})

test('a stream that ends early says why', async () => {
  const brief = await e2b.Sandbox.create({ timeoutMs: 2000 })
  await assert.rejects(brief.commands.run('sleep 600', { timeoutMs: 0 }), e2b.TimeoutError)
  await assert.rejects(brief.commands.run('true'), e2b.SandboxNotFoundError)
})

test('requests: aborted ones end, wrong tokens are refused', async () => {
  await assert.rejects(sandbox.commands.run('true', { signal: AbortSignal.abort() }))
  const stranger = await e2b.Sandbox.connect(sandbox.sandboxId)
  const forged = new e2b.Sandbox({ ...stranger.connectionConfig, sandboxId: sandbox.sandboxId, envdVersion: '0.6.13', envdAccessToken: 'forged' })
  await assert.rejects(forged.commands.run('true'), e2b.AuthenticationError)
  await assert.rejects(forged.files.read('x'), e2b.AuthenticationError)
  assert.equal(sandbox.getMcpUrl(), `https://${sandbox.getHost(50005)}/mcp`)
  assert.equal(await sandbox.getMcpToken().catch(() => undefined), undefined)
})

test('git', async () => {
  const { git } = sandbox
  await git.configureUser('A User', 'user@example.com')
  assert.equal(await git.getConfig('user.name'), 'A User')
  await git.setConfig('init.defaultBranch', 'main')
  await git.dangerouslyAuthenticate({ username: 'u', password: 'p', host: 'git.example.com' })
  await git.init('/home/user/origin.git', { bare: true, initialBranch: 'main' })
  await git.init('/home/user/work', { initialBranch: 'main' })
  await git.remoteAdd('/home/user/work', 'origin', '/home/user/origin.git')
  assert.equal(await git.remoteGet('/home/user/work', 'origin'), '/home/user/origin.git')
  await sandbox.files.write('work/a.txt', 'one\n')
  assert.equal((await git.status('/home/user/work')).hasUntracked, true)
  await git.add('/home/user/work')
  await git.commit('/home/user/work', 'first')
  await git.push('/home/user/work', { remote: 'origin', branch: 'main', setUpstream: true })
  await git.createBranch('/home/user/work', 'side')
  await git.checkoutBranch('/home/user/work', 'main')
  assert.deepEqual((await git.branches('/home/user/work')).branches.sort(), ['main', 'side'])
  await git.deleteBranch('/home/user/work', 'side')
  await git.clone('/home/user/origin.git', { path: '/home/user/copy' })
  assert.equal(await sandbox.files.read('copy/a.txt'), 'one\n')
  await git.pull('/home/user/copy')
  await sandbox.files.write('work/a.txt', 'two\n')
  await git.restore('/home/user/work', { paths: ['a.txt'] })
  assert.equal(await sandbox.files.read('work/a.txt'), 'one\n')
  await git.reset('/home/user/work', { mode: 'hard' })
  assert.equal((await git.status('/home/user/work')).isClean, true)
})

test('clients of their own options', async () => {
  const client = new e2b.E2B({ apiKey: server.key, apiUrl: server.apiUrl, sandboxUrl: server.sandboxUrl })
  const other = await client.Sandbox.create()
  assert.equal((await other.commands.run('echo hi')).stdout, 'hi\n')
  await other.kill()
})
