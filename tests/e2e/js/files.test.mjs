// SPDX-License-Identifier: Apache-2.0
// The SDK's files in every form, and its watches.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { startServer, until } from './harness.mjs'

let server
let sandbox
let e2b

before(async () => {
  server = await startServer()
  e2b = await import('e2b')
  sandbox = await e2b.Sandbox.create()
})

after(() => server.stop())

const bytes = new Uint8Array(2_500_000).map((_, i) => (i * 37) % 253)

function streamOf(data, size = 100_000) {
  let at = 0
  return new ReadableStream({
    pull(controller) {
      if (at >= data.length) return controller.close()
      controller.enqueue(data.subarray(at, at + size))
      at += size
    },
  })
}

async function collect(stream) {
  const pieces = []
  for await (const piece of stream) pieces.push(piece)
  return new Uint8Array(Buffer.concat(pieces))
}

test('write takes text, buffers, blobs and streams; read gives text, bytes, blob and stream', async () => {
  await sandbox.files.write('f/buffer', bytes.buffer)
  await sandbox.files.write('f/stream', streamOf(bytes))
  await sandbox.files.write('f/octet-stream', streamOf(bytes), { useOctetStream: true })
  await sandbox.files.write('f/zipped-stream', streamOf(bytes), { gzip: true })
  for (const name of ['buffer', 'stream', 'octet-stream', 'zipped-stream']) {
    assert.deepEqual(await sandbox.files.read(`f/${name}`, { format: 'bytes' }), bytes, name)
  }
  assert.deepEqual(await collect(await sandbox.files.read('f/buffer', { format: 'stream' })), bytes)
  const blob = await sandbox.files.read('f/buffer', { format: 'blob' })
  assert.deepEqual(new Uint8Array(await blob.arrayBuffer()), bytes)
  await sandbox.files.write('f/text', 'grüße')
  assert.equal(await sandbox.files.read('f/text'), 'grüße')
  assert.equal(await sandbox.files.read('f/text', { format: 'text', gzip: true }), 'grüße')
  assert.deepEqual(await sandbox.files.read('f/buffer', { format: 'bytes', gzip: true }), bytes)
})

test('writeFiles writes many, by parts and by streams', async () => {
  const many = Array.from({ length: 40 }, (_, i) => ({ path: `many/${i}/f.txt`, data: `file ${i}` }))
  const written = await sandbox.files.writeFiles(many)
  assert.equal(written.length, many.length)
  assert.equal(await sandbox.files.read('many/39/f.txt'), 'file 39')
  await sandbox.files.writeFiles(many, { useOctetStream: true, user: 'root' })
  assert.equal(await sandbox.files.read('/root/many/0/f.txt', { user: 'root' }), 'file 0')
  await assert.rejects(sandbox.files.writeFiles([{ path: 'twice', data: 'a' }, { path: 'twice', data: 'b' }]))
})

test('metadata stays with a file until the next upload', async () => {
  const made = await sandbox.files.write('meta.txt', 'x', { metadata: { Kind: 'note', origin: 'here and there' } })
  assert.deepEqual(made.metadata, { kind: 'note', origin: 'here and there' })
  assert.deepEqual((await sandbox.files.getInfo('meta.txt')).metadata, made.metadata)
  await sandbox.files.write('meta.txt', 'y')
  assert.deepEqual((await sandbox.files.getInfo('meta.txt')).metadata ?? {}, {})
})

test('list goes as deep as asked', async () => {
  await sandbox.files.write('deep/1/2/3/4.txt', '')
  for (const [depth, count] of [[1, 1], [2, 2], [3, 3], [4, 4], [9, 4]]) {
    assert.equal((await sandbox.files.list('deep', { depth })).length, count, `${depth}`)
  }
  await assert.rejects(sandbox.files.list('deep', { depth: 0 }))
  await assert.rejects(sandbox.files.list('deep/1/2/3/4.txt'))
})

test('getInfo tells kind, size, owner and links', async () => {
  await sandbox.files.write('info.txt', '12345')
  await sandbox.commands.run('ln -sf info.txt info.link && mkdir -p info.dir && chmod 700 info.dir')
  const file = await sandbox.files.getInfo('info.txt')
  assert.equal(file.type, e2b.FileType.FILE)
  assert.equal(file.size, 5)
  assert.equal(file.permissions, '-rw-r--r--')
  assert.equal(file.group, 'user')
  assert.ok(Math.abs(file.modifiedTime.getTime() - Date.now()) < 60_000)
  assert.equal((await sandbox.files.getInfo('info.dir')).type, e2b.FileType.DIR)
  assert.equal((await sandbox.files.getInfo('info.link')).symlinkTarget, '/home/user/info.txt')
  await assert.rejects(sandbox.files.getInfo('info.none'), e2b.FileNotFoundError)
})

