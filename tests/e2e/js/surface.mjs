// SPDX-License-Identifier: Apache-2.0
// The public methods of the installed package, from its typings: private and protected ones are marked there.
// Run by itself it prints them, for docs/compat.md.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { dirname, join } from 'node:path'

const root = dirname(createRequire(import.meta.url).resolve('e2b/package.json'))
export const version = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')).version

// {class: [method, …]}, without errors; functions of the package as class "functions".
export function surface() {
  const lines = readFileSync(join(root, 'dist', 'index.d.ts'), 'utf8').split('\n')
  const out = { functions: new Set() }
  let current
  for (const line of lines) {
    const begins = /^declare (?:abstract )?class (\w+)/.exec(line)
    if (begins) current = /Error$/.test(begins[1]) ? undefined : (out[begins[1]] = new Set())
    if (line === '}') current = undefined
    const member = /^ {2}(?:static )?(?:async )?(\w+)(?:<[^(]*>)?\(/.exec(line)
    if (current && member && member[1] !== 'constructor') current.add(member[1])
    const called = /^declare function (\w+)/.exec(line)
    if (called) out.functions.add(called[1])
  }
  const exported = new Set(lines.findLast((line) => line.startsWith('export {')).match(/\w+/g))
  for (const name of out.functions) if (!exported.has(name)) out.functions.delete(name)
  return Object.fromEntries(
    Object.entries(out)
      .filter(([, methods]) => methods.size > 0)
      .map(([name, methods]) => [name, [...methods].sort()]),
  )
}

if (process.argv[1] === new URL(import.meta.url).pathname) {
  for (const [name, methods] of Object.entries(surface())) console.log(`${name}: ${methods.join(' ')}`)
}
