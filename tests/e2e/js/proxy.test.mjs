// SPDX-License-Identifier: Apache-2.0
// A sandbox's own services, reached by getHost() and by the routing headers.
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { freePort, requestHost, startServer, until } from './harness.mjs'

let server
let Sandbox

before(async () => {
  server = await startServer()
  ;({ Sandbox } = await import('e2b'))
})

after(() => server.stop())

// A service that tells what it was asked; Debian's own Python is there in every sandbox.
const service = `
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({'path': self.path, 'host': self.headers.get('Host'),
                           'original': self.headers.get('X-Forwarded-Host')}).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
`

async function serve(sandbox) {
  const port = await freePort()
  await sandbox.files.write('service.py', service)
  await sandbox.commands.run(`exec /usr/bin/python3 service.py ${port}`, { background: true, timeoutMs: 0 })
  return port
}

test('getHost names a host that reaches the port', async () => {
  const sandbox = await Sandbox.create()
  const port = await serve(sandbox)
  const host = sandbox.getHost(port)
  assert.equal(host.split('.')[0], `${port}-${sandbox.sandboxId}`)
  await until(async () => (await requestHost(server, host)).status === 200, 'the service')
  const seen = JSON.parse((await requestHost(server, host, { path: '/a/b?c=d' })).text)
  assert.deepEqual(seen, { path: '/a/b?c=d', host, original: null })
  // The same by headers, under any host name.
  const headers = { 'E2b-Sandbox-Id': sandbox.sandboxId, 'E2b-Sandbox-Port': String(port) }
  assert.equal((await requestHost(server, 'localhost', { path: '/x', headers })).status, 200)
  // A domain of one's own goes into the name.
  const other = await Sandbox.connect(sandbox.sandboxId, { domain: 'boxes.test:8443' })
  assert.equal(other.getHost(port), `${port}-${sandbox.sandboxId}.boxes.test:8443`)
  assert.equal((await requestHost(server, other.getHost(port))).status, 200)
  const closed = await requestHost(server, sandbox.getHost(await freePort()))
  assert.equal(closed.status, 502)
  assert.equal(JSON.parse(closed.text).message, 'The sandbox is running but port is not open')
  await sandbox.kill()
  const gone = await requestHost(server, host)
  assert.equal(gone.status, 502)
  assert.equal(JSON.parse(gone.text).message, 'The sandbox was not found')
  assert.equal((await requestHost(server, 'x', { headers: { ...headers, 'E2b-Sandbox-Port': '0' } })).status, 400)
  const page = await requestHost(server, host, { headers: { 'User-Agent': 'Mozilla/5.0 (X11)', Accept: 'text/html,*/*' } })
  assert.equal(page.status, 502)
  assert.match(page.headers['content-type'], /^text\/html/)
  assert.match(page.text, /The sandbox was not found/)
})

test('without public traffic a service wants the token', async () => {
  const sandbox = await Sandbox.create({ network: { allowPublicTraffic: false } })
  assert.ok(sandbox.trafficAccessToken)
  const port = await serve(sandbox)
  const token = { 'e2b-traffic-access-token': sandbox.trafficAccessToken }
  const get = (headers) => requestHost(server, sandbox.getHost(port), { headers })
  await until(async () => (await get(token)).status === 200, 'the service')
  const refused = await get({})
  assert.equal(refused.status, 403)
  assert.equal(JSON.parse(refused.text).sandboxId, sandbox.sandboxId)
  assert.equal((await get({ 'e2b-traffic-access-token': 'wrong' })).status, 403)
  // Files and commands have a token of their own.
  assert.equal((await sandbox.commands.run('echo in')).stdout, 'in\n')
  await sandbox.kill()
})

test('a masked host is what the service sees', async () => {
  const sandbox = await Sandbox.create({ network: { maskRequestHost: 'localhost:${PORT}' } })
  assert.equal((await sandbox.getInfo()).network.maskRequestHost, 'localhost:${PORT}')
  const port = await serve(sandbox)
  const host = sandbox.getHost(port)
  await until(async () => (await requestHost(server, host)).status === 200, 'the service')
  const seen = JSON.parse((await requestHost(server, host)).text)
  assert.deepEqual(seen, { path: '/', host: `localhost:${port}`, original: host })
  await sandbox.kill()
})
