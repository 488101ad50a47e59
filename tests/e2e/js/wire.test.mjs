// SPDX-License-Identifier: Apache-2.0
// What the SDK does not show: routing, refusals, ranges, port proxying, upgrades, isolation, the server's end.
import assert from 'node:assert/strict'
import { existsSync, readFileSync, readdirSync } from 'node:fs'
import http from 'node:http'
import net from 'node:net'
import { once } from 'node:events'
import { after, before, test } from 'node:test'
import { spawn } from 'node:child_process'
import { freePort, identity, processAlive, serverArgs, startServer, until } from './harness.mjs'

let server
let box

async function api(method, path, body, headers = {}) {
  const reply = await fetch(server.apiUrl + path, {
    method,
    headers: { 'X-API-Key': server.key, ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  })
  const text = await reply.text()
  return { status: reply.status, body: text ? JSON.parse(text) : null, headers: reply.headers }
}

function routed(port = 49983) {
  return { 'E2b-Sandbox-Id': box.sandboxID, 'E2b-Sandbox-Port': String(port), 'X-Access-Token': box.envdAccessToken ?? '' }
}

async function run(script, user = 'root') {
  const message = Buffer.from(JSON.stringify({ process: { cmd: '/bin/sh', args: ['-c', script] }, stdin: false }))
  const head = Buffer.alloc(5)
  head.writeUInt32BE(message.length, 1)
  const reply = await fetch(`${server.sandboxUrl}/process.Process/Start`, {
    method: 'POST',
    headers: {
      ...routed(),
      'Content-Type': 'application/connect+json',
      Authorization: `Basic ${Buffer.from(`${user}:`).toString('base64')}`,
    },
    body: Buffer.concat([head, message]),
  })
  let data = Buffer.from(await reply.arrayBuffer())
  const messages = []
  while (data.length >= 5) {
    const size = data.readUInt32BE(1)
    messages.push({ flags: data[0], body: JSON.parse(data.subarray(5, 5 + size)) })
    data = data.subarray(5 + size)
  }
  const stdout = messages.map((m) => Buffer.from(m.body.event?.data?.stdout ?? '', 'base64').toString()).join('')
  return { messages, stdout, end: messages.find((m) => m.body.event?.end)?.body.event.end }
}

// What a client gets that begins a request and does not go on; asked for early, looked at last.
let slow

async function answerTo(text) {
  const url = new URL(server.apiUrl)
  const socket = net.connect(Number(url.port), url.hostname)
  const began = Date.now()
  let said = ''
  socket.setEncoding('utf8')
  socket.on('data', (data) => {
    said += data
  })
  socket.write(text)
  await once(socket, 'end')
  socket.destroy()
  return { said, seconds: (Date.now() - began) / 1000 }
}

before(async () => {
  server = await startServer()
  slow = Promise.all([
    answerTo('GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow'),
    answerTo(`POST /v2/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-Key: ${server.key}\r\nContent-Length: 100\r\n\r\n{"templ`),
  ])
  const made = await api('POST', '/sandboxes', { templateID: 'base', timeout: 300, secure: true })
  assert.equal(made.status, 201)
  box = made.body
})

after(() => server.stop())

test('a request that is under way when its sandbox ends is answered', async () => {
  const made = await api('POST', '/sandboxes', { templateID: 'base', timeout: 300 })
  const id = made.body.sandboxID
  const request = http.request(`${server.sandboxUrl}/files?path=/tmp/half&username=root`, {
    method: 'POST',
    headers: { 'E2b-Sandbox-Id': id, 'E2b-Sandbox-Port': '49983', 'Content-Type': 'application/octet-stream', 'Content-Length': 1000 },
  })
  const answered = once(request, 'response')
  request.write('the first bytes')
  if (!request.socket) await once(request, 'socket')
  assert.equal((await api('DELETE', `/sandboxes/${id}`)).status, 204)
  const [reply] = await answered
  assert.equal(reply.statusCode, 502)
  reply.resume()
  await once(reply, 'end')
  request.destroy()
})

test('first generation: create, connect, resume, list', async () => {
  const made = await api('POST', '/sandboxes', { templateID: 'base' })
  assert.equal(made.status, 201)
  assert.equal(made.body.envdAccessToken, undefined)
  const id = made.body.sandboxID
  assert.equal((await api('POST', `/sandboxes/${id}/connect`, { timeout: 60 })).status, 200)
  assert.equal((await api('POST', `/sandboxes/${id}/connect`, {})).status, 400)
  assert.equal((await api('POST', `/sandboxes/${id}/pause`)).status, 204)
  assert.equal((await api('POST', `/sandboxes/${id}/pause`)).status, 409)
  assert.equal((await api('POST', `/sandboxes/${id}/timeout`, { timeout: 5 })).status, 404)
  assert.equal((await api('GET', '/sandboxes')).body.some((item) => item.sandboxID === id), false)
  assert.equal((await api('POST', `/sandboxes/${id}/resume`, { timeout: 60 })).status, 201)
  assert.equal((await api('POST', `/sandboxes/${id}/resume`, { timeout: 60 })).status, 409)
  assert.equal((await api('GET', '/sandboxes')).body.some((item) => item.sandboxID === id), true)
  assert.equal((await api('POST', `/sandboxes/${id}/refreshes`, { duration: 100 })).status, 204)
  assert.equal((await api('POST', `/sandboxes/${id}/timeout`, { timeout: 0 })).status, 204)
  await until(async () => (await api('GET', `/sandboxes/${id}`)).status === 404, 'the end')
})

test('refusals of the control plane', async () => {
  const bad = [
    [await api('GET', '/sandboxes/inosuch'), 404],
    [await api('DELETE', '/sandboxes/inosuch'), 404],
    [await api('GET', '/sandboxes/Bad_Id'), 400],
    [await api('POST', '/v2/sandboxes', {}), 400],
    [await api('POST', '/v2/sandboxes', { templateID: 'base', timeout: 0 }), 400],
    [await api('POST', '/v2/sandboxes', { templateID: 'base', timeout: 1e6 }), 400],
    [await api('POST', '/v2/sandboxes', { templateID: 'base', metadata: { a: 1 } }), 400],
    [await api('POST', '/v2/sandboxes', { templateID: 'base', metadata: { 'nearbox.bind': '["/etc"]' } }), 400],
    [await api('GET', '/v2/sandboxes?limit=0'), 400],
    [await api('GET', '/v2/sandboxes?nextToken=zzz'), 400],
    [await api('GET', '/nowhere'), 404],
    [await api('GET', '/sandboxes', undefined, { 'X-API-Key': 'wrong' }), 401],
  ]
  for (const [reply, status] of bad) {
    assert.equal(reply.status, status, JSON.stringify(reply.body))
    assert.equal(reply.body.code, status)
    assert.equal(typeof reply.body.message, 'string')
  }
  assert.equal((await fetch(`${server.apiUrl}/health`)).status, 204)
  assert.equal((await fetch(`${server.apiUrl}/sandboxes`)).status, 401)
})

test('routing: lone headers, unknown sandboxes, hidden routes, host names', async () => {
  const get = (headers, path = '/health') => fetch(server.sandboxUrl + path, { headers })
  assert.equal((await get({ 'E2b-Sandbox-Id': box.sandboxID })).status, 400)
  assert.equal((await get({ 'E2b-Sandbox-Port': '49983' })).status, 400)
  const unknown = await get({ 'E2b-Sandbox-Id': 'inosuch', 'E2b-Sandbox-Port': '49983' })
  assert.equal(unknown.status, 502)
  assert.deepEqual(await unknown.json(), { sandboxId: 'inosuch', message: 'The sandbox was not found', code: 502 })
  for (const path of ['/init', '/freeze', '//init', '/x/../init', '/init/']) {
    const status = await new Promise((resolve, reject) => {
      const url = new URL(server.sandboxUrl)
      http.get({ host: url.hostname, port: url.port, path, headers: routed() }, (r) => resolve(r.resume().statusCode)).on('error', reject)
    })
    assert.equal(status, 404, path)
  }
  assert.equal((await get(routed())).status, 204)
  const url = new URL(server.sandboxUrl)
  const status = await new Promise((resolve, reject) => {
    http
      .get({ host: url.hostname, port: url.port, path: '/health', headers: { Host: `49983-${box.sandboxID}.localhost` } }, (r) =>
        resolve(r.resume().statusCode),
      )
      .on('error', reject)
  })
  assert.equal(status, 204)
})

test('envd: token, users, protocol errors', async () => {
  const bare = { 'E2b-Sandbox-Id': box.sandboxID, 'E2b-Sandbox-Port': '49983' }
  const stat = (headers, body = '{"path":"/"}') =>
    fetch(`${server.sandboxUrl}/filesystem.Filesystem/Stat`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', ...headers },
      body,
    })
  const refused = await stat(bare)
  assert.equal(refused.status, 401)
  assert.equal((await refused.json()).code, 401)
  assert.equal((await stat({ ...bare, 'X-Access-Token': 'wrong' })).status, 401)
  const unknown = await stat({ ...routed(), Authorization: `Basic ${Buffer.from('ghost:').toString('base64')}` })
  assert.equal(unknown.status, 401)
  assert.equal((await unknown.json()).code, 'unauthenticated')
  assert.equal((await stat(routed(), '')).status, 400)
  assert.equal((await stat(routed(), '[1')).status, 400)
  assert.equal((await stat(routed(), '{"path":17}')).status, 400)
  assert.equal((await stat({ ...routed(), 'Content-Type': 'application/proto' })).status, 415)
  const missing = await stat(routed(), '{"path":"/no/such"}')
  assert.equal(missing.status, 404)
  assert.equal((await missing.json()).code, 'not_found')
  const signals = await fetch(`${server.sandboxUrl}/process.Process/SendSignal`, {
    method: 'POST',
    headers: { ...routed(), 'Content-Type': 'application/json' },
    body: '{"process":{"pid":42000},"signal":"SIGNAL_SIGKILL"}',
  })
  assert.equal(signals.status, 404)
})