test('a signed URL expires, and a broken one is refused', async () => {
  await sandbox.files.write('signed.txt', 'secret')
  const late = new URL(await sandbox.downloadUrl('signed.txt', { useSignatureExpiration: -10 }))
  const refused = await fetch(late)
  assert.equal(refused.status, 401)
  await refused.text()
  // A later time with the old signature is none of ours.
  late.searchParams.set('signature_expiration', '4000000000')
  assert.equal((await fetch(late)).status, 401)
  const url = await sandbox.uploadUrl('by-url.txt', { user: 'root', useSignatureExpiration: 600 })
  const form = new FormData()
  form.append('file', new Blob(['by url']), 'any name')
  const put = await fetch(url, { method: 'POST', body: form })
  assert.equal(put.status, 200, await put.text())
  assert.equal(await sandbox.files.read('/root/by-url.txt', { user: 'root' }), 'by url')
  // Read and write are signed apart.
  assert.equal((await fetch(url)).status, 401)
  // As the SDK computes them.
  const made = await e2b.getSignature({ path: 'a b.txt', operation: 'write', user: undefined, envdAccessToken: 'tok_secret' })
  assert.equal(made.signature, 'v1_H8INHYmI97bTX8pTdaU0bdsesNKXdhDaTtavS2WI4gI')
})

async function watched(path, options, change) {
  const events = []
  const handle = await sandbox.files.watchDir(path, (event) => events.push(event), options)
  await change(events, (kind, name) => until(() => events.some((e) => e.type === kind && e.name === name), `${kind} ${name}`))
  await handle.stop()
  return events
}

test('watchDir tells what happens in a directory', async () => {
  const { FilesystemEventType: Kind } = e2b
  await sandbox.files.makeDir('watch/below')
  await watched('watch', {}, async (events, seen) => {
    await sandbox.files.write('watch/new.txt', 'one')
    await seen(Kind.CREATE, 'new.txt')
    await seen(Kind.WRITE, 'new.txt')
    await sandbox.commands.run('chmod 600 watch/new.txt')
    await seen(Kind.CHMOD, 'new.txt')
    await sandbox.files.rename('watch/new.txt', 'watch/old.txt')
    await seen(Kind.RENAME, 'new.txt')
    await seen(Kind.CREATE, 'old.txt')
    await sandbox.files.remove('watch/old.txt')
    await seen(Kind.REMOVE, 'old.txt')
    await sandbox.files.write('watch/below/unseen.txt', '')
    await sandbox.files.write('watch/last', '')
    await seen(Kind.CREATE, 'last')
    assert.equal(events.some((event) => event.name.includes('unseen')), false)
    assert.equal(events.every((event) => event.entry === undefined), true)
  })
})

test('watchDir goes below when asked, and into what is new', async () => {
  const { FilesystemEventType: Kind } = e2b
  await sandbox.files.makeDir('tree/a/b')
  await watched('tree', { recursive: true, includeEntry: true }, async (events, seen) => {
    await sandbox.files.write('tree/a/b/deep.txt', '123')
    await seen(Kind.WRITE, 'a/b/deep.txt')
    const entry = events.find((event) => event.type === Kind.WRITE && event.name === 'a/b/deep.txt').entry
    assert.equal(entry.path, '/home/user/tree/a/b/deep.txt')
    assert.equal(entry.type, e2b.FileType.FILE)
    await sandbox.commands.run('mkdir -p tree/n/e/w && echo x > tree/n/e/w/file')
    await seen(Kind.CREATE, 'n/e/w/file')
    await sandbox.commands.run('echo y >> tree/n/e/w/file')
    await seen(Kind.WRITE, 'n/e/w/file')
    await sandbox.commands.run('mv tree/n tree/m')
    await seen(Kind.RENAME, 'n')
    await seen(Kind.CREATE, 'm')
    await sandbox.commands.run('echo z >> tree/m/e/w/file')
    await seen(Kind.WRITE, 'm/e/w/file')
  })
})

test('watchDir ends: by stop, by its time, by errors', async () => {
  let ended = 0
  const handle = await sandbox.files.watchDir('watch', () => {}, { onExit: () => ended++ })
  await handle.stop()
  await until(() => ended === 1, 'the exit')
  let error
  await sandbox.files.watchDir('watch', () => {}, { timeoutMs: 300, onExit: (e) => (error = e ?? 'none') })
  await until(() => error, 'the timeout')
  assert.ok(error instanceof e2b.TimeoutError, `${error}`)
  await assert.rejects(sandbox.files.watchDir('no/such', () => {}), e2b.FileNotFoundError)
  await sandbox.files.write('watch/file', '')
  await assert.rejects(sandbox.files.watchDir('watch/file', () => {}), e2b.InvalidArgumentError)
  const names = []
  const whole = await sandbox.files.watchDir('watch', (event) => names.push(`${event.type} ${event.name}`), { timeoutMs: 0 })
  await sandbox.files.remove('watch')
  await until(() => names.includes('remove .'), 'the end of the directory itself')
  await whole.stop()
})
