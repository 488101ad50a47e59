// SPDX-License-Identifier: Apache-2.0
// Starts one server for a test file and ends it again.
import { spawn } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { chown, mkdtemp, rm } from 'node:fs/promises'
import http from 'node:http'
import net from 'node:net'
import { once } from 'node:events'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'

const program = process.env.NEARBOX_SERVE
if (!program) throw new Error('NEARBOX_SERVE must name the server program')

export const serverArgs = (process.env.NEARBOX_SERVE_ARGS ?? '').split(' ').filter(Boolean)
export const plain = serverArgs.includes('--plain')
// The user the server runs as; root's tests run it as an ordinary one, too.
const uid = Number(process.env.NEARBOX_E2E_UID ?? 0)
export const identity = uid && process.getuid() === 0 ? { uid, gid: uid } : {}

// `data`: the directory of an earlier server, which had `keep` set.
export async function startServer({ args = [], env = {}, data: earlier, keep = false } = {}) {
  const data = earlier ?? (await mkdtemp(join(tmpdir(), 'nearbox-e2e-')))
  if (!earlier && identity.uid !== undefined) await chown(data, identity.uid, identity.gid)
  // It ends with the test's process, however that ends.
  const words = ['--pdeathsig', 'TERM', program, ...serverArgs, '--listen', '127.0.0.1:0', '--data', data, '--json', ...args]
  const child = spawn('setpriv', words, {
    stdio: ['ignore', 'pipe', 'inherit'],
    env: { ...process.env, ...env },
    ...identity,
  })
  const exited = once(child, 'exit')
  const line = await Promise.race([
    once(createInterface({ input: child.stdout }), 'line').then(([text]) => text),
    exited.then(([code]) => {
      throw new Error(`the server ended with code ${code}`)
    }),
  ])
  const { api_url, sandbox_url, api_key } = JSON.parse(line)
  process.env.E2B_API_URL = api_url
  process.env.E2B_SANDBOX_URL = sandbox_url
  process.env.E2B_API_KEY = api_key
  return {
    apiUrl: api_url,
    sandboxUrl: sandbox_url,
    key: api_key,
    data,
    pid: child.pid,
    exited,
    async kill9() {
      child.kill('SIGKILL')
      await exited
    },
    async stop() {
      if (child.exitCode === null && child.signalCode === null) child.kill('SIGTERM')
      const [code, signal] = await exited
      if (!keep) await rm(data, { recursive: true, force: true })
      return { code, signal }
    },
  }
}

// Waits until `check` gives something true, or throws after `ms`.
export async function until(check, what, ms = 10000) {
  const end = Date.now() + ms
  while (Date.now() < end) {
    const value = await check()
    if (value) return value
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  throw new Error(`timed out waiting for ${what}`)
}

// The command lines of the machine's processes that have `mark` as a word.
export function running(mark) {
  return readdirSync('/proc').filter((name) => {
    if (!/^\d+$/.test(name)) return false
    try {
      return readFileSync(`/proc/${name}/cmdline`, 'utf8').split('\0').includes(mark)
    } catch {
      return false
    }
  })
}

// One request to a port of a sandbox by its host name, as a browser or proxy makes it.
export function requestHost(server, host, { path = '/', method = 'GET', headers = {}, body } = {}) {
  const { hostname, port } = new URL(server.sandboxUrl)
  return new Promise((resolve, reject) => {
    const request = http.request({ host: hostname, port, path, method, headers: { Host: host, ...headers } }, (reply) => {
      let text = ''
      reply.setEncoding('utf8')
      reply.on('data', (piece) => {
        text += piece
      })
      reply.on('end', () => resolve({ status: reply.statusCode, headers: reply.headers, text }))
      reply.on('error', reject)
    })
    request.on('error', reject)
    request.end(body)
  })
}

export async function freePort() {
  const probe = net.createServer().listen(0, '127.0.0.1')
  await once(probe, 'listening')
  const { port } = probe.address()
  probe.close()
  await once(probe, 'close')
  return port
}

export function processAlive(pid) {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}