test('files: ranges, dates, refusals without reading the body', async () => {
  const put = await fetch(`${server.sandboxUrl}/files?path=/tmp/range.txt`, {
    method: 'POST',
    headers: { ...routed(), 'Content-Type': 'application/octet-stream' },
    body: '0123456789',
  })
  assert.equal(put.status, 200)
  const get = (headers, path = '/tmp/range.txt') => fetch(`${server.sandboxUrl}/files?path=${path}`, { headers: { ...routed(), ...headers } })
  const part = await get({ Range: 'bytes=2-4' })
  assert.equal(part.status, 206)
  assert.equal(part.headers.get('content-range'), 'bytes 2-4/10')
  assert.equal(await part.text(), '234')
  assert.equal(await (await get({ Range: 'bytes=-3' })).text(), '789')
  assert.equal((await get({ Range: 'bytes=10-' })).status, 416)
  const whole = await get({})
  assert.equal((await get({ 'If-Modified-Since': whole.headers.get('last-modified') })).status, 304)
  assert.equal((await get({}, '/tmp')).status, 400)
  assert.match(await (await get({}, '/proc/self/status')).text(), /^Name:/)
  const url = new URL(server.sandboxUrl)
  const socket = net.connect(Number(url.port), url.hostname)
  const lines = Object.entries({ ...routed(), 'X-Access-Token': 'wrong', Host: 'localhost', Expect: '100-continue' })
  socket.write(
    `POST /files?path=/tmp/no HTTP/1.1\r\nContent-Length: 1000000000\r\nContent-Type: application/octet-stream\r\n${lines.map(([k, v]) => `${k}: ${v}\r\n`).join('')}\r\n`,
  )
  const [data] = await once(socket, 'data')
  assert.match(data.toString(), /^HTTP\/1\.1 401 /)
  socket.destroy()
})

