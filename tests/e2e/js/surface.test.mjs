// SPDX-License-Identifier: Apache-2.0
// docs/compat.md lists every public method of the installed package, and what it says is tested, is.
import assert from 'node:assert/strict'
import { readFileSync, readdirSync } from 'node:fs'
import { test } from 'node:test'
import { surface, version } from './surface.mjs'

const here = new URL('.', import.meta.url)
const sources = readdirSync(here)
  .filter((name) => name.endsWith('.test.mjs') && name !== 'surface.test.mjs')
  .map((name) => readFileSync(new URL(name, here), 'utf8'))
  .join('\n')

// {class: [tested, refused, local]} of the table below the heading of this package.
function listed() {
  const text = readFileSync(process.env.NEARBOX_COMPAT, 'utf8')
  const part = text.split(/^### /m).find((section) => section.startsWith(`npm e2b ${version}\n`))
  assert.ok(part, `docs/compat.md has no "### npm e2b ${version}"`)
  const rows = part.split('\n').filter((line) => line.startsWith('| ') && !line.startsWith('| class'))
  return Object.fromEntries(
    rows.map((row) => {
      const [name, ...columns] = row.split('|').slice(1, -1).map((cell) => cell.trim())
      return [name, columns.map((cell) => (cell === '–' ? [] : cell.split(', ')))]
    }),
  )
}

test('docs/compat.md lists every public method', () => {
  const flat = Object.fromEntries(Object.entries(listed()).map(([name, columns]) => [name, columns.flat().sort()]))
  assert.deepEqual(flat, surface())
})

test('what it calls tested or refused is called by a test', () => {
  for (const [name, [tested, refused]] of Object.entries(listed())) {
    for (const method of [...tested, ...refused]) {
      assert.match(sources, new RegExp(`\\.${method}\\b`), `${name}.${method}`)
    }
  }
})