test('Expect: 100-continue is answered before the body', async () => {
  const url = new URL(server.sandboxUrl)
  const request = http.request({
    host: url.hostname,
    port: url.port,
    path: '/files?path=/tmp/continued',
    method: 'POST',
    headers: { ...routed(), 'Content-Type': 'application/octet-stream', 'Content-Length': 5, Expect: '100-continue' },
  })
  request.flushHeaders()
  await once(request, 'continue')
  request.end('hello')
  const [reply] = await once(request, 'response')
  assert.equal(reply.statusCode, 200)
  reply.resume()
})

test('the agent recipe: upload as root, start detached, reach its port, upgrade', async (t) => {
  const put = await fetch(`${server.sandboxUrl}/files?path=/usr/local/bin/nb-probe.mjs&username=root`, {
    method: 'POST',
    headers: { ...routed(), 'Content-Type': 'application/octet-stream' },
    body: readFileSync(new URL('./upgrade_probe.mjs', import.meta.url)),
  })
  assert.equal(put.status, 200, await put.text())
  const port = await freePort()
  const closed = await fetch(`${server.sandboxUrl}/`, { headers: routed(port) })
  assert.equal(closed.status, 502)
  assert.deepEqual(await closed.json(), {
    sandboxId: box.sandboxID,
    message: 'The sandbox is running but port is not open',
    port,
    code: 502,
  })
  // A sandbox does not see every directory that the suite's own Node may be in.
  const node = existsSync('/usr/bin/node') ? '/usr/bin/node' : process.execPath
  const started = await run(`chmod 755 /usr/local/bin/nb-probe.mjs && exec setsid ${node} /usr/local/bin/nb-probe.mjs ${port} </dev/null >/tmp/probe.log 2>&1 &`)
  assert.equal(started.end.exitCode ?? 0, 0)
  await until(async () => (await fetch(`${server.sandboxUrl}/x`, { headers: routed(port) })).status === 200, 'the port')
  const echo = await fetch(`${server.sandboxUrl}/path?q=1`, { method: 'POST', headers: routed(port), body: 'payload' })
  const seen = await echo.json()
  assert.equal(seen.url, '/path?q=1')
  assert.equal(seen.body, 'payload')
  assert.equal(seen.forwarded, undefined)
  const url = new URL(server.sandboxUrl)
  const request = http.request({
    host: url.hostname,
    port: url.port,
    path: '/tunnel',
    headers: { ...routed(port), Connection: 'Upgrade', Upgrade: 'websocket' },
  })
  request.end()
  const [, socket, first] = await once(request, 'upgrade')
  t.after(() => socket.destroy())
  let got = first.length
  socket.on('data', (data) => {
    got += data.length
  })
  const block = Buffer.alloc(1 << 20, 7)
  for (let i = 0; i < 16; i++) if (!socket.write(block)) await once(socket, 'drain')
  await until(() => got === 'ready'.length + 16 * block.length, 'the echo')
  socket.end()
  await once(socket, 'end')
})

test("a port of the machine's own is none of a sandbox's", async () => {
  let reached = 0
  const foreign = http.createServer((_, reply) => {
    reached++
    reply.end('foreign')
  })
  for (const host of ['127.0.0.1', '0.0.0.0']) {
    foreign.listen(0, host)
    await once(foreign, 'listening')
    const { port } = foreign.address()
    const reply = await fetch(`${server.sandboxUrl}/`, { headers: routed(port) })
    foreign.close()
    await once(foreign, 'close')
    assert.equal(reply.status, 502)
    assert.equal((await reply.json()).message, 'The sandbox is running but port is not open')
  }
  assert.equal(reached, 0)
})

test('isolation: own home, tmp and processes, the machine untouched', async () => {
  const inside = await run('echo secret > /etc/nearbox-probe; echo x > /usr/local/bin/nearbox-probe; ls /home; cat /proc/1/comm; ls -A /tmp | wc -l; getent passwd user')
  assert.match(inside.stdout, /^user\n/)
  assert.match(inside.stdout, /user:x:1000:1000::\/home\/user:\/bin\/bash/)
  assert.equal(existsSync('/etc/nearbox-probe'), false)
  assert.equal(existsSync('/usr/local/bin/nearbox-probe'), false)
  assert.equal((await run(`kill -0 ${process.pid}`)).end.exitCode, 1)
  const bound = await api('POST', '/v2/sandboxes', {
    templateID: 'base',
    metadata: { 'nearbox.bind': JSON.stringify(['/srv/work space', '/home/someone/project']) },
  })
  assert.equal(bound.status, 201, JSON.stringify(bound.body))
  const old = box
  box = bound.body
  const listed = await run('ls -A "/srv/work space" /home/someone/project && touch "/srv/work space/f" /home/someone/project/g && echo ok', 'user')
  box = old
  assert.match(listed.stdout, /ok\n$/)
  assert.equal(existsSync('/srv/work space'), false)
  await api('DELETE', `/sandboxes/${bound.body.sandboxID}`)
})

test('commands that kill their group or everything do not end the sandbox', async () => {
  const made = await api('POST', '/sandboxes', { templateID: 'base', timeout: 300 })
  const old = box
  box = made.body
  try {
    await run('echo kept > /root/kept')
    const group = await run('kill -9 0; echo not reached')
    assert.equal(group.stdout, '')
    assert.equal((await run('cat /root/kept')).stdout, 'kept\n')
    // Envd itself goes: the reply is cut off, the next request finds a new envd and the old files.
    await run('kill -9 -1').catch(() => {})
    const again = await until(() => run('cat /root/kept').catch(() => null), 'a new envd')
    assert.equal(again.stdout, 'kept\n')
  } finally {
    await api('DELETE', `/sandboxes/${box.sandboxID}`)
    box = old
  }
})

test('a bind that a link leads elsewhere is refused; a FIFO without reader is no file', async () => {
  const refused = await api('POST', '/v2/sandboxes', {
    templateID: 'base',
    metadata: { 'nearbox.bind': JSON.stringify(['/var/run/nearbox-probe']) },
  })
  assert.ok(refused.status >= 400, JSON.stringify(refused.body))
  await run('mkfifo /root/fifo')
  const put = await fetch(`${server.sandboxUrl}/files?path=/root/fifo&username=root`, {
    method: 'POST',
    headers: { ...routed(), 'Content-Type': 'application/octet-stream' },
    body: 'x',
  })
  assert.equal(put.status, 500, await put.text())
})

test('killing a sandbox ends its detached processes and frees its files', async () => {
  const made = await api('POST', '/sandboxes', { templateID: 'base', timeout: 300 })
  const old = box
  box = made.body
  await run('setsid sleep 4242.25 </dev/null >/dev/null 2>&1 & echo started')
  box = old
  const sleeping = () =>
    readdirSync('/proc').filter((name) => {
      if (!/^\d+$/.test(name)) return false
      try {
        return readFileSync(`/proc/${name}/cmdline`, 'utf8').includes('4242.25')
      } catch {
        return false
      }
    })
  await until(() => sleeping().length > 0, 'the detached process')
  assert.equal((await api('DELETE', `/sandboxes/${made.body.sandboxID}`)).status, 204)
  assert.deepEqual(sleeping(), [])
  await until(() => !readdirSync(`${server.data}/trash`).length, 'the files to go')
})

test('a killed server leaves no process; the next one cleans up', async (t) => {
  const second = await startServer()
  t.after(() => second.stop())
  const reply = await fetch(`${second.apiUrl}/sandboxes`, {
    method: 'POST',
    headers: { 'X-API-Key': second.key },
    body: JSON.stringify({ templateID: 'base', timeout: 300 }),
  })
  const { sandboxID } = await reply.json()
  const mine = processesBelow(second.pid).slice(1).map(Number)
  assert.ok(mine.length >= 2)
  await second.kill9()
  await until(() => mine.every((pid) => !processAlive(pid)), 'its processes to end')
  assert.ok(existsSync(`${second.data}/sandboxes/${sandboxID}`))
  const third = spawn(process.env.NEARBOX_SERVE, [...serverArgs, '--listen', '127.0.0.1:0', '--data', second.data, '--json'], {
    stdio: ['ignore', 'pipe', 'pipe'],
    ...identity,
  })
  let said = ''
  third.stderr.on('data', (data) => {
    said += data
  })
  t.after(() => third.kill('SIGTERM'))
  await once(third.stdout, 'data')
  assert.equal(existsSync(`${second.data}/sandboxes/${sandboxID}`), false)
  assert.match(said, /removes what ended sandboxes had left/)
  third.kill('SIGTERM')
  const [code] = await once(third, 'exit')
  assert.equal(code, 0)
})

// The numbers of a process and of all below it.
function processesBelow(root) {
  const parents = new Map()
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      const stat = readFileSync(`/proc/${name}/stat`, 'utf8')
      parents.set(name, stat.slice(stat.lastIndexOf(')') + 4).split(' ')[0])
    } catch {
      // it has ended
    }
  }
  const out = [String(root)]
  for (let i = 0; i < out.length; i++) for (const [pid, parent] of parents) if (parent === out[i]) out.push(pid)
  return out
}

test('a taken port and a directory in use are named', async () => {
  const attempt = async (args) => {
    const child = spawn(process.env.NEARBOX_SERVE, [...serverArgs, '--json', ...args], { stdio: ['ignore', 'pipe', 'pipe'], ...identity })
    let said = ''
    child.stderr.on('data', (data) => {
      said += data
    })
    const [code] = await once(child, 'close')
    return { code, said }
  }
  const { port } = new URL(server.apiUrl)
  const taken = await attempt(['--listen', `127.0.0.1:${port}`, '--data', `${server.data}/other`])
  assert.equal(taken.code, 1)
  assert.match(taken.said, new RegExp(`port ${port} .*taken`))
  const busy = await attempt(['--listen', '127.0.0.1:0', '--data', server.data])
  assert.equal(busy.code, 1)
  assert.match(busy.said, /another sandbox server uses/)
})

test('clients that stop in the middle do not keep a connection', async () => {
  for (const { said, seconds } of await slow) {
    assert.match(said, /^HTTP\/1\.1 408 /)
    assert.ok(seconds > 9 && seconds < 40, `${seconds}`)
  }
  const long = await answerTo(`GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: ${'x'.repeat(70_000)}\r\n\r\n`)
  assert.match(long.said, /^HTTP\/1\.1 431 /)
  const { sandboxID } = (await api('POST', '/v2/sandboxes', { templateID: 'base' })).body
  const large = await api('POST', `/sandboxes/${sandboxID}/timeout`, { timeout: 5, more: 'x'.repeat(17 << 20) }).catch((error) => error)
  assert.ok(large.status === 413 || large instanceof Error)
  assert.equal((await api('DELETE', `/sandboxes/${sandboxID}`)).status, 204)
})

test('what other routes answer', async () => {
  for (const [method, path] of [
    ['POST', '/v3/templates'],
    ['GET', '/templates'],
    ['GET', '/volumes'],
    ['POST', `/sandboxes/${box.sandboxID}/snapshots`],
    ['POST', `/sandboxes/${box.sandboxID}/fork`],
    ['PUT', `/sandboxes/${box.sandboxID}/network`],
  ]) {
    const reply = await api(method, path, method === 'GET' ? undefined : {})
    assert.deepEqual([reply.status, reply.body.code], [501, 501], path)
  }
  assert.equal((await api('DELETE', '/templates/none')).status, 404)
  const metrics = await api('GET', `/sandboxes/metrics?sandbox_ids=${box.sandboxID},inosuch`)
  assert.deepEqual(Object.keys(metrics.body.sandboxes), [box.sandboxID])
  assert.equal((await api('GET', `/sandboxes/metrics?sandbox_ids=${'i,'.repeat(200)}`)).status, 400)
  assert.equal((await api('POST', '/v2/sandboxes', { templateID: 'base' }, { 'Idempotency-Key': 'Not One' })).status, 400)
})

test('files in gzip, for those who take nothing else', async () => {
  await fetch(`${server.sandboxUrl}/files?path=/tmp/z.txt`, {
    method: 'POST',
    headers: { ...routed(), 'Content-Type': 'application/octet-stream' },
    body: 'z'.repeat(100_000),
  })
  const get = (headers) =>
    new Promise((resolve, reject) => {
      const url = new URL(`${server.sandboxUrl}/files?path=/tmp/z.txt`)
      http.get(url, { headers: { ...routed(), ...headers } }, (reply) => resolve(reply.resume())).on('error', reject)
    })
  assert.equal((await get({ 'Accept-Encoding': 'gzip' })).headers['content-encoding'], 'gzip')
  assert.equal((await get({ 'Accept-Encoding': 'gzip, deflate' })).headers['content-length'], '100000')
  assert.equal((await get({ 'Accept-Encoding': 'gzip', Range: 'bytes=0-9' })).statusCode, 206)
  assert.equal((await get({ 'Accept-Encoding': 'identity;q=0' })).statusCode, 406)
})
